"""Runs in worlds that change: what is told, logged, refused and played again."""

import json
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from agents.randomness import Generators
from experiments.cli import parse_train
from experiments.evaluate import evaluate
from experiments.evaluate_config import EvaluateConfig
from experiments.logger import read_metrics
from experiments.run import Run, TaskChange, Tick, Update
from experiments.setup import build, check, world_settings
from tests.experiments.test_run import SMALL, one_thread, run  # noqa: F401

SHIFTING = ["--task.change", "rewards", "--task.period", "200"]


def settings(algorithm: str, env: str, *flags: str):
    return parse_train([algorithm, "--env", env, "--steps", "600", "--threads", "1", *flags])


def test_a_run_tells_logs_and_sums_up_its_tasks(tmp_path: Path) -> None:
    path, code, printed = run(tmp_path, "dqn", "CartPole-v1", 700, *SMALL["dqn"], *SHIFTING)
    assert code == 0
    assert "step 0: task 0, reward_offset 0" in printed
    lines = [json.loads(line) for line in (path / "tasks.jsonl").read_text().splitlines()]
    assert [line["parameters"] for line in lines] == [{"reward_offset": float(k)} for k in range(len(lines))]
    assert len(lines) >= 3
    assert all(line["first_step"] >= 200 * line["task"] for line in lines)
    metrics = read_metrics(path / "metrics.jsonl")
    assert metrics["tasks/reward_offset"][1][-1] == len(lines) - 1
    assert metrics["tasks/index"][1] == sorted(metrics["tasks/index"][1])
    assert metrics["tasks/mean_return"][1] == pytest.approx([line["mean_return"] for line in lines])
    assert metrics["tasks/last_tenth_return"][0] == [line["last_step"] for line in lines if line["last_tenth_return"]]
    events = EventAccumulator(str(path), size_guidance={"tensors": 0})
    events.Reload()
    told = [event.tensor_proto.string_val[0].decode() for event in events.Tensors("tasks/changes/text_summary")]
    assert len(told) == len(lines)
    assert told[1].endswith("task 1, reward_offset 1")


@pytest.mark.parametrize("num_envs", [1, 3])
def test_the_agent_hears_of_a_task_once_when_the_last_environment_has_entered_it(num_envs: int) -> None:
    config = settings("dqn", "CartPole-v1", *SMALL["dqn"], *SHIFTING, "--num-envs", str(num_envs))
    world, agent = build(config)
    heard, agent.on_task_change = [], lambda: heard.append(agent.clock.steps)
    step, tasks, told = world.step, [], []
    world.step = lambda actions: (tasks.append(step(actions)), tasks[-1])[1]
    for event in Run(agent, world, 900):
        if isinstance(event, TaskChange):
            told.append((event.step, event.task))
    lowest = [int(infos["task_index"].min()) for *_, infos in tasks]
    before = [0, *lowest[:-1]]
    rises = [tick for tick, (old, new) in enumerate(zip(before, lowest, strict=True)) if new > old]
    expected = [(0, 0)] + [((tick + 1) * num_envs, lowest[tick]) for tick in rises]
    assert told == expected
    assert heard == [when for when, _ in expected[1:]]
    assert len(expected) >= 3


@pytest.mark.parametrize("mode", ["keep", "clear"])
def test_replay_of_the_current_task(mode: str) -> None:
    flags = [*SMALL["dqn"], *SHIFTING, "--num-envs", "2", "--replay.on-task-change", mode]
    world, agent = build(settings("dqn", "CartPole-v1", *flags))
    shares, after_changes, changed = [], [], False
    for event in Run(agent, world, 700):
        if isinstance(event, Tick):
            shares.append(agent.scalars()["replay/current_task_share"])
            after_changes += [shares[-1]] if changed else []
            changed = False
        elif isinstance(event, TaskChange):
            changed = event.step > 0
    assert shares[0] == 1.0
    assert len(after_changes) >= 2
    for share in after_changes:
        assert 0.0 < share < 0.5 if mode == "keep" else share == 1.0
    if mode == "clear":
        assert shares[-1] == 1.0
    else:
        assert 0.0 < shares[-1] < 1.0


REFUSED = {
    "learning_rate": ["ppo", "CartPole-v1", "--learning-rate.over"],
    "epsilon": ["dqn", "CartPole-v1", "--epsilon.over"],
}


@pytest.mark.parametrize("field", REFUSED)
def test_annealing_over_the_run_is_refused_where_the_world_changes(field: str) -> None:
    algorithm, env, flag = REFUSED[field]
    for once in ("500", "run", "0.5-of-run"):
        with pytest.raises(ValueError, match=f"{field}.over = '{once}': must be constant, or anew in every task"):
            check(settings(algorithm, env, flag, once, *SHIFTING))
        check(settings(algorithm, env, flag, once))
    for steady in ("constant", "task", "0.1-of-task", "50-steps-of-task"):
        check(settings(algorithm, env, flag, steady, *SHIFTING))
    check(settings(algorithm, env, *SHIFTING))  # the preset itself anneals over the run only where nothing changes


@pytest.mark.parametrize("algorithm", ["dqn", "ppo"])
def test_annealing_per_task_begins_anew(algorithm: str) -> None:
    over = {"dqn": "--epsilon.over 50-steps-of-task", "ppo": "--learning-rate.over 100-steps-of-task --num-envs 1"}
    config = settings(algorithm, "CartPole-v1", *SMALL[algorithm], *over[algorithm].split(), *SHIFTING)
    world, agent = build(config)
    name = {"dqn": "charts/epsilon", "ppo": "charts/learning_rate"}[algorithm]
    falls, values = [], []
    for event in Run(agent, world, 1200):
        if isinstance(event, TaskChange):
            falls.append(event.step)
        elif isinstance(event, Update if algorithm == "ppo" else Tick):
            values.append((event.step, agent.scalars()[name]))
    highest = max(value for _, value in values)
    assert len(falls) >= 3
    for change in falls[1:-1]:
        after = [value for step, value in values if change < step <= change + 190]
        assert after[0] == pytest.approx(highest, rel=0.1)
        assert min(after) < 0.2 * highest


def test_methods_meet_the_same_tasks() -> None:
    configs = [
        settings("dqn", "CartPole-v1", *SMALL["dqn"], *SHIFTING, "--task.change", "observations"),
        settings("c51", "CartPole-v1", "--width", "24", *SHIFTING, "--task.change", "observations"),
        settings("ppo", "CartPole-v1", *SHIFTING, "--task.change", "observations"),
    ]
    tasks = [[build(config)[0].schedule.task(k).parameters for k in range(6)] for config in configs]
    assert tasks[0] == tasks[1] == tasks[2]
    other = settings("dqn", "CartPole-v1", *SHIFTING, "--task.change", "observations", "--seed", "2")
    assert [build(other)[0].schedule.task(k).parameters for k in range(6)] != tasks[0]
    chosen = settings("dqn", "CartPole-v1", *SHIFTING, "--task.seed", "7")
    assert world_settings(chosen, Generators(1)).task.seed == 7


def test_any_task_can_be_played_after_training(tmp_path: Path) -> None:
    flags = ["--task.change", "rewards", "--task.period", "200", "--task.reward-step", "10"]
    path, _, _ = run(tmp_path, "ppo", "CartPole-v1", 700, *SMALL["ppo"], *flags)
    for task in (0, 2, 5):
        result = evaluate(EvaluateConfig(path, episodes=3, task=task))
        assert (result["task"], result["task_parameters"]) == (task, {"reward_offset": 10.0 * task})
        assert result["returns"] == [(1.0 + 10.0 * task) * length for length in result["lengths"]]
    step = result["step"]
    assert evaluate(EvaluateConfig(path, episodes=1))["task"] == (step - 1) // 200  # the one in force at the checkpoint


def test_a_task_is_refused_where_there_is_none(tmp_path: Path) -> None:
    path, _, _ = run(tmp_path, "ppo", "CartPole-v1", 300, *SMALL["ppo"])
    with pytest.raises(ValueError, match="task = 1: must be left out"):
        evaluate(EvaluateConfig(path, task=1))
    path, _, _ = run(tmp_path, "ppo", "CartPole-v1", 300, *SMALL["ppo"], *SHIFTING, "--task.count", "2")
    with pytest.raises(ValueError, match=r"task = 2: must be in \[0, 1\]"):
        evaluate(EvaluateConfig(path, task=2))
