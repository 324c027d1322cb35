"""moments = "local": each element of a replaced slice is corrected by its own number of steps."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from agents.interventions import Slots, Surgery
from plasticity_probes.units import hidden_layers
from tests.agents.helpers import same_tree
from tests.agents.interventions import models
from tests.agents.interventions.models import MODELS, Model, Patient, assert_same, frozen, vectors
from tests.agents.interventions.test_static import NoReadBack


class SlowAdam:
    """Adam in float64 with a step count for every element, fed with the gradients that the fast one saw."""

    def __init__(self, patient):
        self.patient, self.group_of = patient, {}
        self.state = {name: [p.detach().double().numpy(), 0, 0, np.zeros(p.shape)] for name, p in self.named()}
        for group in patient.adam.param_groups:
            self.group_of |= {id(parameter): group for parameter in group["params"]}
        for name, parameter in self.named():
            state = patient.adam.state[parameter]
            self.state[name][1] = state["exp_avg"].double().numpy()
            self.state[name][2] = state["exp_avg_sq"].double().numpy()
            self.state[name][3] += int(state["step"])

    def named(self):
        return [(n, p) for n, p in self.patient.network.named_parameters() if p.requires_grad]

    def step(self):
        for name, parameter in self.named():
            if parameter.grad is None:
                continue
            group, (value, first, second, steps) = self.group_of[id(parameter)], self.state[name]
            (beta1, beta2), rate = group["betas"], float(group["lr"])
            gradient = parameter.grad.double().numpy()
            if group["decoupled_weight_decay"]:
                value = value * (1 - rate * group["weight_decay"])
            else:
                gradient = gradient + group["weight_decay"] * value
            first, second = beta1 * first + (1 - beta1) * gradient, beta2 * second + (1 - beta2) * gradient**2
            steps = steps + 1
            ratio = (first / (1 - beta1**steps)) / (np.sqrt(second / (1 - beta2**steps)) + group["eps"])
            self.state[name] = [value - rate * ratio, first, second, steps]

    def replace(self, masks, restart=True):
        """The values that the surgeon drew; moments and steps zero, slice by slice."""
        for layer in self.patient.separable():
            units = np.flatnonzero(masks.get(layer.name, torch.zeros(layer.units)).numpy())
            for kind in ("weight", "bias"):
                for module in (layer.producer, layer.norm):
                    tensor = getattr(module, kind, None)
                    for unit in units if tensor is not None else []:
                        self._start_anew(tensor, unit, restart)
            for consumer, owner in layer.consumers:
                for column in np.flatnonzero(np.isin(owner.numpy(), units)):
                    self._start_anew(consumer.weight, (slice(None), column), restart)

    def _start_anew(self, tensor, place, restart):
        name = next(name for name, parameter in self.named() if parameter is tensor)
        value, first, second, steps = self.state[name]
        value[place] = tensor.detach().double().numpy()[place]
        first[place] = second[place] = 0
        if restart:
            steps[place] = 0

    def check(self, tolerance=1e-5):
        for name, parameter in self.named():
            np.testing.assert_allclose(parameter.detach().numpy(), self.state[name][0], atol=tolerance, err_msg=name)


def advance(patient, slow=None, steps=1):
    for _ in range(steps):
        patient.train()
        if slow is not None:
            slow.step()
        patient.surgery.after_optimizer_step()


def groups_of(network):
    """One group a parameter, all different."""
    return [
        {
            "params": [p],
            "lr": 1e-2 / (1 + i % 3),
            "betas": (0.9 - 0.3 * (i % 4), 0.999 - 0.3 * (i % 2)),
            "eps": 10.0**-8,
        }
        for i, p in enumerate(network.parameters())
    ]


@pytest.mark.parametrize("kind", ["mlp", "conv -> flatten -> linear", "conv with norms", "crelu", "part of a flatten"])
def test_every_element_is_corrected_by_its_own_age(kind):
    patient = Patient(*MODELS[kind], steps=20)
    slow = SlowAdam(patient)
    for turn, wait in enumerate((3, 1, 6, 2)):  # weights between two replaced units are as old as the younger
        masks = patient.masks(turn)
        patient.surgery.replace(
            masks if turn else {k: Slots(torch.arange(len(m)), m) for k, m in masks.items()}, "local"
        )
        slow.replace(masks)
        advance(patient, slow, wait)
        slow.check()


@pytest.mark.parametrize(
    "settings", [{"fused": True}, {"fused": False, "foreach": True}, {"fused": False, "foreach": False}]
)
@pytest.mark.parametrize("optimizer", ["Adam", "AdamW"])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_with_groups_of_different_settings(settings, optimizer, decay):
    patient = Patient(*MODELS["duelling"], steps=0)
    patient.adam = getattr(torch.optim, optimizer)(groups_of(patient.network), weight_decay=decay, **settings)
    patient.surgery = Surgery({"online": patient.network}, patient.adam, patient.layers, patient.generator)
    advance(patient, steps=15)
    slow = SlowAdam(patient)
    for turn in range(3):
        patient.surgery.replace(patient.masks(turn), "local")
        slow.replace(patient.masks(turn))
        for group in patient.adam.param_groups:
            group["lr"] *= 0.5
        advance(patient, slow, 4)
        slow.check()


def test_by_hand_the_first_step_is_one_learning_rate():
    # with zero moments, step t and betas b, c Adam moves by lr (1 - b) / (1 - b^t) sqrt((1 - c^t) / (1 - c))
    moved = {}
    for moments in ("zero", "local", "keep"):
        network = Model(lambda m, x: m.b(m.a(x).relu()), a=nn.Linear(5, 6), b=nn.Linear(6, 3))
        adam = torch.optim.Adam(network.parameters(), 1e-3, fused=True)
        surgery = Surgery(
            {"online": network}, adam, hidden_layers(network, vectors()), torch.Generator().manual_seed(0)
        )
        for step in range(3001):
            if step == 3000:
                surgery.replace({"a": torch.arange(6) == 2}, moments)
                before = network.a.weight[2, 0].item(), network.b.weight[0, 2].item()
            for parameter in network.parameters():
                parameter.grad = torch.full_like(parameter, 0.5)
            adam.step()
            surgery.after_optimizer_step()
        moved[moments] = [before[0] - network.a.weight[2, 0].item(), before[1] - network.b.weight[0, 2].item()]
    full = 1e-3 * 0.1 / (1 - 0.9**3001) * np.sqrt((1 - 0.999**3001) / 0.001)
    np.testing.assert_allclose(moved["zero"], full, rtol=1e-3)
    np.testing.assert_allclose(moved["local"], 1e-3, rtol=1e-3)
    np.testing.assert_allclose(moved["keep"], 1e-3, rtol=1e-3)


def test_a_slice_that_another_replaces_with_zero_moments_keeps_its_age():
    patient = Patient(*MODELS["mlp"], steps=20)
    slow = SlowAdam(patient)
    patient.surgery.replace({"a": patient.masks()["a"]}, "local")
    slow.replace({"a": patient.masks()["a"]})
    advance(patient, slow, 4)
    patient.surgery.replace(patient.masks(1), "zero")
    slow.replace(patient.masks(1), restart=False)
    advance(patient, slow, 4)
    slow.check()


@pytest.mark.parametrize("whole", ["reset", "zero_step"])
def test_a_tensor_that_starts_anew_has_one_age_again(whole):
    patient, plain = (Patient(*MODELS["mlp"], steps=20) for _ in range(2))
    patient.surgery.replace({"a": patient.masks()["a"], "b": patient.masks()["b"]}, "local")
    advance(patient, steps=3)
    parameters = list(patient.network.parameters())
    patient.surgery.reset([patient.network]) if whole == "reset" else patient.surgery.zero_step(parameters)
    plain.network.load_state_dict(patient.network.state_dict())
    plain.adam.load_state_dict(copy.deepcopy(patient.adam.state_dict()))
    advance(patient, steps=3)
    for _ in range(3):
        plain.train()
    assert_same(frozen(patient), frozen(plain))


def test_only_tensors_with_births_are_touched_and_only_for_a_while():
    patient = Patient(*MODELS["plain mlp"], steps=20, betas=(0.5, 0.6))
    patient.surgery.replace({"a": patient.masks()["a"]}, "local")
    advance(patient)  # which moves the new units' outgoing weights alone
    patient.train()
    before = frozen(patient)
    patient.surgery.after_optimizer_step()
    changed = {name for (name, key), array in frozen(patient).items() if (array != before[name, key]).any()}
    assert changed == {"a.weight", "b.weight"}
    rows = torch.from_numpy(frozen(patient)["a.weight", "value"] != before["a.weight", "value"]).any(1)
    assert torch.equal(rows, patient.masks()["a"])  # the others not even by a rounding
    advance(patient, steps=100)
    before = frozen(patient)
    with NoOperation():
        patient.surgery.after_optimizer_step()
    assert_same(frozen(patient), before)


class NoOperation(NoReadBack):
    """Refuses every operation."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        raise AssertionError(func.name())


def test_without_local_moments_nothing_is_done_after_a_step():
    patient = Patient(*MODELS["mlp"])
    patient.surgery.replace(patient.masks(), "zero")
    patient.train()
    with NoOperation():
        patient.surgery.after_optimizer_step()


def test_what_gets_no_gradient_is_left_alone():
    build = lambda: Model(lambda m, x: m.c(F.relu(m.a(x))), a=nn.Linear(5, 6), c=nn.Linear(6, 3))  # noqa: E731
    patient = Patient(build, vectors, steps=20)
    patient.surgery.replace(patient.masks(), "local")
    advance(patient)
    patient.train()
    for parameter in patient.network.parameters():
        parameter.grad = None
    before = frozen(patient)
    patient.surgery.after_optimizer_step()
    assert_same(frozen(patient), before)


def test_nothing_is_corrected_while_found_inf_is_set_and_nothing_is_read_back():
    patient = Patient(*MODELS["layer norm"], steps=20)
    patient.adam.found_inf, patient.adam.grad_scale = torch.zeros(()), None
    slow = SlowAdam(patient)
    with NoReadBack():
        patient.surgery.replace(patient.masks(), "local")
    slow.replace(patient.masks())
    advance(patient, slow, 2)
    patient.adam.found_inf.fill_(1)
    before = frozen(patient)
    patient.surgery.replace(patient.masks(3), "local")
    advance(patient, steps=2)
    assert_same(frozen(patient), before)
    patient.adam.found_inf.zero_()
    patient.train()
    slow.step()
    with NoReadBack():
        patient.surgery.after_optimizer_step()
    slow.check()


def test_ages_are_part_of_the_state():
    first, second = Patient(*MODELS["conv with norms"], steps=9), Patient(*MODELS["conv with norms"], seed=9)
    first.surgery.replace(first.masks(1), "local")
    advance(first, steps=2)
    state = copy.deepcopy(first.surgery.state_dict())
    second.network.load_state_dict(first.network.state_dict())
    second.adam.load_state_dict(copy.deepcopy(first.adam.state_dict()))
    second.surgery.load_state_dict(state)
    second.surgery.generator.set_state(first.surgery.generator.get_state())  # a registry's in a run
    kept = copy.deepcopy(state)
    for patient in (first, second):
        advance(patient, steps=2)
        patient.surgery.replace(patient.masks(2), "local")
        advance(patient, steps=2)
    assert_same(frozen(first), frozen(second))
    assert same_tree(first.surgery.state_dict(), second.surgery.state_dict())
    assert same_tree(state, kept)  # neither gave nor took aliases


def test_one_choice_of_moments_can_take_the_place_of_all():
    found = {}
    for override, own in (("own", "zero"), ("zero", "keep"), ("local", "zero"), ("keep", "mean"), ("mean", "keep")):
        patient = Patient(models.mlp, vectors)
        layers, adam = patient.layers, patient.adam
        patient.surgery = Surgery({"online": patient.network}, adam, layers, patient.generator, moments=override)
        patient.surgery.replace(patient.masks(), own)
        found[override] = frozen(patient)
        advance(patient)
        found[override, "after"] = frozen(patient)
    for override in ("zero", "keep", "mean", "local"):
        patient = Patient(models.mlp, vectors)
        patient.surgery.replace(patient.masks(), override)
        assert_same(found[override], frozen(patient))
        advance(patient)
        assert_same(found[override, "after"], frozen(patient))
    assert_same(found["own"], found["zero"])
    with pytest.raises(AssertionError):
        assert_same(found["local", "after"], found["zero", "after"])


def test_what_cannot_be_done_is_refused_before_anything_changes():
    network = models.mlp()
    layers = hidden_layers(network, vectors())
    adam = torch.optim.Adam(network.parameters(), amsgrad=True)
    with pytest.raises(ValueError, match="moments = 'local': the optimizer has amsgrad"):
        Surgery({"online": network}, adam, layers, torch.Generator(), moments="local")
    with pytest.raises(ValueError, match="moments = 'all': must be zero, keep, mean, local"):
        Surgery({"online": network}, adam, layers, torch.Generator(), moments="all")
    surgery = Surgery({"online": network}, adam, layers, torch.Generator())
    before = copy.deepcopy(network.state_dict())
    with pytest.raises(ValueError, match="amsgrad"):
        surgery.replace({"a": torch.ones(6, dtype=torch.bool)}, "local")
    assert same_tree(before, network.state_dict())
