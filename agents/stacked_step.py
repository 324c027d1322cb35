"""What K learners' gradient steps are on stacked tensors: one list of operations for all, and one step of Adam.

Parameters and buffers become slices of tensors [learners, ...]. A step is followed once, over all slices at a time, and
written down; from then on nobody's Python, no autograd and no vmap stands between the operations (agents/stacking.py
says who asks for it).
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.fx import Graph, GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from agents.adam import KEPT, move
from agents.execution import leaves, rebuilt
from agents.learner import Learner, LossOf, Step
from agents.optimization import autocast

Named = dict[str, Tensor]
OPTIONS = ("lr", "betas", "eps", "weight_decay", "decoupled_weight_decay", "capturable")
"""Of Adam's groups: what may tell one seed's from another's."""
VIEWS = (torch.ops.aten.view.default, torch.ops.aten.expand.default, torch.ops.aten._unsafe_view.default)
"""Of which many change nothing."""


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
    """Clipped, by parameter."""
    norms: Tensor
    """[parameters] of the gradients before clipping."""
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
        self.stacked = {name: torch.stack([own[name].detach() for own in self.own]) for name in self.own[0]}
        for place, own in enumerate(self.own):
            for name, tensor in own.items():
                tensor.data = self.stacked[name][place]
        optimized = set(learners[0].optimization.parameters)
        self.names = [name for name, tensor in self.own[0].items() if tensor in optimized]
        self._moved: dict[Any, list[tuple[list[Tensor], ...]]] = {}  # lists for Adam
        for learner in learners:
            for network in (learner.network, learner.target):
                if network is not None:  # its weights move in the stack, unseen by what would round them again
                    network.rounded = autocast(learner.device, learner.precision)

    @property
    def learning(self) -> tuple[tuple[bool, ...], ...]:
        """Of each learner, which parameters learn now."""
        return tuple(tuple(own[name].requires_grad for name in self.names) for own in self.own)

    def trained(self, learning: tuple[tuple[bool, ...], ...]) -> list[str]:
        """The names of those that learn in any."""
        return [name for name, *any_of in zip(self.names, *learning, strict=True) if any(any_of)]

    def move(self, gradients: Named, learning: tuple[tuple[bool, ...], ...], may: Sequence[bool]) -> None:
        """A step of Adam along the stacked gradients, for the learners that `may` move."""
        slices = {name: gradient.unbind() for name, gradient in gradients.items()}
        for place, own in enumerate(self.own):
            for name, learns in zip(self.names, learning[place], strict=True):
                own[name].grad = slices[name][place] if learns else None
        kinds: dict[tuple, int] = {}  # of groups that one call of Adam can take
        owners = []  # of each kind, its first group and whose it is
        signature: list[int] = []
        for learner, moves in zip(self.learners, may, strict=True):
            guard = learner.optimization.guard
            for group in learner.optimization.adam.param_groups if moves else ():
                kind = (*(group[option] for option in OPTIONS), None if guard.immediate else id(guard))
                if kind not in kinds:
                    owners.append((group, guard))
                signature.append(kinds.setdefault(kind, len(kinds)))
        key = learning, tuple(may), tuple(signature)
        if key not in self._moved:
            self._moved[key] = self._lists(may, signature)
        for (group, guard), lists in zip(owners, self._moved[key], strict=True):
            move(group, *lists, None if guard.immediate else guard.found)

    def _lists(self, may: Sequence[bool], signature: Sequence[int]) -> list[tuple[list[Tensor], ...]]:
        """By kind: parameters, first and second moments, step counts."""
        found = [([], [], [], []) for _ in set(signature)]
        kinds = iter(signature)
        for learner, moves in zip(self.learners, may, strict=True):
            adam_of_one = learner.optimization.adam
            for group in adam_of_one.param_groups if moves else ():
                lists = found[next(kinds)]
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        state = adam_of_one.state[parameter]
                        for place, each in zip(lists, (parameter, *(state[name] for name in KEPT)), strict=True):
                            place.append(each)
        return found


class Traced:
    """`learn` of all learners, as operations on their stacked tensors."""

    def __init__(
        self, first: Learner, learn: Callable[[Any], Any], slices: Slices, trained: Sequence[str], *given: Any
    ) -> None:
        """`first`: whose Python is followed, with `learn`; `given`: a stacked batch and `Pull`."""
        self.trained, self.slices = trained, slices
        self._others = [name for name in slices.stacked if name not in trained]

        def whole(*tensors: Tensor) -> list[Tensor]:
            found = vmap(partial(_followed, first, learn, slices.roots[0]))(*rebuilt(self._given(*given), tensors))
            self._found = rebuilt(found, range(len(leaves(found))))
            return leaves(found)

        tensors = leaves(self._given(*given))
        with torch.no_grad():  # of the gradient inside it knows nothing
            module = make_fx(whole)(*tensors)
            _drop_idle(module.graph)
            module.recompile()
            self._run = module.forward if first.executor.captures else _without_python(module, tensors)

    def _given(self, batch: Any, pull: Pull) -> tuple:
        stacked = self.slices.stacked
        named = {name: stacked[name] for name in self.trained}, {name: stacked[name] for name in self._others}
        return *named, batch, pull

    def __call__(self, batch: Any, pull: Pull) -> Found:
        """What a gradient step on the stacked `batch` comes to."""
        with torch.no_grad():
            return rebuilt(self._found, self._run(*leaves(self._given(batch, pull))))


def _without_python(module: GraphModule, tensors: Sequence[Tensor]) -> Callable[..., list[Tensor]]:
    """The operations of `module` on such `tensors`, called by torch itself: calling them from Python takes as long as
    doing them does, where networks are small. The numbers are the same. From Python still, where torch cannot."""
    if not hasattr(torch.jit, "trace"):  # it is to go, and nothing else does it without a compiler
        return module.forward
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _replace_layer_norms(module.graph)
        module.recompile()
        try:
            return torch.jit.trace(module, tuple(tensors), check_trace=False, strict=False)
        except RuntimeError:
            return module.forward


def _replace_layer_norms(graph: Graph) -> None:
    """Put what torch.jit.trace knows in place of operations whose flags, and gradients of nothing, it does not."""
    for node in list(graph.nodes):
        if node.target is torch.ops.aten.native_layer_norm_backward.default and node.args[-1] == [True, False, False]:
            with graph.inserting_before(node):
                gradient = graph.call_function(_layer_norm_backward, node.args[:6])
            for user in list(node.users):
                user.replace_all_uses_with(gradient)  # the first of three, as nobody else's is there
    graph.eliminate_dead_code()


def _layer_norm_backward(*given: Any) -> Tensor:
    return _scripted(_first_gradient)(*given)


_scripted = cache(torch.jit.script)


def _first_gradient(
    gradient: Tensor, inputs: Tensor, shape: list[int], mean: Tensor, scale: Tensor, weight: Tensor | None
) -> Tensor:
    """That of the inputs."""
    wanted = [True, False, False]
    return torch.ops.aten.native_layer_norm_backward(gradient, inputs, shape, mean, scale, weight, None, wanted)[0]


def _drop_idle(graph: Graph) -> None:
    """Take out of `graph` what nobody uses, and views that are as what they view."""
    for node in graph.nodes:
        if node.target in VIEWS:
            before, after = node.args[0].meta["tensor_meta"], node.meta["tensor_meta"]
            if before.shape == after.shape and before.stride == after.stride:
                node.replace_all_uses_with(node.args[0])
    graph.eliminate_dead_code()


def _followed(
    first: Learner, learn: Callable[[Any], Any], root: Networks, trained: Named, others: Named, batch: Any, pull: Pull
) -> Found:
    """What `learn(batch)` of the learner `first` comes to with these tensors in place of its networks' own."""
    met: list[Found] = []

    def step(observations: Tensor, loss_of: LossOf, wanted: Any, **watched: Tensor) -> Step:
        def loss(parameters: Named) -> tuple[Tensor, Any]:
            inside = partial(first.outputs_and_loss, observations, loss_of, wanted)
            total, aside, captured = functional_call(root, parameters, (inside,))
            return total, (total, aside, captured)

        gradients, (loss, aside, captured) = grad(loss, has_aux=True)(trained)
        for name, pulled in pull.gradients.items():
            gradients[name] = gradients[name] + pulled
        norms = torch.stack([torch.linalg.vector_norm(gradient) for gradient in gradients.values()])
        norm, most = torch.linalg.vector_norm(norms), first.optimization.max_norm
        if most > 0:
            scale = (most / (norm + 1e-6)).clamp(max=1.0)
            gradients = {name: gradient * scale for name, gradient in gradients.items()}
        seen = (observations, captured) if first.interventions.stepping else ()
        whole = {"loss": loss + sum(pull.penalties.values())}
        gradients = {name: gradient.contiguous() for name, gradient in gradients.items()}
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
