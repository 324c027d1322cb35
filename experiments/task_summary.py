"""What is known of a task that has ended. Imports no torch."""

from typing import NamedTuple

PARTS = 20
"""A task's steps are looked at in so many equal parts; "first" and "last tenth" are two of them."""
TENTH = PARTS // 10


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


def parameters_in_words(parameters: dict[str, float | int | str]) -> str:
    """Parameters for people: "friction 0.322, ..."."""
    shown = ((name, f"{value:.4g}" if isinstance(value, float) else value) for name, value in parameters.items())
    return ", ".join(f"{name} {value}" for name, value in shown)
