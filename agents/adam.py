"""torch's fused Adam, and nothing around it."""

from collections.abc import Iterable
from typing import Any

import torch

from agents.moments import MOMENTS, initialise_adam


class FusedAdam(torch.optim.Adam):
    """`torch.optim.Adam` with `fused=True`; its state is there from the beginning. No AMSGrad.

    `move` is `step` to the bit, and the kernel alone: torch.optim sorts, checks and wraps its tensors anew each time,
    which takes a small network on a CPU several times as long as the kernel.
    """

    def __init__(self, params: Iterable, lr: float | torch.Tensor, **options: Any) -> None:
        super().__init__(params, lr, fused=True, **options)
        initialise_adam(self)

    @torch.no_grad()
    def move(self) -> None:
        """Move what has a gradient along it, unless the optimizer's `found_inf` says that it is not finite. Hooks of
        `step` are not called."""
        found = getattr(self, "found_inf", None)
        for group in self.param_groups:
            moving = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not moving:
                continue
            means, squares, steps = (
                [self.state[parameter][name] for parameter in moving] for name in (*MOMENTS[:2], "step")
            )
            torch._foreach_add_(steps, 1)
            kernel = torch._fused_adamw_ if group["decoupled_weight_decay"] else torch._fused_adam_
            kernel(
                moving,
                [parameter.grad for parameter in moving],
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
                torch._foreach_sub_(steps, [found] * len(steps))
            torch.autograd.graph.increment_version(moving)  # which the kernel does not, and copies are made by it

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
