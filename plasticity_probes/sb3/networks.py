"""Stable-Baselines3's networks as modules of their own."""

from __future__ import annotations

import copy
from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.preprocessing import get_flattened_obs_dim, preprocess_obs
from torch import Tensor, nn


def preprocessed(model: BaseAlgorithm, observations: Tensor) -> Tensor:
    """As the features extractor takes them [n, ...]: discrete ones as one-hot vectors, images in [0, 1]."""
    space = model.observation_space
    found = preprocess_obs(observations, space, normalize_images=model.policy.normalize_images)
    return found.flatten(1) if isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)) else found


class View(nn.Module):
    """A network of SB3's on preprocessed observations, in SB3's own code.

    Its modules and parameters are shared, and called as there, but by one name each: functional_call would swap the
    parameters of a module with two names twice, and put the wrong ones back. What is no part of a network and cannot be
    deep-copied is left behind.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        own = copy.copy(network)
        for name in ("action_dist", "optimizer"):
            vars(own).pop(name, None)
        self._parameters.update(network._parameters)
        for name, module in network._modules.items():
            known = module is not None and module in self._modules.values()
            (vars(own) if known else self._modules)[name] = module
        own._parameters, own._modules, space = self._parameters, self._modules, network.observation_space
        one_hot = isinstance(space, (spaces.Discrete, spaces.MultiDiscrete))
        shape = (get_flattened_obs_dim(space),) if one_hot else space.shape
        own.observation_space, own.normalize_images = spaces.Box(-torch.inf, torch.inf, shape), False
        vars(self)["own"] = own  # not as a module of this one: it has the same

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one preprocessed observation."""
        return self.own.observation_space.shape

    def forward(self, *inputs: Tensor) -> Any:
        """What `run` gives."""
        return self.run(*inputs)

    def run(self, observations: Tensor) -> Any:
        """The network's own forward pass, without hooks that somebody may have put on it as a whole."""
        return self.own.forward(observations)


class QView(View):
    """DQN's `q_net`; forward(observations) -> Q-values [batch, actions]."""

    @staticmethod
    def part_of(name: str) -> str:
        """encoder or critic, for the name of a parameter or module."""
        return "encoder" if name.startswith("features_extractor") else "critic"


class PolicyView(View):
    """PPO's and A2C's policy; forward(observations) -> what its distribution is made of [batch, ...], and values
    [batch, 1]."""

    def part_of(self, name: str) -> str:
        """encoder, actor or critic, for the name of a parameter or module."""
        if self.own.share_features_extractor and name.startswith("features_extractor"):
            return "encoder"
        return "critic" if name.startswith(("vf_", "mlp_extractor.value_net", "value_net")) else "actor"

    def run(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        """The forward pass as SB3's update takes it, without the distribution."""
        features = self.own.extract_features(observations)
        of_actor, of_critic = (features, features) if self.own.share_features_extractor else features
        policy = self.action_net(self.mlp_extractor.forward_actor(of_actor))
        return policy, self.value_net(self.mlp_extractor.forward_critic(of_critic))


class ActorView(View):
    """SAC's actor; forward(observations) -> mean and log std [batch, dimensions]. TD3's and DDPG's: (actions,)."""

    def run(self, observations: Tensor) -> tuple[Tensor, ...]:
        """Before squashing and noise."""
        if hasattr(self.own, "get_action_dist_params"):
            return self.own.get_action_dist_params(observations)[:2]
        return (self.own.forward(observations),)


class CriticView(View):
    """All Q-networks of SAC, TD3 or DDPG; forward(observations, actions) -> Q-values [batch, networks]."""

    def run(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Side by side."""
        return torch.cat(self.own.forward(observations, actions), 1)
