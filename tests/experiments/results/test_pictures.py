"""What the pictures say: how many runs, what bands are, where tasks begin, and points where there is no time."""

from pathlib import Path

import matplotlib.pyplot as plt
import pytest

from experiments.results.comparison import compare
from experiments.results.figures import Line, Panel, draw
from experiments.results.pictures import draw_comparison
from experiments.results.settings import CompareConfig
from tests.experiments.results.made import a_run


@pytest.fixture
def kept(monkeypatch):
    """Figures that were drawn."""
    figures = []
    monkeypatch.setattr(plt, "close", figures.append)
    yield figures
    monkeypatch.undo()
    for figure in figures:
        plt.close(figure)


def legend(figure) -> tuple[list[str], str]:
    found = figure.legends[0]
    return [text.get_text() for text in found.get_texts()], found.get_title().get_text()


def test_curves_say_how_many_runs_what_the_band_is_and_where_tasks_begin(tmp_path: Path, kept) -> None:
    for seed in (1, 2, 3):
        a_run(tmp_path, f"a{seed}", [80.0, 40.0 + seed, 30.0], seed, probes={"probes/dead_fraction/all": 0.1})
        a_run(tmp_path, f"b{seed}", [80.0, 70.0, 60.0 + seed], seed, interventions=[{"name": "layer_norm"}])
    written = draw_comparison(compare(CompareConfig((str(tmp_path),))), tmp_path)
    assert [path.name for path in written] == ["curves.png", "tasks.png", "probes.png"]
    curves, tasks, _ = kept
    assert legend(curves)[0] == ["none (n = 3)", "layer_norm (n = 3)"]
    assert "band: 95 % bootstrap interval of the mean over runs" in legend(curves)[1]
    axes = curves.axes[0]
    marks = sorted(line.get_xdata()[0] for line in axes.lines if len(set(line.get_xdata())) == 1)
    assert marks == [100, 200]
    above = axes.child_axes[0]
    assert [text.get_text() for text in above.get_xticklabels()] == ["0", "1", "2"]
    assert list(above.get_xticks()) == [50, 150, 250]
    assert len(axes.collections) == 2 and axes.get_ylabel() == "return"  # two bands
    points = tasks.axes[0]
    assert len(points.containers) == 2
    assert all(container.lines[0].get_linestyle() == "None" for container in points.containers)
    assert "bars: 95 % bootstrap" in legend(tasks)[1]


def test_points_stand_where_x_is_no_time(tmp_path: Path, kept) -> None:
    nothing = [float("nan")] * 2
    lines = {
        "a": Line(["0", "100"], [1.0, 2.0], [0.5, 1.0], [1.5, 3.0], 10),
        "b": Line(["0", "100"], [2.0, 1.0], nothing, nothing),
    }
    draw(tmp_path / "a.png", [Panel(lines, "", "c", time=False)], "title", "note")
    axes = kept[0].axes[0]
    assert legend(kept[0]) == (["a (n = 10)", "b"], "note")
    assert [text.get_text() for text in axes.get_xticklabels()] == ["0", "100"]
    data = axes.containers[0].lines[0]
    assert data.get_linestyle() == "None" and list(data.get_ydata()) == [1.0, 2.0]
    assert abs(data.get_xdata()[0]) < 0.5 and data.get_xdata()[0] != axes.containers[1].lines[0].get_xdata()[0]


@pytest.mark.parametrize("letters", [3, 20, 40])
def test_a_legend_lies_within_the_picture(letters: int, tmp_path: Path, kept) -> None:
    lines = {f"{number} {'n' * letters}": Line([1, 2], [1.0, 2.0], [0.5, 1.0], [1.5, 3.0], 10) for number in range(6)}
    draw(tmp_path / "a.png", [Panel(lines)], "title", "note")
    [shown] = kept[0].legends
    inner, outer = shown.get_window_extent(), kept[0].bbox
    assert outer.x0 <= inner.x0 and inner.x1 <= outer.x1 and outer.y0 <= inner.y0
