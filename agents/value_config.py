"""Settings of the agents that learn Q-values from a replay. Imports no torch."""

from dataclasses import dataclass
from math import inf
from typing import Annotated, Literal

from agents.config import AgentConfig, Flat, ReplayConfig, SupportConfig, require
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
    replay_device: Literal["auto", "host", "device"] = "auto"
    """Where replayed observations lie: main memory (host) or the training device's; auto: on a GPU that trains, where a
    full replay takes no more than 0.7 of the memory that is free, else in main memory."""
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


def check_value_agent(config: ValueAgentConfig, spaces: Spaces, num_envs: int) -> None:
    slots = max((spaces.frame_stack or 1) + config.n_step + 1, config.batch_size // num_envs + 1)
    allowed = f">= {num_envs * slots} for {num_envs} environments"
    require(config.buffer_size >= num_envs * slots, "buffer_size", config.buffer_size, allowed)
