"""Building a world from its configuration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from gymnasium.spaces import Box

from envs import ant, atari
from envs.config import ATARI_STEP_LIMIT, IMAGE_MDP_STEP_LIMIT, TaskConfig, WorldConfig
from envs.ids import MUJOCO_WORLDS
from envs.pools import NO_LIMIT, Pool
from envs.registry import atari_modes
from envs.task_laws import ListLaw, PermutationLaw, ResetLaw, RewardLaw
from envs.task_pools import FreshlySeeded, PermutedActions, PermutedObservations, ShiftedRewards, SwitchingPool
from envs.tasks import Task, TaskLaw, TaskSchedule
from envs.vector import World, check_seed

if TYPE_CHECKING:
    from envs.image_mdp import LabelLaw


class Backend(NamedTuple):
    """How a world is built."""

    seed: int
    threads: int
    render_mode: str | None


class Parts(NamedTuple):
    """What a `World` is put together from."""

    pool: Pool
    encode: Callable[[np.ndarray], np.ndarray]
    space: Box
    limit: int
    frame_stack: int | None = None
    notes: tuple[str, ...] = ()


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
    backend = Backend(seed, threads, render_mode)
    if config.change is None:
        parts, schedule = _plain(config, backend), None
    else:
        parts, schedule = _CHANGES[config.change](config, backend)
    pool, encode, space, limit, frame_stack, notes = parts
    return World(pool, seed, encode, space, limit, frame_stack, render_mode, schedule, notes)


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
    if config.family == "image" or config.backend == "gymnasium":
        return config
    if config.backend == "auto":
        return replace(config, backend="gymnasium")
    raise ValueError(f"render_mode = {render_mode!r}: must be None for backend = {config.backend!r}")


def _plain(config: WorldConfig, backend: Backend) -> Parts:
    """The world as it is between two changes."""
    builders = {"atari": _atari, "mujoco": _mujoco, "image": _image, "gymnasium": _any_gymnasium_world}
    return builders[config.family](config, backend)


def _atari(config: WorldConfig, backend: Backend, pool: Pool | None = None) -> Parts:
    pool = pool or atari.make_pool(config, *backend)
    space = Box(0, 255, pool.single_observation_space.shape, np.uint8)
    return Parts(pool, np.asarray, space, config.max_episode_steps or ATARI_STEP_LIMIT, atari.FRAME_STACK)


def _mujoco(config: WorldConfig, backend: Backend, pool: Pool | None = None) -> Parts:
    pool = pool or ant.make_pool(config, *backend)
    encode, size = ant.encoder(config, pool.single_observation_space.shape[0])
    limit = config.max_episode_steps or MUJOCO_WORLDS[config.env][2]
    return Parts(pool, encode, Box(-np.inf, np.inf, (size,), np.float32), limit)


def _image(config: WorldConfig, backend: Backend) -> Parts:
    """Whatever else may change, the labels are those of the first task (random ones in the variant of that name)."""
    parts, law = _images_and_labels(config)
    labels = TaskSchedule(law, period=0, seed=_task_seed(config, backend)).current
    parts.pool.enter(np.arange(config.num_envs), labels)
    return parts


def _images_and_labels(config: WorldConfig) -> tuple[Parts, LabelLaw]:
    from envs.datasets import load_dataset, require_content
    from envs.image_mdp import ImagePool, LabelLaw, balanced

    require_content(config.dataset, config.dataset_sha256)
    data = balanced(load_dataset(config.dataset), config.image.num_images)
    pool = ImagePool(data, config.image.variant, config.num_envs)
    limit = config.max_episode_steps or IMAGE_MDP_STEP_LIMIT
    law = LabelLaw(data.labels, data.num_classes, config.image.variant, config.image.redraw)
    return Parts(pool, np.asarray, pool.single_observation_space, limit), law


def _any_gymnasium_world(config: WorldConfig, backend: Backend) -> Parts:
    from envs import foreign

    pool = foreign.make_pool(config, backend.render_mode)
    notes = foreign.notes(config) + pool.notes
    return Parts(pool, np.asarray, pool.single_observation_space, config.max_episode_steps or NO_LIMIT, notes=notes)


def _schedule(config: WorldConfig, backend: Backend, law: TaskLaw) -> TaskSchedule:
    task: TaskConfig = config.task
    return TaskSchedule(
        law,
        period=task.period,
        num_envs=config.num_envs,
        at="now" if config.change == "reset" else task.at,
        count=task.count,
        order=task.order,
        stages=task.stages,
        first=task.first,
        seed=_task_seed(config, backend),
    )


def _task_seed(config: WorldConfig, backend: Backend) -> int:
    return backend.seed if config.task.seed is None else config.task.seed


def _changing_friction(config: WorldConfig, backend: Backend) -> tuple[Parts, TaskSchedule]:
    from envs import friction

    schedule = _schedule(config, backend, friction.FrictionLaw(config.friction))
    pool = friction.make_pool(config, backend.threads, backend.render_mode)
    return _mujoco(config, backend, pool), schedule


def _changing_games(config: WorldConfig, backend: Backend) -> tuple[Parts, TaskSchedule]:
    """Several games share the 18 actions that all of them understand."""
    schedule = _schedule(config, backend, ListLaw(config.games, ("game",)))

    def make_game(task: Task, seed: int) -> Pool:
        game = replace(config, env=task.content, full_action_space=True, task=TaskConfig())
        return atari.make_pool(game, seed, backend.threads, backend.render_mode)

    pool = SwitchingPool(make_game, config.num_envs, schedule.current, backend.seed)
    return _atari(config, backend, pool), schedule


def _changing_modes(config: WorldConfig, backend: Backend) -> tuple[Parts, TaskSchedule]:
    schedule = _schedule(config, backend, ListLaw(atari_modes(config.env), ("mode", "difficulty")))

    def make_mode(task: Task, seed: int) -> Pool:
        return atari.make_pool(config, seed, backend.threads, backend.render_mode, task.content)

    pool = SwitchingPool(make_mode, config.num_envs, schedule.current, backend.seed)
    return _atari(config, backend, pool), schedule


def _changing_labels(config: WorldConfig, backend: Backend) -> tuple[Parts, TaskSchedule]:
    parts, law = _images_and_labels(config)
    return parts, _schedule(config, backend, law)


def _changing_actions(config: WorldConfig, backend: Backend) -> tuple[Parts, TaskSchedule]:
    parts = _plain(config, backend)
    pool = PermutedActions(parts.pool)
    return parts._replace(pool=pool), _schedule(config, backend, PermutationLaw(pool.size))


def _changing_observations(config: WorldConfig, backend: Backend) -> tuple[Parts, TaskSchedule]:
    parts = _plain(config, backend)
    pool = PermutedObservations(parts.pool, parts.encode, parts.space)
    parts = parts._replace(pool=pool, encode=np.asarray, space=pool.single_observation_space)
    return parts, _schedule(config, backend, PermutationLaw(pool.size))


def _changing_rewards(config: WorldConfig, backend: Backend) -> tuple[Parts, TaskSchedule]:
    parts = _plain(config, backend)
    schedule = _schedule(config, backend, RewardLaw(config.task.reward_step))
    return parts._replace(pool=ShiftedRewards(parts.pool)), schedule


def _changing_seeds(config: WorldConfig, backend: Backend) -> tuple[Parts, TaskSchedule]:
    parts = _plain(config, backend)
    return parts._replace(pool=FreshlySeeded(parts.pool)), _schedule(config, backend, ResetLaw())


_CHANGES = {
    "friction": _changing_friction,
    "games": _changing_games,
    "modes": _changing_modes,
    "labels": _changing_labels,
    "actions": _changing_actions,
    "observations": _changing_observations,
    "rewards": _changing_rewards,
    "reset": _changing_seeds,
}
