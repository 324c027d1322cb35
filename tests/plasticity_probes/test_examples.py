"""The scripts of docs/examples run as the pages say, and the pages show them as they are."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from stable_baselines3 import PPO
from torch import nn

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
SHORT = {
    "sb3_interventions.py": ["--steps", "1000", "--every", "500", "--samples", "64", "--rollout", "256"],
    "sb3_run.py": ["--steps", "5000", "--every", "2000", "--samples", "64"],
    "own_script.py": ["--steps", "2400", "--period", "1000", "--every", "700"],
}
ROWS = {
    "sb3_interventions.py": ["512", "1024"],
    "sb3_run.py": ["2048", "4096", "6144"],
    "own_script.py": ["1000", "1400", "2100"],
}  # due at 700, and the first update is at 1000
PAGES = {
    "sb3_interventions.py": "interventions_with_sb3.md",
    "sb3_run.py": "probes_with_sb3.md",
    "own_script.py": "probes_in_your_script.md",
}


def started(script, arguments, folder):
    """`python script arguments` in `folder`, in an environment that knows nothing of this checkout."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment = {**kept, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    command = [sys.executable, str(script), *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("page", ["probes.md", "probes_with_sb3.md"])
def test_the_pages_own_lines_run(page, capsys):
    torch.manual_seed(0)
    layers = [nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)]
    given = {"model": nn.Sequential(*layers), "observations": torch.randn(16, 4)}
    if page == "probes_with_sb3.md":
        given["model"] = PPO("MlpPolicy", "CartPole-v1", n_steps=64, seed=1, device="cpu")
    (block,) = re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.S)
    exec(compile(block.replace("0_000", ""), page, "exec"), given)  # 10 steps, a probe each


def test_no_script_is_forgotten():
    assert sorted(SHORT) == sorted(path.name for path in (DOCS / "examples").glob("*.py"))


@pytest.mark.parametrize("name", SHORT)
@pytest.mark.long
def test_the_script_runs_from_the_root_and_prints_probes(name):
    done = started(f"docs/examples/{name}", SHORT[name], ROOT)
    assert done.returncode == 0, done.stderr
    header, *rows = done.stdout.splitlines()
    assert header.split()[:2] == ["step", "return"]
    assert header in (DOCS / PAGES[name]).read_text()
    assert [row.split()[0] for row in rows] == ROWS[name]
    for row in rows:
        assert all(float(number) == float(number) for number in row.split()[1:])
    if name == "sb3_interventions.py":
        assert int(rows[-1].split()[-1]) > 0


@pytest.mark.parametrize("name", SHORT)
@pytest.mark.long
def test_a_run_too_short_for_every_probe_leaves_their_columns_empty(name):
    """SB3 runs one rollout: no update has moved anything yet, so there is no churn."""
    done = started(f"docs/examples/{name}", ["--steps", "60"], ROOT)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == (1 if name == "own_script.py" else 2)


@pytest.mark.parametrize("name", SHORT)
def test_the_script_is_found_from_elsewhere_too(name, tmp_path):
    done = started(DOCS / "examples" / name, ["--help"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert "--steps" in done.stdout


@pytest.mark.parametrize("name", SHORT)
def test_the_page_shows_what_the_script_says(name):
    page, script = (DOCS / PAGES[name]).read_text(), (DOCS / "examples" / name).read_text()
    assert f"python docs/examples/{name}" in page
    shown = [line.strip() for block in re.findall(r"```python\n(.*?)```", page, re.S) for line in block.splitlines()]
    code = {line.strip() for line in script.splitlines()}
    marked = [line.strip() for line in script.splitlines() if "# probes " in line]
    if name == "own_script.py":
        assert [int(line.split("# probes ")[1].split(":")[0]) for line in marked] == list(range(1, 11))
        assert set(marked) <= set(shown)
        assert {line for line in shown if line and not line.startswith(("#", "..."))} <= code
