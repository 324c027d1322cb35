"""Learning curves of finished runs as a picture and the table behind it.

    python -m experiments.curves docs/results/ppo_ant.png "ours=runs/a" "Stable-Baselines3=runs/b" --title "Ant-v5"

reads each run's metrics.jsonl, averages the returns of the games that end within each bin of steps, and writes the
picture beside a .csv of the same name; with that .csv alone (no runs named) it draws the picture again.
"""

import argparse
import csv
import sys
from pathlib import Path

import numpy as np

from experiments.logger import read_metrics

Curves = dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]


def binned(steps: np.ndarray, values: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(right edge in steps, mean value, number of values) of each bin of `width` steps; empty bins are left out."""
    index = (np.asarray(steps) - 1) // width
    bins, which = np.unique(index, return_inverse=True)
    counts = np.bincount(which)
    return (bins + 1) * width, np.bincount(which, weights=values) / counts, counts


def from_runs(places: list[str], tag: str, bins: int) -> Curves:
    """Curves by label from "label=run directory" places. Raises ValueError where a place has no such curve."""
    series = {}
    for place in places:
        label, _, directory = place.rpartition("=")
        label = label or Path(directory).name
        if label in series:
            raise ValueError(f"run = {place!r}: needs a label of its own, {label!r} is taken")
        path = Path(directory) / "metrics.jsonl"
        if not path.is_file():
            raise ValueError(f"run = {directory!r}: holds no metrics.jsonl")
        metrics = read_metrics(path)
        if tag not in metrics:
            raise ValueError(f"tag = {tag!r}: not in {path}; there are {', '.join(sorted(metrics))}")
        series[label] = metrics[tag]
    width = max(1, -(-max(steps[-1] for steps, _ in series.values()) // bins))
    return {label: binned(np.array(steps), np.array(values), width) for label, (steps, values) in series.items()}


def write_table(path: Path, curves: Curves) -> None:
    """One row a label and bin."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["label", "step", "mean", "count"])
        for label, columns in curves.items():
            for step, mean, count in zip(*columns, strict=True):
                writer.writerow([label, int(step), f"{mean:.6g}", int(count)])


def read_table(path: Path) -> Curves:
    """The inverse of `write_table`."""
    rows: dict[str, list[tuple[float, ...]]] = {}
    with path.open() as file:
        for row in csv.DictReader(file):
            rows.setdefault(row["label"], []).append((int(row["step"]), float(row["mean"]), int(row["count"])))
    return {label: tuple(np.array(column) for column in zip(*points, strict=True)) for label, points in rows.items()}


def draw(path: Path, curves: Curves, title: str, ylabel: str) -> None:
    """Write the picture."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for label, (steps, means, _) in curves.items():
        axes.plot(steps, means, label=label, linewidth=1.8)
    axes.set(title=title, xlabel="steps", ylabel=ylabel)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1e3:g}k")
    if len(curves) > 1:
        axes.legend(frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> int:
    """Read runs or the table, write table and picture, print where each curve ends."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("picture", type=Path)
    parser.add_argument("runs", nargs="*", help="label=run directory; none: draw from the .csv beside the picture")
    parser.add_argument("--tag", default="charts/episodic_return")
    parser.add_argument("--title", default="")
    parser.add_argument("--ylabel", default="return of training games")
    parser.add_argument("--bins", type=int, default=50)
    arguments = parser.parse_args()
    table = arguments.picture.with_suffix(".csv")
    try:
        if arguments.runs:
            write_table(table, from_runs(arguments.runs, arguments.tag, arguments.bins))
        elif not table.is_file():
            raise ValueError(f"runs: name at least one, since {table} is not there to draw from")
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    curves = read_table(table)
    draw(arguments.picture, curves, arguments.title or arguments.picture.stem, arguments.ylabel)
    for label, (steps, means, counts) in curves.items():
        tenth = max(1, len(means) // 10)
        last = np.average(means[-tenth:], weights=counts[-tenth:])
        print(f"{label}: {last:.1f} over the last tenth (to step {steps[-1]:,}), first bin {means[0]:.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
