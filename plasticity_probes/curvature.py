"""Sharpness: extreme eigenvalues of the Hessian of a loss by Lanczos' method."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

BREAKDOWN = 1e-10


class HessianEigenvalues(NamedTuple):
    """Ritz values and how good they are; float32 [k] each."""

    values: Tensor
    """The k extreme ones, the most extreme first."""
    residuals: Tensor
    """||H v - value v|| of the unit Ritz vector v: an eigenvalue lies within this distance of the value."""


def _hessian_operator(loss_fn: Callable[[], Tensor], params: Iterable[Tensor]) -> tuple[Callable, list[Tensor]]:
    """The function v [p] -> H v [p], which keeps one graph of the gradient for all its calls, and the parameters."""
    params = list(params)
    if not params or not all(parameter.requires_grad for parameter in params):
        raise ValueError("params: must hold at least one tensor, and all must require a gradient")
    with torch.enable_grad():
        loss = loss_fn()
        if loss.dim() != 0:
            raise ValueError(f"loss_fn() of shape {tuple(loss.shape)}: must be 0-d")
        gradients = torch.autograd.grad(loss, params, create_graph=True, materialize_grads=True)
    curved = [index for index, gradient in enumerate(gradients) if gradient.requires_grad]  # not where it is constant

    def product(vector: Tensor) -> Tensor:
        if not curved:
            return torch.zeros_like(vector)
        pieces = vector.split([parameter.numel() for parameter in params])
        columns = torch.autograd.grad(
            [gradients[index] for index in curved],
            params,
            [pieces[index].view_as(params[index]).to(params[index].dtype) for index in curved],
            retain_graph=True,
            materialize_grads=True,
        )
        return torch.cat([column.reshape(-1).to(vector.dtype) for column in columns])

    return product, params


def hessian_vector_product(loss_fn: Callable[[], Tensor], params: Iterable[Tensor], vector: Tensor) -> Tensor:
    """H v for the Hessian H of `loss_fn()` (0-d) by `params` together; `vector` [p] and result [p] are flat, in order.

    `loss_fn` takes nothing and must be twice differentiable in `params`. Two backward passes; no `.grad` is touched.
    ValueError for a wrong length, a loss that is not 0-d, or parameters that require no gradient.
    """
    product, params = _hessian_operator(loss_fn, params)
    size = sum(parameter.numel() for parameter in params)
    if vector.shape != (size,):
        raise ValueError(f"vector of shape {tuple(vector.shape)}: must be [{size}]")
    return product(vector.detach()).detach()


def _unit_orthogonal(vector: Tensor, basis: Tensor) -> Tensor:
    """`vector` less its part in the span of the rows of `basis`, of length 1. Twice, since once leaves rounding in
    it."""
    for _ in range(2):
        vector = vector - basis.T @ (basis @ vector)
        vector = vector / torch.linalg.vector_norm(vector)
    return vector


def _lanczos(
    product: Callable[[Tensor], Tensor], size: int, steps: int, device: torch.device, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """The tridiagonal matrix [steps, steps] of H on a Krylov space, and the length of what the next step would add.

    Each new vector is orthogonalised against all before. An invariant subspace ends one chain; a random direction
    orthogonal to it begins the next, so that repeated eigenvalues are found as well.
    """

    def draw() -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64, device=generator.device).to(device)

    basis = torch.zeros(steps, size, dtype=torch.float64, device=device)
    diagonal, coupling = [], []
    vector = _unit_orthogonal(draw(), basis[:0])
    for step in range(steps):
        basis[step] = vector
        done = basis[: step + 1]
        image = product(vector).double()
        diagonal.append(vector @ image)
        scale = torch.linalg.vector_norm(image)
        image = image - done.T @ (done @ image)
        image = image - done.T @ (done @ image)
        length = torch.linalg.vector_norm(image)
        broken = bool(length <= BREAKDOWN * scale)
        coupling.append(torch.zeros_like(length) if broken else length)
        if step + 1 < steps:
            vector = _unit_orthogonal(draw() if broken else image / length, done)
    beyond = coupling.pop()
    off = torch.stack(coupling) if coupling else beyond.new_empty(0)
    return torch.diag(torch.stack(diagonal)) + torch.diag(off, 1) + torch.diag(off, -1), beyond


def hessian_eigenvalues(
    loss_fn: Callable[[], Tensor],
    params: Iterable[Tensor],
    k: int = 1,
    which: str = "LA",
    iterations: int = 40,
    generator: torch.Generator | None = None,
) -> HessianEigenvalues:
    """The k extreme eigenvalues of the Hessian of `loss_fn()` (0-d) by `params` together.

    which: "LA" largest (the usual sharpness), "SA" smallest, "LM" largest in magnitude. In RL the Hessian has large
    negative eigenvalues, so that LA and LM differ. Lanczos with full reorthogonalisation in float64, from a start drawn
    with `generator` (seed 0 without one): the same generator gives the same values. More `iterations` bring the
    residuals down; extreme values converge first, and p iterations give the whole spectrum.

    Cost: a gradient, then two backward passes an iteration; 8 bytes * iterations * p of memory (NatureCNN, 40: 540 MB).
    One scalar an iteration is read back. No `.grad` is touched. Derivatives that are not finite give NaN. ValueError
    for another `which`, or k not within 1..min(iterations, p), and as of `hessian_vector_product`.
    """
    if which not in ("LA", "SA", "LM"):
        raise ValueError(f"which = {which!r}: must be 'LA', 'SA' or 'LM'")
    product, params = _hessian_operator(loss_fn, params)
    size = sum(parameter.numel() for parameter in params)
    steps = min(iterations, size)
    if not 1 <= k <= steps:
        raise ValueError(f"k = {k}: must be within 1..{steps}, the smaller of iterations and the number of parameters")
    generator = generator or torch.Generator().manual_seed(0)
    matrix, beyond = _lanczos(product, size, steps, params[0].device, generator)
    if not torch.isfinite(matrix).all():
        nothing = torch.full((k,), torch.nan, dtype=torch.float32, device=matrix.device)
        return HessianEigenvalues(nothing, nothing.clone())
    values, vectors = torch.linalg.eigh(matrix)
    keys = {"LA": values, "SA": -values, "LM": values.abs()}[which]
    chosen = keys.argsort(descending=True)[:k]
    residuals = beyond * vectors[-1].abs()
    return HessianEigenvalues(values[chosen].float(), residuals[chosen].float())
