"""Replacement of units: exactly the owned slices of weights and moments change, and to what they should."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn
from torch.nn import functional as F

from agents.interventions import Intervention, Slots, Surgery
from plasticity_probes.units import activations, hidden_layers
from tests.agents.helpers import global_random_states
from tests.agents.interventions import models
from tests.agents.interventions.models import (
    MODELS,
    Model,
    Patient,
    assert_same,
    every_model,
    frozen,
    images,
    replaced_slowly,
    slots_of,
    vectors,
)


def draws_by_unit(patient, given):
    """The rows that `replace` is going to draw, by layer and unit: layer after layer, weights then biases."""
    twin = torch.Generator()
    twin.set_state(patient.generator.get_state())
    drawn = {}
    for name, units in given.items():
        slices = patient.surgery.of(name)
        shape = slices.layer.producer.weight.shape
        count = len(units[0]) if isinstance(units, tuple) else shape[0]
        rows = slices.initializer.weight_rows(count, tuple(shape[1:]), twin).numpy()
        biases = slices.initializer.bias_rows(count, twin).numpy()
        by_unit = np.full(shape, np.nan, np.float32), np.full(shape[0], np.nan, np.float32)
        for slot in range(count):
            if isinstance(units, tuple) and units[1][slot]:
                by_unit[0][int(units[0][slot])], by_unit[1][int(units[0][slot])] = rows[slot], biases[slot]
        drawn[name] = by_unit if isinstance(units, tuple) else (rows, biases)
    return drawn


@every_model
@pytest.mark.parametrize("form", ["mask", "slots", "as many slots as units"])
@pytest.mark.parametrize("moments", ["zero", "keep", "mean"])
def test_exactly_the_owned_slices_change(kind, form, moments):
    patient = Patient(*MODELS[kind])
    masks = patient.masks()
    assert masks
    sizes = {name: int(mask.sum()) if form == "slots" else len(mask) for name, mask in masks.items()}
    given = masks if form == "mask" else {name: slots_of(mask, sizes[name]) for name, mask in masks.items()}
    before = frozen(patient)
    assert all(array.any() for (_, key), array in before.items() if key == "exp_avg_sq")
    expected = replaced_slowly(patient, before, masks, draws_by_unit(patient, given), moments)
    counts = patient.surgery.replace(given, moments)
    after = frozen(patient)
    if moments == "mean":
        assert_same(after, expected, 1e-5)
        after = {key: array for key, array in after.items() if key[1] != "exp_avg_sq"}
        expected = {key: expected[key] for key in after}
    assert_same(after, expected)
    assert {name: int(count) for name, count in counts.items()} == {name: int(m.sum()) for name, m in masks.items()}
    assert all(array == 3 for (_, key), array in after.items() if key == "step")


@pytest.mark.parametrize("units", [[0, 2], [1, 0, 3], [2]])
def test_the_mean_moment_goes_to_each_column_by_its_place_in_the_unit(units):
    # in the short head the units 2 and 3 own no column and unit 1 fewer than unit 0
    patient = Patient(*MODELS["part of a flatten"])
    masks = {"a": torch.isin(torch.arange(4), torch.tensor(units))}
    given = {"a": Slots(torch.tensor(units), torch.ones(len(units), dtype=torch.bool))}
    expected = replaced_slowly(patient, frozen(patient), masks, draws_by_unit(patient, given), "mean")
    patient.surgery.replace(given, "mean")
    assert_same(frozen(patient), expected, 1e-5)


@every_model
def test_the_target_gets_the_same_slices_where_asked(kind):
    patient = Patient(*MODELS[kind])
    masks = patient.masks()
    untouched = frozen(patient, "target")
    draws = draws_by_unit(patient, masks)
    expected = replaced_slowly(patient, untouched, masks, draws, "zero")
    spared = Patient(*MODELS[kind])
    spared.surgery.replace(masks)
    assert_same(frozen(spared, "target"), untouched)
    patient.surgery.replace(masks, networks=("online", "target"))
    assert_same(frozen(patient, "target"), expected)
    assert_same(frozen(patient), frozen(spared))


def test_columns_after_a_flatten_are_those_of_the_channel():
    # 3x3 positions a channel: channel 1 of 4 owns columns 9 .. 17 in CHW order, and 1, 5, 9, ... where channels go last
    for kind, columns in (("conv -> flatten -> linear", range(9, 18)), ("conv, channels last", range(1, 36, 4))):
        patient = Patient(*MODELS[kind])
        patient.surgery.replace({"a": Slots(torch.tensor([1]), torch.tensor([True]))})
        gone = (patient.network.b.weight == 0).all(0)
        assert gone.nonzero().squeeze(1).tolist() == list(columns)


def test_all_incoming_come_before_all_outgoing():
    # a dormant unit that feeds a dormant unit: the row is redrawn, the column is zeroed after that
    for order in (["a", "b"], ["b", "a"]):
        patient = Patient(*MODELS["mlp"])
        units = {"a": torch.arange(6) == 2, "b": torch.arange(7) == 5}
        patient.surgery.replace({name: units[name] for name in order})
        assert not patient.network.b.weight[:, 2].any()
        assert patient.network.b.weight[5].count_nonzero() == 5


@pytest.mark.parametrize("kind", ["mlp", "conv", "conv -> flatten -> linear", "crelu", "two consumers", "duelling"])
def test_replacing_silent_units_leaves_the_function_as_it_is(kind):
    patient = Patient(*MODELS[kind])
    masks = patient.masks()
    for layer in patient.separable():
        with torch.no_grad():
            rows = masks[layer.name]
            layer.producer.weight[rows], layer.producer.bias[rows] = 0, 0 if layer.activation == "crelu" else -1
    post = activations(patient.network, patient.batch)
    assert not any(post[name].post[:, : len(mask)][:, mask].any() for name, mask in masks.items())
    before = patient.output()
    patient.surgery.replace(masks)
    torch.testing.assert_close(patient.output(), before, atol=1e-6, rtol=1e-6)
    assert not torch.equal(activations(patient.network, patient.batch)["a"].post, post["a"].post)


def test_behind_a_layer_norm_new_units_shift_everyones_statistics():
    patient = Patient(*MODELS["layer norm"])
    dead = torch.tensor([True, False, True, False, False, True])
    with torch.no_grad():
        patient.network.na.weight[dead], patient.network.na.bias[dead] = 0, -1
    assert not activations(patient.network, patient.batch)["a"].post[:, dead].any()
    before = patient.output().detach()
    patient.surgery.replace({"a": dead})
    change = (patient.output() - before).abs().max()
    # what it has to be: the survivors, normalised with the new units' preactivations among them
    net, alive = patient.network, (~dead).numpy()
    pre = patient.batch.numpy() @ net.a.weight.detach().numpy().T + net.a.bias.detach().numpy()
    normed = (pre - pre.mean(1, keepdims=True)) / np.sqrt(pre.var(1, keepdims=True) + 1e-5)
    hidden = np.maximum(normed * net.na.weight.detach().numpy() + net.na.bias.detach().numpy(), 0) * alive
    with torch.no_grad():
        expected = net.c(F.relu(net.nb(net.b(torch.from_numpy(hidden)))))
    torch.testing.assert_close(patient.output(), expected, atol=1e-5, rtol=1e-5)
    assert change > 0.2 * before.std()


@pytest.mark.parametrize("law", ["torch", "lecun_uniform", "orthogonal", None])
def test_new_rows_follow_the_layers_own_law(law):
    build = lambda: Model(lambda m, x: m.b(F.relu(m.a(x))), law, a=nn.Linear(5, 4), b=nn.Linear(4, 3))  # noqa: E731
    patient = Patient(build, vectors)
    rows, biases = [], []
    for number in range(600):
        unit = torch.tensor([number % 4])
        patient.surgery.replace({"a": Slots(unit, torch.tensor([True]))})
        rows.append(patient.network.a.weight[unit[0]].detach().clone())
        biases.append(patient.network.a.bias[unit[0]].item())
    rows = torch.stack(rows).double()
    if law == "orthogonal":  # wide: every row has norm gain = sqrt 2; a uniform direction's first coordinate
        torch.testing.assert_close(rows.norm(dim=1), torch.full((600,), 2**0.5).double(), atol=1e-5, rtol=0)
        assert stats.kstest((rows[:, 0] / 2**0.5 + 1) / 2, stats.beta(2, 2).cdf).pvalue > 1e-3
    else:
        bound = (3 / 5) ** 0.5 if law == "lecun_uniform" else 5**-0.5
        assert rows.abs().max() <= bound
        assert stats.kstest(rows.flatten().numpy(), stats.uniform(-bound, 2 * bound).cdf).pvalue > 1e-3
    if law in ("torch", None):
        assert stats.kstest(biases, stats.uniform(-(5**-0.5), 2 * 5**-0.5).cdf).pvalue > 1e-3
    else:
        assert not any(biases)


@every_model
def test_noise_comes_from_the_given_generator_alone(kind):
    first, second, third = (Patient(*MODELS[kind], seed=seed) for seed in (0, 0, 1))
    states = global_random_states()
    for patient in (first, second, third):
        patient.surgery.replace(patient.masks())
    assert global_random_states() == states
    assert_same(frozen(first), frozen(second))
    name = first.separable()[0].name
    weights = [patient.network.get_submodule(name).weight[-1] for patient in (first, third)]
    assert not torch.equal(*weights)


@every_model
def test_replaced_weights_go_on_training(kind):
    patient = Patient(*MODELS[kind])
    masks = patient.masks()
    patient.surgery.replace(masks)
    with torch.no_grad():  # so that no new unit is silent on this batch
        for layer in patient.separable():
            if layer.producer.bias is not None:
                layer.producer.bias[masks[layer.name]] = 1
    after = frozen(patient)
    patient.train()
    patient.train()
    trained = frozen(patient)
    for layer in patient.separable():
        (consumer, owner), mask = layer.consumers[0], masks[layer.name].numpy()
        columns = np.isin(owner.numpy(), np.flatnonzero(mask))
        weight = consumer.weight.detach().numpy()
        assert (weight[:, columns] != 0).any()  # they were zero, and are in the optimizer
    for (name, key), array in after.items():
        assert (
            key != "value"
            or name not in dict(patient.network.named_parameters())
            or (trained[name, key] != array).any()
        )


class Listener(Intervention):
    """Notes what it hears, and whether the edit was complete by then."""

    name = "listener"

    def __init__(self, layers):
        self.layers, self.heard, self.complete = layers, [], []

    def on_replaced(self, layer, units):
        self.heard.append((layer.name, units.mask.tolist()))
        self.complete.append(
            all(not (consumer.weight[:, owner == 1]).any() for consumer, owner in self.layers[0].consumers)
        )

    def on_reset(self, parameters):
        self.heard.append(len(parameters))


def test_every_intervention_hears_of_replaced_units_when_all_is_done():
    network = models.duelling()
    layers = hidden_layers(network, vectors())
    listeners = [Listener(layers), Listener(layers)]
    adam = torch.optim.Adam(network.parameters())
    surgery = Surgery({"online": network}, adam, layers, torch.Generator(), None, listeners)
    masks = {"c": torch.arange(5) == 3, "a": torch.arange(6) == 1}
    surgery.replace({"c": masks["c"], layers[0]: Slots(torch.tensor([1, 0]), torch.tensor([True, False]))})
    for listener in listeners:
        assert listener.heard == [("c", masks["c"].tolist()), ("a", masks["a"].tolist())]
        assert listener.complete == [True, True]


def test_layers_that_cannot_be_taken_apart_are_refused_by_name():
    build = lambda: Model(  # noqa: E731
        lambda m, x: m.c(F.relu(m.b(F.relu(m.a(x)))) + F.relu(m.a(x))),
        a=nn.Linear(5, 5),
        b=nn.Linear(5, 5),
        c=nn.Linear(5, 3),
    )
    patient = Patient(build, vectors)
    (layer,) = [layer for layer in patient.layers if layer.name == "b"]
    assert not layer.separable
    with pytest.raises(ValueError, match="layer 'b'.*one by one") as caught:
        patient.surgery.replace({"b": torch.ones(5, dtype=torch.bool)})
    assert layer.reason in str(caught.value)
    with pytest.raises(ValueError, match="layer 'z': must be one of a, b"):
        patient.surgery.replace({"z": torch.ones(5, dtype=torch.bool)})


def test_wrong_words_are_refused():
    patient = Patient(*MODELS["mlp"])
    masks = patient.masks()
    with pytest.raises(ValueError, match="moments = 'half': must be zero, keep, mean, local"):
        patient.surgery.replace(masks, "half")
    for networks in (("target",), ("online", "actor"), ()):
        with pytest.raises(ValueError, match="must be 'online', then any of online, target"):
            patient.surgery.replace(masks, networks=networks)


def test_convolutions_of_images_that_are_not_square():
    def build():
        layers = {"a": nn.Conv2d(3, 2, (3, 2)), "b": nn.Linear(36, 3)}
        return Model(lambda m, x: m.b(F.relu(m.a(x[:, :, :5])).flatten(1)), **layers)

    patient = Patient(build, images)
    patient.surgery.replace({"a": torch.tensor([False, True])})
    assert not patient.network.b.weight[:, 18:].any()
    assert patient.network.b.weight[:, :18].all()
