"""From runs to what can be said of them: `compare` does all of compare.py but parse and print."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from agents.config import require
from agents.spelling import did_you_mean
from experiments.results import arms as arms_of
from experiments.results.arms import Arm, Controls
from experiments.results.rows import ENOUGH, Row, rows_of
from experiments.results.runs import RETURN, WORLD_FIELDS, Run, find, read_runs
from experiments.results.scores import Scores, World, world_of
from experiments.results.settings import CompareConfig


@dataclass(frozen=True)
class Table:
    """Rows that are tested together."""

    title: str
    world: str
    scope: str
    """overall, or task K."""
    baseline: str
    """The arm that the others are tested against."""
    rows: list[Row]


@dataclass
class Comparison:
    """All that is known of some runs."""

    settings: CompareConfig
    arms: list[Arm] = field(default_factory=list)
    baseline: str = ""
    controls: Controls = field(default_factory=Controls)
    worlds: list[World] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    fields: list[str] = field(default_factory=list)
    """The settings that differ."""
    left_out: list[tuple[Path, str]] = field(default_factory=list)
    lost: list[Run] = field(default_factory=list)
    """Of these the ones that crashed or were not finite."""
    notes: list[str] = field(default_factory=list)
    """What was done to the runs before they were compared."""
    warnings: list[str] = field(default_factory=list)
    """Why they may not be comparable."""

    @property
    def runs(self) -> list[Run]:
        """Those that are compared."""
        found = {id(run): run for world in self.worlds for runs in world.runs.values() for run in runs}
        return list(found.values())

    @property
    def measure(self) -> str:
        """What the scores are of."""
        return "return" if self.settings.metric == RETURN else self.settings.metric

    def leave_out(self, path: Path, why: str) -> None:
        """Note a run that is not compared."""
        self.left_out.append((path, why))


def compare(settings: CompareConfig) -> Comparison:
    """Read, group, score and test. ValueError: nothing is left to compare, or a setting means nothing here."""
    told = Comparison(settings)
    runs, told.left_out = read_runs(find(settings.runs))
    require(bool(runs), "runs", " ".join(settings.runs), f"readable: {'; '.join(_reasons(told))}")
    runs = arms_of.chosen(runs, settings.where)
    runs = _usable(runs, told)
    runs, told.controls = arms_of.controls_in(runs)
    _tell_controls(told)
    runs, repeats = arms_of.without_repeats(runs)
    told.left_out += repeats
    worlds = _group(runs, told)
    for name, members in worlds.items():
        here = {arm.name: list(arm.runs) for arm in arms_of.within(told.arms, members)}
        tell, alone = told.notes.append, len(worlds) == 1
        world = world_of(name, here, told.controls, settings.metric, tell, told.leave_out, alone)
        if world is not None:
            told.worlds.append(world)
    require(bool(told.worlds), "runs", " ".join(settings.runs), "runs with a score: " + "; ".join(_reasons(told)))
    scored = {arm for world in told.worlds for arm in world.scores}
    told.arms = [arm for arm in told.arms if arm.name in scored]
    told.baseline = told.baseline if told.baseline in scored else told.arms[0].name
    told.tables = _tables(told)
    return told


def _reasons(told: Comparison) -> list[str]:
    listed = [f"{path.name} is left out, {why}" for path, why in told.left_out]
    return [*listed[:5], *([f"and {len(listed) - 5} more"] if len(listed) > 5 else []), *told.notes]


def _usable(runs: Sequence[Run], told: Comparison) -> list[Run]:
    """The runs that can be compared; the others are named."""
    cut, tag, kept = told.settings.unfinished == "cut", told.settings.metric, []
    states = {run: run.state for run in runs}
    if tag != RETURN:
        known = list(dict.fromkeys(name for run in runs if states[run][0] != "unreadable" for name in run.metrics))
        require(
            tag in known, "metric", tag, f"a tag of metrics.jsonl, as TensorBoard shows them{did_you_mean(tag, known)}"
        )
    for run, (state, why) in states.items():
        if state in ("finished", "unfinished") and tag != RETURN:
            if tag not in run.metrics:
                state, why = "unreadable", f"has no {tag}"
            elif not np.isfinite(run.series(tag).values).all():
                state, why = "not finite", f"not finite: {tag}"
        if state == "finished" or (cut and state == "unfinished" and run.length):
            kept.append(run)
            told.notes += [f"{run.name} is {why}; taken as far as it goes"] if state == "unfinished" else []
        else:
            told.leave_out(run.path, why)
            told.lost += [run] if state in ("crashed", "not finite") else []
    hint = "" if cut else "; --unfinished cut takes what there is"
    allowed = f"some that are finished: {'; '.join(_reasons(told))}{hint}"
    require(bool(kept), "runs", " ".join(told.settings.runs), allowed)
    return kept


def _tell_controls(told: Comparison) -> None:
    if told.controls.random:
        told.notes.append(f"random control: {len(told.controls.random)} runs in which nothing is learned")
    if told.controls.fresh:
        tasks = sorted({run.settings["task.first"] for run in told.controls.fresh})
        words = ", ".join(map(str, tasks))
        told.notes.append(f"fresh-agent control: {len(told.controls.fresh)} runs of task {words} alone")


def _group(runs: Sequence[Run], told: Comparison) -> dict[str, list[Run]]:
    """Make the arms, choose the baseline, and say what should be known of them; the runs by world.

    What differs from one world to another alone is the worlds' protocol, and makes no arm.
    """
    asked = [arms_of.field_named(name, runs) for name in told.settings.by]
    worlds = arms_of.by_world(runs, asked)
    within = {name for members in worlds.values() for name in arms_of.differing(members)}
    told.fields = [name for name in arms_of.differing(runs) if name in within]
    own = [name for name in told.fields if name not in WORLD_FIELDS]
    fields = asked or arms_of.telling(runs, own)
    told.arms = arms_of.grouped(runs, fields)
    names = [arm.name for arm in told.arms]
    wanted = told.settings.baseline
    allowed = f"an arm; there are {', '.join(map(repr, names))}{did_you_mean(wanted, names)}"
    require(not wanted or wanted in names, "baseline", wanted, allowed)
    told.baseline = wanted or names[0]
    told.notes += arms_of.pooled(told.arms)
    told.warnings += arms_of.losses(told.arms, told.lost, fields)
    for world, members in worlds.items():
        here = arms_of.within(told.arms, members)
        before = f"{world}: " if len(worlds) > 1 else ""
        told.notes += [before + note for note in arms_of.unsaid(here, fields, own)]
        told.warnings += [before + warning for warning in arms_of.warnings(here)]
    told.warnings += arms_of.other_worlds(told.arms, worlds) + arms_of.other_commits(runs)
    told.warnings += arms_of.other_budgets(runs, told.controls)
    return worlds


def _tables(told: Comparison) -> list[Table]:
    """Overall and by task in each world, and over all worlds where there are several."""
    words = ("better", "worse") if told.settings.metric == RETURN else ("higher", "lower")
    names, below = [arm.name for arm in told.arms], told.settings.collapsed_below

    def table(title: str, world: str, scope: str, scores: list[dict[str, Scores]], first: list) -> Table:
        here = [name for name in names if any(name in part for part in scores)]
        base = told.baseline if told.baseline in here else here[0]
        return Table(title, world, scope, base, rows_of(here, scores, first, base, below, words))

    found = []
    shared = sum(told.baseline in world.scores for world in told.worlds) > 1
    if shared and (scaled := _scaled(told)):
        title = f"all {len(scaled)} worlds: random = 0, {told.baseline} = 1"
        found.append(table(title, "all", "overall", scaled, [_some(world, slice(0, 1)) for world in scaled]))
    for world in told.worlds:
        first = _some(world.scores, slice(0, 1))
        over = f"mean over {len(world.tasks)} tasks of" if world.changes else "mean over"
        title = f"{world.name}: {told.measure}, {over} the last tenth ({world.length:,} steps)"
        found.append(table(title, world.name, "overall", [world.scores], [first]))
        for place, name in enumerate(world.task_names) if world.changes else ():
            chosen = _some(world.scores, slice(place, place + 1))
            scope = f"task {world.tasks[place]}"
            found.append(table(f"{world.name}: task {name}", world.name, scope, [chosen], [first]))
    return found


def _some(scores: dict[str, Scores], chosen: slice) -> dict[str, Scores]:
    return {arm: one.of_tasks(chosen) for arm, one in scores.items()}


def _scaled(told: Comparison) -> list[dict[str, Scores]]:
    """The scores of each world on one scale: 0 is acting at random, 1 the baseline's mean. A world where that cannot
    be is left out aloud."""
    found = []
    for world in told.worlds:
        base = world.scores.get(told.baseline)
        zero, value = (np.nan, np.nan) if base is None else (float(base.random.mean()), float(base.values.mean()))
        unit = value - zero
        if not unit > 0:
            told.notes.append(f"{world.name}: left out of the table over all worlds: no scale from random to baseline")
            continue
        found.append({arm: _on_scale(scores, zero, unit) for arm, scores in world.scores.items()})
    return found if len(found) > 1 else []


def _on_scale(scores: Scores, zero: float, unit: float) -> Scores:
    scaled = {name: (getattr(scores, name) - zero) / unit for name in ("values", "random", "fresh")}
    return dataclasses.replace(scores, **scaled)


def enough(told: Comparison) -> str:
    """One sentence on how many seeds make a verdict."""
    others = [row.pairs for table in told.tables for row in table.rows if row.arm != table.baseline]
    if not others:
        return "one arm in each world: nothing to test it against"
    if min(others) >= ENOUGH:
        return f"verdicts: every arm has {min(others)} or more seeds in common with its baseline; {ENOUGH} are needed"
    return f"verdicts need {ENOUGH} seeds that an arm and its baseline both have; the fewest here are {min(others)}"
