"""How well each task was learned, from the games that ended in it."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.loop import TaskChange, Tick

PARTS = 20
"""A task's steps are looked at in so many equal parts; "first" and "last tenth" are two of them."""


class TaskSummary(NamedTuple):
    """One task of a run."""

    task: int
    parameters: dict[str, float | int | str]
    first_step: int
    """Step at which the last environment had entered it."""
    last_step: int
    """Step at which the last environment had left it, or the run's last."""
    episodes: int
    mean_return: float
    """Over all games that ended in the task; NaN without any."""
    last_tenth_return: float
    """Over those that ended in the last tenth of its steps."""
    steps_to_level: float
    """Steps from the task's beginning to the end of the first twentieth whose mean return reaches the level: the first
    task's first tenth (or its first twentieth with games) plus `share` of the way to its last tenth. NaN where none
    does, or the first task was not learned (its last tenth is no better than its first)."""


class TaskReport:
    """Collects games by task; a task is summarised when the next one has begun.

    Args:
        share: share of the first task's level that counts as learned.
        path: a line of JSON is appended here for every task that has ended; None: nowhere.
    """

    def __init__(self, share: float, path: Path | None = None) -> None:
        self.share, self.path = share, path
        self.games: dict[int, list[tuple[int, float]]] = {}  # by task: (step, return)
        self.begun: TaskChange | None = None
        self.level: float | None = None
        self.summaries: list[TaskSummary] = []

    def tick(self, event: Tick) -> None:
        """Note finished games."""
        for episode in event.episodes:
            self.games.setdefault(episode.task, []).append((event.step, episode.episodic_return))

    def change(self, event: TaskChange) -> TaskSummary | None:
        """A task has begun; the summary of the one before it, if there was one."""
        summary = self.finish(event.step)
        self.begun = event
        return summary

    def finish(self, step: int) -> TaskSummary | None:
        """Summarise the task that ends at `step`; None where no task has begun, or it has no steps."""
        if self.begun is None or step <= self.begun.step:
            return None
        games = self.games.pop(self.begun.task, [])
        summary = self._summarise(self.begun, step, np.array(games, dtype=np.float64).reshape(-1, 2))
        self.summaries.append(summary)
        if self.path is not None:
            with self.path.open("a") as file:
                file.write(json.dumps(_finite(summary)) + "\n")
        return summary

    def _summarise(self, begun: TaskChange, step: int, games: np.ndarray) -> TaskSummary:
        steps, returns = games.T
        # A part is (left, right]; games of an environment that entered early count into the first one.
        part = np.ceil((steps - begun.step) / (step - begun.step) * PARTS).clip(1, PARTS).astype(int) - 1
        by_part = [_mean(returns[part == number]) for number in range(PARTS)]
        begins = max(PARTS // 10, part.min() + 1) if len(part) else 0  # the first tenth, or the first part with games
        first, last = _mean(returns[part < begins]), _mean(returns[part >= PARTS - PARTS // 10])
        if not self.summaries and last > first:
            self.level = first + self.share * (last - first)
        reached = [n for n, mean in enumerate(by_part) if self.level is not None and mean >= self.level]
        to_level = (reached[0] + 1) * (step - begun.step) / PARTS if reached else float("nan")
        return TaskSummary(begun.task, begun.parameters, begun.step, step, len(returns), _mean(returns), last, to_level)


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else float("nan")


def _finite(summary: TaskSummary) -> dict:
    return {key: None if value != value else value for key, value in summary._asdict().items()}


def in_words(parameters: dict[str, float | int | str]) -> str:
    """Parameters for people: "friction 0.322, ..."."""
    shown = ((name, f"{value:.4g}" if isinstance(value, float) else value) for name, value in parameters.items())
    return ", ".join(f"{name} {value}" for name, value in shown)


def table(summaries: list[TaskSummary]) -> list[str]:
    """The summaries as lines of text, for the end of a run."""
    head = f"{'task':>5} {'steps':>12} {'games':>7} {'mean':>9} {'last 10%':>9} {'to level':>9}  parameters"
    rows = [
        f"{s.task:5d} {s.last_step - s.first_step:12,d} {s.episodes:7,d} {s.mean_return:9.1f} "
        f"{s.last_tenth_return:9.1f} {'-' if s.steps_to_level != s.steps_to_level else f'{s.steps_to_level:,.0f}':>9}"
        f"  {in_words(s.parameters)}"
        for s in summaries
    ]
    return [head, *rows]
