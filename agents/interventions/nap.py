"""Normalize-and-Project (Lyle et al. 2024, arXiv 2407.01800): norms before nonlinearities, weights of constant norm."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from agents.config import NetworkConfig
from agents.interventions.base import Forward, Intervention
from agents.interventions.surgery import Surgery
from agents.randomness import Generators


@dataclass(eq=False)
class NaP(Intervention):
    """Every hidden layer's weight and bias are scaled by one factor after each gradient step, so that the weight has
    the norm it had at the start (arXiv 2407.01800). A norm follows each of them, so the function stays as
    it was, up to the norm's epsilon, while the effective learning rate no longer falls with a growing weight.

    Where the torso has no norm it gets LayerNorm. The norms' own gains and biases and the output layers are left alone.
    Moments are kept. The norm to return to is that of the weight at the start, also after somebody replaced units or
    redrew the layer: their new weights are scaled along at the end of the next gradient step.
    """

    name = "nap"
    needs_hidden_layers = True
    is_surgery = True
    # its divisor follows the weight's scale but not the bias's, so that one factor for both changes the function
    conflicts: ClassVar[frozenset[str]] = frozenset({"spectral_norm"})

    def configure(self, network: NetworkConfig) -> NetworkConfig:
        """LayerNorm before every nonlinearity, unless another norm is there."""
        return dataclasses.replace(network, norm="layer") if network.norm == "none" else network

    def attach(self, networks: Mapping[str, nn.Module], generators: Generators) -> None:
        """Remember the weights' norms. ValueError: there is no hidden layer in its part, or one has no norm."""
        if not self.layers:
            raise ValueError(f"{self.name}: there is no hidden layer in only = {self.only!r}")
        for layer in self.layers:
            if layer.norm is None:
                raise ValueError(f"{self.name}: '{layer.name}' has no norm before its nonlinearity; build it with one")
            if layer.producer._parameters.get("weight") is None:
                raise ValueError(f"{self.name}: the weight of '{layer.name}' is computed from others")
        self.norms = [_norm([layer.producer.weight])[0] for layer in self.layers]

    def every_step(self, surgery: Surgery, forward: Forward, drawn: Mapping[str, Tensor]) -> None:
        """Scale every layer back."""
        chosen = [n for n, layer in enumerate(self.layers) if layer.producer.weight.requires_grad]
        layers = [self.layers[n] for n in chosen]
        if not layers:
            return
        now = _norm([layer.producer.weight for layer in layers])
        factors = torch._foreach_div([self.norms[n] for n in chosen], torch._foreach_clamp_min(now, 1e-30))
        scales: dict[Tensor, Tensor] = {}
        for layer, factor in zip(layers, factors, strict=True):
            scales[layer.producer.weight] = factor
            if layer.producer.bias is not None:
                scales[layer.producer.bias] = factor
            # what a batch norm remembers of the layer's output has to follow, or its function would change
            if getattr(layer.norm, "running_mean", None) is not None:
                scales[layer.norm.running_mean], scales[layer.norm.running_var] = factor, factor.square()
        surgery.project(scales, lambda tensor: tensor * scales[tensor])

    def state_dict(self) -> dict[str, Any]:
        """The norms to return to, by layer."""
        return {layer.name: norm.clone() for layer, norm in zip(self.layers, self.norms, strict=True)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for layer, norm in zip(self.layers, self.norms, strict=True):
            norm.copy_(state[layer.name])


@torch.no_grad()
def _norm(weights: Sequence[Tensor]) -> list[Tensor]:
    # by rows first: one float32 sum over a million squares is off by more than the norm drifts in many steps
    return list(torch._foreach_norm([torch.linalg.vector_norm(weight.flatten(1), dim=1) for weight in weights]))
