"""The lifecycle's defaults, parameters that are checked and fixed, and ownership of slices."""

from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

from agents.clock import Clock
from agents.config import NetworkConfig
from agents.interventions import Forward, Intervention, Slots, Surgery, UnitSet
from agents.randomness import Generators
from plasticity_probes.units import hidden_layers
from tests.agents.interventions import models
from tests.agents.interventions.models import MODELS, Patient, slots_of, vectors


@dataclass(eq=False)
class Decay(Intervention):
    """As in the docstring of `Intervention`."""

    name = "decay"
    rate: float = 0.25

    def __post_init__(self):
        self.require(0 <= self.rate < 1, "rate", "in [0, 1)")

    def attach(self, networks, generators):
        self.steps = 0

    def every_step(self, surgery, forward, drawn):
        self.steps += 1
        surgery.project(forward.network.parameters(), lambda weight: weight * (1 - self.rate))

    def state_dict(self):
        return {"steps": self.steps}

    def load_state_dict(self, state):
        self.steps = state["steps"]


def test_every_hook_does_nothing_by_default():
    network, config = models.mlp(), NetworkConfig()
    layers = hidden_layers(network, vectors())
    surgery = Surgery({"online": network}, torch.optim.Adam(network.parameters()), layers, torch.Generator())
    before = [parameter.clone() for parameter in network.parameters()]
    intervention, forward = Intervention(), Forward(network, vectors(), {})
    groups = [{"params": list(network.parameters())}]
    assert intervention.configure(config) is config
    assert intervention.parameter_groups(groups) is groups
    assert intervention.penalty(forward) is None
    assert intervention.captures == frozenset()
    intervention.attach({"online": network}, Generators(0))
    assert intervention.draws() == {} and intervention.timing is None and not intervention.waits_for_a_task_change
    intervention.every_step(surgery, forward, {})
    intervention.intervene(surgery, Clock())
    intervention.on_replaced(layers[0], UnitSet.of(torch.ones(6, dtype=torch.bool), 6, "a"))
    intervention.on_reset(groups[0]["params"])
    assert intervention.state_dict() == {}
    intervention.load_state_dict({})
    assert all(torch.equal(*pair) for pair in zip(before, network.parameters(), strict=True))


def test_a_subclass_is_a_few_lines():
    patient = Patient(*MODELS["mlp"])
    decay = Decay(rate=0.5)
    decay.attach({"online": patient.network}, Generators(0))
    before = patient.network.a.weight.clone()
    decay.every_step(patient.surgery, Forward(patient.network, patient.batch, {}), {})
    assert torch.equal(patient.network.a.weight, 0.5 * before)
    again = Decay()
    again.load_state_dict(decay.state_dict())
    assert again.steps == 1


def test_a_bad_parameter_is_answered_with_a_sentence():
    with pytest.raises(ValueError, match=r"^decay\.rate = 1\.5: must be in \[0, 1\)$"):
        Decay(rate=1.5)
    with pytest.raises(TypeError, match="speed"):
        Decay(speed=1)


def test_parameters_are_fixed_and_listed():
    decay = Decay()
    assert decay.parameters() == {"rate": 0.25, "only": "all"}
    with pytest.raises(AttributeError, match=r"decay\.rate: a parameter is fixed once made"):
        decay.rate = 0.5
    decay.steps = 3
    decay.steps = 4
    assert replace(decay, rate=0.5).parameters() == {"rate": 0.5, "only": "all"}


def test_an_unknown_capture_is_refused_where_the_class_is_written():
    with pytest.raises(ValueError, match="must be of hidden, preactivations"):
        type("Curious", (Intervention,), {"captures": frozenset({"gradients"})})


@pytest.mark.parametrize("k", [2, 5])
def test_slots_and_mask_name_the_same_units(k):
    mask = torch.tensor([False, True, False, False, True])
    index, valid = slots_of(mask, k)
    units = UnitSet.of(Slots(index, valid), 5, "layer")
    assert torch.equal(units.mask, mask)
    for slot in range(k):
        if valid[slot]:
            assert units.index[slot] == index[slot] and units.edited[slot] and units.source[slot] == slot
        else:
            assert units.index[slot] == 0 and units.edited[slot] == mask[0]


def test_the_first_valid_slot_that_names_a_unit_counts():
    units = UnitSet.of(Slots(torch.tensor([0, 2, 0, 1]), torch.tensor([False, True, True, False])), 4, "layer")
    assert units.mask.tolist() == [True, False, True, False]
    assert units.edited.tolist() == [True, True, True, True]  # the invalid ones stand at unit 0, which is replaced
    assert units.source.tolist() == [2, 1, 2, 2]


@pytest.mark.parametrize("kind", ["mlp", "crelu", "two consumers", "conv, channels last"])
@pytest.mark.parametrize("form", ["mask", "slots"])
def test_owned_slices_can_be_copied_elsewhere(kind, form):
    # what an intervention with copies of the weights (L2 Init, say) does when it hears of a replacement
    copies = {}

    class Follow(Intervention):
        def on_replaced(self, layer, units):
            for owned in (*self.surgery.of(layer).incoming, *self.surgery.of(layer).outgoing):
                own = copies[id(owned.tensor)]
                owned.write(units, (own, owned.read(owned.tensor, units)))

    follow = Follow()
    patient = Patient(*MODELS[kind], interventions=[follow])
    follow.surgery = patient.surgery
    copies |= {id(parameter): torch.full_like(parameter, 9.0) for parameter in patient.network.parameters()}
    masks = patient.masks()
    before = {id(p): p.detach().clone() for p in patient.network.parameters()}
    patient.surgery.replace(masks if form == "mask" else {name: slots_of(m, len(m)) for name, m in masks.items()})
    changed = 0
    for parameter in patient.network.parameters():
        moved = parameter != before[id(parameter)]
        assert torch.equal(copies[id(parameter)][moved], parameter[moved])
        assert ((copies[id(parameter)] == 9) | (copies[id(parameter)] == parameter)).all()
        changed += moved.sum()
    assert changed
    assert isinstance(patient.network, nn.Module)
