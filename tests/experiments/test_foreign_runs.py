"""Runs in worlds that other people made: they train, or stop with one sentence and keep what there is."""

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from experiments.cli import parse_train
from experiments.config import from_dict, to_dict
from experiments.run_directory import find_checkpoint, load_checkpoint
from experiments.setup import build, check
from experiments.train import train
from tests import odd_worlds

ROOT = Path(__file__).parents[2]
VALUE = ["--learning-starts", "20", "--buffer-size", "200", "--batch-size", "8", "--width", "8"]
SMALL = {"dqn": VALUE, "c51": VALUE, "ppo": ["--width", "8", "--rollout-steps", "16", "--update-epochs", "1"]}


def run(tmp_path, algorithm, name, steps, *flags):
    """(run directory, exit code, what was printed)."""
    env = name if ":" in name or "-v" in name else f"tests.odd_worlds:{name}-v0"
    arguments = [algorithm, "--env", env, "--steps", str(steps), "--runs-dir", str(tmp_path), "--threads", "1"]
    config = parse_train([*arguments, "--probes", "none", *SMALL[algorithm], *flags])
    check(config)
    printed = io.StringIO()
    done = train(config, *build(config), Console(file=printed, width=120))
    return done.directory, done.exit_code, printed.getvalue()


def command(*arguments, cwd=ROOT):
    call = [sys.executable, *map(str, arguments)]
    return subprocess.run(call, cwd=cwd, capture_output=True, text=True, check=False)


TRAINING = ["Plain", "LivesLater", "LivesWord", "SometimesTold", "ToldWords", "NoInfo", "OurNames", "Lists", "Counted"]
TRAINING += ["NoDimension", "Matrix", "Goals", "Outside", "ActsFromFive", "SingleReward"]


@pytest.mark.parametrize(
    ("algorithm", "name"),
    [
        *((algorithm, name) for algorithm in ("dqn", "ppo") for name in TRAINING),
        *(("c51", name) for name in ("Plain", "LivesLater", "Counted", "NoDimension")),
    ],
)
def test_what_can_be_played_trains(algorithm, name, tmp_path):
    path, code, _ = run(tmp_path, algorithm, name, 160, "--num-envs", "2", "--life-loss-discount")
    assert code == 0
    assert load_checkpoint(find_checkpoint(path))[1] == 160


@pytest.mark.parametrize(
    "name",
    [
        "ActsFar",
        "ActsWhole",
        "ActsBytes",
        "ActsSquare",
        "ActsNumber",
        "ActsFixed",
        "ActsUnbounded",
        "WritesIntoActions",
    ],
)
def test_every_box_of_actions_is_acted_in(name, tmp_path):
    _, code, printed = run(tmp_path, "ppo", name, 160, "--num-envs", "2")
    assert code == 0  # these worlds assert that what they are given lies in their space
    scaled = name in ("ActsFar", "ActsWhole", "ActsBytes", "ActsNumber", "ActsFixed")
    assert ("are scaled from [-1, 1] (--action-scaling auto)" in printed) == scaled
    assert ("are integers" in printed) == (name in ("ActsWhole", "ActsBytes"))


def test_images_with_the_channels_last_meet_a_nature_cnn_and_a_line_that_says_so(tmp_path):
    path, code, printed = run(tmp_path, "ppo", "ChannelsLast", 64, "--num-envs", "2")
    assert code == 0 and "images 84 x 84 x 3 with the channels last are taken as 3 x 84 x 84" in printed
    weights = load_checkpoint(find_checkpoint(path))[2]["network"]
    assert weights["actor_torso.convolutions.conv1.weight"].shape[1] == 3
    done = command("evaluate.py", path, "--episodes", "1", "--json")
    assert done.returncode == 0 and "note: images 84 x 84 x 3 with the channels last" in done.stderr
    assert json.loads(done.stdout)["returns"] == [10.0]


@pytest.mark.long
def test_actions_far_from_0_are_learned(tmp_path):
    arguments = ["ppo", "--env", "tests.odd_worlds:FarActions-v0", "--steps", "20000", "--runs-dir", str(tmp_path)]
    config = parse_train([*arguments, "--probes", "none", "--threads", "1"])
    world, agent = build(config)
    train(config, world, agent)
    best = agent.player(greedy=True, generators=_generators())(np.zeros((1, 3), np.float32))
    assert best.item() == pytest.approx(150.0, abs=5.0)


def _generators():
    from agents.randomness import Generators

    return Generators(0)


def test_a_file_from_before_there_was_scaling_keeps_its_meaning():
    old = to_dict(parse_train(["ppo", "--env", "Pendulum-v1"]))
    assert old["agent"].pop("action_scaling") == "auto"
    assert from_dict(old).agent.action_scaling == "off"
    assert from_dict(to_dict(parse_train(["ppo", "--env", "Pendulum-v1"]))).agent.action_scaling == "auto"
    for flags in (["Ant-v5"], ["Ant-v5", "--preset", "dohare24_ant"], ["FrictionAnt-v0"], ["Ant-v4"]):
        assert parse_train(["ppo", "--env", *flags]).agent.action_scaling == "off"


def test_older_robots_have_the_protocol_of_the_newer_and_a_line_that_says_so(tmp_path):
    older, newer = (parse_train(["ppo", "--env", env, "--steps", "64"]) for env in ("Ant-v4", "Ant-v5"))
    assert older.agent == newer.agent and older.world.num_envs == newer.world.num_envs
    assert older.world.resolved_backend == "gymnasium"
    flags = ["--num-minibatches", "1"]
    _, code, printed = run(tmp_path, "ppo", "Ant-v4", 16, *flags)
    assert code == 0 and "Ant-v4 is older than Ant-v5: played as gymnasium defines it" in printed


@pytest.mark.parametrize("algorithm", ["dqn", "ppo"])
@pytest.mark.parametrize("name", ["RaisesAtStep", "Exits", "Grows", "ArrayReward", "ScalarObservation"])
def test_a_world_that_fails_is_named_and_everything_is_kept(name, algorithm, tmp_path):
    path, code, printed = run(tmp_path, algorithm, name, 100, "--num-envs", "1")
    assert code == 1
    (sentence,) = [line for line in printed.splitlines() if line.startswith("stopped:")]
    assert f"'tests.odd_worlds:{name}-v0': environment 0 " in sentence and str(path / "traceback.txt") in sentence
    assert "Traceback" not in printed
    told = (path / "traceback.txt").read_text()
    assert "Traceback" in told and "WorldError" in told
    if name == "RaisesAtStep":
        assert "simulator lost [connection]" in sentence and "at step 7" in sentence
        assert "odd_worlds.py" in told
    step = {"RaisesAtStep": 6, "Exits": 6, "Grows": 4}.get(name, 0)
    assert load_checkpoint(path / "checkpoints" / f"crashed_{step:012d}")[1] == step
    assert find_checkpoint(path).name == "step_000000000000"  # the last one that a run can go on from


def test_a_finished_run_is_kept_where_closing_fails(tmp_path):
    path, code, printed = run(tmp_path, "dqn", "RaisesAtClose", 60)
    assert code == 1 and "raised OSError: port is gone" in printed
    assert load_checkpoint(find_checkpoint(path))[1] == 60
    assert "port is gone" in (path / "traceback.txt").read_text()
    done = command("evaluate.py", path, "--episodes", "2", "--json")
    assert done.returncode == 1 and "Traceback" not in done.stderr and "port is gone" in done.stderr
    assert json.loads(done.stdout)["returns"] == [10.0, 10.0]


def test_an_error_of_our_own_is_raised_as_what_it_is(tmp_path, monkeypatch):
    from agents.value_agent import ValueAgent

    def broken(*arguments):
        raise RuntimeError("ours")

    monkeypatch.setattr(ValueAgent, "observe", broken)
    with pytest.raises(RuntimeError, match="^ours$"):
        run(tmp_path, "dqn", "Plain", 60)
    assert not list(tmp_path.glob("*/traceback.txt"))


def test_evaluate_names_a_world_that_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(odd_worlds.KINDS["RaisesAtStep"], "reward", lambda self, action: 1.0)
    path, code, _ = run(tmp_path, "dqn", "RaisesAtStep", 60)
    assert code == 0
    done = command("evaluate.py", path)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1 and done.stdout == ""
    assert "raised RuntimeError: simulator lost [connection]" in done.stderr and "at step" in done.stderr
    assert "odd_worlds.py" in (path / "traceback_evaluate.txt").read_text()


@pytest.mark.long
def test_the_commands_take_module_and_id(tmp_path):
    """train, replay of its config.json, evaluate and evaluate's probes, from a folder of the user's own."""
    (tmp_path / "my_worlds.py").write_text((ROOT / "tests" / "odd_worlds.py").read_text())
    flags = ["--env", "my_worlds:Plain-v0", "--steps", "120", "--runs-dir", "runs", "--probe.samples", "8"]
    done = command(ROOT / "train.py", "dqn", *flags, *SMALL["dqn"], "--probe.every", "50", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / "runs").iterdir()
    assert path.name.startswith("dqn_my_worlds_Plain-v0")
    again = command(ROOT / "train.py", "--config", path / "config.json", "--name", "again", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    for extra in ((), ("--probe", "weights")):
        played = command(ROOT / "evaluate.py", path, *extra, "--json", cwd=tmp_path)
        assert played.returncode == 0, played.stderr
        assert json.loads(played.stdout)
    elsewhere = command(ROOT / "evaluate.py", path, cwd=ROOT)
    assert elsewhere.returncode == 2 and "'my_worlds' is not a module that can be imported" in elsewhere.stderr
    assert len(elsewhere.stderr.splitlines()) == 1


@pytest.mark.parametrize(("name", "words"), [("RaisesAtBirth", "ZeroDivisionError"), ("Words", "observations must be")])
def test_what_cannot_be_built_is_refused_before_a_directory_exists(name, words, tmp_path):
    flags = ["--env", f"tests.odd_worlds:{name}-v0", "--runs-dir", tmp_path / "runs"]
    done = command("train.py", "ppo", *flags)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and words in done.stderr
    assert not (tmp_path / "runs").exists()
