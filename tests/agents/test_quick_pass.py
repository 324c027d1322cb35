"""Acting without what surrounds the kernels, beside the network's own pass: the same to the bit."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from agents import ppo, value_agent
from agents.interventions.plasticity_injection import PlasticityInjection
from agents.interventions.reset import Reset
from agents.ppo_config import PPOConfig
from agents.quick_pass import QuickActor, QuickValues, kernels, quick_actor, quick_values
from agents.schedule import Schedule
from agents.stacking import Stack
from agents.value_config import C51Config, DQNConfig
from tests.agents.helpers import CONTINUOUS, SMALL, SMALL_IMAGE, VECTOR, NoiseWorld, build, drive, same_tree

PLAIN = PPOConfig(network=SMALL, rollout_steps=16, num_minibatches=2, update_epochs=2)
NORMAL = replace(PLAIN, normalize_observations=True, network=replace(SMALL, activation="tanh"))
SHARED = replace(PLAIN, shared_torso=True)
RELU = replace(PLAIN, normalize_observations=True)
INJECTION = PlasticityInjection(when="at-step-70")
CASES = {
    "discrete": (PLAIN, VECTOR, ()),
    "continuous": (NORMAL, CONTINUOUS, ()),
    "one torso": (replace(SHARED, normalize_observations=True), CONTINUOUS, ()),
    "one torso, categorical": (replace(SHARED, value_loss="hl_gauss"), VECTOR, ()),
    "no hidden layer": (replace(NORMAL, network=replace(SMALL, depth=0)), VECTOR, ()),
    "images": (PLAIN, SMALL_IMAGE, ()),
    "edits": (RELU, CONTINUOUS, ("cbp", "weight_clip", "shrink_perturb", Reset(last=2, when="at task changes"))),
    "norms": (PLAIN, VECTOR, ("layer_norm", "spectral_norm")),
    "projected": (PLAIN, VECTOR, ("layer_norm", "nap")),
    "moded": (PLAIN, CONTINUOUS, ("batch_norm", "dropout")),
    "doubled": (PLAIN, VECTOR, ("crelu",)),
    "PopArt": (replace(SHARED, clip_vloss=False), VECTOR, ("popart",)),
    "injected": (NORMAL, CONTINUOUS, (INJECTION,)),
    "injected, one torso": (SHARED, VECTOR, (INJECTION,)),
}


def driven(name, ticks=70):
    """An agent after some rollouts, a task change in the midst of one."""
    config, spaces, interventions = CASES[name]
    agent = build(config, spaces, interventions=interventions)
    world = NoiseWorld(spaces, 2)
    drive(agent, world, ticks // 2)
    agent.on_task_change()
    return drive(agent, world, ticks - ticks // 2)


@pytest.mark.parametrize("name", CASES)
def test_a_run_is_to_the_bit_what_it_is_with_the_networks_own_pass(name, monkeypatch):
    quick = driven(name)
    monkeypatch.setattr(ppo, "quick_actor", lambda network, observations: network)
    own = driven(name)
    assert same_tree(quick.state_dict(), own.state_dict())
    assert quick.clock.gradient_steps == 16 and quick.rollout.row == 6  # four rollouts, and acted since


def test_of_a_plain_network_nothing_but_kernels_is_called():
    agent = driven("continuous")
    states = agent.rollout.observations[0]
    quick = agent.learner.quick(quick_actor, states)
    assert isinstance(quick, QuickActor) and agent.learner.quick(quick_actor, states) is quick
    assert len(quick.features) == 5 and not any(isinstance(kernel, nn.Module) for kernel in quick.features)
    places = [
        kernel(torch.ones(2, width)).data_ptr()
        for kernel, width in zip(quick.features, (5, 5, 16, 16, 16), strict=True)
    ]
    assert places[0] == quick.features[0].out.data_ptr() and len({places[1], places[3]}) == 2


def test_it_follows_weights_and_statistics_that_are_loaded():
    agent, other = driven("continuous"), driven("continuous", 102)
    states = torch.randn(2, 5)
    agent.load_state_dict(copy.deepcopy(other.state_dict()))
    with torch.inference_mode():
        found = agent.learner.quick(quick_actor, states)(states, "actor")[0]
    wanted = other.network(states, part="actor")[0].detach()
    assert torch.equal(found, wanted)
    torso, head = other.network.actor_torso.layers, other.network.policy_head
    statistics = other.network.normalizer
    x = (states.double() - statistics.mean.double()) / (statistics.variance.double() + 1e-8).sqrt()
    x = x.clamp(-10, 10).numpy()
    for layer in (torso.dense1, torso.dense2):
        x = np.tanh(x @ layer.weight.detach().double().numpy().T + layer.bias.detach().double().numpy())
    slow = x @ head.weight.detach().double().numpy().T + head.bias.detach().double().numpy()
    np.testing.assert_allclose(found.numpy(), slow, atol=1e-6)


def test_it_follows_weights_that_have_moved_into_a_stack():
    config, spaces, _ = CASES["continuous"]
    agents = [drive(build(config, spaces, seed=seed), NoiseWorld(spaces, 2), 16, learn=False) for seed in (0, 1)]
    states, before = torch.randn(2, 5), [agent.network.policy_head.weight.clone() for agent in agents]
    with Stack([agent.learner for agent in agents]) as stack:
        stack.together({agent.learner: agent.update for agent in agents})
        for agent, weight in zip(agents, before, strict=True):
            assert not torch.equal(agent.network.policy_head.weight, weight)
            with torch.inference_mode():
                found = agent.learner.quick(quick_actor, states)(states, "actor")[0]
            assert torch.equal(found, agent.network(states, part="actor")[0])


def test_who_puts_a_hook_on_later_is_called():
    agent, called = build(DQN, VECTOR), []
    observations = np.zeros((1, *VECTOR.observation_shape), np.float32)
    agent.act(observations)
    with agent.network.head.register_forward_hook(lambda *_: called.append(True)):
        for _ in range(3):
            agent._greedily(torch.from_numpy(observations))
    agent._greedily(torch.from_numpy(observations))
    assert called == [True] * 3


def test_what_comes_in_is_left_as_it_is():
    given = torch.tensor([[-1.0, 2.0]])
    relu, linear = nn.ReLU(), nn.Linear(2, 2)
    first, second, third = kernels([relu, linear, relu], 1)
    third(second(first(given)))
    assert given.tolist() == [[-1.0, 2.0]]


LEARNS = {"learning_starts": 8, "buffer_size": 100, "batch_size": 8, "replay_ratio": 0.5, "target_period": 5}
GREEDY = {"epsilon": Schedule(0.1, 0.1), "network": SMALL}
DQN, C51 = DQNConfig(**LEARNS, **GREEDY), C51Config(**LEARNS, **GREEDY)
VALUE_CASES = {
    "dqn": (DQN, VECTOR, ()),
    "c51": (C51, VECTOR, ()),
    "pixels": (replace(DQN, network=replace(SMALL, torso="mlp")), SMALL_IMAGE, ()),
    "convolutions": (DQN, SMALL_IMAGE, ()),
    "edits": (DQN, VECTOR, ("cbp", "weight_clip", "shrink_perturb", Reset(last=2, when="at task changes"))),
    "norms": (DQN, VECTOR, ("layer_norm", "spectral_norm")),
    "moded": (DQN, VECTOR, ("batch_norm", "dropout")),
    "PopArt": (DQN, VECTOR, ("popart",)),
    "injected": (C51, VECTOR, (PlasticityInjection(when="at-step-70"),)),
}


def driven_by_values(name, ticks=70):
    config, spaces, interventions = VALUE_CASES[name]
    agent, world = build(config, spaces, interventions=interventions), NoiseWorld(spaces, 2)
    drive(agent, world, ticks // 2)
    agent.on_task_change()
    return drive(agent, world, ticks - ticks // 2)


@pytest.mark.parametrize("name", VALUE_CASES)
def test_by_values_too_a_run_is_to_the_bit_what_it_is_with_the_networks_own_pass(name, monkeypatch):
    quick = driven_by_values(name)
    monkeypatch.setattr(value_agent, "quick_values", lambda network, observations: network)
    own = driven_by_values(name)
    assert same_tree(quick.state_dict(), own.state_dict()) and quick.clock.gradient_steps > 50
    assert np.array_equal(quick.replay.actions, own.replay.actions)


@pytest.mark.parametrize(("name", "layers"), [("dqn", 5), ("c51", 5), ("pixels", 5), ("convolutions", 0)])
def test_of_a_plain_value_network_nothing_but_kernels_is_called(name, layers):
    agent = driven_by_values(name)
    observations = agent.replay.sample(3).observations
    found = agent.learner.quick(quick_values, observations)
    assert isinstance(found, QuickValues) == bool(layers)
    if layers:
        assert len(found.layers) == layers and not any(isinstance(layer, nn.Module) for layer in found.layers)
    with torch.no_grad():
        assert torch.equal(found(observations), agent.network(observations))
