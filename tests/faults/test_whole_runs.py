"""Runs of train.py that are killed anywhere end, when they are started again, as the run that was never killed."""

import os
import pty
import random
import select
import signal
import sys
import time

import pytest

from experiments.signals import EXIT_SAVED
from tests.faults.whole_runs import COMPILED, ROOT, RUNS, SEEDS, WORLDS, WholeRun

many = pytest.mark.faults
LATER = [pytest.param(name, marks=pytest.mark.long) for name in (*RUNS, *SEEDS, "dqn, compiled") if name != "dqn"]
LATER += [pytest.param(name, marks=many) for name in COMPILED if name != "dqn, compiled"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """By name, (hashes of the run that was never killed, seconds that it takes); made when first asked for."""
    made = {}

    def of(name):
        if name not in made:
            run = WholeRun(name, tmp_path_factory.mktemp("whole") / name)
            seconds = run.seconds()
            made[name] = run.parts(), seconds
            assert made[name][0] == WholeRun.parts(run)  # reading changes nothing
        return made[name]

    return of


def killed_at_random(name, runs, kills, longest, rng):
    """A run killed `kills` times, each at most `longest` seconds after it was started, and then left alone."""
    run, done = WholeRun(name, runs), 0
    while done < kills and run.killed_after(rng.uniform(0, longest)) == -signal.SIGKILL:
        done += 1
    code = run.finish()
    assert code == 0, run.said.read_text()
    return run, done


@many
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", [*RUNS, *SEEDS])
def test_killed_at_a_random_moment_it_ends_as_if_it_never_was(name, whole, tmp_path, count):
    expected, seconds = whole(name)
    rng = random.Random(name)
    for number in range(20):
        run, done = killed_at_random(name, tmp_path / str(number), 1, seconds, rng)
        assert run.parts() == expected
        count(f"{name}: kill -9 {'at a random moment' if done else 'came after its end'}", "ends as if never killed")


@pytest.mark.parametrize(
    "kills", [pytest.param(3, marks=pytest.mark.long), pytest.param(10, marks=[many, pytest.mark.timeout(900)])]
)
@pytest.mark.parametrize("name", ["dqn", *LATER])
def test_killed_many_times_in_one_run_it_ends_as_if_it_never_was(name, kills, whole, tmp_path, count):
    expected, seconds = whole(name)
    rng, longest, done = random.Random(f"{name} {kills}"), seconds / 2, 0
    while done < kills:  # a machine that has become faster ends a run before it was killed so often: then sooner
        run, done = killed_at_random(name, tmp_path / f"{longest:.3f}", kills, longest, rng)
        assert run.parts() == expected
        assert ("execution: compiled in" in run.said.read_text()) == (name in COMPILED)
        longest /= 2
    count(f"{name}: kill -9, {done} times in one run", "ends as if never killed")


@many
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", WORLDS)
def test_each_world_goes_on_where_it_was(name, whole, tmp_path, count):
    expected, seconds = whole(name)
    run, done = WholeRun(name, tmp_path / "runs"), 0
    for share in (0.5, 0.7):
        done += run.killed_after(share * seconds) == -signal.SIGKILL
    assert run.finish() == 0, run.said.read_text()
    assert run.parts() == expected
    assert "not exactly" not in run.said.read_text()
    count(f"{name}: kill -9, {done} times in one run", "ends as if never killed")


STAGES = {
    "in the middle of its settings": ("write", 1),
    "in the middle of its first checkpoint": ("write", 8),
    "in the middle of a later file": ("write", 600),
    "before a file is synced": ("sync", 19),
    "before a checkpoint has its name": ("rename", 12),
    "when it has": ("renamed", 12),
    "in the middle of removing an old one": ("prune", 2),
}


@pytest.mark.parametrize("place", STAGES)
@pytest.mark.parametrize("name", ["dqn", *(pytest.param(name, marks=many) for name in ("c51", "ppo", *SEEDS))])
@pytest.mark.long
def test_killed_at_each_stage_of_a_save_it_ends_as_if_it_never_was(name, place, whole, tmp_path, count):
    expected, _ = whole(name)
    run = WholeRun(name, tmp_path / "runs")
    assert run.finish(STAGES[place]) == -signal.SIGKILL, run.said.read_text()
    assert run.finish() == 0, run.said.read_text()
    assert run.parts() == expected
    count(f"{name}: killed {place}", "ends as if never killed")


@pytest.mark.long
def test_a_terminal_that_is_closed_is_a_run_that_is_saved(whole, tmp_path, count):
    expected, _ = whole("ppo")
    run = WholeRun("ppo", tmp_path / "runs")
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(ROOT)
        os.execv(sys.executable, [sys.executable, "train.py", *run.words])
    while not list(run.directory.glob("checkpoints/step_000000000300")) and select.select([terminal], [], [], 60)[0]:
        os.read(terminal, 65_536)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == EXIT_SAVED
    assert run.finish() == 0, run.said.read_text()
    assert run.parts() == expected
    count("a terminal closed", "saved, and ends as if it never was")


@pytest.mark.parametrize("times", [1, pytest.param(20, marks=[many, pytest.mark.timeout(900)])])
@pytest.mark.parametrize("name", ["ppo", pytest.param("ppo, 3 seeds", marks=many)])
def test_asked_to_stop_at_a_random_moment_it_saves_and_goes_on(name, times, whole, tmp_path, count):
    expected, seconds = whole(name)
    rng, kinds = random.Random(times), [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1]
    for number in range(times):
        run, kind = WholeRun(name, tmp_path / str(number)), kinds[number % 4]
        process = run.start()
        deadline = time.monotonic() + 60
        while not run.directory.exists() and process.is_alive() and time.monotonic() < deadline:
            time.sleep(0.005)  # before, nobody hears signals
        process.join(rng.uniform(0.1, seconds / 2))
        asked = time.monotonic()
        if process.is_alive():
            os.kill(process.pid, kind)
        process.join()
        assert time.monotonic() - asked < 10
        assert process.exitcode in (EXIT_SAVED, 0), run.said.read_text()
        count(f"{kind.name} at a random moment", {0: "at its end already"}.get(process.exitcode, "saved, within 10 s"))
        assert run.finish() == 0, run.said.read_text()
        assert run.parts() == expected
