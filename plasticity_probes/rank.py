"""Ranks of a feature matrix, all from its singular values.

Features are [samples, units]; a convolution's activations [samples, channels, height, width] must be brought to that
form by the caller, who thereby says what a feature is: `flatten(1)` makes every (channel, position) one. No rank can
exceed the number of samples (less one, centred): take at least as many samples as units, or compare only values from
the same number of samples. A zero matrix has rank 0 by every definition here, and a NaN in the features gives NaN.

Every rank takes features, or the singular values that `singular_values` gave [values], so that several ranks need one
decomposition. Results are 0-d float32 on the features' device. On a GPU torch's eigensolver reads its own status back,
once a decomposition.

Raw ranks fall with a common mean of the features alone; centred ones (column means removed) do not. Report both.
"""

import torch
from torch import Tensor


def symmetric_eigenvalues(matrix: Tensor) -> Tensor:
    """Eigenvalues of a symmetric [n, n] matrix in float64, descending; all NaN where an entry is not finite."""
    finite = torch.isfinite(matrix).all()
    values = torch.linalg.eigvalsh(torch.where(finite, matrix, torch.zeros_like(matrix)).double())
    return torch.where(finite, values.flip(0), torch.nan)


def _gram_matrices(features: Tensor) -> tuple[Tensor, Tensor]:
    """The smaller Gram matrix of `features` and that of its centred rows, float64; one product for both."""
    if features.dim() != 2 or features.numel() == 0:
        allowed = "[samples, units], not empty (flatten a convolution's activations first)"
        raise ValueError(f"features of shape {tuple(features.shape)}: must be {allowed}")
    rows = features.detach().double()
    mean = rows.mean(0)
    rows = rows - mean
    if rows.shape[0] >= rows.shape[1]:
        centred = rows.T @ rows
        return centred + len(rows) * torch.outer(mean, mean), centred
    centred, along_mean = rows @ rows.T, rows @ mean
    return centred + along_mean + along_mean.unsqueeze(1) + mean @ mean, centred


def _root(gram: Tensor) -> Tensor:
    """Singular values from a Gram matrix; float32, descending."""
    return symmetric_eigenvalues(gram).clamp(min=0).sqrt().float()


def singular_values(features: Tensor, centred: bool = False) -> Tensor:
    """Singular values of `features` [samples, units], or of them less their column means; float32 [min(samples,
    units)], descending.

    Square roots of the eigenvalues of the smaller Gram matrix, formed in float64: exact to about 1e-8 of the largest
    value, finer than a float32 SVD and quicker. (A float32 Gram matrix is exact to 5e-4 only, and the sum of so many
    small errors spoils srank: 34 for a matrix of rank 1.) ValueError unless `features` is a matrix with entries.
    """
    return _root(_gram_matrices(features)[centred])


def _spectrum(features: Tensor) -> Tensor:
    """Singular values in float64, descending, of features [samples, units] or as given [values]."""
    if features.dim() == 1 and features.numel():
        return features.detach().double().sort(descending=True).values
    return singular_values(features).double()


def _values_needed(parts: Tensor, delta: float) -> Tensor:
    """Smallest k for which the first k of the descending `parts` make up a share 1 - delta of their sum."""
    if not 0 < delta < 1:
        raise ValueError(f"delta = {delta}: must lie between 0 and 1")
    total = parts.sum()
    needed = (parts.cumsum(0) < (1 - delta) * total).sum() + 1
    return torch.where(total.isnan(), torch.nan, needed * (total > 0)).float()


def srank(features: Tensor, delta: float = 0.01) -> Tensor:
    """min k: sum_{i<=k} sigma_i / sum_i sigma_i >= 1 - delta (Kumar21). Much code calls this stable rank."""
    return _values_needed(_spectrum(features), delta)


def pca_rank(features: Tensor, delta: float = 0.01) -> Tensor:
    """min k: sum_{i<=k} sigma_i^2 / sum_i sigma_i^2 >= 1 - delta: srank's rule on the explained variance."""
    return _values_needed(_spectrum(features).square(), delta)


def effective_rank(features: Tensor) -> Tensor:
    """exp of the entropy of sigma / sum sigma (Roy and Vetterli 2007)."""
    sigma = _spectrum(features)
    total = sigma.sum()
    shares = sigma / torch.where(total == 0, 1.0, total)
    return (torch.special.entr(shares).sum().exp() * (total != 0)).float()


def stable_rank(features: Tensor) -> Tensor:
    """||A||_F^2 / ||A||_2^2 = sum_i sigma_i^2 / sigma_1^2. (Not srank, which also goes by this name.)"""
    squares = _spectrum(features).square()
    return (squares.sum() / torch.where(squares[0] == 0, 1.0, squares[0])).float()


def feature_rank(features: Tensor, epsilon: float = 0.01, samples: int | None = None) -> Tensor:
    """Number of singular values of A / sqrt(samples) above `epsilon` (Lyle22, InFeR). Absolute: it sees features that
    shrink to nothing.

    Where singular values are given in place of features, `samples` must say how many rows they came from; ValueError
    otherwise, and for epsilon <= 0.
    """
    if epsilon <= 0:
        raise ValueError(f"epsilon = {epsilon}: must be above 0")
    if features.dim() == 1 and not samples:
        raise ValueError(f"samples = {samples}: must be the number of rows where singular values are given")
    sigma = _spectrum(features)
    rows = samples if features.dim() == 1 else len(features)
    count = (sigma / rows**0.5 > epsilon).sum()
    return torch.where(sigma[0].isnan(), torch.nan, count).float()


def ranks(features: Tensor, delta: float = 0.01, epsilon: float = 0.01) -> dict[str, Tensor]:
    """Every rank of `features` [samples, units], "raw/srank", ..., "centred/feature_rank", from one decomposition of
    the raw and one of the centred matrix. Errors as of the single ranks."""
    results = {}
    for name, gram in zip(("raw", "centred"), _gram_matrices(features), strict=True):
        sigma = _root(gram)
        results[f"{name}/srank"] = srank(sigma, delta)
        results[f"{name}/pca_rank"] = pca_rank(sigma, delta)
        results[f"{name}/effective_rank"] = effective_rank(sigma)
        results[f"{name}/stable_rank"] = stable_rank(sigma)
        results[f"{name}/feature_rank"] = feature_rank(sigma, epsilon, samples=len(features))
    return results
