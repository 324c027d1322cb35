"""L2 Init: a pull towards the initial parameters (Kumar23)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from agents.interventions.base import Forward, Intervention
from agents.interventions.slices import Slices, UnitSet
from agents.interventions.weight_decay import Beyond, check_pull, pulled
from agents.randomness import Generators
from plasticity_probes.norms import quick_norms
from plasticity_probes.units import HiddenLayer


@dataclass(eq=False)
class KeepsCopies(Intervention):
    """Copies of the network's tensors that take over what is replaced or reset, and no more."""

    def keep(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
        """These (tensor, copy) are the ones. For `attach`."""
        self._copies = dict(pairs)
        self._slices = {layer.name: Slices(layer) for layer in self.layers if layer.separable}

    @torch.no_grad()
    def on_replaced(self, layer: HiddenLayer, units: UnitSet) -> None:
        """The incoming and outgoing slices of `units` in the copies become what they are in the network now."""
        if layer.name not in self._slices:  # of another part, but it may be read by a layer of this one
            self._slices[layer.name] = Slices(layer)
        slices = self._slices[layer.name]
        for owned in (*slices.incoming, *slices.outgoing):
            copy = self._copies.get(owned.tensor)
            if copy is not None:
                owned.write(units, (copy, owned.read(owned.tensor, units)))

    @torch.no_grad()
    def on_reset(self, parameters: Sequence[nn.Parameter]) -> None:
        """The copies of these whole tensors become what they are in the network now."""
        for parameter in parameters:
            if parameter in self._copies:
                self._copies[parameter].copy_(parameter)


class _Distance(torch.autograd.Function):
    """||theta - start||, squared or not, over all tensors together; its gradient is 0 where the distance is.

    Written by hand because autograd's way through a dozen small tensors takes twice as long.
    """

    @staticmethod
    def forward(ctx: Any, squared: bool, start: list[Tensor], *theta: Tensor) -> Tensor:
        differences = torch._foreach_sub(theta, start)
        total = torch.stack(quick_norms(differences)).square().sum()
        distance = total.sqrt()
        slope = torch.full_like(total, 2.0) if squared else torch.where(total > 0, 1 / distance, 0.0)
        ctx.save_for_backward(slope, *differences)
        return total if squared else distance

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        slope, *differences = ctx.saved_tensors
        return None, None, *torch._foreach_mul(differences, gradient * slope)


@dataclass(eq=False)
class L2Init(KeepsCopies):
    """Adds rate * ||theta - theta_0||^2 to the loss, theta_0 being the initial parameters, taken together (Kumar23).

    What is replaced or reset gets a new theta_0: incoming and outgoing weights as they are right after the edit.
    """

    name = "l2_init"

    rate: float = 1e-3
    """Coefficient; >= 0. Kumar23 searches 1e-2, 1e-3, 1e-4 and 1e-5; Juliani24 takes 1e-2 with norm = plain."""
    norm: Literal["squared", "plain"] = "squared"
    """squared: rate * ||theta - theta_0||^2, with gradient 2 * rate * (theta - theta_0) (Kumar23); plain: the norm not
    squared, as in Juliani24's code, with a gradient of length rate, and 0 at theta_0."""
    include: tuple[Beyond, ...] = ("norm", "bias", "log_std")
    """What is pulled beside the weights: any of norm (gains and biases of norms), bias and log_std. Kumar23: all."""

    def __post_init__(self) -> None:
        check_pull(self)

    def attach(self, networks: Mapping[str, nn.Module], generators: Generators) -> None:
        """Remember theta_0. ValueError: there is no parameter to pull."""
        parameters = pulled(self, networks["online"])
        self._parameters = list(parameters.values())
        self.start = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        self.keep(list(zip(self._parameters, self.start.values(), strict=True)))

    def penalty(self, forward: Forward) -> Tensor | None:
        """The distance to theta_0 of what learns now; nothing at rate 0."""
        if self.rate == 0:
            return None
        pairs = zip(self.start.values(), self._parameters, strict=True)
        learning = [(then, now) for then, now in pairs if now.requires_grad]
        if not learning:
            return None
        start, parameters = zip(*learning, strict=True)
        return self.rate * _Distance.apply(self.norm == "squared", list(start), *parameters)

    def state_dict(self) -> dict[str, Any]:
        """theta_0 by name."""
        return {"start": {name: tensor.clone() for name, tensor in self.start.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, tensor in self.start.items():
            tensor.copy_(state["start"][name])
