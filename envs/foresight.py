"""When a world changes, and what building a changing one would refuse, told without building it."""

from __future__ import annotations

from envs.config import WorldConfig
from envs.task_laws import RewardLaw, UnseenLaw
from envs.tasks import TaskLaw, TaskSchedule


def schedule_of(config: WorldConfig, law: TaskLaw, seed: int, num_envs: int) -> TaskSchedule:
    """The schedule that `config.task` asks for, of tasks by `law`; without a seed there they are drawn by `seed`."""
    task = config.task
    return TaskSchedule(
        law,
        period=task.period,
        num_envs=num_envs,
        at="now" if config.change == "reset" else task.at,
        count=task.count,
        order=task.order,
        stages=task.stages,
        first=task.first,
        seed=seed if task.seed is None else task.seed,
    )


def tasks_of(config: WorldConfig) -> TaskSchedule | None:
    """When the tasks of a world come, without what they are; None for a world that never changes.

    Raises ValueError where the fields of `config.task` do not fit each other or the world.
    """
    change, task = config.change, config.task
    if change is None:
        return None
    anywhere = RewardLaw(task.reward_step) if change == "rewards" else UnseenLaw()
    law = config.family.law(config) if change in config.family.own_changes else None
    return schedule_of(config, law or anywhere, 0, num_envs=1)  # of how many may be more than fits into memory


def check_tasks(config: WorldConfig) -> None:
    """Raise ValueError, naming the field, where tasks or labelled images as `config` asks for them cannot be."""
    tasks_of(config)
    config.family.check_files(config)
