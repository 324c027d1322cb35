"""Decoupled decay against AdamW written out, by roles and parts; what the tests of penalties and optimizers share."""

import copy

import numpy as np
import pytest
import torch

from agents import build_agent
from agents.config import NetworkConfig
from agents.interventions.base import roles
from agents.interventions.infer import InFeR
from agents.interventions.l2 import L2
from agents.interventions.lifecycle import Lifecycle
from agents.interventions.plasticity_injection import PlasticityInjection
from agents.interventions.weight_decay import WeightDecay
from agents.ppo_config import PPOConfig
from agents.randomness import Generators
from agents.value_config import C51Config, DQNConfig
from tests.agents.helpers import CONTINUOUS, CPU, SMALL, VECTOR, NoiseWorld, drive, same_tree, snapshot

VALUE = {
    "network": SMALL,
    "buffer_size": 400,
    "learning_starts": 10,
    "batch_size": 8,
    "target_period": 5,
    "replay_ratio": 0.5,
}
ON_POLICY = {"network": NetworkConfig(width=16, depth=2, activation="tanh"), "rollout_steps": 16, "update_epochs": 3}
AGENTS = {
    "dqn": (DQNConfig(**VALUE), VECTOR),
    "c51": (C51Config(**VALUE), VECTOR),
    "ppo": (PPOConfig(**ON_POLICY), VECTOR),
    "continuous ppo": (PPOConfig(**ON_POLICY, shared_torso=False, normalize_observations=True), CONTINUOUS),
}
every_agent = pytest.mark.parametrize("name", AGENTS)


def make(name, *interventions, seed=0):
    config, spaces = AGENTS[name]
    return build_agent(config, spaces, 2, Generators(seed), CPU, interventions=interventions)


def learn(name, *interventions, ticks=33):
    """An agent after a few dozen gradient steps, the first rollout and a half of PPO's."""
    return drive(make(name, *interventions), NoiseWorld(AGENTS[name][1], 2), ticks)


def member(agent, kind):
    return next(one for one in agent.learner.interventions.members if isinstance(one, kind))


def goes_on_after_a_restart(name, *interventions):
    """Whether an agent that takes over another's state goes on like it, bit for bit."""
    first, world = make(name, *interventions), NoiseWorld(AGENTS[name][1], 2)
    drive(first, world, 32)
    second, other_world = make(name, *interventions, seed=1), copy.deepcopy(world)
    second.load_state_dict(snapshot(first))
    restored = same_tree(snapshot(second), snapshot(first))
    second.generators.load_state_dict(first.generators.state_dict())
    if hasattr(first, "replay"):
        second.replay = copy.deepcopy(first.replay)
    drive(first, world, 20)
    drive(second, other_world, 20)
    assert first.clock.gradient_steps > 30
    return restored and same_tree(snapshot(first), snapshot(second))


def same_training(first, second):
    """Whether two agents have the same weights and moments, bit for bit."""
    networks = same_tree(snapshot(first.network), snapshot(second.network))
    return networks and same_tree(
        list(first.learner.optimization.adam.state.values()), list(second.learner.optimization.adam.state.values())
    )


def options_of(agent):
    """The options of Adam's group of each parameter, by name."""
    names = {id(parameter): name for name, parameter in agent.network.named_parameters()}
    groups = agent.learner.optimization.adam.param_groups
    return {names[id(p)]: group for group in groups for p in group["params"] if id(p) in names}


def adam_by_hand(start, gradients, rate, coupled, lr=2.5e-4, betas=(0.9, 0.999), eps=1e-8):
    """Adam in float64 on one tensor, with coupled or decoupled decay."""
    theta, m, v = start.astype(np.float64), 0.0, 0.0
    for t, gradient in enumerate(gradients, 1):
        gradient = gradient.astype(np.float64) + (rate * theta if coupled else 0)
        theta = theta - (0 if coupled else lr * rate * theta)
        m, v = betas[0] * m + (1 - betas[0]) * gradient, betas[1] * v + (1 - betas[1]) * gradient**2
        theta = theta - lr * (m / (1 - betas[0] ** t)) / (np.sqrt(v / (1 - betas[1] ** t)) + eps)
    return theta


def follows_the_oracle(intervention, coupled, decays):
    """Five steps of the optimizer that the agent would use, on made-up gradients of very different sizes."""
    agent = make("continuous ppo", intervention)
    rng, start = np.random.default_rng(0), {n: p.detach().numpy().copy() for n, p in agent.network.named_parameters()}
    gradients = {n: [rng.normal(size=v.shape) * 10.0**k for k in (0, -4, -1, 0, -6)] for n, v in start.items()}
    for step in range(5):
        for name, parameter in agent.network.named_parameters():
            parameter.grad = torch.from_numpy(gradients[name][step]).float()
        agent.learner.optimization.adam.step()
    role, adam = roles(agent.network), agent.config.adam
    for name, parameter in agent.network.named_parameters():
        rate = intervention.rate if decays(role[name], name) else 0.0
        expected = adam_by_hand(start[name], gradients[name], rate, coupled, betas=adam.betas, eps=adam.eps)
        np.testing.assert_allclose(parameter.detach().numpy(), expected, rtol=2e-5, atol=2e-7, err_msg=name)


@pytest.mark.parametrize("include", [(), ("bias",), ("log_std", "bias")], ids=str)
def test_it_is_adamw_on_the_chosen_roles(include):
    follows_the_oracle(WeightDecay(rate=30.0, include=include), False, lambda role, _: role in ("weight", *include))


def test_it_keeps_to_its_part():
    follows_the_oracle(
        WeightDecay(rate=30.0, only="critic"),
        False,
        lambda role, name: role == "weight" and name.startswith(("critic", "value")),
    )


def test_norms_decay_where_they_are_included():
    network = torch.nn.ModuleDict({"dense": torch.nn.Linear(2, 2), "norm": torch.nn.LayerNorm(2)})
    for include, expected in ((), {"dense.weight"}), (("norm",), {"dense.weight", "norm.weight", "norm.bias"}):
        decay = WeightDecay(include=include)
        decay.attach({"online": network}, Generators(0))
        groups = [{"params": [p], "name": n, "role": roles(network)[n]} for n, p in network.named_parameters()]
        assert {g["name"] for g in decay.parameter_groups(groups) if "weight_decay" in g} == expected


def test_auxiliary_heads_do_not_decay():
    agent = make("dqn", InFeR(), WeightDecay())
    head = next(member(agent, InFeR).trained.parameters())
    group = next(g for g in agent.learner.optimization.adam.param_groups if any(p is head for p in g["params"]))
    assert group["weight_decay"] == 0 and not group["decoupled_weight_decay"]


@every_agent
def test_nothing_happens_at_rate_zero(name):
    assert same_training(learn(name, WeightDecay(rate=0.0)), learn(name))
    assert not same_training(learn(name, WeightDecay(rate=10.0)), learn(name))


@every_agent
def test_it_goes_on_after_a_restart(name):
    assert goes_on_after_a_restart(name, WeightDecay(rate=10.0, include=("bias",)))


def test_bad_parameters_are_refused():
    with pytest.raises(ValueError, match=r"^weight_decay\.rate = -1: must be >= 0 and finite$"):
        WeightDecay(rate=-1)
    with pytest.raises(ValueError, match=r"weight_decay\.include = \('weight',\): must be some of norm, bias"):
        WeightDecay(include=("weight",))
    with pytest.raises(ValueError, match=r"weight_decay\.include"):
        WeightDecay(include=("bias", "bias"))
    with pytest.raises(ValueError, match="weight_decay and l2 cannot work together|l2 and weight_decay"):
        Lifecycle([L2(), WeightDecay()])


def test_nothing_to_decay_is_an_error():
    network = torch.nn.Linear(2, 2)
    network.weight.requires_grad_(False)
    with pytest.raises(ValueError, match="weight_decay: no parameter to act on"):
        WeightDecay().attach({"online": network}, Generators(0))


def test_what_is_frozen_now_and_learns_later_decays_then():
    agent = make("dqn", PlasticityInjection(when="at gradient step 3"), WeightDecay(rate=0.1))
    groups = agent.learner.optimization.adam.param_groups
    decays = {id(p): group["weight_decay"] == 0.1 for group in groups for p in group["params"]}
    weights = {name: p for name, p in agent.network.named_parameters() if name.endswith("weight")}
    assert any(".a." in name for name in weights)
    assert all(decays[id(weight)] for weight in weights.values())
