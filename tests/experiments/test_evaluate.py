"""Playing with saved weights."""

import json
import subprocess
import sys
from pathlib import Path

import imageio.v2 as imageio
import numpy as np
import pytest
import torch

from experiments.evaluate import evaluate, quotas
from experiments.evaluate_config import EvaluateConfig
from experiments.run_directory import find_checkpoint, load_checkpoint
from tests.experiments.test_run import ATARI, SMALL, run

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def breakout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("runs"), "dqn", "ALE/Breakout-v5", 100, *ATARI)[0]


@pytest.fixture(scope="module")
def cartpole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("runs"), "ppo", "CartPole-v1", 600, *SMALL["ppo"])[0]


def test_every_environment_plays_its_share() -> None:
    assert quotas(10, 4).tolist() == [3, 3, 2, 2]
    assert quotas(2, 2).tolist() == [1, 1]


def test_summary_is_mean_iqm_and_std_of_the_games(cartpole: Path) -> None:
    result = evaluate(EvaluateConfig(cartpole, episodes=8, seed=5))
    returns = sorted(result["returns"])
    assert len(returns) == 8
    assert result["returns"] == [float(length) for length in result["lengths"]]  # CartPole pays 1 a step
    assert result["mean"] == pytest.approx(sum(returns) / 8)
    assert result["iqm"] == pytest.approx(sum(returns[2:6]) / 4)  # the middle half
    mean = sum(returns) / 8
    assert result["std"] == pytest.approx((sum((r - mean) ** 2 for r in returns) / 7) ** 0.5)


def test_the_same_seed_plays_the_same_games(cartpole: Path) -> None:
    one, again, other = (evaluate(EvaluateConfig(cartpole, episodes=5, seed=seed))["returns"] for seed in (1, 1, 2))
    assert one == again
    assert one != other


@pytest.mark.parametrize("policy", ["greedy", "sampled"])
def test_atari_games_are_whole_and_unclipped(breakout: Path, policy: str) -> None:
    result = evaluate(EvaluateConfig(breakout, episodes=2, policy=policy, num_envs=2))
    assert len(result["returns"]) == 2
    assert all(0 <= value == int(value) for value in result["returns"])


def test_video_plays(breakout: Path, tmp_path: Path) -> None:
    path = tmp_path / "game.mp4"
    result = evaluate(EvaluateConfig(breakout, episodes=1, video=path))
    frames = imageio.mimread(path, memtest=False)
    assert abs(len(frames) - result["lengths"][0]) <= 1
    assert frames[0].shape == (420, 320, 3)
    assert np.ptp(frames[0]) > 50  # something is on the screen


@pytest.mark.parametrize(
    ("algorithm", "env"),
    [
        ("ppo", "Ant-v5"),
        pytest.param("ppo", "FrictionAnt-v0", marks=pytest.mark.long),
        ("dqn", "CartPole-v1"),
        ("dqn", "ImageMDP-v0"),
    ],
)
def test_other_worlds_are_filmed_too(algorithm: str, env: str, tmp_path: Path) -> None:
    # short games: without a GPU a dozen frames of MuJoCo are drawn a second
    flags = {"ppo": ["--width", "16", "--max-episode-steps", "60"], "dqn": SMALL["dqn"]}[algorithm]
    directory = run(tmp_path, algorithm, env, 150, *flags)[0]
    path = tmp_path / "game.mp4"
    try:
        result = evaluate(EvaluateConfig(directory, episodes=1, video=path))
    except ValueError as error:
        if "cannot be drawn here" not in str(error):
            raise
        pytest.skip(str(error))
    frames = imageio.mimread(path, memtest=False)
    assert abs(len(frames) - result["lengths"][0]) <= 1
    assert np.ptp(frames[0]) > 50


def test_a_large_batch_needs_no_memory_to_play(tmp_path: Path) -> None:
    flags = ["--batch-size", "256", "--buffer-size", "2000", "--learning-starts", "300", "--width", "16"]
    directory = run(tmp_path, "dqn", "CartPole-v1", 320, *flags)[0]
    assert len(evaluate(EvaluateConfig(directory, episodes=8))["returns"]) == 8


def test_command_prints_json(cartpole: Path) -> None:
    command = [sys.executable, "evaluate.py", str(cartpole), "--episodes", "3", "--json"]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert len(json.loads(printed)["returns"]) == 3


def test_a_damaged_or_foreign_file_is_refused(cartpole: Path, tmp_path: Path) -> None:
    whole = (find_checkpoint(cartpole) / "agent.pt").read_bytes()
    (tmp_path / "half.pt").write_bytes(whole[: len(whole) // 2])
    torch.save({"weights": torch.zeros(2)}, tmp_path / "foreign.pt")
    torch.save({"format": Path("a")}, tmp_path / "unsafe.pt")
    for name in ("half.pt", "foreign.pt", "unsafe.pt"):
        with pytest.raises(ValueError, match=name):
            load_checkpoint(tmp_path / name)


def test_a_run_directory_names_its_final_checkpoint(cartpole: Path, tmp_path: Path) -> None:
    assert find_checkpoint(cartpole).name == "step_000000000600"
    with pytest.raises(ValueError, match="no such run"):
        find_checkpoint(tmp_path / "nothing")


@pytest.mark.parametrize("algorithm", ["dqn", "c51", "ppo"])
def test_playing_builds_nothing_that_learns(algorithm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = [
        *SMALL[algorithm],
        "--interventions",
        "layer_norm",
        "l2_init",
        "plasticity_injection",
        "--plasticity-injection.when",
        "at-step-150",
    ]
    path, _, _ = run(tmp_path, algorithm, "CartPole-v1", 300, *flags)

    def never(self, *arguments, **settings) -> None:
        raise AssertionError(f"{type(self).__name__} was built")

    for kind in ("replay.Replay", "rollout.Rollout", "optimization.Optimization", "learner.Learner"):
        monkeypatch.setattr(f"agents.{kind}.__init__", never)
    result = evaluate(EvaluateConfig(path, episodes=3))
    assert len(result["returns"]) == 3
