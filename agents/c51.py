"""C51: the return's distribution over fixed atoms (Bellemare et al. 2017)."""

import torch

from agents.heads import DistributionalHead
from agents.policies import QPolicy
from agents.transitions import Spaces
from agents.value_agent import ValueAgent
from agents.value_config import C51Config


def policy(config: C51Config, spaces: Spaces, device: torch.device, *args) -> QPolicy:
    """A `QPolicy` with a distributional head; arguments as its own without the head."""
    return QPolicy(config, DistributionalHead(config.support, device), spaces, device, *args)


def C51(config: C51Config, *args, **kwargs) -> ValueAgent:
    """A `ValueAgent` that acts by it; arguments as ValueAgent's after the policy."""
    return ValueAgent(config, policy, *args, **kwargs)
