"""Whether what a study claimed beforehand came to pass in its runs. Imports no torch.

A claim is *reproduced* where the 95 % interval of its difference lies above the margin, *not reproduced* where the
interval lies below it, and *undecided* where it holds the margin, or fewer than ten seeds are there.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import numpy as np

from agents.config import require
from experiments.results.rows import ENOUGH
from experiments.results.runs import RETURN, Run, read_run, tasks_of
from experiments.results.statistics import Interval, of_seeds
from experiments.sweep.study import MEASURES, Claim

Verdict = Literal["reproduced", "not reproduced", "undecided", "not run"]


class Trial(Protocol):
    """What is to be known of a run: its arm, its world, its seed, where it lies."""

    arm: str
    world: str
    seed: int
    directory: Path


class Checked(NamedTuple):
    """A claim and what the runs say of it."""

    claim: Claim
    verdict: Verdict
    found: Interval
    """Of arm - than over equal seeds (of the arm itself without `than`), and its 95 % interval."""
    arm: float
    than: float
    """Their means; NaN where there is none."""
    n: int
    """Seeds (and worlds, where there are several) that count."""


def value_of(run: Run, measure: str) -> float:
    """What a finished run comes to: a word of `MEASURES`, of returns or of the one tag that is compared, or the last
    value of a tag. NaN where there is none."""
    if measure not in MEASURES:
        values = run.metrics.get(measure, ((), ()))[1]
        return float(values[-1]) if values else float("nan")
    tasks = [task.last_tenth for task in tasks_of(run, run.settings.get("metric", RETURN), run.steps)]
    if not tasks:
        return float("nan")
    first, last = tasks[0], tasks[-1]
    return float({"overall": np.mean(tasks), "first": first, "last": last, "lost": first - last}[measure])


def values_by_seed(trials: Iterable[Trial], measure: str) -> dict[tuple[str, int], float]:
    """By world and seed, what the finished ones of `trials` come to; those without a value are left out."""
    found = {}
    for trial in trials:
        try:
            run = read_run(trial.directory)
        except ValueError:
            continue
        if run.state[0] == "finished" and np.isfinite(value := value_of(run, measure)):
            found[trial.world, trial.seed] = value
    return found


def checked(claim: Claim, trials: Mapping[str, Iterable[Trial]]) -> Checked:
    """The claim held against the runs of `trials`, by arm. ValueError: there is no such arm."""
    for name in filter(None, (claim.arm, claim.than)):
        require(name in trials, "claims", name, f"an arm; there are {', '.join(trials)}")
    arm = values_by_seed(trials[claim.arm], claim.measure)
    than = values_by_seed(trials[claim.than], claim.measure) if claim.than else dict.fromkeys(arm, 0.0)
    common = sorted(arm.keys() & than.keys())
    found = of_seeds([arm[key] - than[key] for key in common])
    means = [float(np.mean([side[key] for key in common])) if common else float("nan") for side in (arm, than)]
    other = means[1] if claim.than else float("nan")
    return Checked(claim, verdict_of(found, claim.by, len(common)), found, means[0], other, len(common))


def verdict_of(found: Interval, margin: float, n: int) -> Verdict:
    """What may be said of a difference of `n` seeds that is claimed to be more than `margin`."""
    if not n:
        return "not run"
    if n < ENOUGH:
        return "undecided"
    return "reproduced" if found.low > margin else "not reproduced" if found.high < margin else "undecided"


def claimed(claim: Claim) -> str:
    """The claim as a formula: "mse ln_wd - mse none > 5 (last)"."""
    sides = f"{claim.arm} - {claim.than}" if claim.than else claim.arm
    return f"{sides} > {claim.by:g} ({claim.measure})"


def in_words(one: Checked) -> str:
    """What was found, with its figures."""
    if not one.n:
        return "not run"
    few = "" if one.n >= ENOUGH else f", of which {ENOUGH} make a verdict"
    sides = f"{one.arm:.4g} beside {one.than:.4g}: " if one.claim.than else ""
    inner = f" [{one.found.low:.4g}, {one.found.high:.4g}]" if one.found.low == one.found.low else ""
    return f"{sides}{one.found.value:.4g}{inner}, n = {one.n}{few}"
