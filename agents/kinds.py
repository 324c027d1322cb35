"""The agents that there are: of each its settings, what may be asked of it, and where it is built. Imports no torch.

A new agent is an entry here with its settings, and a module that builds it. Whoever treats agents unlike asks for what
they are able to, never which one it is.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, get_args

from agents.checks import check_network
from agents.config import AgentConfig, require, require_float32
from agents.ppo_config import PPOConfig, check_ppo
from agents.transitions import Spaces
from agents.value_config import C51Config, DQNConfig, check_value_agent

REGRESSIONS = ("huber", "mse")
"""Losses that compare a scalar output with a scalar target; the others compare distributions over atoms."""


@dataclass(frozen=True)
class Kind:
    """One kind of agent."""

    name: str
    """As it is written after train.py."""
    settings: type[AgentConfig]
    made_by: str
    """module:name of what builds it, called as `agents.build_agent` says."""
    plays_by: str
    """module:name of what makes its policy of (settings, spaces, device, precision, interventions)."""
    probed_by: str
    """module:name of what makes of it, and of generators, what a prober measures."""
    check: Callable[[Any, Spaces, int], None]
    """Raises ValueError where these settings cannot learn with these spaces and so many environments."""
    parts: Callable[[Any], tuple[str, ...]]
    """The parts of its network, some of encoder (a torso for all heads), actor, critic."""
    atoms: Callable[[Any], int]
    """How many outputs stand for one value."""
    atoms_setting: str = "num_atoms"
    """Its setting that says so."""
    value_loss: str = ""
    """Its setting that names the value's loss; empty where that is always a distribution's."""
    actions: tuple[str, ...] = ("discrete",)
    """Of worlds in which it can act: some of discrete, continuous."""
    on_policy: bool = False
    """Whether it learns from rollouts (`rollout_steps`, `num_minibatches`) and not from a replay (`buffer_size`)."""
    target_network: bool = True
    """Whether it bootstraps from a copy of its network (`target_period`, `tau`)."""
    unused: tuple[str, ...] = ()
    """Settings that its parts have and it has no use for: no flags of it."""

    @property
    def build(self) -> Callable[..., Any]:
        """What builds it. Brings torch in."""
        return _found(self.made_by)

    @property
    def policy(self) -> Callable[..., Any]:
        """What makes its policy. Brings torch in."""
        return _found(self.plays_by)

    @property
    def subject(self) -> Callable[..., Any]:
        """(agent, generators) -> what a prober measures. Brings torch in."""
        return _found(self.probed_by)

    @property
    def regressions(self) -> tuple[str, ...]:
        """The choices of `value_loss` with which a value is one output, learned by regression."""
        choices = get_args(self.settings.__dataclass_fields__[self.value_loss].type) if self.value_loss else ()
        return tuple(choice for choice in choices if choice in REGRESSIONS)


def _found(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)


_OF_Q_VALUES = {
    "probed_by": "agents.probing:subject_of_values",
    "check": check_value_agent,
    "parts": lambda config: ("encoder", "critic"),
}


KINDS = {
    kind.name: kind
    for kind in (
        Kind(
            "dqn",
            DQNConfig,
            "agents.dqn:DQN",
            "agents.dqn:policy",
            atoms=lambda config: 1 if config.loss in REGRESSIONS else config.support.num_atoms,
            value_loss="loss",
            **_OF_Q_VALUES,
        ),
        Kind(
            "c51",
            C51Config,
            "agents.c51:C51",
            "agents.c51:policy",
            atoms=lambda config: config.support.num_atoms,
            unused=("hl_gauss_sigma", "support_ends"),
            **_OF_Q_VALUES,
        ),
        Kind(
            "ppo",
            PPOConfig,
            "agents.ppo:PPO",
            "agents.policies:ActorPolicy",
            "agents.probing:subject_of_ppo",
            check=check_ppo,
            parts=lambda config: ("encoder", "actor", "critic") if config.shared_torso else ("actor", "critic"),
            atoms=lambda config: 1 if config.value_loss in REGRESSIONS else config.support.num_atoms,
            value_loss="value_loss",
            actions=("discrete", "continuous"),
            on_policy=True,
            target_network=False,
        ),
    )
}
"""By name."""


def kind_of(config: AgentConfig) -> Kind:
    """The kind of agent that `config` is the settings of."""
    found = next((kind for kind in KINDS.values() if type(config) is kind.settings), None)
    if found is None:
        raise TypeError(f"{config!r}: must be the settings of an agent in agents/kinds.py")
    return found


def check_agent(config: AgentConfig, spaces: Spaces, num_envs: int) -> None:
    """Raise ValueError, naming the setting, where the agent cannot learn with these spaces and environments."""
    kind = kind_of(config)
    require_float32(config)
    able = [other.name for other in KINDS.values() if spaces.actions in other.actions]
    needs = f"({kind.name} needs {' or '.join(kind.actions)} ones)"
    allowed = f"{' or '.join(able)} for a world with {spaces.actions} actions {needs}"
    require(kind.name in able, "algorithm", kind.name, allowed)
    check_network(config.network, spaces)
    kind.check(config, spaces, num_envs)
