"""Whoever learns in a benchmark, run on by whole units: this suite, Stable-Baselines3, and processes of other code."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from benchmarks.turns import Spent, timed
from experiments.config import TrainConfig
from experiments.run import Run, Update
from experiments.sb3_baseline import make_sb3
from experiments.setup import build

ENDLESS = 2**40


class Ours:
    """Our learner, run on by whole units."""

    def __init__(self, config: TrainConfig) -> None:
        self.world, self.agent = build(config)
        self.events, self.step = iter(Run(self.agent, self.world, ENDLESS)), 0

    def run(self, steps: int) -> int:
        """Run on for at least `steps` steps, up to the end of the update that follows; the steps made."""
        begun = self.step
        for event in self.events:
            if isinstance(event, Update) and event.step - begun >= steps:
                self.step = event.step
                return self.step - begun
        raise RuntimeError("the run ended")

    def window(self, warmup: int, steps: int) -> Spent:
        """The time of a step over so many, after a warm-up."""
        self.run(warmup)
        return timed(lambda: self.run(steps))

    def close(self) -> None:
        """Close the world."""
        self.world.close()


class Theirs(Ours):
    """Stable-Baselines3's learner."""

    def __init__(self, config: TrainConfig) -> None:
        self.model = make_sb3(config)

    def run(self, steps: int) -> int:
        """Run on for at least `steps` steps, updates included; the steps made."""
        begun = self.model.num_timesteps
        self.model.learn(steps, reset_num_timesteps=False)
        return self.model.num_timesteps - begun

    def close(self) -> None:
        """Close the world."""
        self.model.env.close()


class Elsewhere:
    """A process that learns and prints a line every so many steps; it stands still while others have their turns.

    Args:
        command: what to run; its threads are one, whatever it would choose.
        folder: where.
        mark: a pattern of the lines that count.
        steps: between two of them.
        environment: what it finds beside this process's.
    """

    def __init__(
        self, command: Sequence[str], folder: Path, mark: str, steps: int, environment: Mapping[str, str] | None = None
    ) -> None:
        self.steps, self.mark, self.said = steps, re.compile(mark), []
        single = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "PYTHONUNBUFFERED": "1"}
        found = os.environ | single | dict(environment or {})
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        self.process = subprocess.Popen(command, cwd=folder, env=found, **pipes)
        self.watched = psutil.Process(self.process.pid)

    def _line(self) -> None:
        """Wait for the next line that counts. RuntimeError, with what was said last, where the process has ended."""
        for line in self.process.stdout:
            self.said = [*self.said[-15:], line.rstrip()]
            if self.mark.search(line):
                return
        raise RuntimeError("\n".join(["the process ended:", *self.said]))

    def _lines(self, steps: int) -> int:
        count = -(-steps // self.steps)
        for _ in range(count):
            self._line()
        return count * self.steps

    def _cpu(self) -> float:
        spent = self.watched.cpu_times()
        return spent.user + spent.system

    def run(self, steps: int) -> int:
        """Go on for at least so many steps, and stand still; the steps made."""
        self.process.send_signal(signal.SIGCONT)
        try:
            return self._lines(steps)
        finally:
            self._stand_still()

    def window(self, warmup: int, steps: int) -> Spent:
        """The time of a step over so many, after a warm-up, which begins in the middle of one."""
        self.process.send_signal(signal.SIGCONT)
        try:
            self._lines(max(warmup, self.steps))
            wall, cpu = time.perf_counter(), self._cpu()
            made = self._lines(steps)
            return Spent((time.perf_counter() - wall) / made, (self._cpu() - cpu) / made)
        finally:
            self._stand_still()

    def _stand_still(self) -> None:
        """Stop it, and wait until it has."""
        self.process.send_signal(signal.SIGSTOP)
        with suppress(ChildProcessError):  # it has ended, and somebody was told
            os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


AN_EARLIER_ONE = """
import sys
from experiments.cli import parse_train
from experiments.run import Run, Update
from experiments.setup import build
import torch
torch.set_num_threads(1)
unit, config = int(sys.argv[1]), parse_train(sys.argv[2:])
world, agent = build(config)
made = 0
for event in Run(agent, world, 2**40):
    if isinstance(event, Update) and event.step - made >= unit:
        made = event.step
        print("steps", made)
"""


def earlier(tree: Path, flags: Sequence[str], unit: int) -> Elsewhere:
    """Another version of this suite, from a checkout of it, with the settings that these flags make there."""
    command = [sys.executable, "-c", AN_EARLIER_ONE, str(unit), *flags]
    return Elsewhere(command, tree, "^steps", unit, {"PYTHONPATH": str(tree)})
