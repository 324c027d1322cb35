"""What of Adam's state is forgotten, when, and of which parameters."""

import dataclasses

import pytest
import torch

from agents import build_agent
from agents.clock import Clock
from agents.interventions.optimizer_reset import OptimizerReset
from agents.randomness import Generators
from tests.agents.helpers import CPU, NoiseWorld, drive, gradient_step, same_tree, snapshot
from tests.agents.interventions.models import MODELS, Patient
from tests.agents.interventions.test_weight_decay import AGENTS, every_agent, goes_on_after_a_restart, make

GONE = {"all": {"step", "exp_avg", "exp_avg_sq"}, "moments": {"exp_avg", "exp_avg_sq"}, "step": {"step"}}


def state_of(agent):
    adam = agent.learner.optimization.adam
    return {name: {k: v.clone() for k, v in adam.state[p].items()} for name, p in agent.network.named_parameters()}


def forgotten(before, after):
    """By parameter, what was not zero and is now; all else must be as it was."""
    found = {}
    for name, state in before.items():
        found[name] = {key for key, value in state.items() if value.any() and not after[name][key].any()}
        assert all(torch.equal(after[name][k], v) for k, v in state.items() if k not in found[name])
    return found


@every_agent
@pytest.mark.parametrize("what", GONE)
@pytest.mark.parametrize("moment", ["target sync", "task change"])
def test_what_is_forgotten_when(name, what, moment):
    agent = make(name, OptimizerReset(when=f"at {moment}s", what=what))
    drive(agent, NoiseWorld(AGENTS[name][1], 2), 18)
    loss = sum(p.square().sum() for p in agent.network.parameters())
    gradient_step(agent.learner.optimization, loss)  # no state is zero
    agent.learner.interventions.surgeries()
    lifecycle = agent.learner.interventions
    right, wrong = (lifecycle.on_target_sync, lifecycle.on_task_change)[:: 1 if moment == "target sync" else -1]
    weights, before = snapshot(agent.network), state_of(agent)
    wrong()
    assert not any(forgotten(before, state_of(agent)).values())
    assert lifecycle.surgeries() == {}
    right()
    assert all(gone == GONE[what] for gone in forgotten(before, state_of(agent)).values())
    assert lifecycle.surgeries() == {("optimizer_reset", "forgotten", moment.replace(" ", "_")): 1}
    assert same_tree(snapshot(agent.network), weights)


@pytest.mark.parametrize("name", ["dqn", "c51"])
def test_value_agents_forget_at_each_target_copy(name):
    agent, world = make(name, OptimizerReset()), NoiseWorld(AGENTS[name][1], 2)
    while agent.clock.gradient_steps < 17:
        drive(agent, world, 1)
        steps = {int(state["step"]) for state in state_of(agent).values()}
        assert steps == {agent.clock.gradient_steps % agent.config.target_period}
    assert agent.learner.interventions.surgeries() == {("optimizer_reset", "forgotten", "target_sync"): 3}


def test_ppo_forgets_at_the_start_of_each_update_phase():
    agent = drive(make("ppo", OptimizerReset()), NoiseWorld(AGENTS["ppo"][1], 2), 48)
    assert agent.clock.gradient_steps == 36
    assert {int(state["step"]) for state in state_of(agent).values()} == {12}


def test_a_step_alone_restarts_the_bias_correction_and_moments_alone_overshoot():
    # one weight under a steady gradient of 1, in learning rates: after 10,000 steps, then from the reset on
    def after(what, steps):
        patient = Patient(*MODELS["mlp"], steps=0, lr=1.0, eps=1e-30)
        weight, reset = patient.network.c.weight, OptimizerReset(what=what)
        reset.attach({"online": patient.network}, Generators(0))
        patient.adam.state[weight]["step"].fill_(10_000)
        patient.adam.state[weight]["exp_avg"].fill_(1.0)
        patient.adam.state[weight]["exp_avg_sq"].fill_(1.0)
        reset.intervene(patient.surgery, Clock())
        for _ in range(steps):
            with torch.no_grad():
                weight.zero_()
            weight.grad = torch.ones_like(weight)
            patient.adam.step()
        return -weight[0, 0].item()

    assert after("all", 12) == pytest.approx(1.0, rel=1e-3)
    assert after("moments", 12) == pytest.approx(6.57, abs=0.01)
    assert after("step", 1) == pytest.approx((1 / 0.1) / (1 / 0.001) ** 0.5, rel=1e-3)


def test_it_keeps_to_its_part():
    agent = drive(make("ppo", OptimizerReset(only="critic")), NoiseWorld(AGENTS["ppo"][1], 2), 18)
    before = state_of(agent)
    agent.learner.interventions.on_target_sync()
    gone = {name for name, what in forgotten(before, state_of(agent)).items() if what}
    assert gone == {"value_head.weight", "value_head.bias"}


@every_agent
def test_it_goes_on_after_a_restart(name):
    assert goes_on_after_a_restart(name, OptimizerReset())


def test_what_makes_no_sense_is_refused():
    config, spaces = AGENTS["dqn"]
    config = dataclasses.replace(config, target_period=1)
    with pytest.raises(ValueError, match="target_period = 1: must be > 1 beside optimizer_reset"):
        build_agent(config, spaces, 2, Generators(0), CPU, interventions=[OptimizerReset()])
    build_agent(config, spaces, 2, Generators(0), CPU, interventions=[OptimizerReset(when="at task changes")])
    with pytest.raises(ValueError, match=r"optimizer_reset\.when = 'sync': must be every N gradient steps"):
        OptimizerReset(when="sync")
    with pytest.raises(ValueError, match=r"when = 'every gradient step': must be rarer"):
        OptimizerReset(when="every gradient step")
    with pytest.raises(ValueError, match=r"optimizer_reset\.what = 'steps'"):
        OptimizerReset(what="steps")
