"""Pictures for documents, with Matplotlib: every one says how many runs it shows and what its bands are."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

COLOURS = ("#444444", "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#b2a429", "#8c564b", "#17becf")
A_LETTER = 0.064
"""Inches of the legend's width, about."""
MOST_NAMES = 16
"""Tasks whose names fit beside each other."""


@dataclass
class Line:
    """One arm in a panel."""

    x: Sequence[float] | Sequence[str]
    means: Sequence[float]
    lows: Sequence[float]
    highs: Sequence[float]
    runs: int = 0
    """How many it is the mean of; 0: nobody knows."""


@dataclass
class Panel:
    """One picture of several beside each other."""

    lines: dict[str, Line]
    title: str = ""
    xlabel: str = "steps"
    ylabel: str = ""
    boundaries: Sequence[float] = ()
    """Where a task ends and the next one begins."""
    names: Sequence[str] = ()
    """Of the tasks between them."""
    time: bool = True
    """Whether x is an axis of time, so that what lies between two points means something."""
    steps: bool = True
    """Whether it counts steps, shown in thousands."""


def draw(path: Path, panels: Sequence[Panel], title: str = "", note: str = "", columns: int = 4) -> None:
    """Write a picture of `panels`; `note` says at its foot what lines and bands are."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    size = (7.4, 4.4) if len(panels) == 1 else (4.6 * columns, 3.7 * rows + 0.4)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for axis, panel in itertools.zip_longest(axes.flat, panels):
        if panel is None:
            axis.set_visible(False)
        else:
            _fill(axis, panel)
    found = (axis.get_legend_handles_labels() for axis in axes.flat)
    labelled = {label: handle for handles, labels in found for handle, label in zip(handles, labels, strict=True)}
    if labelled:
        beside = max(1, min(3, len(labelled), int(size[0] / (0.5 + A_LETTER * max(map(len, labelled))))))
        style = {"ncols": beside, "frameon": False, "fontsize": 8, "title_fontsize": 7.5}
        legend = figure.legend(labelled.values(), labelled, loc="outside lower center", title=note or None, **style)
        legend.get_title().set_color("0.35")
    if title:
        figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _fill(axis, panel: Panel) -> None:
    width = 0.5 / max(1, len(panel.lines) - 1)
    for place, (colour, (label, line)) in enumerate(zip(itertools.cycle(COLOURS), panel.lines.items(), strict=False)):
        label = f"{label} (n = {line.runs})" if line.runs else label
        means, lows, highs = (np.asarray(part, dtype=float) for part in (line.means, line.lows, line.highs))
        if panel.time:
            axis.plot(line.x, means, color=colour, label=label, linewidth=1.7, marker="o" if len(means) < 2 else "")
            axis.fill_between(line.x, lows, highs, color=colour, alpha=0.16, linewidth=0)
        else:
            at = np.arange(len(means)) + (place - (len(panel.lines) - 1) / 2) * min(width, 0.18)
            sizes = np.nan_to_num([means - lows, highs - means])
            axis.errorbar(
                at, means, sizes, color=colour, label=label, fmt="o", markersize=4.5, capsize=2.5, linewidth=1.4
            )
    for step in panel.boundaries:
        axis.axvline(step, color="0.6", linewidth=0.8, linestyle=":")
    if not panel.time:
        ticks = max((line.x for line in panel.lines.values()), key=len)
        every = -(-len(ticks) // MOST_NAMES)
        long = sum(len(str(tick)) for tick in ticks[::every]) > 60
        turned = {"rotation": 30, "ha": "right"} if long else {}
        axis.set_xticks(range(0, len(ticks), every), ticks[::every], **turned)
    elif panel.steps:
        axis.xaxis.set_major_formatter(lambda value, _: _in_thousands(value))
    else:
        axis.xaxis.get_major_locator().set_params(integer=True)
    if panel.names:
        _name_tasks(axis, panel)
    axis.set(xlabel=panel.xlabel, ylabel=panel.ylabel)
    axis.set_title(panel.title, fontsize=10)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)


def _in_thousands(steps: float) -> str:
    return f"{steps / 1e6:g}M" if abs(steps) >= 1e6 else f"{steps / 1e3:g}k" if steps else "0"


def _name_tasks(axis, panel: Panel) -> None:
    """Task names over the stretches that the boundaries make."""
    left, right = axis.get_xlim()
    last = max(float(line.x[-1]) for line in panel.lines.values() if len(line.x))
    edges = [max(left, 0), *panel.boundaries, last]
    middles = [(start + end) / 2 for start, end in itertools.pairwise(edges)]
    every = -(-len(panel.names) // MOST_NAMES)
    turned = {"rotation": 20, "ha": "left"} if max(map(len, panel.names)) > 6 else {}
    above = axis.secondary_xaxis("top")
    above.set_xticks(middles[::every], panel.names[::every], fontsize=7.5, **turned)
    above.tick_params(length=0, pad=1)
    above.spines["top"].set_visible(False)
    above.set_xlabel("task", fontsize=7.5)
    axis.set_xlim(left, right)
