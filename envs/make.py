"""Building a world from its configuration."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.spaces import Box

from envs import ant, atari
from envs.config import ATARI_STEP_LIMIT, MUJOCO_WORLDS, WorldConfig
from envs.pools import NO_LIMIT, GymnasiumPool
from envs.registry import check_known, check_spaces
from envs.vector import World, check_seed


def make_vec_from_config(config: WorldConfig, seed: int, threads: int = 0, render_mode: str | None = None) -> World:
    """Build the vector environment of `config`: SAME_STEP autoreset, fresh arrays; see `World` for the contract.

    Args:
        config: which world, how many environments, which backend.
        seed: makes the first ``reset()`` deterministic, in [0, 2**31 - E). Environment i uses seed + i.
        threads: C++ threads of envpool and ALE, 0 for one a core; the gymnasium backend steps one after the other.
        render_mode: ``"rgb_array"`` for ``render()``; needs the gymnasium backend, which ``"auto"`` then resolves to.

    Raises:
        ValueError: the id is unknown, its spaces are not arrays, or an argument is out of range.
    """
    config = _settle_backend(config, render_mode)
    check_seed(seed, config.num_envs)
    if threads < 0:
        raise ValueError(f"threads = {threads!r}: must be 0 (one a core) or a positive count")
    if config.family == "atari":
        pool = atari.make_pool(config, seed, threads, render_mode)
        limit = config.max_episode_steps or ATARI_STEP_LIMIT
        space = Box(0, 255, pool.single_observation_space.shape, np.uint8)
        return World(pool, seed, np.asarray, space, limit, atari.FRAME_STACK, render_mode)
    if config.family == "mujoco":
        pool = ant.make_pool(config, seed, threads, render_mode)
        encode, size = ant.encoder(config, pool.single_observation_space.shape[0])
        limit = config.max_episode_steps or MUJOCO_WORLDS[config.env][2]
        return World(pool, seed, encode, Box(-np.inf, np.inf, (size,), np.float32), limit, None, render_mode)
    return _any_gymnasium_world(config, seed, render_mode)


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

    Raises:
        TypeError: an option is not a field of `WorldConfig`.
        ValueError: as `make_vec_from_config` and `WorldConfig`.
    """
    config = WorldConfig(env=env_id, num_envs=num_envs, backend=backend, **options)
    return make_vec_from_config(config, seed, threads, render_mode)


def _settle_backend(config: WorldConfig, render_mode: str | None) -> WorldConfig:
    from dataclasses import replace

    if render_mode is None:
        return config
    if render_mode != "rgb_array":
        raise ValueError(f"render_mode = {render_mode!r}: must be None or 'rgb_array'")
    if config.backend == "auto":
        return replace(config, backend="gymnasium")
    if config.backend != "gymnasium":
        raise ValueError(f"render_mode = {render_mode!r}: must be None for backend = {config.backend!r}")
    return config


def _any_gymnasium_world(config: WorldConfig, seed: int, render_mode: str | None) -> World:
    import gymnasium

    check_known(config.env)
    # A limit of our own replaces the world's; else the world's own TimeLimit wrapper stays.
    limit = {"max_episode_steps": -1} if config.max_episode_steps else {}

    def make_one() -> gymnasium.Env:
        env = gymnasium.make(config.env, render_mode=render_mode, disable_env_checker=True, **limit)
        check_spaces(config.env, env.observation_space, env.action_space)
        return env

    pool = GymnasiumPool(make_one, config.num_envs)
    raw = pool.single_observation_space
    dtype = np.float32 if raw.dtype == np.float64 else raw.dtype
    space = Box(raw.low.astype(dtype), raw.high.astype(dtype), raw.shape, dtype)
    return World(
        pool,
        seed,
        lambda raw: raw.astype(dtype, copy=False),
        space,
        config.max_episode_steps or NO_LIMIT,
        None,
        render_mode,
    )
