"""Spectral normalisation of the last hidden layers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn

from agents.config import NetworkConfig
from agents.interventions.base import Forward, Intervention
from agents.interventions.surgery import Surgery
from agents.layers import FROM_SCRATCH, SpectralScale
from agents.randomness import Generators


@dataclass(eq=False)
class SpectralNorm(Intervention):
    """The last hidden layer works with W / sigma, sigma the largest singular value of its weight (Miyato et al. 2018;
    Gogianu et al. 2021: on the layer before the head, always divided, as in their code's defaults).

    sigma is estimated as u^T W v with u and v from one power iteration after every gradient step, and nowhere else;
    gradients flow through it. A convolution's weight is taken as the matrix [filters, everything else]. The biases are
    not divided. u and v travel to the target network at its sync. The weight that others penalise or edit is W. After a
    replacement of units sigma is a little stale for some steps; after a reset of a whole weight it starts anew.
    """

    name = "spectral_norm"
    needs_hidden_layers = True

    hidden_layers: int = 1
    """How many of the last hidden layers (of each torso), >= 1 and no more than there are."""
    relaxed: bool = False
    """Divide by max(1, sigma) in place of sigma (`leave_smaller` in Gogianu et al.'s code)."""

    def __post_init__(self) -> None:
        self.require(self.hidden_layers >= 1, "hidden_layers", ">= 1")

    def configure(self, network: NetworkConfig) -> NetworkConfig:
        return replace(network, spectral_layers=self.hidden_layers, spectral_relaxed=self.relaxed)

    def attach(self, networks: Mapping[str, nn.Module], generators: Generators) -> None:
        self.scales = {name: self._scales(network) for name, network in networks.items()}
        if not self.scales["online"]:
            raise ValueError("spectral_norm: no hidden layer in its part of the network was built with it")

    def _scales(self, network: nn.Module) -> list[SpectralScale]:
        named = network.named_modules()
        return [part for name, part in named if isinstance(part, SpectralScale) and self.within(name)]

    def every_step(self, surgery: Surgery, forward: Forward, drawn: Mapping[str, Tensor]) -> None:
        for scale in self.scales["online"]:
            scale.iterate()

    def on_reset(self, parameters: Sequence[nn.Parameter]) -> None:
        redrawn = set(map(id, parameters))
        for index, scale in enumerate(self.scales["online"]):
            if id(scale.layer.weight) in redrawn:
                for scales in self.scales.values():  # the target's weight may have been redrawn along with it
                    scales[index].iterate(FROM_SCRATCH)
