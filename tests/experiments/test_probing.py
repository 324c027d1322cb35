"""Probes in a run: they change nothing, come when they are due, and are written where they belong."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from experiments.cli import parse_train
from experiments.logger import read_metrics
from experiments.probe_names import probe_costs
from experiments.run import Run, TaskChange, Tick, Update
from experiments.setup import build, check
from plasticity_probes.pictures import in_colours
from plasticity_probes.probes import probes
from tests.experiments.test_run import SMALL, one_thread, run  # noqa: F401

FLAGS = {
    "dqn": [*SMALL["dqn"], "--env", "CartPole-v1"],
    "c51": [*SMALL["c51"], "--env", "CartPole-v1"],
    "ppo": [*SMALL["ppo"], "--env", "CartPole-v1", "--rollout-steps", "16"],
    "continuous ppo": ["--width", "16", "--env", "Ant-v5", "--rollout-steps", "64", "--num-minibatches", "4"],
    "tasks for dqn": [
        *(*SMALL["dqn"], "--env", "ImageMDP-v0", "--image.num-images", "40", "--max-episode-steps", "20"),
        *("--task.period", "60", "--replay.on-task-change", "clear", "--learning-rate", "1e-3"),
    ],
    "atari dqn": [
        *("--env", "ALE/Breakout-v5", "--learning-starts", "60", "--buffer-size", "400", "--width", "16"),
        *("--replay-ratio", "0.1"),
    ],
}
STEPS = {"tasks for dqn": 400, "dqn": 500, "c51": 500, "ppo": 600, "continuous ppo": 200, "atari dqn": 140}


def trace(kind: str, probes: str) -> dict:
    """Everything that a run leaves behind, with probes of `probes` or without."""
    algorithm = kind.split()[-1]
    flags = ["--threads", "1", "--probe.every", "60", "--probe.samples", "32", "--probe.heavy-samples", "6"]
    config = parse_train([algorithm, *FLAGS[kind], "--steps", str(STEPS[kind]), *flags, "--probes", probes])
    world, agent = build(config)
    prober = None
    if probes != "none":
        from agents.probing import subject_of
        from agents.randomness import Generators
        from plasticity_probes.prober import Prober

        settings = config.probe
        prober = Prober(
            subject_of(agent, Generators(1)), ("all", "sharpness"), 60, 2, settings.samples, settings.heavy_samples
        )
        prober.tell = pytest.fail  # no probe may fail here
    returns, actions, count = [], [], 0
    act = agent.act
    agent.act = lambda observations: (actions.append(act(observations)), actions[-1])[1]
    before = torch.random.get_rng_state()
    for event in Run(agent, world, STEPS[kind]):
        if isinstance(event, Tick):
            returns += [episode.episodic_return for episode in event.episodes]
            if prober is not None and prober.due(event.step):
                count += prober.measure(event.step) is not None
        elif isinstance(event, Update) and prober is not None:
            prober.after_update()
        elif isinstance(event, TaskChange) and prober is not None:
            prober.measure(event.step, boundary=True)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert prober is None or count >= 2
    assert all(not module._forward_hooks for module in agent.network.modules())
    return {
        "state": agent.state_dict(),
        "returns": returns,
        "actions": np.stack(actions),
        "memory": _memory(agent),
        "gradients": [p.grad for p in agent.network.parameters()],
        "training": [module.training for module in agent.network.modules()],
    }


def _memory(agent) -> list:
    if hasattr(agent, "replay"):
        replay = agent.replay
        arrays = [
            replay.observations.numpy(),
            replay.actions,
            replay.rewards,
            replay.written,
            replay.filled,
            replay.tasks,
        ]
        arrays += [replay.ages, replay.terminal, replay.ended, replay.final]
        return [array.copy() for array in arrays] + [replay.generator.bit_generator.state, agent.exploration.random()]
    return [agent.rollout.observations.numpy().copy(), agent.exploration.get_state().numpy()]


def equal(one: object, other: object) -> bool:
    """Whether two nests of tensors, arrays and numbers are the same to the bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return np.array_equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(value, other[key]) for key, value in one.items())
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(equal(a, b) for a, b in zip(one, other, strict=True))
    return one == other


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.long if "atari" in kind else ()) for kind in FLAGS]
)
def test_a_run_with_all_probes_is_the_run_without_to_the_bit(kind: str) -> None:
    without, with_probes = trace(kind, "none"), trace(kind, "all")
    for part, value in without.items():
        assert equal(value, with_probes[part]), part


def test_a_run_writes_scalars_histograms_pictures_and_its_batches(tmp_path: Path) -> None:
    flags = [*SMALL["dqn"], "--task.change", "rewards", "--task.period", "300", "--probes", "all"]
    path, code, printed = run(
        tmp_path, "dqn", "CartPole-v1", 700, *flags, "--probe.every", "100", "--probe.samples", "64"
    )
    assert code == 0
    assert "failed" not in printed
    metrics = read_metrics(path / "metrics.jsonl")
    steps, values = metrics["probes/dormant_fraction/tau=0.025/all"]
    assert steps[-1] >= 700 and all(0 <= value <= 1 for value in values)
    boundaries = metrics["tasks/mean_return"][0]
    assert set(boundaries) <= set(steps)  # at task boundaries too
    heavy = metrics["probes/ntk/max_q/rank"][0]
    assert set(boundaries) <= set(heavy) and len(heavy) < len(steps)
    # at every probe: two points far from a run's are outliers to TensorBoard, and a run that goes on had no line
    assert metrics["probes_fresh/srank/raw/dense2"][0] == sorted(set(steps))
    assert len(set(metrics["probes_fresh/srank/raw/dense2"][1])) == 1
    assert metrics["probes/churn/value"][1][-1] > 0
    events = EventAccumulator(str(path))
    events.Reload()
    tags = events.Tags()
    assert "probes/unit_scores/dense1" in tags["histograms"]
    assert "probes/singular_values/raw/dense2" in tags["histograms"]
    assert {"probes/ntk/max_q", "probes/gradient_covariance"} <= set(tags["images"])
    reference = torch.load(path / "probes" / "reference.pt", weights_only=True)
    current = torch.load(path / "probes" / "current.pt", weights_only=True)
    assert reference["observations"].shape == current["observations"].shape == (64, 4)
    assert not torch.equal(reference["observations"], current["observations"])


def test_without_probes_nothing_is_measured(tmp_path: Path) -> None:
    path, _, _ = run(tmp_path, "dqn", "CartPole-v1", 400, *SMALL["dqn"], "--probes", "none", "--probe.every", "50")
    assert not any(tag.startswith("probes") for tag in read_metrics(path / "metrics.jsonl"))
    assert not (path / "probes").exists()


def test_an_unknown_probe_is_refused_by_name() -> None:
    config = parse_train(["dqn", "--env", "CartPole-v1", "--probes", "ranks", "rnaks"])
    with pytest.raises(ValueError, match="probes = 'rnaks': must be some of default, all, none, adam"):
        check(config)


def test_the_names_known_without_torch_are_those_there_are() -> None:
    assert probe_costs() == {name: probe.cost for name, probe in probes().items()}


def test_boundary_probes_come_before_the_agent_hears_of_the_task() -> None:
    flags = [*SMALL["dqn"], "--task.change", "rewards", "--task.period", "200", "--threads", "1"]
    config = parse_train(["dqn", "--env", "CartPole-v1", "--steps", "600", *flags])
    world, agent = build(config)
    heard = []
    agent.on_task_change = lambda: heard.append(agent.clock.steps)
    for event in Run(agent, world, 600):
        if isinstance(event, TaskChange) and event.step:
            assert event.step not in heard
    assert len(heard) >= 2


def test_colours_of_a_picture() -> None:
    image = in_colours(torch.tensor([[1.0, 0.0], [-1.0, float("nan")]]))
    assert image.shape == (3, 256, 256) and image.dtype == torch.uint8
    assert image[:, 0, 0].tolist() == [255, 0, 0]  # 1 is red
    assert image[:, 0, 255].tolist() == [255, 255, 255]  # 0 is white
    assert image[:, 255, 0].tolist() == [0, 0, 255]  # -1 is blue


def test_a_boundary_that_falls_on_a_probes_step_is_measured_in_full(tmp_path: Path) -> None:
    flags = [*SMALL["dqn"], "--image.num-images", "40", "--max-episode-steps", "50", "--task.period", "200"]
    options = ["--probe.every", "200", "--probe.samples", "64", "--probe.heavy-samples", "8", "--probes", "all"]
    path, _, _ = run(tmp_path, "dqn", "ImageMDP-v0", 700, *flags, *options)
    metrics = read_metrics(path / "metrics.jsonl")
    assert metrics["tasks/mean_return"][0] == [200, 400, 600, 700]
    assert metrics["probes/ntk/max_q/rank"][0] == [200, 400, 600, 700]  # once each: the boundary's stands
    assert metrics["probes/dead_fraction/all"][0] == [200, 400, 600, 700]
    events = EventAccumulator(str(path), size_guidance={"images": 0})
    events.Reload()
    assert [image.step for image in events.Images("probes/gradient_covariance")] == [200, 400, 600, 700]


def test_what_was_measured_is_written_when_a_run_is_stopped(tmp_path: Path) -> None:
    flags = [*SMALL["dqn"], "--probe.every", "120", "--probe.samples", "32", "--log-every", "100000"]
    path, code, printed = run(tmp_path, "dqn", "GoesWrong-reward-v0", 300, *flags)
    assert code == 1 and "stopped" in printed
    assert read_metrics(path / "metrics.jsonl")["probes/dead_fraction/all"][0] == [120]


def test_nothing_is_measured_twice_between_two_rollouts(tmp_path: Path) -> None:
    flags = ["--rollout-steps", "100", "--num-envs", "1", "--probe.every", "20", "--probes", "units"]
    path, _, _ = run(tmp_path, "ppo", "CartPole-v1", 450, *SMALL["ppo"], *flags)
    # learned at steps 100, 200, 300 and 400, each known at the next tick; and the end
    assert read_metrics(path / "metrics.jsonl")["probes/dead_fraction/all"][0] == [101, 201, 301, 401, 450]


def test_too_few_examples_are_told_of_once(tmp_path: Path) -> None:
    flags = ["--env", "CartPole-v1", "--probe.samples", "512", "--probe.every", "100"]
    _, _, printed = run(tmp_path, "ppo", "CartPole-v1", 600, *SMALL["ppo"], *flags[2:])
    assert printed.count("asked for 512 examples and got 256") == 1
    _, _, printed = run(tmp_path, "dqn", "CartPole-v1", 300, *SMALL["dqn"], *flags[2:])
    assert printed.count("no probe was taken: there were never 512 examples") == 1
