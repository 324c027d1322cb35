"""A process killed at any moment, again and again: what it saved is sound, and it ends as one that was never killed."""

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STEPS, EVERY = 1_200, 15


def started(directory):
    command = [sys.executable, "-m", "tests.faults.fills_a_replay", str(directory), str(STEPS), str(EVERY)]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=ROOT, **streams)


def at_the_end(directory):
    """(its hash, seconds that it took from its first step)"""
    with started(directory) as process:
        first, began = process.stdout.readline(), time.monotonic()
        last, said = process.stdout.read(), process.stderr.read()
        assert first.startswith("goes on from") and last.startswith("ended "), said
        return last.split()[1], time.monotonic() - began


def killed_once(directory, after):
    """The step it went on from, killed `after` seconds of it; None where it had ended by then."""
    with started(directory) as process:
        first = process.stdout.readline()
        assert first.startswith("goes on from "), process.stderr.read()
        time.sleep(after)
        process.kill()
        return None if process.stdout.read() else int(first.split()[-1])


@pytest.mark.parametrize("kills", [3, pytest.param(30, marks=[pytest.mark.faults, pytest.mark.timeout(900)])])
def test_killed_at_random_it_ends_as_if_never_killed(kills, tmp_path, count):
    directories = [tmp_path / str(number) for number in range(100)]
    directories[0].mkdir()
    expected, seconds = at_the_end(directories[0])
    most = len(list((directories[0] / "replay").iterdir()))
    rng, done = random.Random(kills), 0
    for directory in directories[1:]:  # each killed until it comes to its end
        directory.mkdir()
        reached = 0
        while done < kills and (came := killed_once(directory, rng.uniform(0, seconds / 3))) is not None:
            assert came >= reached
            reached, done = came, done + 1
            count("kill -9 at a random moment", "sound, and goes on")
        assert at_the_end(directory)[0] == expected
        count("ended after kills", "as if never killed")
        assert len(list((directory / "replay").iterdir())) <= most + 12  # the newest two may hold shorter ones
        if done == kills:
            break
