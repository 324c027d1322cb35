"""Supervised problems: their data by hand, the numbers of the earlier study, runs that are ordinary directories."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from agents.interventions import CBP, LayerNorm, WeightDecay
from experiments.results.runs import read_run, tasks_of
from experiments.supervised.config import SupervisedConfig, config_of, settings_from, to_json
from experiments.supervised.learner import SupervisedLearner
from experiments.supervised.problems import blurred, problem_of
from experiments.supervised.slow_regression import Inputs, Network, Target
from experiments.supervised.sweeping import made, planned, sweep, tuners
from experiments.supervised.training import train
from experiments.sweep.study import study_of
from experiments.sweep.tuning import score
from tests.experiments.test_run import one_thread  # noqa: F401

TINY = SupervisedConfig(images=40, test_images=50, task_steps=20, batch_size=16, width=16)
STUDY = {
    "question": "Which?",
    "base": {"problem": "random_labels", "images": 20, "task_steps": 20, "width": 8, "batch_size": 10},
    "grid": {"interventions": ["none", {"l2": {"rate": "1e-3"}}]},
    "seeds": 2,
}


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.long
def test_random_labels_give_what_the_earlier_study_recorded(tmp_path):
    # docs/results/random_labels.csv at commit 2221fb8, written by other code than this: arm none, seed 1, rate 3e-3
    rows = [
        {"accuracy": 0.998, "dead or linearised": 0.451172},
        {"accuracy": 0.26, "dead or linearised": 0.482422},
    ]
    train(SupervisedConfig(learning_rate=3e-3), tmp_path, [])
    found = [row for row in lines(tmp_path / "metrics.jsonl") if row["step"] in (600, 1200)]
    # another processor adds up in another order, and 600 steps make that visible in the second task
    assert found[0]["train/accuracy"] == pytest.approx(rows[0]["accuracy"], abs=0.02)
    assert found[1]["train/accuracy"] == pytest.approx(rows[1]["accuracy"], abs=0.15)
    assert found[0]["features/dead_or_linearised"] == pytest.approx(rows[0]["dead or linearised"], abs=0.05)


@pytest.mark.parametrize("problem", ["random_labels", "target_mean", "two_phases", "slow_regression"])
def test_a_run_is_a_directory_that_results_read(problem, tmp_path):
    config = replace(TINY, problem=problem)
    for name in ("a", "b"):
        train(config, tmp_path / name, ["a", "command"])
    assert lines(tmp_path / "a" / "metrics.jsonl") == lines(tmp_path / "b" / "metrics.jsonl")
    run = read_run(tmp_path / "a")
    assert run.state == ("finished", "") and run.length == run.steps == 40 and run.settings["env"] == problem
    tasks = tasks_of(run, run.settings["metric"], run.steps)
    values = {row["step"]: row.get(config.score) for row in lines(tmp_path / "a" / "metrics.jsonl")}
    assert [(task.index, task.last_step, task.last_tenth) for task in tasks] == [
        (0, 20, values[20]),
        (1, 40, values[40]),
    ]
    assert "a command" in run.command


def test_settings_come_back_and_wrong_ones_are_named():
    fields = {"problem": "target_mean", "target-mean": "100", "loss": "hl_gauss", "interventions": "layer_norm,l2"}
    config = config_of({**fields, "l2.rate": "1e-3"})
    assert config.target_mean == 100.0 and [one.name for one in config.interventions] == ["layer_norm", "l2"]
    assert config.interventions[1].rate == 1e-3
    raw = to_json(config)
    assert settings_from(raw)["target-mean"] == 100.0 and settings_from(raw)["steps"] == 1200
    for wrong, why in {
        ("gamma", "0.9"): "gamma = '0.9': must be a setting of a supervised run",
        ("tasks", "0"): "tasks = 0: must be >= 1",
        ("l2.weight", "1"): "l2.weight = '1': must be a parameter",
    }.items():
        with pytest.raises(ValueError, match=why.replace("(", "\\(")):
            config_of({**fields, wrong[0]: wrong[1]})


def test_blurring_by_hand():
    image = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    image[0, 0, :4, :4] = torch.arange(16).reshape(4, 4)  # mean 7.5, which rounds to the even 8
    image[0, 0, 4:, 4:] = 100
    found = blurred(image)[0, 0]
    assert found.dtype == torch.uint8 and (found[:4, :4] == 8).all() and (found[4:, 4:] == 100).all()
    assert (found[:4, 4:] == 0).all() and blurred(torch.full((1, 1, 6, 6), 9, dtype=torch.uint8)).unique().tolist() == [
        9
    ]


def test_first_phases_differ_from_the_second_as_they_say():
    config = replace(TINY, problem="two_phases")
    phases = {
        start: list(problem_of(replace(config, start=start)).tasks) for start in ("clean", "half", "noisy", "blurred")
    }
    images, labels = phases["clean"][1].images, phases["clean"][1].targets
    assert all(torch.equal(two.images, images) and torch.equal(two.targets, labels) for _, two in phases.values())
    assert torch.equal(phases["half"][0].images, images[:20]) and len(phases["half"][0].targets) == 20
    wrong = (phases["noisy"][0].targets != labels).sum()
    assert 10 <= wrong <= 20  # 20 are drawn anew, of which one in ten is what it was
    assert torch.equal(phases["blurred"][0].images, blurred(images))


def test_fixed_labels_stay_and_moving_ones_do_not():
    fixed, moving = (problem_of(replace(TINY, moving=moves)).tasks for moves in (False, True))
    (a, b), (c, d) = ([next(tasks).targets for _ in range(2)] for tasks in (fixed, moving))
    assert torch.equal(a, b) and torch.equal(a, c) and (c != d).float().mean() > 0.7


def test_brownian_motion_goes_as_far_and_elsewhere():
    problem = problem_of(TINY)
    task = next(problem.tasks)
    ends, begun = [], None
    for walk in (False, True):
        learner = SupervisedLearner(replace(TINY, batch_size=40), task.images, problem.outputs, problem.loss)
        begun = [p.detach().clone() for p in learner.network.parameters()]
        learner.learn(task.images, task.targets, 1, walk)
        ends.append([p.detach() - start for p, start in zip(learner.network.parameters(), begun, strict=True)])
    for descent, random in zip(*ends, strict=True):
        assert random.norm() == pytest.approx(descent.norm().item(), rel=1e-4)
        if descent.numel() > 1_000:
            assert abs((descent * random).sum() / descent.norm() / random.norm()) < 0.1


def test_a_new_network_begins_where_the_first_began(tmp_path):
    config = replace(TINY, anew=True, tasks=2, moving=False)
    train(config, tmp_path, [])
    first, second = (row for row in lines(tmp_path / "metrics.jsonl") if row["step"] in (20, 40))
    assert second["train/accuracy"] == first["train/accuracy"] and second["weights/norm"] == first["weights/norm"]


@pytest.mark.parametrize("interventions", [(), (LayerNorm(), WeightDecay(rate=1e-2)), (CBP(maturity=30),)])
def test_few_labels_are_learned_by_heart(interventions, tmp_path):
    few = SupervisedConfig(images=64, tasks=1, task_steps=60, interventions=interventions)
    train(few, tmp_path, [])
    assert lines(tmp_path / "metrics.jsonl")[-1]["train/accuracy"] > 0.9


@pytest.mark.long
def test_a_target_mean_ruins_features_and_the_output_bias_saves_them(tmp_path):
    few = SupervisedConfig(problem="target_mean", images=64, tasks=1, task_steps=150)
    ranks = {}
    for name, own in (("plain", (100.0, False)), ("zero", (0.0, False)), ("biased", (100.0, True))):
        train(replace(few, target_mean=own[0], bias_at_mean=own[1]), tmp_path / name, [])
        ranks[name] = lines(tmp_path / name / "metrics.jsonl")[-1]["features/effective_rank"]
    assert ranks["plain"] < 0.5 * ranks["zero"] and ranks["biased"] > 2 * ranks["plain"]
    train(replace(few, loss="hl_gauss"), tmp_path / "hl_gauss", [])
    assert lines(tmp_path / "hl_gauss" / "metrics.jsonl")[-1]["train/error"] < 1.0


def test_a_bias_that_begins_at_the_mean_leaves_little_to_learn(tmp_path):
    config = replace(TINY, problem="target_mean", target_mean=100.0, task_steps=10)
    for name, biased in (("plain", False), ("biased", True)):
        train(replace(config, bias_at_mean=biased), tmp_path / name, [])
    plain, biased = (lines(tmp_path / name / "metrics.jsonl")[0]["train/error"] for name in ("plain", "biased"))
    assert plain > 5_000 and biased < 10  # 100^2 and the noise's variance of 1, before much is learned
    kept = torch.load(tmp_path / "plain" / "features.pt", weights_only=True)
    assert kept["before/spectrum"].shape == kept["after/spectrum_centred"].shape == (16,)
    assert kept["after/kernel"].shape == (40, 40)


def test_the_slowly_changing_target_by_hand():
    target = Target(np.random.default_rng(1))
    x = np.zeros((1, 21))
    x[0, 20] = 1
    active = 0
    for unit in range(100):
        negatives = sum(weight == -1 for weight in target.inner[:, unit])
        if target.inner[20, unit] > 21 * 0.7 - negatives:
            active += target.outer[unit]
    assert target(x)[0] == active
    inputs = Inputs(np.random.default_rng(2))
    first, second = inputs.task(0, 50), inputs.task(1, 50)
    assert (first[:, :15] == first[0, :15]).all() and (first[0, :15] != second[0, :15]).sum() == 1
    assert 0.2 < first[:, 15:20].mean() < 0.8 and (first[:, 20] == 1).all()


@pytest.mark.parametrize("activation", ["relu", "tanh", "linear"])
def test_sgd_is_what_autograd_says(activation):
    config = SupervisedConfig(problem="slow_regression", width=5, learning_rate=0.01, activation=activation, l2=1e-2)
    network = Network(config, np.random.default_rng(3))
    x, y = np.random.default_rng(4).integers(2, size=21).astype(float), 3.0
    parameters = [torch.tensor(p, requires_grad=True) for p in (network.inner, network.outer, network.bias)]
    inner, outer, bias = parameters
    hidden = {"relu": torch.relu, "tanh": torch.tanh, "linear": None}[activation]
    features = hidden(inner @ torch.tensor(x)) if hidden else torch.tensor(x)
    loss = 0.5 * (features @ outer + bias - y) ** 2 + 0.5 * 1e-2 * ((inner**2).sum() * bool(hidden) + (outer**2).sum())
    loss.backward()
    network.learn(x, y)
    for after, before in zip((network.inner, network.outer, network.bias), parameters, strict=True):
        moved = 0.0 if before.grad is None else 0.01 * before.grad.numpy()
        assert after == pytest.approx(before.detach().numpy() - moved)


def test_a_study_that_is_broken_off_goes_on(tmp_path, monkeypatch):
    trials = planned(study_of(STUDY, "small"), tmp_path)
    assert [trial.arm for trial in trials] == ["none", "none", "l2.rate=1e-3", "l2.rate=1e-3"]
    assert len({trial.directory for trial in trials}) == 4
    said: list[str] = []
    broken = replace(trials[1], config=replace(trials[1].config, images=20_000))
    failed = sweep([trials[0], broken], 1, [], said.append)
    assert [trial for trial, _ in failed] == [broken] and "must be at most 10000" in failed[0][1]
    assert sweep(trials, 1, [], said.append) == [] and all(trial.finished for trial in trials)
    assert any("1 of 4 are finished" in line for line in said)
    before = (trials[0].directory / "metrics.jsonl").stat().st_mtime_ns
    assert (
        sweep(trials, 1, [], said.append) == [] and (trials[0].directory / "metrics.jsonl").stat().st_mtime_ns == before
    )


@pytest.mark.long
def test_rates_and_strengths_are_tuned_by_seeds_of_their_own(tmp_path):
    """Labels that the smallest rate cannot learn in so few steps, and the largest can."""
    values = {"learning_rate": ["1e-6", "1e-2"], "l2.rate": ["1e-4", "1e-3"]}
    tune = {"values": values, "seeds": [11, 12], "share": 0.5}
    study = study_of({**STUDY, "base": {**STUDY["base"], "tasks": 4, "task_steps": 60}, "tune": tune}, "small")
    tried = tuners(study, tmp_path)
    # one arm has no strength: 2 rates x 2 seeds; the other 2 rates x 2 strengths x 2 seeds; two of four tasks
    assert (
        len(tried) == 4 + 8 and {trial.config.tasks for trial in tried} == {2} and {t.seed for t in tried} == {11, 12}
    )
    assert {trial.config.learning_rate for trial in planned(study, tmp_path)} == {1e-6}  # nothing is chosen yet
    said: list[str] = []
    trials, failed = made(study, tmp_path, 1, [], said.append)
    assert not failed and all(trial.finished for trial in [*tried, *trials])
    assert [trial.tuned["learning-rate"] for trial in trials] == ["1e-2"] * 4 and {t.seed for t in trials} == {1, 2}
    assert all(trial.directory.parent.name == "trials" for trial in trials) and "12 runs tune" in said
    chosen = json.loads((tmp_path / "small/tuned.json").read_text())
    assert chosen["none"]["chosen"] == {"learning-rate": "1e-2"}
    before = (tmp_path / "small/tuned.json").stat().st_mtime_ns
    assert made(study, tmp_path, 1, [], said.append)[0] == trials
    assert (tmp_path / "small/tuned.json").stat().st_mtime_ns == before


def test_of_an_error_less_is_better(tmp_path):
    [trial, *_] = planned(study_of({**STUDY, "base": {**STUDY["base"], "problem": "target_mean"}}, "small"), tmp_path)
    sweep([trial], 1, [], lambda line: None)
    ends = [row["train/log10_error"] for row in lines(trial.directory / "metrics.jsonl") if row["step"] in (20, 40)]
    assert score(trial) == pytest.approx(-np.mean(ends))
