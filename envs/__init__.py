"""Worlds: Gymnasium's API outside, nothing of ours inside. Importing this package builds and imports nothing heavy."""

from __future__ import annotations

from typing import Any

from envs.config import FrictionConfig, ImageConfig, TaskConfig, WorldConfig

__all__ = [
    "FrictionConfig",
    "ImageConfig",
    "TaskConfig",
    "TaskSchedule",
    "WorldConfig",
    "WorldInfo",
    "describe",
    "make_vec",
    "make_vec_from_config",
]

_HOMES = {
    "TaskSchedule": "envs.tasks",
    "WorldInfo": "envs.registry",
    "describe": "envs.registry",
    "make_vec": "envs.make",
    "make_vec_from_config": "envs.make",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'envs' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
