"""What a world looks like to an agent: for early errors and for sizing networks. Atari, MuJoCo and ours are answered
without building them; one environment of any other world is built, by the call that builds those that are played."""

from __future__ import annotations

import difflib

from envs.config import WorldConfig
from envs.families import FAMILIES, family_of
from envs.family import WorldInfo
from envs.ids import split_id, well_formed


def describe(config: WorldConfig) -> WorldInfo:
    """Describe the world of `config`. Atari reads the cartridge for its action count; MuJoCo comes from a table.

    Raises:
        ValueError: `config.env` is unknown (the closest ids are named), cannot be built, or has spaces that no agent
            takes.
    """
    return config.family.describe(config)


def check_known(env: str) -> None:
    """Raise ValueError, naming the closest ids, unless `env` is the id of a world. The module of MODULE:ID is imported;
    nothing is built. What is no id at all is `WorldConfig`'s to refuse."""
    if well_formed(env):
        family_of(env).check_known(env)


def unknown(env: str) -> str:
    """The sentence that `env` is no world that can be played here, with the closest ids."""
    module, name = split_id(env)
    ids = dict.fromkeys(one for family in FAMILIES for one in family.known_ids())
    folded = {one.lower(): one for one in ids if "/" not in one or module or not family_of(one).fallback}
    # The plain name of a game alone is too far away for difflib, and so is an old name.
    meant = [family.meant(name) for family in FAMILIES]
    base = name.partition("-v")[0].lower()
    alike = [one for one in folded.values() if one.partition("-v")[0].lower() == base]
    versions = sorted(alike, key=_version, reverse=True)[:1]
    close = difflib.get_close_matches(name.lower(), folded, n=3, cutoff=0.6)
    close = [*(one for one, _ in meant), *versions, *(folded[one] for one in close)]
    close = list(dict.fromkeys(one for one in close if one))[:3]
    hint = f"; did you mean {' or '.join(repr(one) for one in close)}?" if close else ""
    hint = next((f"; did you mean {one!r}{more}?" for one, more in meant if more), hint)
    if module:
        return f"env = {env!r}: the module {module!r} registers no world {name!r}{hint}"
    return f"env = {env!r}: unknown world{hint or ' (one that a module of yours registers is MODULE:ID)'}"


def _version(name: str) -> int:
    number = name.rpartition("-v")[2]
    return int(number) if number.isdigit() else -1
