"""DQN: a scalar target, learned by regression or, with the categorical losses, by classification (Farebrother24)."""

from functools import partial

import torch
from torch import Tensor

from agents import losses
from agents.config import DQNConfig
from agents.value_agent import Objective, Target, ValueAgent


class RegressionObjective:
    """One output an action; Huber or squared error to r + gamma * max_a q."""

    atoms = 1

    def __init__(self, loss: str) -> None:
        self.loss = {"huber": losses.huber, "mse": losses.squared_error}[loss]

    def values(self, outputs: Tensor) -> Tensor:
        return outputs

    def target(self, rewards: Tensor, discounts: Tensor, next_outputs: Tensor) -> Target:
        values = losses.td_target(rewards, discounts, next_outputs)
        return Target(values, values, clipped_share=None)


class CategoricalScalarObjective:
    """Logits over atoms; cross-entropy to the scalar target spread over them (two-hot or HL-Gauss)."""

    def __init__(self, config: DQNConfig, device: torch.device) -> None:
        support = config.support
        self.atoms = support.num_atoms
        self.support, self.ends = losses.atoms_of(support, device), support.support_ends
        gaussian = partial(losses.hl_gauss, sigma_bins=support.hl_gauss_sigma, ends=self.ends)
        self.spread = {"two_hot": losses.two_hot, "hl_gauss": gaussian}[config.loss]

    def values(self, outputs: Tensor) -> Tensor:
        return losses.expected_value(outputs, self.support)

    def target(self, rewards: Tensor, discounts: Tensor, next_outputs: Tensor) -> Target:
        values = losses.td_target(rewards, discounts, self.values(next_outputs))
        clipped = losses.clipped_share(values[:, None], torch.ones_like(values)[:, None], self.support, self.ends)
        return Target(self.spread(values, self.support), values, clipped)

    def loss(self, outputs: Tensor, regressand: Tensor) -> Tensor:
        return losses.cross_entropy(outputs, regressand)


def dqn_objective(config: DQNConfig, device: torch.device) -> Objective:
    """The objective that `config.loss` names."""
    if config.loss in ("huber", "mse"):
        return RegressionObjective(config.loss)
    return CategoricalScalarObjective(config, device)


def DQN(config: DQNConfig, *args, device: torch.device = torch.device("cpu"), **kwargs) -> ValueAgent:
    """A `ValueAgent` with DQN's head, target and loss; arguments as ValueAgent's after the objective."""
    return ValueAgent(config, dqn_objective(config, device), *args, device=device, **kwargs)
