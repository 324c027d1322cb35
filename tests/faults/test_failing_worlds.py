"""A world that hangs or crashes: a sentence, a traceback, the newest checkpoint, and no process that is left over."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from envs.patience import EXIT_CODE, GRACE
from tests.failing_worlds import FAILS_AT

ROOT = Path(__file__).parents[2]
TIMEOUT = 1.5
SMALL = "--steps 2000 --checkpoint-every 10 --learning-starts 5 --buffer-size 50 --batch-size 4 --width 4 --threads 1"
MARK = "FAILING_WORLD_TEST"


def play(world, folder, *flags):
    """What `run` gives of train.py in that world."""
    command = ["train.py", "dqn", "--env", f"tests.failing_worlds:{world}-v0", *SMALL.split()]
    return run([*command, "--probes", "none", "--runs-dir", str(folder), "--name", "run", *flags], folder)


def run(command, folder):
    """(exit code, what was printed, seconds it took, processes that are left of it)."""
    mark = f"{os.getpid()}-{folder}"  # in the environment of whatever it starts
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        env={**os.environ, MARK: mark, "COLUMNS": "300"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        printed = process.communicate(timeout=90)[0]
    finally:
        process.kill()
        seconds, left = time.monotonic() - began, left_over(mark)
        for one in left:
            one.kill()
    return process.returncode, printed, seconds, left


def left_over(mark):
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def check_end(folder, printed):
    """The sentence that was said and the traceback, where the run is kept as a failed world's is."""
    (sentence,) = [line for line in printed.splitlines() if line.startswith("stopped: ")]
    assert "Traceback" not in printed
    run = folder / "run"
    ending = json.loads((run / "ending.json").read_text())
    assert ending["ending"] == "world failed" and 0 < ending["step"] < FAILS_AT + 1
    assert f"(traceback: {run / 'traceback.txt'})" in sentence
    assert "the last good checkpoint is" in printed
    assert (run / "metrics.jsonl").read_text().endswith("\n")
    return sentence, (run / "traceback.txt").read_text()


HANGS = {
    "Sleeps": ("at step 30", "time.sleep(1000)"),
    "Loops": ("at step 30", "in fail"),
    "Reads": ("at step 30", "os.read"),
    "Locks": ("at step 30", "lock.acquire()"),
    "HangsInReset": ("at a reset", "time.sleep(1000)"),
    "WorkerHangs": ("at step 30", "self.pipes[0].recv()"),
}


def rest(*worlds):
    """For `make faults`: of the same kind as those before."""
    return [pytest.param(world, marks=pytest.mark.faults) for world in worlds]


@pytest.mark.parametrize("world", ["Sleeps", "WorkerHangs", *rest("Loops", "Reads", "Locks", "HangsInReset")])
def test_a_world_that_hangs_is_interrupted_where_it_does(world, tmp_path, count):
    moment, line = HANGS[world]
    code, printed, _, left = play(world, tmp_path, "--world-timeout", str(TIMEOUT))
    sentence, told = check_end(tmp_path, printed)
    assert code == EXIT_CODE == 1 and not left
    words = rf"env = 'tests.failing_worlds:{world}-v0': environment 0 did not answer within {TIMEOUT} s "
    assert re.search(words + r"\(\w+\.py, line \d+\) ", sentence)
    assert line in told and "failing_worlds.py" in told
    assert moment in sentence or world == "HangsInReset"
    count("a world that hangs in Python, --world-timeout", "interrupted, a sentence, nothing left over")


@pytest.mark.parametrize("world", ["NativeLock", *rest("NativeLoop", "WorkersAndNativeLock")])
def test_native_code_that_hangs_is_left_behind(world, tmp_path, count):
    code, printed, seconds, left = play(world, tmp_path, "--world-timeout", str(TIMEOUT))
    sentence, told = check_end(tmp_path, printed)
    assert code == EXIT_CODE and not left and seconds > TIMEOUT + GRACE
    assert f"did not answer within {TIMEOUT} s" in sentence
    assert "It hangs here" in told and "failing_worlds.py" in told and "in fail" in told
    count("a world that hangs in C, --world-timeout", "left behind, a sentence, nothing left over")


@pytest.mark.faults
def test_where_one_seeds_world_is_left_behind_the_others_are_too(tmp_path):
    code, printed, _, left = play("NativeLock", tmp_path, "--world-timeout", str(TIMEOUT), "--num-seeds", "2")
    assert code == EXIT_CODE and not left and "Traceback" not in printed
    endings = [json.loads((tmp_path / f"run-s{seed}" / "ending.json").read_text()) for seed in (1, 2)]
    assert [ending["ending"] for ending in endings] == ["world failed", "interrupted"]
    assert "the process was left: env = " in endings[1]["why"]


@pytest.mark.faults
@pytest.mark.parametrize("world", ["Sleeps", "NativeLock"])
def test_playing_in_a_world_that_hangs_ends_too(world, tmp_path, count):
    assert play(world, tmp_path, "--steps", "20")[0] == 0
    flags = ["--episodes", "10", "--num-envs", "1", "--world-timeout", str(TIMEOUT)]
    code, printed, _, left = run(["evaluate.py", str(tmp_path / "run"), *flags], tmp_path)
    assert code == EXIT_CODE and not left and "Traceback" not in printed
    (sentence,) = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert f"did not answer within {TIMEOUT} s" in sentence
    told = tmp_path / "run" / "traceback_evaluate.txt"
    assert f"(traceback: {told})" in sentence and "in fail" in told.read_text()
    count("playing in a world that hangs, --world-timeout", "ended, a sentence, nothing left over")


@pytest.mark.faults
def test_a_world_that_catches_everything_is_ended_all_the_same(tmp_path):
    code, printed, _, left = play("Stubborn", tmp_path, "--world-timeout", str(TIMEOUT))
    assert code == EXIT_CODE and not left
    assert f"did not answer within {TIMEOUT} s" in check_end(tmp_path, printed)[0]


@pytest.mark.faults
def test_with_more_patience_it_goes_on_from_before_it_hung(tmp_path):
    play("Sleeps", tmp_path, "--world-timeout", str(TIMEOUT))
    code, printed, _, _ = play("Sleeps", tmp_path, "--world-timeout", "2")
    assert code == EXIT_CODE and "goes on from step 20" in printed and "did not answer within 2 s" in printed


@pytest.mark.faults
def test_time_in_which_the_run_is_stopped_and_slow_steps_do_not_count(tmp_path):
    command = [sys.executable, "train.py", "dqn", "--env", "tests.failing_worlds:Slow-v0", *SMALL.split()]
    command += ["--steps", "100", "--probes", "none", "--runs-dir", str(tmp_path), "--world-timeout", "1"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not list(tmp_path.glob("*/metrics.jsonl")) and process.poll() is None:
            time.sleep(0.05)
        time.sleep(0.5)
        process.send_signal(signal.SIGSTOP)
        time.sleep(3)
        process.send_signal(signal.SIGCONT)
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()


@pytest.mark.parametrize(("world", "words"), [("Raises", "the simulator has gone"), ("WorkerDies", "EOFError")])
def test_a_world_that_crashes_says_so_and_leaves_no_process(world, words, tmp_path, count):
    code, printed, _, left = play(world, tmp_path)
    sentence, told = check_end(tmp_path, printed)
    assert code == 1 and not left
    assert words in sentence and "environment 0 raised" in sentence and "at step 30" in sentence
    assert "Traceback" in told and "failing_worlds.py" in told
    count("a world that crashes", "a sentence, nothing left over")


def test_of_a_world_that_ends_the_process_the_newest_checkpoint_is_left(tmp_path, count):
    code, printed, _, left = play("Exits", tmp_path)
    assert code == 3 and not left and "stopped" not in printed
    assert not (tmp_path / "run" / "ending.json").exists()
    code, printed, _, _ = play("Exits", tmp_path)  # the same command goes on
    assert code == 3 and "goes on from step 20" in printed
    count("a world that ends the process", "goes on from the newest checkpoint")
