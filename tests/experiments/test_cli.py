"""The command line: what is wrong is said in a sentence that names the field, at once, and leaves nothing behind."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from agents.config import LearningRate
from agents.ppo_config import PPOConfig
from agents.schedule import RUN
from agents.value_config import C51Config, DQNConfig
from experiments.cli import parse_evaluate, parse_train

ROOT = Path(__file__).parents[2]

WRONG = {
    "a typo in a flag": (["dqn", "--env", "CartPole-v1", "--lerning-rate", "1"], "--lerning-rate"),
    "an unknown world": (["dqn", "--env", "ALE/Brekout-v5"], "ALE/Breakout-v5"),
    "an agent that cannot act there": (["c51", "--env", "Ant-v5"], "ppo"),
    "a bad value": (["dqn", "--env", "CartPole-v1", "--gamma", "1.5"], "gamma = 1.5"),
    "not a number": (["dqn", "--env", "CartPole-v1", "--steps", "many"], "--steps"),
    "an unknown algorithm": (["a2c", "--env", "CartPole-v1"], "dqn, c51, ppo"),
    "an unknown preset": (["dqn", "--env", "CartPole-v1", "--preset", "dohare24_ant"], "preset"),
    "a preset for another world": (["dqn", "--env", "CartPole-v1", "--preset", "dopamine"], "preset = 'dopamine'"),
    "a world that cannot be built": (["ppo", "--env", "Ant-v3"], "env = 'Ant-v3'"),
    "no world": (["dqn"], "env"),
    "a replay that cannot fit": (["dqn", "--env", "ALE/Pong-v5", "--buffer-size", "90000000"], "buffer_size"),
    "minibatches that do not divide": (["ppo", "--env", "Ant-v5", "--num-minibatches", "7"], "num_minibatches"),
    "a GPU's format on a CPU": (
        ["dqn", "--env", "CartPole-v1", "--device", "cpu", "--precision", "tf32"],
        "precision = 'tf32': must be fp32 or bf16 on a CPU",
    ),
    "a padding that there is not": (["dqn", "--env", "ALE/Pong-v5", "--padding", "full"], "padding"),
    "a torso for images on a vector": (["dqn", "--env", "CartPole-v1", "--torso", "nature_cnn"], "torso"),
    "an option of another world": (["ppo", "--env", "Ant-v5", "--sticky-actions", "0.25"], "sticky_actions"),
    "a backend that lacks the world": (["ppo", "--env", "Ant-v5", "--backend", "ale"], "backend"),
    "a change that the world does not have": (["ppo", "--env", "Ant-v5", "--task.change", "labels"], "task.change"),
    "a period without a change": (["ppo", "--env", "Ant-v5", "--task.period", "1000"], "task.change"),
    "annealing over tasks": (
        ["ppo", "--env", "FrictionAnt-v0", "--learning-rate.over", "9"],
        "learning_rate.over = '9'",
    ),
    "a misspelt data set": (["dqn", "--env", "ImageMDP-v0", "--dataset", "mnits"], "did you mean 'mnist'"),
    "a game that is none": (["dqn", "--env", "ALE/Pong-v5,ALE/Brekout-v5"], "ALE/Breakout-v5"),
    "worlds that are no games in turn": (["dqn", "--env", "ALE/Pong-v5,CartPole-v1"], "ALE/<Game>-v5"),
    "a missing config file": (["--config", "nowhere/config.json"], "nowhere/config.json"),
    "a nested field": (["dqn", "--env", "CartPole-v1", "--adam.eps", "0"], "adam.eps"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_settings_exit_with_2_name_the_field_and_leave_no_directory(case: str, tmp_path: Path) -> None:
    arguments, named = WRONG[case]
    runs = tmp_path / "runs"
    environment = {**os.environ, "COLUMNS": "200"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = subprocess.run(
        [sys.executable, "train.py", *arguments, "--runs-dir", str(runs)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=environment,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime  # of processor: blind to neighbours
    assert result.returncode == 2, result.stderr
    assert named in result.stderr
    assert "Traceback" not in result.stderr
    assert not runs.exists()
    assert seconds < 3.0


def test_a_taken_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    arguments = ["dqn", "--env", "CartPole-v1", "--runs-dir", str(tmp_path), "--name", "mine"]
    result = subprocess.run([sys.executable, "train.py", *arguments], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 2
    assert "name = 'mine'" in result.stderr


@pytest.mark.parametrize("algorithm", ["dqn", "c51", "ppo"])
def test_help_lists_every_flag_with_its_text(algorithm: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse_train([algorithm, "--env", "ALE/Pong-v5", "--help"])
    text = capsys.readouterr().out
    assert stopped.value.code == 0
    shared = (
        "--env --steps --seed --num-envs --backend --device --precision --threads --runs-dir --name --learning-rate"
    )
    shared += " --gamma --width --depth --adam.eps --adam.betas --max-grad-norm --sticky-actions --full-action-space"
    shared += " --reward-transform --v-min --v-max --num-atoms --wandb"
    own = "--update-epochs --num-minibatches --rollout-steps"
    if algorithm != "ppo":
        own = "--learning-starts --buffer-size --batch-size --replay-ratio --target-period --tau --n-step"
    missing = [flag for flag in (shared + " " + own).split() if flag not in text]
    assert not missing


def test_flags_override_the_preset_and_the_preset_follows_the_world() -> None:
    pong = parse_train(["dqn", "--env", "ALE/Pong-v5", "--learning-rate", "1e-3", "--adam.betas", "0.9", "0.9"])
    assert pong.agent.learning_rate == LearningRate(1e-3)
    assert pong.agent.adam.betas == (0.9, 0.9)
    assert (pong.agent.adam.eps, pong.world.sticky_actions) == (1.5e-4, 0.25)  # Dopamine's
    assert parse_train(["ppo", "--env", "Ant-v5"]).agent.rollout_steps == 2048
    annealed = parse_train(["ppo", "--env", "ALE/Pong-v5", "--learning-rate", "1e-3"]).agent
    assert annealed.learning_rate == LearningRate(1e-3, 0.0, RUN)  # its start is another, its fall stays
    assert parse_train(["ppo", "--env", "Ant-v5", "--preset", "dohare24_ant"]).world.ant_observation == "padded-111"


def test_the_agent_of_each_name() -> None:
    kinds = {"dqn": DQNConfig, "c51": C51Config, "ppo": PPOConfig}
    for name, kind in kinds.items():
        assert type(parse_train([name, "--env", "CartPole-v1"]).agent) is kind


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["nowhere", "--episodes", "0"], "episodes"),
        (["nowhere", "--video", "game.gif"], "video"),
    ],
)
def test_evaluate_refuses_bad_values(arguments: list[str], named: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse_evaluate(arguments)
    assert stopped.value.code == 2
    assert named in capsys.readouterr().err


def test_nothing_after_the_agent_is_an_answer_too(capsys: pytest.CaptureFixture) -> None:
    for arguments in (["dqn"], ["ppo", "--env"]):
        with pytest.raises(SystemExit) as stopped:
            parse_train(arguments)
        assert stopped.value.code == 2 and "env" in capsys.readouterr().err.removeprefix("error: --")


def test_what_stood_there_is_cut_where_it_is_long(capsys: pytest.CaptureFixture) -> None:
    """A number of 5,000 digits, a word, an id: each in a line that can be read."""
    cases = [["--steps", "9" * 5000], ["--loss", "x" * 5000], ["--env", "y" * 5000], ["--env", "m:" + "y" * 5000]]
    for flags in cases:
        with pytest.raises(SystemExit):
            parse_train(["dqn", "--env", "CartPole-v1", *flags])
        told = capsys.readouterr().err
        assert told.startswith("error: ") and len(told) < 600, told[:80]


def test_evaluate_says_that_there_is_no_checkpoint(tmp_path: Path) -> None:
    for place in (tmp_path / "nowhere", tmp_path):
        result = subprocess.run([sys.executable, "evaluate.py", str(place)], cwd=ROOT, capture_output=True, text=True)
        assert result.returncode == 2
        assert "checkpoint" in result.stderr
        assert "Traceback" not in result.stderr
