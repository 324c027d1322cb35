"""Weight clipping: each layer's own range, nothing else touched."""

import numpy as np
import pytest
import torch
from torch import nn

from agents.initializers import initialize
from agents.interventions.layer_norm import LayerNorm
from agents.interventions.nap import NaP
from agents.interventions.weight_clip import WeightClip, initial_bounds
from tests.agents.helpers import same_tree
from tests.agents.interventions.models import every_model, frozen
from tests.agents.interventions.whole import agent_with, continues_alike, driven, operated, stepped

LAWS = {  # bounds of weight and bias of a Linear with 12 inputs and 5 outputs, by hand
    "torch": (12**-0.5, 12**-0.5),
    "lecun_uniform": (0.5, 0.5),
    "xavier_uniform": ((6 / 17) ** 0.5, (6 / 17) ** 0.5),
    "dopamine_c51": ((3**0.5 / 12) ** 0.5,) * 2,
    "orthogonal": ((3 * 2 / 12) ** 0.5,) * 2,  # gain sqrt 2: the elements' variance is 2 / 12
}


@pytest.mark.parametrize("law", LAWS)
def test_bounds_of_each_law(law):
    layer = initialize(nn.Linear(12, 5), law, torch.Generator().manual_seed(0))
    bounds = initial_bounds(layer)
    assert (bounds["weight"], bounds["bias"]) == pytest.approx(LAWS[law])
    if law != "orthogonal":
        assert layer.weight.abs().max() <= bounds["weight"]
    conv = initialize(nn.Conv2d(3, 40, 2), law, torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    draws = torch.cat([conv.initializer.weight_rows(40, (3, 2, 2), generator) for _ in range(90)])
    assert initial_bounds(conv)["weight"] / 3**0.5 == pytest.approx(draws.double().std().item(), rel=0.02)


@every_model
@pytest.mark.parametrize("kappa", [0.3, 1.0])
def test_weights_and_biases_are_clipped_and_norms_are_not(kind, kappa):
    intervention = WeightClip(kappa=kappa)
    patient = operated(kind, intervention, steps=0)
    expected = {}
    for module_name, module in patient.network.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            fan_in = module.weight[0].numel()
            law = {"lecun": (3 / fan_in) ** 0.5, "torch": fan_in**-0.5}
            which = "torch" if kind in ("mlp", "plain mlp") or kind.startswith("sb3") else "lecun"
            bound = law[which]
            if kind in ("conv -> flatten -> linear", "actor, critic"):
                gain = {"policy_head": 0.01, "value_head": 1.0}.get(module_name, 2**0.5)
                bound = gain * (3 / max(fan_in, module.weight.shape[0])) ** 0.5
            expected |= {f"{module_name}.{own}": kappa * bound for own, _ in module.named_parameters()}
    for parameter in patient.network.parameters():
        parameter.data.mul_(3.0).add_(0.05)
    patient.train()
    before, target = frozen(patient), frozen(patient, "target")
    stepped(patient, intervention)
    after = frozen(patient)
    for (name, key), array in after.items():
        if key == "value" and name in expected:
            limit = expected[name]
            np.testing.assert_allclose(array, np.clip(before[name, key], -limit, limit), rtol=1e-6, atol=1e-9)
        else:
            np.testing.assert_array_equal(array, before[name, key])
    assert any((after[name, "value"] != before[name, "value"]).any() for name in expected)
    assert all((array == target[key]).all() for key, array in frozen(patient, "target").items())
    patient.train()
    assert all((frozen(patient)[name, "value"] != after[name, "value"]).any() for name in expected)


def test_what_is_frozen_or_of_another_part_stays():
    intervention = WeightClip(kappa=1e-3, only="critic")
    patient = operated("actor, critic", intervention)
    patient.network.value_head.weight.requires_grad_(False)
    before = frozen(patient)
    stepped(patient, intervention)
    hit = {name for (name, key), array in frozen(patient).items() if (array != before[name, key]).any()}
    layers = ("critic_torso.layers.dense1", "critic_torso.layers.dense2")
    assert hit == {f"{layer}.{own}" for layer in layers for own in ("weight", "bias")} | {"value_head.bias"}


@pytest.mark.parametrize("kappa", [0, -1.0, float("inf")])
def test_a_wrong_kappa_is_refused(kappa):
    with pytest.raises(ValueError, match=r"weight_clip\.kappa = .*: must be > 0 and finite"):
        WeightClip(kappa=kappa)


def test_nothing_to_clip_is_refused():
    with pytest.raises(ValueError, match="weight_clip: there is no Linear or convolution"):
        operated("mlp", WeightClip(only="actor"))


@pytest.mark.parametrize("kind", ["dqn", "c51 on images", "ppo", "ppo, two torsos"])
def test_through_the_agents(kind):
    agent = driven(kind, LayerNorm(), NaP(), WeightClip(kappa=0.9))
    assert agent.clock.gradient_steps > 20
    for module in agent.network.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            bounds = initial_bounds(module)
            assert module.weight.abs().max() <= 0.9001 * bounds["weight"]
            assert module.bias.abs().max() <= 0.9001 * bounds["bias"]
    assert any(who == "weight_clip" for who, _, _ in agent.learner.interventions.surgeries())
    if "ppo" in kind and agent.network.log_std is not None:
        assert agent.network.log_std.any()


def test_a_range_that_is_never_left_changes_nothing():
    wide = driven("dqn", WeightClip(kappa=1e6))
    assert same_tree(wide.network.state_dict(), driven("dqn").network.state_dict())


def test_a_restored_run_goes_on_alike():
    assert continues_alike("dqn", lambda: [WeightClip(kappa=0.8)])
    assert agent_with("dqn", WeightClip()).learner.interventions.members[0].state_dict() == {}
