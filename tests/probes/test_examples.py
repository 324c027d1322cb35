"""The scripts of docs/examples run, and the pages show them as they are."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
SHORT = {
    "sb3_run.py": ["--steps", "5000", "--every", "2000", "--samples", "64"],
    "own_script.py": ["--steps", "2400", "--period", "1000", "--every", "700"],
}
ROWS = {
    "sb3_run.py": ["2048", "4096", "6144"],
    "own_script.py": ["1000", "1400", "2100"],
}  # due at 700, and the first update is at 1000
PAGES = {"sb3_run.py": "probes_with_sb3.md", "own_script.py": "probes_in_your_script.md"}


@pytest.mark.parametrize("name", SHORT)
def test_the_script_runs_and_prints_probes(name, tmp_path):
    command = [sys.executable, str(DOCS / "examples" / name), *SHORT[name]]
    environment = {**os.environ, "PYTHONPATH": str(DOCS.parent), "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    header, *rows = done.stdout.splitlines()
    assert header.split()[:2] == ["step", "return"]
    assert [row.split()[0] for row in rows] == ROWS[name]
    for row in rows:
        assert all(float(number) == float(number) for number in row.split()[1:])


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
