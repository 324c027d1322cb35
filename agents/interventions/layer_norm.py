"""LayerNorm or RMSNorm before every nonlinearity."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from torch import nn

from agents.config import NetworkConfig
from agents.interventions.base import Intervention
from agents.randomness import Generators


@dataclass(eq=False)
class LayerNorm(Intervention):
    """A norm right before the nonlinearity of every hidden layer, convolutions included (Lyle24). The heads have none.

    The statistics of an image are taken over channels, height and width together, and its gain and bias belong to a
    channel, so that they are the unit's own. Replacing a unit shifts the statistics of the others a little.
    """

    name = "layer_norm"
    needs_hidden_layers = True
    conflicts = frozenset({"batch_norm"})  # there is one norm before a nonlinearity

    affine: bool = True
    """Whether every unit has a gain and a bias (rms: a gain) that are learned; they begin at 1 and 0."""
    kind: Literal["layer", "rms"] = "layer"
    """layer: mean 0 and variance 1 over the units; rms: mean square 1, the mean stays."""

    def configure(self, network: NetworkConfig) -> NetworkConfig:
        return replace(network, norm=self.kind, norm_affine=self.affine)

    def attach(self, networks: Mapping[str, nn.Module], generators: Generators) -> None:
        if not any(layer.norm is not None for layer in self.layers):
            raise ValueError("layer_norm: no hidden layer in its part of the network was built with it")
