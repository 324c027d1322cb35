"""One network that learns: everything that makes it learn in one place, and one way in which its weights move."""

import copy
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from agents.clock import Clock
from agents.config import AgentConfig
from agents.execution import Executor
from agents.interventions.base import Intervention
from agents.interventions.lifecycle import Configure, Lifecycle
from agents.interventions.surgery import Surgery
from agents.layers import Captured
from agents.networks import learning
from agents.optimization import Optimization, autocast
from agents.precision import set_precision
from agents.randomness import Generators


class Loss(NamedTuple):
    """What a batch's loss is made of; tensors are part of the autograd graph."""

    total: Tensor
    """What is minimised: the loss and what interventions add to it."""
    loss: Tensor
    """Without penalties."""
    penalties: dict[str, Tensor]
    """What interventions add, by their names."""
    aside: Any
    """What `loss_of` gave beside the loss."""
    captured: Captured
    """What interventions asked to see of the forward pass."""


class Step(NamedTuple):
    """What a gradient step came to; tensors are detached and on the device."""

    loss: Tensor
    """Without penalties."""
    norm: Tensor
    """Of the gradient, before clipping."""
    penalties: dict[str, Tensor]
    """What interventions added to the loss, by their names."""
    aside: Any
    """What `loss_of` gave beside the loss."""

    def penalty_metrics(self) -> dict[str, Tensor]:
        """The penalties under the log's names."""
        return {f"losses/penalty/{name}": penalty for name, penalty in self.penalties.items()}


HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
"""Where a module keeps them."""
LossOf = Callable[[Any, Any], tuple[Tensor, Any]]
"""(Outputs of the network, batch) -> (scalar loss, anything beside it); a pure function of tensors, the same one at
every step."""


class Learner:
    """A network with optimizer, guard, interventions and surgeon, and with a target copy where `target` asks for one.

    Args:
        rates: settings, of which learning rate, Adam's constants and clipping count.
        build: makes a freshly initialised network, given how interventions configure its torsos and a generator.
        example: two observations, to follow the network by.
        generators: streams "init" and "surgery" and those of interventions are taken from it.
        sample: n observations for surgeries.
        interventions: in the order in which they act; copied.
        moments: other than "own" takes the place of what each of them does to Adam's moments.
        clock: counts its gradient steps; one of its own where none is given.
        executor: runs what happens on the device; eagerly where none is given.
    """

    def __init__(
        self,
        rates: AgentConfig,
        build: Callable[[Configure, torch.Generator], nn.Module],
        example: Tensor,
        generators: Generators,
        sample: Callable[[int], Tensor],
        *,
        precision: str = "fp32",
        interventions: Sequence[Intervention] = (),
        moments: str = "own",
        target: bool = False,
        clock: Clock | None = None,
        executor: Executor | None = None,
    ) -> None:
        self.executor = executor or Executor("eager")
        self.outputs_and_loss = self.executor.compiled(self.outputs_and_loss)
        self.run_step = self.executor.run
        """Runs what happens on the device in a gradient step; another where seeds are stacked (stacking.py)."""
        self.device, self.precision, self._build = example.device, precision, build
        self.clock = clock or Clock()
        set_precision(precision, self.device)
        self.interventions = Lifecycle(interventions, partial(autocast, self.device, precision), self.clock)
        self.network = self.fresh(generators.torch("init"))
        self.target = copy.deepcopy(self.network).requires_grad_(False) if target else None
        networks = {"online": self.network} | ({"target": self.target} if target else {})
        groups = self.interventions.attach(networks, example, generators)
        self._rate = rates.learning_rate
        rated = self._rate.start, rates.adam, rates.max_grad_norm
        self.optimization = Optimization(groups, *rated, self.network, self.clock, self.executor.captures)
        self.hold(())
        surgical = generators.torch("surgery", self.device)
        self.interventions.make_surgeon(self.optimization.adam, surgical, sample, moments)

    def fresh(self, generator: torch.Generator) -> nn.Module:
        """A freshly initialised network of the learning one's shape, on its device, in eval mode."""
        return self.interventions.fresh(self._build, generator, self.device)

    @property
    def learning_rate(self) -> float:
        """Adam's step size of the last step, or of the first one before it."""
        return self.optimization.learning_rate

    def anneal(self, steps: int) -> None:
        """From the next gradient step on, let Adam's step size be that of so many steps in the world."""
        if self._rate.moves:
            self.optimization.set_learning_rate(self._rate.value(self._rate.since(steps, self.clock.task_began)))

    @property
    def surgery(self) -> Surgery | None:
        """The surgeon; None where there are no interventions."""
        return self.interventions.surgery

    @property
    def allowed(self) -> Tensor | None:
        """0-d bool: whether anything may move still; None where a step that is not finite raises at once."""
        return self.optimization.guard.allowed

    def hooked(self, learning: bool) -> bool:
        """Whether anybody has put hooks on the networks, or, `learning`, on the parameters: the passes as they stand
        call them, and nothing that takes their place does."""
        places, parameters = self.executor.kept("hooks", self._hooks)
        if any(places):
            return True
        return learning and any(one._backward_hooks or one._post_accumulate_grad_hooks for one in parameters)

    def _hooks(self) -> tuple[list[dict], list[nn.Parameter]]:
        """(Where modules keep their hooks, the parameters)."""
        networks = [network for network in (self.network, self.target) if network is not None]
        modules = [module for network in networks for module in network.modules()]
        return [vars(module)[kind] for module in modules for kind in HOOKS], list(self.network.parameters())

    def quick(self, make: Callable[[nn.Module, Tensor], Any], observations: Tensor) -> Any:
        """`make(network, observations)`: what takes the network's place in passes without a gradient that are shaped as
        this one, made once. The network itself where these are captured, hooked, or in bfloat16."""
        if self.executor.captures or self.precision == "bf16" or self.hooked(learning=False):
            return self.network
        return self.executor.kept((make, observations.shape), lambda: make(self.network, observations))

    def hold(self, tensors: Iterable[Tensor]) -> None:
        """Where a step is refused, put `tensors` back too, which move before its gradient is known."""
        self.optimization.guard.hold([*self.interventions.unsettled(), *tensors])

    def begin(self) -> None:
        """What was told to `hold` may move from now on; otherwise it begins with the step itself."""
        self.optimization.guard.begin()

    def update(self, learn: Callable[[Any], Any], batch: Any) -> Any:
        """One gradient step; the only way in which weights move. Returns `learn(batch)`, which calls `step` once.

        `learn` is what happens on the device: a function of tensors of fixed shapes in which nothing is counted, drawn
        or decided by the host. What the host decides follows. Raises `NonFiniteError` before anything moves where the
        loss or its gradient is not finite.
        """
        self.interventions.draw()
        found = self.run_step(learn, batch, self._structure())
        self.optimization.count()
        self.interventions.intervene()
        return found

    def _structure(self) -> Hashable:
        """What the course of a gradient step depends on beside the shapes of its tensors."""
        if not self.executor.captures:
            return ()
        learning_ones = tuple(parameter.requires_grad for parameter in self.optimization.parameters)
        return learning_ones, self.optimization.guard.begun, self.interventions.structure()

    def step(self, observations: Tensor, loss_of: LossOf, batch: Any, **watched: Tensor) -> Step:
        """What happens on the device in a gradient step on `observations` [examples, ...] and the `batch` that they
        belong to. The 0-d `watched` must be finite, as the loss and its gradient must."""
        self.begin()
        found = self.gradient(observations, loss_of, batch)
        norm = self.optimization.step(**watched, loss=found.total)
        self.interventions.every_step(self.interventions.forward(observations, found.captured))
        penalties = {name: penalty.detach() for name, penalty in found.penalties.items()}
        return Step(found.loss.detach(), norm, penalties, found.aside)

    def gradient(self, observations: Tensor, loss_of: LossOf, batch: Any) -> Loss:
        """The loss, and its gradient in the parameters' `grad`."""
        found = self.loss(observations, loss_of, batch)
        self.optimization.backward(found.total)
        return found

    def loss(self, observations: Tensor, loss_of: LossOf, batch: Any) -> Loss:
        """The loss as a function of the network's parameters, `observations` and `batch`: nothing else moves, but the
        running statistics of a batch norm."""
        with learning(self.network):
            loss, aside, captured = self.outputs_and_loss(observations, loss_of, batch)
        penalties = self.interventions.penalties(self.interventions.forward(observations, captured))
        return Loss(sum(penalties.values(), start=loss), loss, penalties, aside, captured)

    def outputs_and_loss(self, observations: Tensor, loss_of: LossOf, batch: Any) -> tuple[Tensor, Any, Captured]:
        """(The loss without penalties, anything beside it, what interventions asked to see of the forward pass)."""
        wanted, captured = self.interventions.wanted, {}
        with autocast(self.device, self.precision):
            outputs = self.network(observations) if wanted is None else self.network(observations, wanted)
        if wanted is not None:
            outputs, captured = outputs
        loss, aside = loss_of(outputs, batch)
        return loss, aside, captured

    @torch.no_grad()
    def sync_target(self, tau: float = 1.0) -> None:
        """Move the target's parameters by `tau` towards the network's and copy its buffers, unless the guard has
        latched; then tell the interventions."""
        allowed = self.allowed
        weight = tau if allowed is None else tau * allowed.float()
        for target, online in zip(self.target.parameters(), self.network.parameters(), strict=True):
            target.lerp_(online, weight)
        for target, online in zip(self.target.buffers(), self.network.buffers(), strict=True):
            target.copy_(online if allowed is None else torch.where(allowed, online, target))
        self.interventions.on_target_sync()

    def on_task_change(self) -> None:
        """Every environment has entered a new task."""
        self.interventions.on_task_change()

    def state_dict(self) -> dict[str, Any]:
        """Networks, optimizer, clock and what the interventions remember, but where random generators stand."""
        networks = {"network": self.network} | ({} if self.target is None else {"target_network": self.target})
        return {
            **{name: network.state_dict() for name, network in networks.items()},
            "optimization": self.optimization.state_dict(),
            "clock": self.clock.state_dict(),
            "interventions": self.interventions.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self.network.load_state_dict(state["network"])
        if self.target is not None:
            self.target.load_state_dict(state["target_network"])
        self.optimization.load_state_dict(state["optimization"])
        self.clock.load_state_dict(state["clock"])
        self.interventions.load_state_dict(state.get("interventions", {}))
        self.executor.forget()
