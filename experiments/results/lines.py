"""Curves: what runs came to in each part of a length, their mean and its band. Imports no torch."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from experiments.results.runs import Run, Series
from experiments.results.statistics import Interval, band, of_seeds

HUNDREDTHS = 100
BAND = "95 % bootstrap interval of the mean over runs"


class BinnedCurve(NamedTuple):
    """A line over bins of steps; bins without a value are left out."""

    steps: np.ndarray
    """Right edges."""
    means: np.ndarray
    """Mean over runs of each run's mean in the bin."""
    counts: np.ndarray
    """Values in the bin, over all runs."""
    lows: np.ndarray
    highs: np.ndarray
    """Of the band; NaN where there is none."""
    runs: np.ndarray
    """Runs that have a value in the bin."""


def binned(series: Series, width: float, bins: int) -> tuple[np.ndarray, np.ndarray]:
    """(float64 [bins] the mean of the values in each bin (k width, (k + 1) width] of steps, NaN without any; int [bins]
    how many they are); what lies after the last bin is left out, step 0 is in the first."""
    which = np.maximum(np.ceil(series.steps / width).astype(int) - 1, 0)
    inside = which < bins
    which, values = which[inside], series.values[inside]
    counts = np.bincount(which, minlength=bins)
    sums = np.bincount(which, weights=values, minlength=bins)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan), counts


def joined(runs: Sequence[Series], length: float, bins: int = HUNDREDTHS) -> BinnedCurve:
    """The curve of several runs' series over `bins` equal parts of `length` steps; empty without any."""
    if not runs:
        return BinnedCurve(*(np.array([]) for _ in BinnedCurve._fields))
    width = length / bins
    pairs = [binned(series, width, bins) for series in runs]
    rows, counts = np.array([row for row, _ in pairs]), np.sum([count for _, count in pairs], axis=0)
    means, lows, highs = band(rows)
    there = counts > 0
    edges = np.round((np.arange(bins) + 1) * width).astype(int)
    return BinnedCurve(*(part[there] for part in (edges, means, counts, lows, highs, np.isfinite(rows).sum(axis=0))))


def curve_of(runs: Sequence[Run], tag: str, length: int) -> BinnedCurve:
    """The curve of `tag`, over the runs that have it."""
    return joined([run.series(tag) for run in runs if has(run, tag)], length)


def has(run: Run, tag: str) -> bool:
    """Whether the run has `tag`."""
    return tag in run.metrics or bool(tag == "charts/episodic_return" and len(run.games.steps))


def last_values(runs: Sequence[Run], tag: str, length: int) -> Interval:
    """The last value of `tag` in each run's first `length` steps: their mean and its interval."""
    found = []
    for run in runs:
        steps, values = run.metrics.get(tag, ((), ()))
        before = [value for step, value in zip(steps, values, strict=True) if step <= length and value is not None]
        found += before[-1:]
    return of_seeds(found)


def tags_of(runs: Sequence[Run]) -> list[str]:
    """Every tag that all `runs` have values of, in their order."""
    first, *others = (run.metrics for run in runs)
    return [tag for tag in first if all(tag in metrics for metrics in others)]
