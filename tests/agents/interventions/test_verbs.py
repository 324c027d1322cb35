"""The surgeon's other verbs, Adam's state made ahead, and what the surgeon refuses to be built from."""

import copy

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from agents.interventions import Intervention, Surgery
from agents.moments import initialise_adam
from plasticity_probes.units import hidden_layers
from tests.agents.helpers import needs_cuda, same_tree
from tests.agents.interventions import models
from tests.agents.interventions.models import MODELS, Patient, frozen, vectors

KINDS = {
    "fused": {"fused": True},
    "foreach": {"foreach": True},
    "plain": {"foreach": False},
    "amsgrad": {"fused": True, "amsgrad": True},
    "coupled decay": {"fused": True, "weight_decay": 0.1},
}


def train(network, optimizer, steps, frozen_at_first=()):
    for step in range(steps):
        optimizer.zero_grad()
        network(vectors()).square().mean().backward()
        for parameter in frozen_at_first if step == 0 else ():
            parameter.grad = None
        optimizer.step()


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.AdamW])
@pytest.mark.parametrize("settings", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("late", [False, True], ids=["", "first layer without gradient at first"])
def test_state_made_ahead_is_the_state_adam_would_make(optimizer, settings, late):
    networks = [models.mlp(), models.mlp()]
    adams = [optimizer(network.parameters(), 1e-2, **settings) for network in networks]
    initialise_adam(adams[0])
    assert all(adams[0].state[parameter] for parameter in networks[0].parameters())
    for network, adam in zip(networks, adams, strict=True):
        train(network, adam, 5, [network.a.weight] if late else [])
    assert same_tree(networks[0].state_dict(), networks[1].state_dict())
    assert same_tree(adams[0].state_dict(), adams[1].state_dict())
    for mine, theirs in zip(networks[0].parameters(), networks[1].parameters(), strict=True):
        for key, value in adams[1].state[theirs].items():
            assert adams[0].state[mine][key].stride() == value.stride()
            assert adams[0].state[mine][key].device == value.device


def test_state_that_is_there_is_left_alone():
    network = models.mlp()
    adam = torch.optim.Adam(network.parameters(), 1e-2, fused=True)
    train(network, adam, 2)
    before = copy.deepcopy(adam.state_dict())
    initialise_adam(adam)
    assert same_tree(adam.state_dict(), before)


@needs_cuda
@pytest.mark.parametrize("settings", [{"fused": True}, {"foreach": True}, {"capturable": True}], ids=str)
def test_state_made_ahead_on_a_gpu(settings):
    networks = [models.mlp().cuda(), models.mlp().cuda()]
    adams = [torch.optim.Adam(network.parameters(), 1e-2, **settings) for network in networks]
    initialise_adam(adams[0])
    for network, adam in zip(networks, adams, strict=True):
        for _ in range(5):
            adam.zero_grad()
            network(vectors().cuda()).square().mean().backward()
            adam.step()
    assert same_tree(networks[0].state_dict(), networks[1].state_dict())
    for mine, theirs in zip(networks[0].parameters(), networks[1].parameters(), strict=True):
        assert adams[0].state[mine]["step"].device == adams[1].state[theirs]["step"].device


def test_a_projection_keeps_the_moments():
    patient = Patient(*MODELS["layer norm"])
    before = frozen(patient)
    start = {id(parameter): parameter.detach().clone() for parameter in patient.network.parameters()}
    moved = [patient.network.a.weight, patient.network.na.bias]
    addresses = [parameter.data_ptr() for parameter in moved]
    patient.surgery.project(moved, lambda weight: 0.5 * weight + start[id(weight)])
    for (name, key), array in frozen(patient).items():
        factor = np.float32(1.5) if key == "value" and name in ("a.weight", "na.bias") else 1
        np.testing.assert_array_equal(array, factor * before[name, key])
    assert addresses == [parameter.data_ptr() for parameter in moved]


@pytest.mark.parametrize("kind", MODELS)
def test_a_reset_redraws_whole_tensors_and_restarts_their_step(kind):
    patient = Patient(*MODELS[kind])
    modules = [module for module in patient.network.modules() if list(module.parameters(recurse=False))]
    head = modules[-1]
    chosen = {name for name, p in patient.network.named_parameters() if any(p is own for own in head.parameters())}
    before, target = frozen(patient), frozen(patient, "target")
    touched = patient.surgery.reset([head])
    after = frozen(patient)
    assert {id(p) for p in touched} == {id(p) for p in head.parameters()}
    for (name, key), array in after.items():
        if name not in chosen:
            np.testing.assert_array_equal(array, before[name, key])
        elif key == "value":
            assert not np.isin(array, before[name, key]).any() or not array.any()
        else:
            assert not array.any() and before[name, key].any()
    assert frozen(patient, "target").keys() == target.keys()
    assert all((array == target[key]).all() for key, array in frozen(patient, "target").items())
    moved = frozen(patient)
    patient.train()
    assert all((frozen(patient)[name, "value"] != moved[name, "value"]).any() for name in chosen)
    assert all(frozen(patient)[name, "step"] == 1 for name in chosen)


@pytest.mark.parametrize("kind", MODELS)
def test_a_reset_of_everything_reaches_the_target_where_asked(kind):
    patient = Patient(*MODELS[kind])
    patient.surgery.reset([patient.network], networks=("online", "target"))
    online, target = frozen(patient), frozen(patient, "target")
    norms = [m for m in patient.network.modules() if isinstance(m, (nn.LayerNorm, nn.RMSNorm, nn.BatchNorm2d))]
    inside = {
        name for name, t in patient.network.named_parameters() if any(t is p for m in norms for p in m.parameters())
    }
    statistics = {(name, "value") for name, _ in patient.network.named_buffers() if "running" in name}
    for key, array in target.items():
        if key[0] in dict(patient.network.named_parameters()) or key in statistics:
            np.testing.assert_array_equal(array, online[key])
        if key[0] in inside:
            assert (array == (1 if key[0].endswith("weight") else 0)).all()
    assert not any(array.any() for (_, key), array in online.items() if key in ("exp_avg", "exp_avg_sq", "step"))


def test_a_reset_follows_each_layers_own_law():
    patient = Patient(*MODELS["mlp"])  # torch's law
    network = patient.network
    draws = []
    for _ in range(40):
        patient.surgery.reset([network.b])
        draws.append(torch.cat([network.b.weight.flatten(), network.b.bias]).detach().double())
    bound = 6**-0.5
    assert stats.kstest(torch.cat(draws).numpy(), stats.uniform(-bound, 2 * bound).cdf).pvalue > 1e-3
    patient = Patient(*MODELS["actor, critic"])  # orthogonal: .01 for the policy head
    patient.surgery.reset([patient.network.policy_head])
    weight = patient.network.policy_head.weight.detach()
    torch.testing.assert_close(weight @ weight.T, 1e-4 * torch.eye(2), atol=1e-9, rtol=0)


def test_single_parameters_can_be_reset_and_free_vectors_return_to_their_start():
    patient = Patient(*MODELS["actor, critic"])
    network = patient.network
    bias = network.value_head.bias.clone()
    assert network.log_std.any()
    patient.surgery.reset([network.value_head.weight, network.log_std])
    assert not network.log_std.any()
    assert torch.equal(network.value_head.bias, bias)
    assert patient.adam.state[network.value_head.bias]["step"] == 3
    assert patient.adam.state[network.log_std]["step"] == 0


class Listener(Intervention):
    def __init__(self):
        self.heard = []

    def on_reset(self, parameters):
        self.heard.append([tuple(parameter.shape) for parameter in parameters])

    def on_replaced(self, layer, units):
        self.heard.append((layer.name, units.mask.tolist()))


def test_a_reset_is_told_as_tensors_and_as_units():
    listener = Listener()
    patient = Patient(*MODELS["mlp"], interventions=[listener])
    patient.surgery.reset([patient.network.b, patient.network.c.bias])
    assert listener.heard == [[(7, 6), (7,), (3,)], ("b", [True] * 7)]
    assert {name: int(count) for name, count in patient.surgery.replaced.items()} == {"a": 0, "b": 7}


def test_what_cannot_be_reset_is_refused_before_anything_changes():
    class Embedded(nn.Module):
        def __init__(self):
            super().__init__()
            self.head, self.table = nn.Linear(4, 2), nn.Parameter(torch.ones(4, 4))

        def forward(self, x):
            return self.head(x[:, :4] @ self.table)

    patient = Patient(Embedded, vectors)
    before = frozen(patient)
    with pytest.raises(ValueError, match="the law of 'table' \\(Embedded\\) is not known"):
        patient.surgery.reset([patient.network])
    with pytest.raises(ValueError, match="Linear is not part of networks"):
        patient.surgery.reset([patient.network.head, nn.Linear(2, 2)])
    with pytest.raises(ValueError, match="must be 'online'"):
        patient.surgery.reset([patient.network.head], networks=("target",))
    assert same_tree(*[{str(k): torch.from_numpy(v) for k, v in state.items()} for state in (before, frozen(patient))])


def test_moments_and_step_are_forgotten_separately():
    patient = Patient(*MODELS["mlp"])
    before = frozen(patient)
    patient.surgery.zero_moments([patient.network.a.weight])
    patient.surgery.zero_step([patient.network.b.weight])
    for (name, key), array in frozen(patient).items():
        gone = (name == "a.weight" and key.startswith("exp")) or (name == "b.weight" and key == "step")
        np.testing.assert_array_equal(array, 0 * before[name, key] if gone else before[name, key])


def test_samples_come_from_where_the_surgeon_was_told():
    network = models.mlp()
    layers, adam = hidden_layers(network, vectors()), torch.optim.Adam(network.parameters())
    surgery = Surgery({"online": network}, adam, layers, torch.Generator(), vectors)
    assert torch.equal(surgery.sample(4), vectors(4))
    with pytest.raises(RuntimeError, match="made without `sample`"):
        Surgery({"online": network}, adam, layers, torch.Generator()).sample(4)


def test_a_restored_surgeon_goes_on_alike():
    first, second = Patient(*MODELS["mlp"]), Patient(*MODELS["mlp"], seed=9)
    first.surgery.replace(first.masks(1))
    state = copy.deepcopy(first.surgery.state_dict())
    second.network.load_state_dict(first.network.state_dict())
    second.adam.load_state_dict(copy.deepcopy(first.adam.state_dict()))
    second.surgery.load_state_dict(state)
    second.surgery.generator.set_state(first.surgery.generator.get_state())  # a registry's in a run
    for patient in (first, second):
        patient.surgery.replace(patient.masks(2))
        patient.train()
    assert same_tree(first.network.state_dict(), second.network.state_dict())
    assert same_tree(first.adam.state_dict(), second.adam.state_dict())
    assert same_tree(first.surgery.state_dict(), second.surgery.state_dict())


def test_what_would_go_wrong_later_is_refused_at_once():
    network = models.mlp()
    layers, everything = hidden_layers(network, vectors()), list(network.parameters())
    with pytest.raises(ValueError, match="optimizer = SGD: must be Adam"):
        Surgery({"online": network}, torch.optim.SGD(everything), layers, torch.Generator())
    with pytest.raises(ValueError, match=r"optimizer: lacks 'c.weight', which would never train again"):
        Surgery({"online": network}, torch.optim.Adam(everything[:-2]), layers, torch.Generator())
    networks = {"online": network, "target": models.plain_mlp()}
    with pytest.raises(ValueError, match=r"networks\['target'\]: its parameters are not those"):
        Surgery(networks, torch.optim.Adam(everything), layers, torch.Generator())
    with pytest.raises(ValueError, match=r"a parameter of 'a' is not in networks\['online'\]"):
        Surgery({"online": models.mlp()}, torch.optim.Adam(everything), layers, torch.Generator())
