"""The optimizer step that every agent takes."""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from agents.adam import FusedAdam
from agents.clock import Clock
from agents.config import AdamConfig
from agents.guard import Gradient, Guard, NonFiniteError
from plasticity_probes.norms import quick_norms

OWN = ("lr", "capturable", "fused", "foreach")
"""What of a group in Adam's state belongs to how it runs here, and is not taken over from a saved one."""


def make_adam(
    groups: Iterable, learning_rate: float | Tensor, config: AdamConfig, capturable: bool = False
) -> FusedAdam:
    """Fused Adam over parameters, or over groups of them with options of their own."""
    return FusedAdam(groups, learning_rate, betas=config.betas, eps=config.eps, capturable=capturable)


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """bf16 matrix products under "bf16" (weights, moments and losses stay float32); nothing under "fp32" and "tf32"."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


class Optimization:
    """Clips, checks and applies the gradient of a loss; `groups` are parameters, or torch's groups of them.

    A gradient step is `backward`, `step`, which happen on the device, and `count`, which happens on the host; `clock`
    counts the steps that were taken. `network`: whose names the parameters have in messages and in `state_dict`.
    `captured`: what happens on the device is to be captured in a graph, which reads nothing that lies on the host.
    """

    def __init__(
        self,
        groups: Iterable,
        learning_rate: float,
        config: AdamConfig,
        max_norm: float,
        network: nn.Module | None = None,
        clock: Clock | None = None,
        captured: bool = False,
    ) -> None:
        groups = list(groups)
        first = groups[0]["params"][0] if isinstance(groups[0], dict) else groups[0]
        self.learning_rate = learning_rate
        """Adam's step size of the last step, or of the first one before it."""
        on_device = torch.tensor(learning_rate, dtype=torch.float32, device=first.device) if captured else learning_rate
        self.adam = make_adam(groups, on_device, config, captured)
        self.parameters = [parameter for group in self.adam.param_groups for parameter in group["params"]]
        self.max_norm = max_norm
        known = {} if network is None else {parameter: name for name, parameter in network.named_parameters()}
        self.names = [known.get(parameter, f"parameter {place}") for place, parameter in enumerate(self.parameters)]
        self.clock = clock or Clock()
        self.guard = Guard(self.adam, self.names, self.clock, captured or first.device.type != "cpu")

    def backward(self, loss: Tensor) -> None:
        """The gradient of the scalar `loss`, in place of the one before."""
        self.adam.zero_grad()
        loss.backward()

    def step(self, **watched: Tensor) -> Tensor:
        """Adam's step along the gradient; returns its global norm before clipping. Raises `NonFiniteError` before any
        weight moves where it or one of the 0-d `watched`, the loss among them, is not finite."""
        owners = [place for place, parameter in enumerate(self.parameters) if parameter.grad is not None]
        norms = torch.stack(quick_norms([self.parameters[place].grad for place in owners]))
        gradient = Gradient(owners, norms, torch.linalg.vector_norm(norms))
        self.move(gradient, **watched)
        return gradient.norm

    def move(self, gradient: Gradient, **watched: Tensor) -> None:
        """`step` along a gradient whose norms are known."""
        self.guard.check(gradient, **watched)
        if self.max_norm > 0:
            gradients = [self.parameters[place].grad for place in gradient.owners]
            torch._foreach_mul_(gradients, (self.max_norm / (gradient.norm + 1e-6)).clamp(max=1.0))
        self.adam.move()

    def count(self) -> None:
        """A gradient step was made."""
        self.clock.gradient_steps += 1
        self.guard.end()

    def flush(self) -> None:
        """Raise `NonFiniteError` where the guard has refused a step on a device; the count is then what it was."""
        try:
            self.guard.flush()
        except NonFiniteError:
            self.clock.gradient_steps = self.guard.refused - 1
            raise

    def set_learning_rate(self, learning_rate: float) -> None:
        """Use `learning_rate` from the next step on."""
        self.learning_rate = learning_rate
        for group in self.adam.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(learning_rate)
            else:
                group["lr"] = learning_rate

    def state_dict(self) -> dict:
        """Adam's state, and the names of its parameters in their order there."""
        state = self.adam.state_dict()
        eager = {"lr": self.learning_rate, "capturable": False}
        return {
            "adam": state | {"param_groups": [group | eager for group in state["param_groups"]]},
            "parameters": list(self.names),
        }

    def load_state_dict(self, state: dict) -> None:
        """Take over what `state_dict` gave, whether it was captured in a graph or not."""
        own = [{name: group[name] for name in OWN} for group in self.adam.param_groups]
        learning_rate = state["adam"]["param_groups"][0]["lr"]
        self.adam.load_state_dict(state["adam"])
        for group, options in zip(self.adam.param_groups, own, strict=True):
            group.update(options)
        self.set_learning_rate(learning_rate)
