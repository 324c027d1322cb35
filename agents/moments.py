"""Adam's state, edited: made before the first step, forgotten in whole, and a step count per element for slices.

torch's Adam keeps one step count a tensor, and divides its moments by 1 - beta^step. Moments that are set to zero in
some slices of a tensor whose step is large are divided by almost 1: under betas (.9, .999) and a steady gradient such a
weight moves by 3.16 learning rates at once and by 6.57 at its twelfth step. `AdamState.born` and `AdamState.correct`
count the steps of each element instead, with torch's own Adam.

That is not Dohare24's AdamGnT, which counts them too but discards the result of a division in its bias correction: it
moves by lr (1 - beta2^t) m / (sqrt(v) + eps), with t the element's own step. Under (.9, .999) and a steady gradient
that is .003 learning rates at the first step, .31 at the hundredth and .80 at the thousandth; with Adam it is 1.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
NEGLIGIBLE = 2.0**-27  # a share that float32 cannot see


def initialise_adam(optimizer: torch.optim.Adam) -> None:
    """Give every parameter without state the one that Adam would give it at its first step."""
    for group in optimizer.param_groups:
        on_device = group["capturable"] or group["fused"]
        wide = not group["fused"] and torch.get_default_dtype() == torch.float64
        for parameter in group["params"]:
            state = optimizer.state[parameter]
            if state:
                continue
            device = parameter.device if on_device else "cpu"
            state["step"] = torch.zeros((), dtype=torch.float64 if wide else torch.float32, device=device)
            for name in MOMENTS if group["amsgrad"] else MOMENTS[:2]:
                state[name] = torch.zeros_like(parameter, memory_format=torch.preserve_format)


@dataclass
class _Births:
    """When the slices of a tensor were born, in steps of its Adam; an element was born with the later of its slices."""

    along: dict[int, Tensor] = field(default_factory=dict)
    """By dimension, [its size]: 0 where a slice is as old as the tensor."""
    steps: int = 0
    """Optimizer steps since the last birth."""


class AdamState:
    """The state of `optimizer` for the parameters called `names`. Nothing here reads a value back; while the
    optimizer's `found_inf` is set nothing changes."""

    def __init__(self, optimizer: torch.optim.Adam, names: Mapping[Tensor, str]) -> None:
        initialise_adam(optimizer)
        self.optimizer, self._names = optimizer, names
        self._births: dict[str, _Births] = {}

    def of(self, parameter: Tensor) -> dict[str, Tensor]:
        """Its moments and step; empty for what the optimizer does not train."""
        return self.optimizer.state.get(parameter, {})

    def allowed(self) -> Tensor | None:
        """0-d bool: whether edits may take place; None where nothing can forbid them."""
        found = getattr(self.optimizer, "found_inf", None)
        return None if found is None else found == 0

    def assign(self, tensor: Tensor, value: Tensor | float) -> None:
        """Give `tensor` the value in place, where edits may take place."""
        allowed = self.allowed()
        if allowed is None:
            tensor.copy_(value) if isinstance(value, Tensor) else tensor.fill_(value)
        else:
            tensor.copy_(torch.where(allowed.to(tensor.device), value, tensor))

    def zero_moments(self, parameters: Iterable[nn.Parameter]) -> None:
        """Forget the moments of whole tensors; steps and births stay."""
        for state in map(self.of, parameters):
            for name in MOMENTS:
                if name in state:
                    self.assign(state[name], 0.0)

    def zero_step(self, parameters: Iterable[nn.Parameter]) -> None:
        """Restart the bias correction of whole tensors, births included; the moments stay."""
        for parameter in parameters:
            if "step" in self.of(parameter):
                self.assign(self.of(parameter)["step"], 0.0)
                births = self._births.get(self._names.get(parameter, ""), _Births())
                for steps in births.along.values():
                    self.assign(steps, 0.0)

    def require_local(self) -> None:
        """ValueError where births cannot be told: AMSGrad keeps the largest second moment, which has no age."""
        if any(group["amsgrad"] for group in self.optimizer.param_groups):
            raise ValueError("moments = 'local': the optimizer has amsgrad, whose largest second moment has no age")

    def born(self, parameter: nn.Parameter, dim: int, slices: Tensor) -> None:
        """The slices of `parameter` along `dim` (0 or 1) in the mask begin their count of steps now. Their moments must
        be zero, and the mask empty while edits are forbidden."""
        if "step" not in self.of(parameter):
            return
        births, step = self._births.setdefault(self._names[parameter], _Births()), self.of(parameter)["step"]
        if dim not in births.along:
            births.along[dim] = torch.zeros(parameter.shape[dim], dtype=step.dtype, device=parameter.device)
        along = births.along[dim]
        along.copy_(torch.where(slices, step, along))  # masked_fill_ with a tensor reads it back on a GPU
        births.steps = 0

    def with_births(self) -> tuple[tuple[str, int], ...]:
        """The parameters of which slices were born later, by name and dimension."""
        return tuple((name, dim) for name, births in self._births.items() for dim in births.along)

    @property
    def has_births(self) -> bool:
        """Whether there is anything to correct."""
        return bool(self._births)

    @torch.no_grad()
    def correct(self) -> None:
        """Right after an optimizer step: turn the update that Adam made into the one that it would have made with a
        step count per element, by adding the difference.

        With age s of an element and step t of its tensor the difference is -lr (m / (1 - beta1^s) / (sqrt(v / (1 -
        beta2^s)) + eps) - the same with t). Only tensors with births are touched, and only until all corrections are
        below what float32 can see (about 19,000 steps after the last birth for beta2 = .999; where no value is read
        back nobody knows when that was, and it goes on). Until then it costs a dozen passes over each such tensor a
        step, as much as a plain (not fused) Adam takes; where every tensor has births, a gradient step takes about half
        as long again to twice as long on a CPU.
        """
        allowed = self.allowed()
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                births = self._births.get(self._names.get(parameter, ""))
                if births is None or parameter.grad is None:  # without a gradient Adam leaves it as it is
                    continue
                births.steps += 1
                if allowed is not None or births.steps <= _horizon(group["betas"]):
                    parameter.add_(self._difference(parameter, births, group, allowed))

    def _difference(
        self, parameter: nn.Parameter, births: _Births, group: dict[str, Any], allowed: Tensor | None
    ) -> Tensor:
        state, eps = self.of(parameter), group["eps"]
        step, mean = state["step"].to(parameter.device), state["exp_avg"]
        whole, local = [], []
        for beta, power in zip(group["betas"], (-1, -0.5), strict=True):
            shared = _correction(step, beta).pow(power)
            factor = shared.to(parameter.dtype)
            whole.append(factor)
            for dim, born in births.along.items():
                own = torch.where(born > 0, _correction(step - born, beta).pow(power), shared).to(parameter.dtype)
                fits = [-1 if axis == dim else 1 for axis in range(parameter.ndim)]
                factor = torch.maximum(factor, own.view(fits))  # the younger, the larger
            local.append(factor)
        theirs = state["exp_avg_sq"].sqrt()
        mine = (theirs * local[1]).add_(eps)  # in place where it can be: in large tensors new memory costs the most
        mine = torch.div(mean, mine, out=mine).mul_(local[0])
        theirs = theirs.mul_(whole[1]).add_(eps)
        theirs = torch.div(mean, theirs, out=theirs).mul_(whole[0])
        difference = theirs.sub_(mine).mul_(group["lr"])
        return difference if allowed is None else torch.where(allowed, difference, 0.0)

    def state_dict(self) -> dict[str, Any]:
        """The births."""
        return {
            name: {"along": {dim: steps.clone() for dim, steps in births.along.items()}, "steps": births.steps}
            for name, births in self._births.items()
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        tensors = {self._names.get(p): p for group in self.optimizer.param_groups for p in group["params"]}
        self._births = {
            name: _Births({dim: t.to(tensors[name].device, copy=True) for dim, t in b["along"].items()}, b["steps"])
            for name, b in state.items()
        }


def _correction(steps: Tensor, beta: float) -> Tensor:
    """1 - beta^steps, exact where it is small."""
    return -torch.expm1(steps * (math.log(beta) if beta > 0 else -math.inf))


def _horizon(betas: tuple[float, float]) -> float:
    """Steps after which no bias correction can be seen any more."""
    return max(math.log(NEGLIGIBLE) / math.log(beta) if beta > 0 else 1.0 for beta in betas)
