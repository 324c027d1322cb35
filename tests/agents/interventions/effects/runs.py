"""A small agent of every kind, trained for 50 gradient steps, and one that takes over from another."""

import copy
import functools
import io

import numpy as np
import torch

from agents import C51Config, DQNConfig, PPOConfig, build_agent
from agents.config import NetworkConfig
from agents.randomness import Generators
from agents.transitions import Spaces
from tests.agents.helpers import CONTINUOUS, CPU, VECTOR, NoiseWorld, drive

STEPS = 50
SYNC = {"value": 15, "ppo": 10}  # gradient steps between target copies, and of an update phase
CHECKED = (1, 2, 14, 16, 26, 31, 49, 50)  # gradient steps whose activations are kept
IMAGE = Spaces((1, 13, 13), np.dtype(np.uint8), "discrete", 3)

VALUE = {"learning_rate": 1e-3, "learning_starts": 16, "buffer_size": 300, "batch_size": 8, "replay_ratio": 1.0}
VALUE |= {"target_period": SYNC["value"]}
ON_POLICY = {"learning_rate": 1e-3, "rollout_steps": 8, "num_minibatches": 2, "update_epochs": 5}
MLP = {law: NetworkConfig(width=16, depth=2, initializer=law) for law in ("torch", "orthogonal", "lecun_uniform")}
CNN = {law: NetworkConfig(width=16, depth=1, initializer=law, torso="small_cnn") for law in ("torch", "orthogonal")}
KINDS = {
    "dqn": (DQNConfig(network=MLP["torch"], **VALUE), VECTOR),
    "c51": (C51Config(network=MLP["torch"], **VALUE), VECTOR),
    "ppo": (PPOConfig(network=MLP["orthogonal"], **ON_POLICY), VECTOR),
    "ppo with two torsos": (PPOConfig(network=MLP["lecun_uniform"], shared_torso=False, **ON_POLICY), CONTINUOUS),
}
ON_IMAGES = {
    "dqn on images": (DQNConfig(network=CNN["torch"], **VALUE), IMAGE),
    "c51 on images": (C51Config(network=CNN["torch"], **VALUE), IMAGE),
    "ppo on images": (PPOConfig(network=CNN["orthogonal"], **ON_POLICY), IMAGE),
}
AGENTS = KINDS | ON_IMAGES


def make(kind, interventions, generators=None):
    config, spaces = AGENTS[kind]
    return build_agent(config, spaces, 2, generators or Generators(0), CPU, interventions=interventions)


@functools.cache
def _filled_replay(kind):
    return drive(make(kind, ()), NoiseWorld(AGENTS[kind][1], 2), 24, learn=False).replay


def prepare(kind, agent):
    """Give a new agent something to learn from; returns its world (None where a filled replay is enough)."""
    if kind.startswith("ppo"):
        return NoiseWorld(AGENTS[kind][1], 2)
    agent.replay = copy.deepcopy(_filled_replay(kind))
    return None


def learn(agent, world, steps=STEPS):
    """Let the agent take `steps` gradient steps (whole update phases)."""
    wanted = agent.clock.gradient_steps + steps
    while agent.clock.gradient_steps < wanted:
        if world is None:
            agent.clock.steps += agent.num_envs
            agent.update()
        else:
            drive(agent, world, 1)
    return agent


def begin(kind, interventions, seed=0):
    """An agent and its world."""
    agent = make(kind, interventions, Generators(seed))
    return agent, prepare(kind, agent)


def take_over(kind, interventions, first):
    """A second agent, drawn from another seed, with the state of the first one and of its generators out of a file;
    what is no part of these (replay or rollout, world) goes on as in the first."""
    agent, world = first
    file = io.BytesIO()
    torch.save([agent.state_dict(), agent.generators.state_dict()], file)
    file.seek(0)
    second, _ = begin(kind, interventions, seed=1)
    state, streams = torch.load(file, weights_only=True)
    second.load_state_dict(state)
    second.generators.load_state_dict(streams)
    for memory in ("replay", "rollout"):
        if hasattr(agent, memory):
            setattr(second, memory, copy.deepcopy(getattr(agent, memory)))
    return second, copy.deepcopy(world)
