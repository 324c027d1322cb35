"""Two writers of one run directory, and what a killed one leaves behind."""

import fcntl
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import psutil
import pytest

from experiments import lock
from experiments.lock import FILE, Holder, Locked, RunLock, holder

ROOT = Path(__file__).parents[2]
HOLDS = """
import sys, time
from pathlib import Path
from experiments.lock import RunLock
held = RunLock(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(600)
"""
COMPETES = """
import sys, time
from pathlib import Path
from experiments.lock import Locked, RunLock
time.sleep(max(0, float(sys.argv[2]) - time.time()))
try:
    held = RunLock(Path(sys.argv[1]))
except Locked as error:
    sys.exit(str(error))
time.sleep(600)
"""


@pytest.fixture
def other(tmp_path):
    """A process that holds the lock of `tmp_path`."""
    command = [sys.executable, "-c", HOLDS, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_writer_is_told_who_the_first_is(other, tmp_path, count):
    with pytest.raises(Locked) as refusal:
        RunLock(tmp_path)
    assert f"is being written to by process {other.pid} on " in str(refusal.value)
    assert holder(tmp_path).pid == other.pid
    with pytest.raises(Locked, match=str(other.pid)):  # refused writers harm nothing
        RunLock(tmp_path)
    count("a second writer", "refused, the first named")


def test_a_killed_writer_blocks_nobody(other, tmp_path, count):
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert holder(tmp_path) is None
    with RunLock(tmp_path) as held:
        assert held.remark == "" and holder(tmp_path).pid == os.getpid()
    count("a killed writer", "blocks nobody")


def test_of_ten_that_begin_at_once_one_holds_it(tmp_path, count):
    at = str(time.time() + 5)
    command = [sys.executable, "-c", COMPETES, str(tmp_path), at]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    started = [subprocess.Popen(command, cwd=ROOT, **streams) for _ in range(10)]
    try:
        deadline = time.monotonic() + 60
        while sum(process.poll() is not None for process in started) < 9 and time.monotonic() < deadline:
            time.sleep(0.05)
        holding = [process for process in started if process.poll() is None]
        assert len(holding) == 1
        others = [process.communicate()[1] for process in started if process not in holding]
        # one that comes between the lock and its name in the file cannot tell whose it is
        assert all(f"process {holding[0].pid} on" in told or "another process" in told for told in others)
    finally:
        for process in started:
            process.kill()
            process.communicate()
    count("ten writers at once", "one holds it")


def test_released_it_can_be_taken_again(tmp_path):
    for _ in range(3):
        with RunLock(tmp_path):
            with pytest.raises(Locked):
                RunLock(tmp_path)
            assert json.loads((tmp_path / FILE).read_text())["pid"] == os.getpid()
        assert (tmp_path / FILE).read_text() == "" and holder(tmp_path) is None


def _sleep(ready):
    ready.set()
    time.sleep(600)


def test_a_child_that_outlives_its_parent_holds_nothing(tmp_path):
    """As the workers of a world in processes do."""
    held, context = RunLock(tmp_path), multiprocessing.get_context("fork")
    ready = context.Event()
    child = context.Process(target=_sleep, args=(ready,), daemon=True)
    child.start()
    try:
        assert ready.wait(20)
        os.close(held._file)  # as the kernel does at the parent's death
        held._file = None
        RunLock(tmp_path).release()
    finally:
        child.kill()
        child.join()


OWN = Holder.own()
ELSEWHERE = replace(OWN, host="node17", boot="other", pid=12)


def no_locks(file, operation):
    raise OSError(37, "No locks available")


def left(directory, content):
    (directory / FILE).write_text(content if isinstance(content, str) else json.dumps(asdict(content)))


def test_what_another_host_left_is_taken_over_aloud_where_the_file_system_holds_locks(tmp_path):
    left(tmp_path, ELSEWHERE)
    with RunLock(tmp_path) as held:
        assert "process 12 on node17" in held.remark and "make sure" in held.remark


def test_without_locks_a_live_process_blocks_and_others_do_not(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", no_locks)
    left(tmp_path, OWN)
    with pytest.raises(Locked, match=f"process {os.getpid()} on "):
        RunLock(tmp_path)
    assert holder(tmp_path) == OWN
    gone = (
        replace(OWN, started=OWN.started - 100),  # its id was given to this process
        replace(OWN, boot="before the machine was started again"),
        replace(OWN, pid=max(psutil.pids()) + 10_000),
    )
    for dead in gone:
        left(tmp_path, dead)
        assert holder(tmp_path) is None
        RunLock(tmp_path).release()


def test_without_locks_another_hosts_process_blocks_and_it_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", no_locks)
    left(tmp_path, ELSEWHERE)
    with pytest.raises(
        Locked, match="process 12 on node17.* holds no locks: if that process is gone, remove .*lock.json"
    ):
        RunLock(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", "3", '{"pid": 1}', '{"host": 1, "x": 2}'])
def test_a_torn_file_blocks_nobody(content, tmp_path):
    left(tmp_path, content)
    with RunLock(tmp_path):
        assert holder(tmp_path).pid == os.getpid()


def test_where_no_file_can_be_made_it_is_an_error_of_the_system(tmp_path):
    with pytest.raises(FileNotFoundError):
        RunLock(tmp_path / "nowhere")
    assert holder(tmp_path / "nowhere") is None


def test_nothing_is_held_after_an_error(tmp_path, monkeypatch):
    def full(file, length):
        raise OSError(28, "No space left on device")

    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(os, "ftruncate", full)
    with pytest.raises(OSError, match="No space"):
        RunLock(tmp_path)
    monkeypatch.undo()
    assert len(os.listdir("/proc/self/fd")) == before and not lock._HELD
    RunLock(tmp_path).release()
