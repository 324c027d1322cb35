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
        if node.target not in FLAGGED or tuple(node.args[-1]) not in FLAGGED[node.target]:
            continue
        function, wanted = FLAGGED[node.target][tuple(node.args[-1])]
        with graph.inserting_before(node):
            found = graph.call_function(function, node.args[:-1])
            for user in list(node.users):  # which take one of the three each
                gradient = graph.call_function(getitem, (found, wanted.index(user.args[1])))
                user.replace_all_uses_with(gradient)
    graph.eliminate_dead_code()


def _scripted(function: Callable[..., list[Tensor]]) -> Callable[..., list[Tensor]]:
    """`function`, compiled at its first call."""
    script = cache(torch.jit.script)
    return wraps(function)(lambda *given: script(function)(*given))


@_scripted
def _norm_inputs(
    gradient: Tensor,
    inputs: Tensor,
    shape: list[int],
    mean: Tensor,
    scale: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
) -> list[Tensor]:
    flags = [True, False, False]
    return [torch.ops.aten.native_layer_norm_backward(gradient, inputs, shape, mean, scale, weight, bias, flags)[0]]


@_scripted
def _norm_all(
    gradient: Tensor,
    inputs: Tensor,
    shape: list[int],
    mean: Tensor,
    scale: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
) -> list[Tensor]:
    flags = [True, True, True]
    found = torch.ops.aten.native_layer_norm_backward(gradient, inputs, shape, mean, scale, weight, bias, flags)
    return [found[0], found[1], found[2]]


@_scripted
def _maps_norm_all(
    gradient: Tensor,
    inputs: Tensor,
    mean: Tensor,
    scale: Tensor,
    weight: Tensor | None,
    images: int,
    channels: int,
    pixels: int,
    groups: int,
) -> list[Tensor]:
    flags = [True, True, True]
    found = torch.ops.aten.native_group_norm_backward(
        gradient, inputs, mean, scale, weight, images, channels, pixels, groups, flags
    )
    return [found[0], found[1], found[2]]


@_scripted
def _convolution_weights(
    gradient: Tensor,
    inputs: Tensor,
    weight: Tensor,
    sizes: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    beyond: list[int],
    groups: int,
) -> list[Tensor]:
    flags = [False, True, True]
    found = torch.ops.aten.convolution_backward(
        gradient, inputs, weight, sizes, stride, padding, dilation, transposed, beyond, groups, flags
    )
    return [found[1], found[2]]


@_scripted
def _convolution_all(
    gradient: Tensor,
    inputs: Tensor,
    weight: Tensor,
    sizes: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    beyond: list[int],
    groups: int,
) -> list[Tensor]:
    flags = [True, True, True]
    found = torch.ops.aten.convolution_backward(
        gradient, inputs, weight, sizes, stride, padding, dilation, transposed, beyond, groups, flags
    )
    return [found[0], found[1], found[2]]


FLAGGED = {
    aten.native_layer_norm_backward.default: {
        (True, False, False): (_norm_inputs, (0,)),
        (True, True, True): (_norm_all, (0, 1, 2)),
    },
    aten.native_group_norm_backward.default: {(True, True, True): (_maps_norm_all, (0, 1, 2))},
    aten.convolution_backward.default: {
        (False, True, True): (_convolution_weights, (1, 2)),
        (True, True, True): (_convolution_all, (0, 1, 2)),
    },
}
"""By operation and flags of the gradients wanted (of inputs, weight, bias): what gives these, and which they are."""


def _simplify(module: GraphModule) -> None:
    """Take out of the operations of `module` what changes no number: what nobody uses, views that are as what they view
    or that are there already, factors and powers of one, what is spread before an operation that spreads by itself,
    and copies of constants, which are made here once."""
    graph = module.graph
    written = {node.args[0] for node in graph.nodes if _writes(node)}
    if any(node.target in VIEWS for node in written):
        return  # what else it views is not looked for
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


def _returned(node: Node) -> bool:
    return any(user.op == "output" for user in node.users)


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
        apart = _returned(node) or _before(node) in written
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
