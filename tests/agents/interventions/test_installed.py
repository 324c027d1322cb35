"""The wheel of agents/ in a project that has packages `agents` and `envs` of its own."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "interventions_with_sb3.md"

PROGRAM = """
import sys

import agents, envs  # theirs
assert agents.MINE and envs.MINE

from stable_baselines3 import PPO

model = PPO("MlpPolicy", "CartPole-v1", n_steps=32, batch_size=32, n_epochs=2, seed=0, device="cpu")
before = [parameter.clone() for parameter in model.policy.parameters()]
{lines}
assert callback.clock.gradient_steps == 2
assert any(not old.equal(new) for old, new in zip(before, model.policy.parameters()))
places = {{name: module.__file__ for name, module in sys.modules.items() if getattr(module, "__file__", None)}}
ours = [name for name, place in places.items() if place.startswith(sys.argv[1])]
assert {{name.partition(".")[0] for name in ours}} == {{"plasticity_suite", "plasticity_probes"}}, ours
assert not [name for name, place in places.items() if place.startswith(sys.argv[2])]  # the checkout

from plasticity_suite.agents import DQNConfig, build_agent
from plasticity_suite.agents.interventions import COMBINATIONS, NAMES, intervention_class, parameters_of

assert len(NAMES) > 20 and all(intervention_class(name).name == name and parameters_of(name) for name in NAMES)
print("learned", len(ours))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with both wheels, built from copies: setuptools writes beside what it builds."""
    folder = tmp_path_factory.mktemp("installed")
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("agents", "plasticity_probes"):
        shutil.copytree(ROOT / name, folder / "source" / name, ignore=ignored)
    for name in ("pyproject.toml", "setup.py", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source" / name)
    target = folder / "target"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index"]
    command += ["--no-deps", "--no-build-isolation", "--target", str(target)]
    sources = [str(folder / "source" / "plasticity_probes"), str(folder / "source")]
    done = subprocess.run([*command, *sources], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return target


@pytest.mark.long
def test_the_pages_lines_run_beside_other_agents_and_envs(installed, tmp_path):
    block = next(b for b in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S) if "plasticity_suite" in b)
    assert len(block.splitlines()) <= 5
    for name in ("agents", "envs"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("MINE = True\n")
    program = PROGRAM.format(lines=block.replace("100_000", "32"))
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment = {**kept, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    (tmp_path / "theirs.py").write_text(program)
    command = [sys.executable, "-W", "ignore", "theirs.py", str(installed), str(ROOT / "agents")]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("learned")


def test_every_module_is_installed_and_nothing_else(installed):
    package = installed / "plasticity_suite" / "agents"
    modules = {path.relative_to(ROOT / "agents") for path in (ROOT / "agents").rglob("*.py")}
    assert {path.relative_to(package) for path in package.rglob("*.py")} == modules
    folders = {path.name for path in installed.iterdir()}
    assert {name for name in folders if "dist-info" not in name} == {"plasticity_suite", "plasticity_probes"}
    assert {path.name for path in (installed / "plasticity_suite").iterdir()} == {"agents"}


def test_nothing_is_left_that_means_the_checkout(installed):
    for path in (installed / "plasticity_suite").rglob("*.py"):
        assert not re.search(r"^\s*(from|import) agents\b", path.read_text(), re.M), path
        assert not re.search(r"[\"']agents\.", path.read_text()), path
