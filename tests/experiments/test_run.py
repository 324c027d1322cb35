"""Whole runs: what they leave behind, that they repeat to the bit, and that they stop when something is not finite."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from experiments.cli import parse_train
from experiments.config import to_dict
from experiments.logger import read_metrics
from experiments.run import Run
from experiments.run_directory import find_checkpoint, load_checkpoint
from experiments.setup import build, check
from experiments.train import train
from tests.experiments import worlds  # noqa: F401  (registers them)

SMALL = {
    "dqn": ["--learning-starts", "100", "--buffer-size", "500", "--width", "16", "--target-period", "20"],
    "c51": ["--learning-starts", "100", "--buffer-size", "500", "--width", "16", "--target-period", "20"],
    "ppo": ["--width", "16"],
}
ATARI = ["--learning-starts", "60", "--buffer-size", "500", "--width", "16"]


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def run(tmp_path: Path, algorithm: str, env: str, steps: int, *flags: str) -> tuple[Path, int, str]:
    """(run directory, exit code, what was printed)."""
    arguments = [algorithm, "--env", env, "--steps", str(steps), "--runs-dir", str(tmp_path), "--threads", "1"]
    config = parse_train([*arguments, *flags])
    check(config)
    printed = io.StringIO()
    done = train(config, *build(config), Console(file=printed, width=120))
    return done.directory, done.exit_code, printed.getvalue()


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(find_checkpoint(path))[2]["network"]


@pytest.mark.parametrize("algorithm", ["dqn", "c51", "ppo"])
def test_a_run_leaves_settings_manifest_curves_and_weights(algorithm: str, tmp_path: Path) -> None:
    path, code, printed = run(tmp_path, algorithm, "CartPole-v1", 600, *SMALL[algorithm])
    assert code == 0
    config, step, state = load_checkpoint(find_checkpoint(path))
    assert json.loads((path / "config.json").read_text()) == to_dict(config)
    assert step >= 600
    assert set(state) >= {"network", "optimization"}
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["versions"]["torch"] == torch.__version__
    assert manifest["torch_threads"] == 1
    assert len(list((path / "checkpoints").glob("step_*"))) == 2
    assert "\x1b" not in printed  # plain lines where there is no terminal
    assert "step 600/600" in printed


@pytest.mark.parametrize("algorithm", ["dqn", "c51", "ppo"])
def test_tensorboard_and_jsonl_hold_the_same_tags_and_values(algorithm: str, tmp_path: Path) -> None:
    path, _, _ = run(tmp_path, algorithm, "CartPole-v1", 600, *SMALL[algorithm])
    series = read_metrics(path / "metrics.jsonl")
    events = EventAccumulator(str(path), size_guidance={"scalars": 0}).Reload()
    assert set(events.Tags()["scalars"]) == set(series)
    for tag, (steps, values) in series.items():
        assert [event.step for event in events.Scalars(tag)] == steps
        np.testing.assert_allclose([event.value for event in events.Scalars(tag)], values, rtol=1e-6)
    expected = {"charts/episodic_return", "charts/episodic_length", "charts/SPS", "targets/mean", "targets/std"}
    own = {"dqn": {"losses/td_loss", "losses/q_values"}, "c51": {"losses/q_values", "targets/clipped_share"}}
    ppo = "policy_loss value_loss entropy approx_kl clipfrac explained_variance gradient_norm"
    assert set(series) >= expected | own.get(algorithm, {f"losses/{name}" for name in ppo.split()})


def test_logged_returns_are_the_games_own(tmp_path: Path) -> None:
    path, _, _ = run(tmp_path, "dqn", "CartPole-v1", 400, "--reward-transform", "center", *SMALL["dqn"])
    series = read_metrics(path / "metrics.jsonl")
    assert series["charts/episodic_return"] == series["charts/episodic_length"]  # CartPole pays 1 a step


@pytest.mark.parametrize(
    ("algorithm", "env", "flags"),
    [
        ("dqn", "CartPole-v1", SMALL["dqn"]),
        ("ppo", "CartPole-v1", SMALL["ppo"]),
        pytest.param("c51", "ALE/Pong-v5", [*ATARI, "--num-envs", "2"], marks=pytest.mark.long),
        ("ppo", "Ant-v5", ["--rollout-steps", "64", "--num-minibatches", "2", "--width", "16"]),
    ],
)
def test_the_same_seed_repeats_to_the_bit(algorithm: str, env: str, flags: list[str], tmp_path: Path) -> None:
    steps = 160
    first, again = (run(tmp_path, algorithm, env, steps, "--seed", "3", *flags)[0] for _ in range(2))
    assert first != again  # nothing was overwritten
    for name, tensor in weights(first).items():
        assert torch.equal(tensor, weights(again)[name]), name
    other = run(tmp_path, algorithm, env, steps, "--seed", "4", *flags)[0]
    assert any(not torch.equal(tensor, weights(other)[name]) for name, tensor in weights(first).items())


def test_config_json_replays_the_run(tmp_path: Path) -> None:
    first, _, _ = run(tmp_path / "a", "dqn", "CartPole-v1", 300, *SMALL["dqn"])
    config = parse_train(["--config", str(first / "config.json"), "--runs-dir", str(tmp_path / "b")])
    again = train(config, *build(config)).directory
    for name, tensor in weights(first).items():
        assert torch.equal(tensor, weights(again)[name]), name


@pytest.mark.parametrize("backend", ["envpool", "ale", "gymnasium"])
@pytest.mark.parametrize("algorithm", ["dqn", "c51"])
def test_value_agents_train_on_every_atari_backend(algorithm: str, backend: str, tmp_path: Path) -> None:
    flags = [*ATARI, "--backend", backend, "--num-envs", "2", "--life-loss-discount", "--n-step", "3"]
    path, code, _ = run(tmp_path, algorithm, "ALE/Breakout-v5", 120, *flags)
    assert code == 0
    assert np.isfinite(read_metrics(path / "metrics.jsonl")["losses/td_loss"][1]).all()


@pytest.mark.parametrize("backend", ["envpool", "gymnasium"])
@pytest.mark.parametrize("preset", ["cleanrl_continuous", "dohare24_ant"])
def test_ppo_trains_on_ant(preset: str, backend: str, tmp_path: Path) -> None:
    flags = ["--preset", preset, "--backend", backend, "--rollout-steps", "128", "--num-minibatches", "2"]
    path, code, _ = run(tmp_path, "ppo", "Ant-v5", 256, *flags)
    assert code == 0
    assert "losses/approx_kl" in read_metrics(path / "metrics.jsonl")


@pytest.mark.parametrize("loss", ["huber", "mse", "two_hot", "hl_gauss"])
def test_every_dqn_loss_trains(loss: str, tmp_path: Path) -> None:
    path, code, _ = run(tmp_path, "dqn", "CartPole-v1", 300, "--loss", loss, "--v-max", "100", *SMALL["dqn"])
    assert code == 0
    clipped = "targets/clipped_share" in read_metrics(path / "metrics.jsonl")
    assert clipped == (loss in ("two_hot", "hl_gauss"))


@pytest.mark.parametrize("flags", [["--value-loss", "hl_gauss"], ["--shared-torso"], ["--precision", "bf16"]])
def test_ppo_variants_train(flags: list[str], tmp_path: Path) -> None:
    assert run(tmp_path, "ppo", "CartPole-v1", 600, *SMALL["ppo"], *flags)[1] == 0


def test_replay_ratio_above_one(tmp_path: Path) -> None:
    path, _, _ = run(tmp_path, "dqn", "CartPole-v1", 200, *SMALL["dqn"], "--replay-ratio", "2.5")
    assert load_checkpoint(find_checkpoint(path))[2]["clock"]["gradient_steps"] == 250


@pytest.mark.parametrize("what", ["reward", "observation"])
@pytest.mark.parametrize("algorithm", ["dqn", "ppo"])
def test_something_not_finite_stops_the_run_and_spares_the_weights(algorithm: str, what: str, tmp_path: Path) -> None:
    flags = [*SMALL[algorithm], "--num-envs", "1", "--log-every", "50"]
    path, code, printed = run(tmp_path, algorithm, f"GoesWrong-{what}-v0", 400, *flags)
    assert code == 1
    assert f"{what} is not finite" in printed
    assert "step 1" in printed
    assert read_metrics(path / "metrics.jsonl")["charts/SPS"][0][-1] >= 100  # what was logged is kept
    (newest,) = (path / "checkpoints").glob("crashed_*")
    state = load_checkpoint(newest)[2]["network"]
    assert all(torch.isfinite(tensor).all() for tensor in state.values())


def test_a_library_is_told_the_end_and_nothing_is_printed(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    flags = ["--env", "CartPole-v1", "--steps", "300", "--runs-dir", str(tmp_path), "--threads", "1"]
    config = parse_train(["dqn", *flags, *SMALL["dqn"], "--interventions", "redo"])
    capfd.readouterr()
    done = train(config, *build(config))
    assert capfd.readouterr() == ("", "")
    assert (done.ending, done.why, done.exit_code, done.step) == ("finished", "", 0, 300)
    assert done.checkpoint == done.directory / "checkpoints" / "step_000000000300"
    config = parse_train(["dqn", "--env", "GoesWrong-reward-v0", *flags[2:], *SMALL["dqn"]])
    done = train(config, *build(config))
    assert capfd.readouterr() == ("", "")
    assert (done.ending, done.exit_code, done.step) == ("not finite", 1, 149)
    assert done.why.startswith("reward is not finite")


def test_a_checkpoint_is_taken_when_what_its_tick_owes_is_learned(tmp_path: Path) -> None:
    flags = [*SMALL["dqn"], "--num-envs", "3", "--checkpoint-every", "100", "--replay-ratio", "0.5"]
    path, _, _ = run(tmp_path, "dqn", "CartPole-v1", 450, *flags, "--keep-checkpoints", "0")
    saved = [load_checkpoint(file)[1:] for file in sorted((path / "checkpoints").glob("step_*"))]
    # at the start, at the first ticks at which a multiple of 100 is reached, and at the end
    assert [step for step, _ in saved] == [0, 102, 201, 300, 402, 450]
    made = [state["clock"]["gradient_steps"] for _, state in saved]
    assert made == [max(0, step - 100) // 2 for step, _ in saved]


def test_an_interrupted_run_keeps_its_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self):
        if self.clock.steps == 110:
            raise KeyboardInterrupt
        return original(self)

    original = Run.tick
    monkeypatch.setattr(Run, "tick", interrupted)
    path, code, printed = run(tmp_path, "dqn", "CartPole-v1", 300, *SMALL["dqn"])
    assert code == 130
    assert "interrupted" in printed
    assert (path / "checkpoints" / "crashed_000000000110").exists()  # in the middle of a step: to evaluate, no more
    assert find_checkpoint(path).name == "step_000000000090"


def test_the_bar_is_shown_in_a_terminal(tmp_path: Path) -> None:
    config = parse_train(["ppo", "--env", "CartPole-v1", "--steps", "300", "--runs-dir", str(tmp_path)])
    printed = io.StringIO()
    train(config, *build(config), Console(file=printed, force_terminal=True, width=140))
    assert "steps/s" in printed.getvalue()
    assert "return" in printed.getvalue()
