"""Settings that change while a run lasts, as plain data. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any

from agents.spelling import Spelled, whole_number

if TYPE_CHECKING:
    from agents.config import AgentConfig


class Over(Spelled):
    """How long a schedule takes: constant, run, task, a share of either, steps, or steps of each task.

    >>> Over("10% of task"), Over("2.5e5"), Over("8000 steps of task")
    ('0.1-of-task', '250000', '8000-steps-of-task')
    """

    metavar = "TIME"
    allowed = (
        "constant, run, task, a share of either (0.1-of-run, 0.1-of-task), steps (250000), or steps of each task "
        "(8000-steps-of-task)"
    )
    unit: str
    """constant, run, task or steps."""
    anew: bool
    """Whether it begins anew in every task."""
    share: Decimal
    """Of a run or a task, in (0, 1]."""
    steps: int
    """Where its length is given in steps; else 0."""

    def __new__(cls, text: object) -> Over:
        word = "-".join(str(text).lower().split())
        amount, _, whole = word.rpartition("-of-")
        anew, steps, share = whole == "task" and amount.endswith("-steps"), 0, Decimal(1)
        if word in ("constant", "run", "task"):
            unit = word
        elif whole in ("run", "task") and not anew:
            unit, share = whole, _share(amount) or cls.refuse(text)
            word = unit if share == 1 else f"{share:f}-of-{unit}"
        else:
            unit, steps = "task" if anew else "steps", whole_number((amount if anew else word).removesuffix("-steps"))
            if steps is None or not 0 < steps < 2**53:
                cls.refuse(text)
            word = f"{steps}-steps-of-task" if anew else f"{steps}"
        made = str.__new__(cls, word)
        made.unit, made.anew, made.steps, made.share = unit, unit == "task", steps, share
        return made

    def in_steps(self, run: int, task: int) -> Over:
        """The same in steps, in a run of `run` steps with tasks of `task` (0: the run is one task)."""
        if self.steps or self.unit == "constant":
            return self
        length = run if self.unit == "run" else task or run
        steps = max(1, int(self.share * length))
        return Over(f"{steps}-steps-of-task" if self.anew else steps)


def _share(text: str) -> Decimal | None:
    """0.1 of "0.1" and "10%"; None where it is not in (0, 1]."""
    try:
        share = (Decimal(text.removesuffix("%")) / (100 if text.endswith("%") else 1)).normalize()
        return share if 0 < share <= 1 else None
    except InvalidOperation:  # no number, or NaN, which cannot be compared
        return None


CONSTANT, RUN, TASK = Over("constant"), Over("run"), Over("task")


@dataclass(frozen=True)
class Schedule:
    """Linear from `start` to `end` over some time, and `end` from then on."""

    start: float
    """Where it begins."""
    end: float
    """Where it ends."""
    over: Over = CONSTANT
    """constant: `start` all along."""

    def __post_init__(self) -> None:
        if not isinstance(self.over, Over):
            object.__setattr__(self, "over", Over(self.over))

    @property
    def moves(self) -> bool:
        """Whether it is ever another value than `start`."""
        return self.over != CONSTANT and self.start != self.end

    @property
    def once(self) -> bool:
        """Whether it moves in the first task alone, so that later ones are learned under its end."""
        return self.moves and not self.over.anew

    @property
    def final(self) -> float:
        """Its last value."""
        return self.end if self.moves else self.start

    def since(self, steps: int, task_began: int, begins: int = 0) -> int:
        """Steps since it began, in the task that began at `task_began`; not before `begins`."""
        return steps - max(begins, task_began if self.over.anew else 0)

    def value(self, since: int) -> float:
        """Its value so many steps after it began. ValueError where its time is not in steps (see `in_steps`)."""
        if self.over == CONSTANT:
            return self.start
        if not self.over.steps:
            raise ValueError(f"over = {self.over!r}: must be steps without a run: agents.schedule.in_steps counts them")
        return self.start + min(max(since / self.over.steps, 0.0), 1.0) * (self.end - self.start)

    def stretched(self, task: int) -> bool:
        """Whether it depends on the length of a run with tasks of `task` steps (0: none)."""
        return self.moves and not self.over.steps and (self.over.unit == "run" or not task)


def schedules_of(agent: AgentConfig) -> Mapping[str, Any]:
    """By name, the settings of `agent` that change while it runs."""
    values = {field.name: getattr(agent, field.name) for field in fields(agent)}
    return {name: value for name, value in values.items() if isinstance(value, Schedule)}


def in_steps(agent: AgentConfig, run: int, task: int = 0) -> AgentConfig:
    """`agent` with the time of every schedule in steps, in a run of `run` steps with tasks of `task` (0: none)."""
    found = {name: replace(one, over=one.over.in_steps(run, task)) for name, one in schedules_of(agent).items()}
    return replace(agent, **found)
