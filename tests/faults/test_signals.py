"""Asked to stop: the tick is finished, what is to be saved is saved, and the exit code says so."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from experiments.signals import EXIT_SAVED, HEARD, SAME, StopRequests

ROOT = Path(__file__).parents[2]
LOOP = """
import sys, time
from pathlib import Path
from experiments.signals import EXIT_SAVED, StopRequests
folder, ticks = Path(sys.argv[1]), 0
with StopRequests() as stop:
    (folder / "ready").touch()
    while not stop.asked and ticks < 3000:
        time.sleep(0.01)
        (folder / "half").touch()
        time.sleep(0.01)
        (folder / "half").unlink()
        ticks += 1
    time.sleep(float(sys.argv[2]))
    (folder / "saved").write_text(stop.asked)
print("left", flush=True)
sys.exit(EXIT_SAVED)
"""
STUCK = """
import hashlib, sys
from pathlib import Path
from experiments.signals import StopRequests
with StopRequests():
    (Path(sys.argv[1]) / "ready").touch()
    hashlib.pbkdf2_hmac("sha256", b"", b"", 200_000_000)  # a minute in which no Python runs in this thread
"""


@pytest.fixture
def start(tmp_path):
    """Starts a program, deaf to the signals `ignored`, and waits until it hears the others."""
    started = []

    def begin(program, *arguments, ignored=()):
        def hear():
            for number in HEARD:
                signal.signal(number, signal.SIG_IGN if number in ignored else signal.SIG_DFL)

        command = [sys.executable, "-c", program, str(tmp_path), *map(str, arguments)]
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        process = subprocess.Popen(command, cwd=ROOT, preexec_fn=hear, **streams)
        started.append(process)
        deadline = time.monotonic() + 30
        while not (tmp_path / "ready").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", HEARD, ids=lambda number: number.name)
def test_a_signal_lets_the_tick_end_and_the_state_be_saved(number, start, tmp_path, count):
    process = start(LOOP, 0)
    process.send_signal(number)
    out, said = process.communicate(timeout=20)
    assert (process.returncode, out) == (EXIT_SAVED, "left\n") == (75, "left\n")
    assert (tmp_path / "saved").read_text() == HEARD[number] and not (tmp_path / "half").exists()
    assert said == f"{HEARD[number]}: saving, then leaving; once more leaves at once\n"
    count(number.name, "the tick is finished, the state saved")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_second_signal_leaves_at_once(number, start, tmp_path, count):
    process = start(LOOP, 60)
    process.send_signal(signal.SIGTERM)
    time.sleep(SAME + 0.3)
    sent = time.monotonic()
    process.send_signal(number)
    out, said = process.communicate(timeout=20)
    assert time.monotonic() - sent < 2 and (process.returncode, out) == (128 + number, "")
    assert said.endswith("leaving at once\n") and not (tmp_path / "saved").exists()
    count(f"{number.name} after another", "leaves at once")


def test_a_closed_terminals_two_signals_are_one(start, tmp_path):
    process = start(LOOP, 0.3)
    for _ in range(3):
        process.send_signal(signal.SIGHUP)
        time.sleep(0.05)
    assert process.wait(timeout=20) == EXIT_SAVED and (tmp_path / "saved").exists()


def test_a_second_signal_ends_a_thread_that_hangs_in_c(start, count):
    process = start(STUCK)
    process.send_signal(signal.SIGINT)
    time.sleep(SAME + 0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=5) == 130
    count("a second Ctrl-C while the main thread hangs in C", "leaves at once")


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT], ids=lambda number: number.name)
def test_what_it_was_started_deaf_to_it_stays_deaf_to(number, start, tmp_path):
    process = start(LOOP, 0, ignored=[number])
    process.send_signal(number)
    time.sleep(0.3)
    assert process.poll() is None and not (tmp_path / "saved").exists()
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == EXIT_SAVED


def test_afterwards_everything_is_as_before():
    heard = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores Ctrl-C
    try:
        _requests_leave_nothing_behind()
    finally:
        signal.signal(signal.SIGINT, heard)


def _requests_leave_nothing_behind():
    before = [signal.getsignal(number) for number in HEARD], threading.active_count()
    files = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with StopRequests() as stop:
            os.kill(os.getpid(), signal.SIGUSR1)
            deadline = time.monotonic() + 10
            while not stop.asked and time.monotonic() < deadline:
                time.sleep(0.01)
            assert stop.asked == "SIGUSR1"
    assert ([signal.getsignal(number) for number in HEARD], threading.active_count()) == before
    assert len(os.listdir("/proc/self/fd")) == files
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_a_request_without_a_signal():
    with StopRequests() as stop:
        assert stop.asked == ""
        stop.ask("the output was closed")
        stop.ask("somebody else")
    assert stop.asked == "the output was closed"


def test_outside_the_main_thread_nothing_is_heard():
    found = []

    def run():
        with StopRequests() as stop:
            found.append(stop.asked)

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [""] and signal.getsignal(signal.SIGTERM) == before


def test_a_forked_process_dies_of_a_signal_and_is_no_request():
    """As the workers of a world in processes, which are ended by SIGTERM."""
    with StopRequests() as stop:
        child = os.fork()
        if child == 0:
            time.sleep(30)
            os._exit(0)
        time.sleep(0.2)
        os.kill(child, signal.SIGTERM)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
        time.sleep(0.2)
        assert stop.asked == ""
