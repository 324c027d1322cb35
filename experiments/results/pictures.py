"""The pictures of a comparison: curves, tasks, probes."""

from collections.abc import Sequence
from pathlib import Path

from experiments.naming import safe
from experiments.results.comparison import Comparison
from experiments.results.figures import Line, Panel, draw
from experiments.results.lines import BAND, BinnedCurve, curve_of
from experiments.results.runs import Run
from experiments.results.scores import World
from experiments.results.statistics import of_seeds

PROBES = ("dormant_fraction/tau=0.025/all", "dead_fraction/all", "effective_rank/centred", "weight_norm/total")
"""Probes that are shown of many, where a run has them: the last of those tags that begin so."""


def line_of(curve: BinnedCurve) -> Line:
    """A curve as a panel takes it."""
    return Line(curve.steps, curve.means, curve.lows, curve.highs, int(curve.runs.max()) if len(curve.runs) else 0)


def probes_of(runs: Sequence[Run]) -> list[str]:
    """The tags of `PROBES` that some run has, and the mean of the targets."""
    tags = list(dict.fromkeys(tag for run in runs for tag in run.metrics))
    found = []
    for name in PROBES:
        found += [tag for tag in tags if tag.startswith(f"probes/{name}")][-1:]
    return found + [tag for tag in ("targets/mean",) if tag in tags]


def draw_comparison(told: Comparison, folder: Path) -> list[Path]:
    """The pictures of a comparison in `folder`: curves, tasks, probes of each world."""
    written = []
    for world in told.worlds:
        before = f"{safe(world.name)}_" if len(told.worlds) > 1 else ""
        boundaries, names = world.ends[:-1], world.task_names if world.changes else ()

        def panel(tag: str, title: str, ylabel: str, world: World = world, inner: tuple = (boundaries, names)) -> Panel:
            lines = {arm: line_of(curve_of(runs, tag, world.length)) for arm, runs in world.runs.items()}
            lines = {arm: line for arm, line in lines.items() if len(line.x)}
            return Panel(lines, title, ylabel=ylabel, boundaries=inner[0], names=inner[1])

        path = folder / f"{before}curves.png"
        note = f"mean over runs in hundredths of {world.length:,} steps; band: {BAND}"
        draw(path, [panel(told.settings.metric, "", told.measure)], world.name, note)
        written.append(path)
        if world.changes:
            path = folder / f"{before}tasks.png"
            title = f"{world.name}: {told.measure} in the last tenth of each task"
            note = f"points: means over seeds; bars: {BAND}"
            draw(path, [Panel(_by_task(world), "", "task", told.measure, time=False)], title, note)
            written.append(path)
        tags = probes_of([run for runs in world.runs.values() for run in runs])
        if tags:
            path = folder / f"{before}probes.png"
            note = f"mean over runs in hundredths of {world.length:,} steps; band: {BAND}"
            draw(path, [panel(tag, tag.removeprefix("probes/"), "") for tag in tags], world.name, note, columns=3)
            written.append(path)
    return written


def _by_task(world: World) -> dict[str, Line]:
    lines = {}
    for arm, scores in world.scores.items():
        means, lows, highs = zip(*(of_seeds(column) for column in scores.values.T), strict=True)
        lines[arm] = Line(world.task_names, means, lows, highs, len(scores.seeds))
    return lines
