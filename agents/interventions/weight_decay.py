"""Decoupled weight decay (AdamW, Loshchilov & Hutter 2019), and what is shared with the other pulls on parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import Any, ClassVar, Literal

from torch import nn

from agents.interventions.base import Intervention, roles
from agents.randomness import Generators

Beyond = Literal["norm", "bias", "log_std"]
"""Roles of parameters that are no weights."""


def check_pull(intervention: Intervention) -> None:
    """Raise `ValueError` unless `rate` and `include` of `intervention` make sense."""
    intervention.require(0 <= intervention.rate < inf, "rate", ">= 0 and finite")
    include = tuple(intervention.include)
    known = set(include) <= {"norm", "bias", "log_std"} and len(set(include)) == len(include)
    intervention.require(known, "include", "some of norm, bias and log_std, each once")


def pulled(intervention: Intervention, network: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of `network` in the part of `intervention` that are weights or of a role that it includes, by
    name; also those that are frozen now and may learn later. ValueError where none learns."""
    role = roles(network)
    wanted = {"weight", *intervention.include}
    found = {name: p for name, p in network.named_parameters() if intervention.within(name) and role[name] in wanted}
    if not any(parameter.requires_grad for parameter in found.values()):
        raise ValueError(f"{intervention.name}: no parameter to act on with only = {intervention.only!r}")
    return found


@dataclass(eq=False)
class AdamDecay(Intervention):
    """What the two kinds of decay that torch's Adam makes itself share; they have `rate` and `include`."""

    decoupled: ClassVar[bool] = True
    """Beside the update, or inside its gradient."""

    def __post_init__(self) -> None:
        check_pull(self)

    def attach(self, networks: Mapping[str, nn.Module], generators: Generators) -> None:
        """Choose the parameters. ValueError: there are none."""
        self._names = set(pulled(self, networks["online"]))

    def parameter_groups(self, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Set the decay of the chosen ones, its kind too: AdamW's default is another than Adam's."""
        for group in groups:
            if self.rate > 0 and group.get("name") in self._names:
                group |= {"weight_decay": self.rate, "decoupled_weight_decay": self.decoupled}
        return groups


@dataclass(eq=False)
class WeightDecay(AdamDecay):
    """Decoupled weight decay: at each gradient step a parameter first loses the share learning rate * `rate` of itself,
    then Adam's update is made as if nothing had happened (AdamW, algorithm 2 without a schedule multiplier).

    Lyle24 combines LayerNorm with an L2 coefficient of 0, 1e-6 or 1e-5, which is coupled (see l2.py) and acts otherwise
    than the same number here; whether norms' gains and biases decay with the weights is not stated: they do not here
    unless included. Auxiliary heads of other interventions do not decay.
    """

    name = "weight_decay"
    conflicts = frozenset({"l2"})  # a group of Adam's has one weight_decay, coupled or decoupled

    rate: float = 1e-2
    """Decay; >= 0; AdamW's usual. A gradient step takes away the share learning rate * rate: at a learning rate of
    2.5e-4 an unused weight is halved in 2.8e5 gradient steps."""
    include: tuple[Beyond, ...] = ()
    """What decays beside the weights: any of norm (gains and biases of norms), bias and log_std."""
