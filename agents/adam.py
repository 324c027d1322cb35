"""torch's fused Adam, and nothing around it."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from agents.layout import as_it_lies, laid_as
from agents.moments import MOMENTS, initialise_adam

KEPT = (*MOMENTS[:2], "step")
"""What the kernel keeps of a parameter, in the order in which it takes it."""
ONE = torch.ones((), dtype=torch.float32)


def move(
    group: Mapping[str, Any],
    moving: list[Tensor],
    gradients: list[Tensor],
    means: list[Tensor],
    squares: list[Tensor],
    steps: list[Tensor],
    counts: list[Tensor],
    found: Tensor | None,
) -> None:
    """A step of the parameters `moving` along their `gradients`, by the kernel alone, with the options of `group`;
    their moments and step counts move too. Nothing does where the 0-d `found` is 1.

    `gradients` are laid as their parameters, each `as_it_lies`: on a CPU the kernel goes through memory alone, but
    first copies, to no use, what is not contiguous by its shape. `counts`: `steps`, or fewer tensors that they are
    slices of.
    """
    # on a CPU a number would be made a tensor for each of them
    torch._foreach_add_(counts, [ONE] * len(counts) if counts[0].is_cpu else 1)
    kernel = torch._fused_adamw_ if group["decoupled_weight_decay"] else torch._fused_adam_
    kernel(
        moving,
        gradients,
        means,
        squares,
        [],
        steps,
        lr=group["lr"],
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        amsgrad=False,
        maximize=False,
        found_inf=found,
    )
    if found is not None:
        torch._foreach_sub_(counts, [found] * len(counts))
    torch.autograd.graph.increment_version(moving)  # which the kernel does not, and copies are made by it


class FusedAdam(torch.optim.Adam):
    """`torch.optim.Adam` with `fused=True`; its state is there from the beginning. No AMSGrad.

    `move` is `step` to the bit, and the kernel alone: torch.optim sorts, checks and wraps its tensors anew each time,
    which takes a small network on a CPU several times as long as the kernel.
    """

    def __init__(self, params: Iterable, lr: float | Tensor, **options: Any) -> None:
        super().__init__(params, lr, fused=True, **options)
        initialise_adam(self)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """As torch's own, whose kernel takes it for granted that a gradient lies in memory as its parameter does."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad = laid_as(parameter.grad, parameter)
        return super().step(closure)

    @torch.no_grad()
    def move(self) -> None:
        """Move what has a gradient along it, unless the optimizer's `found_inf` says that it is not finite. Hooks of
        `step` are not called."""
        for group in self.param_groups:
            moving = [parameter for parameter in group["params"] if parameter.grad is not None]
            if moving:
                states = [self.state[parameter] for parameter in moving]
                gradients = [as_it_lies(laid_as(parameter.grad, parameter)) for parameter in moving]
                means, squares, steps = ([state[name] for state in states] for name in KEPT)
                move(group, moving, gradients, means, squares, steps, steps, getattr(self, "found_inf", None))

    def zero_grad(self, set_to_none: bool = True) -> None:
        """No parameter has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict` gave, as copies, moments in the layout of their parameters: the kernel takes both
        in the order in which they lie in memory."""
        super().load_state_dict(state_dict)
        initialise_adam(self)  # torch's own has no state before its first step
        for parameter, state in self.state.items():
            for name in MOMENTS[:2]:
                state[name] = torch.empty_like(parameter, requires_grad=False).copy_(state[name])
            state["step"] = state["step"].clone()
