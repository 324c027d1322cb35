"""Building a world from its configuration."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from envs.config import TaskConfig, WorldConfig
from envs.family import ANYWHERE, Backend, Parts
from envs.foresight import schedule_of
from envs.task_laws import PermutationLaw, ResetLaw, RewardLaw
from envs.task_pools import FreshlySeeded, PermutedActions, PermutedObservations, ShiftedRewards
from envs.tasks import TaskLaw, TaskSchedule
from envs.vector import World, check_seed


def make_vec_from_config(config: WorldConfig, seed: int, threads: int = 0, render_mode: str | None = None) -> World:
    """Build the vector environment of `config`: SAME_STEP autoreset, fresh arrays; see `World` for the contract.

    Args:
        config: which world, how many environments, which backend, how it changes. Without a `task.seed` the tasks are
            drawn from `seed`.
        seed: makes the first ``reset()`` deterministic, in [0, 2**31 - E). Environment i uses seed + i.
        threads: C++ threads of envpool and ALE, 0 for one a core; the gymnasium backend steps one after the other.
        render_mode: ``"rgb_array"`` for ``render()``; needs the gymnasium backend (ImageMDP-v0: native), which
            ``"auto"`` then resolves to.

    Raises:
        ValueError: the id is unknown, the world cannot be built, no agent takes its spaces, or an argument is out of
            range.
    """
    config = _settle_backend(config, render_mode)
    check_seed(seed, config.num_envs)
    if threads < 0:
        raise ValueError(f"threads = {threads!r}: must be 0 (one a core) or a positive count")
    schedules: list[TaskSchedule] = []

    def schedule(law: TaskLaw) -> TaskSchedule:
        if not schedules:  # a pool that is built again goes on in the tasks of the first one
            schedules.append(schedule_of(config, law, seed, config.num_envs))
        return schedules[0]

    def build(seed: int) -> Parts:
        parts = config.family.build(config, Backend(seed, threads, render_mode), schedule)
        if config.change in ANYWHERE:
            parts, law = _CHANGES[config.change](parts, config.task)
            schedule(law)
        return parts

    pool, encode, space, limit, frame_stack, notes = build(seed)
    known = (pool, seed, encode, space, limit, frame_stack, render_mode, next(iter(schedules), None), notes)
    return World(*known, rebuild=lambda seed: build(seed).pool, segment=config.segment)


def make_vec(
    env_id: str,
    num_envs: int,
    seed: int,
    backend: str = "auto",
    *,
    threads: int = 0,
    render_mode: str | None = None,
    **options: Any,
) -> World:
    """`make_vec_from_config` with the fields of `WorldConfig` as keyword arguments.

    Example:
        >>> world = make_vec("ALE/Pong-v5", num_envs=8, seed=1, sticky_actions=0.25)
        >>> observations, infos = world.reset()
        >>> observations.shape
        (8, 4, 84, 84)
        >>> slippery = make_vec("FrictionAnt-v0", num_envs=8, seed=1, task=TaskConfig(period=2_000_000))

    Raises:
        TypeError: an option is not a field of `WorldConfig`.
        ValueError: as `make_vec_from_config` and `WorldConfig`.
    """
    config = WorldConfig(env=env_id, num_envs=num_envs, backend=backend, **options)
    return make_vec_from_config(config, seed, threads, render_mode)


def _settle_backend(config: WorldConfig, render_mode: str | None) -> WorldConfig:
    if render_mode is None:
        return config
    if render_mode != "rgb_array":
        raise ValueError(f"render_mode = {render_mode!r}: must be None or 'rgb_array'")
    if config.resolved_backend == config.family.drawn_by:
        return config
    if config.backend == "auto":
        return replace(config, backend=config.family.drawn_by)
    raise ValueError(f"render_mode = {render_mode!r}: must be None for backend = {config.backend!r}")


def _changing_actions(parts: Parts, task: TaskConfig) -> tuple[Parts, TaskLaw]:
    pool = PermutedActions(parts.pool)
    return parts._replace(pool=pool), PermutationLaw(pool.size)


def _changing_observations(parts: Parts, task: TaskConfig) -> tuple[Parts, TaskLaw]:
    pool = PermutedObservations(parts.pool, parts.encode, parts.space)
    parts = parts._replace(pool=pool, encode=np.asarray, space=pool.single_observation_space)
    return parts, PermutationLaw(pool.size)


def _changing_rewards(parts: Parts, task: TaskConfig) -> tuple[Parts, TaskLaw]:
    return parts._replace(pool=ShiftedRewards(parts.pool)), RewardLaw(task.reward_step)


def _changing_seeds(parts: Parts, task: TaskConfig) -> tuple[Parts, TaskLaw]:
    return parts._replace(pool=FreshlySeeded(parts.pool)), ResetLaw()


_CHANGES = {
    "actions": _changing_actions,
    "observations": _changing_observations,
    "rewards": _changing_rewards,
    "reset": _changing_seeds,
}
