"""The worlds under their names in gymnasium. Importing this module registers them.

``import envs`` does so as well where gymnasium has been imported before, and so ``gymnasium.make("envs:ImageMDP-v0")``
works; else ``envs.register()``. (Gymnasium has had no plugins that are found through a package's entry points since
1.0.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gymnasium.envs import registration

from envs.families import FAMILIES

if TYPE_CHECKING:
    from envs.vector import World

_SINGLE, _HERE = "envs.single", "envs.registration"
_WORLDS: dict[str, tuple[str, str, dict[str, Any]]] = {  # id: entry point, vector entry point, arguments of both
    **{
        env_id: (f"{_SINGLE}:SingleWorld", f"{_HERE}:vector_world", {"env_id": env_id})
        for family in FAMILIES
        for env_id in family.registered
    },
    "GameCycle-v0": (f"{_SINGLE}:GameCycle", f"{_HERE}:vector_game_cycle", {}),
    "PeriodicReset-v0": (f"{_SINGLE}:PeriodicResetWorld", f"{_HERE}:vector_periodic_reset", {}),
}


def register() -> None:
    """Make FrictionAnt-v0, ImageMDP-v0, GameCycle-v0 (argument `games`) and PeriodicReset-v0 (`env_id`, `period`) known
    to ``gymnasium.make`` and ``make_vec``. Those already known are left alone.

    ``max_episode_steps`` given to ``gymnasium.make`` is a wrapper of gymnasium's, which can only shorten an episode;
    given to ``make_vec``, or to the classes of single.py, it is the world's own limit.

    Example:
        >>> register()
        >>> env = gymnasium.make("GameCycle-v0", games="ALE/Pong-v5,ALE/Breakout-v5", task={"period": 100_000})
        >>> ants = gymnasium.make_vec("FrictionAnt-v0", num_envs=8, task={"period": 2_000_000})
    """
    for env_id, (single, vector, arguments) in _WORLDS.items():
        if env_id not in registration.registry:
            registration.register(env_id, single, vector_entry_point=vector, kwargs=arguments)


def vector_world(
    env_id: str,
    num_envs: int = 1,
    render_mode: str | None = None,
    task_seed: int = 0,
    backend: str = "auto",
    threads: int = 0,
    **options: Any,
) -> World:
    """Our native vector environment, randomly seeded until ``reset(seed=s)``; arguments as `envs.single.SingleWorld`
    and `envs.make.make_vec`, whose choice ``"auto"`` is.

    Raises:
        ValueError: as these.
    """
    import numpy as np

    from envs.make import make_vec_from_config
    from envs.single import world_config
    from envs.vector import SEED_LIMIT

    config = world_config(env_id, num_envs, task_seed, backend, options)
    seed = int(np.random.default_rng().integers(SEED_LIMIT - num_envs))
    return make_vec_from_config(config, seed, threads, render_mode)


def vector_game_cycle(games: str | Sequence[str], num_envs: int = 1, **options: Any) -> World:
    """`vector_world` of several games; see `envs.single.GameCycle`."""
    from envs.single import joined

    return vector_world(joined(games), num_envs, **options)


def vector_periodic_reset(env_id: str, period: int, num_envs: int = 1, **options: Any) -> World:
    """`vector_world` that begins anew every `period` steps; see `envs.single.PeriodicResetWorld`."""
    from envs.single import resetting

    return vector_world(env_id, num_envs, **{**options, "task": resetting(period, options.get("task", {}))})


register()
