"""A plan in words, and as commands. Imports no torch."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from experiments.listing import listed_run
from experiments.places import from_here
from experiments.sweep.plan import Plan, Trial
from experiments.sweep.stacks import Limits, in_words

THROUGH = ("finished", "crashed")
"""States in which a trial that tunes waits for nothing."""


class Standing(NamedTuple):
    """How a trial stands."""

    state: str
    """new, or as evaluate.py --list says: running, finished, interrupted, crashed, unreadable."""
    step: int
    why: str


def standing(trial: Trial) -> Standing:
    """How `trial` stands on the disk."""
    if not (trial.directory / "config.json").is_file():
        return Standing("new", 0, "")
    found = listed_run(trial.directory)
    if found.state == "finished" and found.steps < trial.config.run.steps:
        return Standing("interrupted", found.step, "is to be longer")
    return Standing(found.state, found.step, found.why)


def overview(plan: Plan, limits: Limits) -> list[str]:
    """The question, every trial with how it stands, and which of those that are left are made side by side."""
    study = plan.study
    size = f", size {study.size} (of {', '.join(study.sizes)}; --size)" if study.size else ""
    lines = [study.question, f"study {study.name}{size}, in {from_here(plan.directory)}"]
    lines += [f"it is said to take {study.takes}"] if study.takes else []
    for trials, words in ((plan.tuning, "tune"), (plan.trials, "are reported"), (plan.forks, "are forks")):
        if trials:
            lines += ["", f"{len(trials):,} trials {words}", *_table(trials, limits)]
    notes = list(plan.notes)
    if any(standing(trial).state not in THROUGH for trial in plan.tuning):
        notes.append("what is tuned stands there with its smallest value, until it is chosen")
    return [*lines, *(["", *(f"note: {note}" for note in notes)] if notes else [])]


def _table(trials: Sequence[Trial], limits: Limits) -> list[str]:
    states = [standing(trial) for trial in trials]
    lines = [
        f"  {state.state:11} {trial.config.run.steps:>13,} steps  {trial.config.run.name}"
        for trial, state in zip(trials, states, strict=True)
    ]
    counted = Counter(state.state for state in states)
    lines.append("  in all: " + ", ".join(f"{count:,} {state}" for state, count in counted.items()))
    left = [trial for trial, state in zip(trials, states, strict=True) if state.state != "finished"]
    return lines + in_words(left, limits)


def commands(plan: Plan) -> list[str]:
    """A line for each trial that is not finished; where some tune, for these alone until they are through,
    and for forks when all others are finished."""
    left = [trial for trial in plan.tuning if standing(trial).state not in THROUGH]
    for trials in (plan.trials, plan.forks):
        left = left or [trial for trial in trials if standing(trial).state != "finished"]
    return [trial.command for trial in left]
