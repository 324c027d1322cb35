"""Runs in which a step's result is not finite: they stop, say where and since when, and spoil no checkpoint."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from experiments.cli import parse_train
from experiments.evaluate import evaluate
from experiments.evaluate_config import EvaluateConfig
from experiments.offline_probes import probe_checkpoints
from experiments.run import Run
from experiments.run_directory import load_checkpoint
from tests.experiments.older_format import as_one_file
from tests.experiments.test_run import SMALL, run

NAN, INF = float("nan"), float("inf")
ROOT = Path(__file__).parents[2]
OFTEN = ["--log-every", "50", "--checkpoint-every", "50"]


def checkpoints(path: Path) -> list[str]:
    return sorted(file.name for file in (path / "checkpoints").iterdir())


def all_finite(path: Path) -> bool:
    """Every tensor of every checkpoint, by a walk of its own."""

    def finite(node: object) -> bool:
        if isinstance(node, torch.Tensor):
            return not node.is_floating_point() or bool(torch.isfinite(node).all())
        if isinstance(node, dict):
            return all(map(finite, node.values()))
        return all(map(finite, node)) if isinstance(node, (list, tuple)) else True

    return all(finite(torch.load(file, weights_only=True)) for file in (path / "checkpoints").rglob("agent.pt"))


CASES = {
    "a learning rate": ("CartPole-v1", ["--learning-rate", "1e38"], r"not finite: network\."),
    "a penalty": ("CartPole-v1", ["--interventions", "l2", "--l2.rate", "1e30"], "not finite: Adam's exp_avg_sq of "),
    "batch norm": ("GoesHuge-v0", ["--interventions", "batch_norm"], r"not finite: network\..*norm1\.running_var"),
}


@pytest.mark.parametrize("algorithm", ["dqn", "c51", "ppo"])
@pytest.mark.parametrize("case", CASES)
def test_a_result_that_is_not_finite_stops_the_run_and_is_never_saved(
    algorithm: str, case: str, tmp_path: Path
) -> None:
    env, flags, expected = CASES[case]
    path, code, printed = run(tmp_path, algorithm, env, 600, *SMALL[algorithm], *OFTEN, *flags)
    assert code == 1
    assert printed.count("stopped at step") == 1
    assert re.search(expected, printed), printed
    assert "it came about between gradient steps 0 (when all was finite) and " in printed
    assert "the weights are as before" not in printed
    assert all_finite(path)
    last = path / "checkpoints" / checkpoints(path)[-1]
    assert last.name.startswith("step_") and load_checkpoint(last)[1] < 600
    assert f"nothing was saved of it; the last good checkpoint is {last} (step {load_checkpoint(last)[1]:,})" in printed


def test_a_normaliser_of_huge_observations_stops_the_run_and_the_world_is_never_given_nan(tmp_path: Path) -> None:
    flags = ["--rollout-steps", "64", "--num-minibatches", "2", "--num-envs", "1", "--normalize-observations"]
    # no line of the log is due between the update that spoils the statistics and the end
    rare = ["--log-every", "100000", "--checkpoint-every", "100000"]
    path, code, printed = run(tmp_path, "ppo", "GoesHugeLater-v0", 800, *SMALL["ppo"], *flags, *rare)
    assert code == 1  # and no assertion of the world failed
    assert "not finite: network.normalizer.variance" in printed
    assert checkpoints(path) == ["step_000000000000"]


def spoiled(after: int, stop: type[BaseException] | None):
    """The loop, with a NaN in the last weight from update `after` on, which no loss shows; then `stop` is raised."""
    original = Run.tick

    def tick(self):
        def blind(**watched):
            return torch.zeros(())

        yield from original(self)
        if self.clock.gradient_steps == after:
            with torch.no_grad():
                list(self.agent.network.parameters())[-1][-1] = NAN
            self.agent.learner.optimization.step = blind
            if stop is not None:
                raise stop

    return tick


def test_on_ctrl_c_nothing_that_is_not_finite_is_saved_over_what_is_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Run, "tick", spoiled(40, KeyboardInterrupt))
    path, code, printed = run(tmp_path, "dqn", "CartPole-v1", 600, *SMALL["dqn"], *OFTEN)
    assert code == 130
    assert re.search(
        r"interrupted at step \d+: not finite: network\.head\.bias; .*between gradient steps \d+ .* and 40", printed
    )
    assert "nothing was saved of it; the last good checkpoint is " in printed
    assert all_finite(path)
    assert checkpoints(path)


def test_where_no_line_and_no_checkpoint_is_due_the_final_save_finds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Run, "tick", spoiled(40, None))
    monkeypatch.setattr("experiments.logger.Logger.flush", lambda self, step: None)
    path, code, printed = run(tmp_path, "dqn", "CartPole-v1", 400, *SMALL["dqn"], "--checkpoint-every", "100000")
    assert code == 1
    assert "not finite: network.head.bias" in printed
    assert checkpoints(path) == ["step_000000000000"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    probes = ["--probe.samples", "50", "--probes", "weights"]
    path, code, _ = run(tmp_path_factory.mktemp("runs"), "dqn", "CartPole-v1", 300, *SMALL["dqn"], *probes)
    assert code == 0
    return as_one_file(path)


@pytest.mark.parametrize("tensor", ["head.bias", "torso.layers.dense1.weight"])
@pytest.mark.parametrize("value", [NAN, INF])
def test_weights_that_are_not_finite_are_neither_played_nor_probed(finished: Path, tensor: str, value: float) -> None:
    content = torch.load(finished / "checkpoints" / "final.pt", weights_only=True)
    spoiled = content["agent"]["network"][tensor]
    spoiled[(-1,) * spoiled.dim()] = value
    bad = finished / "checkpoints" / f"spoiled_{value}.pt"
    torch.save(content, bad)
    expected = rf"checkpoint = '{bad}': its network is not finite: {tensor}"
    with pytest.raises(ValueError, match=re.escape(expected)):
        evaluate(EvaluateConfig(bad, episodes=1))
    with pytest.raises(ValueError, match=re.escape(expected)):
        probe_checkpoints(EvaluateConfig(bad, probe=("weights",)))


def test_evaluate_says_so_in_one_sentence_with_code_2(finished: Path) -> None:
    content = torch.load(finished / "checkpoints" / "final.pt", weights_only=True)
    content["agent"]["network"]["head.bias"].fill_(NAN)
    bad = finished / "checkpoints" / "command.pt"
    torch.save(content, bad)
    done = subprocess.run([sys.executable, "evaluate.py", str(bad)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [f"error: checkpoint = '{bad}': its network is not finite: head.bias"]


def test_infinite_moments_alone_do_not_keep_weights_from_being_played(finished: Path) -> None:
    content = torch.load(finished / "checkpoints" / "final.pt", weights_only=True)
    content["agent"]["optimization"]["adam"]["state"][0]["exp_avg_sq"].fill_(INF)
    other = finished / "checkpoints" / "moments.pt"
    torch.save(content, other)
    assert evaluate(EvaluateConfig(other, episodes=1))["episodes"] == 1


# -- settings --------------------------------------------------------------------------------------------------------

DQN, ANT = ["dqn", "--env", "CartPole-v1"], ["ppo", "--env", "FrictionAnt-v0"]
REFUSED = {
    "adam.eps": [*DQN, "--adam.eps", "1e-50"],
    "epsilon.end": [*DQN, "--epsilon.end", "1e-50"],
    "adam.betas": [*DQN, "--adam.betas", "0.9", "0.99999999"],  # 1 in float32: the second moment would stay 0
    "learning_rate": [*DQN, "--learning-rate", "1e-46"],
    "max_grad_norm": [*DQN, "--max-grad-norm", "inf"],
    "gamma": [*DQN, "--gamma", "1e-39"],  # subnormal
    "v_max": [*DQN, "--loss", "hl_gauss", "--v-max", "1e39"],
    "v_min": [*DQN, "--loss", "hl_gauss", "--v-min", "-1e39"],
    "tau": [*DQN, "--tau", "1e-300"],
    "hl_gauss_sigma": [*DQN, "--hl-gauss-sigma", "1e-45"],
    "ent_coef": ["ppo", "--env", "CartPole-v1", "--ent-coef", "1e300"],
    "clip_coef": ["ppo", "--env", "CartPole-v1", "--clip-coef", "1e-60"],
    "task.reward_step": [*DQN, "--task.period", "100", "--task.change", "rewards", "--task.reward-step", "1e300"],
    "friction.high": [*ANT, "--friction.high", "1e39"],
    "contact_cost_weight": ["ppo", "--env", "Ant-v5", "--contact-cost-weight", "1e-39"],
    "l2.rate": [*DQN, "--interventions", "l2", "--l2.rate", "1e39"],
    "weight_clip.kappa": [*DQN, "--interventions", "weight_clip", "--weight-clip.kappa", "1e-46"],
    "infer.beta": [*DQN, "--interventions", "infer", "--infer.beta", "1e40"],
    "adam_betas.betas": [*DQN, "--interventions", "adam_betas", "--adam-betas.betas", "0.99", "0.9999999999"],
    "cbp.decay": [*DQN, "--interventions", "cbp", "--cbp.decay", "0.999999999999"],
    "shrink_perturb.perturb": [*DQN, "--interventions", "shrink_perturb", "--shrink-perturb.perturb", "1e-320"],
}


@pytest.mark.parametrize("field", REFUSED)
def test_a_setting_that_float32_does_not_hold_is_refused_by_name(field: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as left:
        parse_train(REFUSED[field])
    said = capsys.readouterr().err
    assert left.value.code == 2
    assert said.startswith(f"error: {field} = ")
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize("field", [field for field in REFUSED if field not in ("adam.betas", "adam_betas.betas")])
@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_no_float_flag_takes_what_is_not_finite(field: str, value: str, capsys: pytest.CaptureFixture) -> None:
    *arguments, flag, _ = REFUSED[field]
    with pytest.raises(SystemExit) as left:
        parse_train([*arguments, f"{flag}={value}"])
    assert left.value.code == 2
    assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize(("v_min", "v_max"), [("1e8", "100000001"), ("-3e38", "3e38"), ("0", "1e-44")])
def test_atoms_that_float32_cannot_tell_apart_are_refused(
    v_min: str, v_max: str, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit):
        parse_train(["c51", "--env", "CartPole-v1", f"--v-min={v_min}", f"--v-max={v_max}"])
    assert capsys.readouterr().err.startswith("error: v_max = ")


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e-50", "1e999", "1" + "0" * 400])
def test_a_file_is_refused_as_flags_are(value: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file = tmp_path / "config.json"
    agent = f'{{"learning_rate": {value}}}'
    file.write_text('{"algorithm": "dqn", "world": {"env": "CartPole-v1"}, "agent": ' + agent + "}")
    with pytest.raises(SystemExit) as left:
        parse_train(["--config", str(file)])
    assert left.value.code == 2
    assert "learning_rate" in capsys.readouterr().err


def test_settings_that_float32_holds_are_taken() -> None:
    flags = ["--adam.eps", "2e-38", "--learning-rate", "1e38", "--gamma", "0.9999999", "--max-grad-norm", "0"]
    agent = parse_train([*DQN, *flags]).agent
    assert (agent.adam.eps, agent.learning_rate.start) == (2e-38, 1e38)
    assert (agent.gamma, agent.max_grad_norm) == (0.9999999, 0.0)
