"""What building a changing world would refuse, told without building it."""

from __future__ import annotations

from typing import Any, NamedTuple

from envs.config import WorldConfig
from envs.tasks import TaskSchedule


class _Law(NamedTuple):
    """As much of a `TaskLaw` as decides which tasks there are; nothing is drawn."""

    distinct: int | None = None
    listed: bool = False
    gradual: bool = False

    def draw(self, seed: int, variant: int) -> None:
        """No content."""

    def between(self, start: Any, end: Any, share: float) -> None:
        """No content."""

    def describe(self, content: None) -> dict[str, Any]:
        """No parameters."""
        return {}


def tasks_of(config: WorldConfig) -> TaskSchedule | None:
    """When the tasks of a world come, without what they are; None for a world that never changes.

    Raises ValueError where the fields of `config.task` do not fit each other or the world.
    """
    change, task = config.change, config.task
    if change is None:
        return None
    if change == "games":
        law = _Law(len(config.games), listed=True)
    elif change == "modes":
        from envs.registry import atari_modes

        law = _Law(len(atari_modes(config.env)), listed=True)
    else:
        law = _Law(gradual=change in ("friction", "rewards"))
    at = "now" if change == "reset" else task.at
    times = {"period": task.period, "at": at, "order": task.order, "stages": task.stages}
    return TaskSchedule(law, num_envs=1, count=task.count, first=task.first, **times)


def check_tasks(config: WorldConfig) -> None:
    """Raise ValueError, naming the field, where tasks or labelled images as `config` asks for them cannot be."""
    tasks_of(config)
    if config.family != "image":
        return
    from envs.datasets import dataset_count, require_content

    require_content(config.dataset, config.dataset_sha256)
    count, classes = dataset_count(config.dataset)
    chosen = config.image.num_images or count
    if not classes <= chosen <= count:
        allowed = f"between {classes} and {count}, or 0 for all"
        raise ValueError(f"image.num_images = {config.image.num_images}: must be {allowed}")
