"""Sweeps on Ray's own clusters of processes on this machine, disturbed as hard as can be; `make test-sweep` has Ray."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from experiments.json_file import read_json
from experiments.run_directory import git_commit
from experiments.sweep.plan import planned
from experiments.sweep.study import study_of
from experiments.sweep.sweeping import sweep
from tests.faults.whole_runs import parts_of

pytestmark = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="no Ray here: make test-sweep")
ROOT = Path(__file__).parents[3]
STUDY = {
    "question": "Is a disturbed sweep the undisturbed one?",
    "base": {
        "agent": "dqn", "env": "CartPole-v1", "steps": 8000, "width": 16, "learning_starts": 100, "buffer_size": 1000,
        "batch_size": 16, "checkpoint_every": 400, "log_every": 50, "checkpoint.replay": "always", "probes": "none",
        "task": {"change": "rewards", "period": 3300}, "replay_ratio": 0.5,
    },
    "grid": {"interventions": ["none", {"redo": {"tau": 0.1, "when": "every 50 gradient steps"}}]},
    "seeds": 2,
    "resources": {"memory": "300MB"},
}  # fmt: skip
NAME = "disturbed"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """What each trial comes to in this process, without Ray."""
    swept = sweep(study_of(STUDY, NAME), tmp_path_factory.mktemp("undisturbed"), workers=1)
    assert len(swept.finished) == 4 and swept.exit_code == 0
    return came_to(swept.finished)


def came_to(trials):
    """By arm and seed, a hash of each part of what the trials have come to: weights, streams, logs and more."""
    return {(trial.arm, trial.seed): parts_of(trial.directory) for trial in trials}


def gone_on(trials):
    """How often the trials went on where they had been."""
    return sum(len(read_json("manifest", trial.directory / "manifest.json").get("gone_on", [])) for trial in trials)


def saved(trials):
    """The trials that have a checkpoint after their first, and are not at their end."""
    return [
        trial
        for trial in trials
        if len(list(trial.directory.glob("checkpoints/step_*"))) > 1 and not (trial.directory / "ending.json").exists()
    ]


def until(condition, seconds=300):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.timeout(900)  # of wall clock: Ray gives way to whatever else a machine does
def test_a_node_that_is_killed_costs_nothing(undisturbed, tmp_path):
    import ray
    from ray.cluster_utils import Cluster

    study = study_of({**STUDY, "resources": {"gpus": 0.5, "memory": "300MB"}}, NAME)
    few = {"num_cpus": 1, "num_gpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}  # GPUs by word
    cluster = Cluster(initialize_head=True, head_node_args=few)
    try:
        second = cluster.add_node(**few)
        trials, said = planned(study, tmp_path).trials, []

        def kill():
            until(lambda: len(saved(trials)) >= 3)  # both stacks, of two seeds each, are under way
            cluster.remove_node(second, allow_graceful=False)
            said.append(len(saved(trials)))

        killer = threading.Thread(target=kill)
        killer.start()
        swept = sweep(study, tmp_path, ray_address=cluster.address, lock_timeout=60)
        killer.join()
        assert said and not swept.failed and swept.exit_code == 0
        assert len(swept.finished) == 4 and gone_on(trials) >= 2
        assert came_to(trials) == undisturbed
        manifest = read_json("manifest", trials[0].directory / "manifest.json")
        assert manifest["command"] == [Path(sys.argv[0]).name, *sys.argv[1:]]  # this process's, not one of Ray's
        assert manifest["git_commit"] == git_commit() != "unknown"
    finally:
        ray.shutdown()
        cluster.shutdown()


def study_file(folder):
    path = folder / f"{NAME}.yaml"
    path.write_text(json.dumps(STUDY))  # which is YAML
    return path


def started(folder, *flags):
    """sweep.py as a process of its own."""
    command = [sys.executable, "sweep.py", str(study_file(folder)), "--runs-dir", str(folder), *flags]
    of_it = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True}
    heard = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores Ctrl-C
    try:
        return subprocess.Popen(command, cwd=ROOT, **of_it)
    finally:
        signal.signal(signal.SIGINT, heard)


def runs(process):
    """Whether it is there, and not only for its parent to notice that it has ended (some machines' first process never
    does)."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_sweep_that_is_killed_goes_on(undisturbed, tmp_path):
    trials = planned(study_of(STUDY, NAME), tmp_path).trials
    process = started(tmp_path, "--workers", "2")
    until(lambda: saved(trials))
    below = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert below
    again = started(tmp_path, "--workers", "2")
    said, _ = again.communicate(timeout=240)
    assert again.returncode == 0, said
    assert "4 of 4 trials are finished" in said and "steps/s" in said
    assert came_to(trials) == undisturbed and gone_on(trials) >= 1
    until(lambda: not any(map(runs, below)))  # nothing of the first one is left


def test_ctrl_c_saves_what_goes_on(undisturbed, tmp_path):
    trials = planned(study_of(STUDY, NAME), tmp_path).trials
    process = started(tmp_path, "--workers", "2")
    until(lambda: saved(trials))
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all that it has begun
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 75, said
    endings = [read_json("ending", path) for path in tmp_path.glob(f"{NAME}/trials/*/ending.json")]
    assert "interrupted" in {ending["ending"] for ending in endings}
    assert sweep(study_of(STUDY, NAME), tmp_path, workers=1).exit_code == 0
    assert came_to(trials) == undisturbed and gone_on(trials) >= 1


def test_what_cannot_be_is_said_before_anything_is_made(tmp_path):
    study = study_of({**STUDY, "resources": {"cpus": 500}}, NAME)
    with pytest.raises(ValueError, match=r"a trial fits on no machine; .*CPU \d+ \(asked for: 500\)"):
        sweep(study, tmp_path)
    with pytest.raises(ValueError, match="ray_address = '127.0.0.1:1': must be that of a Ray cluster"):
        sweep(study_of(STUDY, NAME), tmp_path, ray_address="127.0.0.1:1")
    assert not list(tmp_path.glob(f"{NAME}/trials"))
