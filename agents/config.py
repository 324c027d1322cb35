"""Typed, frozen settings of the agents. Imports no torch, so that a bad flag is answered at once."""

from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from math import inf
from typing import Annotated, Literal, get_args

from agents.schedule import CONSTANT, Over, Schedule


class AsFlag(Enum):
    """How a field becomes a command-line flag, where it is not simply --its-name or --part.its-name."""

    FLAT = "flat"
    """The fields of this part become flags without its name before them."""
    FIRST = "first"
    """The first field of this part has the flag of the part itself."""
    NONE = "none"
    """It has no flag."""
    POSITIONAL = "positional"
    """It is a word without a flag."""


Flat, First = AsFlag.FLAT, AsFlag.FIRST
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
Execution = Literal["auto", "eager", "compile", "graph"]
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


def require_float32(settings: object, path: str = "", named: bool = False) -> None:
    """Raise `ValueError` for a number in the dataclass `settings`, or in what it holds, that float32 does not hold:
    NaN, infinite or beyond its range; or not 0 and so near 0, or below 1 and so near 1, that it would be 0 or 1.
    Weights, losses and Adam's state are float32. `path` goes before the fields' names, as in their flags; where the
    first one is `named` by it, alone."""
    for place, field in enumerate(fields(settings)):
        value = getattr(settings, field.name)
        for part in value if isinstance(value, tuple) else (value,):
            if is_dataclass(part):
                marks = getattr(field.type, "__metadata__", ())
                name = field.name if part is value else part.name  # one of a tuple is an intervention
                require_float32(part, path if Flat in marks else f"{path}{name}.", First in marks)
            elif isinstance(part, (int, float)) and not isinstance(part, bool):
                _require_float32(part, path[:-1] if named and not place else f"{path}{field.name}", value)


def _require_float32(number: float, field: str, value: object) -> None:
    require(abs(number) <= FLOAT32_LARGEST, field, value, "finite in float32 (at most 3.4e38)")
    large_enough = number == 0 or abs(number) >= FLOAT32_SMALLEST
    require(large_enough, field, value, "at least 1.2e-38 in size where it is not 0: float32 knows nothing in between")
    below_one = not 0 < number < 1 or number < BELOW_ONE
    require(below_one, field, value, f"at most {BELOW_ONE:.8f} where it is below 1: in float32 it would be 1")


@dataclass(frozen=True)
class AdamConfig:
    """Adam (Kingma & Ba 2015) but for its learning rate."""

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
class LearningRate(Schedule):
    """Adam's step size. (A number in its place, in Python or in a file, is a constant one.)"""

    start: float = 2.5e-4
    """Adam's step size at the start; > 0."""
    end: float = 0.0
    """What it falls to, where it is annealed."""
    over: Over = CONSTANT
    """Over which time it falls linearly. constant: it does not; run: the whole run (CleanRL's anneal_lr); task: anew in
    every task; 0.5-of-run, 0.5-of-task: a share of it; 250000: so many steps; 8000-steps-of-task: of every task."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.start < inf, "learning_rate", self.start, "> 0 and finite")
        require(0 <= self.end < inf, "learning_rate.end", self.end, ">= 0 and finite")


@dataclass(frozen=True)
class AgentConfig:
    """What the settings of every agent hold; agents/kinds.py has those that there are."""

    learning_rate: Annotated[LearningRate, First] = LearningRate()
    """Adam's step size."""
    adam: AdamConfig = AdamConfig()
    """Adam's other constants."""
    network: Annotated[NetworkConfig, Flat] = NetworkConfig()
    """The torso."""
    reward: Annotated[RewardConfig, Flat] = RewardConfig()
    """Reward transform."""
    gamma: float = 0.99
    """Discount in [0, 1]."""
    max_grad_norm: float = 0.0
    """Clip the global gradient norm to this; 0: off."""
    life_loss_discount: bool = False
    """Treat a lost life as the end of the future for learning (zero discount). The game goes on."""

    def __post_init__(self) -> None:
        if not isinstance(self.learning_rate, LearningRate):
            object.__setattr__(self, "learning_rate", LearningRate(self.learning_rate))
        require(0 <= self.gamma <= 1, "gamma", self.gamma, "in [0, 1]")
        require(self.max_grad_norm >= 0, "max_grad_norm", self.max_grad_norm, ">= 0")
