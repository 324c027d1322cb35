"""Atari on three backends with one preprocessing.

Common to all: greyscale, 84x84 by area averaging, 4 frames a step, the pixelwise maximum of the last two frames, 4
stacked observations (oldest first, the first one repeated at the start of a game), random idle frames at the start of a
game, then FIRE for one frame where the game has the button; rewards unclipped; a lost life ends nothing. (Mnih et al.
2015, Nature 518:529-533; Machado et al. 2018, arXiv 1709.06009.)

What stays different, because the backends fix it in C++:

- Idle frames. With N = noop_max > 0, envpool and gymnasium idle U{1..N} frames, the last of which is FIRE where it is
  pressed. ALE's vector environment presses FIRE FIRST and idles afterwards, U{0..N-1} frames with 0 drawn
  twice as often (U{0..N} where it presses none). With N = 0 envpool still idles one frame in games where no FIRE is
  pressed.
- The newest frame of `final_obs` where a game is OVER (not at the time limit): a game that ends within a step never
  shows its last frames, and each backend fills the gap in its own way. Nothing learns from that frame.
- The random numbers behind idle frames and sticky actions: equal seeds are equal within one backend only.

Under equal actions from an equal start everything else, pixels included, is equal.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from envs.family import Backend, Family, Options, Parts, WorldInfo, require

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from envs.config import WorldConfig
    from envs.pools import EnvPool, Pool
    from envs.task_laws import ListLaw
    from envs.tasks import Task, TaskLaw, TaskSchedule

PREFIX = "ALE/"
STEP_LIMIT = 27_000
"""108,000 emulator frames, 30 minutes of play (Machado et al. 2018, arXiv 1709.06009)."""
OBSERVATION_SHAPE = (4, 84, 84)
FRAME_STACK = 4
FRAMES_PER_STEP = 4
FULL_ACTION_COUNT = 18
# These cartridges need a second player; ale_py ships them, but registers no environment for them.
_TWO_PLAYER_ROMS = frozenset({"combat", "joust", "maze_craze", "warlords"})
_OLD_NAME = re.compile(r"(?:ALE/)?(\w+?)(-ram)?(NoFrameskip|Deterministic)?-v\d+")


@dataclass(frozen=True)
class AtariOptions(Options):
    """What Atari's games are played with."""

    where: ClassVar[str] = "Atari (ALE/...) worlds"
    sticky_actions: float = 0.0
    """Atari: probability that a frame repeats the last action instead of the new one; Machado et al. 2018 use 0.25."""
    full_action_space: bool = False
    """Atari: all 18 joystick actions instead of the game's own minimal set."""
    noop_max: int = 30
    """Atari: each game begins with a random number of idle frames, at most this many; 0 for none."""
    fire_reset: bool = True
    """Atari: press FIRE for one frame at the beginning of each game that has the button."""

    def check(self) -> None:
        sticky = self.sticky_actions
        require(0.0 <= sticky <= 1.0, "sticky_actions", sticky, "must be a probability in [0, 1]")
        require(0 <= self.noop_max <= 1000, "noop_max", self.noop_max, "must be between 0 and 1000")


class Atari(Family):
    """See the module."""

    name = "atari"
    worlds = f"{PREFIX}<Game>-v5 (Atari; several with commas between them are played in turn)"
    backends = ("envpool", "ale", "gymnasium")
    options = (AtariOptions,)
    own_changes: ClassVar = {"games": "several ids in --env", "modes": "one Atari game's modes and difficulties"}
    in_turn = "games"
    observes = "pixels"
    saved_exactly = ("gymnasium",)
    speeds: ClassVar = {"envpool": 2200, "ale": 2400}
    bytes_each = 2**20
    pictures_a_second = 15  # 60 frames a second, 4 a step
    enlarged = 2

    def matches(self, env: str) -> bool:
        return env.startswith(PREFIX)

    def meant(self, name: str) -> tuple[str, str]:
        """See `Family.meant`: "BreakoutNoFrameskip-v4" means ALE/Breakout-v5."""
        old = _OLD_NAME.fullmatch(name)
        game = (old[1] if old else name.partition("-v")[0].rpartition("/")[2]).replace("_", "")
        found = {one.lower(): one for one in roms()}.get(f"{PREFIX}{game}-v5".lower(), "")
        said = found and old and not name.startswith(PREFIX)
        return found, " (4 frames a step; --sticky-actions says the rest that is in old names)" if said else ""

    def known_ids(self) -> Collection[str]:
        return roms().keys()

    def check(self, config: WorldConfig) -> None:
        modes_in_ale = config.change == "modes" and config.backend == "ale"
        allowed = "must be auto, envpool or gymnasium with change = 'modes'"
        require(not modes_in_ale, "backend", config.backend, allowed)

    def check_known(self, env: str) -> None:
        rom_of(env)

    def describe(self, config: WorldConfig) -> WorldInfo:
        """See `Family.describe`. The cartridge is read for its action count."""
        cartridges = [rom_of(game) for game in config.games]
        everything = config.full_action_space or len(cartridges) > 1
        count = FULL_ACTION_COUNT if everything else len(_emulator(cartridges[0]).getMinimalActionSet())
        return self.info(config, OBSERVATION_SHAPE, "uint8", num_actions=count, frame_stack=FRAME_STACK)

    def law(self, config: WorldConfig) -> ListLaw:
        from envs.task_laws import ListLaw

        if config.change == "games":
            return ListLaw(config.games, ("game",))
        return ListLaw(modes_of(config.env), ("mode", "difficulty"))

    def build(self, config: WorldConfig, backend: Backend, schedule: Callable[[TaskLaw], TaskSchedule]) -> Parts:
        """See `Family.build`. Several games share the 18 actions that all of them understand."""
        import numpy as np
        from gymnasium.spaces import Box

        from envs.task_pools import SwitchingPool

        def make(task: Task, seed: int) -> Pool:
            if config.change == "modes":
                return make_pool(config, backend._replace(seed=seed), task.content)
            game = replace(config, env=task.content, full_action_space=True, task=type(config.task)())
            return make_pool(game, backend._replace(seed=seed))

        if config.change in self.own_changes:
            pool = SwitchingPool(make, config.num_envs, schedule(self.law(config)).current, backend.seed)
        else:
            pool = make_pool(config, backend)
        space = Box(0, 255, pool.single_observation_space.shape, np.uint8)
        return Parts(pool, np.asarray, space, config.max_episode_steps or STEP_LIMIT, FRAME_STACK)


FAMILY = Atari()


@functools.cache
def roms() -> dict[str, str]:
    """The cartridge's name of every ``ALE/...-v5`` id: ``"space_invaders"`` of ``"ALE/SpaceInvaders-v5"``."""
    import ale_py.roms

    names = (rom for rom in ale_py.roms.get_all_rom_ids() if rom not in _TWO_PLAYER_ROMS)
    # ale_py.registration names its environments by the same rule.
    return {f"{PREFIX}{rom.title().replace('_', '')}-v5": rom for rom in names}


def rom_of(env: str) -> str:
    """The cartridge's name of a game. ValueError: no such game; the closest ids are named."""
    from envs.registry import unknown

    if env not in roms():
        raise ValueError(unknown(env))
    return roms()[env]


def modes_of(env: str) -> tuple[tuple[int, int], ...]:
    """All (mode, difficulty) pairs of a game: its modes at the lowest difficulty first, then at the next.

    Raises:
        ValueError: no such game.
    """
    ale = _emulator(rom_of(env))
    return tuple(
        (mode, level) for level in sorted(ale.getAvailableDifficulties()) for mode in sorted(ale.getAvailableModes())
    )


def _emulator(rom: str) -> Any:
    import ale_py

    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    ale = ale_py.ALEInterface()
    ale.loadROM(ale_py.roms.get_rom_path(rom))
    return ale


def make_pool(config: WorldConfig, backend: Backend, mode: tuple[int, int] | None = None) -> Pool:
    """The pool of `config`'s backend. `mode` is the game's (mode, difficulty), None for its own; ALE's vector
    environment has no such choice. Raises ValueError on an unknown game."""
    rom = rom_of(config.env)
    if config.resolved_backend == "envpool":
        return _envpool(config, rom, backend, mode)
    if config.resolved_backend == "ale":
        from envs.ale_pool import AlePool

        return AlePool(config, rom, backend.threads)
    from envs.pools import GymnasiumPool

    return GymnasiumPool(lambda: _single_game(config, rom, backend.render_mode, mode), config.num_envs, config.env)


def _envpool(config: WorldConfig, rom: str, backend: Backend, mode: tuple[int, int] | None) -> EnvPool:
    from envs.pools import EnvPool

    settings = {
        # envpool idles U{1..noop_max} frames, FIRE included, so 1 is its least; 0 there is undefined behaviour.
        "noop_max": max(config.noop_max, 1),
        "use_fire_reset": config.fire_reset,
        "full_action_space": config.full_action_space,
        "repeat_action_probability": config.sticky_actions,
    }
    if mode is not None:
        settings["mode"], settings["difficulty"] = mode
    task = "".join(word.capitalize() for word in rom.split("_")) + "-v5"
    # "done" would be true at envpool's time limit as well; this column is the emulator's own word.
    return EnvPool(task, config.num_envs, backend.seed, backend.threads, settings, terminated="info:terminated")


def _single_game(config: WorldConfig, rom: str, render_mode: str | None, mode: tuple[int, int] | None) -> Any:
    import ale_py
    import gymnasium
    from ale_py.env import AtariEnv
    from gymnasium.wrappers import AtariPreprocessing, FrameStackObservation

    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)

    class GameStart(gymnasium.Wrapper):
        """Random idle frames and FIRE before the first observation, by envpool's law."""

        def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict[str, Any]]:
            observation, info = self.env.reset(seed=seed, options=options)
            meanings = self.env.unwrapped.get_action_meanings()
            start = [meanings.index("FIRE")] if config.fire_reset and "FIRE" in meanings else []
            if config.noop_max:
                idle = int(self.env.unwrapped.np_random.integers(1, config.noop_max + 1)) - len(start)
                start = [meanings.index("NOOP")] * idle + start
            for action in start:
                observation, _, over, _, info = self.env.step(action)
                if over:
                    observation, info = self.env.reset(options=options)
            return observation, info

    class Sticky(gymnasium.Wrapper):
        """Each frame repeats the last action by the law of ALE's own sticky actions. ALE does not tell which action it
        would repeat, so that a game with its own could not be put where another stood."""

        last = 0

        def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict[str, Any]]:
            self.last = 0
            return self.env.reset(seed=seed, options=options)

        def step(self, action: int) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
            if self.unwrapped.np_random.random() >= config.sticky_actions:
                self.last = action
            return self.env.step(self.last)

    game = AtariEnv(
        game=rom,
        # AtariPreprocessing reads the screen itself; the greyscale screen is the cheaper one to discard.
        obs_type="grayscale",
        frameskip=1,
        repeat_action_probability=0.0,
        full_action_space=config.full_action_space,
        mode=None if mode is None else mode[0],
        difficulty=None if mode is None else mode[1],
        max_num_frames_per_episode=None,
        render_mode=render_mode,
    )
    game = Sticky(game) if config.sticky_actions else game
    frames = AtariPreprocessing(GameStart(game), noop_max=0, frame_skip=FRAMES_PER_STEP)
    return FrameStackObservation(frames, FRAME_STACK, padding_type="reset")
