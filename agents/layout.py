"""How the weights of dense layers lie in memory.

torch lays a Linear's weight [units, inputs] row by row: a unit's weights lie side by side, and a product with a batch
goes through them across. Laid the other way round, all units' weights of an input side by side, the same product takes
a CPU about four fifths of the time (`python -m benchmarks.layout`). The gradient of a layer's inputs takes as much
longer, but the first layer needs none, and a target network none at all. No shape and no value changes, as with
channels_last.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def lay_out(network: nn.Module) -> nn.Module:
    """`network`, with the weights of its Linear layers on a CPU laid out as products read them; as it is where it has
    convolutions, beside which these take little time."""
    modules = list(network.modules())
    if not any(isinstance(module, nn.Conv2d) for module in modules):
        for module in modules:
            if isinstance(module, nn.Linear) and module.weight.device.type == "cpu":
                module.weight.data = module.weight.data.t().contiguous().t()
    return network


def laid_as(tensor: Tensor, other: Tensor) -> Tensor:
    """`tensor` in the layout of `other`, of its shape; itself where it has that."""
    return tensor if tensor.stride() == other.stride() else torch.empty_like(other).copy_(tensor)


def as_it_lies(tensor: Tensor) -> Tensor:
    """`tensor` with its dimensions in the order in which they lie in memory: a view that is contiguous."""
    if tensor.is_contiguous():
        return tensor
    if tensor.dim() == 2:
        return tensor.t()
    return tensor.permute(sorted(range(tensor.dim()), key=tensor.stride, reverse=True))


def stacked(tensors: Sequence[Tensor]) -> Tensor:
    """torch.stack of tensors of one layout, each of which keeps it as a slice."""
    first = tensors[0]
    strides = first.numel(), *first.stride()
    whole = torch.empty_strided((len(tensors), *first.shape), strides, dtype=first.dtype, device=first.device)
    return torch.stack([tensor.detach() for tensor in tensors], out=whole)
