"""C51: the return's distribution over fixed atoms (Bellemare et al. 2017)."""

import torch
from torch import Tensor

from agents import losses
from agents.config import C51Config
from agents.value_agent import Target, ValueAgent


class DistributionalObjective:
    """Logits over atoms; cross-entropy to the projected distribution of r + gamma * Z."""

    def __init__(self, config: C51Config, device: torch.device) -> None:
        support = config.support
        self.atoms = support.num_atoms
        self.support = losses.atoms_of(support, device)

    def values(self, outputs: Tensor) -> Tensor:
        return losses.expected_value(outputs, self.support)

    def target(self, rewards: Tensor, discounts: Tensor, next_outputs: Tensor) -> Target:
        p_t = torch.softmax(next_outputs, dim=-1)
        z_t = rewards[:, None] + discounts[:, None] * self.support
        projected = losses.categorical_projection(z_t, p_t, self.support)
        return Target(projected, (z_t * p_t).sum(-1), losses.clipped_share(z_t, p_t, self.support))

    def loss(self, outputs: Tensor, regressand: Tensor) -> Tensor:
        return losses.cross_entropy(outputs, regressand)


def C51(config: C51Config, *args, device: torch.device = torch.device("cpu"), **kwargs) -> ValueAgent:
    """A `ValueAgent` with C51's head, target and loss; arguments as ValueAgent's after the objective."""
    return ValueAgent(config, DistributionalObjective(config, device), *args, device=device, **kwargs)
