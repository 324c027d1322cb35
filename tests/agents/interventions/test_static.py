"""Masks and slots, static shapes, nothing read back: the same edit eagerly, compiled and in a CUDA graph."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from agents.interventions import Slots, Surgery
from plasticity_probes.units import activations, hidden_layers
from tests.agents.helpers import needs_cuda
from tests.agents.interventions import models
from tests.agents.interventions.models import MODELS, Patient, assert_same, every_model, frozen, slots_of, vectors


@every_model
def test_a_mask_and_as_many_slots_as_units_are_the_same_edit(kind):
    first, second = Patient(*MODELS[kind]), Patient(*MODELS[kind])
    masks = first.masks()
    first.surgery.replace(masks)
    second.surgery.replace({name: Slots(torch.arange(len(mask)), mask) for name, mask in masks.items()})
    assert_same(frozen(first), frozen(second))


@every_model
@pytest.mark.parametrize("k", [1, 3])
def test_invalid_slots_change_nothing(kind, k):
    patient = Patient(*MODELS[kind])
    before = frozen(patient)
    nothing = Slots(torch.tensor([0, 10**9, -5])[:k], torch.zeros(k, dtype=torch.bool))
    patient.surgery.replace(dict.fromkeys(patient.separable(), nothing))
    patient.surgery.replace({layer: torch.zeros(layer.units, dtype=torch.bool) for layer in patient.separable()})
    assert_same(frozen(patient), before)


@pytest.mark.parametrize(("units", "gone"), [([5], []), ([5, 0], [0]), ([0, 5], [0]), ([2, 4], [2])])
def test_a_consumer_that_does_not_read_every_unit(units, gone):
    # head c reads the units 0 .. 3 alone: replacing unit 5 must leave its first column alone, whatever stands in for it
    patient = Patient(*MODELS["two consumers"])
    before = patient.network.c.weight.clone()
    patient.surgery.replace({"a": Slots(torch.tensor(units), torch.ones(len(units), dtype=torch.bool))})
    before[:, gone] = 0
    assert torch.equal(patient.network.c.weight, before)
    assert patient.network.b.weight[:, 5:].eq(0).all(0).nonzero().squeeze(1).tolist() == sorted(units)


def test_a_unit_named_twice_is_drawn_once():
    patient = Patient(*MODELS["mlp"])
    rows, biases = torch.arange(30.0).view(6, 5), torch.arange(6.0)
    index, valid = torch.tensor([4, 2, 4, 2, 0, 2]), torch.tensor([False, True, True, True, False, True])
    before = patient.network.a.weight.clone()
    counts = patient.surgery.replace({"a": Slots(index, valid)}, draws={"a": (rows, biases)})
    before[2], before[4] = rows[1], rows[2]
    assert torch.equal(patient.network.a.weight, before)
    assert counts["a"] == 2
    assert patient.surgery.replaced["a"] == 2


class NoReadBack(TorchDispatchMode):
    """Refuses every operation whose result leaves the device or whose shape depends on values."""

    FORBIDDEN = ("_local_scalar_dense", "nonzero", "masked_select", "item", "is_nonzero", "unique", "equal")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().removeprefix("aten::").split(".")[0]
        assert name not in self.FORBIDDEN, name
        booleans = isinstance(args[1] if len(args) > 1 else None, (list, tuple)) and name in ("index", "index_put_")
        if booleans:
            assert not any(i is not None and i.dtype == torch.bool for i in args[1]), "index by a mask"
        return func(*args, **(kwargs or {}))


@every_model
def test_no_value_is_read_back(kind):
    patient = Patient(*MODELS[kind])
    patient.adam.found_inf = torch.zeros(())
    masks = patient.masks()
    slots = {
        name: slots_of(mask, 3 if len(mask) > 3 and mask.sum() <= 3 else len(mask)) for name, mask in masks.items()
    }
    post = activations(patient.network, patient.batch)
    absorbing = {name: post[name].post.mean(0) for name in masks if kind in ("mlp", "conv", "crelu", "duelling")}
    with NoReadBack():
        for moments in ("zero", "keep", "mean"):
            patient.surgery.replace(masks, moments, networks=("online", "target"))
            patient.surgery.replace(slots, moments, absorbing, networks=("online", "target"))
        patient.surgery.reset([patient.network], networks=("online", "target"))
        patient.surgery.project(patient.network.parameters(), lambda weight: 0.5 * weight)
    with pytest.raises(AssertionError, match="index by a mask|nonzero"), NoReadBack():
        torch.ones(2)[torch.tensor([True, False])]


def test_one_graph_holds_a_whole_replacement():
    eager, compiled = Patient(*MODELS["crelu"]), Patient(*MODELS["crelu"])
    slots = {name: slots_of(mask, len(mask)) for name, mask in eager.masks().items()}
    draws = {name: eager.surgery.draw(name, len(given[0])) for name, given in slots.items()}
    function = torch.compile(
        lambda given, drawn: compiled.surgery.replace(given, draws=drawn), backend="eager", fullgraph=True
    )
    function(slots, draws)
    eager.surgery.replace(slots, draws=draws)
    assert_same(frozen(compiled), frozen(eager))


def test_nothing_is_edited_while_found_inf_is_set():
    patient = Patient(*MODELS["layer norm"])
    before = frozen(patient)
    patient.adam.found_inf = torch.ones(())
    masks = patient.masks()
    counts = patient.surgery.replace(masks, absorb={"b": torch.ones(7)}, networks=("online", "target"))
    patient.surgery.replace({name: slots_of(mask, len(mask)) for name, mask in masks.items()})
    patient.surgery.replace({"a": Slots(torch.tensor([3]), torch.tensor([True]))})
    patient.surgery.reset([patient.network])
    patient.surgery.project(patient.network.parameters(), lambda weight: 2 * weight)
    assert_same(frozen(patient), before)
    assert not any(counts.values())
    assert not any(patient.surgery.replaced.values())


@pytest.mark.parametrize(
    "units",
    [
        torch.ones(5, dtype=torch.bool),
        torch.ones(6),
        Slots(torch.tensor([1.0]), torch.tensor([True])),
        Slots(torch.tensor([1]), torch.tensor([1])),
        Slots(torch.tensor([1]), torch.tensor([True, False])),
        Slots(torch.arange(7) % 6, torch.ones(7, dtype=torch.bool)),
        Slots(torch.arange(0), torch.ones(0, dtype=torch.bool)),
    ],
)
def test_units_in_a_wrong_form_are_refused(units):
    patient = Patient(*MODELS["mlp"])
    with pytest.raises(ValueError, match="units of 'a'"):
        patient.surgery.replace({"a": units})


@needs_cuda
def test_a_replacement_replays_in_a_cuda_graph():
    network, batch = models.mlp().cuda(), vectors().cuda()
    adam = torch.optim.Adam(network.parameters(), fused=True, capturable=True)
    generator = torch.Generator("cuda").manual_seed(0)
    surgery = Surgery({"online": network}, adam, hidden_layers(network, batch), generator)
    index, valid = torch.tensor([2], device="cuda"), torch.tensor([False], device="cuda")
    draws = {name: surgery.draw(name, 1) for name in ("a", "b")}
    edit = lambda: surgery.replace({name: Slots(index, valid) for name in draws}, draws=draws)  # noqa: E731
    edit()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        edit()
    before = network.a.weight.clone()
    graph.replay()
    assert torch.equal(network.a.weight, before)
    valid.fill_(True)
    graph.replay()
    before[2] = draws["a"][0][0]
    assert torch.equal(network.a.weight, before)
    assert not network.b.weight[:, 2].any()
