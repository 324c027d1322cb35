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

from typing import Any

import numpy as np

from envs.config import WorldConfig
from envs.errors import failed
from envs.pools import NO_LIMIT, EnvPool, GymnasiumPool, Outcome, Pool
from envs.registry import atari_rom

FRAME_STACK = 4
FRAMES_PER_STEP = 4


def make_pool(
    config: WorldConfig, seed: int, threads: int, render_mode: str | None, mode: tuple[int, int] | None = None
) -> Pool:
    """The Atari pool of `config`'s backend. `mode` is the game's (mode, difficulty), None for its own; ALE's vector
    environment has no such choice. Raises ValueError on an unknown game."""
    rom = atari_rom(config.env)
    if config.resolved_backend == "envpool":
        return _envpool(config, rom, seed, threads, mode)
    if config.resolved_backend == "ale":
        return AlePool(config, rom, threads)
    return GymnasiumPool(lambda: _single_game(config, rom, render_mode, mode), config.num_envs, config.env)


def _envpool(config: WorldConfig, rom: str, seed: int, threads: int, mode: tuple[int, int] | None) -> EnvPool:
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
    return EnvPool(task, config.num_envs, seed, threads, settings, terminated="info:terminated")


class AlePool:
    """ALE's own vector environment, with its stack repaired: it pads with zeros after a reset, the others repeat."""

    def __init__(self, config: WorldConfig, rom: str, threads: int) -> None:
        from ale_py.vector_env import AtariVectorEnv
        from gymnasium.vector import AutoresetMode

        self._native = AtariVectorEnv(
            rom,
            config.num_envs,
            num_threads=threads,
            max_num_frames_per_episode=NO_LIMIT,
            repeat_action_probability=config.sticky_actions,
            full_action_space=config.full_action_space,
            autoreset_mode=AutoresetMode.SAME_STEP,
            # One more than asked for: it draws below this number and counts FIRE.
            noop_max=config.noop_max + 1 if config.noop_max else 0,
            reward_clipping=False,
            use_fire_reset=config.fire_reset,
        )
        self._env = config.env
        self.num_envs = config.num_envs
        self.single_observation_space = self._native.single_observation_space
        self.single_action_space = self._native.single_action_space
        self._ages = np.zeros(self.num_envs, dtype=np.int64)  # steps since the last reset
        self._renewed = np.zeros(self.num_envs, dtype=bool)  # games that ALE has begun anew within its own step
        self._first: tuple[np.ndarray, np.ndarray] | None = None

    def start(self, seed: int | None) -> tuple[np.ndarray, np.ndarray]:
        """See `Pool.start`."""
        observations, infos = self._reset(seed=seed)
        self._ages[:] = 0
        return self._repeat_first_frame(observations, np.arange(self.num_envs)), infos["lives"]

    def advance(self, actions: np.ndarray, ids: np.ndarray | None = None) -> Outcome:
        """See `Pool.advance`. ALE steps all its games together: those not in `ids` idle, unreported."""
        if ids is not None:
            idle = np.zeros(self.num_envs, dtype=np.int64)
            idle[ids] = actions
            return _rows(self.advance(idle), ids)
        actions = np.asarray(actions, dtype=np.int64)
        try:
            observations, rewards, over, _, infos = self._native.step(actions)
        except Exception as error:
            raise failed(self._env, None, "at a step", error) from error
        self._ages += 1
        self._renewed = over
        self._first = observations, infos["lives"]
        if over.any():
            observations = np.where(over[:, None, None, None], infos["final_obs"], observations)
        young = np.flatnonzero(self._ages < FRAME_STACK - 1)
        if young.size:
            observations = self._repeat_first_frame(observations, young)
        return Outcome(observations, rewards.astype(np.float32), over, None, infos["lives"], {})

    def restart(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `Pool.restart`. Games that were over are under way already; those at the time limit are reset here."""
        late = np.zeros(self.num_envs, dtype=bool)
        late[ids] = ~self._renewed[ids]
        if not late.any():
            observations, lives = self._first
        else:
            # The rows of the other environments are their current ones, unchanged.
            observations, infos = self._reset(options={"reset_mask": late})
            lives = infos["lives"]
        self._ages[ids] = 0
        return self._repeat_first_frame(observations, ids)[ids], lives[ids]

    def _reset(self, **how: Any) -> tuple[np.ndarray, dict[str, Any]]:
        try:
            return self._native.reset(**how)
        except Exception as error:
            raise failed(self._env, None, "at a reset", error) from error

    def _repeat_first_frame(self, observations: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """Observations [E, 4, 84, 84] with the zero frames of `ids` replaced by the first frame of their game."""
        observations = observations.copy()
        for i in ids:
            blank = FRAME_STACK - 1 - self._ages[i]
            observations[i, :blank] = observations[i, blank]
        return observations

    def render(self) -> tuple[np.ndarray, ...]:
        """Not offered: `make_vec` refuses a render mode on this backend."""
        raise RuntimeError("backend = 'ale': rendering needs backend = 'gymnasium'")

    def close(self) -> None:
        """See `Pool.close`."""
        self._native.close()


def _rows(outcome: Outcome, ids: np.ndarray) -> Outcome:
    """The rows `ids` of an outcome of all environments (ALE's has no infos and no truncation)."""
    observations, rewards, terminated, _, lives, infos = outcome
    return Outcome(observations[ids], rewards[ids], terminated[ids], None, lives[ids], infos)


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

    game = AtariEnv(
        game=rom,
        # AtariPreprocessing reads the screen itself; the greyscale screen is the cheaper one to discard.
        obs_type="grayscale",
        frameskip=1,
        repeat_action_probability=config.sticky_actions,
        full_action_space=config.full_action_space,
        mode=None if mode is None else mode[0],
        difficulty=None if mode is None else mode[1],
        max_num_frames_per_episode=None,
        render_mode=render_mode,
    )
    frames = AtariPreprocessing(GameStart(game), noop_max=0, frame_skip=FRAMES_PER_STEP)
    return FrameStackObservation(frames, FRAME_STACK, padding_type="reset")
