"""A function of tensors as a flat list of operations: followed once, and from then on called by torch itself.

Nobody's Python, no autograd and no vmap stand between the operations. Where networks are small, these take longer than
the operations do.
"""

import warnings
from collections.abc import Callable, Collection, Hashable, Sequence
from functools import cache, wraps
from operator import getitem
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.passes.shape_prop import TensorMetadata

from agents.execution import leaves, rebuilt

aten = torch.ops.aten
VIEWS = (
    aten.view.default,
    aten._unsafe_view.default,
    aten.expand.default,
    aten.permute.default,
    aten.transpose.int,
    aten.unsqueeze.default,
    aten.detach.default,
)
"""Of which many change nothing."""
CONSTANTS = (aten._to_copy.default, aten.lift_fresh_copy.default, aten.scalar_tensor.default)
"""What makes one of one, or of a number."""
BROADCAST = (aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor)
"""Which spread what is given to them by themselves."""


class Traced:
    """`function`, of nests of tensors, as its operations: first on the very ones that are `held`, which may be edited
    in place, then on such as are `given`. It reads and draws nothing else."""

    def __init__(self, function: Callable[..., Any], held: tuple, given: tuple) -> None:
        self._held = leaves(held)
        tensors, everything = [*self._held, *leaves(given)], (*held, *given)

        def whole(*tensors: Tensor) -> list[Tensor]:
            found = function(*rebuilt(everything, tensors))
            self._found = rebuilt(found, range(len(leaves(found))))
            return leaves(found)

        with torch.no_grad():  # of a gradient inside it knows nothing
            module = make_fx(whole)(*tensors)
            _simplify(module)
            module.recompile()
            on_cpu = all(tensor.device.type == "cpu" for tensor in tensors)
            self._run = _without_python(module, tensors) if on_cpu else module.forward

    def __call__(self, *given: Any) -> Any:
        """What the function gives of what is held and of `given`."""
        with torch.no_grad():
            return rebuilt(self._found, self._run(*self._held, *leaves(given)))


def _without_python(module: GraphModule, tensors: Sequence[Tensor]) -> Callable[..., list[Tensor]]:
    """The operations of `module` on such `tensors`, called by torch itself: calling them from Python takes as long as
    doing them does, where networks are small. The numbers are the same. From Python still, where torch cannot."""
    if not hasattr(torch.jit, "trace"):  # it is to go, and nothing else does it without a compiler
        return module.forward
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _replace_flagged(module.graph)
        module.recompile()
        try:
            listed = torch.jit.trace(module, tuple(tensors), check_trace=False, strict=False)
        except RuntimeError:
            return module.forward

    def run(*tensors: Tensor) -> list[Tensor]:
        with torch.jit.optimized_execution(False):  # which would take addmm apart, and so round differently
            return listed(*tensors)

    return run


def _replace_flagged(graph: Graph) -> None:
    """Put what torch.jit.trace knows in place of operations whose flags, and gradients of nothing, it does not."""
    for node in list(graph.nodes):
        if node.target not in FLAGGED:
            continue
        *given, flags = node.args
        wanted = [place for place, flag in enumerate(flags) if flag]
        with graph.inserting_before(node):
            found = graph.call_function(FLAGGED[node.target], (*given, *flags))
            for user in list(node.users):  # which take one of the three each
                gradient = graph.call_function(getitem, (found, wanted.index(user.args[1])))
                user.replace_all_uses_with(gradient)
    graph.eliminate_dead_code()


def _scripted(function: Callable[..., list[Tensor]]) -> Callable[..., list[Tensor]]:
    """`function`, compiled at its first call."""
    compiled = cache(lambda: torch.jit.script(function))
    return wraps(function)(lambda *given: compiled()(*given))


def _wanted(found: tuple[Tensor, Tensor, Tensor], inputs: bool, weight: bool, bias: bool) -> list[Tensor]:
    """Those of the gradients that there are."""
    kept: list[Tensor] = []
    if inputs:
        kept.append(found[0])
    if weight:
        kept.append(found[1])
    if bias:
        kept.append(found[2])
    return kept


@_scripted
def _layer_norm(
    gradient: Tensor,
    x: Tensor,
    shape: list[int],
    mean: Tensor,
    scale: Tensor,
    weights: Tensor | None,
    biases: Tensor | None,
    inputs: bool,
    weight: bool,
    bias: bool,
) -> list[Tensor]:
    flags = [inputs, weight, bias]
    found = torch.ops.aten.native_layer_norm_backward(gradient, x, shape, mean, scale, weights, biases, flags)
    return _wanted(found, inputs, weight, bias)


@_scripted
def _group_norm(
    gradient: Tensor,
    x: Tensor,
    mean: Tensor,
    scale: Tensor,
    weights: Tensor | None,
    images: int,
    channels: int,
    pixels: int,
    groups: int,
    inputs: bool,
    weight: bool,
    bias: bool,
) -> list[Tensor]:
    flags = [inputs, weight, bias]
    found = torch.ops.aten.native_group_norm_backward(
        gradient, x, mean, scale, weights, images, channels, pixels, groups, flags
    )
    return _wanted(found, inputs, weight, bias)


@_scripted
def _convolution(
    gradient: Tensor,
    x: Tensor,
    weights: Tensor,
    sizes: list[int] | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    beyond: list[int],
    groups: int,
    inputs: bool,
    weight: bool,
    bias: bool,
) -> list[Tensor]:
    flags = [inputs, weight, bias]
    found = torch.ops.aten.convolution_backward(
        gradient, x, weights, sizes, stride, padding, dilation, transposed, beyond, groups, flags
    )
    return _wanted(found, inputs, weight, bias)


FLAGGED = {
    aten.native_layer_norm_backward.default: _layer_norm,
    aten.native_group_norm_backward.default: _group_norm,
    aten.convolution_backward.default: _convolution,
}
"""Operations whose last argument says which gradients are wanted (of inputs, weight, bias), and what gives these."""


def _simplify(module: GraphModule) -> None:
    """Take out of the operations of `module` what changes no number: what nobody uses, views that are as what they view
    or that are there already, factors and powers of one, what is spread before an operation that spreads by itself,
    and copies of constants, which are made here once."""
    graph = module.graph
    written = {_root(node.args[0]) for node in graph.nodes if _writes(node)}
    known: dict[Hashable, Node] = {}
    for node in graph.nodes:
        if node in written or node.op != "call_function":
            continue
        same = _before(node) if _idle(node, written) else None
        if node.target in VIEWS and same is None:
            same = known.setdefault((node.target, *map(_hashable, node.args)), node)
        if same is not None and same is not node:
            node.replace_all_uses_with(same)
        elif node.target in BROADCAST:
            _unspread(node)
        elif node.target in CONSTANTS and not _returned(node):
            _fold(module, node)
    graph.eliminate_dead_code()


def _writes(node: Node) -> bool:
    return isinstance(node.target, OpOverload) and node.target._schema.is_mutable


def _views(node: Node) -> bool:
    """Whether what `node` gives may lie where its first argument does."""
    if isinstance(node.target, OpOverload):
        return node.target in VIEWS or any(one.alias_info for one in node.target._schema.returns)
    return node.target is getitem


def _root(node: Node) -> Node:
    """What has the memory that `node` views; itself where it has its own."""
    while _views(node):
        node = node.args[0]
    return node


def _returned(node: Node) -> bool:
    return any(user.op == "output" or (_views(user) and _returned(user)) for user in node.users)


def _before(node: Node) -> Node:
    return node.args[0]


def _hashable(argument: Any) -> Hashable:
    return tuple(argument) if isinstance(argument, list) else argument


def _seen(node: Any) -> TensorMetadata | None:
    """What is known of the tensor of `node`."""
    return node.meta.get("tensor_meta") if isinstance(node, Node) else None


def _idle(node: Node, written: Collection[Node]) -> bool:
    """Whether `node` gives nothing but what it is given."""
    if node.target in VIEWS:
        before, after = _seen(_before(node)), _seen(node)
        return (before.shape, before.stride) == (after.shape, after.stride)
    if node.target in (aten.mul.Tensor, aten.pow.Tensor_Scalar) and node.args[1] == 1:
        # what is returned is to be another tensor than what is given
        apart = _returned(node) or _root(_before(node)) in written
        return not apart and _seen(_before(node)).dtype == _seen(node).dtype
    return False


def _unspread(node: Node) -> None:
    """Give `node` what is expanded as it was before, where another tensor has the whole shape."""
    for place, other in ((0, 1), (1, 0)):
        spread, whole = node.args[place], _seen(node.args[other])
        expanded = isinstance(spread, Node) and spread.target is aten.expand.default
        if expanded and whole is not None and whole.shape == _seen(node).shape:
            node.update_arg(place, _before(spread))


def _fold(module: GraphModule, node: Node) -> None:
    """Keep what `node` makes of constants."""
    if any(isinstance(one, Node) and one.op != "get_attr" for one in node.all_input_nodes):
        return
    given = [getattr(module, one.target) if isinstance(one, Node) else one for one in node.args]
    name = f"_kept_{node.name}"
    module.register_buffer(name, node.target(*given, **node.kwargs))
    with module.graph.inserting_before(node):
        kept = module.graph.get_attr(name)
    kept.meta = dict(node.meta)
    node.replace_all_uses_with(kept)
