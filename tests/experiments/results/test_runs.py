"""Runs read from disk: whole, torn, killed, crashed, not finite; and their tasks as training summarised them."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments.lock import RunLock
from experiments.results.runs import RETURN, find, learned, read_run, read_runs, settings_of, tasks_of
from tests.experiments import worlds  # noqa: F401  (registers them)
from tests.experiments.results.made import a_run, cut, write
from tests.experiments.test_run import SMALL, one_thread, run  # noqa: F401


def test_a_torn_end_is_left_out(tmp_path):
    path = a_run(tmp_path, "a", [40.0, 20.0])
    cut(path, 130)
    found = read_run(path)
    assert found.games.steps[-1] == 130 and len(found.games.values) == 13
    assert found.metrics["targets/mean"][0][-1] == 130
    assert [row["task"] for row in found.boundaries] == [0]
    assert found.length == 130
    state, why = found.state
    assert state == "unfinished" and why.startswith("unfinished at step 130 of 200, last written ")
    assert "it may be running" in why


def test_what_was_written_long_ago_is_not_running(tmp_path):
    path = a_run(tmp_path, "a", [1.0], finished=False)
    for name in ("metrics.jsonl", "episodes.jsonl"):
        os.utime(path / name, (1e9, 1e9))
    assert "killed, interrupted or stopped" in read_run(path).state[1]


def test_a_crash_is_told_in_its_own_words(tmp_path):
    path = a_run(tmp_path, "a", [1.0])
    cut(path, 50)
    (path / "traceback.txt").write_text("Traceback\n  File ...\nRuntimeError: the world is gone\n")
    assert read_run(path).state == ("crashed", "crashed at step 50 of 100: RuntimeError: the world is gone")


def test_a_crash_from_before_a_run_went_on_is_none_of_its_last(tmp_path):
    path = a_run(tmp_path, "a", [1.0])
    cut(path, 50)
    (path / "traceback.txt").write_text("RuntimeError: the world is gone\n")
    (path / "manifest.json").touch()
    os.utime(path / "traceback.txt", (1e9, 1e9))
    assert read_run(path).state[0] == "unfinished"


def test_a_killed_run_is_told_by_the_lock_that_it_left(tmp_path):
    path = a_run(tmp_path, "a", [1.0])
    cut(path, 50)
    code = f"import os; from pathlib import Path; from experiments.lock import RunLock; RunLock(Path({str(path)!r}))"
    subprocess.run([sys.executable, "-c", f"{code}; os.kill(os.getpid(), 9)"], cwd=Path(__file__).parents[3])
    assert read_run(path).state == ("unfinished", "unfinished at step 50 of 100: it was killed, or its machine stopped")
    left = json.loads((path / "lock.json").read_text())
    (path / "lock.json").write_text(json.dumps(left | {"host": "elsewhere"}))  # nobody here knows
    assert "last written" in read_run(path).state[1]


def test_a_run_that_goes_on_now_is_told_by_its_lock(tmp_path):
    path = a_run(tmp_path, "a", [1.0])
    cut(path, 50)
    with RunLock(path):
        state, why = read_run(path).state
    assert state == "unfinished" and why.startswith("unfinished at step 50 of 100, running (")
    assert f"process {os.getpid()}" in why


def test_a_return_that_is_not_finite_is_named(tmp_path):
    path = a_run(tmp_path, "a", [1.0])
    lines = (path / "episodes.jsonl").read_text().replace('"return": 1.0', '"return": null', 1)
    (path / "episodes.jsonl").write_text(lines)
    assert read_run(path).state == ("not finite", "not finite: a return at step 60 is none")


ENDINGS = {
    "GoesHugeLater-v0": ("not finite", r"not finite at step \d+ of 800: .*network.normalizer.variance"),
    "CartPole-v1": ("finished", ""),
}


@pytest.mark.parametrize("env", ENDINGS)
def test_a_run_says_itself_how_it_ended(env, tmp_path):
    flags = ["--rollout-steps", "64", "--num-minibatches", "2", "--num-envs", "1", "--normalize-observations"]
    path, _, _ = run(tmp_path, "ppo", env, 800, *SMALL["ppo"], *flags, "--probes", "none")
    state, why = read_run(path).state
    assert state == ENDINGS[env][0] and re.search(ENDINGS[env][1], why)


@pytest.mark.parametrize(
    ("ending", "expected"),
    [
        ("interrupted", ("unfinished", "interrupted at step 50 of 100")),
        ("world failed", ("crashed", "world failed at step 50 of 100: it is gone")),
        ("not written", ("crashed", "not written at step 50 of 100: it is gone")),
    ],
)
def test_other_endings(ending, expected, tmp_path):
    path = a_run(tmp_path, "a", [1.0])
    cut(path, 50)
    write(path / "ending.json", {"ending": ending, "step": 50, "why": "it is gone"})
    assert read_run(path).state == expected
    write(path / "ending.json", {"ending": ending, "step": 40, "why": "before it went on"})
    assert read_run(path).state[1].startswith("unfinished at step 50 of 100, last written")


def test_the_checkpoint_of_its_last_step_says_that_a_run_is_finished(tmp_path):
    path = a_run(tmp_path, "a", [1.0], finished=False)
    (path / "checkpoints" / "step_000000000090").mkdir()
    assert read_run(path).state[0] == "unfinished"
    (path / "checkpoints" / "step_000000000100").mkdir()
    assert read_run(path).state == ("finished", "")


def test_damage_in_the_middle_is_named(tmp_path):
    path = a_run(tmp_path, "a", [1.0])
    lines = (path / "episodes.jsonl").read_text().splitlines()
    (path / "episodes.jsonl").write_text("\n".join([*lines[:3], '{"step', *lines[3:]]) + "\n")
    state, why = read_run(path).state
    assert state == "unreadable" and "line 4 is not a JSON object" in why


def test_runs_whose_settings_cannot_be_read_are_told_of(tmp_path):
    a_run(tmp_path, "good", [1.0])
    for name, text in {"torn": '{"algorithm": "dq', "other": "{}", "list": "[]"}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(text)
    a_run(tmp_path, "new", [1.0], interventions=[{"name": "not_made_yet"}])
    (tmp_path / "no_settings").mkdir()
    (tmp_path / "no_settings" / "metrics.jsonl").write_text("")
    runs, others = read_runs(find([str(tmp_path)]))
    assert [one.name for one in runs] == ["good"]
    assert sorted(path.name for path, _ in others) == ["list", "new", "no_settings", "other", "torn"]
    assert all(why.startswith("unreadable: ") for _, why in others)


def test_runs_are_found_in_folders_by_pattern_and_once(tmp_path):
    for name in ("deep/er/a_s1", "a_s2", "b_s1"):
        a_run(tmp_path / Path(name).parent, Path(name).name, [1.0])
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "comparison.csv").touch()
    assert [path.name for path in find([str(tmp_path)])] == ["a_s2", "b_s1", "a_s1"]
    assert [path.name for path in find([str(tmp_path / "a*"), str(tmp_path / "a_s2"), str(tmp_path)])] == [
        "a_s2",
        "b_s1",
        "a_s1",
    ]
    assert [path.name for path in find([str(tmp_path / "**" / "*_s1")])] == ["b_s1", "a_s1"]
    with pytest.raises(ValueError, match="nowhere"):
        find([str(tmp_path / "nowhere")])
    with pytest.raises(ValueError, match="no folder there holds"):
        find([str(tmp_path / "report")])


def test_settings_hold_interventions_with_their_parameters():
    raw = {"algorithm": "dqn", "agent": {}, "interventions": [{"name": "redo", "tau": 0.1}, {"name": "layer_norm"}]}
    found = settings_of(raw)
    assert found["interventions"] == ("redo", "layer_norm")
    assert found["redo.tau"] == 0.1
    assert found["loss"] == "huber" and found["agent"] == "dqn"  # defaults stand in for what the file does not say
    without = settings_of({"algorithm": "dqn", "agent": {}})
    assert without["interventions"] == () and "redo.tau" not in without


def test_a_task_is_summarised_by_hand():
    steps, values = np.array([10, 20, 30, 100, 150, 195, 200]), np.array([0.0, 0, 2, 6, 9, 10, 12])
    # First tenth (0, 20]: 0; last tenth (180, 200]: 11; the level at share .8: 8.8, met in (140, 150].
    tenth, to_level, level = learned(steps, values, 0, 200, 0.8, None)
    assert (tenth, to_level, level) == (11.0, 150.0, pytest.approx(8.8))
    assert learned(steps, values, 0, 200, 0.8, 100.0)[1] != learned(steps, values, 0, 200, 0.8, 100.0)[1]  # NaN
    assert math.isnan(learned(steps, -values, 0, 200, 0.8, None)[1])  # nothing was learned


def test_tasks_are_those_that_training_summarised(tmp_path):
    flags = ("--image.num-images", "40", "--max-episode-steps", "7", "--task.period", "160", "--learning-rate", "1e-3")
    path, code, _ = run(tmp_path, "dqn", "ImageMDP-v0", 640, *SMALL["dqn"], *flags, "--probes", "none")
    assert code == 0
    found = tasks_of(read_run(path), RETURN, 640)
    lines = [json.loads(line) for line in (path / "tasks.jsonl").read_text().splitlines()]
    assert len(found) == len(lines) == 4
    for task, line in zip(found, lines, strict=True):
        assert (task.index, task.first_step, task.last_step) == (line["task"], line["first_step"], line["last_step"])
        assert task.last_tenth == pytest.approx(line["last_tenth_return"])
        expected = line["steps_to_level"]
        assert math.isnan(task.steps_to_level) if expected is None else task.steps_to_level == expected


def test_a_cut_leaves_whole_tasks(tmp_path):
    found = read_run(a_run(tmp_path, "a", [10.0, 20.0, 30.0]))
    assert [(task.index, task.last_tenth) for task in tasks_of(found, RETURN, 300)] == [(0, 10), (1, 20), (2, 30)]
    assert [(task.index, task.last_step) for task in tasks_of(found, RETURN, 250)] == [(0, 100), (1, 200)]
    assert [(task.index, task.last_step) for task in tasks_of(found, RETURN, 295)][-1] == (2, 295)
    assert [(task.index, task.last_step) for task in tasks_of(found, RETURN, 60)] == [(0, 60)]
    assert tasks_of(found, "targets/mean", 300)[1].last_tenth == 20.0


def test_reading_runs_needs_no_torch(tmp_path):
    path = a_run(tmp_path, "a", [1.0], interventions=[{"name": "cbp"}, {"name": "weight_decay", "rate": 0.1}])
    code = "import sys; from pathlib import Path; from experiments.results.runs import read_run; "
    code += "read_run(Path(sys.argv[1])); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, str(path)], cwd=Path(__file__).parents[3])
    assert done.returncode == 0
