"""Normalize-and-Project: weight norms as at the start, the function as it was."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from agents import DQNConfig
from agents.config import NetworkConfig
from agents.interventions.layer_norm import LayerNorm
from agents.interventions.lifecycle import check_interventions
from agents.interventions.nap import NaP
from agents.interventions.reset import Reset
from agents.interventions.shrink_perturb import ShrinkAndPerturb
from agents.interventions.spectral_norm import SpectralNorm
from agents.randomness import Generators
from tests.agents.interventions import models
from tests.agents.interventions.models import MODELS, Model, Patient, frozen, images
from tests.agents.interventions.whole import agent_with, continues_alike, driven, operated, stepped


def all_norms():
    """Convolutions and dense layers with every kind of norm and running statistics that are not at their start."""
    model = Model(
        lambda m, x: m.e(F.relu(m.nd(m.d(F.relu(m.nc(m.c(F.relu(m.nb(m.b(F.relu(m.na(m.a(x)))))).flatten(1)))))))),
        "orthogonal",
        a=nn.Conv2d(3, 4, 3),
        na=nn.GroupNorm(1, 4),
        b=nn.Conv2d(4, 6, 3),
        nb=nn.BatchNorm2d(6),
        c=nn.Linear(54, 7),
        nc=nn.RMSNorm(7, eps=1e-6),
        d=nn.Linear(7, 5),
        nd=nn.LayerNorm(5),
        e=nn.Linear(5, 3),
    )
    return model.to(memory_format=torch.channels_last)


MODELS_WITH_NORMS = {
    "every norm": (all_norms, images),
    "layer norm": MODELS["layer norm"],
    "conv with norms": MODELS["conv with norms"],
}


def patient_of(kind, intervention, monkeypatch, steps=5):
    monkeypatch.setitem(MODELS, kind, MODELS_WITH_NORMS[kind])
    return operated(kind, intervention, steps=steps, lr=0.3)


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("kind", MODELS_WITH_NORMS)
def test_norms_are_held_and_the_function_stays(kind, mode, monkeypatch):
    intervention = NaP()
    patient = patient_of(kind, intervention, monkeypatch, steps=0)
    network = patient.network
    start = {layer.name: layer.producer.weight.detach().double().norm().item() for layer in patient.layers}
    for _ in range(5):
        patient.train()
    before = frozen(patient)
    with torch.no_grad():
        network.train(mode == "train")
        buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
        expected = network(patient.batch)
        for name, buffer in network.named_buffers():
            buffer.copy_(buffers[name])
        stepped(patient, intervention)
        scaled = frozen(patient)
        found = network(patient.batch)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    after = scaled
    for layer in patient.layers:
        name, weight = layer.name, before[f"{layer.name}.weight", "value"].astype(np.float64)
        factor = start[name] / np.linalg.norm(weight)
        assert abs(factor - 1) > 0.01
        np.testing.assert_allclose(after[f"{name}.weight", "value"], factor * weight, rtol=1e-5, atol=1e-8)
        np.testing.assert_allclose(after[f"{name}.bias", "value"], factor * before[f"{name}.bias", "value"], rtol=1e-5)
        now = np.linalg.norm(after[f"{name}.weight", "value"].astype(np.float64))
        assert now == pytest.approx(start[name], rel=1e-6)
    own = {f"{layer.name}.{kind}" for layer in patient.layers for kind in ("weight", "bias")}
    for (name, key), array in after.items():
        if not (key == "value" and name in own) and "running" not in name:
            np.testing.assert_array_equal(array, before[name, key])
    patient.train()
    assert all((frozen(patient)[name, "value"] != after[name, "value"]).any() for name in own)


def test_a_large_layer_is_held_just_as_exactly():
    def large():
        return Model(
            lambda m, x: m.b(F.relu(m.na(m.a(x)))), a=nn.Linear(3136, 512), na=nn.LayerNorm(512), b=nn.Linear(512, 1)
        )

    intervention = NaP()
    patient = Patient(large, lambda: torch.ones(2, 3136), steps=0)
    intervention.layers = tuple(patient.layers)
    intervention.attach({"online": patient.network}, Generators(0))
    start = patient.network.a.weight.detach().double().norm()
    for step in range(30):
        patient.network.a.weight.data.mul_(1.01 + 0.001 * step)
        stepped(patient, intervention)
    assert patient.network.a.weight.detach().double().norm() / start == pytest.approx(1, abs=1e-6)


def test_without_a_norm_it_is_refused():
    with pytest.raises(ValueError, match="nap: 'a' has no norm before its nonlinearity"):
        operated("mlp", NaP())
    with pytest.raises(ValueError, match=r"nap\.only = 'critic': must be a part with hidden layers"):
        agent_with("dqn", NaP(only="critic"))
    with pytest.raises(ValueError, match="cannot work together"):
        check_interventions([NaP(), SpectralNorm()], DQNConfig())


def test_layer_norm_is_put_where_there_is_no_norm():
    assert NaP().configure(NetworkConfig()).norm == "layer"
    assert NaP().configure(NetworkConfig(norm="rms")).norm == "rms"
    agent = agent_with("ppo, two torsos", NaP(only="actor"))
    assert [layer.norm is not None for layer in agent.learner.interventions.layers] == [True, True, False, False]
    kinds = {type(layer.norm) for layer in agent_with("dqn", LayerNorm(kind="rms"), NaP()).learner.interventions.layers}
    assert all(issubclass(kind, nn.RMSNorm) for kind in kinds)


def test_the_norm_to_return_to_survives_a_reset_and_frozen_layers_stay():
    intervention = NaP()
    patient = operated("layer norm", intervention, steps=0)
    start = patient.network.b.weight.detach().norm()
    patient.surgery.reset([patient.network.b])
    patient.network.a.weight.requires_grad_(False).mul_(2.0)
    before = patient.network.a.weight.clone()
    stepped(patient, intervention)
    torch.testing.assert_close(patient.network.b.weight.detach().norm(), start)
    assert torch.equal(patient.network.a.weight, before)


def test_a_weight_of_zeros_stays_finite():
    intervention = NaP()
    patient = operated("layer norm", intervention)
    patient.network.a.weight.data.zero_()
    stepped(patient, intervention)
    assert not patient.network.a.weight.any() and patient.network.a.bias.isfinite().all()


@pytest.mark.parametrize("kind", ["dqn", "c51 on images", "ppo", "ppo, two torsos"])
def test_through_the_agents(kind):
    reset = Reset(when="every 9 gradient steps", last=2)
    agent = driven(kind, reset, ShrinkAndPerturb(form="dohare", perturb=1e-3), NaP())
    fresh = agent_with(kind, reset, ShrinkAndPerturb(form="dohare"), NaP())
    assert agent.clock.gradient_steps > 20
    for mine, start in zip(agent.learner.interventions.layers, fresh.learner.interventions.layers, strict=True):
        found, wanted = (layer.producer.weight.detach().double().norm() for layer in (mine, start))
        assert found / wanted == pytest.approx(1, abs=1e-6)
    heads = [name for name, _ in agent.network.named_parameters() if "head" in name]
    assert not [key for key in agent.learner.interventions.surgeries() if key[0] == "nap" and key[2] in heads]


def test_a_restored_run_goes_on_alike():
    assert continues_alike("dqn", lambda: [NaP()])
    first, second = NaP(), NaP()
    operated("layer norm", first)
    patient = operated("layer norm", second, steps=3)
    patient.network.a.weight.data.mul_(3.0)
    second.attach({"online": patient.network}, Generators(0))  # wrong norms, which the state must replace
    second.load_state_dict(first.state_dict())
    stepped(patient, second)
    torch.testing.assert_close(patient.network.a.weight.detach().norm(), models.layer_norm().a.weight.detach().norm())
