"""Runs that begin where another one stands at a task change: what is kept, what is new, what is refused."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments.cli import parse_train
from experiments.results.arms import without_repeats
from experiments.results.runs import read_run
from experiments.store import listed, read
from tests.experiments.test_going_on import begun
from tests.experiments.test_run import one_thread  # noqa: F401

DQN = (
    "dqn --env ImageMDP-v0 --image.variant random_label --image.num-images 20 --task.period 300 --width 8"
    " --replay-ratio 0.5 --target-period 20 --buffer-size 400 --learning-starts 50 --checkpoint.replay always"
    " --interventions layer_norm redo --redo.when=every_40_gradient_steps"
).replace("every_40_gradient_steps", "every 40 gradient steps")
PPO = "ppo --env CartPole-v1 --task.change rewards --task.period 200 --rollout-steps 64 --num-minibatches 2 --width 8"


def words(flags: str) -> list[str]:
    head, equals, when = flags.partition(" --redo.when=")
    return head.split() + ([f"--redo.when={when}"] if equals else [])


def run(runs: Path, name: str, flags: str, *more: str) -> Path:
    own = ["--threads", "1", "--probes", "none", "--log-every", "50"] if not flags.startswith("--fork") else []
    result, _ = begun([*words(flags), *own, "--runs-dir", str(runs), "--name", name, *more])
    assert result.exit_code == 0
    return result.directory


def state(directory: Path, which: int) -> tuple[dict, dict]:
    """(agent, run) of one of its checkpoints."""
    checkpoint = read(listed(directory / "checkpoints")[which])
    return checkpoint.load("agent"), checkpoint.load("run")


def same(one: object, other: object) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def games(directory: Path, after: int) -> list[dict]:
    rows = [json.loads(line) for line in (directory / "episodes.jsonl").read_text().splitlines()]
    return [row for row in rows if row["step"] > after]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(a run of three tasks, one of the same settings that ends after two of them)."""
    runs = tmp_path_factory.mktemp("runs")
    return run(runs, "three", DQN, "--steps", "900", "--keep-checkpoints", "0"), run(runs, "two", DQN, "--steps", "600")


def test_a_fork_that_keeps_all_is_the_run_itself(source: tuple[Path, Path], tmp_path: Path) -> None:
    three, two = source
    fork = run(tmp_path, "fork", f"--fork {two}", "--steps", "900")
    assert all(map(same, state(fork, -1)[0].values(), state(three, -1)[0].values()))
    assert games(fork, 0) == games(three, 600) and games(fork, 0)[0]["step"] == 700
    rows = [json.loads(line) for line in (fork / "tasks.jsonl").read_text().splitlines()]
    assert [(row["task"], row["first_step"], row["last_step"]) for row in rows] == [(2, 600, 900)]
    assert rows[0]["parameters"] == json.loads((three / "tasks.jsonl").read_text().splitlines()[2])["parameters"]
    config = json.loads((fork / "config.json").read_text())
    assert Path(config["fork"]["run"]) == two / "checkpoints" / "step_000000000600"
    kept, dropped = without_repeats([read_run(fork), read_run(three), read_run(two)])
    assert [one.path for one in kept] == [three] and len(dropped) == 2  # compare.py counts a seed once


@pytest.mark.parametrize("kept", [("weights", "replay"), ("optimizer",), ("none",)])
def test_what_is_kept_is_the_other_run_s_and_the_rest_is_new(
    kept: tuple[str, ...], source: tuple[Path, Path], tmp_path: Path
) -> None:
    three, two = source
    fork = run(tmp_path, "fork", f"--fork {two}", "--steps", "700", "--keep-checkpoints", "0", "--fork.keep", *kept)
    (mine, loop), (old, other), (new, _) = state(fork, 0), state(two, -1), state(three, 0)
    parts = {"weights": ("network", "target_network", "interventions"), "optimizer": ("optimization",)}
    for part, names in parts.items():
        for name in names:
            assert same(mine[name], (old if part in kept else new)[name]), name
            assert name == "interventions" or not same(old[name], new[name])  # so that this means something
    assert same(mine["clock"], old["clock"]) and same(loop["loop"], other["loop"])
    assert same(loop["generators"], other["generators"]) and same(loop["world"], other["world"])
    replay = read(listed(fork / "checkpoints")[0]).load("replay")
    assert int(replay["filled"][0]) == (400 if "replay" in kept else 0)
    if "replay" in kept:
        assert same(replay, read(listed(two / "checkpoints")[-1]).load("replay"))


def test_a_fork_is_an_ordinary_run_that_goes_on_where_it_was_stopped(source: tuple[Path, Path], tmp_path: Path) -> None:
    asked = ["--fork", str(source[1]), "--steps", "900", "--fork.keep", "replay,weights", "--name", "fork"]
    whole, _ = begun([*asked, "--runs-dir", str(tmp_path / "a")])
    stopped, _ = begun([*asked, "--runs-dir", str(tmp_path / "b")], stop_at=730)
    assert stopped.exit_code == 75 and stopped.step == 731
    again, said = begun(["--resume", str(stopped.directory)])
    assert "goes on from step 731" in said and "forked" not in said
    assert all(map(same, state(again.directory, -1)[0].values(), state(whole.directory, -1)[0].values()))
    assert json.loads((whole.directory / "config.json").read_text())["fork"]["keep"] == ["weights", "replay"]


def test_a_fork_of_ppo(tmp_path: Path) -> None:
    source = run(tmp_path, "source", PPO, "--steps", "1000", "--keep-checkpoints", "0")
    paths = listed(source / "checkpoints")
    changes = {path: read(path).load("run")["loop"]["change"] for path in paths}
    at = next(path for path, change in changes.items() if change and change[1] > 0)
    fork = run(tmp_path, "fork", f"--fork {at}")
    assert same(state(fork, -1)[0]["network"], state(source, -1)[0]["network"])
    assert np.allclose(
        [row["return"] for row in games(fork, 0)], [row["return"] for row in games(source, read(at).step)]
    )


def test_what_no_run_can_begin_from_is_said(source: tuple[Path, Path], tmp_path: Path) -> None:
    three, two = source
    refusals = {
        ("--fork", str(two)): "steps = 600: must be more than 600",
        ("--fork", str(listed(three / "checkpoints")[0])): "saved at a task change; step 0 is none",
        ("--fork", str(listed(three / "checkpoints")[1])): "saved at a task change; step 90 is none",
        ("--fork", str(two), "--steps", "700", "--width", "16"): "must hold the weights of the network",
        ("--fork", str(two), "--steps", "700", "--interventions", "none"): "must hold the weights of the network",
        ("--fork", str(two), "--steps", "700", "--seed", "2"): "seed = 2: must be 1, as in the run that is forked",
    }
    for number, (asked, why) in enumerate(refusals.items()):
        with pytest.raises(ValueError, match="^[^\n]+$") as refused:
            begun([*asked, "--runs-dir", str(tmp_path), "--name", str(number)])
        assert why in str(refused.value), refused.value
        assert not (tmp_path / str(number)).exists()


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        (["--fork", "nowhere"], "fork = 'nowhere': must be a run directory with checkpoints"),
        (["--fork", ""], "fork = '': must be a path"),
        (["--fork.keep", "weights"], "fork.keep = 'weights': must be left out without --fork"),
        (["--fork.keep", "weight"], "fork.keep = 'weight': must be some of weights, optimizer, replay, or none alone"),
        (["--fork.keep", "none", "weights"], "fork.keep = 'none weights'"),
    ],
)
def test_wrong_words_are_answered_by_the_command_line(
    asked: list[str], why: str, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit) as left:
        parse_train([*words(DQN), *asked])
    assert left.value.code == 2 and why in capsys.readouterr().err


def test_every_combination_has_a_name_of_its_own(source: tuple[Path, Path]) -> None:
    names = set()
    for count in range(4):
        for kept in itertools.combinations(("weights", "optimizer", "replay"), count):
            config = parse_train(["--fork", str(source[1]), "--steps", "900", "--fork.keep", *(kept or ["none"])])
            names.add(config.run_name)
    assert len(names) == 8
