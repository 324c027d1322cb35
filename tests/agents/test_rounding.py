"""Weights rounded to bf16 ahead of a pass, against autocast, which rounds them in it."""

import copy

import pytest
import torch

from agents import rounding
from agents.interventions.plasticity_injection import PlasticityInjection
from agents.optimization import autocast
from agents.value_config import C51Config, DQNConfig
from tests.agents.helpers import CPU, SMALL, SMALL_IMAGE, VECTOR, NoiseWorld, build, drive

SETTINGS = {
    "network": SMALL,
    "buffer_size": 400,
    "learning_starts": 40,
    "batch_size": 16,
    "replay_ratio": 0.5,
    "target_period": 7,
}
CASES = {
    "MLP": (DQNConfig(**SETTINGS), VECTOR, ()),
    "double": (DQNConfig(**SETTINGS, double=True), VECTOR, ()),
    "Nature CNN, C51": (C51Config(**SETTINGS), SMALL_IMAGE, ()),
    "norms": (DQNConfig(**SETTINGS), SMALL_IMAGE, ("layer_norm",)),
    "spectral norm": (DQNConfig(**SETTINGS), VECTOR, ("spectral_norm",)),
    "PopArt": (DQNConfig(**SETTINGS), VECTOR, ("popart",)),
    "plasticity injection": (DQNConfig(**SETTINGS), VECTOR, (PlasticityInjection(when="at-step-60"),)),
}


def learned(name, monkeypatch=None):
    """An agent after 15 updates in bf16; with a `monkeypatch` everything is rounded by autocast."""
    config, spaces, interventions = CASES[name]
    if monkeypatch:
        monkeypatch.setattr(rounding, "RoundedWeights", lambda network: autocast(CPU, "bf16"))
    agent = build(config, spaces, interventions=interventions, precision="bf16")
    return drive(agent, NoiseWorld(spaces, 2), 35)


@pytest.mark.parametrize("name", CASES)
def test_learning_is_autocasts_to_the_bit(name, monkeypatch):
    ours, theirs = learned(name), learned(name, monkeypatch)
    assert ours.clock.gradient_steps == 15
    for networks in ((ours.network, theirs.network), (ours.learner.target, theirs.learner.target)):
        for mine, other in zip(*(network.parameters() for network in networks), strict=True):
            assert mine.dtype == torch.float32 and torch.equal(mine, other)


def test_weights_are_rounded_again_when_they_have_moved_and_stay_float32():
    agent = learned("MLP")
    observations = torch.zeros(1, 5)
    network, weights = agent.network, list(agent.network.parameters())

    def bias():
        with torch.no_grad(), rounding.without_gradient(network, CPU, "bf16"):
            assert network.head.bias.dtype == torch.bfloat16
            assert network(observations).dtype == torch.float32
            return network.head.bias.tolist()

    bias()
    with torch.inference_mode():
        network.head.bias.fill_(1.01)  # between 1.0078125 and 1.015625 of bf16
    assert bias() == [1.0078125] * 3
    network.load_state_dict({name: torch.full_like(value, 3.0) for name, value in network.state_dict().items()})
    assert bias() == [3.0] * 3
    assert [id(weight) for weight in network.parameters()] == [id(weight) for weight in weights]
    assert all(weight.dtype == torch.float32 for weight in weights)
    assert "rounded" not in "".join(network.state_dict())


def test_a_copy_of_a_network_rounds_its_own_weights():
    network = learned("MLP").network
    copied = copy.deepcopy(network)
    with torch.no_grad():
        copied.head.bias.fill_(3.0)
        for each, expected in ((copied, [3.0] * 3), (network, network.head.bias.bfloat16().tolist())):
            with rounding.without_gradient(each, CPU, "bf16"):
                assert each.head.bias.tolist() == expected
