"""Gradient steps a second of several seeds in one process: stacked, beside one seed alone."""

import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from agents.followed_step import WARM_UP
from agents.schedule import in_steps
from agents.stacking import Stack, why_in_turns
from benchmarks.intervention_cost import TimedAgent
from benchmarks.turns import Spent, ratio, speed, take_turns, timed
from envs import describe
from experiments.config import TrainConfig
from experiments.setup import spaces_from


class Stacked(NamedTuple):
    """Gradient steps a second."""

    alone: float
    """Of one seed."""
    together: float
    """Of all of them, summed; as alone where they cannot be stacked."""
    times: float
    """How many times as many, in a turn."""
    why: str
    """They take turns."""

    @property
    def words(self) -> str:
        """In a line."""
        how = f"stacked {self.together:10,.0f}  {self.times:6.2f}x" if not self.why else f"in turns: {self.why}"
        return f"one {self.alone:8,.0f}  {how}"


def stacked_updates(config: TrainConfig, count: int, turns: int, seconds: float, device: torch.device) -> Stacked:
    """Of `count` agents of one setting with made-up data, in windows of about so many seconds."""
    agent, spaces = in_steps(config.agent, 1_000_000), spaces_from(describe(config.world))
    solo, *seats = (TimedAgent(agent, spaces, [], device) for _ in range(count + 1))
    learners = [seat.agent.learner for seat in seats]
    why = why_in_turns(learners)
    if why:
        learners = learners[:1]
    with Stack(learners) as stack:
        calls = {seat.agent.learner: seat.update for seat in seats[: len(learners)]}
        windows = {
            "alone": _window(solo.update, [solo], seconds, device),
            "together": _window(lambda: stack.together(calls), seats[: len(learners)], seconds, device),
        }
        found = take_turns(windows, turns)
    rates = speed(found["alone"]), speed(found["together"])
    if why:
        return Stacked(rates[0], rates[0], 1.0, why)
    return Stacked(*rates, ratio(found["together"], found["alone"], "cpu" if device.type == "cpu" else "wall"), "")


def _window(
    update: Callable[[], object], seats: list[TimedAgent], seconds: float, device: torch.device
) -> Callable[[], Spent]:
    """Times `update` of these, by the gradient step."""

    def steps() -> int:
        return sum(seat.agent.clock.gradient_steps for seat in seats)

    def work(times: int) -> int:
        before = steps()
        for _ in range(times):
            update()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return steps() - before

    while min(seat.agent.clock.gradient_steps for seat in seats) <= 2 * WARM_UP:  # graphs are captured, steps followed
        work(1)
    begun = time.perf_counter()
    work(2)
    times = max(1, int(2 * seconds / (time.perf_counter() - begun)))
    return lambda: timed(lambda: work(times))
