"""Worlds that other people made: found by gymnasium, and built by the one call that describing and playing share."""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from envs.families import mujoco
from envs.family import Backend, Family, Parts, WorldInfo
from envs.ids import split_id

if TYPE_CHECKING:
    import gymnasium
    from gymnasium.envs.registration import EnvSpec

    from envs.config import WorldConfig
    from envs.foreign_pool import ForeignPool
    from envs.tasks import TaskLaw, TaskSchedule


class Gymnasium(Family):
    """See the module."""

    name = "gymnasium"
    worlds = "any other gymnasium id, MODULE:ID of one that a module registers"
    backends = ("gymnasium",)
    fallback = True
    speeds: ClassVar = {"gymnasium": 2000}  # half of what a robot makes; what others' worlds make, nobody knows

    def known_ids(self) -> list[str]:
        """See `Family.known_ids`: those that are imported, without those that another has taken the place of."""
        import gymnasium

        return [name for name in gymnasium.registry if not _is_old_atari(name) and not _is_gone(name)]

    def check_known(self, env: str) -> None:
        """See `Family.check_known`. The module of MODULE:ID is imported."""
        find(env)

    def describe(self, config: WorldConfig) -> WorldInfo:
        """See `Family.describe`: one environment is built."""
        from envs.errors import WorldError

        pool = make_pool(replace(config, num_envs=1), None)
        with suppress(WorldError):  # what closing raises is told where it was played
            pool.close()
        space, actions = pool.single_observation_space, pool.single_action_space
        kind = {"action_dim": actions.shape[0]} if actions.shape else {"num_actions": int(actions.n)}
        return self.info(config, space.shape, space.dtype.name, **kind)

    def build(self, config: WorldConfig, backend: Backend, schedule: Callable[[TaskLaw], TaskSchedule]) -> Parts:
        import numpy as np

        from envs.pools import NO_LIMIT

        pool = make_pool(config, backend.render_mode)
        said, limit = notes(config) + pool.notes, config.max_episode_steps or NO_LIMIT
        return Parts(pool, np.asarray, pool.single_observation_space, limit, notes=said)


FAMILY = Gymnasium()


def make_pool(config: WorldConfig, render_mode: str | None) -> ForeignPool:
    """The pool of `config`'s world. Raises ValueError as `make_one` and `ForeignPool`."""
    from envs.foreign_pool import ForeignPool

    return ForeignPool(lambda: make_one(config, render_mode), config.num_envs, config.env)


def _is_old_atari(name: str) -> bool:
    """Whether gymnasium's id `name` is Breakout-v4, BreakoutNoFrameskip-v4 or the like."""
    import gymnasium

    return str(gymnasium.registry[name].entry_point).startswith("ale_py") if name in gymnasium.registry else False


def _is_gone(name: str) -> bool:
    """Whether gymnasium's id `name` is one of the robots that needed mujoco-py (Ant-v2, Ant-v3): it is only listed."""
    return mujoco.FAMILY.newer(name) is not None and not name.endswith("-v4")


def find(env: str) -> EnvSpec:
    """What gymnasium knows of the world `env`; the module of MODULE:ID is imported first.

    Raises:
        ValueError: there is no such world or module, or it is one whose place another has taken; the sentence names it.
    """
    import gymnasium

    from envs.foreign_pool import staying_here
    from envs.registry import unknown

    module, name = split_id(env)
    if module:
        with staying_here():
            _import(env, module)
    if _is_gone(env):
        newer = mujoco.FAMILY.newer(env)
        raise ValueError(f"env = {env!r}: must be {newer!r}, since v2 and v3 needed mujoco-py and are no longer there")
    spec = gymnasium.registry.get(name)
    if spec is None or _is_old_atari(name):
        raise ValueError(unknown(env))
    return spec


def _import(env: str, module: str) -> None:
    """Import `module`, from the working directory too, as `python -m` would."""
    from envs.errors import in_words

    try:
        here = os.getcwd()
    except FileNotFoundError:
        raise ValueError(f"env = {env!r}: cannot be imported: the current directory is gone") from None
    try:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            # Another module may be missing that this one imports: that is the world's own trouble.
            if error.name is None or not f"{module}.".startswith(f"{error.name}.") or here in sys.path:
                raise
            sys.path.append(here)
            importlib.import_module(module)
    except KeyboardInterrupt:
        raise
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module}.".startswith(f"{error.name}."):
            allowed = f"a module that can be imported from {here} or Python's path (PYTHONPATH=FOLDER adds one)"
            raise ValueError(f"env = {env!r}: {module!r} is not {allowed}") from error
        raise ValueError(f"env = {env!r}: its module could not be imported: {in_words(error)}") from error
    except BaseException as error:  # a module may also call sys.exit
        raise ValueError(f"env = {env!r}: its module could not be imported: {in_words(error)}") from error


def make_one(config: WorldConfig, render_mode: str | None = None) -> gymnasium.Env:
    """One environment of `config`'s world, as gymnasium.make gives it; a render mode is passed on only if there is one
    or the constructor asks for it, and the world's own time limit stays unless `config` has another.

    Raises:
        ValueError: there is no such world, or it cannot be built.
    """
    from envs.errors import in_words
    from envs.foreign_pool import staying_here

    spec = find(config.env)
    options: dict[str, Any] = {} if render_mode is None else {"render_mode": render_mode}
    if config.max_episode_steps:
        options["max_episode_steps"] = -1  # `World` counts instead
    try:
        with staying_here():
            env = _made(spec, options)
            _ = env.observation_space, env.action_space  # properties may raise too
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        words = f"cannot be built here ({in_words(error)}){_hint(config, error)}"
        raise ValueError(f"env = {config.env!r}: {words}") from error
    return env


def _made(spec: EnvSpec, options: dict[str, Any]) -> gymnasium.Env:
    import gymnasium

    from envs.errors import message_of

    try:
        return gymnasium.make(spec, disable_env_checker=True, **options)
    except TypeError as error:
        # A constructor may need the render mode that gymnasium.make leaves out; others' code (SB3's) always gives one.
        if "render_mode" in options or not re.search("missing .* argument: 'render_mode'", message_of(error)):
            raise
    return gymnasium.make(spec, disable_env_checker=True, render_mode=None, **options)


def _hint(config: WorldConfig, error: BaseException) -> str:
    from envs.errors import message_of

    text, newer = message_of(error), mujoco.FAMILY.newer(config.env)
    if newer:
        return f"; {newer!r} can"
    if "missing" in text and "required" in text and "argument" in text:
        return "; what its constructor needs is given where it is registered: gymnasium.register(..., kwargs={...})"
    return "; a world that takes no render_mode cannot be drawn" if "'render_mode'" in text else ""


def notes(config: WorldConfig) -> tuple[str, ...]:
    """What a user should know of the id itself."""
    import gymnasium

    spec, newer = find(config.env), mujoco.FAMILY.newer(config.env)
    if newer:
        what = "played as gymnasium defines it, by MuJoCo's usual protocol; its returns are not comparable"
        return (f"{config.env} is older than {newer}: {what}",)
    latest = gymnasium.envs.registration.find_highest_version(spec.namespace, spec.name)
    if spec.version is not None and latest is not None and latest > spec.version:
        return (f"{config.env} is out of date: the newest version is v{latest}",)
    return ()
