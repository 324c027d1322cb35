"""A function of tensors as a flat list of operations: followed once, and from then on called by torch itself.

Nobody's Python, no autograd and no vmap stand between the operations. Where networks are small, these take longer than
the operations do.
"""

import warnings
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from agents.execution import leaves, rebuilt

VIEWS = (torch.ops.aten.view.default, torch.ops.aten.expand.default, torch.ops.aten._unsafe_view.default)
"""Of which many change nothing."""


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
            _drop_idle(module.graph)
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
        _replace_layer_norms(module.graph)
        module.recompile()
        try:
            listed = torch.jit.trace(module, tuple(tensors), check_trace=False, strict=False)
        except RuntimeError:
            return module.forward

    def run(*tensors: Tensor) -> list[Tensor]:
        with torch.jit.optimized_execution(False):  # which would take addmm apart, and so round differently
            return listed(*tensors)

    return run


def _replace_layer_norms(graph: Graph) -> None:
    """Put what torch.jit.trace knows in place of operations whose flags, and gradients of nothing, it does not."""
    for node in list(graph.nodes):
        if node.target is not torch.ops.aten.native_layer_norm_backward.default:
            continue
        with graph.inserting_before(node):
            if all(node.args[-1]):
                node.replace_all_uses_with(graph.call_function(_all_gradients, node.args[:-1]))
            elif node.args[-1] == [True, False, False]:
                gradient = graph.call_function(_first_gradient, node.args[:-1])
                for user in list(node.users):
                    user.replace_all_uses_with(gradient)  # the first of three, as nobody else's is there
    graph.eliminate_dead_code()


def _first_gradient(*given: Any) -> Tensor:
    return _scripted(_of_inputs)(*given)


def _all_gradients(*given: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _scripted(_of_all)(*given)


_scripted = cache(torch.jit.script)


def _of_inputs(
    gradient: Tensor,
    inputs: Tensor,
    shape: list[int],
    mean: Tensor,
    scale: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
) -> Tensor:
    """The gradient of a layer norm's inputs."""
    wanted = [True, False, False]
    return torch.ops.aten.native_layer_norm_backward(gradient, inputs, shape, mean, scale, weight, bias, wanted)[0]


def _of_all(
    gradient: Tensor,
    inputs: Tensor,
    shape: list[int],
    mean: Tensor,
    scale: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Those of its inputs, weight and bias."""
    wanted = [True, True, True]
    return torch.ops.aten.native_layer_norm_backward(gradient, inputs, shape, mean, scale, weight, bias, wanted)


def _drop_idle(graph: Graph) -> None:
    """Take out of `graph` what nobody uses, and views that are as what they view."""
    for node in graph.nodes:
        if node.target in VIEWS:
            before, after = node.args[0].meta["tensor_meta"], node.meta["tensor_meta"]
            if before.shape == after.shape and before.stride == after.stride:
                node.replace_all_uses_with(node.args[0])
    graph.eliminate_dead_code()
