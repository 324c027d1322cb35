"""Stable-Baselines3's networks as modules of their own, which share its weights."""

from __future__ import annotations

import copy

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_flattened_obs_dim
from torch import nn


def view_of(network: nn.Module) -> nn.Module:
    """`network` itself, its modules and parameters shared, without what is no part of it and cannot be deep-copied; it
    takes observations as `encoded` gives them, and each of its modules has one name only: functional_call would swap
    the parameters of a module with two names twice, and put the wrong ones back."""
    view = copy.copy(network)
    for name in ("action_dist", "optimizer"):
        vars(view).pop(name, None)
    view._modules = {}
    for name, module in network._modules.items():
        known = module is not None and module in view._modules.values()
        (vars(view) if known else view._modules)[name] = module
    if isinstance(view.observation_space, (spaces.Discrete, spaces.MultiDiscrete)):
        view.observation_space = spaces.Box(0.0, 1.0, (get_flattened_obs_dim(view.observation_space),), np.float32)
    return view
