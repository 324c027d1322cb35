"""The pull towards the start against its formula in float64, and a start that follows surgery."""

import numpy as np
import pytest
import torch

from agents.interventions import Forward
from agents.interventions.l2_init import L2Init
from agents.randomness import Generators
from tests.agents.helpers import same_tree, snapshot
from tests.agents.interventions.models import MODELS, Patient, every_model, slots_of
from tests.agents.interventions.test_weight_decay import every_agent, goes_on_after_a_restart, learn, same_training


def patient_of(intervention, kind="mlp", double=False):
    """A patient that the intervention knew from the start and that has moved since, and how it was at the start."""
    build, batch = MODELS[kind]
    patient = Patient(build, batch, steps=0, interventions=[intervention])
    if double:
        patient.network.double()
    intervention.layers = tuple(layer for layer in patient.layers if intervention.within(layer.name))
    intervention.attach({"online": patient.network}, Generators(0))
    start = {name: p.detach().double().numpy().copy() for name, p in patient.network.named_parameters()}
    with torch.no_grad():
        for parameter in patient.network.parameters():
            parameter += torch.randn(parameter.shape, generator=patient.generator)
    return patient, start


def gradients_of(patient, intervention):
    penalty = intervention.penalty(Forward(patient.network, patient.batch, {}))
    patient.network.zero_grad()
    penalty.backward()
    return penalty.item(), {n: p.grad for n, p in patient.network.named_parameters()}


@pytest.mark.parametrize("kind", ["mlp", "conv with norms", "actor, critic"])
@pytest.mark.parametrize("norm", ["squared", "plain"])
def test_the_gradient_is_the_formulas(kind, norm):
    pull = L2Init(rate=0.3, norm=norm)
    patient, start = patient_of(pull, kind, double=True)
    value, gradients = gradients_of(patient, pull)
    moved = {n: p.detach().numpy() - start[n] for n, p in patient.network.named_parameters()}
    squared = sum((array**2).sum() for array in moved.values())
    assert value == pytest.approx(0.3 * (squared if norm == "squared" else squared**0.5), rel=1e-12)
    for name, array in moved.items():
        expected = 0.6 * array if norm == "squared" else 0.3 * array / squared**0.5
        np.testing.assert_allclose(gradients[name].numpy(), expected, rtol=1e-10, err_msg=name)


def test_one_weight_by_hand():
    network = torch.nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        network.weight.copy_(torch.tensor([[1.0, 2.0]]))
    for norm, value, gradient in (("squared", 12.5, [[3.0, 4.0]]), ("plain", 2.5, [[0.3, 0.4]])):
        pull = L2Init(rate=0.5, norm=norm)
        with torch.no_grad():
            network.weight.copy_(torch.tensor([[1.0, 2.0]]))
        pull.attach({"online": network}, Generators(0))
        with torch.no_grad():
            network.weight += torch.tensor([[3.0, 4.0]])
        network.weight.grad = None
        penalty = pull.penalty(None)
        penalty.backward()
        assert penalty.item() == pytest.approx(value)
        torch.testing.assert_close(network.weight.grad, torch.tensor(gradient))


@pytest.mark.parametrize("norm", ["squared", "plain"])
def test_at_the_start_there_is_no_pull_and_no_nan(norm):
    pull = L2Init(norm=norm)
    patient = Patient(*MODELS["mlp"], steps=0)
    pull.attach({"online": patient.network}, Generators(0))
    value, gradients = gradients_of(patient, pull)
    assert value == 0
    assert all((gradient == 0).all() for gradient in gradients.values())


def test_roles_can_be_left_out():
    pull = L2Init(include=())
    patient, _ = patient_of(pull, "layer norm")
    assert set(pull.start) == {"a.weight", "b.weight", "c.weight"}
    _, gradients = gradients_of(patient, pull)
    assert {name for name, gradient in gradients.items() if gradient is not None} == set(pull.start)


@every_model
@pytest.mark.parametrize("form", ["mask", "slots"])
def test_what_is_replaced_gets_a_new_start(kind, form):
    pull = L2Init()
    patient, start = patient_of(pull, kind)
    before = {name: p.detach().clone() for name, p in patient.network.named_parameters()}
    masks = patient.masks()
    given = masks if form == "mask" else {n: slots_of(m, len(m)) for n, m in masks.items()}
    patient.surgery.replace(given)
    owned = {name: np.zeros(p.shape, bool) for name, p in patient.network.named_parameters()}
    names = {id(p): name for name, p in patient.network.named_parameters()}
    for layer in patient.separable():
        mask = masks[layer.name].numpy()
        for module in (layer.producer, layer.norm):
            for tensor in () if module is None else module.parameters():
                owned[names[id(tensor)]][mask] = True
        for module, owner in layer.consumers:
            owned[names[id(module.weight)]][:, mask[owner.numpy()] & (owner.numpy() >= 0)] = True
    for name, parameter in patient.network.named_parameters():
        now = parameter.detach().numpy()
        expected = np.where(owned[name], now, start[name].astype(np.float32))
        np.testing.assert_array_equal(pull.start[name].numpy(), expected, err_msg=name)
        np.testing.assert_array_equal(now[~owned[name]], before[name].numpy()[~owned[name]])
    assert any(mask.any() for mask in owned.values())


def test_columns_in_its_part_follow_a_layer_outside_of_it():
    pull = L2Init(only="critic")
    pull.part_of = lambda name: "critic" if name.startswith("c") else "encoder"
    patient, start = patient_of(pull)
    assert set(pull.start) == {"c.weight", "c.bias"}
    mask = torch.zeros(7, dtype=torch.bool)
    mask[2] = True
    patient.surgery.replace({"b": mask})
    assert not pull.start["c.weight"][:, 2].any()
    rest = [0, 1, 3, 4, 5, 6]
    np.testing.assert_array_equal(pull.start["c.weight"][:, rest].numpy(), start["c.weight"][:, rest])


def test_what_is_reset_gets_a_new_start():
    pull = L2Init()
    patient, start = patient_of(pull)
    patient.surgery.reset([patient.network.c, patient.network.a.bias])
    for name, parameter in patient.network.named_parameters():
        if name in ("c.weight", "c.bias", "a.bias"):
            assert torch.equal(pull.start[name], parameter)
        else:
            np.testing.assert_array_equal(pull.start[name].numpy(), start[name])


@every_agent
def test_it_pulls_while_agents_learn(name):
    def distance(agent, start):
        return sum((p - q).square().sum() for p, q in zip(agent.network.parameters(), start, strict=True)).item()

    start = [p.detach().clone() for p in learn(name, ticks=0).network.parameters()]
    free, held = learn(name), learn(name, L2Init(rate=10.0))
    assert distance(held, start) < 0.2 * distance(free, start)
    assert same_training(learn(name, L2Init(rate=0.0)), free)


@every_agent
@pytest.mark.parametrize("norm", ["squared", "plain"])
def test_it_goes_on_after_a_restart(name, norm):
    assert goes_on_after_a_restart(name, L2Init(norm=norm))


def test_the_state_is_no_alias():
    pull = L2Init()
    patient_of(pull)
    state = pull.state_dict()
    kept = snapshot(state)
    pull.start["a.weight"].zero_()
    assert same_tree(state, kept)
    pull.load_state_dict(state)
    assert same_tree(pull.state_dict(), kept)
    state["start"]["a.weight"].zero_()
    assert same_tree(pull.state_dict(), kept)


def test_bad_parameters_are_refused():
    with pytest.raises(ValueError, match=r"l2_init\.norm = 'l1': must be squared or plain"):
        L2Init(norm="l1")
    with pytest.raises(ValueError, match=r"l2_init\.rate"):
        L2Init(rate=float("nan"))
