"""Small spaces, agents and made-up worlds that the tests of agents/ share."""

import copy
import random

import numpy as np
import pytest
import torch

from agents import build_agent
from agents.config import NetworkConfig
from agents.randomness import Generators
from agents.transitions import Spaces, Transitions

CPU = torch.device("cpu")
SMALL = NetworkConfig(width=16, depth=2)
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

VECTOR = Spaces((5,), np.dtype(np.float32), "discrete", 3)
STACK = Spaces((4, 6, 6), np.dtype(np.uint8), "discrete", 3, frame_stack=4)
ATARI = Spaces((4, 84, 84), np.dtype(np.uint8), "discrete", 6, frame_stack=4)
SMALL_IMAGE = Spaces((4, 36, 36), np.dtype(np.uint8), "discrete", 3, frame_stack=4)
BOUND = np.array([0.5, 1.0], np.float32)
CONTINUOUS = Spaces((5,), np.dtype(np.float32), "continuous", 2, -BOUND, BOUND)


def build(config, spaces=VECTOR, num_envs=2, seed=0, device=CPU, interventions=(), precision="fp32"):
    return build_agent(config, spaces, num_envs, Generators(seed), device, precision, interventions=interventions)


class NoiseWorld:
    """Random observations and rewards in E environments; episodes end and lives are lost at random."""

    def __init__(self, spaces, num_envs, seed=0, terminates=0.1, truncates=0.1, loses_life=0.1):
        self.spaces, self.num_envs = spaces, num_envs
        self.rng = np.random.default_rng(seed)
        self.chances = (terminates, truncates, loses_life)
        self.observations = self._fresh()

    def _draw(self, shape):
        if self.spaces.is_image:
            return self.rng.integers(0, 256, shape, np.uint8)
        return self.rng.standard_normal(shape).astype(np.float32)

    def _fresh(self):
        shape = (self.num_envs, *self.spaces.observation_shape)
        if self.spaces.frame_stack is None:
            return self._draw(shape)
        return np.repeat(self._draw((self.num_envs, 1, *shape[2:])), shape[1], axis=1)

    def _next(self):
        if self.spaces.frame_stack is None:
            return self._fresh()
        frame = self._draw((self.num_envs, 1, *self.observations.shape[2:]))
        return np.concatenate([self.observations[:, 1:], frame], axis=1)

    def step(self, actions):
        terminated, truncated, life_lost = (self.rng.random(self.num_envs) < chance for chance in self.chances)
        truncated &= ~terminated
        ended = terminated | truncated
        reached, fresh = self._next(), self._fresh()
        columns = ended.reshape(-1, *[1] * (reached.ndim - 1))
        after = np.where(columns, fresh, reached)
        final = reached if ended.any() else None
        rewards = self.rng.standard_normal(self.num_envs)
        before, self.observations = self.observations, after
        return Transitions(before, actions, rewards, terminated, truncated, life_lost & ~ended, after, final)


def gradient_step(optimization, loss, **watched):
    """One, as a learner takes it; the gradient's norm."""
    optimization.backward(loss)
    norm = optimization.step(**watched, loss=loss)
    optimization.count()
    return norm


def drive(agent, world, ticks, learn=True):
    """Act, observe and (where due) learn for `ticks` steps of every environment."""
    for _ in range(ticks):
        agent.observe(world.step(agent.act(world.observations)))
        while learn and agent.update_due():
            agent.update()
    return agent


def snapshot(module_or_state):
    """A deep copy of a module's weights or of a state dict."""
    state = module_or_state.state_dict() if hasattr(module_or_state, "state_dict") else module_or_state
    return copy.deepcopy(state)


def same_tree(first, second):
    """Whether two nests of dicts, lists and tensors are equal bit for bit."""
    if isinstance(first, torch.Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same_tree(first[key], second[key]) for key in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(same_tree, first, second))
    return first == second


def global_random_states():
    """Every global random generator's state, as comparable values."""
    kind, keys, *rest = np.random.get_state()
    return torch.get_rng_state().tolist(), (kind, keys.tolist(), *rest), random.getstate()
