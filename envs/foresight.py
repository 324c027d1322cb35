"""What building a changing world would refuse, told without building it."""

from __future__ import annotations

from envs.config import WorldConfig
from envs.task_laws import RewardLaw, UnseenLaw
from envs.tasks import TaskSchedule


def tasks_of(config: WorldConfig) -> TaskSchedule | None:
    """When the tasks of a world come, without what they are; None for a world that never changes.

    Raises ValueError where the fields of `config.task` do not fit each other or the world.
    """
    change, task = config.change, config.task
    if change is None:
        return None
    anywhere = RewardLaw(task.reward_step) if change == "rewards" else UnseenLaw()
    law = config.family.law(config) if change in config.family.own_changes else None
    at = "now" if change == "reset" else task.at
    times = {"period": task.period, "at": at, "order": task.order, "stages": task.stages}
    return TaskSchedule(law or anywhere, num_envs=1, count=task.count, first=task.first, **times)


def check_tasks(config: WorldConfig) -> None:
    """Raise ValueError, naming the field, where tasks or labelled images as `config` asks for them cannot be."""
    tasks_of(config)
    config.family.check_files(config)
