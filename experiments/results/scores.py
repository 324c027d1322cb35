"""What each run of an arm came to in each task of a world, and what chance and fresh agents come to there."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from experiments.results.arms import Controls, fresh_of, random_in
from experiments.results.runs import RETURN, Run, Task, tasks_of
from experiments.task_summary import parameters_in_words


@dataclass(frozen=True)
class Scores:
    """One arm in one world, a row a seed."""

    seeds: list[int]
    tasks: list[int]
    """Their indices."""
    values: np.ndarray
    """float64 [seeds, tasks]: the mean over the last tenth of each task."""
    to_level: np.ndarray
    """float64 [seeds, tasks]: steps until the level was reached; NaN where it was not."""
    random: np.ndarray
    """float64 [seeds, tasks]: what acting at random brings in these tasks; NaN where nobody knows."""
    fresh: np.ndarray
    """float64 [seeds, tasks]: what an agent brings that learns this task alone; NaN without one."""

    def of_tasks(self, chosen: slice) -> "Scores":
        """Those of some tasks."""
        parts = (part[:, chosen] for part in (self.values, self.to_level, self.random, self.fresh))
        return Scores(self.seeds, self.tasks[chosen], *parts)


@dataclass(frozen=True)
class World:
    """The runs in one world, cut to one length."""

    name: str
    length: int
    """Steps that all are cut to."""
    tasks: list[int]
    """Indices of the tasks that all runs have."""
    task_names: list[str]
    ends: list[int]
    """Step at which each ends, in the run that is the last to leave it."""
    scores: dict[str, Scores]
    """By arm."""
    runs: dict[str, list[Run]]

    @property
    def changes(self) -> bool:
        """Whether there is more than one task."""
        return len(self.tasks) > 1


Tell = Callable[[str], None]


def world_of(
    name: str,
    runs: dict[str, list[Run]],
    controls: Controls,
    tag: str,
    tell: Tell,
    leave_out: Callable[[Path, str], None],
    alone: bool,
) -> World | None:
    """The scores of all `runs`, by arm, that are in one world. `tell` hears what was cut, `leave_out` of every run that
    has no score; `alone`: there is no other world. None: no run has one."""
    everybody = [run for members in runs.values() for run in members]
    length = min(run.length for run in everybody)
    cut = [run for run in everybody if run.length > length]
    if cut:
        shortest = min(everybody, key=lambda run: run.length).name
        tell(f"{name}: {len(cut)} of {len(everybody)} runs are cut to {length:,} steps, the length of {shortest}")
    found: dict[Run, list[Task]] = {run: tasks_of(run, tag, length) for run in everybody}
    common = set.intersection(*({task.index for task in tasks} for tasks in found.values()))
    dropped = sorted({task.index for tasks in found.values() for task in tasks} - common)
    if dropped:
        tell(f"{name}: left out task {', '.join(map(str, dropped))}, which not every run has whole")
    what = "game ended" if tag == RETURN else "value lies"
    kept: dict[str, list[Run]] = {}
    for arm, members in runs.items():
        for run in members:
            found[run] = [task for task in found[run] if task.index in common]
            empty = [task.index for task in found[run] if not np.isfinite(task.last_tenth)]
            if empty:
                leave_out(run.path, f"no {what} in the last tenth of task {', '.join(map(str, empty))}")
            else:
                kept.setdefault(arm, []).append(run)
    if not kept or not common:
        tell(f"{name}: nothing to compare: {'no task is common to all runs' if kept else 'no run has a score'}")
        return None
    tasks = sorted(common)
    needed = len(tasks) > 1 or not alone  # for collapse and retention, and for one scale over worlds
    at_random = _random_levels(kept, controls, tasks, tag, name, tell if needed else lambda sentence: None)
    scores = {}
    for arm, members in kept.items():
        fresh = _fresh_levels(members, controls, tasks, tag)
        scores[arm] = _rows({run: found[run] for run in members}, at_random, fresh)
    of_all = [found[run] for members in kept.values() for run in members]
    names = [_task_name([tasks[place] for tasks in of_all]) for place in range(len(tasks))]
    ends = [max(tasks[place].last_step for tasks in of_all) for place in range(len(tasks))]
    return World(name, length, tasks, names, ends, scores, kept)


def _task_name(everywhere: list[Task]) -> str:
    """The task's index, and what is known of it where all runs met the same."""
    one = everywhere[0]
    alike = all(task.parameters == one.parameters for task in everywhere)
    return f"{one.index}: {parameters_in_words(one.parameters)}" if one.parameters and alike else f"{one.index}"


Levels = Callable[[int], np.ndarray]
"""float64 [tasks] for a seed."""


def _rows(found: dict[Run, list[Task]], at_random: Levels, fresh: Levels) -> Scores:
    """A row a seed; of a seed that several runs have, their mean."""
    by_seed: dict[int, list[list[Task]]] = {}
    for run, tasks in found.items():
        by_seed.setdefault(run.seed, []).append(tasks)
    seeds = sorted(by_seed)
    values = [np.mean([[task.last_tenth for task in tasks] for tasks in by_seed[seed]], axis=0) for seed in seeds]
    levels = [np.mean([[task.steps_to_level for task in tasks] for tasks in by_seed[seed]], axis=0) for seed in seeds]
    randoms, others = ([of(seed) for seed in seeds] for of in (at_random, fresh))
    return Scores(
        seeds, [task.index for task in next(iter(found.values()))], *map(np.array, (values, levels, randoms, others))
    )


def _by_seed(runs: Sequence[Run], tasks: list[int], tag: str) -> Levels:
    """Of control runs, what a seed's own come to in each task, else the mean of all."""
    held: dict[int, np.ndarray] = {}
    for run in runs:
        row = held.setdefault(run.seed, np.full(len(tasks), np.nan))
        alone = run.settings["task.first"]
        for task in tasks_of(run, tag, run.length):
            index = task.index if run.settings["task.period"] else alone
            if index in tasks:
                row[tasks.index(index)] = task.last_tenth
    table = np.array(list(held.values())).reshape(-1, len(tasks))
    counts = np.isfinite(table).sum(axis=0)
    means = np.where(counts, np.nansum(table, axis=0) / np.maximum(counts, 1), np.nan)
    return lambda seed: np.where(np.isfinite(held.get(seed, means)), held.get(seed, means), means)


def _random_levels(
    kept: dict[str, list[Run]], controls: Controls, tasks: list[int], tag: str, name: str, tell: Tell
) -> Levels:
    """What acting at random brings: of the random control; else 0, unless some return is negative."""
    everybody = [run for members in kept.values() for run in members]
    runs = random_in(everybody[0], controls)
    if runs:
        return _by_seed(runs, tasks, tag)
    unknown = np.full(len(tasks), np.nan)
    if tag != RETURN:
        return lambda seed: unknown
    if any((run.games.values < 0).any() for run in everybody):
        tell(
            f"{name}: returns are negative and no random control is among the runs: collapse and what is retained of "
            "the first task's return are left out"
        )
        return lambda seed: unknown
    tell(f"{name}: no random control is among the runs: acting at random counts as a return of 0")
    return lambda seed: np.zeros(len(tasks))


def _fresh_levels(members: Sequence[Run], controls: Controls, tasks: list[int], tag: str) -> Levels:
    """What agents of this arm bring that learn a task alone; NaN but for equal seeds."""
    runs = {id(one): one for run in members for one in fresh_of(run, controls)}
    unknown = np.full(len(tasks), np.nan)
    seeds = {run.seed for run in runs.values()}
    of = _by_seed(list(runs.values()), tasks, tag)
    return lambda seed: of(seed) if seed in seeds else unknown
