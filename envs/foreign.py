"""Finding and building the worlds that other people made, by the one call that describing and playing share."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import sys
from typing import TYPE_CHECKING, Any

import gymnasium

from envs.config import WorldConfig
from envs.errors import in_words, message_of
from envs.foreign_pool import ForeignPool, staying_here
from envs.ids import newer_robot, split_id
from envs.registry import is_gone, is_old_atari, unknown

if TYPE_CHECKING:
    from gymnasium.envs.registration import EnvSpec


def find(env: str) -> EnvSpec:
    """What gymnasium knows of the world `env`; the module of MODULE:ID is imported first.

    Raises:
        ValueError: there is no such world or module, or it is one whose place another has taken; the sentence names it.
    """
    module, name = split_id(env)
    if module:
        with staying_here():
            _import(env, module)
    if is_gone(env):
        raise ValueError(
            f"env = {env!r}: must be {newer_robot(env)!r}, since v2 and v3 needed mujoco-py and are no longer there"
        )
    spec = gymnasium.registry.get(name)
    if spec is None or is_old_atari(name):
        raise ValueError(unknown(env))
    return spec


def _import(env: str, module: str) -> None:
    """Import `module`, from the working directory too, as `python -m` would."""
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
    try:
        return gymnasium.make(spec, disable_env_checker=True, **options)
    except TypeError as error:
        # A constructor may need the render mode that gymnasium.make leaves out; others' code (SB3's) always gives one.
        if "render_mode" in options or not re.search("missing .* argument: 'render_mode'", message_of(error)):
            raise
    return gymnasium.make(spec, disable_env_checker=True, render_mode=None, **options)


def _hint(config: WorldConfig, error: BaseException) -> str:
    text, newer = message_of(error), newer_robot(config.env)
    if newer:
        return f"; {newer!r} can"
    if "missing" in text and "required" in text and "argument" in text:
        return "; what its constructor needs is given where it is registered: gymnasium.register(..., kwargs={...})"
    return "; a world that takes no render_mode cannot be drawn" if "'render_mode'" in text else ""


def make_pool(config: WorldConfig, render_mode: str | None) -> ForeignPool:
    """The pool of `config`'s world. Raises ValueError as `make_one` and `ForeignPool`."""
    return ForeignPool(lambda: make_one(config, render_mode), config.num_envs, config.env)


def notes(config: WorldConfig) -> tuple[str, ...]:
    """What a user should know of the id itself."""
    spec, newer = find(config.env), newer_robot(config.env)
    if newer:
        what = "played as gymnasium defines it, by MuJoCo's usual protocol; its returns are not comparable"
        return (f"{config.env} is older than {newer}: {what}",)
    latest = gymnasium.envs.registration.find_highest_version(spec.namespace, spec.name)
    if spec.version is not None and latest is not None and latest > spec.version:
        return (f"{config.env} is out of date: the newest version is v{latest}",)
    return ()
