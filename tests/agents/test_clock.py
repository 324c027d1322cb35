"""One clock an agent: who moves it, what is kept of it, and the one of a further learner."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from agents import C51Config, DQNConfig, PPOConfig, build_agent
from agents.clock import Clock
from agents.randomness import Generators
from agents.transitions import Transitions
from tests.agents.helpers import CPU, SMALL, VECTOR, build

CONFIGS = {
    "dqn": DQNConfig(network=SMALL, buffer_size=400),
    "c51": C51Config(network=SMALL, buffer_size=400),
    "ppo": PPOConfig(network=SMALL),
}
KINDS = sorted(CONFIGS)


def tick(agent, task, next_tasks):
    """One step of both environments, which are in `task` and then in `next_tasks`."""
    observations = np.zeros((2, *VECTOR.observation_shape), np.float32)
    actions, nothing = agent.act(observations), np.zeros(2, bool)
    ends = (np.zeros(2, np.float32), nothing, nothing, nothing)
    agent.observe(Transitions(observations, actions, *ends, observations, None, np.array(task), np.array(next_tasks)))


def loss(outputs):
    return sum(o.square().sum() for o in (outputs if isinstance(outputs, tuple) else (outputs,)))


@pytest.mark.parametrize("kind", KINDS)
def test_an_agent_moves_the_clock_it_is_given(kind):
    clock = Clock()
    agent = build_agent(CONFIGS[kind], VECTOR, 2, Generators(0), CPU, clock=clock)
    assert agent.clock is agent.learner.clock is agent.learner.optimization.clock is clock
    tick(agent, [0, 0], [0, 0])
    assert clock == Clock(steps=2, task=0)
    tick(agent, [0, 0], [1, 0])  # the hindmost is in the old task still
    assert clock == Clock(steps=4, task=0)
    tick(agent, [1, 0], [1, 1])
    agent.on_task_change()
    assert clock == Clock(steps=6, task=1, task_began=6)
    learner, batch = agent.learner, torch.zeros(4, 5)
    learner.update(lambda batch: learner.step(batch, lambda outputs, _: (loss(outputs), None), None), batch)
    assert clock == Clock(steps=6, gradient_steps=1, task=1, task_began=6)


@pytest.mark.parametrize("kind", KINDS)
def test_an_agents_state_has_its_clock(kind):
    first, second = build(CONFIGS[kind]), build(CONFIGS[kind])
    tick(first, [0, 0], [3, 3])
    first.on_task_change()
    second.load_state_dict(first.state_dict())
    assert second.clock == first.clock == Clock(steps=2, task=3, task_began=2)
    assert second.clock is second.learner.clock is not first.clock


def test_a_further_learner_counts_its_own_gradient_steps_alone():
    clock = Clock(steps=10, gradient_steps=4, task=2, task_began=8)
    other = clock.beside()
    other.gradient_steps += 1
    clock.steps, clock.task, clock.task_began = 12, 3, 12
    assert (other.steps, other.gradient_steps, other.task, other.task_began) == (12, 1, 3, 12)
    assert clock.gradient_steps == 4 and other.state_dict() == {"gradient_steps": 1}
    other.load_state_dict({"gradient_steps": 7})
    assert (other.steps, other.gradient_steps, clock.gradient_steps) == (12, 7, 4)


def test_state_goes_on_where_it_was():
    clock, second = Clock(steps=10, gradient_steps=4, task=2, task_began=8), Clock()
    second.load_state_dict(clock.state_dict())
    assert second == clock and Clock().task is None


def test_the_clock_is_torch_free():
    code = "import sys, agents.clock; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
