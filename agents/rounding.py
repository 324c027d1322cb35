"""Weights rounded to bf16 ahead of the passes that use them."""

from contextlib import AbstractContextManager

import torch
from torch import nn

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
        self._autocast = autocast(self._weights[0].device, "bf16")

    @torch.no_grad()
    def __enter__(self) -> None:
        versions = [weight._version for weight in self._weights]
        if versions != self._versions:
            torch._foreach_copy_(self._rounded, self._weights)
            self._versions = versions
        self._autocast.__enter__()
        for (holder, name), rounded in zip(self._places, self._rounded, strict=True):
            holder[name] = rounded

    def __exit__(self, *error: object) -> None:
        for (holder, name), weight in zip(self._places, self._weights, strict=True):
            holder[name] = weight
        self._autocast.__exit__(*error)
