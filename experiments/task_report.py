"""How well each task was learned, from the games that ended in it."""

import json
from array import array
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.records import go_back, lines_of
from experiments.run import Event, TaskChange
from experiments.task_summary import PARTS, TENTH, TaskSummary, parameters_in_words

AT_A_TIME = 100_000
"""Games that are read before they are added up."""
SHOWN = 50
"""Tasks at a run's beginning, and at its end, that the table shows."""


class TaskReport:
    """Summarises a task when the next one has begun, from the games in episodes.jsonl.

    Nothing is kept of a game: what a task's games come to is added up while their file is read, from the first game on
    that the tasks before have not used.

    Args:
        share: share of the first task's level that counts as learned.
        episodes: the episodes.jsonl; written up to the present step whenever a task ends.
        path: a line of JSON is appended here for every task that has ended; None: nowhere.
        tell: told of every summary.
        say: told what a person should know.
    """

    def __init__(
        self,
        share: float,
        episodes: Path,
        path: Path | None = None,
        tell: Callable[[TaskSummary], None] = lambda summary: None,
        say: Callable[[str], None] = lambda sentence: None,
    ) -> None:
        self.share, self.episodes, self.path, self.tell, self.say = share, episodes, path, tell, say
        self.offset = 0  # in bytes: no game before it is of a task to come
        self.begun: TaskChange | None = None
        self.level: float | None = None
        self.count = 0
        """Tasks that have been summarised."""
        self.first: list[TaskSummary] = []
        self.last: deque[TaskSummary] = deque(maxlen=SHOWN)
        """The first and the last of them, `SHOWN` each, for the table."""

    def notice(self, event: Event) -> None:
        """Where a task has begun, summarise the one before it, if there was one."""
        if isinstance(event, TaskChange):
            self.finish(event.step)
            self.begun = event

    def finish(self, step: int) -> TaskSummary | None:
        """Summarise the task that ends at `step`; None where no task has begun (since), or it has no steps."""
        if self.begun is None or step <= self.begun.step:
            return None
        summary, self.begun = self._summarise(self.begun, step), None
        (self.first if len(self.first) < SHOWN else self.last).append(summary)
        self.count += 1
        if self.path is not None:
            with self.path.open("a") as file:
                file.write(json.dumps(_finite(summary)) + "\n")
        self.tell(summary)
        return summary

    def state_dict(self) -> dict[str, Any]:
        """The task that has begun, the summaries kept, and how far the files are read and written."""
        return {
            "offset": self.offset,
            "begun": self.begun and list(self.begun),
            "level": self.level,
            "count": self.count,
            "first": [list(summary) for summary in self.first],
            "last": [list(summary) for summary in self.last],
            "size": self.path.stat().st_size if self.path is not None and self.path.exists() else 0,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave; what was written since is forgotten."""
        self.offset, self.level, self.count = state["offset"], state["level"], state["count"]
        self.begun = state["begun"] and TaskChange(*state["begun"])
        self.first = [TaskSummary(*summary) for summary in state["first"]]
        self.last = deque((TaskSummary(*summary) for summary in state["last"]), maxlen=SHOWN)
        if self.path is not None and self.path.exists() and (told := go_back(self.path, state["size"])):
            self.say(told)

    def _summarise(self, begun: TaskChange, step: int) -> TaskSummary:
        returns = _Returns()
        for steps, values in self._games(begun.task):
            # A part is (left, right]; games of an environment that entered early count into the first one.
            part = np.ceil((steps - begun.step) / (step - begun.step) * PARTS).clip(1, PARTS).astype(int) - 1
            returns.add(part, values)
        played = [n for n in range(PARTS) if returns.count(n, n + 1)]
        last = returns.mean(PARTS - TENTH, PARTS)
        first = returns.mean(0, TENTH)
        if played and played[0] >= TENTH:  # no game ended in the first tenth
            first = returns.mean(played[0], played[0] + 1)
        if not self.count and last > first:
            self.level = first + self.share * (last - first)
        reached = [n for n in played if self.level is not None and returns.mean(n, n + 1) >= self.level]
        to_level = (reached[0] + 1) * (step - begun.step) / PARTS if reached else float("nan")
        games, mean = returns.count(0, PARTS), returns.mean(0, PARTS)
        return TaskSummary(begun.task, begun.parameters, begun.step, step, games, mean, last, to_level)

    def _games(self, task: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(steps, returns) of the games of `task`, some at a time."""
        position, later = self.offset, None
        steps, returns = array("q"), array("d")
        for end, game in lines_of(self.episodes, self.offset):
            if game["task"] == task:
                steps.append(game["step"])
                returns.append(float("nan") if game["return"] is None else game["return"])
            elif game["task"] > task and later is None:
                later = position  # of an environment that has gone on before the others
            position = end
            if len(steps) == AT_A_TIME:
                yield np.array(steps), np.array(returns)
                steps, returns = array("q"), array("d")
        yield np.array(steps), np.array(returns)
        self.offset = position if later is None else later


class _Returns:
    """Sums of a task's returns by part, by first and last tenth, and over all."""

    RANGES = (*((n, n + 1) for n in range(PARTS)), (0, TENTH), (PARTS - TENTH, PARTS), (0, PARTS))

    def __init__(self) -> None:
        self.sums = dict.fromkeys(self.RANGES, 0.0)
        self.counts = dict.fromkeys(self.RANGES, 0)

    def add(self, part: np.ndarray, returns: np.ndarray) -> None:
        """Add games, int [n] the part that each ended in, float64 [n] their returns."""
        for low, high in self.RANGES:
            chosen = returns[(low <= part) & (part < high)]
            self.sums[low, high] += float(chosen.sum())
            self.counts[low, high] += chosen.size

    def count(self, low: int, high: int) -> int:
        """Games in the parts [low, high)."""
        return self.counts[low, high]

    def mean(self, low: int, high: int) -> float:
        """Of the returns in the parts [low, high); NaN without any."""
        return self.sums[low, high] / self.counts[low, high] if self.counts[low, high] else float("nan")


def _finite(summary: TaskSummary) -> dict:
    return {key: None if value != value else value for key, value in summary._asdict().items()}


def table(report: TaskReport) -> list[str]:
    """The summaries as lines of text, for the end of a run: of more than twice `SHOWN` the first and the last ones."""
    head = f"{'task':>5} {'steps':>12} {'games':>7} {'mean':>9} {'last 10%':>9} {'to level':>9}  parameters"
    between = report.count - len(report.first) - len(report.last)
    gap = [f"  ... {between:,} more in {report.path or 'between'}"] if between else []
    return [head, *map(_row, report.first), *gap, *map(_row, report.last)]


def _row(s: TaskSummary) -> str:
    to_level = "-" if s.steps_to_level != s.steps_to_level else f"{s.steps_to_level:,.0f}"
    return (
        f"{s.task:5d} {s.last_step - s.first_step:12,d} {s.episodes:7,d} {s.mean_return:9.1f} "
        f"{s.last_tenth_return:9.1f} {to_level:>9}  {parameters_in_words(s.parameters)}"
    )
