"""What time it is in a run, for everybody who acts now and then. Torch-free."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any


@dataclass
class Clock:
    """Counted once, by the agent and its main learner, and read by everybody else."""

    steps: int = 0
    """Over all environments."""
    gradient_steps: int = 0
    """That the learner has made."""
    task: int | None = None
    """Index of the task that every environment has entered; None before the first step, and where tasks are unknown."""
    task_began: int = 0
    """Steps at which everybody heard of it."""

    def beside(self) -> Clock:
        """The clock of a further learner of the agent: gradient steps of its own, all else is this one's."""
        return _Beside(self)

    def state_dict(self) -> dict[str, Any]:
        """The counts."""
        return dataclasses.asdict(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        for name, count in state.items():
            setattr(self, name, count)


class _Beside(Clock):
    steps = property(attrgetter("_main.steps"))
    task = property(attrgetter("_main.task"))
    task_began = property(attrgetter("_main.task_began"))

    def __init__(self, main: Clock) -> None:
        self._main, self.gradient_steps = main, 0

    def state_dict(self) -> dict[str, Any]:
        return {"gradient_steps": self.gradient_steps}
