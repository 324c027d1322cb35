"""What K learners' gradient steps are on stacked tensors: one list of operations for all, and one step of Adam.

Parameters and buffers become slices of tensors [learners, ...]. A step is followed once, over all slices at a time, and
written down; from then on nobody's Python, no autograd and no vmap stands between the operations (agents/stacking.py
says who asks for it).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from operator import itemgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from agents.adam import KEPT, move
from agents.execution import leaves, rebuilt
from agents.layout import as_it_lies, laid_as, stacked
from agents.learner import Learner, LossOf, Step
from agents.optimization import autocast
from agents.traced import Traced

Named = dict[str, Tensor]
Differentiated = Callable[[Callable[[Named], tuple[Tensor, Any]], Named], tuple[Named, Any]]
"""Of a function that gives a loss and what is beside it, at parameters: their gradients, and the latter."""
options_of = itemgetter("lr", "betas", "eps", "weight_decay", "decoupled_weight_decay", "capturable")
"""Of a group of Adam's: what may tell one seed's from another's."""


class Pull(NamedTuple):
    """What interventions add to a loss; of one learner, or stacked."""

    penalties: Named
    """0-d, by their names."""
    gradients: Named
    """By parameter; empty where nothing is added."""

    @classmethod
    def of(cls, learner: Learner, trained: Mapping[str, Tensor]) -> "Pull":
        """Of `learner`, by the names of those that are `trained` in any."""
        interventions = learner.interventions
        penalties = interventions.penalties(interventions.forward(None, {}))
        if not penalties:
            return cls({}, {})
        learning = {name: tensor for name, tensor in trained.items() if tensor.requires_grad}
        found = torch.autograd.grad(sum(penalties.values()), [*learning.values()], materialize_grads=True)
        gradients = dict(zip(learning, found, strict=True))
        filled = {name: gradients.get(name, torch.zeros_like(tensor)) for name, tensor in trained.items()}
        return cls({name: penalty.detach() for name, penalty in penalties.items()}, filled)


class Found(NamedTuple):
    """What a gradient step has come to before anything moves, stacked."""

    learned: Any
    """What `learn` gave."""
    gradients: Named
    """By parameter, before clipping."""
    norms: Tensor
    """[parameters] of them."""
    norm: Tensor
    """Of all together."""
    watched: Named
    """What else must be finite: the loss with what is added, and others."""
    seen: tuple
    """(observations, what was captured) for interventions that act at every step; () where there are none."""


class Networks(nn.Module):
    """A learner's networks under one root, within which functions are called."""

    def __init__(self, learner: Learner) -> None:
        super().__init__()
        self.network, self.target = learner.network, learner.target

    def forward(self, function: Callable[[], Any]) -> Any:
        """What it gives."""
        return function()


class Slices:
    """Parameters and buffers of learners as slices of stacked tensors, by name: "network.head.weight"."""

    def __init__(self, learners: Sequence[Learner]) -> None:
        self.learners, self.roots = learners, [Networks(learner) for learner in learners]
        self.own = [{**dict(root.named_parameters()), **dict(root.named_buffers())} for root in self.roots]
        """By learner and name."""
        self.stacked = {name: stacked([own[name] for own in self.own]) for name in self.own[0]}
        for place, own in enumerate(self.own):
            for name, tensor in own.items():
                tensor.data = self.stacked[name][place]
        optimized = set(learners[0].optimization.parameters)
        self.names = [name for name, tensor in self.own[0].items() if tensor in optimized]
        self._parameters = [own[name] for own in self.own for name in self.names]
        self._learning: Learning | None = None
        # where gradients are put, in one place each: a graph writes there too
        self._gradients = {name: torch.empty_like(self.stacked[name]) for name in self.names}
        whole = [gradient.unbind() for gradient in self._gradients.values()]
        self._slices = [slices[place] for place in range(len(learners)) for slices in whole]
        self._put_by: Learning | None = None
        states = [state for learner in learners for state in learner.optimization.adam.state.values()]
        self._counts = torch.stack([state["step"] for state in states])
        for place, state in enumerate(states):
            state["step"].data = self._counts[place]  # so that they can be counted up all at once
        self._moved: tuple[Any, list[_Moving]] = None, []  # (what learned, who, in which groups) in the last step
        for learner in learners:
            for network in (learner.network, learner.target):
                if network is not None:  # its weights move in the stack, unseen by what would round them again
                    network.rounded = autocast(learner.device, learner.precision)

    @property
    def learning(self) -> "Learning":
        """Which parameters learn now; the same object as long as that does not change."""
        flags = [tensor.requires_grad for tensor in self._parameters]
        if self._learning is None or flags != self._learning.flags:
            rows = [flags[begin : begin + len(self.names)] for begin in range(0, len(flags), len(self.names))]
            trained = [name for name, *of_each in zip(self.names, *rows, strict=True) if any(of_each)]
            self._learning = Learning(flags, trained)
        return self._learning

    def pull(self, trained: Sequence[str]) -> Pull:
        """What interventions add to the losses, stacked."""
        if not any(learner.interventions.penalizes for learner in self.learners):
            return Pull({}, {})
        pulls = [
            Pull.of(learner, {name: own[name] for name in trained})
            for learner, own in zip(self.learners, self.own, strict=True)
        ]
        return rebuilt(pulls[0], [torch.stack(column) for column in zip(*map(leaves, pulls), strict=True)])

    def move(self, gradients: Named, norm: Tensor, learning: "Learning", may: Sequence[bool]) -> None:
        """A step of Adam along the stacked gradients, of that norm each, for the learners that `may` move."""
        self._put(gradients, norm, learning)
        kinds: dict[tuple, int] = {}  # of groups that one call of Adam can take
        owners = []  # of each kind, its first group and whose it is
        signature: list[int] = []
        for learner, moves in zip(self.learners, may, strict=True):
            guard = learner.optimization.guard
            for group in learner.optimization.adam.param_groups if moves else ():
                kind = options_of(group), None if guard.immediate else id(guard)
                if kind not in kinds:
                    owners.append((group, guard))
                signature.append(kinds.setdefault(kind, len(kinds)))
        key = learning, may, signature
        if key != self._moved[0]:
            self._moved = key, self._moving(may, signature)
        for (group, guard), moving in zip(owners, self._moved[1], strict=True):
            if moving.parameters:
                move(group, *moving, None if guard.immediate else guard.found)

    def _put(self, gradients: Named, norm: Tensor, learning: "Learning") -> None:
        """Each learner's `gradients`, clipped, as its parameters' own. They stay in one place: to hand out others at
        every step takes several times as long as to copy these."""
        most = self.learners[0].optimization.max_norm
        if most > 0:
            scale = (most / (norm + 1e-6)).clamp(max=1.0)
            for name, gradient in gradients.items():
                torch.mul(gradient, scale.view(-1, *[1] * (gradient.dim() - 1)), out=self._gradients[name])
        else:
            torch._foreach_copy_([self._gradients[name] for name in gradients], list(gradients.values()))
        # a step of one alone, as it stands, gives all of its parameters others: one of each is looked at
        first = range(self.names.index(learning.trained[0]), len(self._parameters), len(self.names))
        if learning is self._put_by and all(self._parameters[at].grad is self._slices[at] for at in first):
            return
        for parameter, gradient, learns in zip(self._parameters, self._slices, learning.flags, strict=True):
            parameter.grad = gradient if learns else None
        self._put_by = learning

    def _moving(self, may: Sequence[bool], signature: Sequence[int]) -> list["_Moving"]:
        """By kind, what moves."""
        found = [_Moving([], [], [], [], [], []) for _ in set(signature)]
        kinds = iter(signature)
        for learner, moves in zip(self.learners, may, strict=True):
            adam_of_one = learner.optimization.adam
            for group in adam_of_one.param_groups if moves else ():
                moving = found[next(kinds)]
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        state = adam_of_one.state[parameter]
                        row = parameter, as_it_lies(parameter.grad), *(state[name] for name in KEPT)
                        for place, each in zip(moving, row, strict=False):
                            place.append(each)
        for moving in found:
            moving.counts.extend([self._counts] if len(moving.steps) == len(self._counts) else moving.steps)
        return found


class Learning(NamedTuple):
    """Which parameters learn."""

    flags: list[bool]
    """Of each learner, one after another, each of the parameters that its optimizer has."""
    trained: list[str]
    """The names of those that learn in any."""


class _Moving(NamedTuple):
    """What a call of Adam moves: lists with a tensor for each parameter."""

    parameters: list[Tensor]
    gradients: list[Tensor]
    means: list[Tensor]
    squares: list[Tensor]
    steps: list[Tensor]
    """0-d."""
    counts: list[Tensor]
    """`steps`, or all of them in one."""


def traced_step(
    first: Learner, learn: Callable[[Any], Any], slices: Slices, trained: Sequence[str], batch: Any, pull: Pull
) -> Callable[[Any, Pull], Found]:
    """`learn` of all learners on their stacked tensors, of a stacked batch and `Pull`. `first`: whose Python is
    followed."""
    stacked, others = slices.stacked, [name for name in slices.stacked if name not in trained]
    held = {name: stacked[name] for name in trained}, {name: stacked[name] for name in others}
    return Traced(vmap(partial(followed, first, learn, slices.roots[0], _norms, _under_vmap)), held, (batch, pull))


def _under_vmap(loss: Callable[[Named], tuple[Tensor, Any]], parameters: Named) -> tuple[Named, Any]:
    return grad(loss, has_aux=True)(parameters)


def _norms(gradients: Iterable[Tensor]) -> list[Tensor]:
    return [torch.linalg.vector_norm(gradient) for gradient in gradients]


def followed(
    first: Learner,
    learn: Callable[[Any], Any],
    root: Networks,
    norms_of: Callable[[Iterable[Tensor]], list[Tensor]],
    differentiated: Differentiated,
    trained: Named,
    others: Named,
    batch: Any,
    pull: Pull,
) -> Found:
    """What `learn(batch)` of the learner `first` comes to with these tensors in place of its networks' own."""
    met: list[Found] = []

    def step(observations: Tensor, loss_of: LossOf, wanted: Any, **watched: Tensor) -> Step:
        def loss(parameters: Named) -> tuple[Tensor, Any]:
            inside = partial(first.outputs_and_loss, observations, loss_of, wanted)
            total, aside, captured = functional_call(root, parameters, (inside,))
            # the gradient of this is the pull, and comes first into the sum, as that of a penalty would
            pulled = sum((parameters[name] * gradient).sum() for name, gradient in pull.gradients.items())
            return total + pulled, (total, aside, captured)

        gradients, (loss, aside, captured) = differentiated(loss, trained)
        gradients = {name: laid_as(gradient, trained[name]) for name, gradient in gradients.items()}
        norms = torch.stack(norms_of(gradients.values()))
        norm = torch.linalg.vector_norm(norms)
        seen = (observations, captured) if first.interventions.stepping else ()
        whole = {"loss": loss + sum(pull.penalties.values())}
        met.append(Found((), gradients, norms, norm, watched | whole, seen))
        return Step(loss, norm, pull.penalties, aside)

    first.step = step
    try:
        learned = functional_call(root, trained | others, (partial(learn, batch),))
    finally:
        del first.step
    return met[0]._replace(learned=learned)


def of_each(nest: Any, learners: int) -> list[Any]:
    """Slices of a stacked `nest`."""
    rows = list(zip(*(leaf.unbind() for leaf in leaves(nest)), strict=True)) or [()] * learners
    return [rebuilt(nest, row) for row in rows]
