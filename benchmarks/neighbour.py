"""How much a busy neighbour slows a run: steps per second alone and beside processes that keep cores busy.

A run trains in a process of its own, with the threads that it chooses itself; every turn it is timed alone and beside
the neighbours, which otherwise stand still. ``slower`` is the median over turns of the ratio within a turn, by wall
clock. The first line of a pair has OMP_WAIT_POLICY=passive, as every command sets it, the second what OpenMP does by
itself: threads that spin while they wait, and so hold the core that the neighbour needs.

On a machine that others use, too, "alone" is not; the ratio then says less than it should.

    python -m benchmarks.neighbour [--turns N] [--seconds S] [--neighbours N] [--only ROW]
"""

import argparse
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import torch

from benchmarks.turns import FEWEST, machine
from envs.cores import usable_cores

ROOT = Path(__file__).parents[1]
MOST = 1.7
"""How many times slower a run may become."""
BUSY = "while True:\n    sum(i * i for i in range(10_000))"
VALUE = "--buffer-size 20000 --learning-starts 200"
ROWS = {
    "dqn-breakout": f"dqn --env ALE/Breakout-v5 --padding valid {VALUE}",
    "ppo-breakout": "ppo --env ALE/Breakout-v5 --num-envs 8 --rollout-steps 16",
    "ppo-ant": "ppo --env Ant-v5 --num-envs 1 --rollout-steps 256 --num-minibatches 4",
    "dqn-image": f"dqn --env ImageMDP-v0 {VALUE}",
}
RUNNER = """
import os, sys
import experiments
if sys.argv[1] == "unset":
    del os.environ["OMP_WAIT_POLICY"]  # before torch, whose OpenMP reads it once
from experiments.cli import parse_train
from experiments.machine import place
from experiments.run import Run, Update
from experiments.setup import build
from experiments.sizes import products_of_a_batch
config = parse_train(sys.argv[2:])
world, agent = build(config)
print("on", place("cpu", config.run.threads, products_of_a_batch(config, agent.spaces)).words, flush=True)
for event in Run(agent, world, 2**40):
    if isinstance(event, Update):
        print("step", event.step, flush=True)
"""


class Runner:
    """A run in a process, whose steps are counted from what it prints."""

    def __init__(self, flags: str, policy: str, threads: int) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "MKL_"))}
        settings = f"{flags} --device cpu --probes none --threads {threads}"
        command = [sys.executable, "-c", RUNNER, policy, *settings.split()]
        environment["PYTHONPATH"] = str(ROOT)
        self.process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        self.placement = self.process.stdout.readline().removeprefix("on ").strip()
        self._step()

    def _step(self) -> int:
        said = re.match(r"step (\d+)", self.process.stdout.readline())
        if said is None:
            raise RuntimeError(f"the run ended with code {self.process.wait()}")
        return int(said[1])

    def speed(self, seconds: float) -> float:
        """Steps per second over so many seconds, and then it stands still."""
        self.process.send_signal(signal.SIGCONT)
        first = self._step()  # the one in the middle of which it stood, and what lay in the pipe
        begun = time.perf_counter()
        while (passed := time.perf_counter() - begun) < seconds:
            last = self._step()
            passed = time.perf_counter() - begun
        self.process.send_signal(signal.SIGSTOP)
        return (last - first) / passed

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


class Neighbours:
    """Processes that compute in circles, while they are let."""

    def __init__(self, count: int) -> None:
        self.processes = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(count)]
        self.tell(signal.SIGSTOP)

    def tell(self, what: signal.Signals) -> None:
        """Let them go on, or stop them."""
        for process in self.processes:
            process.send_signal(what)

    def close(self) -> None:
        """End them."""
        for process in self.processes:
            process.kill()
            process.wait()


def measure(
    name: str, policy: str, turns: int, seconds: float, neighbours: Neighbours, threads: int = 0
) -> tuple[str, float]:
    """(the row's line of the table, how many times slower)."""
    runner, pairs = Runner(ROWS[name], policy, threads), []
    try:
        runner.speed(seconds / 2)
        for turn in range(turns):
            speeds = {}
            for busy in (False, True) if turn % 2 == 0 else (True, False):
                neighbours.tell(signal.SIGCONT if busy else signal.SIGSTOP)
                speeds[busy] = runner.speed(seconds)
            neighbours.tell(signal.SIGSTOP)
            pairs.append((speeds[False], speeds[True]))
    finally:
        neighbours.tell(signal.SIGSTOP)
        runner.close()
    alone, beside = (median(column) for column in zip(*pairs, strict=True))
    slower = median(one / other for one, other in pairs)
    number = re.search(r"(\d+) torch thread", runner.placement)[1]
    return f"{name:14} {number:>7} {policy:>8} {alone:9,.0f} {beside:9,.0f} {slower:8.2f}x", slower


def main() -> None:
    """Measure the rows asked for, print the table, and whether all are within `MOST`."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--turns", type=int, default=FEWEST, help=f"pairs of a row (default {FEWEST})")
    parser.add_argument("--seconds", type=float, default=3.0, help="of a turn's halves (default 3)")
    parser.add_argument("--neighbours", type=int, default=1, help="busy processes (default 1)")
    parser.add_argument("--threads", type=int, default=0, help="torch's threads (default: as a run chooses them)")
    parser.add_argument("--only", choices=list(ROWS), nargs="+", default=list(ROWS), help="some rows alone")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(machine("envpool", "mujoco"))
    print(f"{usable_cores()} usable cores, {arguments.neighbours} busy beside\n")
    print(f"{'':14} {'threads':>7} {'waiting':>8} {'alone':>9} {'beside':>9} {'slower':>9}")
    neighbours, worst = Neighbours(arguments.neighbours), 0.0
    try:
        for name in arguments.only:
            for policy in ("passive", "unset"):
                line, slower = measure(name, policy, arguments.turns, arguments.seconds, neighbours, arguments.threads)
                print(line, flush=True)
                worst = max(worst, slower) if policy == "passive" else worst
    finally:
        neighbours.close()
    within = "within" if worst <= MOST else "beyond"
    print(f"\nslowest with passive waiting: {worst:.2f}x, {within} {MOST:g}x")


if __name__ == "__main__":
    main()
