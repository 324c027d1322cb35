"""A lone learner's gradient step on a CPU: followed once, and from then on called by torch itself (agents/traced.py).

The numbers are those of the step as it stands, to the bit, so that it does not matter when it begins. What is saved is
Python's and autograd's time: most of a step's where networks are small (`python -m benchmarks.stacked_seeds` has both).
"""

import time
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from agents.execution import leaves
from agents.guard import Gradient
from agents.layers import MODED
from agents.learner import Learner
from agents.rounding import ahead_of, rounding_inside
from agents.stacked_step import Found, Named, Networks, Pull, followed
from agents.traced import Traced
from plasticity_probes.norms import quick_norms

WARM_UP = 100
"""Steps of a kind as they stand: following one takes as long as some hundreds of them, which a short run saves."""


def why_not_followed(learner: Learner) -> str:
    """Why the steps of `learner` are made as they stand; empty where they can be followed."""
    modules = list(learner.network.modules())
    if any(type(module) in MODED for module in modules):
        return "something is drawn or moved in the forward pass"
    if learner.optimization.guard.holds:
        return "something moves in the network before its gradient is known"
    for member in learner.interventions.members:
        if not member.stacks:
            return f"the penalty of {member.name} reads the forward pass"
    if not set(learner.network.parameters()).issuperset(learner.optimization.parameters):
        return "an intervention trains parameters outside of the network"
    return ""


def _by_autograd(loss: Callable[[Named], tuple[Tensor, Any]], parameters: Named) -> tuple[Named, Any]:
    """As `backward` does: torch.func takes other formulas for some (a norm of maps), which round otherwise."""
    with torch.enable_grad():
        taken = {name: tensor.detach().requires_grad_() for name, tensor in parameters.items()}
        total, aside = loss(taken)
    gradients = torch.autograd.grad(total, [*taken.values()], materialize_grads=True)
    return dict(zip(taken, gradients, strict=True)), aside


class FollowedSteps:
    """Makes the gradient steps of `learner` from now on."""

    def __init__(self, learner: Learner) -> None:
        self.learner, self.why_not = learner, why_not_followed(learner)
        learner.run_step = self.run

    def run(self, learn: Callable[[Any], Any], batch: Any, structure: Hashable = ()) -> Any:
        """`learn(batch)` on the device, or what comes to the same."""
        executor = self.learner.executor
        # a function that is made anew is a new one
        if self.why_not or not executor.follows or self.learner.hooked(learning=True) or not hasattr(learn, "__func__"):
            return executor.run(learn, batch, structure)
        known = executor.kept(FollowedSteps, dict)  # how often a kind was made as it stands, or what makes it
        learns = tuple(parameter.requires_grad for parameter in self.learner.optimization.parameters)
        kind = learn.__func__, learns, tuple((tensor.shape, tensor.dtype) for tensor in leaves(batch))
        step = known.get(kind, 0)
        if not isinstance(step, int):
            return executor.run(step, batch, structure)
        found = executor.run(learn, batch, structure)
        known[kind] = step + 1 if step < WARM_UP else self._followed_or_not(learn, batch)
        return found

    def _followed_or_not(self, learn: Callable[[Any], Any], batch: Any) -> Callable[[Any], Any]:
        """What makes the step on a batch; as it stands, said in a line, where it cannot be followed."""
        began = time.perf_counter()
        try:
            return self._followed(learn, batch)
        except Exception as error:  # whatever a value that is read back, or an operation that nobody knows, raises
            self.why_not = str(error).strip().partition("\n")[0]
            self.learner.executor.say(f"execution: gradient steps cannot be followed, and run eagerly: {self.why_not}")
            return learn
        finally:
            self.learner.executor.preparing += time.perf_counter() - began

    def _followed(self, learn: Callable[[Any], Any], batch: Any) -> Callable[[Any], Any]:
        """What makes the step on a batch, after one as it stands: parameters that got no gradient then get none."""
        learner, root = self.learner, Networks(self.learner)
        own = {**dict(root.named_parameters()), **dict(root.named_buffers())}
        names = {id(tensor): name for name, tensor in own.items()}
        parameters = learner.optimization.parameters
        owners = [place for place, parameter in enumerate(parameters) if parameter.grad is not None]
        learning = [names[id(parameters[place])] for place in owners]
        trained = {name: own[name] for name in learning}
        others = {name: tensor for name, tensor in own.items() if name not in trained}
        ahead = ahead_of(learner.target)  # its weights, which move seldom
        if ahead is not None:
            others = ahead.in_place_of(others)
        function, usual = partial(followed, learner, learn, root, quick_norms, _by_autograd), Pull.of(learner, trained)
        with rounding_inside(learner.network, learner.target):
            traced = Traced(function, (trained, others), (batch, usual))

        def step(batch: Any) -> Any:
            pull = Pull.of(learner, trained)
            if pull.penalties.keys() != usual.penalties.keys():
                return learn(batch)  # as it stands
            if ahead is not None:
                ahead.follow()
            found: Found = traced(batch, pull)
            learner.optimization.adam.zero_grad()
            for name, parameter in trained.items():
                parameter.grad = found.gradients[name]
            learner.optimization.move(Gradient(owners, found.norms, found.norm), **found.watched)
            learner.interventions.every_step(learner.interventions.forward(*(found.seen or (None, {}))))
            return found.learned

        return step
