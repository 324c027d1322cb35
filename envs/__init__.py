"""Worlds: Gymnasium's API outside, nothing of ours inside. Importing this package builds and imports nothing heavy."""

from __future__ import annotations

import sys
from typing import Any

from envs.config import TaskConfig, WorldConfig
from envs.families.friction_ant import FrictionConfig
from envs.families.image_mdp import ImageConfig

__all__ = [
    "FrictionConfig",
    "GameCycle",
    "ImageConfig",
    "PeriodicReset",
    "SingleWorld",
    "TaskConfig",
    "TaskSchedule",
    "WorldConfig",
    "WorldInfo",
    "describe",
    "make_vec",
    "make_vec_from_config",
    "register",
]

_HOMES = {
    "GameCycle": "envs.single",
    "PeriodicReset": "envs.single",
    "SingleWorld": "envs.single",
    "TaskSchedule": "envs.tasks",
    "WorldInfo": "envs.family",
    "describe": "envs.registry",
    "make_vec": "envs.make",
    "make_vec_from_config": "envs.make",
    "register": "envs.registration",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'envs' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


if "gymnasium" in sys.modules:  # importing it here would slow the command line down
    from importlib import import_module

    import_module("envs.registration")
