"""Parseval regularisation: hidden layers' weights are kept near scaled orthogonality (Chung et al. 2024)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor, nn

from agents.interventions.base import Forward, Intervention
from agents.randomness import Generators
from plasticity_probes.units import CONVOLUTIONS


@dataclass(eq=False)
class Parseval(Intervention):
    """Adds rate * sum over hidden layers of ||W W^T - scale * I||_F^2 to the loss (arXiv 2412.07224), where the rows of
    W are the units' incoming weights, flattened for a convolution (the paper has dense layers alone).

    The output layers are left out, as in the paper. A layer with more units than inputs cannot have orthogonal rows:
    its penalty stays at or above scale^2 * (units - inputs) and pulls it towards orthogonal columns of that length.
    The paper also adds a diagonal layer or a learned scale of the input in some worlds; these are not built here.
    Costs three products of the size of W W^T for each layer and gradient step.
    """

    name = "parseval"
    needs_hidden_layers = True

    rate: float = 1e-3
    """Coefficient; >= 0. The authors' code: 1e-3 in Gridworld and MetaWorld, 1e-4 in LunarLander and Quadruped, with
    64 tanh units a layer; the sum grows with the square of the width."""
    scale: float = 2.0
    """Squared length that each unit's incoming weights are pulled to; > 0. The authors' code: the square of the gain of
    the orthogonal initialiser, which is sqrt 2."""

    def __post_init__(self) -> None:
        self.require(0 <= self.rate < inf, "rate", ">= 0 and finite")
        self.require(0 < self.scale < inf, "scale", "> 0 and finite")

    def attach(self, networks: Mapping[str, nn.Module], generators: Generators) -> None:
        """Choose the layers. ValueError: there are none."""
        layers = (layer.producer for layer in self.layers if isinstance(layer.producer, (nn.Linear, *CONVOLUTIONS)))
        self._regularized = [(layer, torch.eye(len(layer.weight)).to(layer.weight)) for layer in layers]
        if not any(layer.weight.requires_grad for layer, _ in self._regularized):
            raise ValueError(f"parseval: no hidden layer to act on with only = {self.only!r}")

    def penalty(self, forward: Forward) -> Tensor | None:
        """The distance from scaled orthogonality; nothing at rate 0."""
        if self.rate == 0:
            return None
        learning = [(layer.weight.flatten(1), eye) for layer, eye in self._regularized if layer.weight.requires_grad]
        return self.rate * sum(torch.addmm(eye, w, w.T, beta=-self.scale).square().sum() for w, eye in learning)
