"""Worlds that change: which task each environment is in, and when it moves on.

A *task* is a stretch of steps in which the world does not change; ``task_index`` counts the stretches from 0. What a
task is (a friction, a labelling, a game) is drawn by a `TaskLaw` from the schedule's seed and the task's number alone:
never from what an agent did, so that every method meets the same sequence, and any task can be built by itself.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

Order = Literal["sequence", "cycle", "A-B-A"]
UNLIMITED = 2**62


class TaskLaw(Protocol):
    """What the tasks of one kind of change are."""

    distinct: int | None
    """How many different tasks there are; None: as many as asked for."""
    listed: bool
    """Whether the tasks are a list that users expect to be visited in turn (games), not draws from a law."""
    gradual: bool
    """Whether `between` is defined, so that the world can drift."""

    def draw(self, seed: int, variant: int) -> Any:
        """The content of task number `variant`: what the world needs in order to enter it."""

    def between(self, start: Any, end: Any, share: float) -> Any:
        """The content `share` (in [0, 1)) of the way from one task to the next."""

    def describe(self, content: Any) -> dict[str, float | int | str]:
        """The content as named parameters for infos and logs."""


@dataclass(frozen=True)
class Task:
    """One task, or one stage of the way to the next."""

    index: int
    """Which stretch of steps this is, from 0."""
    variant: int
    """Which of the law's tasks it is; in a cycle they come again."""
    stage: int
    """How far the world has drifted towards the next task, in `stages`; 0 without drift."""
    content: Any
    """What the world needs in order to enter it."""
    parameters: dict[str, float | int | str]
    """The content in words and numbers."""


class TaskSchedule:
    """Which task each of `num_envs` environments is in.

    The k-th change is due at the first tick with total steps (over all environments) >= k * period. With
    ``at="episode_end"`` each environment switches at its own next episode end; with ``at="now"`` all switch at once
    (worlds that cannot change under a running episode cut it, as truncation). An environment whose episode outlasts a
    whole task enters the one that is due when it ends.

    Args:
        law: what the tasks are.
        period: steps of a task over all environments; 0: the world never changes.
        num_envs: E.
        at: when a due change happens.
        count: number of different tasks; 0: the law's own, or no end.
        order: ``"sequence"``: task 0, 1, 2, ...; the last one stays. ``"cycle"``: after the last the first again.
            ``"A-B-A"``: each task once, then the first one again for good (two tasks unless told otherwise).
            ``"auto"``: cycle for listed tasks, else sequence.
        stages: 1: jumps; more: each task drifts to the next in so many equal parts.
        first: index of the task to begin with.
        seed: decides the draws, and nothing else does.

    Raises:
        ValueError: an argument is out of its range or does not fit the law.
    """

    def __init__(
        self,
        law: TaskLaw,
        *,
        period: int,
        num_envs: int = 1,
        at: Literal["episode_end", "now"] = "episode_end",
        count: int = 0,
        order: Order | Literal["auto"] = "auto",
        stages: int = 1,
        first: int = 0,
        seed: int = 0,
    ) -> None:
        self.law, self.period, self.num_envs, self.at, self.stages = law, period, num_envs, at, stages
        self.first, self.seed = first, seed
        self._kept_stage = 0
        self.order: Order = order if order != "auto" else ("cycle" if law.listed else "sequence")
        self.count = _count(law, count, self.order)
        _check(self, order)
        self.restart()

    @property
    def last(self) -> int:
        """Index of the last task; `UNLIMITED` where changes never end."""
        if self.order == "cycle" or self.count == UNLIMITED:
            return UNLIMITED
        return self.count if self.order == "A-B-A" else self.count - 1

    def variant(self, index: int) -> int:
        """Which of the law's tasks the stretch `index` is."""
        index = min(index, self.last)
        return index % self.count if self.order == "cycle" or index == self.count else index

    def task(self, index: int, stage: int = 0) -> Task:
        """Task `index` (beyond the last: the last), by itself."""
        index = min(index, self.last)
        variant = self.variant(index)
        content = self.law.draw(self.seed, variant)
        if stage:
            content = self.law.between(content, self.law.draw(self.seed, self.variant(index + 1)), stage / self.stages)
        return Task(index, variant, stage, content, self.law.describe(content))

    def restart(self) -> None:
        """Begin anew: no steps made, every environment in the first task."""
        self.steps = 0
        self.due = self._position(0)
        self.current = self.task(*divmod(self.due, self.stages))
        self._next = self._next_due()
        self.positions = np.full(self.num_envs, self.due, dtype=np.int64)
        self._tasks = [self.current] * self.num_envs
        self._columns = self._tabulate()

    def state_dict(self) -> dict[str, Any]:
        """Where the schedule stands, in numbers and an array; what the tasks are follows from the law and the seed."""
        begun = {"first": self.first, "period": self.period, "kept_stage": self._kept_stage}
        return {**begun, "steps": self.steps, "positions": self.positions.copy()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`, of a schedule that was made alike."""
        self.first, self.period, self._kept_stage = state["first"], state["period"], state["kept_stage"]
        self.restart()
        self.steps = state["steps"] - self.num_envs
        self.advance()
        self.positions[:] = state["positions"]
        tasks = {position: self.task(*divmod(position, self.stages)) for position in np.unique(self.positions).tolist()}
        self._tasks = [tasks[position] for position in self.positions.tolist()]
        self._columns = self._tabulate()

    def tasks(self) -> list[tuple[Task, np.ndarray]]:
        """The tasks that environments are in, and which are, int [n]."""
        kinds, whose = np.unique(self.positions, return_inverse=True)
        return [(self._tasks[ids[0]], ids) for ids in (np.flatnonzero(whose == i) for i in range(len(kinds)))]

    def in_force(self, steps: int) -> tuple[int, int]:
        """(index, stage) of the task that the last of `steps` steps was due to be made in."""
        return divmod(self._position(max(steps - 1, 0)), self.stages)

    def stay_in(self, index: int, stage: int = 0) -> None:
        """Never change again: task `index` (at that stage of its drift) from the next restart on, which a world's next
        ``reset(seed=...)`` brings.

        Raises:
            ValueError: there is no such task.
        """
        if not 0 <= index <= self.last:
            raise ValueError(f"task = {index!r}: must be in [0, {self.last}], the tasks of this world")
        self.first, self.period, self._kept_stage = index, 0, stage
        self.restart()

    def advance(self) -> bool:
        """Count one step of every environment. True where it made another task (or stage) due."""
        self.steps += self.num_envs
        if self.steps < self._next:
            return False
        self.due = self._position(self.steps)
        self.current = self.task(*divmod(self.due, self.stages))
        self._next = self._next_due()
        return True

    def pending(self, ids: np.ndarray) -> np.ndarray:
        """Those of `ids` that have yet to enter the due task."""
        return ids[self.positions[ids] != self.due]

    def enter(self, ids: np.ndarray) -> None:
        """Environments `ids` are in the due task from now on."""
        self.positions[ids] = self.due
        for i in ids:
            self._tasks[i] = self.current
        self._columns = self._tabulate()

    @property
    def task_index(self) -> np.ndarray:
        """Index of the task that each environment is in, int64 [E]; not to be written to."""
        return self._columns["task_index"]

    def infos(self) -> dict[str, Any]:
        """``task_index`` and ``task_stage`` int64 [E], and ``task``: the parameters by name, each [E]. A change makes
        new arrays, it does not touch those handed out."""
        columns = self._columns
        return {"task_index": columns["task_index"], "task_stage": columns["task_stage"], "task": dict(columns["task"])}

    def _position(self, steps: int) -> int:
        """Index and stage of the task that is due after `steps` in one number, index * stages + stage."""
        passed = steps * self.stages // self.period if self.period else self._kept_stage
        return min(self.first * self.stages + passed, self.last * self.stages)

    def _next_due(self) -> int:
        if not self.period or self.due >= self.last * self.stages:
            return UNLIMITED
        passed = self.due - self.first * self.stages + 1
        return -(-passed * self.period // self.stages)

    def _tabulate(self) -> dict[str, Any]:
        names = self._tasks[0].parameters
        table = {name: np.array([task.parameters[name] for task in self._tasks]) for name in names}
        index, stage = np.divmod(self.positions, self.stages)
        columns = {"task_index": index, "task_stage": stage, "task": table}
        for array in (index, stage, *table.values()):
            array.flags.writeable = False  # they are handed out
        return columns


def _count(law: TaskLaw, count: int, order: Order) -> int:
    if count:
        return count
    return law.distinct or (2 if order == "A-B-A" else UNLIMITED)


def _check(schedule: TaskSchedule, order: str) -> None:
    def require(condition: bool, field: str, value: object, allowed: str) -> None:
        if not condition:
            raise ValueError(f"task.{field} = {value!r}: must be {allowed}")

    law, count = schedule.law, schedule.count
    require(schedule.period >= 0, "period", schedule.period, "at least 0 (0: the world never changes)")
    require(schedule.num_envs >= 1, "num_envs", schedule.num_envs, "at least 1")
    require(schedule.at in ("episode_end", "now"), "at", schedule.at, "episode_end or now")
    require(order in ("auto", "sequence", "cycle", "A-B-A"), "order", order, "auto, sequence, cycle or A-B-A")
    require(count >= 1, "count", count, "at least 1, or 0 for as many as there are")
    distinct = law.distinct or UNLIMITED
    require(count <= distinct, "count", count, f"at most {distinct}, the tasks that there are")
    endless = schedule.order == "cycle" and count == UNLIMITED
    require(not endless, "count", 0, "given with order = 'cycle' (how many tasks come before the first comes again)")
    require(schedule.order != "A-B-A" or count >= 2, "count", count, "at least 2 with order = 'A-B-A'")
    require(schedule.stages >= 1, "stages", schedule.stages, "at least 1")
    require(schedule.stages == 1 or law.gradual, "stages", schedule.stages, "1: this change is a jump by nature")
    few = schedule.stages <= max(schedule.period, 1)
    require(few, "stages", schedule.stages, f"at most task.period = {schedule.period}")
    require(0 <= schedule.first <= schedule.last, "first", schedule.first, f"in [0, {schedule.last}]")


def generator(seed: int, variant: int) -> np.random.Generator:
    """The random numbers of task `variant` under the schedule's `seed`."""
    return np.random.default_rng((seed, variant))


def derived(seed: int, *key: int) -> int:
    """A seed of 32 bits for what `key` numbers under `seed`."""
    return int(np.random.SeedSequence((seed, *key)).generate_state(1)[0])


def fingerprint(array: np.ndarray) -> str:
    """Eight hexadecimal digits that tell arrays apart, for logs."""
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:8]
