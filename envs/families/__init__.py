"""The families of worlds, one file each; which there are follows from the files. Imports the standard library alone.

A file holds an `envs.family.Family` named `FAMILY`, whose name is the file's.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from envs.family import ANYWHERE, Family
from envs.ids import split_id

_FILES = sorted(file.stem for file in Path(__file__).parent.glob("[!_]*.py"))
FAMILIES: tuple[Family, ...] = tuple(
    sorted((import_module(f"{__name__}.{name}").FAMILY for name in _FILES), key=lambda family: family.fallback)
)
"""The first that matches an id has it; one takes any."""
BACKENDS = tuple(dict.fromkeys(backend for family in FAMILIES for backend in family.backends))
CHANGES = tuple(dict.fromkeys([*(change for family in FAMILIES for change in family.own_changes), *ANYWHERE]))
OPTIONS = tuple(dict.fromkeys(options for family in FAMILIES for options in family.options))

_HOMES = ("ale_py", "envs", "gymnasium")  # modules whose worlds are known here by their ids alone


def family_of(env: str) -> Family:
    """The family an environment id belongs to by its name. Several ids with commas between them are of the first one's;
    MODULE:ID is what that module registered, and so a foreign world, whatever the id, unless the module is a home of
    the family (``ale_py:ALE/Pong-v5``)."""
    env = canonical(env)
    return next(family for family in FAMILIES if family.matches(env.split(",")[0]))


def usual_family(env: str) -> Family:
    """The family whose protocol is usual for a world: its own, but MuJoCo's for the older robots (Ant-v4)."""
    env = canonical(env)
    return next((family for family in FAMILIES if family.newer(env)), family_of(env))


def canonical(env: str) -> str:
    """`env` without the module of ids that are known without it: ``ale_py:ALE/Pong-v5`` is ``ALE/Pong-v5``, and so is
    each of several games with commas between them."""
    return ",".join(map(_bare, env.split(","))) if ":" in env else env


def _bare(env: str) -> str:
    module, name = split_id(env)
    if module.split(".")[0] not in _HOMES:
        return env
    known = (family.matches(name) or family.newer(name) for family in FAMILIES if not family.fallback)
    return name if any(known) else env
