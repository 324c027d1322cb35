"""Dropout after every nonlinearity."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from agents import layers
from agents.config import NetworkConfig
from agents.interventions.base import Intervention


@dataclass(eq=False)
class Dropout(Intervention):
    """Dropout (Srivastava et al. 2014) after every nonlinearity, in the update's forward pass alone; acting, probing,
    bootstrapping and the target network use all features. In RL it is a negative control of the literature.

    The masks have a random generator of their own. What others see of a layer's values is what comes before them.
    """

    name = "dropout"
    needs_hidden_layers = True

    rate: float = 0.1
    """Chance of a feature to be dropped at a gradient step, in [0, 1); the others are divided by 1 - rate. 0: off."""

    def __post_init__(self) -> None:
        self.require(0 <= self.rate < 1, "rate", "in [0, 1)")

    def configure(self, network: NetworkConfig) -> NetworkConfig:
        return replace(network, dropout=self.rate)

    def attach(self, networks: Mapping[str, nn.Module], generator: torch.Generator) -> None:
        online = networks["online"]
        found = [
            module
            for name, module in online.named_modules()
            if self.within(name) and type(module) is layers.SeededDropout
        ]
        if not self.layers or (self.rate and not found):
            raise ValueError("dropout: no hidden layer in its part of the network was built with it")
        self.generator = torch.Generator(next(online.parameters()).device)
        self.generator.manual_seed(int(torch.randint(2**62, (), generator=generator, device=generator.device)))
        for module in found:
            module.generator = self.generator

    def state_dict(self) -> dict[str, Any]:
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generator.set_state(state["generator"].cpu())
