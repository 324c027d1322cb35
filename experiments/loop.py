"""The loop: worlds and agents meet here, and everybody who watches reads its events."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from gymnasium.vector import VectorEnv
from torch import Tensor

from agents.ppo import PPO
from agents.transitions import Transitions
from agents.value_agent import ValueAgent


class Episode(NamedTuple):
    """A whole game, as its players count it: unclipped, across lives."""

    environment: int
    episodic_return: float
    length: int
    """Steps."""


class Tick(NamedTuple):
    """Every environment has advanced by one step."""

    step: int
    """Steps so far, over all environments."""
    episodes: tuple[Episode, ...]


class Update(NamedTuple):
    """The agent has learned."""

    step: int
    metrics: dict[str, Tensor]
    """0-d tensors on the training device."""


def finished_episodes(infos: dict) -> tuple[Episode, ...]:
    """The games that ended in this step, from the world's `episode` statistics."""
    if "episode" not in infos:
        return ()
    statistics, ended = infos["episode"], np.flatnonzero(infos["_episode"])
    return tuple(Episode(int(i), float(statistics["r"][i]), int(statistics["l"][i])) for i in ended)


def training(agent: ValueAgent | PPO, world: VectorEnv, steps: int) -> Iterator[Tick | Update]:
    """Act, observe, learn for `steps` steps over all environments; yields what happened."""
    observations, _ = world.reset()
    nobody = np.zeros(world.num_envs, bool)
    step = 0
    while step < steps:
        actions = agent.act(observations)
        next_observations, rewards, terminated, truncated, infos = world.step(actions)
        life_lost, reached = infos.get("life_lost", nobody), infos.get("final_obs")
        agent.observe(
            Transitions(observations, actions, rewards, terminated, truncated, life_lost, next_observations, reached)
        )
        observations = next_observations
        step += world.num_envs
        yield Tick(step, finished_episodes(infos))
        while agent.update_due():
            yield Update(step, agent.update())
