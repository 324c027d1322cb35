"""Binned curves by hand, and picture and table from a run's log."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments.curves import binned, from_runs, joined, read_table
from experiments.curves import main as curves_main

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


def a_run(folder: Path, lines: str) -> str:
    (folder / "run").mkdir()
    (folder / "run" / "metrics.jsonl").write_text(lines)
    return str(folder / "run")


GOOD = '{"step": 1, "charts/episodic_return": 2.0}\n'
REFUSED = {
    "no run": (GOOD, ["nowhere"], "run = 'nowhere'"),
    "a run whose name is too long": (GOOD, ["x" * 300], "holds no metrics.jsonl"),
    "a torn line in the middle": ('{"step": 1, "cha\n' + GOOD, [], "line 1 is not a JSON object"),
    "a line without a step": ('{"charts/episodic_return": 2.0}\n', [], "a line is no step with numbers"),
    "words for numbers": ('{"step": 1, "charts/episodic_return": "high"}\n', [], "a line is no step with numbers"),
    "nothing logged": ("", [], "tag = 'charts/episodic_return'"),
    "another tag": (GOOD, ["--tag", "charts/SPS"], "tag = 'charts/SPS'"),
    "no bins": (GOOD, ["--bins", "0"], "bins = 0: must be in [1"),
    "a negative period": (GOOD, ["--period", "-1"], "period = -1: must be"),
    "a picture of no kind": (GOOD, ["PICTURE=x.mp4"], "picture = 'x.mp4'"),
    "a picture below a file": (GOOD, ["PICTURE=/dev/null/x.png"], "picture = '/dev/null"),
    "a picture in /proc": (GOOD, ["PICTURE=/proc/x.png"], "picture = '/proc"),
    "a picture with a line end": (GOOD, ["PICTURE=a\nb.png"], "picture = "),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_drawn_is_refused_in_a_sentence(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    lines, flags, told = REFUSED[case]
    places = [flag.removeprefix("PICTURE=") for flag in flags if flag.startswith("PICTURE=")]
    rest = [flag for flag in flags if not flag.startswith("PICTURE=")]
    run = a_run(tmp_path, lines)
    runs = [] if rest and not rest[0].startswith("--") else [run]
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["curves", *(places or ["a.png"]), *runs, *rest])
    assert curves_main() == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and told in message and len(message.splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "rows", ["", "a,b\n1,2\n", "label,step,mean,count\nx,many,1,1\n", "label,step,mean,count\nx,1\n"]
)
def test_a_table_that_is_none_is_refused(
    rows: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "a.csv").write_text(rows)
    monkeypatch.setattr(sys, "argv", ["curves", str(tmp_path / "a.png")])
    assert curves_main() == 2
    assert capsys.readouterr().err.startswith("error: table = ")


def test_refusals_need_no_torch() -> None:
    script = "import sys; import experiments.curves; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT).returncode == 0
