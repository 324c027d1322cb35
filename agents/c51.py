"""C51: the return's distribution over fixed atoms (Bellemare et al. 2017)."""

import torch

from agents.heads import DistributionalHead
from agents.kinds import C51Config
from agents.value_agent import ValueAgent


def C51(config: C51Config, *args, device: torch.device = torch.device("cpu"), **kwargs) -> ValueAgent:
    """A `ValueAgent` with a distributional head; arguments as ValueAgent's after the head."""
    return ValueAgent(config, DistributionalHead(config.support, device), *args, device=device, **kwargs)
