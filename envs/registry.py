"""What a world looks like to an agent, answered without building it: for early errors and for sizing networks."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any, Literal

from envs.config import ANTS, ATARI_PREFIX, IMAGE_MDP, MUJOCO_WORLDS, Family, WorldConfig
from envs.config import ant_observation_size as ant_size

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
        ValueError: `config.env` is unknown (the closest ids are named), or its spaces are not arrays.
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
        raise ValueError(_unknown(env))
    return roms[env]


def check_known(env: str) -> None:
    """Raise ValueError, naming the closest ids, unless `env` is a world that can be built."""
    if env.startswith(ATARI_PREFIX):
        atari_rom(env)
    elif env not in MUJOCO_WORLDS:
        import gymnasium

        if env not in gymnasium.registry or _is_old_atari(env):
            raise ValueError(_unknown(env))


def check_spaces(env: str, observation_space: object, action_space: object) -> None:
    """Raise ValueError unless observations are one array (Box) and actions Discrete or a one-dimensional Box."""
    from gymnasium.spaces import Box, Discrete

    if not isinstance(observation_space, Box):
        raise ValueError(f"env = {env!r}: observations must be one array (a Box space), not {observation_space}")
    one_dimensional = isinstance(action_space, Box) and len(action_space.shape) == 1
    counted_from_zero = isinstance(action_space, Discrete) and action_space.start == 0
    if not (one_dimensional or counted_from_zero):
        allowed = "Discrete counted from 0 or a one-dimensional Box"
        raise ValueError(f"env = {env!r}: actions must be {allowed}, not {action_space}")


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


def _is_old_atari(env: str) -> bool:
    """Breakout-v4, BreakoutNoFrameskip-v4 and the like: their frame skip and sticky actions are baked into the name."""
    import gymnasium

    return str(gymnasium.registry[env].entry_point).startswith("ale_py") if env in gymnasium.registry else False


def _unknown(env: str) -> str:
    import gymnasium

    atari = _atari_ids()
    others = [name for name in gymnasium.registry if "/" not in name and not _is_old_atari(name)]
    known = [*atari, *MUJOCO_WORLDS, IMAGE_MDP, *others]
    # "BreakoutNoFrameskip-v4" means ALE/Breakout-v5; the plain name alone is too far away for difflib.
    game = env.removeprefix(ATARI_PREFIX).split("-v")[0].removesuffix("NoFrameskip").removesuffix("Deterministic")
    folded = {name.lower(): name for name in known}
    ours = (f"{ATARI_PREFIX}{game.replace('_', '')}-v5".lower(), f"{game}-v5".lower())
    alike = difflib.get_close_matches(env.lower(), folded, n=3, cutoff=0.6)
    close = [folded[name] for name in dict.fromkeys([*ours, *alike]) if name in folded][:3]
    hint = " or ".join(repr(name) for name in close)
    return f"env = {env!r}: unknown world" + (f"; did you mean {hint}?" if close else "")


def _describe_by_building(config: WorldConfig) -> WorldInfo:
    import gymnasium

    check_known(config.env)
    try:
        env = gymnasium.make(config.env, disable_env_checker=True)
    except (gymnasium.error.Error, ImportError) as error:
        raise ValueError(f"env = {config.env!r}: cannot be built here ({error})") from error
    try:
        check_spaces(config.env, env.observation_space, env.action_space)
        discrete = isinstance(env.action_space, gymnasium.spaces.Discrete)
        dtype = env.observation_space.dtype.name
        return WorldInfo(
            family="gymnasium",
            actions="discrete" if discrete else "continuous",
            backend="gymnasium",
            frame_stack=None,
            observation_shape=env.observation_space.shape,
            observation_dtype="float32" if dtype == "float64" else dtype,
            num_actions=int(env.action_space.n) if discrete else None,
            action_dim=None if discrete else env.action_space.shape[0],
        )
    finally:
        env.close()
