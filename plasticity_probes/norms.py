"""Sizes of weights and of their changes. Results are 0-d, detached float32 tensors on the weights' device, by parameter
name, with "total" over all of them."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn


def global_norm(tensors: Iterable[Tensor]) -> Tensor:
    """Euclidean norm of all entries of all `tensors` together; 0-d, on their device. No tensors: ValueError."""
    parts = list(tensors)
    if not parts:
        raise ValueError("tensors = []: must hold at least one tensor")
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(parts)))


def _named_parameters(model: nn.Module) -> dict[str, Tensor]:
    named = {name: parameter.detach() for name, parameter in model.named_parameters()}
    if not named:
        raise ValueError("model has no parameters: must have at least one")
    return named


def norms_by_name(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Euclidean norm of each of `tensors` by name, and "total" over all; 0-d each. No tensors: ValueError."""
    if not tensors:
        raise ValueError("tensors = {}: must hold at least one tensor")
    parts = [norm.float() for norm in torch._foreach_norm(list(tensors.values()))]
    return {**dict(zip(tensors, parts, strict=True)), "total": torch.linalg.vector_norm(torch.stack(parts))}


def weight_norms(model: nn.Module) -> dict[str, Tensor]:
    """||theta||_2 of each parameter of `model` by name, and "total" over all (Lyle24). No parameters: ValueError."""
    return norms_by_name(_named_parameters(model))


def mean_abs_weight(model: nn.Module) -> dict[str, Tensor]:
    """Mean |theta| of each parameter of `model` by name, and "total" over all entries together (Dohare24). No
    parameters: ValueError."""
    named = _named_parameters(model)
    sums = torch.stack([total.float() for total in torch._foreach_norm(list(named.values()), 1)])
    sizes = [parameter.numel() for parameter in named.values()]
    means = {name: total / size for name, total, size in zip(named, sums, sizes, strict=True)}
    return {**means, "total": sums.sum() / sum(sizes)}


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """Detached copies of the parameters of `model` by name: a reference for `weight_change`."""
    return {name: parameter.clone() for name, parameter in _named_parameters(model).items()}


def weight_change(model: nn.Module, reference: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Root mean square of theta - theta_reference of each parameter of `model`, and "total" over all entries together.

    `reference` comes from `snapshot`: of the last probe, or of the initialisation. ValueError where its names or shapes
    are not the model's.
    """
    named = _named_parameters(model)
    if named.keys() != reference.keys():
        raise ValueError(f"reference names {sorted(reference)}: must be the model's, {sorted(named)}")
    for name, parameter in named.items():
        if parameter.shape != reference[name].shape:
            shapes = f"{tuple(reference[name].shape)}: must be {tuple(parameter.shape)}"
            raise ValueError(f"reference[{name!r}] of shape {shapes}")
    changes = torch._foreach_sub(list(named.values()), [reference[name] for name in named])
    norms = norms_by_name(dict(zip(named, changes, strict=True)))
    sizes = {name: parameter.numel() for name, parameter in named.items()}
    sizes["total"] = sum(sizes.values())
    return {name: norm / sizes[name] ** 0.5 for name, norm in norms.items()}


def effective_learning_rate(model: nn.Module, lr: float, kind: str = "adam") -> dict[str, Tensor]:
    """How far a step of size `lr` turns each weight matrix: lr / ||W|| for "adam", lr / ||W||^2 for "sgd" (NaP).

    By name, for parameters of two or more dimensions (weights, not biases and gains); there is no "total". It describes
    scale-invariant layers, those followed by a normalisation: choose them by name. Infinite for a zero matrix.
    ValueError for another kind, or where `model` has no such parameter.
    """
    if kind not in ("adam", "sgd"):
        raise ValueError(f"kind = {kind!r}: must be 'adam' or 'sgd'")
    weights = {name: parameter for name, parameter in _named_parameters(model).items() if parameter.dim() >= 2}
    if not weights:
        raise ValueError("model has no weight matrix: must have a parameter of two or more dimensions")
    norms = norms_by_name(weights)
    return {name: lr / (norms[name] if kind == "adam" else norms[name].square()) for name in weights}
