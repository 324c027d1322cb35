"""Concatenated ReLUs."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from torch import nn

from agents.config import NetworkConfig
from agents.interventions.base import Intervention
from agents.randomness import Generators


@dataclass(eq=False)
class CReLU(Intervention):
    """concat(relu(x), relu(-x)) as the nonlinearity of every hidden layer (Abbas23), in place of the agent's: of x and
    -x one is always active, so that no unit can die. Unit i is in the columns i and i + n of what comes out.
    """

    name = "crelu"
    needs_hidden_layers = True
    conflicts = frozenset({"activation"})  # there is one nonlinearity after a layer

    match: Literal["features", "parameters"] = "features"
    """features: half the units in every hidden layer, so that as many features come out, which halves the parameters
    (NatureCNN's 1.69 million become .85); parameters: 1/sqrt 2 as many units, rounded, so that there are about as many
    parameters."""

    def configure(self, network: NetworkConfig) -> NetworkConfig:
        return replace(network, doubled="crelu", match=self.match)

    def attach(self, networks: Mapping[str, nn.Module], generators: Generators) -> None:
        if not any(layer.activation == "crelu" for layer in self.layers):
            raise ValueError("crelu: no hidden layer in its part of the network was built with it")
