"""Names of worlds: which family an id belongs to, and gymnasium's spelling MODULE:ID. Standard library alone."""

from __future__ import annotations

import re
from typing import Literal

Family = Literal["atari", "mujoco", "image", "gymnasium"]

FRICTION_ANT = "FrictionAnt-v0"
IMAGE_MDP = "ImageMDP-v0"
ATARI_PREFIX = "ALE/"

# Observation size, action size and time limit in steps of the MuJoCo worlds that both backends know.
MUJOCO_WORLDS: dict[str, tuple[int, int, int]] = {
    "Ant-v5": (105, 8, 1000),
    "HalfCheetah-v5": (17, 6, 1000),
    "Hopper-v5": (11, 3, 1000),
    "Humanoid-v5": (348, 17, 1000),
    "HumanoidStandup-v5": (348, 17, 1000),
    "InvertedDoublePendulum-v5": (9, 1, 1000),
    "InvertedPendulum-v5": (4, 1, 1000),
    "Pusher-v5": (23, 7, 100),
    "Reacher-v5": (10, 2, 50),
    "Swimmer-v5": (8, 2, 1000),
    "Walker2d-v5": (17, 6, 1000),
    FRICTION_ANT: (105, 8, 1000),
}
ANTS = ("Ant-v5", FRICTION_ANT)

MOST_CHARACTERS = 200
"""Of an id; names of files are made of it."""

_HOMES = ("ale_py", "envs", "gymnasium")  # modules whose worlds are known here by their ids alone
_MODULE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")


def family_of(env: str) -> Family:
    """The family an environment id belongs to by its name: ``"atari"``, ``"mujoco"``, ``"image"`` or ``"gymnasium"``
    (any other). Several games with commas between them are ``"atari"``; MODULE:ID is what that module registered, and
    so ``"gymnasium"``, whatever the id, unless the module is a home of the family (``ale_py:ALE/Pong-v5``)."""
    env = canonical(env)
    if env.startswith(ATARI_PREFIX):
        return "atari"
    if env == IMAGE_MDP:
        return "image"
    return "mujoco" if env in MUJOCO_WORLDS else "gymnasium"


def usual_family(env: str) -> Family:
    """The family whose protocol is usual for a world: its own, but MuJoCo's for the older robots (Ant-v4)."""
    return "mujoco" if newer_robot(env) else family_of(env)


def canonical(env: str) -> str:
    """`env` without the module of ids that are known without it: ``ale_py:ALE/Pong-v5`` is ``ALE/Pong-v5``, and so is
    each of several games with commas between them."""
    return ",".join(map(_bare, env.split(","))) if ":" in env else env


def _bare(env: str) -> str:
    module, name = split_id(env)
    if module.split(".")[0] not in _HOMES:
        return env
    known = name.startswith(ATARI_PREFIX) or name in MUJOCO_WORLDS or name == IMAGE_MDP or newer_robot(name)
    return name if known else env


def split_id(env: str) -> tuple[str, str]:
    """(module, id) of MODULE:ID; the module is empty where none is named."""
    module, _, name = env.rpartition(":")
    return module.strip(), name


def newer_robot(env: str) -> str | None:
    """The v5 id of an older MuJoCo id (``Ant-v4``, ``Hopper-v3``); None for any other."""
    name, version = _bare(env).rpartition("-v")[::2] if ":" in env else env.rpartition("-v")[::2]
    newer = f"{name}-v5"
    return newer if newer in MUJOCO_WORLDS and version in ("2", "3", "4") else None


def well_formed(env: str) -> bool:
    """Whether `env` is ID or MODULE:ID on one line, with a module that Python can import by name."""
    if len(env) > MOST_CHARACTERS or not env.isprintable():
        return False
    if ":" not in env:
        return bool(env.strip())
    module, name = split_id(env)
    return bool(_MODULE.fullmatch(module)) and bool(name.strip())
