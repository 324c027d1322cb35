"""What sampling takes of an update, and how much memory a replay of a million steps takes.

The agents learn as they do in `throughput`; each sample and each whole update (sample, gradient step, metrics) is timed
where it happens, between steps of the world. Breakout's replay holds as many frames as `--frames` says: 20,000 that
were played, over and over, so that what is drawn lies all over so much memory. Shares are medians over turns.

    python -m benchmarks.sampling [--turns 7] [--frames 1000000] [--only ROW ...]
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from statistics import median
from typing import Any

import numpy as np
import psutil
import torch

from agents.replay import Replay
from agents.value_agent import ValueAgent
from benchmarks.learners import Ours
from benchmarks.throughput import rows
from benchmarks.turns import FEWEST, machine

NAMES = ("dqn-breakout", "c51-breakout", "dqn-image")
PLAYED = 20_000


def repeated(agent: ValueAgent, times: int) -> Replay:
    """A replay of one environment that holds what the agent's holds so many times, one after the other."""
    full, (stop,) = agent.replay, agent.replay.written
    start, capacity = stop - full.slots, full.slots * times
    found = Replay(
        agent.spaces, 1, capacity, full.n_step, full.gamma, full.generator, full.device, full.observations.device
    )
    part = full.part(np.array([start]), np.array([stop]))
    for place in range(times):
        at = place * full.slots
        found.put_back(np.array([at]), np.array([at + full.slots]), part)
    order = np.arange(start, stop) % full.slots
    state = {name: torch.from_numpy(np.tile(getattr(full, name)[order], times)) for name in ("tasks", "ended")}
    counts = {"written": np.int64(capacity), "filled": np.int64(capacity), "age": full.age[0]}
    found.load_state_dict(state | {name: torch.from_numpy(np.array([each])) for name, each in counts.items()})
    return found


class Timed:
    """A function; `spent` are the seconds in it."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.spent, self.calls = function, 0.0, 0

    def __call__(self, *given: Any) -> Any:
        began = time.perf_counter()
        found = self.function(*given)
        self.spent += time.perf_counter() - began
        self.calls += 1
        return found


class Reading:
    """Copies as many frames as a sample has different ones, from anywhere in the replay."""

    def __init__(self, replay: Replay, batch_size: int) -> None:
        self.frames, self.batch_size = replay.observations, batch_size
        self.drawing = np.random.default_rng(0)
        self.window = np.arange(replay.stack + replay.n_step)
        self.place = torch.empty(batch_size * len(self.window), *self.frames.shape[1:], dtype=self.frames.dtype)
        self.copy = Timed(lambda rows: torch.index_select(self.frames, 0, rows, out=self.place))

    def __call__(self) -> None:
        starts = self.drawing.integers(len(self.frames) - len(self.window), size=(self.batch_size, 1))
        self.copy(torch.from_numpy((starts + self.window).reshape(-1)))


def main() -> None:
    """Print a line a row and precision."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--frames", type=int, default=1_000_000, help="in Breakout's replay, by 20,000")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, help="some rows alone")
    arguments = parser.parse_args()
    if arguments.turns < FEWEST:
        parser.error(f"--turns {arguments.turns}: must be at least {FEWEST}")
    if arguments.frames < PLAYED:
        parser.error(f"--frames {arguments.frames}: must be at least {PLAYED:,}")
    torch.set_num_threads(1)
    print(machine("ale-py"), flush=True)
    for name in arguments.only:
        for precision in ("fp32", "bf16"):
            _row(name, precision, arguments)


def _row(name: str, precision: str, arguments: argparse.Namespace) -> None:
    row = rows()[name]
    config = row.config(precision)
    learner = Ours(replace(config, agent=replace(config.agent, learning_starts=PLAYED)))
    learner.run(PLAYED + 1)
    agent = learner.agent
    before = _memory()
    if name != "dqn-image":
        agent.replay = repeated(agent, arguments.frames // PLAYED)
    grown = (_memory() - before) / 1e9
    sample = agent.replay.sample = Timed(agent.replay.sample)
    update, reading = Timed(agent.update), Reading(agent.replay, config.agent.batch_size)

    def both() -> Any:
        found = update()
        reading()
        return found

    agent.update = both
    samples, shares, reads = [], [], []
    for _ in range(arguments.turns):
        learner.run(row.warmup * row.unit)
        sample.spent = update.spent = reading.copy.spent = sample.calls = 0
        learner.run(row.window * row.unit)
        samples.append(sample.spent / sample.calls)
        shares.append(sample.spent / update.spent)
        reads.append(reading.copy.spent / update.spent)
    held = f"{len(agent.replay):,} frames" + (f" in {grown:.2f} GB" if grown > 0.1 else "")
    took, of = median(samples) * 1e6, median(shares)
    share = f"{took:6,.0f} us of {took / of:7,.0f} an update: {of:5.2%}, reading {median(reads):5.2%}"
    print(f"{row.title:48} {precision:5} {share}   {held}", flush=True)
    learner.close()


def _memory() -> int:
    return psutil.Process().memory_info().rss


if __name__ == "__main__":
    main()
