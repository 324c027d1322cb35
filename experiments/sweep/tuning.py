"""Which of the tried values each arm is reported with. Imports no torch."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from experiments.durable import write_whole
from experiments.results.runs import RETURN, read_run, tasks_of
from experiments.results.statistics import Interval, of_seeds
from experiments.sweep.cells import Cell
from experiments.sweep.grid import Fields
from experiments.sweep.listed import THROUGH, standing
from experiments.sweep.plan import Plan, Trial, planned
from experiments.sweep.study import Study


@dataclass(frozen=True)
class Choice:
    """What was chosen for an arm in a world, and why."""

    cell: str
    values: Fields
    scores: dict[str, Interval]
    """Of what was tried, each FIELD=VALUE: the mean over its seeds, and its interval."""
    why: str


def score(trial: Trial) -> float | None:
    """What a run came to, as compare.py scores it: the mean over its tasks of their last tenth (of an error the
    negative). None: it did not finish, or no game ended there."""
    try:
        run = read_run(trial.directory)
        finished = run.state[0] == "finished"
    except ValueError:
        return None
    metric = run.settings.get("metric", RETURN)
    tasks = tasks_of(run, metric, run.steps) if finished else []
    value = float(np.mean([task.last_tenth for task in tasks])) if tasks else float("nan")
    value = -value if metric.endswith("error") else value
    return value if np.isfinite(value) else None


def choose(trials: Iterable[Trial]) -> list[Choice]:
    """One choice for each arm in a world whose tuning `trials` have finished.

    The best is the one with the highest mean; the smallest of those of which the 95 % interval of the paired difference
    to it holds 0 is taken. Values of which a run failed, or has no score, are out. ValueError: of an arm all are.
    """
    found: dict[str, dict[str, list[Trial]]] = {}
    for trial in trials:  # in the order of the values: the smaller first
        cell = Cell(trial.arm, trial.world, {}).name
        found.setdefault(cell, {}).setdefault(_in_words(trial.tuned), []).append(trial)
    return [_choice(cell, tried) for cell, tried in found.items()]


def _in_words(values: Mapping[str, str]) -> str:
    return " ".join(f"{name}={word}" for name, word in values.items())


def _choice(cell: str, tried: dict[str, list[Trial]]) -> Choice:
    scores: dict[str, list[float]] = {}
    for words, trials in tried.items():
        values = [score(trial) for trial in trials]
        if None not in values:
            scores[words] = values
    lost = [words for words in tried if words not in scores]
    if not scores:
        raise ValueError(f"{cell}: none of the values that were tried has a score in all its seeds; none can be chosen")
    best = max(scores, key=lambda words: float(np.mean(scores[words])))
    for words, values in scores.items():
        ahead = of_seeds(np.array(scores[best]) - np.array(values))
        if words == best or not ahead.low > 0:
            break
    means = {words: of_seeds(values) for words, values in scores.items()}
    why = f"the best of {len(tried)}" if words == best else f"{best} is not better for sure, and larger"
    why += f"; out, since a run failed or has no score: {', '.join(lost)}" if lost else ""
    return Choice(cell, dict(tried[words][0].tuned), means, why)


def by_cell(choices: Iterable[Choice]) -> dict[str, Fields]:
    """What `planned` is told."""
    return {choice.cell: choice.values for choice in choices}


def planned_as_tuned(study: Study, runs_dir: Path) -> Plan:
    """The plan of `study`, with what tuning has chosen where its trials are through: finished, or failed."""
    plan = planned(study, runs_dir)
    if not plan.tuning or any(standing(trial).state not in THROUGH for trial in plan.tuning):
        return plan
    return planned(study, runs_dir, by_cell(choose(plan.tuning)))


def in_words(choice: Choice) -> str:
    """A choice as a line."""
    means = ", ".join(f"{words} {one.value:.4g}" for words, one in choice.scores.items())
    return f"tuned: {choice.cell}: {_in_words(choice.values)} ({choice.why}; means: {means})"


def write(choices: Iterable[Choice], path: Path) -> None:
    """For people: the choices as JSON. Raises OSError."""
    told = {
        choice.cell: {
            "chosen": choice.values,
            "why": choice.why,
            "scores": {
                words: {"mean": one.value, "interval": [one.low, one.high]} for words, one in choice.scores.items()
            },
        }
        for choice in choices
    }
    write_whole(path, (json.dumps(told, indent=2) + "\n").encode())
