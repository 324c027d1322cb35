"""DQN: a scalar target, learned by regression or, with the categorical losses, by classification (Farebrother24)."""

import torch

from agents.heads import head_for
from agents.kinds import DQNConfig
from agents.value_agent import ValueAgent


def DQN(config: DQNConfig, *args, device: torch.device = torch.device("cpu"), **kwargs) -> ValueAgent:
    """A `ValueAgent` with the head that `config.loss` names; arguments as ValueAgent's after the head."""
    return ValueAgent(config, head_for(config.loss, config.support, device), *args, device=device, **kwargs)
