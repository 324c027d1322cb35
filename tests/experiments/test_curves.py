"""Binned curves by hand, and picture and table from a run's log."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from experiments.curves import binned, from_runs, joined, read_table

ROOT = Path(__file__).parents[2]


def test_bins_hold_the_steps_up_to_their_right_edge() -> None:
    edges, means, counts = binned(np.array([1, 10, 11, 35]), np.array([2.0, 4.0, 7.0, 9.0]), 10)
    assert edges.tolist() == [10, 20, 40]  # 21..30 has no value and no bin
    assert means.tolist() == [3.0, 7.0, 9.0]
    assert counts.tolist() == [2, 1, 1]


def test_a_mean_over_several_games_counts_as_many_times() -> None:
    edges, means, counts = binned(np.array([1, 10, 11]), np.array([2.0, 4.0, 7.0]), 10, np.array([3, 1, 2]))
    assert edges.tolist() == [10, 20]
    assert means.tolist() == [(3 * 2 + 4) / 4, 7.0]
    assert counts.tolist() == [4, 2]


def test_games_weigh_the_same_in_logs_of_means_and_of_single_games(tmp_path: Path) -> None:
    (tmp_path / "a=b").mkdir()  # as names of runs are
    together = [
        {"step": 4, "charts/episodic_return": 2.0, "charts/episodes": 3},
        {"step": 8, "charts/episodic_return": 10.0, "charts/episodes": 1},
    ]
    single = [{"step": step, "charts/episodic_return": value} for step, value in ((4, 1.0), (4, 2), (4, 3), (8, 10))]
    (tmp_path / "a=b" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in together))
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in single))
    places = [f"new={tmp_path / 'a=b'}", f"old={tmp_path}", str(tmp_path / "a=b")]
    curves = from_runs(places, "charts/episodic_return", 1)
    assert list(curves) == ["new", "old", "a=b"]
    for curve in curves.values():
        assert (curve.steps.tolist(), curve.means.tolist(), curve.counts.tolist()) == ([8], [4.0], [4])


def test_runs_of_one_label_are_averaged_whatever_their_length() -> None:
    one = np.array([10, 20]), np.array([2.0, 4.0]), np.array([1, 2])
    two = np.array([10, 30]), np.array([6.0, 5.0]), np.array([3, 4])
    curve = joined([one, two])
    assert curve.steps.tolist() == [10, 20, 30]
    assert curve.means.tolist() == [4.0, 4.0, 5.0]  # the mean of the runs that have the bin
    assert curve.counts.tolist() == [4, 2, 4]
    assert (curve.lows.tolist(), curve.highs.tolist()) == ([2.0, 4.0, 5.0], [6.0, 4.0, 5.0])


def test_tables_without_bands_still_draw(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("label,step,mean,count\nx,10,1.5,3\n")
    assert read_table(tmp_path / "a.csv")["x"].highs.tolist() == [1.5]


def test_command_writes_a_picture_and_draws_it_again_from_the_table(tmp_path: Path) -> None:
    lines = [json.dumps({"step": step, "charts/episodic_return": step / 2}) for step in range(10, 101, 10)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    picture = tmp_path / "curve.png"
    command = [sys.executable, "-m", "experiments.curves", str(picture), f"one={tmp_path}", "--bins", "5"]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    curve = read_table(picture.with_suffix(".csv"))["one"]
    assert curve.steps.tolist() == [20, 40, 60, 80, 100]
    assert curve.means.tolist() == [7.5, 17.5, 27.5, 37.5, 47.5]  # (10/2 + 20/2) / 2 and so on
    assert curve.lows.tolist() == curve.highs.tolist() == curve.means.tolist()
    assert "one: 47.5 over the last tenth" in printed
    picture.unlink()
    subprocess.run(command[:4], cwd=ROOT, capture_output=True, check=True)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_missing_run_is_named(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "experiments.curves", str(tmp_path / "a.png"), "x=nowhere"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 2
    assert "nowhere" in result.stderr
