"""The change of preactivations and its gradients by hand in float64, and when the old network is refreshed."""

import numpy as np
import pytest
import torch

from agents.interventions.pfo import PFO
from tests.agents.helpers import NoiseWorld, drive, same_tree, snapshot
from tests.agents.interventions.models import every_model
from tests.agents.interventions.test_infer import arrays, backward, forward_of, preactivations
from tests.agents.interventions.test_l2_init import patient_of
from tests.agents.interventions.test_weight_decay import (
    AGENTS,
    every_agent,
    goes_on_after_a_restart,
    learn,
    make,
    member,
    same_training,
)


@pytest.mark.parametrize("layers_used", ["last", "all"])
@pytest.mark.parametrize("average", [True, False])
def test_value_and_gradients_by_hand(layers_used, average):
    pfo = PFO(coefficient=0.3, layers_used=layers_used, average=average)
    patient, start = patient_of(pfo, double=True)
    now, x = arrays(patient.network), patient.batch.double().numpy()
    moved = [a - b for a, b in zip(preactivations(now, x), preactivations(start, x), strict=True)]
    used = moved if layers_used == "all" else moved[1:]
    values = len(x) * (sum(part.shape[1] for part in used) if average else 1)
    penalty = pfo.penalty(forward_of(patient))
    penalty.backward()
    assert penalty.item() == pytest.approx(0.3 * sum((part**2).sum() for part in used) / values, rel=1e-9)
    by_first = 2 * 0.3 * moved[0] / values if layers_used == "all" else 0.0
    for name, gradient in backward(now, x, by_first, 2 * 0.3 * moved[1] / values).items():
        np.testing.assert_allclose(dict(patient.network.named_parameters())[name].grad.numpy(), gradient, rtol=1e-8)
    assert all(p.grad is None for p in pfo.old.parameters())


def test_actor_and_critic_are_averaged_apart_and_added():
    agent = make("continuous ppo", PFO())
    both = member(agent, PFO)
    with torch.no_grad():
        agent.network.actor_torso.layers.dense2.bias += 2.0
        agent.network.critic_torso.layers.dense2.bias += 3.0
    observations = torch.randn(6, 5)
    captured = agent.learner.interventions.capture(agent.network, observations)
    forward = agent.learner.interventions.forward(observations, None)._replace(captured=captured)
    assert both.penalty(forward).item() == pytest.approx(2.0**2 + 3.0**2, rel=1e-5)
    actor = make("continuous ppo", PFO(only="actor"))
    assert member(actor, PFO)._parts == {"actor": ["actor_torso.layers.dense2"]}
    everything = member(make("continuous ppo", PFO(layers_used="all")), PFO)
    assert {part: len(names) for part, names in everything._parts.items()} == {"actor": 2, "critic": 2}


def test_before_the_first_synchronisation_it_is_the_network_as_made():
    agent = drive(make("dqn", PFO()), NoiseWorld(AGENTS["dqn"][1], 2), 8)
    assert 0 < agent.clock.gradient_steps < 5
    assert same_tree(snapshot(member(agent, PFO).old), snapshot(make("dqn").network))
    assert not same_tree(snapshot(agent.network), snapshot(make("dqn").network))


@pytest.mark.parametrize("name", ["dqn", "c51"])
def test_it_is_refreshed_with_the_target_network(name):
    agent, world = make(name, PFO()), NoiseWorld(AGENTS[name][1], 2)
    for _ in range(30):
        drive(agent, world, 1)
        if agent.clock.gradient_steps:
            assert same_tree(snapshot(member(agent, PFO).old), snapshot(agent.learner.target))
    assert agent.clock.gradient_steps > 15


def test_in_ppo_it_is_refreshed_at_the_start_of_an_update_phase():
    agent, world = make("continuous ppo", PFO()), NoiseWorld(AGENTS["continuous ppo"][1], 2)
    for _ in range(3):
        drive(agent, world, 15)
        drive(agent, world, 1, learn=False)
        before = snapshot(agent.network)  # its normalizer's statistics too
        assert agent.update_due()
        metrics = agent.update()
        assert same_tree(snapshot(member(agent, PFO).old), before)
        assert not same_tree(snapshot(agent.network), before)
        assert metrics["losses/penalty/pfo"] > 0


@every_model
def test_surgery_reaches_the_old_network(kind):
    pfo = PFO(layers_used="all")
    patient, _ = patient_of(pfo, kind)
    old = {name: tensor.detach().clone() for name, tensor in pfo.old.state_dict().items()}
    before = {name: tensor.detach().clone() for name, tensor in patient.network.state_dict().items()}
    patient.surgery.replace(patient.masks())
    for name, tensor in patient.network.state_dict().items():
        changed = tensor != before[name]
        assert torch.equal(pfo.old.state_dict()[name][changed], tensor[changed])
    unlike = {name: (pfo.old.state_dict()[name] != tensor) for name, tensor in old.items()}
    assert all((pfo.old.state_dict()[n][m] == patient.network.state_dict()[n][m]).all() for n, m in unlike.items())
    patient.surgery.reset([patient.network])
    for name, tensor in patient.network.named_parameters():
        assert torch.equal(dict(pfo.old.named_parameters())[name], tensor)


@every_agent
def test_it_holds_preactivations_and_at_zero_nothing_happens(name):
    free = learn(name)
    assert same_training(learn(name, PFO(coefficient=0.0)), free)
    assert not same_training(learn(name, PFO()), free)

    def drift(agent):
        observations = torch.randn(32, 5, generator=torch.Generator().manual_seed(3))
        start = make(name).network
        if getattr(agent.network, "normalizer", None) is not None:
            start.normalizer = agent.network.normalizer
        parts = [agent.learner.interventions.capture(network, observations) for network in (agent.network, start)]
        return sum((parts[0][n][0] - parts[1][n][0]).square().mean().item() for n in parts[0])

    assert drift(learn(name, PFO(coefficient=1000.0))) < 0.7 * drift(learn(name, PFO(coefficient=1e-12)))


@every_agent
def test_it_goes_on_after_a_restart(name):
    assert goes_on_after_a_restart(name, PFO(layers_used="all"))


def test_bad_parameters_are_refused():
    with pytest.raises(ValueError, match=r"pfo\.layers_used = 'first': must be last or all"):
        PFO(layers_used="first")
    with pytest.raises(ValueError, match=r"pfo\.coefficient"):
        PFO(coefficient=-1)
    with pytest.raises(ValueError, match=r"pfo\.only = 'critic': must be a part with hidden layers"):
        make("c51", PFO(only="critic"))
