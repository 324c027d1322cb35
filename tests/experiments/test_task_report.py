"""Returns by task, worked out by hand."""

import json

import numpy as np
import pytest

from experiments.records import EpisodeFile
from experiments.run import Episode, TaskChange
from experiments.task_report import TaskReport, parameters_in_words, table


def play(report, games):
    """Games as (step, task, return)."""
    file = EpisodeFile(report.episodes.parent)
    for step, task, value in games:
        file.write(step, [Episode(0, value, 10, task)])
    file.close()


def change(report, event):
    """What a task's end adds."""
    before = report.count
    report.notice(event)
    return [*report.first, *report.last][-1] if report.count > before else None


def report_in(folder, share, path=None):
    report = TaskReport(share, folder / "episodes.jsonl", path)
    play(report, [])
    return report


def test_means_last_tenth_and_steps_to_the_level(tmp_path):
    path = tmp_path / "tasks.jsonl"
    report = report_in(tmp_path, 0.5, path)
    assert change(report, TaskChange(0, 0, {"friction": 0.5})) is None
    # Task 0 lasts 200 steps. Its first tenth (steps 1-20) has returns 1 and 3: mean 2. Its last tenth (181-200) 10 and
    # 14: mean 12. The level at a share of one half is 7.
    play(report, [(10, 0, 1.0), (20, 0, 3.0), (95, 0, 6.5), (110, 0, 8.0), (190, 0, 10.0), (200, 0, 14.0)])
    first = change(report, TaskChange(200, 1, {"friction": 2.0}))
    assert (first.task, first.parameters, first.first_step, first.last_step) == (0, {"friction": 0.5}, 0, 200)
    assert first.episodes == 6
    assert first.mean_return == pytest.approx((1 + 3 + 6.5 + 8 + 10 + 14) / 6)
    assert first.last_tenth_return == 12.0
    assert first.steps_to_level == 110.0  # the twentieth (100, 110] has mean 8 >= 7
    # Task 1 lasts 400 steps: twentieths of 20. One of mean (9 + 5) / 2 = 7 ends at 440.
    play(report, [(210, 1, 0.0), (425, 1, 9.0), (440, 1, 5.0), (590, 1, 4.0)])
    second = report.finish(600)
    assert second.steps_to_level == 240.0
    assert second.last_tenth_return == 4.0
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["steps_to_level"] for line in lines] == [110.0, 240.0]
    assert lines[1]["parameters"] == {"friction": 2.0}


def test_games_count_for_the_task_they_ended_in_whoever_has_switched(tmp_path):
    report = report_in(tmp_path, 0.9)
    change(report, TaskChange(0, 0, {}))
    play(report, [(50, 0, 1.0), (105, 1, 7.0), (110, 0, 2.0)])  # one environment switched at 105, the other at 110
    summary = change(report, TaskChange(110, 1, {}))
    assert (summary.episodes, summary.mean_return) == (2, 1.5)
    play(report, [(180, 1, 9.0)])
    assert report.finish(200).mean_return == 8.0


def test_a_task_that_no_game_ended_in_has_no_returns(tmp_path):
    report = report_in(tmp_path, 0.9, tmp_path / "tasks.jsonl")
    change(report, TaskChange(0, 0, {}))
    summary = change(report, TaskChange(100, 1, {}))
    assert summary.episodes == 0
    assert np.isnan([summary.mean_return, summary.last_tenth_return, summary.steps_to_level]).all()
    assert json.loads((tmp_path / "tasks.jsonl").read_text())["mean_return"] is None  # JSON has no NaN
    assert "-" in table(report)[1]


def test_without_progress_in_the_first_task_there_is_no_level(tmp_path):
    report = report_in(tmp_path, 0.9)
    change(report, TaskChange(0, 0, {}))
    play(report, [(5, 0, 4.0), (95, 0, 4.0)])
    assert np.isnan(change(report, TaskChange(100, 1, {})).steps_to_level)
    play(report, [(105, 1, 1.0), (195, 1, 50.0)])
    assert np.isnan(report.finish(200).steps_to_level)  # the second task does not stand in for the first


def test_worlds_without_tasks_have_no_report(tmp_path):
    report = report_in(tmp_path, 0.9)
    play(report, [(5, 0, 4.0)])
    assert report.finish(10) is None
    assert report.count == 0


def test_parameters_in_words():
    parameters = {"friction": 0.32162, "game": "ALE/Pong-v5", "mode": 3}
    assert parameters_in_words(parameters) == "friction 0.3216, game ALE/Pong-v5, mode 3"
