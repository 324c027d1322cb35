"""Binned curves by hand, and picture and table from a run's log."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments.curves import from_runs, read_table
from experiments.curves import main as curves_main
from experiments.results.lines import binned, joined
from experiments.results.runs import Series

ROOT = Path(__file__).parents[2]
GOOD = '{"step": 1, "charts/episodic_return": 2.0}\n'


def a_run(path: Path, lines: str = GOOD, steps: int = 100, finished: bool = True) -> str:
    (path / "checkpoints").mkdir(parents=True)
    world = {"env": "CartPole-v1"}
    config = {"algorithm": "dqn", "agent": {}, "world": world, "run": {"steps": steps}}
    (path / "config.json").write_text(json.dumps(config))
    (path / "metrics.jsonl").write_text(lines)
    if finished:
        (path / "checkpoints" / "final.pt").touch()
    return str(path)


def returns(*points: tuple[int, float]) -> str:
    return "".join(json.dumps({"step": step, "charts/episodic_return": value}) + "\n" for step, value in points)


def test_bins_hold_the_steps_up_to_their_right_edge() -> None:
    series = Series(np.array([0, 1, 10, 11, 35, 99]), np.array([3.0, 2.0, 4.0, 7.0, 9.0, 1.0]))
    means, counts = binned(series, 10, 4)
    assert means.tolist()[:2] == [3.0, 7.0] and np.isnan(means[2]) and means[3] == 9.0  # 21..30 has no value
    assert counts.tolist() == [3, 1, 0, 1]  # 99 lies beyond


def test_games_weigh_the_same_in_logs_of_means_and_of_single_games(tmp_path: Path) -> None:
    together = [
        {"step": 4, "charts/episodic_return": 2.0, "charts/episodes": 3},
        {"step": 8, "charts/episodic_return": 10.0, "charts/episodes": 1},
    ]
    lines = "".join(json.dumps(line) + "\n" for line in together)
    new = a_run(tmp_path / "a=b", lines, steps=8)  # as names of runs are
    old = a_run(tmp_path / "old", returns((4, 1.0), (4, 2), (4, 3), (8, 10)), steps=8)
    curves, told = from_runs([f"new={new}", f"old={old}", new], "charts/episodic_return", 1)
    assert list(curves) == ["new", "old", "a=b"] and told == []
    for curve in curves.values():
        assert (curve.steps.tolist(), curve.means.tolist(), curve.counts.tolist()) == ([8], [4.0], [4])


def test_runs_of_one_label_are_averaged_in_an_interval() -> None:
    one = Series(np.array([5, 15]), np.array([2.0, 4.0]))
    two = Series(np.array([5, 25]), np.array([6.0, 5.0]))
    curve = joined([one, two], 30, 3)
    assert curve.steps.tolist() == [10, 20, 30]
    assert curve.means.tolist() == [4.0, 4.0, 5.0]  # the mean of the runs that have the bin
    assert curve.counts.tolist() == [2, 1, 1]
    assert curve.runs.tolist() == [2, 1, 1]
    assert (curve.lows[0], curve.highs[0]) == (2.0, 6.0)  # of two runs one alone is drawn a quarter of the time
    assert np.isnan(curve.lows[1:]).all() and np.isnan(curve.highs[1:]).all()  # one run has no interval


def test_what_is_unfinished_is_left_out_and_what_is_longer_cut_aloud(tmp_path: Path) -> None:
    a_run(tmp_path / "a1", returns((50, 1.0), (100, 3.0)))
    a_run(tmp_path / "a2", returns((50, 2.0)), steps=50)
    a_run(tmp_path / "a3", returns((50, 99.0)), finished=False)
    curves, told = from_runs([f"a={tmp_path}/a*"], "charts/episodic_return", 1)
    assert curves["a"].means.tolist() == [1.5] and curves["a"].steps.tolist() == [50]
    assert told[0].startswith("left out: a3: unfinished at step 50 of 100")
    assert told[1] == "cut to 50 steps, the shortest run's length: a1"
    curves, told = from_runs([f"a={tmp_path}/a*"], "charts/episodic_return", 1, unfinished=True)
    assert curves["a"].means.tolist() == [34.0]  # of 1, 2 and 99
    assert told[0].startswith("not finished, taken to step 50: a3: unfinished at step 50 of 100")


def test_tables_without_bands_still_draw(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("label,step,mean,count\nx,10,1.5,3\n")
    curve = read_table(tmp_path / "a.csv")["x"]
    assert (curve.highs.tolist(), curve.runs.tolist()) == ([1.5], [0])


def test_command_writes_a_picture_and_draws_it_again_from_the_table(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", returns(*((step, step / 2) for step in range(10, 101, 10))))
    picture = tmp_path / "curve.png"
    command = [sys.executable, "-m", "experiments.curves", str(picture), f"one={run}", "--bins", "5"]
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


REFUSED = {
    "no run": (GOOD, ["nowhere"], "run = 'nowhere'"),
    "a run whose name is too long": (GOOD, ["x" * 300], "no such run directory"),
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
    run = a_run(tmp_path / "run", lines)
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
