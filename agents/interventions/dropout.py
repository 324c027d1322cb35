"""Dropout after every nonlinearity."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import nn

from agents import layers
from agents.config import NetworkConfig
from agents.interventions.base import Intervention
from agents.randomness import Generators


@dataclass(eq=False)
class Dropout(Intervention):
    """Dropout (Srivastava et al. 2014) after every nonlinearity, in the update's forward pass alone; acting, probing,
    bootstrapping and the target network use all features. In RL it is a negative control of the literature.

    The masks have a stream of their own among the run's generators. What others see of a layer's values is what comes
    before them.
    """

    name = "dropout"
    needs_hidden_layers = True

    rate: float = 0.1
    """Chance of a feature to be dropped at a gradient step, in [0, 1); the others are divided by 1 - rate. 0: off."""

    def __post_init__(self) -> None:
        self.require(0 <= self.rate < 1, "rate", "in [0, 1)")

    def configure(self, network: NetworkConfig) -> NetworkConfig:
        return replace(network, dropout=self.rate)

    def attach(self, networks: Mapping[str, nn.Module], generators: Generators) -> None:
        online = networks["online"]
        found = [
            module
            for name, module in online.named_modules()
            if self.within(name) and type(module) is layers.SeededDropout
        ]
        if not self.layers or (self.rate and not found):
            raise ValueError("dropout: no hidden layer in its part of the network was built with it")
        masks = generators.torch("dropout", next(online.parameters()).device)
        for module in found:
            module.generator = masks
