"""Learning curves of finished runs as a picture and the table behind it.

    python -m experiments.curves docs/results/ppo_ant.png "ours=runs/a" "Stable-Baselines3=runs/b" --title "Ant-v5"

reads each run's metrics.jsonl, averages the returns of the games that end within each bin of steps (every game counts
once, also where the log has the mean of several that ended in one tick), and writes the picture beside a .csv of the
same name; with that .csv alone (no runs named) it draws the picture again. Runs of one label (seeds, say) become one
line, their mean, in a band from the lowest run to the highest.
"""

import argparse
import csv
import os
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

from agents.config import require
from experiments.places import own_file, require_text, require_writable
from experiments.records import read_metrics


class BinnedCurve(NamedTuple):
    """A line over bins of steps."""

    steps: np.ndarray
    """Right edges."""
    means: np.ndarray
    """Mean over runs of each run's mean in the bin."""
    counts: np.ndarray
    """Values in the bin, over all runs."""
    lows: np.ndarray
    """The lowest run's mean."""
    highs: np.ndarray
    """The highest run's mean."""


def binned(
    steps: np.ndarray, values: np.ndarray, width: int, numbers: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(right edge in steps, mean value, number of values) of each bin of `width` steps; empty bins are left out.

    `numbers`: of how many values each is the mean; 1 where left out.
    """
    numbers = np.ones(len(steps), int) if numbers is None else numbers
    bins, which = np.unique((np.asarray(steps) - 1) // width, return_inverse=True)
    counts = np.bincount(which, weights=numbers).astype(int)
    return (bins + 1) * width, np.bincount(which, weights=values * numbers) / counts, counts


def series_of(metrics: dict[str, tuple[list[int], list[float]]], tag: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(steps, values, of how many values each is the mean) of `tag`: what games come to is a mean over those that ended
    in one tick, charts/episodes of them (one by one in logs without that tag)."""
    steps, values = metrics[tag]
    numbers = np.ones(len(steps), int)
    if tag in ("charts/episodic_return", "charts/episodic_length"):
        ended = dict(zip(*metrics.get("charts/episodes", ((), ())), strict=True))
        numbers = np.array([ended.get(step, 1) for step in steps], dtype=int)
    return np.array(steps), np.array(values, dtype=float), numbers


def label_and_run(place: str) -> tuple[str, Path]:
    """The parts of "label=run directory"; names of runs hold "=" themselves. Without a label, the run's name."""
    ends = [-1, *(position for position, character in enumerate(place) if character == "=")]
    for end in ends:
        if os.path.isfile(Path(place[end + 1 :]) / "metrics.jsonl"):  # pathlib's raises for a name that is too long
            return place[: max(end, 0)] or Path(place[end + 1 :]).name, Path(place[end + 1 :])
    raise ValueError(f"run = {place!r}: holds no metrics.jsonl")


def joined(runs: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> BinnedCurve:
    """One curve of several runs' bins; a run without values in a bin is left out of it."""
    edges = np.unique(np.concatenate([steps for steps, _, _ in runs]))
    means = np.full((len(runs), len(edges)), np.nan)
    counts = np.zeros(len(edges), dtype=int)
    for row, (steps, values, count) in zip(means, runs, strict=True):
        places = np.searchsorted(edges, steps)
        row[places] = values
        counts[places] += count
    return BinnedCurve(edges, np.nanmean(means, 0), counts, np.nanmin(means, 0), np.nanmax(means, 0))


def from_runs(places: list[str], tag: str, bins: int) -> dict[str, BinnedCurve]:
    """Curves by label from "label=run directory" places. Raises ValueError where a place has no such curve."""
    series: dict[str, list] = {}
    for place in places:
        label, directory = label_and_run(place)
        metrics = read_metrics(directory / "metrics.jsonl")
        if tag not in metrics:
            there = ", ".join(sorted(metrics))
            raise ValueError(f"tag = {tag!r}: not in {directory / 'metrics.jsonl'}; there are {there}")
        series.setdefault(label, []).append(series_of(metrics, tag))
    width = max(1, -(-max(int(steps[-1]) for runs in series.values() for steps, _, _ in runs) // bins))
    return {
        label: joined([binned(steps, values, width, numbers) for steps, values, numbers in runs])
        for label, runs in series.items()
    }


def write_table(path: Path, curves: dict[str, BinnedCurve]) -> None:
    """One row a label and bin."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["label", "step", "mean", "count", "low", "high"])
        for label, curve in curves.items():
            for step, mean, count, low, high in zip(*curve, strict=True):
                writer.writerow([label, int(step), f"{mean:.6g}", int(count), f"{low:.6g}", f"{high:.6g}"])


def read_table(path: Path) -> dict[str, BinnedCurve]:
    """The inverse of `write_table`; one of single runs needs neither low nor high. ValueError: it is no such table."""
    rows: dict[str, list[tuple[float, ...]]] = {}
    try:
        with path.open(encoding="utf-8") as file:
            for row in csv.DictReader(file):
                mean = float(row["mean"])
                band = float(row.get("low") or mean), float(row.get("high") or mean)
                rows.setdefault(row["label"], []).append((int(row["step"]), mean, int(row["count"]), *band))
    except OSError as error:
        raise ValueError(f"table = {str(path)!r}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        raise ValueError(f"table = {str(path)!r}: is no table of curves ({type(error).__name__}: {error})") from None
    if not rows:
        raise ValueError(f"table = {str(path)!r}: holds no curve")
    return {
        label: BinnedCurve(*(np.array(column) for column in zip(*points, strict=True)))
        for label, points in rows.items()
    }


def draw(path: Path, curves: dict[str, BinnedCurve], title: str, ylabel: str, period: int) -> None:
    """Write the picture; `period` > 0 marks the multiples of so many steps."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for label, curve in curves.items():
        line = axes.plot(curve.steps, curve.means, label=label, linewidth=1.8)[0]
        axes.fill_between(curve.steps, curve.lows, curve.highs, color=line.get_color(), alpha=0.18, linewidth=0)
    last = max(curve.steps[-1] for curve in curves.values())
    for step in range(period, int(last), period) if period else ():
        axes.axvline(step, color="0.6", linewidth=0.8, linestyle=":")
    axes.set(title=title, xlabel="steps", ylabel=ylabel)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1e3:g}k")
    if len(curves) > 1:
        axes.legend(frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


PICTURES = (".png", ".pdf", ".svg", ".jpg", ".jpeg", ".webp")


def check_picture(picture: Path) -> None:
    """Raise ValueError unless picture and table can be written there."""
    require_text("picture", str(picture))
    allowed = f"a file name ending in {', '.join(PICTURES)}"
    require(picture.suffix.lower() in PICTURES, "picture", str(picture), allowed)
    require_writable("picture", picture.parent)
    for file in (picture, picture.with_suffix(".csv")):
        require(own_file(file), "picture", str(picture), f"where files can be written: {file} is something else")


def main() -> int:
    """Read runs or the table, write table and picture, print where each curve ends."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("picture", type=Path)
    parser.add_argument("runs", nargs="*", help="label=run directory; none: draw from the .csv beside the picture")
    parser.add_argument("--tag", default="charts/episodic_return")
    parser.add_argument("--title", default="")
    parser.add_argument("--ylabel", default="return of training games")
    parser.add_argument("--bins", type=int, default=50)
    parser.add_argument("--period", type=int, default=0, help="mark the multiples of so many steps, as task changes")
    arguments = parser.parse_args()
    try:
        require(1 <= arguments.bins <= 1_000_000, "bins", arguments.bins, "in [1, 1,000,000]")
        require(0 <= arguments.period < 2**53, "period", arguments.period, "in [0, 2**53)")
        check_picture(arguments.picture)
        table = arguments.picture.with_suffix(".csv")
        if arguments.runs:
            found = from_runs(arguments.runs, arguments.tag, arguments.bins)
            table.parent.mkdir(parents=True, exist_ok=True)
            write_table(table, found)
        elif not table.is_file():
            raise ValueError(f"runs: name at least one, since {table} is not there to draw from")
        curves = read_table(table)
        marks = max(curve.steps[-1] for curve in curves.values()) // (arguments.period or 2**53)
        require(marks <= 10_000, "period", arguments.period, f"larger: it marks {marks:,} steps of the curves")
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    draw(arguments.picture, curves, arguments.title or arguments.picture.stem, arguments.ylabel, arguments.period)
    for label, curve in curves.items():
        tenth = max(1, len(curve.means) // 10)
        last = np.average(curve.means[-tenth:], weights=curve.counts[-tenth:])
        print(f"{label}: {last:.1f} over the last tenth (to step {curve.steps[-1]:,}), first bin {curve.means[0]:.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
