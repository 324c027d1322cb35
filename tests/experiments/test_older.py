"""Files that earlier versions wrote are read as what they meant."""

import copy
import json
from pathlib import Path

import pytest

from agents.config import LearningRate
from agents.interventions import (
    L2,
    AdamBetas,
    LayerNorm,
    OptimizerReset,
    PlasticityInjection,
    ReDo,
    Reset,
    ShrinkAndPerturb,
)
from agents.schedule import Over
from agents.value_config import Epsilon
from experiments.config import from_dict, load_config, to_dict
from experiments.older import translated

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


FILES = Path(__file__).parent / "older_configs"
INTERVENTIONS = {
    "redo": [ReDo(when="every 50 gradient steps")],
    "reset_every_steps": [LayerNorm(), Reset(last=2, when="every 500 steps")],
    "reset_every_gradient_steps": [Reset(when="every 70 gradient steps")],
    "injection_at_a_step": [
        AdamBetas(betas=(0.99, 0.99)),
        L2(rate=1e-4),
        ReDo(tau=0.1, when="every 100 gradient steps", samples=128, moments="keep"),
        PlasticityInjection(when="at step 200"),
    ],
    "at_task_changes": [
        Reset(when="at task changes"),
        ShrinkAndPerturb(),
        OptimizerReset(when="at task changes"),
        PlasticityInjection(when="at task changes"),
    ],
    "every_step": [
        OptimizerReset(),
        ShrinkAndPerturb(form="juliani", when="every gradient step"),
        PlasticityInjection(when="at gradient step 12"),
    ],
}


def test_every_file_is_spoken_of() -> None:
    assert {path.stem for path in FILES.iterdir()} == set(INTERVENTIONS)


def still(now: object, written: object) -> bool:
    """Whether everything in `written` is in `now`, which may have settings that there were not."""
    if isinstance(written, dict):
        return all(name in now and still(now[name], value) for name, value in written.items())
    return now == written


@pytest.mark.parametrize("name", INTERVENTIONS)
def test_an_older_file_means_what_it_meant(name: str) -> None:
    written = json.loads((FILES / f"{name}.json").read_text())
    before = copy.deepcopy(written)
    config = load_config(FILES / f"{name}.json")
    assert list(config.interventions) == INTERVENTIONS[name]
    assert from_dict(written) == config and written == before
    now = to_dict(config)
    assert from_dict(json.loads(json.dumps(now))) == config
    for part in ("algorithm", "world", "run", "probe", "surgery"):
        assert still(now[part], written[part]), part


def test_todays_times_stay_as_they_are() -> None:
    settings = to_dict(load_config(FILES / "at_task_changes.json"))
    assert translated(settings)["interventions"] == settings["interventions"]
    assert all(type(one["when"]) is str for one in settings["interventions"] if one["when"] is not None)


def test_a_reset_that_named_no_time_was_every_20000_steps() -> None:
    old = {"name": "reset", "only": "all", "last": 1, "every_gradient_steps": None, "every_steps": None}
    old |= {"at_task_change": False, "target": True}
    (found,) = from_dict({"algorithm": "dqn", "interventions": [old]}).interventions
    assert found == Reset() == Reset(when="every 20000 steps")


@pytest.mark.parametrize(
    ("one", "message"),
    [
        ({"name": "redo", "period": "often"}, "redo.period = 'often': must be a known setting; known: only, tau, when"),
        ({"name": "redo", "period": True}, "redo.period = True: must be a known setting"),
        ({"name": "redo", "period": 0}, "redo.when = 'every 0 gradient steps': must be every N gradient steps"),
        ({"name": "layer_norm", "period": 5}, "layer_norm.period = 5: must be a known setting"),
        ({"name": "optimizer_reset", "at": ["x"]}, r"optimizer_reset.at = \['x'\]: must be a known setting"),
        ({"name": "optimizer_reset", "at": "sync"}, "optimizer_reset.at = 'sync': must be a known setting"),
        ({"name": "shrink_perturb", "when": "later"}, "shrink_perturb.when = 'later': must be every N gradient steps"),
        ({"name": "redo", "when": 5}, "redo.when = 5: must be every N gradient steps"),
        ({"name": ["redo"], "period": 5}, "must be objects with a name"),
    ],
)
def test_what_no_version_wrote_is_refused_by_name(one: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_dict({"algorithm": "dqn", "interventions": [one]})


def test_files_that_are_no_settings_pass_through() -> None:
    for odd in ({}, {"algorithm": "ppo", "agent": 3}, {"interventions": 5}, {"interventions": [5]}):
        assert translated(odd) == odd
