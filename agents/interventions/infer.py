"""InFeR: auxiliary heads keep a subspace of the features near its value at initialisation (Lyle22)."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import Any

import torch
from torch import Tensor, nn

from agents.initializers import linear
from agents.interventions.base import Forward, Intervention
from agents.randomness import Generators
from plasticity_probes.units import HiddenLayer, last_layers


def frozen_copy(network: nn.Module) -> nn.Module:
    """A copy of `network` that does not train."""
    return copy.deepcopy(network).requires_grad_(False)


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Copies of the tensors of `module`, by name."""
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


@dataclass(eq=False)
class InFeR(Intervention):
    """Initial feature regularisation (Lyle22): `heads` linear auxiliary heads g on the features phi of each
    branch (what comes out of its last hidden layer, flattened) regress on beta times what the initial heads say of the
    initial network's features. Added to the loss, with the mean over the batch and the heads, summed over branches:

        alpha * mean (g(phi_t(s)) - beta * g_0(phi_0(s)))^2

    Written as a sum over the heads the objective is `heads` times as much. The heads train with the rest, their
    gradient counts in the global norm that is clipped, and nothing of them is used to act. The frozen network sees
    observations standardised as the online one does now, where that is done at all. When units are replaced the targets
    stay and the heads have to learn anew what the unit is good for. Costs one more forward pass a gradient step.
    """

    name = "infer"
    needs_hidden_layers = True
    captures = frozenset({"hidden"})
    # the features of an injection are three, of which two are frozen; a batch norm's running statistics mean nothing in
    # a network that never learned
    conflicts = frozenset({"plasticity_injection", "batch_norm"})

    heads: int = 10
    """Auxiliary heads on the features of each branch; >= 1."""
    alpha: float = 0.1
    """Weight of the auxiliary loss; >= 0."""
    beta: float = 100.0
    """Factor on the initial heads' outputs; > 0."""

    def __post_init__(self) -> None:
        self.require(self.heads >= 1, "heads", ">= 1")
        self.require(0 <= self.alpha < inf, "alpha", ">= 0 and finite")
        self.require(0 < self.beta < inf, "beta", "> 0 and finite")

    def attach(self, networks: Mapping[str, nn.Module], generators: Generators) -> None:
        """Make the heads and the frozen network. ValueError: there are no features, or their width is not known."""
        online = networks["online"]
        self._features = last_layers(self.layers)
        if not self._features:
            raise ValueError(f"infer: no hidden layer to act on with only = {self.only!r}")
        generator = generators.torch("interventions")  # its stream by an old name, so that runs stay what they were
        made = [linear(self._width(layer), self.heads, "torch", generator) for layer in self._features]
        like = next(online.parameters())
        self.trained = nn.ModuleList(made).to(like.device, like.dtype)
        self.initial = frozen_copy(self.trained)
        self.frozen = frozen_copy(online)
        if getattr(online, "normalizer", None) is not None:  # its statistics are of the world, not learned
            self.frozen.normalizer = online.normalizer

    def _width(self, layer: HiddenLayer) -> int:
        """Values that `layer` hands on for one observation."""
        columns = [int((owner >= 0).sum()) for module, owner in layer.consumers if isinstance(module, nn.Linear)]
        if not any(columns):
            raise ValueError(f"infer: no Linear layer reads '{layer.name}' unit by unit, so its width is not known")
        return max(columns)

    def parameter_groups(self, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Add the heads, with the betas of the others where those agree."""
        betas = {str(group.get("betas")): group.get("betas") for group in groups}
        agreed = next(iter(betas.values())) if len(betas) == 1 else None  # whoever set them may come before or after
        options = {} if agreed is None else {"betas": agreed}
        return [*groups, {"params": list(self.trained.parameters()), "role": "weight", **options}]

    def penalty(self, forward: Forward) -> Tensor | None:
        """The auxiliary loss; nothing at alpha 0."""
        if self.alpha == 0:
            return None
        with torch.no_grad():
            before = forward.again(self.frozen)
        total = 0.0
        for layer, head, initial in zip(self._features, self.trained, self.initial, strict=True):
            now, then = (found[layer.name][-1].flatten(1).to(head.weight.dtype) for found in (forward.captured, before))
            total = total + (head(now) - self.beta * initial(then)).square().mean()
        return self.alpha * total

    def state_dict(self) -> dict[str, Any]:
        """Heads, initial heads and the frozen network."""
        return {name: tensors_of(getattr(self, name)) for name in ("trained", "initial", "frozen")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in ("trained", "initial", "frozen"):
            getattr(self, name).load_state_dict(state[name])
