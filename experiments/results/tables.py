"""A comparison as text: for the screen, in Markdown, and as rows of numbers."""

import csv
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from experiments.results.comparison import Comparison, Table
from experiments.results.lines import last_values, tags_of
from experiments.results.pictures import probes_of
from experiments.results.rows import Row
from experiments.results.scores import World
from experiments.results.statistics import Interval

NONE = "-"
MOST_COLUMNS = 5
"""Of a screen's table at its beginning, and at its end, where it has many."""
PROBE_ROOMS = ("probes/", "probes_reference/", "targets/")
Grid = list[list[str]]
"""A header and rows of cells."""


def number(value: float, digits: int = 3) -> str:
    """For people: 1,342; 68.1; 0.578."""
    if value != value:
        return NONE
    return f"{value:,.0f}" if abs(value) >= 1_000 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.{digits}g}"


def interval(found: Interval) -> str:
    """The value and its interval."""
    if found.value != found.value:
        return NONE
    inner = f" [{number(found.low)}, {number(found.high)}]" if found.low == found.low else ""
    return number(found.value) + inner


def _share(row: Row) -> str:
    found = row.collapsed
    if found.value != found.value:
        return NONE
    return f"{row.collapsed_count}/{round(row.collapsed_count / found.value) if found.value else row.n}" + (
        f" [{found.low:.2f}, {found.high:.2f}]"
    )


def _p(value: float) -> str:
    return NONE if value != value else f"{value:.2g}"


COLUMNS = {
    "n": lambda row: str(row.n),
    "mean [95 %]": lambda row: interval(row.mean),
    "IQM [95 %]": lambda row: interval(row.iqm),
    "worst quarter": lambda row: number(row.worst_quarter),
    "collapsed [95 %]": _share,
    "retained [95 %]": lambda row: interval(row.retained),
    "gap to fresh [95 %]": lambda row: interval(row.gap),
    "steps to level": lambda row: number(row.to_level.value) + f" ({row.reached})" if row.reached[0] != "0" else NONE,
    "difference [95 %]": lambda row: interval(row.difference),
    "p": lambda row: _p(row.p),
    "p, Holm": lambda row: _p(row.p_holm),
    "P(above baseline)": lambda row: interval(row.improvement),
    "verdict": lambda row: row.verdict,
}
"""What stands in a table, by its header."""


def grids_of(table: Table, returns: bool) -> list[Grid]:
    """The table's cells, what the arms come to and how they compare with the baseline. A column of which nothing is
    known is left out, and so are steps to the level of what is no `returns`."""
    names = [name for name in COLUMNS if returns or name != "steps to level"]
    beside = names.index("difference [95 %]")
    found = []
    for part in (names[:beside], names[beside:] if len(table.rows) > 1 else []):
        rows = [[row.arm, *(COLUMNS[name](row) for name in part)] for row in table.rows]
        found.append(_without_empty([["arm", *part], *rows]))
    return [grid for grid in found if len(grid[0]) > 1]


def _without_empty(grid: Grid) -> Grid:
    kept = [place for place in range(len(grid[0])) if any(row[place] != NONE for row in grid[1:])]
    return [[row[place] for place in kept] for row in grid]


def by_task(told: Comparison, world: World, gaps: bool = False) -> Grid:
    """Of each arm its mean (or G_k) in every task."""
    tables = [table for table in told.tables if table.world == world.name and table.scope != "overall"]
    cells: dict[str, list[str]] = {row.arm: [] for table in tables for row in table.rows}
    for table in tables:
        for row in table.rows:
            fallen = f", {row.collapsed_count} fell" if row.collapsed_count and row.collapsed.value > 0 else ""
            cells[row.arm].append(interval(row.gap) if gaps else interval(row.mean) + fallen)
    grid = [["arm", *(f"task {name}" for name in world.task_names)], *([arm, *row] for arm, row in cells.items())]
    return _without_empty(grid) if gaps else grid


def finals(world: World, tags: Iterable[str]) -> list[dict[str, Any]]:
    """The last value of each of `tags` before the common length: a row an arm and tag."""
    found = []
    for tag in tags:
        for arm, runs in world.runs.items():
            value = last_values(runs, tag, world.length)
            if value.value == value.value:
                row = {"world": world.name, "arm": arm, "tag": tag, "n": len(runs)}
                found.append(row | {"mean": value.value, "low": value.low, "high": value.high})
    return found


def finals_grid(world: World) -> Grid:
    """Final probe values of a few probes, by arm."""
    tags = probes_of([run for runs in world.runs.values() for run in runs])
    rows = {(row["arm"], row["tag"]): row for row in finals(world, tags)}
    cells = [[arm, *(_cell(rows.get((arm, tag))) for tag in tags)] for arm in world.runs]
    return _without_empty([["arm", *(tag.removeprefix("probes/") for tag in tags)], *cells]) if tags else []


def _cell(row: dict[str, Any] | None) -> str:
    return NONE if row is None else interval(Interval(row["mean"], row["low"], row["high"]))


def least(table: Table) -> str:
    """The least p that is possible in the table."""
    rows = [row for row in table.rows if row.pairs]
    if not rows:
        return ""
    few = min(rows, key=lambda row: row.pairs)
    holm = min(1.0, few.least_p * len(rows))
    return (
        f"tested against {table.baseline} over equal seeds; least p possible with {few.pairs} pairs: {few.least_p:.2g}"
        + (f", after Holm over {len(rows)} arms {holm:.2g}" if len(rows) > 1 else "")
    )


def columns_of(grid: Grid, width: int) -> list[str]:
    """The grid as lines of at most `width` columns: what does not fit beside stands below, with the arms again."""
    sizes = [max(map(len, column)) for column in zip(*grid, strict=True)]
    lines, at = [], 1
    while at < len(sizes) or not lines:
        end, used = at, sizes[0]
        while end < len(sizes) and (end == at or used + 2 + sizes[end] <= width):
            used, end = used + 2 + sizes[end], end + 1
        for row in grid:
            cells = [row[0].ljust(sizes[0]), *(row[place].rjust(sizes[place]) for place in range(at, end))]
            lines.append("  ".join(cells).rstrip())
        lines += [""] if end < len(sizes) else []
        at = end
    return lines


def on_screen(told: Comparison) -> list[str]:
    """All that a person should see, as lines."""
    width = max(60, shutil.get_terminal_size((120, 24)).columns)
    lines = [*remarks(told), ""]
    for table in told.tables:
        world = next((world for world in told.worlds if world.name == table.world), None)
        if table.scope != "overall":
            continue
        lines += [table.title]
        for grid in grids_of(table, _returns(told)):
            lines += [*columns_of(grid, width), ""]
        lines[-1:] = [least(table), ""]
        for title, grid in below(told, world) if world else ():
            lines += [title, *columns_of(_ends(grid), width), ""]
    return lines


def _ends(grid: Grid) -> Grid:
    """The first and the last columns of a grid that is too wide to be read."""
    if len(grid[0]) <= 2 * MOST_COLUMNS + 1:
        return grid
    gap = [f"... {len(grid[0]) - 1 - 2 * MOST_COLUMNS} more in comparison.md", *["..."] * (len(grid) - 1)]
    return [[*row[: MOST_COLUMNS + 1], between, *row[-MOST_COLUMNS:]] for row, between in zip(grid, gap, strict=True)]


def _returns(told: Comparison) -> bool:
    return told.measure == "return"


def below(told: Comparison, world: World) -> list[tuple[str, Grid]]:
    """What stands below a world's table."""
    found = []
    if world.changes:
        found.append((f"{world.name}: mean of the last tenth of each task [95 %]", by_task(told, world)))
        gaps = by_task(told, world, gaps=True)
        if len(gaps[0]) > 1:
            found.append((f"{world.name}: G_k, the share of what a fresh agent gains that this one misses", gaps))
    grid = finals_grid(world)
    if grid and len(grid[0]) > 1:
        found.append((f"{world.name}: last probe values, mean over runs [95 %]", grid))
    return found


def legend(told: Comparison) -> list[str]:
    """What the columns mean, a sentence each."""
    share = told.settings.collapsed_below
    found = [
        "[95 %]: percentile bootstrap over seeds, a run's tasks together, drawn in each world separately",
        "IQM: mean of all seeds and tasks without the lowest and the highest quarter",
        "worst quarter: mean of the quarter of the seeds with the lowest scores",
    ]
    if _returns(told) and any(row.to_level.value > 0 for table in told.tables for row in table.rows):
        shares = sorted({f"{run.settings['level-share']:g}" for run in told.runs})
        found.append(
            f"steps to level: until a twentieth of a task brings level_share ({', '.join(shares)}) of what the run's "
            "first task gained; the mean where that came to pass, in so many of the seeds' tasks"
        )
    if any(row.collapsed.value == row.collapsed.value for table in told.tables for row in table.rows):
        found += [
            f"collapsed: seeds that fell, in the last tenth of this task or of any, below {share:g} of the way from "
            "random to their first task's last tenth; Wilson's interval",
            "retained: (J_last - J_random) / (J_first - J_random); it mixes plasticity with how hard the last task is",
        ]
    if any(row.gap.value == row.gap.value for table in told.tables for row in table.rows):
        found.append(
            "gap to fresh, G_k = (J_fresh,k - J_continual,k) / (J_fresh,k - J_random,k), the mean over tasks k"
        )
    if len(told.arms) > 1:
        found.append(
            "p: paired sign flips over equal seeds, two-sided, exact to 12 pairs; Holm over the arms of a table; "
            "P(above baseline): of a run drawn from each"
        )
    return found


def remarks(told: Comparison) -> list[str]:
    """What was left out, what was done, what to beware of."""
    return [
        f"{len(told.runs)} runs in {len(told.arms)} arms"
        + (f", {len(told.left_out)} left out" if told.left_out else ""),
        *(f"left out: {path}: {why}" for path, why in told.left_out),
        *(f"note: {note}" for note in told.notes),
        *(f"warning: {warning}" for warning in told.warnings),
    ]


def markdown(told: Comparison, closing: str) -> str:
    """Everything in Markdown."""
    parts = ["# Comparison", "\n".join(f"- {line}" for line in [*remarks(told), closing])]
    for table in told.tables:
        parts += [f"## {table.title}", *map(in_markdown, grids_of(table, _returns(told))), least(table)]
        world = next((world for world in told.worlds if world.name == table.world), None)
        for title, grid in below(told, world) if world and table.scope == "overall" else ():
            parts += [f"### {title}", in_markdown(grid)]
    parts += ["## How to read it", "\n".join(f"- {line}" for line in legend(told))]
    return "\n\n".join(part for part in parts if part) + "\n"


def in_markdown(grid: Sequence[Sequence[str]]) -> str:
    """A grid in Markdown."""
    header, *rows = ([cell.replace("|", "\\|") for cell in row] for row in grid)
    return "\n".join("| " + " | ".join(line) + " |" for line in [header, ["---"] * len(header), *rows])


def numbers(told: Comparison) -> list[dict[str, Any]]:
    """Every number of every table: a row an arm and table."""
    found = []
    for table in told.tables:
        for row in table.rows:
            flat: dict[str, Any] = {"world": table.world, "scope": table.scope}
            for name, value in vars(row).items():
                if isinstance(value, Interval):
                    flat |= {name: value.value, f"{name}_low": value.low, f"{name}_high": value.high}
                else:
                    flat[name] = value
            found.append(flat)
    return found


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """A .csv of `rows`, whose columns are all keys in the order in which they first occur; numbers to six digits. What
    stood there before stays until the new file is whole."""
    written = path.with_name(f".{path.name}.part")
    with written.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({k: "" if v != v else f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
    written.replace(path)


def write_tables(told: Comparison, folder: Path, closing: str) -> list[Path]:
    """comparison.csv, comparison.md and, where probes were taken, probes.csv in `folder`."""
    write_rows(folder / "comparison.csv", numbers(told))
    (folder / "comparison.md").write_text(markdown(told, closing), encoding="utf-8")
    found = []
    for world in told.worlds:
        tags = tags_of([run for runs in world.runs.values() for run in runs])
        found += finals(world, [tag for tag in tags if tag.startswith(PROBE_ROOMS)])
    if found:
        write_rows(folder / "probes.csv", found)
    return [folder / "comparison.csv", folder / "comparison.md", *([folder / "probes.csv"] if found else [])]
