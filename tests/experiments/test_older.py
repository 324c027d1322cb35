"""Files that earlier versions wrote are read as what they meant."""

import pytest

from agents.config import LearningRate
from agents.schedule import Over
from agents.value_config import Epsilon
from experiments.config import from_dict, to_dict

VALUE = {"learning_rate": 1e-3, "start_e": 1.0, "end_e": 0.05, "exploration_steps": 8000, "anneal_per_task": False}
POLICY = {"learning_rate": 1e-3, "anneal_steps": 0, "anneal_per_task": False}


def read(algorithm: str, agent: dict, steps: int = 5000):
    return from_dict({"algorithm": algorithm, "agent": agent, "world": {"env": "CartPole-v1"}, "run": {"steps": steps}})


@pytest.mark.parametrize(
    ("changes", "epsilon"),
    [
        ({}, Epsilon(1.0, 0.05, Over(8000))),
        ({"anneal_per_task": True}, Epsilon(1.0, 0.05, Over("8000-steps-of-task"))),
        ({"exploration_steps": 0, "end_e": 0.25}, Epsilon(0.25, 0.25, Over("constant"))),
        # 1 + (.1 - 1) in floats, the number that such a run compared its draws with
        (
            {"exploration_steps": 0, "end_e": 0.1, "anneal_per_task": True},
            Epsilon(0.09999999999999998, 0.09999999999999998, Over("constant")),
        ),
    ],
)
@pytest.mark.parametrize("algorithm", ["dqn", "c51"])
def test_epsilon(algorithm: str, changes: dict, epsilon: Epsilon) -> None:
    agent = read(algorithm, VALUE | changes).agent
    assert (agent.epsilon, agent.learning_rate) == (epsilon, LearningRate(1e-3))


def test_settings_that_an_older_file_leaves_out_are_what_they_were() -> None:
    assert read("dqn", {"end_e": 0.1}).agent.epsilon == Epsilon(1.0, 0.1, Over(250_000))
    assert read("dqn", {}).agent.epsilon == Epsilon(1.0, 0.01, Over(250_000))


@pytest.mark.parametrize(
    ("changes", "rate"),
    [
        ({}, LearningRate(1e-3)),
        ({"anneal_steps": 700}, LearningRate(1e-3, 0.0, Over(700))),
        ({"anneal_steps": 5000}, LearningRate(1e-3, 0.0, Over("run"))),  # what a preset wrote
        ({"anneal_steps": 5000, "anneal_per_task": True}, LearningRate(1e-3, 0.0, Over("5000-steps-of-task"))),
    ],
)
def test_an_annealed_learning_rate(changes: dict, rate: LearningRate) -> None:
    config = read("ppo", POLICY | changes)
    assert config.agent.learning_rate == rate
    assert config.stretched == (("learning_rate",) if rate.over == "run" else ())


def test_a_file_of_today_is_left_as_it_is() -> None:
    for algorithm in ("dqn", "ppo"):
        config = read(algorithm, {})
        assert from_dict(to_dict(config)) == config
    assert read("ppo", {}).agent.action_scaling == "off"  # before there was the setting
    assert from_dict({"algorithm": "ppo", "agent": {"action_scaling": "auto"}}).agent.action_scaling == "auto"


@pytest.mark.parametrize(
    ("agent", "told"),
    [
        ({"end_e": "x"}, "agent.epsilon.end = 'x'"),
        ({"end_e": 0.1, "exploration_steps": [1]}, "agent.epsilon.over"),
        ({"exploration_steps": -3}, "agent.epsilon.over"),
        ({"learning_rate": "fast"}, "agent.learning_rate.start = 'fast'"),
        ({"epsilon": {"over": "forever"}}, "agent.epsilon.over = 'forever': must be constant"),
        ({"epsilon": {"over": 5}}, "agent.epsilon.over = 5: must be constant"),
    ],
)
def test_what_makes_no_sense_is_refused_by_its_name_of_today(agent: dict, told: str) -> None:
    with pytest.raises(ValueError, match=told.replace(".", r"\.")):
        read("dqn", agent)
