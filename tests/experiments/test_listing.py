"""evaluate.py RUNS --list: how each run stands."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.listing import Listed, listing, table
from experiments.lock import RunLock
from experiments.store import listed
from tests.experiments.older_format import as_one_file
from tests.experiments.test_going_on import begun, words
from tests.experiments.test_run import one_thread  # noqa: F401

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of each kind."""
    folder = tmp_path_factory.mktemp("runs")
    constant = "--learning-rate.over=constant"
    made = {
        "finished, no replay": lambda: begun(words("dqn", folder)),
        "finished": lambda: begun(words("ppo", folder, constant)),
        "interrupted": lambda: begun(words("dqn", folder), 300),
    }
    for name, make in made.items():
        make()
        (folder / "run").rename(folder / name)
    with pytest.raises(MemoryError):
        begun(words("dqn", folder, "--checkpoint-every", "100"), 250, MemoryError("too much"))
    (folder / "run").rename(folder / "crashed")
    shutil.copytree(folder / "crashed", folder / "killed")
    (folder / "killed" / "ending.json").unlink()
    shutil.copytree(folder / "interrupted", folder / "no whole checkpoint")
    for path in listed(folder / "no whole checkpoint" / "checkpoints"):
        (path / "agent.pt").write_bytes(b"")
    as_one_file(Path(shutil.copytree(folder / "finished", folder / "of the version before")))
    shutil.copytree(folder / "interrupted", folder / "unreadable")
    (folder / "unreadable" / "config.json").write_text("{")
    (folder / "something else").mkdir()
    return folder


def test_each_run_is_told_as_it_stands(runs: Path) -> None:
    lock = RunLock(runs / "killed")
    found = {run.name: run for run in listing(runs)}
    lock.release()
    told = {name: (run.state, run.why, run.resumable) for name, run in found.items()}
    assert told.pop("killed") == ("running", f"process {os.getpid()} on {lock_host()}, since {since(found)}", "it runs")
    assert told == {
        "finished, no replay": ("finished", "", "no: it is finished"),
        "finished": ("finished", "", "with more steps"),
        "interrupted": ("interrupted", "SIGTERM", "from step 301"),
        "crashed": ("crashed", "crashed: MemoryError: too much", "from step 200"),
        "no whole checkpoint": ("interrupted", "SIGTERM", told["no whole checkpoint"][2]),
        "of the version before": ("finished", "", "no: it is finished"),
        "unreadable": ("unreadable", told["unreadable"][1], "no: its settings cannot be read"),
    }
    assert told["no whole checkpoint"][2].endswith("agent.pt is not as it was written")
    assert "is not JSON" in told["unreadable"][1]
    steps = {name: (run.step, run.steps) for name, run in found.items()}
    assert steps["finished"] == (900, 900) and steps["interrupted"] == (301, 900) and steps["crashed"] == (250, 900)
    killed = {run.name: run for run in listing(runs)}["killed"]
    assert (killed.state, killed.resumable) == ("interrupted", "from step 200")
    assert "it was killed, or its machine stopped" in killed.why


def lock_host() -> str:
    import socket

    return socket.gethostname()


def since(found: dict[str, Listed]) -> str:
    return found["killed"].why.rpartition("since ")[2]


def test_the_last_return_is_the_log_s(runs: Path) -> None:
    lines = [json.loads(line) for line in (runs / "finished" / "metrics.jsonl").read_text().splitlines()]
    last = [line["charts/recent_return"] for line in lines if "charts/recent_return" in line][-1]
    (run,) = listing(runs / "finished")
    assert run.last_return == last


def test_the_command_is_quick_and_brings_no_torch(runs: Path) -> None:
    script = "import sys, evaluate\nevaluate.main()\nassert 'torch' not in sys.modules"
    command = [sys.executable, "-c", script, str(runs), "--list"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == table(listing(runs))
    script = "import sys, evaluate\nevaluate.main()"
    done = subprocess.run([sys.executable, "-c", script, str(runs), "--list", "--json"], cwd=ROOT, capture_output=True)
    assert [run["name"] for run in json.loads(done.stdout)] == [run.name for run in listing(runs)]


@pytest.mark.parametrize("place", ["nothing", "something else", "finished/config.json"])
def test_where_there_are_no_runs_it_says_so(place: str, runs: Path) -> None:
    with pytest.raises(ValueError, match="must be a directory of runs beside --list"):
        listing(runs / place)
