"""What the studies share: jobs in parallel, means over seeds with their uncertainty, tables and figures."""

import argparse
import csv
import itertools
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress

from experiments.results.figures import Line, Panel
from experiments.results.figures import draw as draw_panels
from experiments.results.lines import BAND
from experiments.results.statistics import of_seeds
from experiments.results.tables import write_rows


def in_parallel(
    function: Callable[..., Any],
    jobs: Sequence[tuple],
    workers: int,
    what: str,
    done: Callable[[Any], None] = lambda result: None,
) -> list[Any]:
    """`function(*job)` for each of `jobs`, in processes of one thread each; results in the order of the jobs. `done` is
    told each as soon as it is there. Where one fails the others are made all the same, and the first error is raised
    at the end."""
    spawning = get_context("spawn")
    with ProcessPoolExecutor(workers, spawning, torch.set_num_threads, (1,)) as pool, Progress() as bars:
        bar, futures = bars.add_task(what, total=len(jobs)), [pool.submit(function, *job) for job in jobs]
        for future in as_completed(futures):
            if future.exception() is None:
                done(future.result())
            bars.advance(bar)
        return [future.result() for future in futures]


def read_rows(path: Path) -> list[dict[str, Any]]:
    """What `write_rows` wrote; everything that is a number as a float."""
    with path.open(newline="") as file:
        return [{key: _number(text) for key, text in row.items()} for row in csv.DictReader(file)]


def parser(description: str, arms: Sequence[str], seeds: int) -> argparse.ArgumentParser:
    """The flags that all studies have."""
    found = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("figure", type=Path, help="the .png to draw; its .csv holds the numbers")
    found.add_argument("--seeds", type=int, default=seeds)
    found.add_argument("--workers", type=int, default=2)
    found.add_argument("--arms", nargs="+", default=list(arms), choices=list(arms))
    return found


Pairs = list[tuple[str, int]]


def completed(
    given: argparse.Namespace,
    order: Sequence[str],
    column: str,
    values: Iterable[float],
    jobs: Callable[[Pairs, list[dict[str, Any]]], list[tuple]],
    run: Callable[..., list[dict[str, Any]]],
) -> list[dict[str, Any]]:
    """The rows of the .csv beside the figure for the seeds 1 to `given.seeds` and the `values` in `column`, arms in
    `order`.

    A seed of one of `given.arms` that lacks some of the values is made first: `jobs(missing, rows)` are the arguments
    of `run` for the missing pairs (arm, seed), `rows` what the .csv held; what a job gives is written at once, so that
    an interrupted study goes on where it was. Other arms, more seeds and more values stay in the .csv.
    """
    path, values = given.figure.with_suffix(".csv"), set(values)
    rows = read_rows(path) if path.exists() else []
    missing = incomplete(rows, given.arms, given.seeds, column, values)
    places = {arm: place for place, arm in enumerate(order)}
    held = {(row["arm"], row["seed"], row[column]): row for row in rows}

    def keep(found: list[dict[str, Any]]) -> None:
        held.update({(row["arm"], row["seed"], row[column]): row for row in found})
        write_rows(path, ordered())

    def ordered() -> list[dict[str, Any]]:
        return [held[key] for key in sorted(held, key=lambda key: (places.get(key[0], len(places)), *key))]

    if missing:
        in_parallel(run, jobs(missing, rows), given.workers, "runs", keep)
    return [row for row in ordered() if row["seed"] <= given.seeds and row[column] in values]


def incomplete(
    rows: list[dict[str, Any]], arms: Sequence[str], seeds: int, column: str, values: Iterable[float]
) -> Pairs:
    """The pairs (arm, seed), seeds 1 to `seeds`, of which `rows` does not hold all `values` in `column`."""
    held: dict[tuple[str, int], set[float]] = {}
    for row in rows:
        held.setdefault((row["arm"], row["seed"]), set()).add(row[column])
    pairs = itertools.product(arms, range(1, seeds + 1))
    return [pair for pair in pairs if not set(values) <= held.get(pair, set())]


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def draw(
    path: Path,
    panels: dict[str, dict[str, dict[float, list[float]]]],
    across: str,
    title: str,
    time: bool = True,
) -> None:
    """A picture of one panel a measure: {panel: {arm: {x: values of the seeds}}}, means with their intervals; points
    unless x is an axis of `time`."""
    found = []
    for name, arms in panels.items():
        lines = {}
        for arm, points in arms.items():
            places = sorted(points)
            means, lows, highs = zip(*(of_seeds(points[x]) for x in places), strict=True)
            shown = places if time else [f"{x:g}" for x in places]
            lines[arm] = Line(shown, means, lows, highs, min(map(len, points.values())))
        found.append(Panel(lines, name, across, time=time, steps=False))
    draw_panels(path, found, title, f"means over seeds; {'bands' if time else 'bars'}: {BAND}")
