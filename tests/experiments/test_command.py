"""What the commands owe to a shell: pipes whose readers leave, and Ctrl-C."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def begun(*words: str, **where: object) -> subprocess.Popen:
    """A command that runs in the repository's root and hears Ctrl-C, which a shell's background jobs are deaf to."""

    def hear() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    words = [sys.executable, *words]
    return subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE, text=True, preexec_fn=hear, **where)


def a_pipe_nobody_reads() -> int:
    reads, writes = os.pipe()
    os.close(reads)
    return writes


@pytest.mark.parametrize(
    "words", [("train.py",), ("train.py", "--help"), ("train.py", "dqn", "--help"), ("evaluate.py", "--help")]
)
def test_a_help_whose_reader_has_left_says_nothing(words):
    pipe = a_pipe_nobody_reads()
    command = begun(*words, stdout=pipe)
    os.close(pipe)
    assert command.communicate(timeout=60)[1] == ""
    assert command.returncode in (0, 2)


def test_a_run_whose_reader_has_left_saves_and_can_be_gone_on_with(tmp_path):
    """It may be that its terminal was closed: what would be said would be lost, and nothing else is."""
    pipe = a_pipe_nobody_reads()
    flags = ["--steps", "400", "--width", "8", "--probes", "none", "--runs-dir", str(tmp_path), "--name", "run"]
    command = begun("train.py", "ppo", "--env", "CartPole-v1", *flags, stdout=pipe)
    os.close(pipe)
    assert command.communicate(timeout=120)[1] == ""
    assert command.returncode == 75
    assert (tmp_path / "run" / "checkpoints" / "step_000000000000").exists()


def test_ctrl_c_before_anything_has_begun_is_no_traceback(tmp_path):
    """The world's constructor waits, so that the signal comes before the run's own loop could answer it."""
    (tmp_path / "slow_to_begin.py").write_text(
        "import pathlib, time, gymnasium\n"
        "def make(**options):\n"
        f"    pathlib.Path({str(tmp_path / 'here')!r}).touch()\n"
        "    time.sleep(60)\n"
        "gymnasium.register('Slow-v0', entry_point=make)\n"
    )
    flags = ["--runs-dir", str(tmp_path / "runs")]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = begun(
        "train.py", "dqn", "--env", "slow_to_begin:Slow-v0", *flags, stdout=subprocess.PIPE, env=environment
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "here").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    command.send_signal(signal.SIGINT)
    _, said = command.communicate(timeout=60)
    assert (command.returncode, said) == (130, "interrupted\n")
