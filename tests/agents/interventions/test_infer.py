"""InFeR's loss and gradients by hand in float64, its heads in the optimizer, and everything together."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from agents.config import NetworkConfig
from agents.interventions import Forward
from agents.interventions.adam_betas import AdamBetas
from agents.interventions.infer import InFeR
from agents.interventions.l2_init import L2Init
from agents.interventions.optimizer_reset import OptimizerReset
from agents.interventions.parseval import Parseval
from agents.interventions.pfo import PFO
from agents.interventions.popart import PopArt
from agents.interventions.weight_decay import WeightDecay
from agents.randomness import Generators
from agents.value_config import DQNConfig
from plasticity_probes.units import last_layers
from tests.agents.helpers import CPU, SMALL_IMAGE, NoiseWorld, drive, same_tree, snapshot
from tests.agents.interventions.models import MODELS, Patient
from tests.agents.interventions.test_l2_init import patient_of
from tests.agents.interventions.test_static import NoReadBack
from tests.agents.interventions.test_weight_decay import (
    AGENTS,
    VALUE,
    build_agent,
    every_agent,
    goes_on_after_a_restart,
    learn,
    make,
    member,
    options_of,
)


def held(network, x):
    """What the layers of models.mlp hold."""
    first = network.a(x)
    second = network.b(F.relu(first))
    return {"a": (first, F.relu(first)), "b": (second, F.relu(second))}


def forward_of(patient):
    x = patient.batch.double()
    return Forward(patient.network, x, held(patient.network, x), lambda network: held(network, x))


def arrays(network):
    return {name: tensor.detach().numpy().copy() for name, tensor in network.named_parameters()}


def preactivations(weights, x):
    first = x @ weights["a.weight"].T + weights["a.bias"]
    return first, np.maximum(first, 0) @ weights["b.weight"].T + weights["b.bias"]


def backward(weights, x, by_first, by_second):
    """Gradients of models.mlp where the loss depends directly on both layers' preactivations, by hand."""
    first, _ = preactivations(weights, x)
    by_first = by_first + (by_second @ weights["b.weight"]) * (first > 0)
    return {
        "b.weight": by_second.T @ np.maximum(first, 0),
        "b.bias": by_second.sum(0),
        "a.weight": by_first.T @ x,
        "a.bias": by_first.sum(0),
    }


def test_loss_and_gradients_by_hand():
    infer = InFeR(heads=3, alpha=0.2, beta=7.0)
    patient, start = patient_of(infer, double=True)
    now, x = arrays(patient.network), patient.batch.double().numpy()
    with torch.no_grad():
        for head in infer.trained.parameters():
            head += 0.1
    head, initial = (
        [p.detach().numpy().copy() for p in heads[0].parameters()] for heads in (infer.trained, infer.initial)
    )
    features, features_0 = (np.maximum(preactivations(w, x)[1], 0) for w in (now, start))
    error = features @ head[0].T + head[1] - 7.0 * (features_0 @ initial[0].T + initial[1])
    infer_loss = infer.penalty(forward_of(patient))
    infer_loss.backward()
    assert infer_loss.item() == pytest.approx(0.2 * (error**2).mean(), rel=1e-9)
    by_output = 2 * 0.2 * error / error.size
    expected = backward(now, x, 0.0, (by_output @ head[0]) * (features > 0))
    for name, gradient in expected.items():
        np.testing.assert_allclose(dict(patient.network.named_parameters())[name].grad.numpy(), gradient, rtol=1e-8)
    np.testing.assert_allclose(infer.trained[0].weight.grad.numpy(), by_output.T @ features, rtol=1e-8)
    np.testing.assert_allclose(infer.trained[0].bias.grad.numpy(), by_output.sum(0), rtol=1e-8)
    assert all(p.grad is None for p in (*infer.frozen.parameters(), *infer.initial.parameters()))


@pytest.mark.parametrize(
    ("kind", "widths"),
    [
        ("mlp", {"b": 7}),
        ("conv -> flatten -> linear", {"b": 6}),
        ("conv, channels last", {"a": 36}),
        ("crelu", {"c": 10}),
        ("part of a flatten", {"a": 36}),
        ("duelling", {"c": 5, "b": 4}),
        ("actor, critic", {"actor_torso.layers.dense2": 6, "critic_torso.layers.dense2": 6}),
        ("sb3 cnn", {"features_extractor.linear.0": 8}),
    ],
)
def test_the_features_are_those_of_each_branchs_last_layer(kind, widths):
    infer = InFeR()
    patient = Patient(*MODELS[kind], steps=0)
    infer.layers = tuple(patient.layers)
    infer.attach({"online": patient.network}, Generators(0))
    assert [layer.name for layer in last_layers(patient.layers)] == list(widths)
    assert [head.in_features for head in infer.trained] == list(widths.values())
    assert all(head.out_features == 10 for head in infer.trained)


def test_without_dense_layers_the_features_are_the_last_convolutions():
    config = DQNConfig(**{**VALUE, "network": NetworkConfig(depth=0)})
    agent = build_agent(config, SMALL_IMAGE, 2, Generators(0), CPU, interventions=[InFeR()])
    drive(agent, NoiseWorld(SMALL_IMAGE, 2), 12)
    assert agent.clock.gradient_steps > 3
    assert member(agent, InFeR).trained[0].in_features == agent.network.torso.features


@every_agent
def test_the_heads_train_and_what_is_initial_stays(name):
    fresh, agent = member(make(name, InFeR()), InFeR), learn(name, InFeR())
    infer = member(agent, InFeR)
    parameters = zip(infer.trained.parameters(), fresh.trained.parameters(), strict=True)
    assert all((now != then).any() for now, then in parameters)
    assert all(agent.learner.optimization.adam.state[p]["step"] > 0 for p in infer.trained.parameters())
    assert same_tree(snapshot(infer.initial), snapshot(fresh.trained))
    assert len(infer.trained) == (2 if name == "continuous ppo" else 1)
    initial, frozen = make(name).network, infer.frozen
    assert all(torch.equal(*pair) for pair in zip(initial.parameters(), frozen.parameters(), strict=True))
    assert same_training_of_networks(learn(name, InFeR(alpha=0.0)), learn(name))


def same_training_of_networks(first, second):
    states = [
        {n: agent.learner.optimization.adam.state[p] for n, p in agent.network.named_parameters()}
        for agent in (first, second)
    ]
    return same_tree(snapshot(first.network), snapshot(second.network)) and same_tree(*states)


def test_the_frozen_network_sees_observations_as_the_online_one_does():
    agent = learn("continuous ppo", InFeR())
    initial, observations = make("continuous ppo").network, torch.randn(4, 5)
    with torch.no_grad():
        expected = initial.actor_torso(agent.network.normalizer(observations))[0]
        captured = agent.learner.interventions.capture(member(agent, InFeR).frozen, observations)
    assert agent.network.normalizer.count > 0
    assert torch.equal(captured["actor_torso.layers.dense2"][1], expected)


@every_agent
def test_it_goes_on_after_a_restart(name):
    assert goes_on_after_a_restart(name, InFeR())


def test_heads_take_the_betas_that_all_others_have_in_either_order():
    for interventions in ([InFeR(), AdamBetas()], [AdamBetas(), InFeR()]):
        agent = make("continuous ppo", *interventions)
        assert [group["betas"] for group in agent.learner.optimization.adam.param_groups] == [(0.99, 0.99)]


def test_nothing_to_act_on_is_an_error():
    with pytest.raises(ValueError, match=r"infer\.only = 'critic': must be a part with hidden layers"):
        make("dqn", InFeR(only="critic"))
    patient = Patient(*MODELS["conv"], steps=0)
    infer = InFeR()
    infer.layers = tuple(patient.layers)
    with pytest.raises(ValueError, match="infer: no Linear layer reads 'b'"):
        infer.attach({"online": patient.network}, Generators(0))
    for bad in ({"heads": 0}, {"alpha": -1.0}, {"beta": 0.0}):
        with pytest.raises(ValueError, match=f"infer.{next(iter(bad))}"):
            InFeR(**bad)


TOGETHER = [
    WeightDecay(rate=1.0),
    L2Init(),
    Parseval(),
    InFeR(),
    PFO(),
    AdamBetas(betas=(0.8, 0.9)),
    OptimizerReset(what="moments"),
]


@every_agent
@pytest.mark.parametrize("backwards", [False, True])
def test_together_each_keeps_its_effect(name, backwards):
    chosen = TOGETHER + ([] if name == "c51" else [PopArt()])
    agent = make(name, *(chosen[::-1] if backwards else chosen))
    world, metrics = NoiseWorld(AGENTS[name][1], 2), {}
    while agent.clock.gradient_steps < 14:
        agent.observe(world.step(agent.act(world.observations)))
        while agent.update_due():
            metrics = agent.update()
    added = {key.rpartition("/")[2] for key, value in metrics.items() if "penalty" in key and value > 0}
    assert added == {"l2_init", "parseval", "infer", "pfo"}
    for parameter, group in options_of(agent).items():
        assert group["weight_decay"] == (1.0 if parameter.endswith("weight") else 0.0)
    assert {group["betas"] for group in agent.learner.optimization.adam.param_groups} == {(0.8, 0.9)}
    done = agent.learner.interventions.surgeries()
    assert done["optimizer_reset", "forgotten", "target_sync"] > 0
    heads = list(member(agent, InFeR).trained.parameters())
    assert all(agent.learner.optimization.adam.state[p]["step"] == agent.clock.gradient_steps for p in heads)
    if name != "c51":
        assert agent.head.online.mean != 0


@every_agent
def test_together_they_go_on_after_a_restart(name):
    assert goes_on_after_a_restart(name, *TOGETHER, *([] if name == "c51" else [PopArt()]))


@every_agent
def test_together_they_read_nothing_back_from_the_device(name):
    agent = learn(name, *TOGETHER, *([] if name == "c51" else [PopArt()]))
    lifecycle = agent.learner.interventions
    agent.learner.optimization.adam.found_inf = torch.zeros(())
    masks = {layer.name: torch.arange(layer.units) % 3 == 0 for layer in lifecycle.layers}
    observations = torch.randn(8, 5)
    with NoReadBack():
        agent.head.meet(torch.randn(8), lifecycle.surgery)
        captured = agent.network(observations, "preactivations")[1]
        sum(lifecycle.penalties(lifecycle.forward(observations, captured)).values()).backward()
        lifecycle.on_target_sync()
        lifecycle.on_task_change()
        lifecycle.surgery.replace(masks)
        lifecycle.surgery.reset([agent.network])
