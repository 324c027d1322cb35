"""The numbers of a table: a row an arm, from its scores in one world or several."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from experiments.results.scores import Scores
from experiments.results.statistics import (
    Interval,
    bootstrap,
    bootstrap_of,
    holm,
    improvement,
    iqm,
    least_p,
    mean,
    sign_flips,
    wilson,
    worst_quarter,
)

ENOUGH = 10
"""Seeds from which on a verdict is given in words."""
NOTHING = Interval(np.nan, np.nan, np.nan)


@dataclass
class Row:
    """One arm in one table. Intervals are of 95 %; NaN: nothing is known."""

    arm: str
    n: int
    """Seeds, over all worlds."""
    mean: Interval
    iqm: Interval
    """Over all seeds and tasks."""
    worst_quarter: float
    """Mean of the quarter of the seeds with the lowest mean over tasks."""
    collapsed: Interval
    """Share of seeds that fell below the threshold in this task, or in any."""
    collapsed_count: int
    retained: Interval
    """(J - J_random) / (J_first - J_random), J of this task, or of the last one."""
    to_level: Interval
    """Steps until the level was reached, over the seeds and tasks in which it was."""
    reached: str
    """In how many of them."""
    gap: Interval
    """G_k, the share of what a fresh agent learns that this one misses; the mean over tasks after the first."""
    pairs: int = 0
    """Seeds, over all worlds, that the baseline has as well."""
    difference: Interval = NOTHING
    """To the baseline, over equal seeds."""
    p: float = float("nan")
    p_holm: float = float("nan")
    least_p: float = float("nan")
    improvement: Interval = NOTHING
    """Probability that a run is above one of the baseline's."""
    verdict: str = ""


def rows_of(
    arms: Sequence[str],
    scores: Sequence[dict[str, Scores]],
    first: Sequence[dict[str, Scores]],
    baseline: str,
    below: float,
    words: tuple[str, str],
) -> list[Row]:
    """A row for each of `arms` that is in some world.

    Args:
        scores: by world, those of the tasks of the table by arm.
        first: the same, of the first task alone.
        baseline: the arm that others are tested against.
        below: share of the way from random to the first task's return below which a task counts as collapsed.
        words: of a verdict for a higher and for a lower mean.
    """
    found = {}
    for arm in arms:
        mine = [world[arm] for world in scores if arm in world]
        if mine:
            begun = [world[arm] for world in first if arm in world]
            found[arm] = _row(arm, mine, begun, below)
    for arm, row in found.items():
        if arm != baseline and baseline in found:
            _test(row, [(world[arm], world[baseline]) for world in scores if arm in world and baseline in world])
    for row, adjusted in zip(found.values(), holm([row.p for row in found.values()]), strict=True):
        row.p_holm = adjusted
        row.verdict = "baseline" if row.arm == baseline else verdict(row, words)
    return list(found.values())


def _row(arm: str, mine: list[Scores], begun: list[Scores], below: float) -> Row:
    values = [scores.values for scores in mine]
    later = any(scores.tasks[-1] > start.tasks[0] for scores, start in zip(mine, begun, strict=True))
    fell, known, kept = [], [], []
    for scores, start in zip(mine, begun, strict=True):
        gained = start.values - start.random  # [seeds, 1]
        share = (scores.values - scores.random) / np.where(gained > 0, gained, np.nan)
        fell.append(((share < below) | (gained <= 0)).any(axis=1))  # what never learned is at chance from the start
        known.append(np.isfinite(gained).all(axis=1) & np.isfinite(scores.random).all(axis=1))
        kept.append(share[np.isfinite(share[:, -1]), -1])
    fallen, of = (
        int(np.concatenate(part).sum()) for part in ([a & b for a, b in zip(fell, known, strict=True)], known)
    )
    levels = np.concatenate([scores.to_level.ravel() for scores in mine])
    reached = [scores.to_level[np.isfinite(scores.to_level).any(axis=1)] for scores in mine]
    return Row(
        arm,
        sum(len(scores.seeds) for scores in mine),
        bootstrap(values, mean),
        bootstrap(values, iqm),
        worst_quarter(np.concatenate([part.mean(axis=1) for part in values])),
        wilson(fallen, of) if later else NOTHING,
        fallen,
        bootstrap(kept, mean) if later else NOTHING,
        bootstrap([np.nanmean(part, axis=1) for part in reached], mean),
        f"{np.isfinite(levels).sum()} of {levels.size}",
        _gap(mine),
    )


def _gap(mine: list[Scores]) -> Interval:
    """G_k = (J_fresh,k - J_continual,k) / (J_fresh,k - J_random,k) of the means over seeds, the mean over tasks."""
    parts = []
    for scores in mine:
        table = np.stack([scores.fresh, scores.values, scores.random], axis=1)  # [seeds, 3, tasks]
        whole = np.isfinite(table).all(axis=(0, 1)) if len(table) else np.zeros(0, bool)
        if whole.any():
            parts.append(table[:, :, whole])
    if not parts:
        return NOTHING

    def ratio(strata: list[np.ndarray]) -> np.ndarray:
        means = [part.mean(axis=-3) for part in strata]  # [..., 3, tasks]
        gaps = [(m[..., 0, :] - m[..., 1, :]) / (m[..., 0, :] - m[..., 2, :]) for m in means]
        return np.concatenate(gaps, axis=-1).mean(axis=-1)

    return bootstrap_of(parts, ratio)


def _test(row: Row, pairs: list[tuple[Scores, Scores]]) -> None:
    """Compare an arm with the baseline, world by world."""
    differences = []
    for mine, theirs in pairs:
        common = sorted(set(mine.seeds) & set(theirs.seeds))
        ours = [mine.values[mine.seeds.index(seed)].mean() for seed in common]
        others = [theirs.values[theirs.seeds.index(seed)].mean() for seed in common]
        differences.append(np.array(ours) - np.array(others))
    row.pairs = sum(map(len, differences))
    if row.pairs:
        row.difference = bootstrap(differences, mean)
        row.p, row.least_p = sign_flips(np.concatenate(differences)), least_p(row.pairs)
    if pairs:
        row.improvement = improvement(
            *([scores.values.mean(axis=1) for scores in side] for side in zip(*pairs, strict=True))
        )


def verdict(row: Row, words: tuple[str, str]) -> str:
    """What may be said of an arm beside the baseline: nothing below `ENOUGH` seeds that both have."""
    if row.pairs < ENOUGH:
        return f"undecided (n = {row.pairs})"
    if row.p_holm >= 0.05:
        return f"no difference shown (n = {row.pairs})"
    return f"{words[0] if row.difference.value > 0 else words[1]} (n = {row.pairs})"
