"""Settings of PPO. Imports no torch."""

from dataclasses import dataclass
from math import inf
from typing import Annotated, Literal

from agents.config import ActionScaling, AdamConfig, AgentConfig, Flat, NetworkConfig, SupportConfig, require
from agents.transitions import Spaces


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


def check_ppo(config: PPOConfig, spaces: Spaces, num_envs: int) -> None:
    batch = config.rollout_steps * num_envs
    divides = f"a divisor of rollout_steps * num_envs = {batch}"
    require(batch % config.num_minibatches == 0, "num_minibatches", config.num_minibatches, divides)
    smallest = {"minibatch": batch // config.num_minibatches, "rollout": batch, "off": 2}[config.norm_adv]
    require(smallest > 1, "norm_adv", config.norm_adv, "off where there is one sample to standardise")
    vectors = len(spaces.observation_shape) == 1 and not spaces.is_image
    require(vectors or not config.normalize_observations, "normalize_observations", True, "off but for vectors")
