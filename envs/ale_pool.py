"""Atari on ALE's own vector environment."""

from __future__ import annotations

from typing import Any

import numpy as np

from envs.config import WorldConfig
from envs.errors import failed
from envs.families.atari import FRAME_STACK
from envs.pools import NO_LIMIT, Outcome, Pool


class AlePool(Pool):
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

    def close(self) -> None:
        self._native.close()


def _rows(outcome: Outcome, ids: np.ndarray) -> Outcome:
    """The rows `ids` of an outcome of all environments (ALE's has no infos and no truncation)."""
    observations, rewards, terminated, _, lives, infos = outcome
    return Outcome(observations[ids], rewards[ids], terminated[ids], None, lives[ids], infos)
