"""The agents that there are: of each its settings, what may be asked of it, and where it is built. Imports no torch.

A new agent is an entry here, with its settings above it, and a module that builds it. Whoever treats agents unlike asks
for what they are able to, never which one it is.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from math import inf
from typing import Annotated, Any, Literal, get_args

from agents.checks import check_network
from agents.config import (
    ActionScaling,
    AdamConfig,
    AgentConfig,
    Flat,
    NetworkConfig,
    ReplayConfig,
    SupportConfig,
    require,
    require_float32,
)
from agents.schedule import Over, Schedule
from agents.transitions import Spaces


@dataclass(frozen=True)
class Epsilon(Schedule):
    """Epsilon, the share of uniformly random actions from learning_starts on; 1 before."""

    start: float = 1.0
    """Epsilon at learning_starts, in [0, 1]."""
    end: float = 0.01
    """Epsilon in the end, in [0, 1]."""
    over: Over = Over(250_000)
    """Over which time it falls linearly. 250000: so many steps; run: the whole run; 0.1-of-run: a share of it (its
    first tenth, CleanRL's exploration_fraction .1); task, 0.1-of-task, 8000-steps-of-task: anew in every task of a
    changing world; constant: it stays at epsilon.start."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.start <= 1, "epsilon.start", self.start, "in [0, 1]")
        require(0 <= self.end <= 1, "epsilon.end", self.end, "in [0, 1]")


@dataclass(frozen=True)
class ValueAgentConfig(AgentConfig):
    """What DQN and C51 share."""

    replay: ReplayConfig = ReplayConfig()
    """The replay where the world changes."""
    batch_size: int = 32
    """Transitions in a gradient step."""
    buffer_size: int = 1_000_000
    """Replay capacity in observations kept (steps, plus one a finished episode), over all environments."""
    replay_device: Literal["host", "device"] = "host"
    """Where replayed observations lie: main memory or the training device's."""
    learning_starts: int = 20_000
    """Steps of uniformly random actions before the first gradient step."""
    replay_ratio: float = 0.25
    """Gradient steps per step (over all environments); above 1 too."""
    target_period: int = 2_000
    """GRADIENT steps between copies of the online network into the target network (Dopamine's 8,000 steps at replay
    ratio .25 are 2,000)."""
    tau: float = 1.0
    """Weight of the online network at each target copy, in (0, 1]; below 1 usually with target_period 1."""
    n_step: int = 1
    """Rewards summed before bootstrapping."""
    double: bool = False
    """Choose the bootstrap action with the online network (van Hasselt et al. 2016)."""
    epsilon: Epsilon = Epsilon()
    """Share of uniformly random actions."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.batch_size >= 1, "batch_size", self.batch_size, ">= 1")
        require(self.n_step >= 1, "n_step", self.n_step, ">= 1")
        require(self.learning_starts >= 0, "learning_starts", self.learning_starts, ">= 0")
        for name in ("batch_size", "n_step"):  # beyond the usual, it is they that are wrong beside the replay
            value, allowed = getattr(self, name), f"below buffer_size = {self.buffer_size}"
            require(value < max(self.buffer_size, 10_000), name, value, allowed)
        least = self.batch_size + self.n_step + 4
        require(self.buffer_size >= least, "buffer_size", self.buffer_size, f">= batch_size + n_step + 4 = {least}")
        require(0 < self.replay_ratio < inf, "replay_ratio", self.replay_ratio, "> 0 and finite")
        require(self.target_period >= 1, "target_period", self.target_period, ">= 1")
        require(0 < self.tau <= 1, "tau", self.tau, "in (0, 1]")


def _check_value_agent(config: ValueAgentConfig, spaces: Spaces, num_envs: int) -> None:
    slots = max((spaces.frame_stack or 1) + config.n_step + 1, config.batch_size // num_envs + 1)
    allowed = f">= {num_envs * slots} for {num_envs} environments"
    require(config.buffer_size >= num_envs * slots, "buffer_size", config.buffer_size, allowed)


@dataclass(frozen=True)
class DQNConfig(ValueAgentConfig):
    """DQN (Mnih et al. 2015) with a regression or a categorical loss on scalar targets."""

    loss: Literal["huber", "mse", "two_hot", "hl_gauss"] = "huber"
    """huber, mse: regression; two_hot, hl_gauss: cross-entropy to the target spread over atoms (Farebrother24)."""
    support: Annotated[SupportConfig, Flat] = SupportConfig()
    """Atoms of a categorical head."""

    def __post_init__(self) -> None:
        super().__post_init__()
        ends = self.support.support_ends
        allowed = "centres with loss = 'two_hot', whose atoms have no bins around them"
        require(ends == "centres" or self.loss != "two_hot", "support_ends", ends, allowed)


@dataclass(frozen=True)
class C51Config(ValueAgentConfig):
    """C51 (Bellemare et al. 2017): the return's distribution over fixed atoms, cross-entropy to its projection."""

    support: Annotated[SupportConfig, Flat] = SupportConfig()
    """The atoms."""

    def __post_init__(self) -> None:
        super().__post_init__()
        sigma, usual = self.support.hl_gauss_sigma, SupportConfig().hl_gauss_sigma
        require(sigma == usual, "hl_gauss_sigma", sigma, f"{usual} in C51, which has no use for it")
        ends = self.support.support_ends
        require(ends == "centres", "support_ends", ends, "centres in C51, whose atoms have no bins around them")


@dataclass(frozen=True)
class PPOConfig(AgentConfig):
    """PPO (Schulman et al. 2017) with clipped ratios and generalised advantages."""

    adam: AdamConfig = AdamConfig(eps=1e-5)
    """Adam's other constants."""
    network: Annotated[NetworkConfig, Flat] = NetworkConfig(initializer="orthogonal")
    """The torso."""
    support: Annotated[SupportConfig, Flat] = SupportConfig()
    """Atoms of an HL-Gauss value head."""
    shared_torso: bool = True
    """One torso for policy and value; otherwise two of the same shape."""
    normalize_observations: bool = False
    """Standardise vector observations by their running mean and variance, clipped to [-10, 10]."""
    rollout_steps: int = 128
    """Steps in each environment between updates (CleanRL's num_steps)."""
    num_minibatches: int = 4
    """Minibatches an epoch; must divide rollout_steps * num_envs."""
    update_epochs: int = 4
    """Passes over each rollout."""
    gae_lambda: float = 0.95
    """Lambda of the generalised advantage estimate, in [0, 1]."""
    clip_coef: float = 0.1
    """Clip range of the probability ratio; > 0."""
    norm_adv: Literal["minibatch", "rollout", "off"] = "minibatch"
    """Standardise advantages over each minibatch, once over the rollout (Dohare24), or not."""
    value_loss: Literal["mse", "hl_gauss"] = "mse"
    """mse: mean squared error WITHOUT a factor 1/2; hl_gauss: cross-entropy over atoms (Farebrother24)."""
    clip_vloss: bool = False
    """Clip the value's change as well (mse only)."""
    vf_coef: float = 0.5
    """Weight of the value loss (CleanRL's .5 on half a squared error is .25 here)."""
    ent_coef: float = 0.01
    """Weight of the entropy bonus."""
    max_grad_norm: float = 0.5
    """Clip the global gradient norm to this; 0: off."""
    clip_actions: bool = True
    """Clip continuous actions to the action space before the world sees them; the policy's own draw is learned from."""
    action_scaling: ActionScaling = "auto"
    """Draw continuous actions in [-1, 1] and map them to the action space's bounds, as gymnasium's RescaleAction. auto:
    in each dimension whose bounds leave out 0, or are less than .25 or more than 4 from their centre; on: in all that
    have bounds; off: in none."""
    time_limit: Literal["bootstrap", "terminal"] = "bootstrap"
    """A time limit bootstraps from final_obs, or counts as the end (Dohare24's code)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.rollout_steps >= 1, "rollout_steps", self.rollout_steps, ">= 1")
        require(self.num_minibatches >= 1, "num_minibatches", self.num_minibatches, ">= 1")
        require(1 <= self.update_epochs <= 100_000, "update_epochs", self.update_epochs, "in [1, 100,000]")
        require(0 <= self.gae_lambda <= 1, "gae_lambda", self.gae_lambda, "in [0, 1]")
        require(0 < self.clip_coef < inf, "clip_coef", self.clip_coef, "> 0 and finite")
        require(0 <= self.vf_coef < inf, "vf_coef", self.vf_coef, ">= 0 and finite")
        require(0 <= self.ent_coef < inf, "ent_coef", self.ent_coef, ">= 0 and finite")
        mse = self.value_loss == "mse"
        require(mse or not self.clip_vloss, "clip_vloss", self.clip_vloss, "off with value_loss = 'hl_gauss'")


def _check_ppo(config: PPOConfig, spaces: Spaces, num_envs: int) -> None:
    batch = config.rollout_steps * num_envs
    divides = f"a divisor of rollout_steps * num_envs = {batch}"
    require(batch % config.num_minibatches == 0, "num_minibatches", config.num_minibatches, divides)
    smallest = {"minibatch": batch // config.num_minibatches, "rollout": batch, "off": 2}[config.norm_adv]
    require(smallest > 1, "norm_adv", config.norm_adv, "off where there is one sample to standardise")
    vectors = len(spaces.observation_shape) == 1 and not spaces.is_image
    require(vectors or not config.normalize_observations, "normalize_observations", True, "off but for vectors")


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
    "check": _check_value_agent,
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
            check=_check_ppo,
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
