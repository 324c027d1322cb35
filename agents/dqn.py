"""DQN: a scalar target, learned by regression or, with the categorical losses, by classification (Farebrother24)."""

import torch

from agents.heads import head_for
from agents.policies import QPolicy
from agents.transitions import Spaces
from agents.value_agent import ValueAgent
from agents.value_config import DQNConfig


def policy(config: DQNConfig, spaces: Spaces, device: torch.device, *args) -> QPolicy:
    """A `QPolicy` with the head that `config.loss` names; arguments as its own without the head."""
    return QPolicy(config, head_for(config.loss, config.support, device), spaces, device, *args)


def DQN(config: DQNConfig, *args, **kwargs) -> ValueAgent:
    """A `ValueAgent` that acts by it; arguments as ValueAgent's after the policy."""
    return ValueAgent(config, policy, *args, **kwargs)
