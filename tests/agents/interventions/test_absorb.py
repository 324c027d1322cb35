"""A removed unit's mean contribution goes into the biases of those that read it."""

import copy

import pytest
import torch

from plasticity_probes.units import activations
from tests.agents.interventions.models import (
    MODELS,
    Patient,
    assert_same,
    frozen,
    slots_of,
)


def preactivations(module, inputs):
    with torch.no_grad():
        return module(inputs)


@pytest.mark.parametrize("kind", ["mlp", "conv -> flatten -> linear", "conv, channels last"])
@pytest.mark.parametrize("form", ["mask", "slots"])
def test_absorbing_keeps_the_mean_input_of_linear_consumers(kind, form):
    patient = Patient(*MODELS[kind])
    post = activations(patient.network, patient.batch)["a"].post
    mask = patient.masks()["a"]
    consumer = patient.network.b
    inputs = post.permute(0, 2, 3, 1).flatten(1) if "last" in kind else post.flatten(1)
    before = preactivations(consumer, inputs).mean(0)
    states = copy.deepcopy(patient.adam.state[consumer.bias])
    bias = consumer.bias.clone()
    given = mask if form == "mask" else slots_of(mask, len(mask))
    patient.surgery.replace({"a": given}, absorb={"a": post.mean(0)})
    # the removed units' own new outputs do not matter: their columns are zero
    torch.testing.assert_close(preactivations(consumer, inputs).mean(0), before, atol=1e-6, rtol=1e-5)
    assert (consumer.bias - bias).abs().max() > 1e-3
    assert all(torch.equal(value, states[key]) for key, value in patient.adam.state[consumer.bias].items())


def test_absorbing_after_a_flatten_needs_a_mean_for_each_column():
    # with one mean a channel (repeated over positions) the mean preactivation would move
    patient = Patient(*MODELS["conv -> flatten -> linear"])
    post = activations(patient.network, patient.batch)["a"].post
    before = preactivations(patient.network.b, post.flatten(1)).mean(0)
    flat = post.mean((0, 2, 3))[:, None, None].expand(4, 3, 3)
    patient.surgery.replace({"a": patient.masks()["a"]}, absorb={"a": flat})
    assert (preactivations(patient.network.b, post.flatten(1)).mean(0) - before).abs().max() > 1e-3


def test_absorbing_into_a_convolution_is_exact_inside_and_not_at_padded_borders():
    patient = Patient(*MODELS["conv"])
    means = torch.tensor([0.5, -1.0, 2.0, 0.25])[:, None, None].expand(4, 5, 5)
    before = preactivations(patient.network.b, means[None])
    patient.surgery.replace({"a": torch.tensor([False, True, True, False])}, absorb={"a": means})
    difference = (preactivations(patient.network.b, means[None]) - before).abs()[0]
    assert difference[:, 1:-1, 1:-1].max() < 1e-5
    assert difference[:, 0].max() > 1e-2


def test_absorbing_crelu_uses_both_halves_and_every_consumer_its_own_weights():
    patient = Patient(*MODELS["crelu"])
    post = activations(patient.network, patient.batch)["c"].post
    before = patient.network.d(post).mean(0)
    patient.surgery.replace({"c": patient.masks()["c"]}, absorb={"c": post.mean(0)})
    torch.testing.assert_close(patient.network.d(post).mean(0), before, atol=1e-6, rtol=1e-5)
    patient = Patient(*MODELS["duelling"])
    post = activations(patient.network, patient.batch)["a"].post
    before = [head(post).mean(0) for head in (patient.network.b, patient.network.c)]
    patient.surgery.replace({"a": patient.masks()["a"]}, absorb={"a": post.mean(0)})
    for head, mean in zip((patient.network.b, patient.network.c), before, strict=True):
        torch.testing.assert_close(head(post).mean(0), mean, atol=1e-6, rtol=1e-5)


def test_the_bias_of_a_consumer_that_is_replaced_as_well_is_fresh():
    patient = Patient(*MODELS["mlp"])
    masks = {"a": torch.arange(6) < 3, "b": torch.arange(7) < 2}
    draws = {name: patient.surgery.draw(name, len(mask)) for name, mask in masks.items()}
    patient.surgery.replace(masks, absorb={"a": torch.ones(6)}, draws=draws)
    assert torch.equal(patient.network.b.bias[:2], draws["b"][1][:2])


def test_a_consumer_without_bias_cannot_absorb():
    patient = Patient(*MODELS["plain mlp"])
    before = frozen(patient)
    patient.surgery.require_absorb("a")
    with pytest.raises(ValueError, match="'c' reads 'b' but has no bias"):
        patient.surgery.require_absorb("b")
    with pytest.raises(ValueError, match="'c' reads 'b'"):
        patient.surgery.replace({"b": patient.masks()["b"]}, absorb={"b": torch.zeros(7)})
    with pytest.raises(ValueError, match="absorb: b must be among"):
        patient.surgery.replace({"a": patient.masks()["a"]}, absorb={"b": torch.zeros(7)})
    assert_same(frozen(patient), before)


def test_means_of_the_wrong_shape_are_refused_before_anything_changes():
    patient = Patient(*MODELS["two consumers"])
    before = frozen(patient)
    with pytest.raises(ValueError, match="do not say what each of the 1 columns"):
        patient.surgery.replace({"a": patient.masks()["a"]}, absorb={"a": torch.zeros(6)})
    assert_same(frozen(patient), before)
