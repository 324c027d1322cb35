"""Gradient norms, per-example gradients, and how the gradients of different examples agree.

`loss_fn(model, *batch)` gives the losses of a batch, [n] or 0-d; `batch` is a tensor or a tuple of tensors, each with n
examples along its first axis. Per-example gradients call it with one example at a time (first axis of length 1), so
that it may read anything of the model, parameters included. Call them with the model in evaluation mode: batch
statistics of one example mean nothing, and dropout is refused. The model, its gradients and buffers stay as they were.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.overrides import TorchFunctionMode

from plasticity_probes.norms import norms_by_name

Examples = Tensor | tuple[Tensor, ...]
LossFunction = Callable[..., Tensor]
COLUMNS = 2**16
"""Parameters over which inner products of gradients are taken at a time."""


def gradient_norms(model: nn.Module, gradients: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """||gradient||_2 of each parameter of `model` by name, and "total"; 0-d, detached.

    Of `gradients` by parameter name where given, else of the parameters' `.grad`; a parameter without one counts as 0.
    ValueError for a name that the model does not have, or a model without parameters.
    """
    named = dict(model.named_parameters())
    if gradients is None:
        gradients = {name: parameter.grad for name, parameter in named.items() if parameter.grad is not None}
    if unknown := sorted(gradients.keys() - named.keys()):
        raise ValueError(f"gradients names {unknown}: must be parameters of the model, {sorted(named)}")
    zeros = {name: torch.zeros((), device=parameter.device) for name, parameter in named.items()}
    return norms_by_name({name: gradients.get(name, zeros[name]).detach() for name in named})


class _Loss(nn.Module):
    """`loss_fn` with the model inside, so that swapped parameters reach it wherever it reads them."""

    def __init__(self, model: nn.Module, loss_fn: LossFunction) -> None:
        super().__init__()
        self.model, self.loss_fn = model, loss_fn

    def forward(self, *batch: Tensor) -> Tensor:
        return self.loss_fn(self.model, *batch)


class _NoMemoryFormat(TorchFunctionMode):
    """Drops `memory_format=` from every call: vmap refuses channels_last, which changes no value."""

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = {key: value for key, value in (kwargs or {}).items() if key != "memory_format"}
        return func(*args, **kwargs)


def as_batch(batch: Examples) -> tuple[Tensor, ...]:
    """`batch` as a tuple of tensors of equally many examples; ValueError where they differ or there are none."""
    tensors = (batch,) if isinstance(batch, Tensor) else tuple(batch)
    lengths = [tensor.shape[0] if tensor.dim() else 0 for tensor in tensors]
    if len(set(lengths)) != 1 or lengths[0] == 0:
        raise ValueError(f"batch with {lengths} examples: must be equally many in each tensor, and at least one")
    return tensors


def _trainable(model: nn.Module) -> list[Tensor]:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise ValueError("model has no parameter that requires a gradient: must have at least one")
    return parameters


def _places(module: nn.Module, names: dict[int, str]) -> dict[str, str]:
    """Every place where a parameter is kept, and its name in `names` (by id).

    A module that is registered twice is one place: swapping its parameters under both names would put the wrong ones
    back (torch's tie_weights does so). A parameter that two modules share has two.
    """
    return {
        f"{prefix}.{attribute}" if prefix else attribute: names[id(parameter)]
        for prefix, owner in module.named_modules()  # each module once, whatever its names
        for attribute, parameter in owner._parameters.items()
        if id(parameter) in names
    }


def per_example_gradients(
    model: nn.Module, loss_fn: LossFunction, batch: Examples, chunk_size: int = 32, vectorized: bool = True
) -> Tensor:
    """Gradient of each example's loss by all p parameters that require one, float32 [n, p], in `parameters()` order.

    Memory: 4 n p bytes for the result, and a forward pass of `chunk_size` examples that share no weight. `vectorized`
    runs a chunk at once under `torch.func.vmap`: quicker for dense networks and on a GPU; for convolutions on a CPU a
    loop over examples (False) is as quick (NatureCNN: 7 ms an example), and it serves models that vmap cannot run.
    ValueError for a batch without examples, chunk_size < 1, or a model without parameters that require a gradient.
    """
    if chunk_size < 1:
        raise ValueError(f"chunk_size = {chunk_size}: must be at least 1")
    tensors = as_batch(batch)
    sizes = [parameter.numel() for parameter in _trainable(model)]
    module = _Loss(model, loss_fn)
    parameters = {name: value.detach() for name, value in module.named_parameters() if value.requires_grad}
    places = _places(module, {id(value): name for name, value in module.named_parameters() if value.requires_grad})

    def loss(parameters: dict[str, Tensor], *example: Tensor) -> Tensor:
        alone = tuple(tensor.unsqueeze(0) for tensor in example)
        swapped = {name: value.clone() for name, value in module.named_buffers()}  # the model may write into these
        swapped |= {place: parameters[name] for place, name in places.items()}
        return functional_call(module, swapped, alone, tie_weights=False).sum()

    examples = len(tensors[0])
    rows = torch.empty(examples, sum(sizes), dtype=torch.float32, device=next(iter(parameters.values())).device)
    in_dims = (None, *(0 for _ in tensors))
    for start in range(0, examples, chunk_size if vectorized else 1):
        part = slice(start, start + chunk_size)
        if vectorized:
            with _NoMemoryFormat():
                gradients = vmap(grad(loss), in_dims)(parameters, *(tensor[part] for tensor in tensors))
        else:
            gradients = grad(loss)(parameters, *(tensor[start] for tensor in tensors))
            part = slice(start, start + 1)
        for columns, gradient in zip(rows[part].split(sizes, dim=1), gradients.values(), strict=True):
            columns.copy_(gradient.detach().reshape(columns.shape))
    return rows


def _products(rows: Tensor, others: Tensor) -> Tensor:
    """Inner products of the rows [n, p] and [m, p], float32 [n, m]: some columns at a time in float32, added up in
    float64. One float32 product over a million columns is off by 2e-6 of the largest."""
    pieces = zip(rows.split(COLUMNS, 1), others.split(COLUMNS, 1), strict=True)
    total = rows.new_zeros(len(rows), len(others), dtype=torch.float64)
    for left, right in pieces:
        total += left @ right.T
    return total.to(rows.dtype)


def gradient_gram(
    model: nn.Module,
    loss_fn: LossFunction,
    batch: Examples,
    chunk_size: int = 32,
    vectorized: bool = True,
    max_bytes: int = 2**30,
) -> Tensor:
    """Inner products <g_i, g_j> of all examples' gradients, float32 [n, n], without holding more than about `max_bytes`
    of gradients at a time.

    Where all n gradients fit, each is computed once; else blocks of b = max_bytes / (8 p) examples are taken two by two
    and gradients are computed again, (n / b + 1) / 2 times on average. 512 examples of NatureCNN (p = 1.7 million) are
    3.5 GB: b = 79 and four times the work at the default 1 GiB; one pass with 4 GiB. Other arguments and errors as of
    `per_example_gradients`.
    """
    tensors = as_batch(batch)
    row_bytes = 4 * sum(parameter.numel() for parameter in _trainable(model))
    examples = len(tensors[0])
    block = examples if examples * row_bytes <= max_bytes else max(1, max_bytes // (2 * row_bytes))

    def rows(start: int) -> Tensor:
        part = tuple(tensor[start : start + block] for tensor in tensors)
        return per_example_gradients(model, loss_fn, part, chunk_size, vectorized)

    gram = None
    for start in range(0, examples, block):
        here = rows(start)
        gram = here.new_empty(examples, examples) if gram is None else gram
        across = slice(start, start + block)
        gram[across, across] = _products(here, here)
        for other in range(start + block, examples, block):
            down = slice(other, other + block)
            gram[across, down] = _products(here, rows(other))
            gram[down, across] = gram[across, down].T
    return (gram + gram.T) / 2


def require_square(matrix: Tensor, name: str) -> None:
    """ValueError, naming it `name`, unless `matrix` is square and not empty."""
    if matrix.dim() != 2 or matrix.shape[0] != matrix.shape[1] or matrix.numel() == 0:
        raise ValueError(f"{name} of shape {tuple(matrix.shape)}: must be [n, n], not empty")


def cosine_matrix(gram: Tensor) -> Tensor:
    """Cosines K_ij / sqrt(K_ii K_jj) from inner products [n, n], float32. The row and column of a zero vector are 0."""
    require_square(gram, "gram")
    gram = gram.detach().float()
    lengths = gram.diagonal().clamp(min=0).sqrt()
    inverse = torch.where(lengths == 0, 0.0, 1 / lengths)
    return (gram * inverse[:, None] * inverse).clamp(-1, 1)


def gradient_covariance(gradients: Tensor) -> Tensor:
    """Cosines between the gradients [n, p] of n examples (Lyle23 takes 512): float32 [n, n].

    From `per_example_gradients`; where those do not fit, `cosine_matrix(gradient_gram(...))` gives the same. ValueError
    unless `gradients` is a matrix with entries.
    """
    if gradients.dim() != 2 or gradients.numel() == 0:
        raise ValueError(f"gradients of shape {tuple(gradients.shape)}: must be [examples, parameters], not empty")
    rows = gradients.detach().float()
    return cosine_matrix(_products(rows, rows))


def negative_share(cosines: Tensor) -> Tensor:
    """Share of the pairs i < j of `cosines` [n, n] below 0: pairs of examples of which learning one unlearns the other;
    0-d. ValueError unless n >= 2."""
    require_square(cosines, "cosines")
    examples = len(cosines)
    if examples < 2:
        raise ValueError("cosines of 1 example: must be of at least 2")
    negative = (cosines.detach() < 0).triu(1).sum() / (examples * (examples - 1) / 2)
    return torch.where(cosines.detach().isnan().any(), torch.nan, negative)


def _k_means(rows: Tensor, clusters: int, iterations: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Lloyd's algorithm from a k-means++ start: each row's cluster, and its distance to that cluster's centre."""
    centres = rows[torch.randint(len(rows), (1,), generator=generator)]
    for _ in range(clusters - 1):
        nearest = torch.cdist(rows, centres).amin(1).square()
        centres = torch.cat([centres, rows[torch.multinomial(nearest + 1e-12, 1, generator=generator)]])
    for _ in range(iterations):
        members = nn.functional.one_hot(torch.cdist(rows, centres).argmin(1), clusters).to(rows.dtype)
        sizes = members.sum(0).unsqueeze(1)
        centres = torch.where(sizes > 0, members.T @ rows / sizes.clamp(min=1), centres)
    distances, assigned = torch.cdist(rows, centres).min(1)
    return assigned, distances


def cluster_order(
    cosines: Tensor, clusters: int = 8, iterations: int = 20, generator: torch.Generator | None = None
) -> Tensor:
    """Order of rows that shows the clusters of `cosines` [n, n] in a picture: int64 [n] on the CPU.

    k-means of the rows (Lyle23), largest cluster first, within a cluster the rows nearest to its centre first; show
    `cosines[order][:, order]`. For pictures: it computes on the CPU. `generator` is a CPU generator; without one the
    order is that of seed 0. ValueError unless `cosines` is square and finite.
    """
    require_square(cosines, "cosines")
    rows = cosines.detach().double().cpu()
    if not torch.isfinite(rows).all():
        raise ValueError("cosines holds NaN or infinity: must be finite")
    generator = generator or torch.Generator().manual_seed(0)
    clusters = min(clusters, len(rows))
    assigned, distances = (values.tolist() for values in _k_means(rows, clusters, iterations, generator))
    sizes = [assigned.count(cluster) for cluster in range(clusters)]
    keys = [(-sizes[cluster], cluster, distance) for cluster, distance in zip(assigned, distances, strict=True)]
    return torch.tensor(sorted(range(len(rows)), key=keys.__getitem__))
