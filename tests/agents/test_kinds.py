"""The registry of agents: what is said of a kind is true of what is built, and a kind that is new is asked alike."""

import subprocess
import sys
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from agents import build_agent
from agents.config import AgentConfig, NetworkConfig, SupportConfig
from agents.interventions.lifecycle import check_interventions
from agents.kinds import KINDS, Kind, check_agent, kind_of
from agents.ppo_config import PPOConfig
from agents.randomness import Generators
from agents.sizes import network_size
from agents.transitions import Spaces
from agents.value_config import C51Config, DQNConfig, ValueAgentConfig
from experiments.foreign_flags import about_flag

VECTOR = Spaces((5,), np.dtype(np.float32), "discrete", 3)
SMALL = NetworkConfig(width=8, depth=2)
ATOMS = SupportConfig(num_atoms=7)
SETTINGS = {
    "dqn": DQNConfig(network=SMALL, buffer_size=100),
    "dqn hl_gauss": DQNConfig(network=SMALL, buffer_size=100, loss="hl_gauss", support=ATOMS),
    "c51": C51Config(network=SMALL, buffer_size=100, support=ATOMS),
    "ppo": PPOConfig(network=SMALL, rollout_steps=8),
    "ppo apart": PPOConfig(network=SMALL, rollout_steps=8, shared_torso=False, value_loss="hl_gauss", support=ATOMS),
}


def built(name: str):
    return build_agent(SETTINGS[name], VECTOR, 1, Generators(0), torch.device("cpu"))


@pytest.mark.parametrize("name", SETTINGS)
def test_an_agent_is_what_its_entry_says(name: str) -> None:
    agent, config, kind = built(name), SETTINGS[name], kind_of(SETTINGS[name])
    named = [parameter for parameter, _ in agent.network.named_parameters()]
    assert {agent.network.part_of(parameter) for parameter in named} == set(kind.parts(config))
    assert (agent.learner.target is not None) == kind.target_network
    assert hasattr(agent, "rollout") == kind.on_policy and hasattr(agent, "replay") != kind.on_policy
    assert agent.head.atoms == kind.atoms(config) == (7 if config.support is ATOMS else 1)
    regresses = bool(kind.regressions) and getattr(config, kind.value_loss) in kind.regressions
    assert regresses == (agent.head.atoms == 1)
    counted = network_size(config, VECTOR, 8, 2, kind.atoms(config)).parameters
    assert counted == sum(parameter.numel() for parameter in agent.network.parameters())
    assert kind.subject(agent, Generators(1)).network is agent.network


def test_an_entry_is_found_without_torch() -> None:
    code = "import sys, agents.kinds; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_settings_of_no_agent_are_told() -> None:
    with pytest.raises(TypeError, match="must be the settings of an agent"):
        kind_of(AgentConfig())


@pytest.mark.parametrize("name", KINDS)
def test_who_cannot_act_is_told_who_can(name: str) -> None:
    continuous = Spaces((5,), np.dtype(np.float32), "continuous", 2)
    if name == "ppo":
        return check_agent(KINDS[name].settings(), continuous, 1)
    with pytest.raises(ValueError, match=f"algorithm = '{name}': must be ppo for a world with continuous actions"):
        check_agent(KINDS[name].settings(), continuous, 1)


@dataclass(frozen=True)
class NewConfig(ValueAgentConfig):
    """An agent that the interventions have never heard of."""


@pytest.fixture
def new(monkeypatch: pytest.MonkeyPatch) -> NewConfig:
    dqn = KINDS["dqn"]
    places = "nowhere:New", "nowhere:policy", "nowhere:subject"
    entry = Kind("new", NewConfig, *places, dqn.check, dqn.parts, atoms=lambda config: 5)
    monkeypatch.setitem(KINDS, "new", entry)
    return NewConfig(tau=0.5, target_period=1)


@pytest.mark.parametrize(
    ("intervention", "told"),
    [
        ("popart", "popart: needs a value head that is learned by regression, new's is not"),
        ("optimizer_reset", "target_period = 1: must be > 1"),
    ],
)
def test_an_intervention_asks_a_new_agent_what_it_is(new: NewConfig, intervention: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        check_interventions([intervention], new)


def test_a_flag_that_a_new_agent_does_not_have_is_answered_with_whose_it_is(new: NewConfig) -> None:
    elsewhere = {"--v-min": "dqn and c51"}
    assert about_flag("--v-min", "new", ["--gamma"], elsewhere) == "--v-min: no flag of new, but of dqn and c51"
    assert about_flag("--v_range", "new", ["--gamma"], elsewhere).endswith("did you mean --v-min and --v-max?")


def test_an_intervention_that_needs_nothing_of_a_new_agent_takes_it(new: NewConfig) -> None:
    check_interventions(["layer_norm", "redo", "l2_init"], new)
