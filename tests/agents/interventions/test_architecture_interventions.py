"""Layer norm, batch norm, dropout, CReLU, other activations and spectral norm in whole agents."""

import copy
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from agents import build_agent, layers
from agents.config import NetworkConfig
from agents.interventions import Intervention, intervention_class
from agents.interventions.activation import Activation
from agents.interventions.batch_norm import BatchNorm
from agents.interventions.crelu import CReLU
from agents.interventions.dropout import Dropout
from agents.interventions.layer_norm import LayerNorm
from agents.interventions.spectral_norm import SpectralNorm
from agents.layers import SpectralScale
from agents.ppo_config import PPOConfig
from agents.randomness import Generators
from agents.value_config import C51Config, DQNConfig
from tests.agents.helpers import (
    CONTINUOUS,
    CPU,
    SMALL,
    SMALL_IMAGE,
    VECTOR,
    NoiseWorld,
    drive,
    global_random_states,
    same_tree,
    snapshot,
)

VALUE = {"network": SMALL, "buffer_size": 400, "learning_starts": 20, "batch_size": 8, "target_period": 7}
ON_POLICY = {"network": SMALL, "rollout_steps": 16, "update_epochs": 2}
AGENTS = {
    "dqn": (DQNConfig(**VALUE), VECTOR),
    "dqn on images": (DQNConfig(**VALUE), SMALL_IMAGE),
    "c51": (C51Config(**VALUE), VECTOR),
    "ppo": (PPOConfig(**ON_POLICY), VECTOR),
    "continuous ppo": (PPOConfig(**ON_POLICY, shared_torso=False), CONTINUOUS),
}
TOGETHER = [
    (LayerNorm(), Dropout(), CReLU(), SpectralNorm()),
    (BatchNorm(), SpectralNorm(hidden_layers=2), Activation("fourier"), Dropout(0.5)),
    (LayerNorm(kind="rms"), Activation("swish")),
]
EVERY = [
    LayerNorm(),
    LayerNorm(affine=False),
    LayerNorm(kind="rms"),
    BatchNorm(),
    BatchNorm(affine=False),
    Dropout(),
    CReLU(),
    CReLU(match="parameters"),
    SpectralNorm(),
    *(Activation(kind) for kind in ("leaky_relu", "tanh", "gelu", "swish", "fourier")),
]
every_agent = pytest.mark.parametrize("name", AGENTS)


class Decoy(Intervention):
    """So that the layers are looked at."""

    name = "decoy"


def names(interventions):
    return " ".join(f"{one.name}" for one in interventions)


every_group = pytest.mark.parametrize("together", TOGETHER, ids=names)


def made(name, interventions, seed=0, **settings):
    config, spaces = AGENTS[name]
    return build_agent(replace(config, **settings), spaces, 2, Generators(seed), CPU, interventions=interventions)


def trained(name, interventions, seed=0, ticks=40, **settings):
    return drive(made(name, interventions, seed, **settings), NoiseWorld(AGENTS[name][1], 2), ticks)


def networks_of(agent):
    return [agent.network, *([] if agent.learner.target is None else [agent.learner.target])]


def modules(network, kind):
    return [module for module in network.modules() if isinstance(module, kind)]


def reload(agent, other, kept):
    """Give `other` the agent's state and, copied, what a checkpoint of a run keeps beside it."""
    other.load_state_dict(snapshot(agent))
    other.generators.load_state_dict(agent.generators.state_dict())
    for attribute in kept:
        setattr(other, attribute, copy.deepcopy(getattr(agent, attribute)))
    return other


# -- in whole agents -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("intervention", EVERY, ids=lambda one: f"{one.name} {[*one.parameters().values()][1]}")
def test_each_is_called_as_its_file_and_changes_what_is_learned(intervention):
    assert intervention_class(intervention.name) is type(intervention)
    plain, agent = trained("dqn", ()), trained("dqn", [intervention])
    assert agent.clock.gradient_steps == plain.clock.gradient_steps > 5
    assert not same_tree(snapshot(agent.network), snapshot(plain.network))
    assert len(modules(agent.network.head, (nn.LayerNorm, nn.BatchNorm1d))) == 0
    assert type(agent.network.head) is nn.Linear


@every_agent
@every_group
def test_each_keeps_its_effect_beside_the_others(name, together):
    before = global_random_states()
    agent = trained(name, together)
    assert global_random_states() == before
    assert agent.clock.gradient_steps > 5
    every = agent.learner.interventions.layers
    torsos = 2 if name == "continuous ppo" else 1
    for layer in every:
        assert layer.separable, layer.reason
        kinds = {one.name: one for one in together}
        if "crelu" in kinds:
            assert layer.activation == "crelu"
        if "activation" in kinds:
            assert layer.activation == {"swish": "silu"}.get(kinds["activation"].kind, kinds["activation"].kind)
        batch = isinstance(layer.norm, (nn.BatchNorm1d, nn.BatchNorm2d))
        assert batch == ("batch_norm" in kinds)
        assert isinstance(layer.norm, nn.RMSNorm) == (getattr(kinds.get("layer_norm"), "kind", "") == "rms")
    for network in networks_of(agent):
        assert not any(module.training for module in network.modules())
        scales = modules(network, SpectralScale)
        wanted = [one.hidden_layers for one in together if one.name == "spectral_norm"]
        assert len(scales) == torsos * sum(wanted)
    again = trained(name, together)
    assert same_tree(snapshot(agent), snapshot(again))


@every_agent
@every_group
def test_a_reloaded_agent_goes_on_to_the_bit(name, together):
    agent, world = made(name, together), NoiseWorld(AGENTS[name][1], 2)
    drive(agent, world, 32)
    steps = agent.clock.gradient_steps
    kept = ("rollout", "_next_observations") if "ppo" in name else ("replay",)
    other, twin = reload(agent, made(name, together, seed=9), kept), copy.deepcopy(world)
    drive(agent, world, 20)
    drive(other, twin, 20)
    assert agent.clock.gradient_steps >= steps + 5
    assert same_tree(snapshot(agent), snapshot(other))


@every_group
def test_the_state_loads_with_weights_only(together, tmp_path):
    state = trained("dqn", together).state_dict()
    torch.save(state, tmp_path / "state.pt")
    assert same_tree(torch.load(tmp_path / "state.pt", weights_only=True), state)


@every_agent
@every_group
def test_acting_and_probing_change_nothing_and_do_not_depend_on_the_batch(name, together):
    agent, spaces = trained(name, together), AGENTS[name][1]
    before, network = snapshot(agent), agent.network
    x = torch.from_numpy(NoiseWorld(spaces, 16, seed=3).observations)
    first, alone = network(x), network(x[:1])
    for ours, single in zip(*((o if isinstance(o, tuple) else (o,)) for o in (first, alone)), strict=True):
        torch.testing.assert_close(ours[:1], single)
    agent.learner.interventions.capture(network, x)
    agent.player(True, Generators(0))(x.numpy())
    probe = copy.deepcopy(network)
    for ours, theirs in zip(*((o if isinstance(o, tuple) else (o,)) for o in (first, probe(x))), strict=True):
        assert torch.equal(ours, theirs)
    agent.learner.fresh(Generators(5).torch("probe"))
    assert same_tree(snapshot(agent), before)


def test_no_dropout_is_no_change():
    plain, off = (trained("dqn", chosen) for chosen in ((), [Dropout(0.0)]))
    assert same_tree(snapshot(plain.network), snapshot(off.network))


def test_only_one_part():
    for part in ("actor", "critic"):
        agent = trained("continuous ppo", [LayerNorm(only=part), Dropout(only=part), CReLU(only=part)])
        torsos = {"actor": agent.network.actor_torso, "critic": agent.network.critic_torso}
        for name, torso in torsos.items():
            assert len(modules(torso, nn.LayerNorm)) == (2 if name == part else 0)
            assert [layer.out_features for layer in modules(torso, nn.Linear)] == ([8, 8] if name == part else [16, 16])
        assert agent.network.policy_head.in_features == agent.network.value_head.in_features == 16


@pytest.mark.parametrize("intervention", EVERY, ids=lambda one: one.name)
def test_nothing_to_act_on_is_an_error(intervention):
    with pytest.raises(ValueError, match=intervention.name):
        made("dqn", [intervention], network=NetworkConfig(depth=0, activation="relu"))
    with pytest.raises(ValueError, match=intervention.name):
        made("dqn", [replace(intervention, only="critic")])
    found, plain = replace(intervention), made("dqn", [Decoy()])
    found.layers = tuple(plain.learner.interventions.layers)
    with pytest.raises(ValueError, match=f"{intervention.name}: no hidden layer"):
        found.attach({"online": plain.network}, Generators(0))


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: LayerNorm(kind="group"), "layer_norm.kind"),
        (lambda: Dropout(1.0), "dropout.rate"),
        (lambda: CReLU("both"), "crelu.match"),
        (lambda: SpectralNorm(0), "spectral_norm.hidden_layers"),
        (lambda: made("dqn", [SpectralNorm(3)]), "spectral_norm.hidden_layers"),
        (lambda: Activation("relu6"), "activation.kind"),
        (lambda: Activation(negative_slope=1.0), "activation.negative_slope"),
        (lambda: Activation("tanh", negative_slope=0.1), "activation.negative_slope"),
        (lambda: Activation("tanh", match="parameters"), "activation.match"),
        (lambda: made("dqn", [Activation("tanh")], network=replace(SMALL, activation="tanh")), "activation.kind"),
        (lambda: made("dqn", [CReLU()], network=replace(SMALL, width=15)), "width"),
        (lambda: made("dqn", [BatchNorm()], batch_size=1), "batch_norm: batch_size"),
        (lambda: made("dqn", [LayerNorm(), BatchNorm()]), "layer_norm and batch_norm cannot"),
        (lambda: made("dqn", [Activation(), CReLU()]), "activation and crelu cannot"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(make, named):
    with pytest.raises(ValueError, match=named.replace(".", r"\.")):
        make()


# -- batch norm ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [LayerNorm, BatchNorm])
def test_without_affine_the_norm_has_no_parameters(kind):
    for affine in (True, False):
        network = made("dqn", [kind(affine=affine)]).network
        assert any("norm" in name for name, _ in network.named_parameters()) == affine
        assert any("norm" in name for name, _ in network.named_modules())


def running(network):
    return {name: value.clone() for name, value in network.named_buffers() if "running" in name}


def test_running_statistics_move_at_an_update_and_reach_the_target_at_its_sync():
    agent = trained("dqn", [BatchNorm()], ticks=20, target_period=10**6)
    learned, target = running(agent.network), running(agent.learner.target)
    assert len(learned) == 4
    assert all(value.eq(0 if "mean" in name else 1).all() for name, value in target.items())
    agent.update()
    assert not any(torch.equal(value, learned[name]) for name, value in running(agent.network).items())
    assert same_tree(running(agent.learner.target), target)
    agent.learner.sync_target()
    assert same_tree(running(agent.learner.target), running(agent.network))


# -- dropout ---------------------------------------------------------------------------------------------------------


def masks_of(agent, updates=3):
    """Which of the features of the last layer were dropped at each update."""
    seen = []
    module = agent.network.torso.layers.dropout2
    handle = module.register_forward_hook(
        lambda m, x, out: seen.append((out == 0) & (x[0] != 0)) if m.training else None
    )
    batch = agent.replay.sample(agent.config.batch_size)
    agent.replay.sample = lambda size: batch
    for _ in range(updates):
        agent.update()
    handle.remove()
    return seen


def test_a_new_mask_at_every_update_that_follows_the_seed():
    first, again, other = (masks_of(trained("dqn", [Dropout(0.5)], seed)) for seed in (0, 0, 1))
    assert len(first) == 3
    assert not any(torch.equal(*pair) for pair in pairwise(first))
    assert all(map(torch.equal, first, again))
    assert not any(map(torch.equal, first, other))
    agent = made("dqn", [Dropout()], 3)
    (drop, *_), source = modules(agent.network, layers.SeededDropout), Generators(3).torch("dropout")
    assert torch.equal(drop.generator.get_state(), source.get_state())  # the run's own, which it remembers
    assert torch.equal(agent.generators.state_dict()["dropout"], source.get_state())


# -- spectral norm ---------------------------------------------------------------------------------------------------


def test_exactly_one_power_iteration_a_gradient_step():
    agent = trained("dqn", [SpectralNorm(hidden_layers=2)])
    for _ in range(3):
        scales = modules(agent.network, SpectralScale)
        before = [scale.u.double().numpy() for scale in scales]
        agent.update()
        assert len(scales) == 2
        for scale, u in zip(scales, before, strict=True):
            weight = scale.layer.weight.detach().double().numpy()
            v = weight.T @ u / np.linalg.norm(weight.T @ u)
            np.testing.assert_allclose(scale.v, v, atol=1e-5)
            np.testing.assert_allclose(scale.u, weight @ v / np.linalg.norm(weight @ v), atol=1e-5)


def test_sigma_follows_the_largest_singular_value_over_gradient_steps():
    agent = trained("dqn", [SpectralNorm()], ticks=300)
    (scale,) = modules(agent.network, SpectralScale)
    assert scale.layer is agent.network.torso.layers.dense2
    largest = np.linalg.norm(scale.layer.weight.detach().double().numpy(), 2)
    assert scale.sigma().item() == pytest.approx(largest, rel=1e-3)
    x = torch.randn(4, 16)
    layer = scale.layer
    expected = x.double() @ (layer.weight.detach().double().T / largest) + layer.bias.detach().double()
    torch.testing.assert_close(layer(scale(x)).double(), expected, rtol=1e-3, atol=1e-3)


def test_the_targets_vectors_are_the_online_ones_of_its_sync():
    agent = trained("dqn", [SpectralNorm()], target_period=10**6)
    (online,), (target,) = (modules(network, SpectralScale) for network in networks_of(agent))
    assert target.layer is agent.learner.target.torso.layers.dense2
    assert not torch.equal(online.u, target.u)
    agent.learner.sync_target()
    assert torch.equal(online.u, target.u)
    assert online.sigma().item() == target.sigma().item()


@pytest.mark.parametrize("networks", [("online",), ("online", "target")])
def test_a_redrawn_weight_starts_sigma_anew(networks):
    agent = trained("dqn", [SpectralNorm()])
    layer = agent.network.torso.layers.dense2
    agent.learner.interventions.surgery.reset([layer], networks=networks)
    for network in networks_of(agent):
        (scale,) = modules(network, SpectralScale)
        largest = np.linalg.norm(scale.layer.weight.detach().double().numpy(), 2)
        assert scale.sigma().item() == pytest.approx(largest, rel=0.05)
