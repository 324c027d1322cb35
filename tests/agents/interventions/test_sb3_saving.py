"""Interventions on Stable-Baselines3's models: saved, loaded, gone on with, and gone without a trace."""

import copy
import io
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.callbacks import CheckpointCallback
from stable_baselines3.common.logger import configure

from agents.interventions import CBP, AdamBetas, InFeR, L2Init, ReDo, Reset, WeightDecay
from agents.interventions.sb3 import InterventionCallback
from tests.agents.interventions.sb3_models import Each, Heard, Listener, dqn, ppo, same, whole_state

DOCS = Path(__file__).parents[3] / "docs"
MANY = [
    *(
        InFeR(),
        ReDo(when="every 4 gradient steps", tau=0.3),
        CBP(maturity=2, replacement_rate=0.1),
        L2Init(),
        WeightDecay(),
    ),
    *(AdamBetas(), Reset(when="every 9 gradient steps")),
]
KINDS = {"dqn": (dqn, DQN), "ppo": (ppo, PPO)}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_saved_loads_in_plain_sb3(kind, tmp_path):
    make, loader = KINDS[kind]
    model = make()
    plain = copy.deepcopy(model.policy.optimizer.param_groups[0])
    model.learn(80, callback=[CheckpointCallback(60, str(tmp_path)), InterventionCallback(MANY)])
    model.save(tmp_path / "end")
    for path in ("rl_model_60_steps", "end"):
        loaded = loader.load(tmp_path / path, env=model.get_env(), device="cpu")
        (group,) = loaded.policy.optimizer.param_groups
        assert all(value == plain[option] for option, value in group.items() if option != "params")
        theirs, own = (getattr(one, "q_net", one.policy) for one in (loaded, model))
        assert [id(parameter) for parameter in group["params"]] == list(map(id, theirs.parameters()))
        if path == "end":
            for new, old in zip(theirs.parameters(), own.parameters(), strict=True):
                assert torch.equal(new, old)
                assert same(dict(loaded.policy.optimizer.state[new]), dict(model.policy.optimizer.state[old]))
        loaded.learn(80)


def test_moments_are_saved_with_the_parameters_they_belong_to():
    model, checked = dqn(learning_rate=lambda left: 1e-3 * left), []

    def look(model):
        state, optimizer = model.policy.optimizer.state_dict(), model.policy.optimizer
        assert state["param_groups"][0]["lr"] == optimizer.param_groups[0]["lr"]
        assert len(state["param_groups"]) == 1
        parameters = list(model.q_net.parameters())
        assert state["param_groups"][0]["params"] == list(range(len(parameters)))
        if len(optimizer.param_groups) > 1:
            assert state["state"].keys() == set(range(len(parameters)))
            for number, parameter in enumerate(parameters):
                assert state["state"][number]["exp_avg"] is optimizer.state[parameter]["exp_avg"]
            checked.append(model.num_timesteps)

    model.learn(60, callback=[Each(look), InterventionCallback(MANY)])
    assert len(checked) == 60 and len(model.policy.optimizer.param_groups) == 1
    assert len(model.policy.optimizer.state) == 6  # no auxiliary heads
    assert model.policy.optimizer.param_groups[0]["lr"] == 1e-3 * model._current_progress_remaining < 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_may_be_loaded_in_between(kind):
    def again(model):
        if model.num_timesteps in (48, 60):
            model.set_parameters(copy.deepcopy(model.get_parameters()))

    states = []
    for function in (lambda model: None, again):
        model = KINDS[kind][0]()
        callback = InterventionCallback(MANY)
        model.learn(80, callback=[callback, Each(function)])
        states.append([whole_state(model), callback.state_dict()])
    assert same(*states)


def update(model, callback):
    """Gradient steps alone, from the data that the model has."""
    model.set_logger(configure(None, []))
    callback.init_callback(model)
    callback.on_training_start({}, {})
    if isinstance(model, DQN):
        callback.on_rollout_end()
    else:
        model.rollout_buffer = copy.deepcopy(model.rollout_buffer)
        callback._updating = True
    np.random.seed(4)
    torch.manual_seed(4)
    model.train(gradient_steps=15, batch_size=16) if isinstance(model, DQN) else model.train()
    callback.on_training_end()


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_goes_on_from_what_was_saved(kind, tmp_path):
    make, loader = KINDS[kind]
    model, callback = make(), InterventionCallback([*MANY, Listener(heard=Heard())])
    model.learn(80, callback=callback)
    model.save(tmp_path / "model")
    kept = io.BytesIO()
    torch.save(callback.state_dict(), kept)
    buffer = copy.deepcopy(model.replay_buffer if kind == "dqn" else model.rollout_buffer)
    rollout = copy.deepcopy(callback._observations._rollout)
    update(model, callback)

    loaded = loader.load(tmp_path / "model", env=model.get_env(), device="cpu")
    setattr(loaded, "replay_buffer" if kind == "dqn" else "rollout_buffer", buffer)
    heard = Heard()
    other = InterventionCallback([*MANY, Listener(heard=heard)], seed=5)
    kept.seek(0)
    other.load_state_dict(torch.load(kept, weights_only=True))
    begin = other._begin
    other._begin = lambda: (begin(), setattr(other._observations, "_rollout", rollout))
    update(loaded, other)
    end = callback.clock.gradient_steps + 1
    assert heard.steps() == list(range(end - len(heard.steps()), end))
    assert same(loaded.policy.state_dict(), model.policy.state_dict())
    assert same(loaded.policy.optimizer.state_dict()["state"], model.policy.optimizer.state_dict()["state"])
    assert same(other.state_dict(), callback.state_dict())


def test_states_of_other_interventions_are_refused():
    model, callback = dqn(), InterventionCallback([L2Init()])
    assert callback.state_dict() == {}
    model.learn(50, callback=callback)
    with pytest.raises(ValueError, match="state: is of l2_init, must be of redo"):
        InterventionCallback([ReDo()]).load_state_dict(callback.state_dict())
    with pytest.raises(ValueError, match="state: is of l2_init, must be of none"):
        InterventionCallback([]).load_state_dict(callback.state_dict())


@pytest.mark.parametrize("kind", KINDS)
def test_learning_goes_on_and_begins_anew_with_another_model(kind):
    heard = Heard()
    model, callback = KINDS[kind][0](), InterventionCallback([*MANY, Listener(heard=heard)])
    model.learn(80, callback=callback)
    first, members = callback.clock.gradient_steps, callback.lifecycle.members
    auxiliary = [int(state["step"]) for state in callback.state_dict()["auxiliary"]]
    model.learn(80, callback=callback, reset_num_timesteps=False)
    last = callback.clock.gradient_steps
    assert heard.steps() == list(range(1, last + 1)) and last > first > 10
    assert callback.lifecycle.members is members
    assert auxiliary and all(step == first for step in auxiliary)
    assert all(int(state["step"]) == callback.clock.gradient_steps for state in callback.state_dict()["auxiliary"])
    heard.events.clear()
    other = KINDS[kind][0]()
    other.learn(80, callback=callback)
    assert heard.steps() == list(range(1, first + 1)) and callback.lifecycle.members is not members
    heard.events.clear()
    other.learn(80, callback=callback)  # its count of steps is set back
    assert heard.steps()[0] == 1


def hooks_of(model):
    modules, optimizer = model.policy.modules(), vars(model.policy.optimizer)
    counts = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules]
    counts += [len(hooks) for name, hooks in optimizer.items() if name.endswith("_hooks")]
    return counts, "evaluate_actions" in vars(model.policy), len(model.logger.output_formats)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_left_on_the_model(kind):
    model, plain = KINDS[kind][0](), KINDS[kind][0]()
    plain.learn(60)
    before = hooks_of(plain)
    during = []
    look = Each(lambda model: during.append(hooks_of(model)))
    model.learn(60, callback=[InterventionCallback(MANY), look])
    assert hooks_of(model) == before and during[-1] != before
    options = [dict(one.policy.optimizer.param_groups[0], params=None) for one in (model, plain)]
    assert same(*options)
    learnt = list(model.q_net.parameters() if kind == "dqn" else model.policy.parameters())
    (group,) = model.policy.optimizer.param_groups
    assert [id(parameter) for parameter in group["params"]] == list(map(id, learnt))


def test_a_copy_of_the_policy_is_a_policy_of_its_own():
    model, copies, observations = ppo(), [], torch.zeros(2, 4)

    def take_a_copy(model):
        copies[:] = [copy.deepcopy(model.policy)]
        with torch.no_grad():
            copies[0].value_net.bias += 7

    def use_it(listener, forward):
        events = len(heard.events)
        values = copies[0].evaluate_actions(observations, torch.zeros(2))[0]
        assert torch.equal(values, copies[0].predict_values(observations)) and len(heard.events) == events

    heard = Heard(penalty=use_it)
    model.learn(40, callback=[InterventionCallback([Listener(heard=heard)]), Each(take_a_copy)])
    assert len(heard.steps()) == 12


def test_the_pages_own_lines_run():
    page = (DOCS / "interventions_with_sb3.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.S)
    assert len(blocks) >= 3
    for block in blocks:  # the first names the installed wheel, which test_installed.py builds
        given = {"__name__": "page", "model": dqn()}
        lines = block.replace("plasticity_suite.", "").replace("100_000", "60")
        exec(compile(lines, "page", "exec"), given)
