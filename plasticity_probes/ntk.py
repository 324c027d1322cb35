"""The empirical neural tangent kernel: how learning one example moves the prediction of another."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from plasticity_probes.gradients import Examples, gradient_gram, require_square
from plasticity_probes.rank import effective_rank, symmetric_eigenvalues

ScalarOutput = str | Callable[[Tensor], Tensor]


def _scalar_output(output: ScalarOutput) -> Callable[..., Tensor]:
    """loss_fn(model, *inputs) -> [n]: the scalar of each example whose gradient is taken."""
    if output == "sum":
        return lambda model, *inputs: model(*inputs).flatten(1).sum(1)
    if output == "max":
        return lambda model, *inputs: model(*inputs).flatten(1).amax(1)
    if callable(output):
        return lambda model, *inputs: output(model(*inputs))
    raise ValueError(f"output = {output!r}: must be 'sum', 'max' or a function of the model's outputs")


def ntk(
    model: nn.Module,
    batch: Examples,
    output: ScalarOutput = "sum",
    chunk_size: int = 32,
    vectorized: bool = True,
    max_bytes: int = 2**30,
) -> Tensor:
    """K_ij = <grad f(x_i), grad f(x_j)> over all parameters that require a gradient; float32 [n, n] (Lyle23, Lyle24).

    `batch` holds the model's inputs, [n, ...] each; 256 samples are a good choice (the rank cannot exceed their number;
    Lyle24 took 64). f is one scalar an example, and the value depends on which: "sum" of all outputs, "max" of them
    (the greedy action's Q), or a function from the outputs [n, ...] to [n], for example C51's expected Q. Name it in
    the tag. Cost: a backward pass an example, and memory as of `gradient_gram`, which describes the other arguments and
    errors.
    """
    return gradient_gram(model, _scalar_output(output), batch, chunk_size, vectorized, max_bytes)


def ntk_statistics(kernel: Tensor, tolerance: float | None = None) -> dict[str, Tensor]:
    """Of a kernel [n, n], 0-d float32 each, with eigenvalues l_1 >= ... >= l_n (in float64, negative ones taken as 0):

    "rank": number of l_i > tolerance * l_1; `tolerance` is n * 1.2e-7 by default, to which a float32 kernel is exact.
    "effective_rank": exp of the entropy of l / sum l.
    "condition_number": l_1 / max(l_n, tolerance * l_1), so at most 1 / tolerance.
    "off_diagonal_share": sum of |K_ij|, i != j, over sum of |K_ij|: 0 where examples do not interfere, (n - 1) / n
    where all gradients are the same.

    A zero kernel has both ranks 0, condition number and share NaN; a kernel with NaN gives NaN. On a GPU torch's
    eigensolver reads its own status back. ValueError unless [n, n] and tolerance > 0.
    """
    require_square(kernel, "kernel")
    if tolerance is None:
        tolerance = len(kernel) * torch.finfo(torch.float32).eps
    if tolerance <= 0:
        raise ValueError(f"tolerance = {tolerance}: must be above 0")
    values = kernel.detach().double()
    eigenvalues = symmetric_eigenvalues(values).clamp(min=0)
    floor = tolerance * eigenvalues[0]
    rank = (eigenvalues > floor).sum()
    sizes = values.abs()
    return {
        "rank": torch.where(floor.isnan(), torch.nan, rank).float(),
        "effective_rank": effective_rank(eigenvalues),
        "condition_number": (eigenvalues[0] / torch.maximum(eigenvalues[-1], floor)).float(),
        "off_diagonal_share": (1 - sizes.diagonal().sum() / sizes.sum()).float(),
    }
