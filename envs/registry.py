"""What a world looks like to an agent: for early errors and for sizing networks. Atari, MuJoCo and ours are answered
without building them; one environment of any other world is built, by the call that builds those that are played."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, replace
from typing import Any, Literal

from envs.config import WorldConfig
from envs.config import ant_observation_size as ant_size
from envs.ids import ANTS, ATARI_PREFIX, IMAGE_MDP, MUJOCO_WORLDS, Family, newer_robot, split_id, well_formed

ATARI_OBSERVATION_SHAPE = (4, 84, 84)
FULL_ACTION_COUNT = 18
# These cartridges need a second player; ale_py ships them, but registers no environment for them.
_TWO_PLAYER_ROMS = frozenset({"combat", "joust", "maze_craze", "warlords"})


@dataclass(frozen=True)
class WorldInfo:
    """Shapes and kinds of one world.

    ``observation_shape`` is one environment's, without the leading E. Exactly one of ``num_actions`` (discrete) and
    ``action_dim`` (continuous) is set.
    """

    family: Family
    actions: Literal["discrete", "continuous"]
    backend: Literal["envpool", "ale", "gymnasium", "native"]
    frame_stack: int | None
    observation_shape: tuple[int, ...]
    observation_dtype: str
    num_actions: int | None = None
    action_dim: int | None = None


def describe(config: WorldConfig) -> WorldInfo:
    """Describe the world of `config`. Atari reads the cartridge for its action count; MuJoCo comes from a table.

    Raises:
        ValueError: `config.env` is unknown (the closest ids are named), cannot be built, or has spaces that no agent
            takes.
    """
    backend = config.resolved_backend
    if config.family == "atari":
        roms = [atari_rom(game) for game in config.games]
        everything = config.full_action_space or len(roms) > 1
        count = FULL_ACTION_COUNT if everything else len(_emulator(roms[0]).getMinimalActionSet())
        return WorldInfo("atari", "discrete", backend, 4, ATARI_OBSERVATION_SHAPE, "uint8", num_actions=count)
    if config.family == "mujoco":
        size, action_dim, _ = MUJOCO_WORLDS[config.env]
        if config.env in ANTS:
            size = ant_size(config.ant_observation)
        return WorldInfo("mujoco", "continuous", backend, None, (size,), "float32", action_dim=action_dim)
    if config.family == "image":
        from envs.datasets import dataset_shape

        shape, classes = dataset_shape(config.dataset)
        return WorldInfo("image", "discrete", backend, None, shape, "uint8", num_actions=classes)
    return _describe_by_building(config)


def atari_rom(env: str) -> str:
    """The cartridge's name of an ``ALE/...-v5`` id, such as ``"space_invaders"`` for ``"ALE/SpaceInvaders-v5"``.

    Raises:
        ValueError: no such game; the closest ids are named.
    """
    roms = _atari_ids()
    if env not in roms:
        raise ValueError(unknown(env))
    return roms[env]


def check_known(env: str) -> None:
    """Raise ValueError, naming the closest ids, unless `env` is the id of a world. The module of MODULE:ID is imported;
    nothing is built. What is no id at all is `WorldConfig`'s to refuse."""
    if not well_formed(env):
        return
    if env.startswith(ATARI_PREFIX):
        atari_rom(env)
    elif env not in MUJOCO_WORLDS and env != IMAGE_MDP:
        from envs.foreign import find

        find(env)


def _atari_ids() -> dict[str, str]:
    import ale_py.roms

    names = (rom for rom in ale_py.roms.get_all_rom_ids() if rom not in _TWO_PLAYER_ROMS)
    # ale_py.registration names its environments by the same rule.
    return {f"{ATARI_PREFIX}{rom.title().replace('_', '')}-v5": rom for rom in names}


def atari_modes(env: str) -> tuple[tuple[int, int], ...]:
    """All (mode, difficulty) pairs of a game: its modes at the lowest difficulty first, then at the next.

    Raises:
        ValueError: no such game.
    """
    ale = _emulator(atari_rom(env))
    return tuple(
        (mode, level) for level in sorted(ale.getAvailableDifficulties()) for mode in sorted(ale.getAvailableModes())
    )


def _emulator(rom: str) -> Any:
    import ale_py

    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    ale = ale_py.ALEInterface()
    ale.loadROM(ale_py.roms.get_rom_path(rom))
    return ale


def is_old_atari(name: str) -> bool:
    """Whether gymnasium's id `name` is Breakout-v4, BreakoutNoFrameskip-v4 or the like."""
    import gymnasium

    return str(gymnasium.registry[name].entry_point).startswith("ale_py") if name in gymnasium.registry else False


def is_gone(name: str) -> bool:
    """Whether gymnasium's id `name` is one of the robots that needed mujoco-py (Ant-v2, Ant-v3): it is only listed."""
    return newer_robot(name) is not None and not name.endswith("-v4")


_OLD_ATARI = re.compile(r"(?:ALE/)?(\w+?)(-ram)?(NoFrameskip|Deterministic)?-v\d+")


def unknown(env: str) -> str:
    """The sentence that `env` is no world that can be played here, with the closest ids."""
    import gymnasium

    module, name = split_id(env)
    atari = _atari_ids()
    others = [known for known in gymnasium.registry if ("/" not in known or module) and not is_old_atari(known)]
    others = [known for known in others if not is_gone(known)]
    known = list(dict.fromkeys([*atari, *MUJOCO_WORLDS, IMAGE_MDP, *others]))
    # "BreakoutNoFrameskip-v4" means ALE/Breakout-v5; the plain name alone is too far away for difflib.
    folded = {one.lower(): one for one in known}
    old = _OLD_ATARI.fullmatch(name)
    game = (old[1] if old else name.partition("-v")[0].rpartition("/")[2]).replace("_", "")
    game = folded.get(f"{ATARI_PREFIX}{game}-v5".lower(), "")
    base = name.partition("-v")[0].lower()
    versions = sorted((one for one in known if one.partition("-v")[0].lower() == base), key=_version, reverse=True)
    alike = difflib.get_close_matches(name.lower(), folded, n=3, cutoff=0.6)
    close = [game, newer_robot(name), *versions[:1], *(folded[one] for one in alike)]
    close = list(dict.fromkeys(one for one in close if one))[:3]
    hint = f"; did you mean {' or '.join(repr(one) for one in close)}?" if close else ""
    if game and old and not name.startswith(ATARI_PREFIX):
        hint = f"; did you mean {game!r} (4 frames a step; --sticky-actions says the rest that is in old names)?"
    if module:
        return f"env = {env!r}: the module {module!r} registers no world {name!r}{hint}"
    return f"env = {env!r}: unknown world{hint or ' (one that a module of yours registers is MODULE:ID)'}"


def _version(name: str) -> int:
    number = name.rpartition("-v")[2]
    return int(number) if number.isdigit() else -1


def _describe_by_building(config: WorldConfig) -> WorldInfo:
    from contextlib import suppress

    from envs import foreign
    from envs.errors import WorldError

    pool = foreign.make_pool(replace(config, num_envs=1), None)
    with suppress(WorldError):  # what closing raises is told where it was played
        pool.close()
    observations, actions = pool.single_observation_space, pool.single_action_space
    discrete = not actions.shape
    return WorldInfo(
        family="gymnasium",
        actions="discrete" if discrete else "continuous",
        backend="gymnasium",
        frame_stack=None,
        observation_shape=observations.shape,
        observation_dtype=observations.dtype.name,
        num_actions=int(actions.n) if discrete else None,
        action_dim=None if discrete else actions.shape[0],
    )
