"""Distance from scaled orthogonality and its gradient, in float64 from the formula."""

import numpy as np
import pytest
import torch

from agents.interventions import Forward
from agents.interventions.parseval import Parseval
from agents.randomness import Generators
from tests.agents.interventions.models import MODELS, Patient
from tests.agents.interventions.test_l2_init import gradients_of, patient_of
from tests.agents.interventions.test_weight_decay import every_agent, goes_on_after_a_restart, learn, same_training


@pytest.mark.parametrize("kind", ["mlp", "conv with norms", "conv -> flatten -> linear", "actor, critic", "duelling"])
def test_value_and_gradient_are_the_formulas(kind):
    parseval = Parseval(rate=0.07, scale=1.7)
    patient, _ = patient_of(parseval, kind, double=True)
    value, gradients = gradients_of(patient, parseval)
    hidden, total = {f"{layer.name}.weight" for layer in patient.layers}, 0.0
    for name, parameter in patient.network.named_parameters():
        if name not in hidden:
            assert gradients[name] is None
            continue
        rows = parameter.detach().numpy().reshape(len(parameter), -1)
        off = np.array([[sum(a * b) for b in rows] for a in rows]) - 1.7 * np.eye(len(rows))
        total += (off**2).sum()
        expected = 0.07 * 4 * (off @ rows).reshape(parameter.shape)
        np.testing.assert_allclose(gradients[name].numpy(), expected, rtol=1e-9, atol=1e-12, err_msg=name)
    assert value == pytest.approx(0.07 * total, rel=1e-12)


def test_rows_that_are_orthogonal_and_long_enough_cost_nothing_and_too_many_rows_always_cost():
    parseval = Parseval(rate=1.0)
    patient = Patient(*MODELS["mlp"], steps=0)
    network = patient.network
    parseval.layers = tuple(patient.layers)
    parseval.attach({"online": network}, Generators(0))
    with torch.no_grad():
        network.b.weight.copy_(2**0.5 * torch.eye(7, 6))  # seven units of six inputs
        network.a.weight.copy_(2**0.5 * torch.eye(6, 5))
    value, gradients = gradients_of(patient, parseval)
    assert value == pytest.approx(2 * 2.0**2, abs=1e-5)  # scale^2 a missing direction in each of the two layers
    assert all(gradients[f"{name}.weight"].abs().max() < 1e-5 for name in "ab")


def test_descent_makes_the_rows_orthogonal():
    parseval = Parseval(rate=1.0)
    patient = Patient(*MODELS["duelling"], steps=0)
    parseval.layers = tuple(patient.layers)
    parseval.attach({"online": patient.network}, Generators(0))
    for _ in range(400):
        _, gradients = gradients_of(patient, parseval)
        with torch.no_grad():
            for name, parameter in patient.network.named_parameters():
                if gradients[name] is not None:
                    parameter -= 0.02 * gradients[name]
    rows = patient.network.b.weight  # four units of six inputs
    torch.testing.assert_close(rows @ rows.T, 2 * torch.eye(4), atol=1e-3, rtol=0)


@every_agent
def test_agents_get_more_orthogonal_and_at_rate_zero_nothing_happens(name):
    def distance(agent):
        weights = [p for n, p in agent.network.named_parameters() if "dense2.weight" in n]
        return sum((w @ w.T - 0.1 * torch.eye(len(w))).square().sum().item() for w in weights)

    free = learn(name)
    assert distance(learn(name, Parseval(rate=1.0, scale=0.1))) < 0.9 * distance(free)
    assert same_training(learn(name, Parseval(rate=0.0)), free)


@every_agent
def test_it_goes_on_after_a_restart(name):
    assert goes_on_after_a_restart(name, Parseval())


def test_frozen_layers_and_parts():
    patient = Patient(*MODELS["mlp"], steps=0)
    patient.network.a.weight.requires_grad_(False)
    parseval = Parseval()
    parseval.layers = tuple(patient.layers)
    parseval.attach({"online": patient.network}, Generators(0))
    parseval.penalty(Forward(patient.network, patient.batch, {})).backward()
    assert patient.network.a.weight.grad is None and patient.network.b.weight.grad is not None
    patient.network.b.weight.requires_grad_(False)
    with pytest.raises(ValueError, match="parseval: no hidden layer to act on"):
        parseval.attach({"online": patient.network}, Generators(0))
    with pytest.raises(ValueError, match="parseval: no hidden layer to act on with only = 'critic'"):
        Parseval(only="critic").attach({"online": patient.network}, Generators(0))


def test_bad_parameters_are_refused():
    with pytest.raises(ValueError, match=r"parseval\.scale = 0: must be > 0 and finite"):
        Parseval(scale=0)
    with pytest.raises(ValueError, match=r"parseval\.rate = -0\.1"):
        Parseval(rate=-0.1)
