"""Which trials one process makes: seeds of an arm side by side where their gradient steps are computed as one, as many
as memory and the other workers leave. Imports torch where there are interventions alone."""

import heapq
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import groupby, pairwise
from typing import NamedTuple

from experiments.seeds import company, why_in_turns
from experiments.sweep.disk import OF_A_PROCESS, need_of
from experiments.sweep.plan import Bundle, Trial

MOST = 16
"""Seeds in a process where the study does not say: more gain little, and all of them wait where it is lost."""


class Limits(NamedTuple):
    """What there is room for."""

    seeds: int
    """In one process at most, as the study says; 0: as many as pay."""
    workers: int
    """Processes at the same time."""
    room: Callable[[Trial, int], int]
    """For how many processes with so many seeds of a trial each there is room at the same time."""


def bundles(trials: Sequence[Trial], limits: Limits) -> list[Bundle]:
    """The `trials` by the process that makes them, in their order.

    Those that have learned go on with the seeds that they were stacked with, so that they end as if they had not been
    stopped. Of all others, seeds of an arm are together where that pays: as few stacks as let all be done soonest.
    """
    begun, new = [], []
    for _, alike in groupby(trials, key=_arm):
        group = tuple(alike)
        if limits.seeds == 1 or why_alone(group[0]):
            begun += [(trial,) for trial in group]
            continue
        parts = _by_company(group)
        new += [parts.pop(())] if () in parts else []
        for together in parts.values():
            (begun if limits.room(group[0], len(together)) else new).append(together)
    found = [*begun, *_divided(new, limits, begun)]
    places = {trial.directory: place for place, trial in enumerate(trials)}
    return sorted(found, key=lambda bundle: places[bundle[0].directory])


def _arm(trial: Trial) -> tuple:
    """Equal for trials that differ in nothing but their seed."""
    return trial.kind, trial.label, tuple(sorted(trial.fields.items()))


def _by_company(group: Bundle) -> dict[tuple[int, ...], Bundle]:
    """The trials of `group` by the seeds that they go on with; by () those that may be beside any."""
    known = {trial.seed: company(trial.directory) for trial in group}
    found: dict[tuple[int, ...], Bundle] = {}
    for trial in group:
        beside = known[trial.seed]
        if beside is None:  # perhaps it was stopped before its first checkpoint, and the others after theirs
            beside = next((seeds for seeds in known.values() if seeds and trial.seed in seeds), ())
        else:
            beside = beside or (trial.seed,)
        found[beside] = (*found.get(beside, ()), trial)
    return found


def why_alone(trial: Trial) -> str:
    """Why seeds of it are made in processes of their own; empty where stacking them pays."""
    return "nothing is learned" if trial.kind == "random" else why_in_turns(trial.config)


def _divided(groups: Sequence[Bundle], limits: Limits, others: Sequence[Bundle]) -> list[Bundle]:
    """The `groups` in so many parts each that they and the `others` are done soonest, in the fewest of those."""
    least = [-(-len(group) // _most(group, limits)) for group in groups]

    def parts_of(count: int) -> list[Bundle]:
        return [
            part
            for group, few in zip(groups, least, strict=True)
            for part in _split(group, min(len(group), max(few, count)))
        ]

    tried = [parts_of(count) for count in range(1, max(map(len, groups), default=1) + 1)]
    return min(tried, key=lambda found: _time([*others, *found], limits.workers))


def _most(group: Bundle, limits: Limits) -> int:
    """How many of `group` may be in one process, so that memory for them leaves no worker without work."""
    count, workers = min(len(group), limits.seeds or MOST), min(limits.workers, limits.room(group[0], 1))
    while count > 1 and limits.room(group[0], count) < max(1, workers):
        count -= 1
    return count


def _split(group: Bundle, parts: int) -> list[Bundle]:
    """In order, in sizes that differ by one at most."""
    ends = [-(-len(group) * part // parts) for part in range(parts + 1)]
    return [group[start:end] for start, end in pairwise(ends)]


def _time(bundles: Sequence[Bundle], workers: int) -> float:
    """Until all are done, in steps of a trial alone: n seeds side by side take about (n + 1) / 2 of the time of one, as
    small MLPs do on a CPU (benchmarks.stacked_seeds)."""
    busy = [0.0] * workers
    for bundle in bundles:
        heapq.heapreplace(busy, busy[0] + bundle[0].config.run.steps * (len(bundle) + 1) / 2)
    return max(busy)


def memory_of(trial: Trial, seeds: int, each: int = 0) -> int:
    """Bytes of a process that makes so many `seeds` of it, `each` of which takes so many (0: an estimate)."""
    return seeds * each if each else OF_A_PROCESS + seeds * (need_of(trial.config).memory - OF_A_PROCESS)


def in_words(trials: Sequence[Trial], limits: Limits) -> list[str]:
    """Who of `trials` is made beside whom, and who alone, and why: by arm, in lines."""
    beside: dict[str, list[str]] = {}
    alone: Counter[tuple[str, str]] = Counter()
    for bundle in bundles(trials, limits):
        if len(bundle) > 1:
            beside.setdefault(bundle[0].label, []).append(_ranges([trial.seed for trial in bundle]))
        else:
            alone[bundle[0].label, _why(bundle[0], limits)] += 1
    lines = [f"    {label}: seeds {'; '.join(stacks)}" for label, stacks in beside.items()]
    lines[:0] = ["  side by side, their gradient steps computed as one:"] if lines else []
    lines += ["  alone:"] if alone else []
    return lines + [f"    {label} ({count:,}): {why}" for (label, why), count in alone.items()]


def _why(trial: Trial, limits: Limits) -> str:
    if why := why_alone(trial):
        return why
    if limits.seeds == 1:
        return "resources.seeds is 1"
    if company(trial.directory) == ():
        return "it was begun alone, or ended by itself"
    return f"side by side they would be done no sooner, with {limits.workers} processes at a time and their memory"


def _ranges(seeds: Sequence[int]) -> str:
    """[1, 2, 3, 7] as "1-3, 7"."""
    runs = [list(run) for _, run in groupby(enumerate(seeds), key=lambda pair: pair[1] - pair[0])]
    return ", ".join(f"{run[0][1]}-{run[-1][1]}" if len(run) > 1 else str(run[0][1]) for run in runs)
