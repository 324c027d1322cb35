"""Sweeps without Ray: what is made, gone on with, tried again, listed; and what tuning chooses."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from experiments.lock import RunLock
from experiments.results.comparison import compare
from experiments.results.settings import CompareConfig
from experiments.sweep import trials as trials_module
from experiments.sweep import tuning
from experiments.sweep.board import Board, last_step
from experiments.sweep.disk import need_of, require_disk
from experiments.sweep.listed import commands, standing
from experiments.sweep.plan import planned
from experiments.sweep.study import study_of
from experiments.sweep.sweeping import summed_up, sweep
from experiments.sweep.trials import make
from experiments.sweep.tries import Outcome, Tries
from tests.faults.whole_runs import parts_of

ROOT = Path(__file__).parents[3]
BASE = {
    "agent": "dqn", "env": "CartPole-v1", "steps": 1200, "width": 8, "learning_starts": 50, "buffer_size": 200,
    "batch_size": 8, "checkpoint_every": 100, "log_every": 50, "checkpoint.replay": "always", "probes": "none",
    "task": {"change": "rewards", "period": 500}, "replay_ratio": 0.25,
}  # fmt: skip
TUNE = {"values": {"learning_rate": ["1e-4", "1e-3"]}, "seeds": [11], "share": 0.5}


def study(**sections):
    return study_of({"question": "Which?", "base": BASE, "seeds": 1, **sections}, "small")


def came_to(trials):
    return {trial.config.run.name: parts_of(trial.directory) for trial in trials}


def saved(directory):
    """Whether a run has a checkpoint after its first."""
    return len(list(directory.glob("checkpoints/step_*"))) > 1


@pytest.mark.long
def test_a_study_is_tuned_made_and_not_made_again(tmp_path):
    said = Console(file=StringIO(), width=200)
    one = study(tune=TUNE, control=["random", "fresh"], grid={"loss": ["mse", "huber"]})
    swept = sweep(one, tmp_path, workers=1, console=said)
    assert swept.exit_code == 0 and not swept.failed and not swept.left
    # two arms, one random control, and of each arm a fresh agent in task 1 (of two whole ones)
    assert sorted(trial.kind for trial in swept.finished) == ["arm", "arm", "fresh", "fresh", "random"]
    chosen = json.loads((tmp_path / "small/tuned.json").read_text())
    assert set(chosen) == {"mse", "huber"}
    for trial in swept.finished:
        if trial.kind != "random":
            loss = trial.arm.split()[0]
            rate = chosen[loss]["chosen"]["learning-rate"]
            assert trial.config.agent.learning_rate.start == float(rate)
    arms = json.loads((tmp_path / "small/arms.json").read_text())
    assert {one["arm"] for one in arms.values()} == {"mse", "huber", "random", "mse fresh", "huber fresh"}
    text = said.file.getvalue()
    assert text.count("tuned: ") == 2 and "finished (5 of 5)" in text and "trials take up to" in text
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("small/t*/*/*")}
    assert sweep(one, tmp_path, workers=1).exit_code == 0
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.glob("small/t*/*/*")}
    assert commands(tuning.planned_as_tuned(one, tmp_path)) == []
    assert summed_up(swept, "")[0] == "5 of 5 trials are finished"
    told = compare(CompareConfig((str(tmp_path / "small/trials"),), out=tmp_path))
    assert "random control: 1 runs in which nothing is learned" in told.notes
    assert "fresh-agent control: 2 runs of task 1 alone" in told.notes


def test_one_that_fails_stops_no_other(tmp_path):
    bad = {"env": "tests.experiments.worlds:GoesWrong-reward-v0", "task.change": "auto", "task.period": 0}
    one = study(arms={"bad": bad, "good": {}})
    swept = sweep(one, tmp_path, workers=1)
    assert [trial.arm for trial in swept.finished] == ["good"] and swept.exit_code == 1
    [(trial, why)] = swept.failed
    assert trial.arm == "bad" and "not finite at step" in why and "reward" in why
    assert summed_up(swept, "python sweep.py small.yaml")[:3] == [
        f"failed: {trial.config.run.name}: {why}",
        "1 of 2 trials are finished, 1 failed",
        "go on:     python sweep.py small.yaml",
    ]


def test_an_error_in_a_trial_is_its_reason(tmp_path, monkeypatch):
    def build(config, threads):
        raise RuntimeError("no such thing")

    monkeypatch.setattr(trials_module, "build", build)
    swept = sweep(study(), tmp_path, workers=1)
    assert [why for _, why in swept.failed] == ["RuntimeError: no such thing"]


@pytest.mark.parametrize(("times", "finished"), [(1, True), (2, False)])
def test_one_that_runs_out_of_memory_is_tried_again_once(times, finished, tmp_path, monkeypatch):
    built, left = trials_module.build, [MemoryError(), RuntimeError("CUDA out of memory. Tried to allocate")][:times]

    def build(config, threads):
        if left:
            raise left.pop()
        return built(config, threads)

    monkeypatch.setattr(trials_module, "build", build)
    swept = sweep(study(), tmp_path, workers=1)
    assert len(swept.finished) == finished and not left


@pytest.mark.long
def test_a_lock_is_waited_for_and_taken_from_a_machine_that_is_gone(tmp_path, monkeypatch):
    [trial] = planned(study(), tmp_path).trials
    assert make(trial.config) == Outcome("finished")
    longer = replace(trial.config, run=replace(trial.config.run, steps=1300))
    monkeypatch.setattr(trials_module, "BETWEEN_TRIES", 0.05)
    held = RunLock(trial.directory)
    began = time.monotonic()
    assert "is being written to by process" in make(longer, 0.3).why
    assert 0.3 <= time.monotonic() - began < 5
    content = json.loads((trial.directory / "lock.json").read_text())
    (trial.directory / "lock.json").write_text(json.dumps({**content, "host": "far"}))
    assert "on far" in make(longer, 0.0, ["elsewhere"]).why
    assert make(longer, 0.0, ["far"]) == Outcome("finished")
    held.release()


def test_two_sweeps_of_one_study_are_one_too_many(tmp_path):
    (tmp_path / "small").mkdir()
    with RunLock(tmp_path / "small"), pytest.raises(ValueError, match="small': is being written to by process"):
        sweep(study(), tmp_path, workers=1, lock_timeout=0)


@pytest.mark.long
@pytest.mark.parametrize("seeds", ["1", "auto"])
def test_a_sweep_that_is_killed_goes_on(seeds, tmp_path):
    one = study(seeds=2, resources={"seeds": seeds})
    whole = {
        trial.config.run.name: parts_of(trial.directory) for trial in sweep(one, tmp_path / "a", workers=1).finished
    }
    path = tmp_path / "small.yaml"
    path.write_text(json.dumps({"question": "Which?", "base": BASE, "seeds": 2, "resources": {"seeds": seeds}}))
    command = [sys.executable, "sweep.py", str(path), "--workers", "1", "--runs-dir", str(tmp_path / "b")]
    trials = planned(one, tmp_path / "b").trials
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    while not saved(trials[1].directory):
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    states = ["finished" if seeds == "1" else "interrupted", "interrupted"]  # side by side both were
    assert [standing(trial).state for trial in trials] == states
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and ("1 of 2 are finished, and are not made again" in done.stdout) == (seeds == "1")
    assert came_to(trials) == whole


def test_without_ray_there_is_one_worker(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"workers = 2: must be 1 where Ray is not installed \(pip install"):
        sweep(study(), tmp_path, workers=2)
    with pytest.raises(ValueError, match="ray_address = 'auto': must be left out"):
        sweep(study(), tmp_path, ray_address="auto")
    assert not list(tmp_path.iterdir())


def test_the_disk_is_asked_before(tmp_path, monkeypatch):
    swept = sweep(study(), tmp_path, workers=1)
    [trial] = swept.finished
    taken = sum(path.stat().st_size for path in trial.directory.rglob("*") if path.is_file())
    need = need_of(trial.config)
    assert taken <= need.kept + need.besides <= 30 * taken
    configs = [trial.config] * 1000
    assert require_disk(configs, 2).startswith("1,000 trials take up to ")
    assert re.match(r"1 trial takes up to \d+\.\d MB of the [\d,]+\.\d GB that are free", require_disk(configs[:1], 1))
    monkeypatch.setattr("shutil.disk_usage", lambda place: type("Usage", (), {"free": 10**8}))
    with pytest.raises(ValueError, match=r"runs_dir = .*: must be where there is room: 1,000 trials take up to"):
        require_disk(configs, 2)


@pytest.mark.parametrize(
    ("scores", "chosen"),
    [
        ({"1e-4": [10, 10, 10], "1e-3": [11, 11, 11]}, "1e-3"),  # by 1 in every seed
        ({"1e-4": [10, 20, 30], "1e-3": [11, 19, 32]}, "1e-4"),  # by 1, -1, 2: the interval holds 0
        ({"1e-4": [10, 20, 30], "1e-3": [9, 19, 29]}, "1e-4"),
        ({"1e-4": [50, None, 50], "1e-3": [1, 2, 3]}, "1e-3"),  # a seed failed
        ({"1e-4": [0, 0, 0], "1e-3": [10, 10, 11], "1e-2": [11, 10, 10]}, "1e-3"),
    ],
)
def test_the_smaller_where_the_interval_cannot_decide(scores, chosen, tmp_path, monkeypatch):
    tune = {"values": {"learning_rate": list(scores)}, "seeds": [11, 12, 13]}
    trials = planned(study(tune=tune), tmp_path).tuning
    monkeypatch.setattr(tuning, "score", lambda t: scores[t.tuned["learning-rate"]][t.seed - 11])
    [choice] = tuning.choose(trials)
    assert choice.values == {"learning-rate": chosen} and chosen in tuning.in_words(choice)
    for words, one in choice.scores.items():
        assert one.value == np.mean(scores[words.partition("=")[2]])


def test_nothing_can_be_chosen_where_all_failed(tmp_path, monkeypatch):
    trials = planned(study(tune=TUNE), tmp_path).tuning
    assert tuning.score(trials[0]) is None  # not made
    with pytest.raises(ValueError, match="dqn: none of the values"):
        tuning.choose(trials)


def test_a_score_is_the_mean_over_tasks_of_their_last_tenths(tmp_path):
    [trial] = sweep(study(), tmp_path, workers=1).finished
    games = [json.loads(line) for line in (trial.directory / "episodes.jsonl").read_text().splitlines()]
    tasks = [json.loads(line) for line in (trial.directory / "tasks.jsonl").read_text().splitlines()]
    means = []
    for row in tasks[:2]:  # the third has less than nine tenths of a task's steps... or all that are left
        first, last = row["first_step"], row["last_step"]
        tenth = [g["return"] for g in games if g["task"] == row["task"] and g["step"] > last - (last - first) / 10]
        means.append(np.mean(tenth))
    assert len(tasks) == 3 and tuning.score(trial) is not None
    third = [g["return"] for g in games if g["task"] == 2 and g["step"] > 1200 - (1200 - tasks[2]["first_step"]) / 10]
    expected = np.mean([*means, np.mean(third)]) if third else None
    assert tuning.score(trial) == (pytest.approx(expected) if expected is not None else None)


def test_the_board_reads_how_far_a_trial_is(tmp_path):
    plan = planned(study(seeds=3), tmp_path)
    first, second, _ = plan.trials
    first.directory.mkdir(parents=True)
    log = first.directory / "metrics.jsonl"
    log.write_text('{"step": 200, "x": 1}\n')
    assert last_step(first.directory)[1] == 200 and last_step(second.directory) == (0.0, 0)
    said = Console(file=StringIO(), width=200)
    board = Board(plan.trials, "trials", said)
    board.set(first, "running")
    began = board.rows[first.directory].seen[0][0]
    log.write_text('{"step": 200}\n{"step": 500}\n{"step": 60')  # torn
    os.utime(log, (began + 10, began + 10))
    board.rows[first.directory].look()
    assert board.rows[first.directory].speed == pytest.approx(30)  # 300 steps in 10 s
    board.set(second, "failed", "why not")
    assert board.summary().startswith("trials: 1 running, 1 waiting, 1 failed, 30 steps/s, about 0:01:03 left")
    assert board._cells() == [(first.config.run.name, "500 of 1,200 steps", "30 steps/s", "0:00:23 left")]
    assert said.file.getvalue() == f"failed (1 of 3)  {second.config.run.name}: why not\n"
    shown = Console(file=StringIO(), width=120, force_terminal=True)
    shown.print(board.table())
    assert "running" in shown.file.getvalue() and "failed" in shown.file.getvalue()


@pytest.mark.long
def test_ctrl_c_saves_and_leaves(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(json.dumps({"question": "Which?", "base": {**BASE, "steps": 100_000}, "seeds": 2}))
    command = [sys.executable, "sweep.py", str(path), "--workers", "1", "--runs-dir", str(tmp_path)]
    heard = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores Ctrl-C
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    signal.signal(signal.SIGINT, heard)
    while not any(map(saved, tmp_path.glob("small/trials/*"))):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 75 and "0 of 2 trials are finished, 2 are left" in said
    assert f"go on:     python sweep.py {path} --workers 1" in said


@pytest.mark.long
def test_the_printed_commands_are_an_array(tmp_path):
    """The line of docs/cluster.md's job script, with its number given by hand."""
    page = (ROOT / "docs/cluster.md").read_text()
    [line] = [line for line in page.splitlines() if line.startswith('eval "exec ')]
    path = tmp_path / "small.yaml"
    path.write_text(json.dumps({"question": "Which?", "base": BASE, "grid": {"steps": [1200, 100_000]}, "seeds": 1}))
    command = [sys.executable, "sweep.py", str(path), "--print", "--runs-dir", str(tmp_path)]

    def printed():
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        (tmp_path / "commands.txt").write_text(done.stdout)
        return done.stdout.splitlines()

    def element(number):
        there = {"SLURM_ARRAY_TASK_ID": str(number), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        return subprocess.Popen(["bash", "-c", line], cwd=tmp_path, env={**os.environ, **there})

    (tmp_path / "train.py").symlink_to(ROOT / "train.py")
    short, long = printed()
    assert element(1).wait() == 0
    process = element(2)
    while not any(map(saved, tmp_path.glob("small/trials/steps=100000*"))):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGUSR1)
    assert process.wait() == 75
    assert printed() == [long] and short != long


def test_how_often_a_trial_is_tried_again(tmp_path):
    [trial] = planned(study(), tmp_path).trials
    board = Board([trial], "trials", Console(file=StringIO()))
    tries, lost, short = Tries(board), Outcome("interrupted", "its process was lost"), Outcome("failed", "memory", True)
    trial.directory.mkdir(parents=True)

    def after(step):
        (trial.directory / "metrics.jsonl").write_text(json.dumps({"step": step}) + "\n")
        return tries.judged((trial,), [lost]) == [(trial,)]

    assert [after(step) for step in (100, 100, 200, 200, 300)] == [True] * 5  # it went on before the third each time
    assert [after(step) for step in (300, 300)] == [True, False]
    assert board.rows[trial.directory].why == "3 times in a row without a step more: its process was lost"
    assert [tries.judged((trial,), [short]) for _ in range(2)] == [[(trial,)], []]
    assert tries.judged((trial,), [Outcome("failed", "not finite")]) == []
    first, second, third = three = planned(study(seeds=3), tmp_path / "b").trials
    tries = Tries(Board(three, "trials", Console(file=StringIO())))
    assert tries.judged(tuple(three), [short, lost, lost]) == [(second, third), (first,)]
