"""Sizes of weights and gradients."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def global_norm(tensors: Iterable[Tensor]) -> Tensor:
    """Euclidean norm of all entries of all `tensors` together; 0-d, on their device. No tensors: ValueError."""
    parts = list(tensors)
    if not parts:
        raise ValueError("tensors = []: must hold at least one tensor")
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(parts)))


def weight_norms(model: nn.Module) -> dict[str, Tensor]:
    """||theta||_2 of each parameter of `model` by name, and "total" over all; 0-d tensors, detached (Lyle24)."""
    named = {name: parameter.detach() for name, parameter in model.named_parameters()}
    norms = dict(zip(named, torch._foreach_norm(list(named.values())), strict=True))
    return {**norms, "total": torch.linalg.vector_norm(torch.stack(list(norms.values())))}
