"""Statistics of a few seeds, as Agarwal et al. 2021 (arXiv 2108.13264) and Patterson et al. 2023 (2304.01315) advise.
NumPy alone.

Seeds are independent and what one seed gives is not: a run's tasks stay together when seeds are drawn. Strata (worlds)
are drawn from separately, each as often as it has seeds.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

EXACT = 12
"""Pairs up to which all 2**n signs are tried."""
DRAWN = 100_000
"""Signs that are drawn for more."""
AT_A_TIME = 2_000_000
"""Numbers that one step of a bootstrap holds."""
Z = 1.959963984540054
"""The normal distribution's 97.5 % quantile."""
Statistic = Callable[[list[np.ndarray]], np.ndarray]
"""Of strata, each [..., n] or [..., n, tasks], to [...]."""


class Interval(NamedTuple):
    """An estimate with its 95 % interval; NaN where one seed, or none, says nothing of it."""

    value: float
    low: float
    high: float


def flat(strata: Sequence[np.ndarray], seeds_and_tasks: int) -> np.ndarray:
    """Strata [..., n] (or [..., n, tasks], with `seeds_and_tasks` = 2) side by side, as [..., all of them]."""
    return np.concatenate([part.reshape(*part.shape[: part.ndim - seeds_and_tasks], -1) for part in strata], axis=-1)


def mean(values: np.ndarray) -> np.ndarray:
    """Over the last axis."""
    return np.mean(values, axis=-1)


def iqm(values: np.ndarray) -> np.ndarray:
    """Interquartile mean over the last axis: of what is left without the lowest and the highest quarter, each rounded
    down to whole values (of five seeds the best and the worst are thrown away)."""
    count = values.shape[-1]
    cut = count // 4
    return np.mean(np.sort(values, axis=-1)[..., cut : count - cut], axis=-1)


def worst_quarter(values: Sequence[float] | np.ndarray, lower_is_worse: bool = True) -> float:
    """Mean of the worst quarter of the seeds (at least one of them)."""
    ordered = np.sort(np.asarray(values, dtype=float))
    ordered = ordered if lower_is_worse else ordered[::-1]
    return float(ordered[: max(1, len(ordered) // 4)].mean())


def bootstrap(
    strata: Sequence[np.ndarray], statistic: Callable[[np.ndarray], np.ndarray] = mean, resamples: int = 2_000
) -> Interval:
    """`statistic` of all values, with the 95 % percentile interval of a stratified bootstrap.

    Args:
        strata: each float64 [n] (a value a seed) or [n, tasks]; seeds are drawn with replacement in each stratum.
        statistic: of values along the last axis.
    """
    strata = [np.asarray(part, dtype=float) for part in strata if len(part)]
    axes = strata[0].ndim if strata else 1
    if not strata:
        return Interval(np.nan, np.nan, np.nan)
    return bootstrap_of(strata, lambda parts: statistic(flat(parts, axes)), resamples)


def of_seeds(values: Iterable[float]) -> Interval:
    """The mean of a value a seed, and its interval."""
    return bootstrap([np.array(list(values), dtype=float)])


def bootstrap_of(strata: Sequence[np.ndarray], statistic: Statistic, resamples: int = 2_000) -> Interval:
    """As `bootstrap`, for a statistic that has to know which values are whose."""
    value = float(statistic([part[None] for part in strata])[0])
    if max(len(part) for part in strata) < 2:
        return Interval(value, np.nan, np.nan)
    rng = np.random.default_rng(0)
    drawn = [rng.integers(0, len(part), (resamples, len(part))) for part in strata]
    rows = max(1, AT_A_TIME // sum(part.size for part in strata))
    found = np.concatenate(
        [
            statistic([part[which[at : at + rows]] for part, which in zip(strata, drawn, strict=True)])
            for at in range(0, resamples, rows)
        ]
    )
    low, high = np.percentile(found, [2.5, 97.5])
    return Interval(value, float(low), float(high))


def band(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(mean, low, high), each [bins], of float64 [n, bins], a row a seed, at each bin over the seeds that have a value
    there: the 95 % percentile bootstrap over seeds. NaN where nothing is to be said."""
    with np.errstate(invalid="ignore"):
        counts, filled = np.isfinite(rows).astype(float), np.nan_to_num(rows)
        mean = filled.sum(axis=0) / counts.sum(axis=0)
        weights = np.random.default_rng(0).multinomial(len(rows), np.full(len(rows), 1 / len(rows)), 2_000)
        drawn = weights @ filled / (weights @ counts)
    known = counts.sum(axis=0) > 1
    low, high = np.full((2, rows.shape[1]), np.nan)
    if known.any():
        low[known], high[known] = np.nanpercentile(drawn[:, known], [2.5, 97.5], axis=0)
    return mean, low, high


def wilson(successes: int, count: int) -> Interval:
    """A share with its 95 % score interval (Wilson 1927)."""
    if not count:
        return Interval(np.nan, np.nan, np.nan)
    share = successes / count
    spread = Z * np.sqrt(share * (1 - share) / count + Z**2 / (4 * count**2))
    low, high = ((share + Z**2 / (2 * count) + sign * spread) / (1 + Z**2 / count) for sign in (-1, 1))
    return Interval(share, 0.0 if not successes else float(low), 1.0 if successes == count else float(high))


def sign_flips(differences: Sequence[float] | np.ndarray) -> float:
    """Two-sided p of a mean difference as far from 0, were each pair's sign a coin's: over all signs to `EXACT` pairs,
    else over `DRAWN` drawn ones and the observed one. NaN without pairs."""
    differences = np.asarray(differences, dtype=float)
    count = len(differences)
    if not count:
        return float("nan")
    if count <= EXACT:
        signs = 1 - 2 * ((np.arange(2**count)[:, None] >> np.arange(count)) & 1)
    else:
        signs = 1 - 2 * np.random.default_rng(0).integers(0, 2, (DRAWN, count), dtype=np.int8)
        signs = np.concatenate([np.ones((1, count), np.int8), signs])
    sums, observed = np.abs(signs @ differences), abs(differences.sum())
    return float(np.mean(sums >= observed * (1 - 1e-12) - 1e-300))


def least_p(pairs: int) -> float:
    """The smallest p that `sign_flips` can give for so many pairs; NaN without pairs."""
    return float("nan") if not pairs else 2.0 ** (1 - pairs) if pairs <= EXACT else 1 / (DRAWN + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's (1979) adjusted p-values, in the order given; a NaN stays one and counts as no test."""
    adjusted, largest = [float("nan")] * len(p_values), 0.0
    order = sorted((p, place) for place, p in enumerate(p_values) if p == p)
    for rank, (p, place) in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p))
        adjusted[place] = largest
    return adjusted


def improvement(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> Interval:
    """Probability that a run of ours is above one of theirs (a tie counts half), the mean over strata, with its 95 %
    interval. `ours` and `theirs` are float64 [n] a stratum, in the same order."""
    count = len(ours)

    def above(parts: list[np.ndarray]) -> np.ndarray:
        pairs = zip(parts[:count], parts[count:], strict=True)
        signs = [np.sign(mine[..., :, None] - other[..., None, :]).mean(axis=(-1, -2)) for mine, other in pairs]
        return 0.5 + 0.5 * np.mean(signs, axis=0)

    if not count or not all(len(part) for part in (*ours, *theirs)):
        return Interval(np.nan, np.nan, np.nan)
    return bootstrap_of([*ours, *theirs], above)
