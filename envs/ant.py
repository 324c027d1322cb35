"""MuJoCo worlds on two backends, and the variants of Ant's observation and reward.

Same physics, same observations, same reward terms; the random numbers of the initial states differ, and envpool returns
the reward in float32. Actions are used as they come (no clipping beyond MuJoCo's own control range).

Ant after Dohare et al. 2024 (Nature 632:768-774) is ``ant_observation="padded-111"``, ``contact_cost_weight=0`` and
``healthy_reward_on_termination=True``: their Ant-v3 had 84 contact inputs that were always 0, hence no contact cost,
and it paid the healthy reward on the last step. The number of inputs matters even if most are 0: it sets the scale of
the initial weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from envs.config import WorldConfig, ant_observation_size
from envs.ids import ANTS
from envs.pools import EnvPool, GymnasiumPool, Pool

STATE_SIZE = 27
"""Ant's positions without x and y (13) and velocities (14): the first numbers of every variant."""


def make_pool(config: WorldConfig, seed: int, threads: int, render_mode: str | None) -> Pool:
    """The MuJoCo pool of `config`'s backend."""
    if config.resolved_backend == "envpool":
        settings: dict[str, Any] = {}
        if config.env == "Ant-v5":
            # use_contact_force=False would take the forces out of the observation AND out of the reward.
            settings = {
                "contact_cost_weight": config.contact_cost_weight,
                "legacy_healthy_reward": config.healthy_reward_on_termination,
            }
        return EnvPool(config.env, config.num_envs, seed, threads, settings)
    return GymnasiumPool(lambda: single_robot(config, render_mode), config.num_envs, config.env)


def encoder(config: WorldConfig, raw_size: int) -> tuple[Callable[[np.ndarray], np.ndarray], int]:
    """The map from raw observations [n, raw_size] to fresh float32 [n, size], and that size."""
    if config.env not in ANTS or config.ant_observation == "default-105":
        return lambda raw: raw.astype(np.float32), raw_size
    size = ant_observation_size(config.ant_observation)
    if size == STATE_SIZE:
        return lambda raw: raw[:, :STATE_SIZE].astype(np.float32), size

    def pad(raw: np.ndarray) -> np.ndarray:
        padded = np.zeros((len(raw), size), dtype=np.float32)
        padded[:, :STATE_SIZE] = raw[:, :STATE_SIZE]
        return padded

    return pad, size


def single_robot(config: WorldConfig, render_mode: str | None) -> Any:
    """One gymnasium environment of `config`, without a time limit; FrictionAnt-v0 begins as an Ant-v5."""
    import gymnasium

    class HealthyToTheEnd(gymnasium.Wrapper):
        """Ant-v3's reward: the healthy reward is paid on the step that ends the episode too."""

        def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            observation, reward, terminated, truncated, info = self.env.step(action)
            if terminated:
                missing = self.env.unwrapped._healthy_reward - info["reward_survive"]
                reward, info = reward + missing, {**info, "reward_survive": info["reward_survive"] + missing}
            return observation, reward, terminated, truncated, info

    ant = config.env in ANTS
    options = {"contact_cost_weight": config.contact_cost_weight} if ant else {}
    name = "Ant-v5" if ant else config.env
    # -1: no TimeLimit wrapper, the world counts the steps itself.
    env = gymnasium.make(name, render_mode=render_mode, max_episode_steps=-1, disable_env_checker=True, **options)
    return HealthyToTheEnd(env) if config.healthy_reward_on_termination else env
