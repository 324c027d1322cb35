"""Episodes that break off for the sake of resumption: they bootstrap, and no normaliser takes them for ends."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from agents.config import RewardConfig
from agents.ppo_config import PPOConfig
from agents.transitions import Transitions
from agents.value_config import DQNConfig
from tests.agents.helpers import SMALL, build

NOBODY = np.zeros(2, bool)


def state(number):
    """The observation of both environments, told apart by its first entry."""
    return np.full((2, 5), number, np.float32) + np.array([[0], [100]], np.float32)


def step(number, reward=1.0, truncated=NOBODY, final=None, cut=None):
    """From state `number` to the next, or to `final` where one was truncated."""
    reached = None if final is None else state(final)
    ends = np.full(2, reward), NOBODY, truncated, NOBODY
    return Transitions(state(number), np.array([0, 1]), *ends, state(number + 1), reached, cut=cut)


def value_agent(**settings):
    return build(DQNConfig(network=SMALL, buffer_size=40, learning_starts=0, batch_size=4, **settings))


def sampled(agent):
    """(state, reward, discount, next state) of all that can be drawn, as numbers."""
    batch = agent.replay.sample(400, np.random.default_rng(0))
    columns = batch.observations[:, 0], batch.rewards, batch.discounts, batch.next_observations[:, 0]
    return sorted(set(zip(*(column.tolist() for column in columns), strict=True)))


def test_a_replay_that_is_cut_bootstraps_from_what_was_reached():
    agent = value_agent(gamma=0.5)
    agent.observe(step(1))
    agent.observe(step(2, truncated=np.array([True, False]), final=9))  # environment 0 ends by itself
    agent.cut(state(3))  # of environment 0 that is a new episode's first state: nothing of it has been stored
    agent.observe(step(20))
    agent.observe(step(21))
    mine = [(1.0, 1.0, 0.5, 2.0), (2.0, 1.0, 0.5, 9.0), (20.0, 1.0, 0.5, 21.0)]
    other = [(101.0, 1.0, 0.5, 102.0), (102.0, 1.0, 0.5, 103.0), (120.0, 1.0, 0.5, 121.0)]
    assert sampled(agent) == [*mine, *other]


def test_n_step_returns_stop_at_a_cut():
    agent = value_agent(gamma=0.5, n_step=3)
    agent.observe(step(1))
    agent.observe(step(2))
    agent.cut(state(3))
    agent.observe(step(20))
    two = (1.0, 1.5, 0.25, 3.0), (2.0, 1.0, 0.5, 3.0)  # 1 + .5 * 1, and the rest of the way is not gone
    assert sampled(agent) == [*two, (101.0, 1.5, 0.25, 103.0), (102.0, 1.0, 0.5, 103.0)]


def ppo(**settings):
    config = PPOConfig(network=replace(SMALL, initializer="orthogonal"), rollout_steps=4, num_minibatches=2)
    return build(replace(config, **settings))


def value_of(agent, observations):
    with torch.no_grad():
        return agent.policy.forward(agent.network, torch.from_numpy(observations))[1].tolist()


def test_a_rollout_that_is_cut_bootstraps_from_what_was_reached():
    agent = ppo(time_limit="terminal")
    agent.cut(state(0))  # nothing is there to be cut
    agent.act(state(1))
    agent.observe(step(1, truncated=np.array([True, False]), final=9))
    agent.cut(state(2))
    rollout = agent.rollout
    assert rollout.ended[0].tolist() == [True, True]
    assert rollout.terminated[0].tolist() == [True, False]  # the time limit's end is an end, the cut is none
    assert rollout.final_values[0].tolist() == [0.0, value_of(agent, state(2))[1]]


@pytest.mark.parametrize("time_limit", ["bootstrap", "terminal"])
def test_a_transition_that_is_cut_bootstraps_whatever_time_limits_do(time_limit):
    agent = ppo(time_limit=time_limit)
    agent.act(state(1))
    agent.observe(step(1, truncated=np.array([True, True]), final=9, cut=np.array([False, True])))
    assert agent.rollout.ended[0].tolist() == [True, True]
    assert agent.rollout.terminated[0].tolist() == [time_limit == "terminal", False]
    assert agent.rollout.final_values[0, 1].item() == value_of(agent, state(9))[1]


@pytest.mark.parametrize("kind", ["dqn", "ppo"])
def test_the_discounted_return_that_scales_rewards_goes_on_through_a_cut(kind):
    scaled = {"reward": RewardConfig(reward_transform="scale"), "gamma": 0.5}
    agent = value_agent(**scaled) if kind == "dqn" else ppo(**scaled)
    agent.act(state(1))
    agent.observe(step(1, 4.0, truncated=np.array([True, True]), final=9, cut=np.array([False, True])))
    assert agent.transform.returns.tolist() == [0.0, 4.0]
