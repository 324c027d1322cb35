"""Small DQN and PPO models of Stable-Baselines3, in worlds of noise, and interventions that listen."""

import copy
import random
from dataclasses import dataclass
from typing import ClassVar

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import configure
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from agents.interventions.base import Intervention
from agents.interventions.sb3 import InterventionCallback
from agents.when import When

VECTOR = spaces.Box(-2.0, 2.0, (4,), np.float32)
IMAGE = spaces.Box(0, 255, (36, 36, 1), np.uint8)
TWO = spaces.Box(-1.0, 1.0, (2,), np.float32)
CNN = {"features_extractor_kwargs": {"features_dim": 16}, "net_arch": []}


class Noise(gym.Env):
    """Independent observations and rewards; episodes of 11 steps; after every `task_steps` steps another task."""

    def __init__(self, observations=VECTOR, actions=None, task_steps=None):
        self.observation_space = copy.deepcopy(observations)
        self.action_space = copy.deepcopy(actions or spaces.Discrete(3))
        self.observation_space.seed(1)
        self.action_space.seed(2)
        self.count, self.task_steps = 0, task_steps

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self._observe(), {}

    def step(self, action):
        self.count += 1
        info = {} if self.task_steps is None else {"task_index": self.count // self.task_steps}
        return self._observe(), float(self.np_random.normal()), self.count % 11 == 0, False, info

    def _observe(self):
        space = self.observation_space
        if isinstance(space, spaces.Discrete):
            return int(self.np_random.integers(space.n))
        return self.np_random.uniform(space.low, space.high).astype(space.dtype)


def worlds(envs=1, **world):
    return make_vec_env(lambda: Noise(**world), envs, seed=5)


def dqn(world=None, envs=1, policy="MlpPolicy", **settings):
    """30 gradient steps in 100 steps."""
    given = {"learning_starts": 40, "batch_size": 16, "buffer_size": 90, "train_freq": 4, "gradient_steps": 2}
    given |= {"target_update_interval": 8, "policy_kwargs": {"net_arch": [12, 10]}, "seed": 3, "device": "cpu"}
    return DQN(policy, worlds(envs, **(world or {})), **copy.deepcopy(given | settings))


def ppo(world=None, envs=1, policy="MlpPolicy", **settings):
    """12 gradient steps in each 40 steps."""
    given = {"n_steps": 40 // envs, "batch_size": 10, "n_epochs": 3, "seed": 3, "device": "cpu"}
    given |= {"policy_kwargs": {"net_arch": [12, 10]}}
    return PPO(policy, worlds(envs, **(world or {})), **copy.deepcopy(given | settings))


MODELS = {
    "dqn": dqn,
    "dqn, two envs": lambda: dqn(envs=2),
    "dqn, discrete observations": lambda: dqn({"observations": spaces.Discrete(5)}),
    "dqn, images": lambda: dqn({"observations": IMAGE}, policy="CnnPolicy", policy_kwargs=CNN),
    "ppo": ppo,
    "ppo, continuous, two envs": lambda: ppo({"actions": TWO}, envs=2),
    "ppo, discrete observations": lambda: ppo({"observations": spaces.Discrete(5)}),
    "ppo, images, shared": lambda: ppo({"observations": IMAGE}, policy="CnnPolicy", policy_kwargs=CNN, n_epochs=1),
    "ppo, images, apart": lambda: ppo(
        {"observations": IMAGE},
        policy="CnnPolicy",
        policy_kwargs={**CNN, "net_arch": [8], "share_features_extractor": False},
        n_epochs=1,
    ),
}


@dataclass(eq=False)
class Listener(Intervention):
    """Tells `heard(event, listener, ...)` of each gradient step, penalty and replacement; changes nothing."""

    name = "listener"
    captures = frozenset({"hidden", "preactivations"})
    when: ClassVar[When] = When("every gradient step")
    heard: object = None
    """Called with the event's name and the hook's arguments."""

    def attach(self, networks, generators):
        self.networks = networks

    def penalty(self, forward):
        return self.heard("penalty", self, forward)

    def every_step(self, surgery, forward, drawn):
        self.forward = forward

    def intervene(self, surgery, clock):
        self.heard("step", self, surgery, self.forward, clock)

    def on_replaced(self, layer, units):
        if "replaced" in self.heard.do:
            self.heard("replaced", self, layer, units)


@dataclass(eq=False)
class AtSyncs(Intervention):
    """Tells of target syncs."""

    name = "at_syncs"
    when: ClassVar[When] = When("at target syncs")
    heard: object = None

    def attach(self, networks, generators):
        self.networks = networks

    def intervene(self, surgery, clock):
        self.heard("sync", self, surgery)


@dataclass(eq=False)
class AtTasks(Intervention):
    """Tells of task changes."""

    name = "at_tasks"
    when: ClassVar[When] = When("at task changes")
    heard: object = None

    def intervene(self, surgery, clock):
        self.heard("task", self, clock)


class Each(BaseCallback):
    """Calls a function of the model after every step in the world."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def _on_step(self):
        self.function(self.model)
        return True


class Heard:
    """A record of events, and what to do at each."""

    def __init__(self, **do):
        self.events, self.do = [], do

    def __call__(self, event, *arguments):
        if event == "step":
            *arguments, clock = arguments
            arguments.append(clock.gradient_steps)
        self.events.append(event if event != "step" else (event, clock.gradient_steps, clock.steps))
        return self.do[event](*arguments) if event in self.do else None

    def steps(self):
        return [event[1] for event in self.events if event[0] == "step"]


def whole_state(model):
    """Everything that a run without the callback would have: weights, optimizer, data, random states."""
    buffer = model.replay_buffer if isinstance(model, DQN) else model.rollout_buffer
    return {
        "policy": model.policy.state_dict(),
        "optimizer": model.policy.optimizer.state_dict(),
        "data": [buffer.observations, buffer.actions, buffer.rewards],
        "random": [torch.get_rng_state(), np.random.get_state()[1], torch.tensor(hash(random.getstate()))],
        "steps": [model.num_timesteps, model._n_updates],
        "space": repr(model.observation_space.np_random.bit_generator.state),
    }


def same(left, right):
    """Equal to the bit, at every depth."""
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    return np.array_equal(left, right) if isinstance(left, np.ndarray) else left == right


def learnt(model, chosen=None, steps=80, **settings):
    """The model after `steps`, with a callback unless `chosen` is None."""
    callback = None if chosen is None else InterventionCallback(chosen, **settings)
    model.observation_space.seed(9)  # SB3's NatureCNN has drawn from it
    model.learn(steps, callback=callback)
    return model if callback is None else (model, callback)


def start(callback, model):
    """As `learn` does."""
    model.set_logger(configure(None, []))
    callback.init_callback(model)
    callback.on_training_start({}, {})


def pull(listener, forward):
    """A penalty on what the layers hold and on a weight."""
    pres = sum(pre.square().mean() for pre, _ in forward.captured.values())
    return 50 * pres + 3 * next(forward.network.parameters()).sum()


class Normed(BaseFeaturesExtractor):
    def __init__(self, observation_space, width=16):
        super().__init__(observation_space, width)
        first, second = nn.Linear(4, width), nn.Linear(width, width)
        ends = (nn.LayerNorm(width), nn.ReLU(inplace=True))
        self.layers = nn.Sequential(first, *ends, second, nn.LayerNorm(width), nn.ReLU(inplace=True))

    def forward(self, observations):
        return self.layers(observations)


NORMED = {"policy_kwargs": {"features_extractor_class": Normed, "net_arch": []}}
