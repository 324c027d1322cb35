"""Sizes of weights and of their changes. Results are 0-d, detached float32 tensors on the weights' device, by parameter
name, with "total" over all of them.

They are summed up in float64 and rounded once. (A float32 norm of torch's, added up one after another, is off by 1e-4
for 512 x 3,136 weights, and by another 1e-4 with another number of threads.) `quick_norms` is for every gradient step.
"""

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

LONG = 2**14
"""Numbers whose squares a CPU can add up in float32 one after another with an error of about 1e-6."""
PIECE = 2**16
"""Numbers that a CPU takes at a time in float64, so that they stay in its cache."""


def quick_norms(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Euclidean norm of each of `tensors`, 0-d, to about 1e-6, in the time of one pass in their own precision: what a
    gradient step can afford. On a CPU the norms of a large tensor's rows come first and then the norm of these; a GPU
    adds in a tree anyway."""
    return list(torch._foreach_norm([_shortened(tensor) for tensor in tensors]))


def _shortened(tensor: Tensor) -> Tensor:
    """`tensor`, or, of a long one on a CPU, a short vector of the same norm."""
    if tensor.numel() <= LONG or tensor.device.type != "cpu":
        return tensor
    if tensor.dim() == 2 and tensor.stride(0) == 1:
        tensor = tensor.t()  # whose rows lie side by side
    rows = tensor.shape[0]
    if rows <= LONG and tensor.numel() // rows <= LONG:
        return torch.linalg.vector_norm(tensor, dim=tuple(range(1, tensor.dim())))  # flattened, some layouts are copied
    return torch.linalg.vector_norm(tensor, dtype=torch.float64).to(tensor.dtype)


def global_norm(tensors: Iterable[Tensor]) -> Tensor:
    """Euclidean norm of all entries of all `tensors` together, as `quick_norms` takes it; 0-d, on their device. No
    tensors: ValueError."""
    parts = list(tensors)
    if not parts:
        raise ValueError("tensors = []: must hold at least one tensor")
    return torch.linalg.vector_norm(torch.stack(quick_norms(parts)))


def float64_sum(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """Sum over the entries of function(*tensors), 0-d float64, with the tensors, of one shape, as float64 vectors; they
    are never changed. Piece by piece on a CPU. The same for any number of threads up to about 1e-15."""
    flat = [tensor.detach().reshape(-1) for tensor in tensors]
    pieces = zip(*(x.split(PIECE if x.device.type == "cpu" else max(x.numel(), 1)) for x in flat), strict=True)
    return torch.stack([function(*(piece.double() for piece in together)).sum() for together in pieces]).sum()


def _with_total(names: Iterable[str], each: Tensor, total: Tensor) -> dict[str, Tensor]:
    return {**dict(zip(names, each.float(), strict=True)), "total": total.float()}


def _named_parameters(model: nn.Module) -> dict[str, Tensor]:
    named = {name: parameter.detach() for name, parameter in model.named_parameters()}
    if not named:
        raise ValueError("model has no parameters: must have at least one")
    return named


def norms_by_name(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Euclidean norm of each of `tensors` by name, and "total" over all; 0-d each. No tensors: ValueError."""
    if not tensors:
        raise ValueError("tensors = {}: must hold at least one tensor")
    squares = torch.stack([float64_sum(torch.square, tensor) for tensor in tensors.values()])
    return _with_total(tensors, squares.sqrt(), squares.sum().sqrt())


def weight_norms(model: nn.Module) -> dict[str, Tensor]:
    """||theta||_2 of each parameter of `model` by name, and "total" over all (Lyle24). No parameters: ValueError."""
    return norms_by_name(_named_parameters(model))


def mean_abs_weight(model: nn.Module) -> dict[str, Tensor]:
    """Mean |theta| of each parameter of `model` by name, and "total" over all entries together (Dohare24). No
    parameters: ValueError."""
    named = _named_parameters(model)
    sums = torch.stack([float64_sum(torch.abs, parameter) for parameter in named.values()])
    sizes = _sizes(named).to(sums)
    return _with_total(named, sums / sizes, sums.sum() / sizes.sum())


def _sizes(named: Mapping[str, Tensor]) -> Tensor:
    return torch.tensor([parameter.numel() for parameter in named.values()])


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
    pairs = [(parameter, reference[name]) for name, parameter in named.items()]
    squares = torch.stack([float64_sum(lambda now, then: (now - then).square(), *pair) for pair in pairs])
    sizes = _sizes(named).to(squares)
    return _with_total(named, (squares / sizes).sqrt(), (squares.sum() / sizes.sum()).sqrt())


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
