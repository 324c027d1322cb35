"""Nothing that is not finite moves a weight, and no result that is not finite goes unseen."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import numpy as np
import torch
from torch import Tensor

from agents.clock import Clock
from agents.finite import names_in_words, not_finite
from agents.transitions import Transitions

if TYPE_CHECKING:
    from agents.optimization import Optimization


class NonFiniteError(RuntimeError):
    """A loss, gradient, observation, reward, action or result was NaN or infinite; the message names it and when."""


def as_float32(array: np.ndarray) -> np.ndarray:
    """`array` as networks see it: float64 beyond float32's range is infinite. What is no float stays as it is."""
    if array.dtype != np.float64:
        return array
    with np.errstate(over="ignore"):
        return array.astype(np.float32)


def require_finite(step: int, rows: np.ndarray | None = None, **arrays: np.ndarray) -> None:
    """Raise `NonFiniteError` naming the first of `arrays` [E, ...] with a NaN or infinity in it, the environment and
    `step`; only the environments in the mask `rows` [E] count, where one is given."""
    for name, array in arrays.items():
        if array.dtype.kind != "f" or np.count_nonzero(np.isfinite(array)) == array.size:
            continue  # .all() takes twice as long on few
        bad = ~np.isfinite(array).reshape(len(array), -1).all(1)
        bad &= True if rows is None else rows
        if bad.any():
            where = f"in environment {int(np.flatnonzero(bad)[0])} at step {step}"
            raise NonFiniteError(f"{name} is not finite {where}; no weight was changed by it")


def require_finite_transitions(
    step: int, transitions: Transitions, ended: np.ndarray, known: np.ndarray | None = None
) -> None:
    """Raise `NonFiniteError` naming the first observation or reward that is not finite in float32, in which all is
    learned; of the final observations those of the environments in the mask `ended` [E] count. Observations that are
    the very array `known` were found finite before."""
    if transitions.observations is not known:
        require_finite(step, observation=as_float32(transitions.observations))
    rewards, reached = as_float32(np.asarray(transitions.rewards)), as_float32(transitions.next_observations)
    require_finite(step, reward=rewards, observation=reached)
    if np.count_nonzero(ended):
        require_finite(step, ended, final_observation=as_float32(transitions.final_observations))


class Gradient(NamedTuple):
    """The gradients of one step, as the guard sees them."""

    owners: list[int]
    """Which parameters have one, by their place in the optimizer."""
    norms: Tensor
    """[owners] the norm of each."""
    norm: Tensor
    """0-d, of all together."""


class Guard:
    """Checks loss and gradient before each optimizer step. Where one is not finite nothing moves: not the weights, not
    Adam's state, and none of what was told to `hold`, which an update moves before its gradient is known.

    On a CPU `check` raises at once. On other devices, and in graphs, reading back would stall, so the flag `latches`
    in the optimizer's `found_inf` (fused Adam then leaves weights, moments and step untouched), the first culprit is
    kept on the device, and `flush`, called where the logger reads the device anyway, raises. What is counted on the
    host in between (the periods and ages of interventions, random streams) has gone on.

    `parameters`: the names of the optimizer's; `clock` counts the gradient steps.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, parameters: Sequence[str], clock: Clock, latches: bool
    ) -> None:
        device = optimizer.param_groups[0]["params"][0].device
        self.immediate = not latches
        self.found = torch.zeros((), dtype=torch.float32, device=device)
        self.culprit, self.since = torch.zeros(2, dtype=torch.int64, device=device)  # its place in what was checked
        """Gradient steps from the refused one on."""
        self.parameters, self.clock = tuple(parameters), clock
        self.refused: int | None = None
        """The gradient step that was refused, once it is known."""
        self._checked: list[tuple[int, tuple[str, ...], list[int]]] = []  # since which gradient step, scalars, owners
        self._held: list[Tensor] = []
        self._before: list[Tensor] = []
        self.begun = False
        """Whether what is held may have moved for the gradient step to come."""
        if not self.immediate:
            optimizer.found_inf, optimizer.grad_scale = self.found, None

    def hold(self, tensors: Iterable[Tensor]) -> None:
        """Put `tensors` back where a step is refused: they move in its forward pass, or right before it."""
        self._held = list({id(tensor): tensor.detach() for tensor in tensors}.values())
        self._before = [tensor.clone() for tensor in self._held]

    @property
    def holds(self) -> bool:
        """Whether anything moves before the gradient is known."""
        return bool(self._held)

    @property
    def allowed(self) -> Tensor | None:
        """0-d bool: whether anything may move still; None where a refusal raises at once."""
        return None if self.immediate else self.found == 0

    def begin(self) -> None:
        """What moves from now on belongs to the gradient step to come."""
        if self._held and not self.begun:
            with torch.no_grad():
                torch._foreach_copy_(self._before, self._held)
        self.begun = bool(self._held)

    def end(self) -> None:
        """The gradient step was made."""
        self.begun = False

    def check(self, gradient: Gradient, **scalars: Tensor) -> None:
        """Examine `scalars` (0-d) and the gradient of the gradient step about to be taken."""
        gradient_step = self.clock.gradient_steps + 1
        if self.immediate:
            for name, value in scalars.items():
                if not math.isfinite(value.item()):
                    self._refuse(name, None, gradient_step)
            if not math.isfinite(gradient.norm.item()):
                bad = torch.isfinite(gradient.norms).logical_not_().nonzero().flatten().tolist()
                self._refuse("gradient", gradient.owners[bad[0]] if bad else None, gradient_step)
        else:
            self._latch(gradient_step, gradient, scalars)

    @torch.no_grad()
    def _latch(self, gradient_step: int, gradient: Gradient, scalars: Mapping[str, Tensor]) -> None:
        """The same on a device, with nothing read back, and nothing counted on the host."""
        layout = (tuple(scalars), gradient.owners)
        if not self._checked or self._checked[-1][1:] != layout:
            self._checked.append((gradient_step, *layout))
        values = torch.stack([value.detach().float() for value in (*scalars.values(), gradient.norm)])
        # the norm of all last: that of the parameter which made it so says more
        bad = ~torch.isfinite(torch.cat([values[:-1], gradient.norms.float(), values[-1:]]))
        self.culprit.copy_(torch.where(self.found == 0, bad.int().argmax(), self.culprit))
        self.found.copy_(torch.maximum(self.found, bad.any().float()))
        self.since.add_(self.found.long())
        for tensor, before in zip(self._held, self._before, strict=True):
            tensor.copy_(torch.where(self.found > 0, before, tensor))

    def flush(self) -> None:
        """Read the latched flag back and raise if it is set."""
        if not self.immediate and self.found.item():
            place, since = torch.stack([self.culprit, self.since]).tolist()
            gradient_step = self.refused or self.clock.gradient_steps + 1 - since
            scalars, owners = next(layout[1:] for layout in reversed(self._checked) if layout[0] <= gradient_step)
            if place < len(scalars):
                self._refuse(scalars[place], None, gradient_step)
            place -= len(scalars)
            self._refuse("gradient", owners[place] if place < len(owners) else None, gradient_step)

    @torch.no_grad()
    def _refuse(self, name: str, owner: int | None, gradient_step: int) -> NoReturn:
        self.refused, self.begun = gradient_step, False
        if self.immediate and self._held:
            torch._foreach_copy_(self._held, self._before)
        if name != "gradient":
            where = ""
        elif owner is None:
            where = " (its norm over all parameters; that of each is)"
        else:
            where = f" (that of {self.parameters[owner]})"
        raise NonFiniteError(
            f"{name} is not finite at gradient step {gradient_step}{where}; the weights are as before it"
        )


class Watch:
    """Looks after the results of gradient steps. `flush`, called at each line of the log and before each checkpoint,
    raises `NonFiniteError` where something in `state()` is not finite (weights, moments, running statistics, the target
    network, what interventions and reward transforms remember), or where the guard has refused a step on a device.

    Between two flushes nothing is looked at: no step waits for it.
    """

    def __init__(self, optimization: "Optimization", state: Callable[[], Any]) -> None:
        self.optimization, self.state = optimization, state
        self.sound = optimization.clock.gradient_steps
        """The gradient step after which everything was last seen to be finite."""

    def flush(self) -> None:
        """Raise where something is not finite, naming it and the gradient steps between which that came about."""
        self.optimization.flush()
        if said := self.unsound():
            raise NonFiniteError(said)

    def unsound(self) -> str | None:
        """What is not finite and since when, in a sentence; None where everything is finite."""
        now, names = self.optimization.clock.gradient_steps, not_finite(self.state())
        if not names:
            self.sound = now
            return None
        since = f"it came about between gradient steps {self.sound} (when all was finite) and {now}"
        return f"not finite: {names_in_words(names)}; {since}"

    def explain(self, error: NonFiniteError) -> str:
        """Why the run stops. A loss that is not finite is often what an earlier step's result led to; then that is
        said."""
        said, met = self.unsound(), str(error).partition(";")[0]
        if said is None:
            return str(error)
        return said if met.startswith("not finite") else f"{said}; met as: {met}"
