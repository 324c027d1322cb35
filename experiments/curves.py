"""Learning curves of finished runs as a picture and the table behind it, for documents; compare.py says what they mean.

    python -m experiments.curves docs/results/ppo_ant.png "ours=runs/a" "Stable-Baselines3=runs/b" --title "Ant-v5"

reads each run's games (or --tag of its metrics.jsonl), averages the returns of those that end within each of --bins
equal parts of the common length (every game counts once), and writes the picture beside a .csv of the same name; with
that .csv alone (no runs named) it draws the picture again. Runs of one label, which may be a pattern
("mse=runs/*mse*"), become one line, their mean, in the 95 % bootstrap interval of it. Runs that are not finished are
named and left out (--unfinished takes them as far as they are), longer ones cut aloud.
"""

import argparse
import csv
import glob
import sys
from pathlib import Path

import numpy as np

from agents.config import require
from experiments.places import own_file, require_text, require_writable
from experiments.results.figures import Line, Panel, draw
from experiments.results.lines import BAND, BinnedCurve, joined
from experiments.results.runs import RETURN, Run, find, read_run

BEFORE = "from the lowest run to the highest"
"""What a band is in tables that do not say of how many runs it is."""


def label_and_runs(place: str) -> tuple[str, list[Path]]:
    """The parts of "label=runs", a directory or a pattern; names of runs hold "=" themselves. Without a label, the
    run's name. ValueError: there is none."""
    ends = [-1, *(position for position, character in enumerate(place) if character == "=")]
    for end in ends:
        if glob.glob(place[end + 1 :]) or glob.glob(glob.escape(place[end + 1 :])):
            directories = find([place[end + 1 :]])
            return place[: max(end, 0)] or directories[0].name, directories
    raise ValueError(f"run = {place!r}: no such run directory, and no pattern that meets one")


def from_runs(
    places: list[str], tag: str, bins: int, unfinished: bool = False
) -> tuple[dict[str, BinnedCurve], list[str]]:
    """(curves by label from "label=runs" places, what was left out or cut). Runs that are not finished are left out,
    or, where `unfinished` is asked for, taken as far as they are. Raises ValueError where a place has no such curve, or
    a label no run."""
    found: dict[str, list[Run]] = {}
    said = []
    for place in places:
        label, directories = label_and_runs(place)
        for run in map(read_run, directories):
            state, why = run.state
            found.setdefault(label, []).extend([run] if state == "finished" or unfinished else [])
            what = f"not finished, taken to step {run.length:,}" if unfinished else "left out"
            said += [] if state == "finished" else [f"{what}: {run.name}: {why}"]
    for label, runs in found.items():
        require(bool(runs), "runs", label, f"finished ones; {'; '.join(said)}")
    length = min(run.length for runs in found.values() for run in runs)
    cut = [run.name for runs in found.values() for run in runs if run.length > length]
    said += [f"cut to {length:,} steps, the shortest run's length: {', '.join(cut)}"] if cut else []
    series = {label: [run.series(tag) for run in runs] for label, runs in found.items()}
    for label, several in series.items():
        require(all(len(one.steps) for one in several), "tag", tag, f"one that every run of {label} has values of")
    return {label: joined(several, length, bins) for label, several in series.items()}, said


def write_table(path: Path, curves: dict[str, BinnedCurve]) -> None:
    """One row a label and bin."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["label", "step", "mean", "count", "low", "high", "runs"])
        for label, curve in curves.items():
            for step, mean, count, low, high, runs in zip(*curve, strict=True):
                band = ["" if np.isnan(edge) else f"{edge:.6g}" for edge in (low, high)]
                writer.writerow([label, int(step), f"{mean:.6g}", int(count), *band, int(runs)])


def read_table(path: Path) -> dict[str, BinnedCurve]:
    """The inverse of `write_table`; one of single runs needs neither low nor high, one that does not say of how many
    runs it is has 0 of them. ValueError: it is no such table."""
    rows: dict[str, list[tuple[float, ...]]] = {}
    try:
        with path.open(encoding="utf-8") as file:
            for row in csv.DictReader(file):
                mean = float(row["mean"])
                band = float(row.get("low") or mean), float(row.get("high") or mean)
                point = (int(row["step"]), mean, int(row["count"]), *band, int(row.get("runs") or 0))
                rows.setdefault(row["label"], []).append(point)
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


PICTURES = (".png", ".pdf", ".svg", ".jpg", ".jpeg", ".webp")


def check_picture(picture: Path) -> None:
    """Raise ValueError unless picture and table can be written there."""
    require_text("picture", str(picture))
    allowed = f"a file name ending in {', '.join(PICTURES)}"
    require(picture.suffix.lower() in PICTURES, "picture", str(picture), allowed)
    require_writable("picture", picture.parent)
    for file in (picture, picture.with_suffix(".csv")):
        require(own_file(file), "picture", str(picture), f"where files can be written: {file} is something else")


def picture(arguments: argparse.Namespace, curves: dict[str, BinnedCurve]) -> None:
    """Draw the curves."""
    last, period = max(curve.steps[-1] for curve in curves.values()), arguments.period
    lines = {
        label: Line(curve.steps, curve.means, curve.lows, curve.highs, int(curve.runs.max()))
        for label, curve in curves.items()
    }
    several = any((curve.highs > curve.lows).any() for curve in curves.values())
    band = BAND if any(line.runs for line in lines.values()) else BEFORE
    marks = range(period, int(last), period) if period else ()
    panel = Panel(lines, ylabel=arguments.ylabel, boundaries=marks)
    draw(arguments.picture, [panel], arguments.title or arguments.picture.stem, f"band: {band}" if several else "")


def main() -> int:
    """Read runs or the table, write table and picture, print where each curve ends."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("picture", type=Path)
    parser.add_argument(
        "runs", nargs="*", help="label=run directory or pattern; none: draw from the .csv beside the picture"
    )
    parser.add_argument("--tag", default=RETURN)
    parser.add_argument("--title", default="")
    parser.add_argument("--ylabel", default="return of training games")
    parser.add_argument("--bins", type=int, default=50)
    parser.add_argument("--unfinished", action="store_true", help="take runs that are not finished as far as they are")
    parser.add_argument("--period", type=int, default=0, help="mark the multiples of so many steps, as task changes")
    arguments = parser.parse_args()
    try:
        require(1 <= arguments.bins <= 1_000_000, "bins", arguments.bins, "in [1, 1,000,000]")
        require(0 <= arguments.period < 2**53, "period", arguments.period, "in [0, 2**53)")
        check_picture(arguments.picture)
        table = arguments.picture.with_suffix(".csv")
        if arguments.runs:
            found, said = from_runs(arguments.runs, arguments.tag, arguments.bins, arguments.unfinished)
            table.parent.mkdir(parents=True, exist_ok=True)
            write_table(table, found)
            print("".join(f"{sentence}\n" for sentence in said), end="")
        elif not table.is_file():
            raise ValueError(f"runs: name at least one, since {table} is not there to draw from")
        curves = read_table(table)
        marks = max(curve.steps[-1] for curve in curves.values()) // (arguments.period or 2**53)
        require(marks <= 10_000, "period", arguments.period, f"larger: it marks {marks:,} steps of the curves")
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    picture(arguments, curves)
    for label, curve in curves.items():
        tenth = max(1, len(curve.means) // 10)
        last = np.average(curve.means[-tenth:], weights=curve.counts[-tenth:])
        print(f"{label}: {last:.1f} over the last tenth (to step {curve.steps[-1]:,}), first bin {curve.means[0]:.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
