"""Proximal feature optimisation: preactivations are held near what they were at the last synchronisation (Moalla24)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from agents.clock import Clock
from agents.interventions.base import Forward
from agents.interventions.infer import frozen_copy, tensors_of
from agents.interventions.l2_init import KeepsCopies
from agents.interventions.surgery import Surgery
from agents.randomness import Generators
from agents.when import When
from plasticity_probes.units import last_layers


@dataclass(eq=False)
class PFO(KeepsCopies):
    """Adds coefficient * ||z(s) - z_old(s)||^2 to the loss, z being the values that go into the nonlinearities
    (Moalla24), z_old those of the network at the last target copy (DQN, C51) or at the start of this update
    phase (PPO, as in the paper), at first of the network as it was made. Mean over the batch.

    The paper writes the squared norm; the authors' code takes the mean over the units as well, and its coefficients are
    for that. Encoder, actor and critic are averaged each over all its chosen layers' units and positions, then added
    up. The paper regularises the policy's network (only = actor). When units are replaced or tensors reset the old
    network gets the same edit. Costs one more forward pass a gradient step.
    """

    name = "pfo"
    needs_hidden_layers = True
    captures = frozenset({"preactivations"})
    # the old network has no batch statistics and drops nothing: the difference of the modes would be penalised
    conflicts = frozenset({"batch_norm", "dropout"})
    when: ClassVar[When] = When("at target syncs")

    coefficient: float = 1.0
    """Weight; >= 0. The authors' code: 1 on Atari with layers = last, 10 with layers = all."""
    layers_used: Literal["last", "all"] = "last"
    """last: the last hidden layer of each branch; all: every hidden layer."""
    average: bool = True
    """Mean over the units, as the authors' code takes it; off: their sum, as the paper writes it."""

    def __post_init__(self) -> None:
        self.require(0 <= self.coefficient < inf, "coefficient", ">= 0 and finite")

    def attach(self, networks: Mapping[str, nn.Module], generators: Generators) -> None:
        """Choose the layers and copy the network. ValueError: there is no layer."""
        chosen = last_layers(self.layers) if self.layers_used == "last" else self.layers
        if not chosen:
            raise ValueError(f"pfo: no hidden layer to act on with only = {self.only!r}")
        self._parts: dict[str, list[str]] = {}
        for layer in chosen:
            self._parts.setdefault(self.part_of(layer.name), []).append(layer.name)
        self.old = frozen_copy(networks["online"])
        self.keep(self._pairs(networks["online"]))

    def _pairs(self, network: nn.Module) -> list[tuple[Tensor, Tensor]]:
        """Each tensor of `network` and what it is in the old one."""
        pairs = list(zip(network.parameters(), self.old.parameters(), strict=True))
        return pairs + list(zip(network.buffers(), self.old.buffers(), strict=True))

    def penalty(self, forward: Forward) -> Tensor | None:
        """The change of the preactivations; nothing at coefficient 0."""
        if self.coefficient == 0:
            return None
        with torch.no_grad():
            old = forward.again(self.old)
        total = 0.0
        for names in self._parts.values():
            changes = [_in_full(forward.captured[name][0]) - _in_full(old[name][0]) for name in names]
            values = sum(change.numel() for change in changes) if self.average else len(changes[0])
            total = total + sum(change.square().sum() for change in changes) / values
        return self.coefficient * total

    @torch.no_grad()
    def intervene(self, surgery: Surgery, clock: Clock) -> None:
        """The old network is the network as it is now."""
        online, old = zip(*self._pairs(surgery.networks["online"]), strict=True)
        surgery.follow(old, online)

    def state_dict(self) -> dict[str, Any]:
        """The old network."""
        return {"old": tensors_of(self.old)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.old.load_state_dict(state["old"])


def _in_full(values: Tensor) -> Tensor:
    """At least in float32, whatever autocast made of them."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
