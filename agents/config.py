"""Typed, frozen settings of the agents. Imports no torch, so that a bad flag is answered at once."""

from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from math import inf
from typing import Annotated, Literal, get_args


class AsFlag(Enum):
    """How a field becomes a command-line flag, where it is not simply --its-name or --part.its-name."""

    FLAT = "flat"
    """The fields of this part become flags without its name before them."""
    NONE = "none"
    """It has no flag."""
    POSITIONAL = "positional"
    """It is a word without a flag."""


Flat = AsFlag.FLAT
Hidden = (AsFlag.NONE,)  # an intervention sets the field

FLOAT32_LARGEST, FLOAT32_SMALLEST = (2 - 2**-23) * 2.0**127, 2.0**-126
"""Of float32's numbers in full precision. What lies below the smallest is 0 where subnormals are flushed to it."""
BELOW_ONE = 1 - 2.0**-25
"""From here on a number below 1 is 1 in float32."""

InitializerName = Literal["torch", "lecun_uniform", "orthogonal", "xavier_uniform", "dopamine_c51"]
Padding = Literal["valid", "same"]
SupportEnds = Literal["centres", "edges"]
Precision = Literal["fp32", "tf32", "bf16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
ActionScaling = Literal["auto", "on", "off"]
ActivationName = Literal["relu", "tanh", "leaky_relu", "gelu", "silu"]


def require(condition: bool, field: str, value: object, allowed: str) -> None:
    """Raise `ValueError` with a sentence naming field, value and allowed range unless `condition` holds."""
    if not condition:
        raise ValueError(f"{field} = {shown(value)}: must be {allowed}")


def shown(value: object) -> str:
    """`value` as a sentence can hold it: on one line, and of a long one its beginning and end."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:120]}...{text[-60:]}"


def require_float32(settings: object, path: str = "") -> None:
    """Raise `ValueError` for a number in the dataclass `settings`, or in what it holds, that float32 does not hold:
    NaN, infinite or beyond its range; or not 0 and so near 0, or below 1 and so near 1, that it would be 0 or 1.
    Weights, losses and Adam's state are float32. `path` goes before the fields' names, as in their flags."""
    for field in fields(settings):
        value = getattr(settings, field.name)
        for part in value if isinstance(value, tuple) else (value,):
            if is_dataclass(part):
                flat = Flat in getattr(field.type, "__metadata__", ())
                name = field.name if part is value else part.name  # one of a tuple is an intervention
                require_float32(part, path if flat else f"{path}{name}.")
            elif isinstance(part, (int, float)) and not isinstance(part, bool):
                _require_float32(part, f"{path}{field.name}", value)


def _require_float32(number: float, field: str, value: object) -> None:
    require(abs(number) <= FLOAT32_LARGEST, field, value, "finite in float32 (at most 3.4e38)")
    large_enough = number == 0 or abs(number) >= FLOAT32_SMALLEST
    require(large_enough, field, value, "at least 1.2e-38 in size where it is not 0: float32 knows nothing in between")
    below_one = not 0 < number < 1 or number < BELOW_ONE
    require(below_one, field, value, f"at most {BELOW_ONE:.8f} where it is below 1: in float32 it would be 1")


@dataclass(frozen=True)
class AdamConfig:
    """Adam (Kingma & Ba 2015). The learning rate stands with the agent, since agents anneal it."""

    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the first and second moment, each in [0, 1). Equal betas bound the update (Dohare24's tuned Adam)."""
    eps: float = 1e-8
    """Added to the root of the second moment; > 0."""

    def __post_init__(self) -> None:
        require(all(0.0 <= beta < 1.0 for beta in self.betas), "adam.betas", self.betas, "two numbers in [0, 1)")
        require(0.0 < self.eps < inf, "adam.eps", self.eps, "> 0 and finite")


@dataclass(frozen=True)
class NetworkConfig:
    """The torso: hidden layers between the observation and the heads."""

    torso: Literal["auto", "nature_cnn", "small_cnn", "mlp"] = "auto"
    """auto: NatureCNN for uint8 images [channels, >= 36, >= 36], MLP otherwise (images are flattened); small_cnn:
    Lyle23's for small images, 5x5-64 and 3x3-64 (with --width 256 --depth 2)."""
    width: int = 512
    """Units in each dense hidden layer."""
    depth: int = 1
    """Dense hidden layers (after the convolutions, where the torso has them)."""
    activation: ActivationName = "relu"
    """Nonlinearity after every hidden layer."""
    initializer: InitializerName = "torch"
    """Law of the weights: torch's default, LeCun uniform (Dohare24), orthogonal (CleanRL's PPO: gain sqrt 2, .01 for
    the policy, 1 for the value), Xavier uniform (Dopamine's DQN) or variance scaling by 1/sqrt 3 (Dopamine's C51)."""
    norm: Annotated[Literal["none", "layer", "rms", "batch"], *Hidden] = "none"
    """Norm right before the nonlinearity of every hidden layer."""
    norm_affine: Annotated[bool, *Hidden] = True
    """Whether the norm has a gain and a bias for each unit (rms: a gain)."""
    doubled: Annotated[Literal["none", "crelu", "fourier"], *Hidden] = "none"
    """crelu: concat(relu(x), relu(-x)), fourier: concat(sin x, cos x), both in place of `activation`."""
    match: Annotated[Literal["features", "parameters"], *Hidden] = "features"
    """Units of a hidden layer where `doubled`: half as many, so that as many features come out, or 1/sqrt 2 as many, so
    that there are about as many parameters."""
    negative_slope: Annotated[float, *Hidden] = 0.01
    """Slope of leaky_relu below 0, in [0, 1)."""
    dropout: Annotated[float, *Hidden] = 0.0
    """Chance of a feature to be dropped after a nonlinearity while learning, in [0, 1)."""
    spectral_layers: Annotated[int, *Hidden] = 0
    """How many of the last hidden layers divide their weight by its largest singular value."""
    spectral_relaxed: Annotated[bool, *Hidden] = False
    """Divide only where that value is above 1."""
    padding: Padding = "valid"
    """Around the maps that convolutions read. valid: none (Mnih et al. 2015, CleanRL; NatureCNN's maps of an 84x84
    image are 20, 9, 7); same: zeros, so that a stride of s leaves 1/s of the positions, rounded up (Flax's SAME, which
    Dopamine's networks have: 21, 11, 11). It means nothing to an MLP."""

    def __post_init__(self) -> None:
        require(self.width >= 1, "width", self.width, ">= 1")
        require(0 <= self.depth <= 1000, "depth", self.depth, "in [0, 1000]")
        halved = self.doubled != "none" and self.match == "features"
        require(not halved or self.width % 2 == 0, "width", self.width, f"even where {self.doubled} halves the units")
        require(0 <= self.negative_slope < 1, "negative_slope", self.negative_slope, "in [0, 1)")
        require(0 <= self.dropout < 1, "dropout", self.dropout, "in [0, 1)")
        require(self.spectral_layers >= 0, "spectral_layers", self.spectral_layers, ">= 0")


@dataclass(frozen=True)
class SupportConfig:
    """The fixed, evenly spaced atoms of a categorical value head."""

    v_min: float = -10.0
    """Lowest atom of a categorical value head, in units of the (transformed) return. (HL-Gauss: see support_ends.)"""
    v_max: float = 10.0
    """Highest atom; > v_min. Targets outside are clipped: watch targets/clipped_share."""
    num_atoms: int = 51
    """Number of atoms, in [2, 1,000,000]."""
    hl_gauss_sigma: float = 0.75
    """HL-Gauss: standard deviation of the target Gaussian in bin widths, > 0 (Farebrother24: .75)."""
    support_ends: SupportEnds = "centres"
    """HL-Gauss: what v_min and v_max are. centres: those of the outermost bins, which reach half a bin further, so that
    the atoms are C51's; edges: the outer edges of these bins (Farebrother24), the atoms half a bin within."""

    def __post_init__(self) -> None:
        require(abs(self.v_min) <= FLOAT32_LARGEST, "v_min", self.v_min, "finite, in float32 too")
        require(self.v_min < self.v_max < inf, "v_max", self.v_max, f"> v_min = {self.v_min} and finite")
        require(2 <= self.num_atoms <= 1_000_000, "num_atoms", self.num_atoms, "in [2, 1,000,000]")
        width, largest = self.v_max - self.v_min, max(abs(self.v_min), abs(self.v_max))
        require(width <= FLOAT32_LARGEST, "v_max", self.v_max, f"> v_min = {self.v_min} and within 3.4e38 of it")
        apart = width / (self.num_atoms - 1) > largest * 2**-23
        far = f"far enough from v_min = {self.v_min} for float32 to tell {self.num_atoms} atoms apart"
        require(apart, "v_max", self.v_max, far)
        require(0.0 < self.hl_gauss_sigma < inf, "hl_gauss_sigma", self.hl_gauss_sigma, "> 0 and finite")


@dataclass(frozen=True)
class SurgeryConfig:
    """How interventions edit weights."""

    moments: Literal["own", "zero", "mean", "local", "keep"] = "own"
    """What becomes of Adam's moments where units are replaced. own: what each method's paper does; zero: forgotten,
    which overshoots under unequal betas (docs/interventions.md); mean: the first is forgotten, the second becomes the
    mean of the units that stay; local: forgotten, with Adam's bias correction by each element's own count of steps
    (which Dohare24's AdamGnT means to be, and is not: docs/interventions.md); keep. Biases are treated as the weights
    are (Dopamine's ReDo leaves their moments alone)."""


@dataclass(frozen=True)
class RewardConfig:
    """What the learner makes of a reward. Logged returns are the game's own whatever stands here."""

    reward_transform: Literal["none", "clip", "scale", "center"] = "none"
    """clip: to [-1, 1]; scale: divide by the running standard deviation of the discounted return, then clip to
    [-10, 10] (gymnasium's NormalizeReward but at episode ends: there the last reward counts within its return, and
    termination and time limit alike start the next return at 0); center: subtract the running mean reward (arXiv
    2405.09999)."""


@dataclass(frozen=True)
class ReplayConfig:
    """What becomes of the replay when the world changes."""

    on_task_change: Literal["keep", "clear"] = "keep"
    """keep: old transitions stay until they are overwritten, and may contradict the new task (watch
    replay/current_task_share); clear: those of earlier tasks are forgotten when every environment has switched."""


@dataclass(frozen=True)
class ValueAgentConfig:
    """What DQN and C51 share."""

    learning_rate: float = 2.5e-4
    """Adam's step size; > 0."""
    adam: AdamConfig = AdamConfig()
    """Adam's other constants."""
    network: Annotated[NetworkConfig, Flat] = NetworkConfig()
    """The torso."""
    support: Annotated[SupportConfig, Flat] = SupportConfig()
    """Atoms of a categorical head."""
    reward: Annotated[RewardConfig, Flat] = RewardConfig()
    """Reward transform."""
    replay: ReplayConfig = ReplayConfig()
    """The replay where the world changes."""
    gamma: float = 0.99
    """Discount in [0, 1]."""
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
    start_e: float = 1.0
    """Epsilon at learning_starts."""
    end_e: float = 0.01
    """Epsilon from learning_starts + exploration_steps on."""
    exploration_steps: int = 250_000
    """Steps over which epsilon falls linearly; 0: constant at end_e."""
    anneal_per_task: bool = False
    """Let epsilon fall anew from start_e in every task of a changing world."""
    life_loss_discount: bool = False
    """Treat a lost life as the end of the future for learning (zero discount). The game goes on."""
    max_grad_norm: float = 0.0
    """Clip the global gradient norm to this; 0: off."""

    def __post_init__(self) -> None:
        require(0 < self.learning_rate < inf, "learning_rate", self.learning_rate, "> 0 and finite")
        require(0 <= self.gamma <= 1, "gamma", self.gamma, "in [0, 1]")
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
        require(0 <= self.start_e <= 1, "start_e", self.start_e, "in [0, 1]")
        require(0 <= self.end_e <= 1, "end_e", self.end_e, "in [0, 1]")
        require(self.exploration_steps >= 0, "exploration_steps", self.exploration_steps, ">= 0")
        require(self.max_grad_norm >= 0, "max_grad_norm", self.max_grad_norm, ">= 0")


@dataclass(frozen=True)
class DQNConfig(ValueAgentConfig):
    """DQN (Mnih et al. 2015) with a regression or a categorical loss on scalar targets."""

    loss: Literal["huber", "mse", "two_hot", "hl_gauss"] = "huber"
    """huber, mse: regression; two_hot, hl_gauss: cross-entropy to the target spread over atoms (Farebrother24)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        ends = self.support.support_ends
        allowed = "centres with loss = 'two_hot', whose atoms have no bins around them"
        require(ends == "centres" or self.loss != "two_hot", "support_ends", ends, allowed)


@dataclass(frozen=True)
class C51Config(ValueAgentConfig):
    """C51 (Bellemare et al. 2017): the return's distribution over fixed atoms, cross-entropy to its projection."""

    def __post_init__(self) -> None:
        super().__post_init__()
        sigma, usual = self.support.hl_gauss_sigma, SupportConfig().hl_gauss_sigma
        require(sigma == usual, "hl_gauss_sigma", sigma, f"{usual} in C51, which has no use for it")
        ends = self.support.support_ends
        require(ends == "centres", "support_ends", ends, "centres in C51, whose atoms have no bins around them")


@dataclass(frozen=True)
class PPOConfig:
    """PPO (Schulman et al. 2017) with clipped ratios and generalised advantages."""

    learning_rate: float = 2.5e-4
    """Adam's step size at the start; > 0."""
    anneal_steps: int = 0
    """Steps over which the learning rate falls linearly to 0; 0: constant."""
    anneal_per_task: bool = False
    """Let the learning rate fall anew in every task of a changing world."""
    adam: AdamConfig = AdamConfig(eps=1e-5)
    """Adam's other constants."""
    network: Annotated[NetworkConfig, Flat] = NetworkConfig(initializer="orthogonal")
    """The torso."""
    support: Annotated[SupportConfig, Flat] = SupportConfig()
    """Atoms of an HL-Gauss value head."""
    reward: Annotated[RewardConfig, Flat] = RewardConfig()
    """Reward transform."""
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
    gamma: float = 0.99
    """Discount in [0, 1]."""
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
    life_loss_discount: bool = False
    """Treat a lost life as the end of the future for learning (zero discount). The game goes on."""
    time_limit: Literal["bootstrap", "terminal"] = "bootstrap"
    """A time limit bootstraps from final_obs, or counts as the end (Dohare24's code)."""

    def __post_init__(self) -> None:
        require(0 < self.learning_rate < inf, "learning_rate", self.learning_rate, "> 0 and finite")
        require(self.anneal_steps >= 0, "anneal_steps", self.anneal_steps, ">= 0")
        require(self.rollout_steps >= 1, "rollout_steps", self.rollout_steps, ">= 1")
        require(self.num_minibatches >= 1, "num_minibatches", self.num_minibatches, ">= 1")
        require(1 <= self.update_epochs <= 100_000, "update_epochs", self.update_epochs, "in [1, 100,000]")
        require(0 <= self.gamma <= 1, "gamma", self.gamma, "in [0, 1]")
        require(0 <= self.gae_lambda <= 1, "gae_lambda", self.gae_lambda, "in [0, 1]")
        require(0 < self.clip_coef < inf, "clip_coef", self.clip_coef, "> 0 and finite")
        require(0 <= self.vf_coef < inf, "vf_coef", self.vf_coef, ">= 0 and finite")
        require(0 <= self.ent_coef < inf, "ent_coef", self.ent_coef, ">= 0 and finite")
        require(self.max_grad_norm >= 0, "max_grad_norm", self.max_grad_norm, ">= 0")
        mse = self.value_loss == "mse"
        require(mse or not self.clip_vloss, "clip_vloss", self.clip_vloss, "off with value_loss = 'hl_gauss'")


AgentConfig = DQNConfig | C51Config | PPOConfig
