"""Nothing that is not finite reaches the weights."""

import numpy as np
import torch
from torch import Tensor


class NonFiniteError(RuntimeError):
    """A loss, gradient, observation or reward was NaN or infinite; the message names it and when."""


def require_finite(step: int, rows: np.ndarray | None = None, **arrays: np.ndarray) -> None:
    """Raise `NonFiniteError` naming the first of `arrays` [E, ...] with a NaN or infinity in it, the environment and
    `step`; only the environments in the mask `rows` [E] count, where one is given."""
    for name, array in arrays.items():
        if array.dtype.kind != "f" or np.isfinite(array).all():
            continue
        bad = ~np.isfinite(array).reshape(len(array), -1).all(1)
        bad &= True if rows is None else rows
        if bad.any():
            where = f"in environment {int(np.flatnonzero(bad)[0])} at step {step}"
            raise NonFiniteError(f"{name} is not finite {where}; no weight was changed by it")


class Guard:
    """Checks named device scalars before each optimizer step.

    On a CPU `check` raises at once. On other devices reading back would stall, so the flag latches in the optimizer's
    `found_inf` (fused Adam then leaves weights, moments and step untouched), the first culprit is kept on the device,
    and `flush`, called where the logger reads the device anyway, raises.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
        self.immediate = device.type == "cpu"
        self.found = torch.zeros((), dtype=torch.float32, device=device)
        self.culprit = torch.full((2,), -1, dtype=torch.int64, device=device)  # index of the name, gradient step
        self.names: tuple[str, ...] = ()
        if not self.immediate:
            optimizer.found_inf, optimizer.grad_scale = self.found, None

    def check(self, gradient_step: int, **scalars: Tensor) -> None:
        """Examine `scalars` (0-d) of the gradient step about to be taken."""
        if self.immediate:
            for name, value in scalars.items():
                if not torch.isfinite(value):
                    self._fail(name, gradient_step)
            return
        self.names = tuple(scalars)
        bad = ~torch.isfinite(torch.stack([value.detach().float() for value in scalars.values()]))
        first = torch.stack([bad.int().argmax(), torch.full_like(self.culprit[0], gradient_step)])
        newly = bad.any() & (self.found == 0)
        self.culprit.copy_(torch.where(newly, first, self.culprit))
        self.found.copy_(torch.maximum(self.found, bad.any().float()))

    def flush(self) -> None:
        """Read the latched flag back and raise if it is set."""
        if not self.immediate and self.found.item():
            index, gradient_step = self.culprit.tolist()
            self._fail(self.names[index], gradient_step)

    @staticmethod
    def _fail(name: str, gradient_step: int) -> None:
        raise NonFiniteError(f"{name} is not finite at gradient step {gradient_step}; the weights are as before it")
