"""The sizes that are counted before anything is built are those of what is then built."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from agents import build_agent
from agents.config import NetworkConfig
from agents.interventions import CReLU
from agents.ppo_config import PPOConfig
from agents.randomness import Generators
from agents.sizes import network_size
from agents.transitions import Spaces
from agents.value_config import C51Config, DQNConfig

VECTOR = Spaces((11,), np.dtype("float32"), "discrete", 3)
CONTROL = Spaces((11,), np.dtype("float32"), "continuous", 4, np.full(4, -1.0), np.ones(4))
SCREEN = Spaces((4, 84, 84), np.dtype("uint8"), "discrete", 6, frame_stack=4)
SMALL = Spaces((1, 28, 28), np.dtype("uint8"), "discrete", 10)
NETWORKS = {
    "two layers": NetworkConfig(width=24, depth=2),
    "no layer": NetworkConfig(width=24, depth=0),
    "padded": NetworkConfig(width=16, depth=1, padding="same"),
    "one layer": NetworkConfig(width=16, depth=1),
}


def built(agent, spaces: Spaces, interventions=()) -> int:
    """Weights and biases of the real network."""
    small = replace(agent, buffer_size=1000) if not isinstance(agent, PPOConfig) else agent
    made = build_agent(small, spaces, 2, Generators(1), torch.device("cpu"), interventions=interventions)
    return sum(parameter.numel() for parameter in made.network.parameters())


def counted(agent, spaces: Spaces) -> int:
    """The same, without building it."""
    network = agent.network
    return network_size(agent, spaces, network.width, network.depth, agent.support.num_atoms).parameters


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("spaces", [VECTOR, SCREEN, SMALL], ids=["vector", "screen", "small image"])
@pytest.mark.parametrize("kind", ["dqn", "hl_gauss", "c51", "ppo", "ppo hl_gauss", "ppo apart"])
def test_parameters_are_counted(kind: str, spaces: Spaces, network: str) -> None:
    settings = NETWORKS[network]
    agent = {
        "dqn": DQNConfig(network=settings),
        "hl_gauss": DQNConfig(network=settings, loss="hl_gauss"),
        "c51": C51Config(network=settings),
        "ppo": PPOConfig(network=settings),
        "ppo hl_gauss": PPOConfig(network=settings, value_loss="hl_gauss"),
        "ppo apart": PPOConfig(network=settings, shared_torso=False),
    }[kind]
    assert counted(agent, spaces) == built(agent, spaces)


def test_a_hand_count_of_the_nature_network() -> None:
    """4*8*8*32 + 32, 32*4*4*64 + 64, 64*3*3*64 + 64, 64*7*7*512 + 512, 512*6 + 6."""
    assert counted(DQNConfig(), SCREEN) == 8_224 + 32_832 + 36_928 + 1_606_144 + 3_078


def test_small_convolutions_and_continuous_actions_are_counted() -> None:
    small = DQNConfig(network=NetworkConfig(torso="small_cnn", width=256, depth=2))
    assert counted(small, SMALL) == built(small, SMALL)
    ant = PPOConfig(network=NetworkConfig(width=32, depth=2), shared_torso=False)
    assert counted(ant, CONTROL) == built(ant, CONTROL)


@pytest.mark.parametrize("match", ["features", "parameters"])
def test_doubled_features_are_counted(match: str) -> None:
    agent, crelu = DQNConfig(), CReLU(match=match)
    assert counted(replace(agent, network=crelu.configure(agent.network)), SCREEN) == built(agent, SCREEN, [crelu])
