"""Weights rounded to bf16 ahead of the passes that use them."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn

from agents.layers import SpectralScale
from agents.optimization import autocast


def without_gradient(network: nn.Module, device: torch.device, precision: str) -> AbstractContextManager:
    """`autocast` for a pass of `network` that takes no gradient.

    Autocast rounds the same weights anew at each of these, which on a CPU takes longer than a pass of a few
    observations. Here they are rounded when they have moved, and the network keeps what they were rounded to.
    """
    if precision != "bf16" or device.type != "cpu":  # in a graph they would be rounded at each replay anyway
        return autocast(device, precision)
    if "rounded" not in vars(network):
        network.rounded = RoundedWeights(network)
    return network.rounded


def ahead_of(network: nn.Module | None) -> "RoundedWeights | None":
    """What the weights of `network` are rounded to ahead of its passes; None where they are rounded in them."""
    rounded = getattr(network, "rounded", None)
    return rounded if isinstance(rounded, RoundedWeights) else None


@contextmanager
def rounding_inside(*networks: nn.Module | None) -> Iterator[None]:
    """Within, `without_gradient` of these rounds weights as part of the pass."""
    found = [(network, ahead_of(network)) for network in networks]
    kept = [(network, rounded) for network, rounded in found if rounded is not None]
    for network, rounded in kept:
        network.rounded = rounded.autocast
    try:
        yield
    finally:
        for network, rounded in kept:
            network.rounded = rounded


class RoundedWeights:
    """Within there is autocast to bf16, and Linear layers and convolutions of `network` hold their weights as it would
    round them."""

    def __init__(self, network: nn.Module) -> None:
        # of what is divided by its norm, the norm of the float32 weights is meant
        measured = {module.layer for module in network.modules() if isinstance(module, SpectralScale)}
        layers = [module for module in network.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
        self._places = [
            (layer._parameters, name)
            for layer in layers
            if layer not in measured
            for name in ("weight", "bias")
            if layer._parameters[name] is not None
        ]
        self._weights = [holder[name] for holder, name in self._places]
        with torch.inference_mode(False):
            self._rounded = [torch.empty_like(weight, dtype=torch.bfloat16) for weight in self._weights]
        self._versions: list[int] = []
        self.autocast = autocast(self._weights[0].device, "bf16")

    def in_place_of(self, named: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`named`, with what the weights among them are rounded to in their place."""
        rounded = {id(weight): one for weight, one in zip(self._weights, self._rounded, strict=True)}
        return {name: rounded.get(id(tensor), tensor) for name, tensor in named.items()}

    @torch.no_grad()
    def follow(self) -> None:
        """Round anew what has moved."""
        versions = [weight._version for weight in self._weights]
        if versions != self._versions:
            torch._foreach_copy_(self._rounded, self._weights)
            self._versions = versions

    def __enter__(self) -> None:
        self.follow()
        self.autocast.__enter__()
        for (holder, name), rounded in zip(self._places, self._rounded, strict=True):
            holder[name] = rounded

    def __exit__(self, *error: object) -> None:
        for (holder, name), weight in zip(self._places, self._weights, strict=True):
            holder[name] = weight
        self.autocast.__exit__(*error)
