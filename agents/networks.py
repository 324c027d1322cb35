"""Torsos and heads. Every Linear and convolution keeps its `initializer` (see initializers.py).

Images come in as uint8 [batch, channels, height, width] and are scaled to [0, 1] inside; vectors as float
[batch, features]. Layers carry the names the logs use: conv1..conv3, dense1..denseN, head. What goes with a hidden
layer has its number: spectral1, conv1, norm1, activation1, dropout1 (see layers.py). Weights are float32, whatever
torch's default dtype.

Networks return their outputs; asked to `capture`, (outputs, what the hidden layers held), see `Captured`. Nothing is
handed in to be filled and no hook is needed, so they run under torch.func.functional_call and vmap too, batch norm's
running statistics and dropout's draws excepted.
"""

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import Tensor, nn

from agents.checks import uses_convolutions
from agents.config import NetworkConfig, require
from agents.heads import ValueHead
from agents.initializers import initialize, linear
from agents.layers import ACTIVATIONS as ACTIVATIONS
from agents.layers import MODED, NONLINEARITIES, Capture, Captured, add_hidden, padded
from agents.sizes import NATURE_CNN, SMALL_CNN, columns_of, units_of
from agents.transitions import Spaces


def dense_layers(inputs: int, config: NetworkConfig, generator: torch.Generator) -> nn.Sequential:
    """`config.depth` hidden layers of `config.width` units: dense1, activation1, dense2, ..."""
    layers, units = nn.Sequential(), units_of(config.width, config)
    for index in range(1, config.depth + 1):
        layer = linear(inputs, units, config.initializer, generator)
        add_hidden(layers, "dense", index, layer, config, after=config.depth - index)
        inputs = columns_of(units, config)
    return layers


def through(layers: nn.Sequential, x: Tensor, prefix: str, capture: Capture | None) -> tuple[Tensor, Captured]:
    """(`layers(x)`, what goes into and comes out of each nonlinearity, by the producer's name after `prefix`)."""
    if capture is None:
        return layers(x), {}
    captured, producer = {}, ""
    for name, layer in layers.named_children():
        if type(layer) in NONLINEARITIES:
            before, x = x, layer(x)
            captured[prefix + producer] = (before, x) if capture == "preactivations" else (x,)
            del before
        else:
            x = layer(x)
            producer = name if isinstance(layer, (nn.Linear, nn.Conv2d)) else producer
    return x, captured


def scaled(pixels: Tensor) -> Tensor:
    """Pixels from 0 to 255 as numbers in [0, 1], laid out as they come, and in autocast's precision where there is one:
    it would round them to that in the next layer."""
    kind = pixels.device.type
    precision = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32
    return pixels.to(precision, copy=True).div_(255.0)


def require_hidden(config: NetworkConfig, hidden: int) -> None:
    """Raise ValueError where more layers are to be spectrally normalised than the torso's `hidden` ones."""
    wanted, allowed = config.spectral_layers, f"<= {hidden}, the hidden layers of this torso"
    require(wanted <= hidden, "spectral_norm.hidden_layers", wanted, allowed)


def features_of(config: NetworkConfig, inputs: int) -> int:
    """What comes out of the dense layers."""
    return columns_of(units_of(config.width, config), config) if config.depth else inputs


class MLP(nn.Module):
    """Dense hidden layers on a flat observation; uint8 input is scaled to [0, 1].

    Like every torso, its forward takes the prefix of its name in the network and gives ([batch, features], captured).
    """

    def __init__(self, observation_shape: tuple[int, ...], config: NetworkConfig, generator: torch.Generator) -> None:
        super().__init__()
        inputs = math.prod(observation_shape)
        require_hidden(config, config.depth)
        self.layers = dense_layers(inputs, config, generator)
        self.features = features_of(config, inputs)

    def forward(
        self, observations: Tensor, prefix: str = "", capture: Capture | None = None
    ) -> tuple[Tensor, Captured]:
        flat = observations.flatten(1)
        inputs = scaled(flat) if observations.dtype == torch.uint8 else flat.float()
        return through(self.layers, inputs, f"{prefix}layers.", capture)


class ConvolutionalTorso(nn.Module):
    """Convolutions (filters, kernel, stride), then `config.depth` dense layers.

    Padding is `config.padding`. Where "same" needs more zeros at the end than at the beginning, which a convolution
    cannot have, a module pad2, say, stands before conv2. Input uint8 [batch, channels, height, width]; output [batch,
    features].
    """

    shapes: tuple[tuple[int, int, int], ...]

    def __init__(self, observation_shape: tuple[int, ...], config: NetworkConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.convolutions = nn.Sequential()
        channels, height, width = observation_shape
        hidden = len(self.shapes) + config.depth
        require_hidden(config, hidden)
        for index, (filters, kernel, stride) in enumerate(self.shapes, start=1):
            sizes, padding = padded(self.convolutions, index, (height, width), kernel, stride, config.padding)
            layer = nn.utils.skip_init(
                nn.Conv2d, channels, units_of(filters, config), kernel, stride, padding, dtype=torch.float32
            )
            initialize(layer, config.initializer, generator)
            add_hidden(self.convolutions, "conv", index, layer, config, after=hidden - index)
            channels = columns_of(layer.out_channels, config)
            height, width = ((size - kernel) // stride + 1 for size in sizes)
        flat = channels * height * width
        self.dense = dense_layers(flat, config, generator)
        self.features = features_of(config, flat)

    def forward(
        self, observations: Tensor, prefix: str = "", capture: Capture | None = None
    ) -> tuple[Tensor, Captured]:
        # channels_last takes a third off the convolutions' time on a CPU and costs nothing elsewhere
        images = scaled(observations).contiguous(memory_format=torch.channels_last)
        maps, early = through(self.convolutions, images, f"{prefix}convolutions.", capture)
        features, late = through(self.dense, maps.flatten(1), f"{prefix}dense.", capture)
        return features, early | late


class NatureCNN(ConvolutionalTorso):
    """8x8/4-32, 4x4/2-64, 3x3/1-64 (Mnih et al. 2015) on images of 84x84.

    Valid, its maps are 20, 9 and 7 and the first dense layer has 3,136 inputs; with padding "same", as in Dopamine,
    they are 21, 11 and 11, and it has 7,744.
    """

    shapes = NATURE_CNN


class SmallCNN(ConvolutionalTorso):
    """5x5-64 and 3x3-64 for images of about 28x28 (Lyle23, section 3.2; with two dense layers of 256).

    The paper states neither strides nor padding; 2 in both layers is ours, and valid by default: 1,600 features of a
    28x28 image (3,136 with padding "same").
    """

    shapes = SMALL_CNN


class _Learning:
    """Switches these modules into training mode and, however it ends, back."""

    def __init__(self, moded: tuple[nn.Module, ...]) -> None:
        self.moded = moded

    def __enter__(self) -> None:
        for module in self.moded:
            module.training = True

    def __exit__(self, *error: object) -> None:
        for module in self.moded:
            module.training = False


NOTHING_TO_SWITCH = nullcontext()


def learning(network: nn.Module) -> AbstractContextManager[None]:
    """Within, dropout drops and batch norm goes by the batch, as in training; outside networks stay in eval mode.

    What is to be switched is looked up at the first call and kept by the network, whose structure stays then.
    """
    moded = vars(network).get("moded")
    if moded is None:
        moded = network.moded = tuple(module for module in network.modules() if type(module) in MODED)
    return _Learning(moded) if moded else NOTHING_TO_SWITCH


def build_torso(spaces: Spaces, config: NetworkConfig, generator: torch.Generator) -> MLP | ConvolutionalTorso:
    """The torso that `config.torso` names in a world with these spaces."""
    if uses_convolutions(config, spaces):
        torso = SmallCNN if config.torso == "small_cnn" else NatureCNN
        return torso(spaces.observation_shape, config, generator).to(memory_format=torch.channels_last)
    return MLP(spaces.observation_shape, config, generator)


class QNetwork(nn.Module):
    """Torso and one layer that the value `head` makes. Output [batch, actions], or logits [batch, actions, atoms]."""

    def __init__(
        self, torso: nn.Module, num_actions: int, head: ValueHead, initializer: str, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.torso = torso
        self.head = head.layer(torso.features, num_actions, initializer, generator)
        self.output_shape = (num_actions, head.atoms) if head.atoms > 1 else (num_actions,)

    @staticmethod
    def part_of(name: str) -> str:
        """encoder or critic, for the name of a parameter or module."""
        return "encoder" if name.startswith("torso") else "critic"

    def forward(self, observations: Tensor, capture: Capture | None = None) -> Tensor | tuple[Tensor, Captured]:
        features, captured = self.torso(observations, "torso.", capture)
        outputs = self.head(features).unflatten(1, self.output_shape).float()
        return outputs if capture is None else (outputs, captured)


REACH = 10.0
"""Of a standardised observation."""


class ObservationNormalizer(nn.Module):
    """Standardises vectors by running mean and variance (Chan et al. 1979), clipped to [-REACH, REACH].

    The statistics change only in `update`, so that acting and learning on one rollout see the same function.
    """

    eps = 1e-8

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(features, dtype=torch.float32))
        self.register_buffer("variance", torch.ones(features, dtype=torch.float32))
        self.register_buffer("count", torch.zeros((), dtype=torch.float32))

    @torch.no_grad()
    def update(self, observations: Tensor, allowed: Tensor | None = None) -> None:
        """Merge a batch [samples, features] into the statistics, unless the 0-d bool `allowed` is False."""
        samples, mean = observations.shape[0], observations.mean(0)
        total, delta = self.count + samples, mean - self.mean
        spread = self.variance * self.count + observations.var(0, unbiased=False) * samples
        variance = (spread + delta.square() * self.count * samples / total) / total
        merged = {"mean": self.mean + delta * samples / total, "variance": variance, "count": total}
        for name, value in merged.items():
            buffer = getattr(self, name)
            buffer.copy_(value if allowed is None else torch.where(allowed, value, buffer))

    def forward(self, observations: Tensor) -> Tensor:
        # as an affine map: batch_norm does the same, but lays stacked seeds' observations out in an order that costs
        scale = torch.rsqrt(self.variance + self.eps)
        return torch.addcmul(-self.mean * scale, observations, scale).clamp(-REACH, REACH)


ActorOrCritic = Literal["actor", "critic"]


class ActorCritic(nn.Module):
    """Policy and value heads on one torso or two.

    forward(observations) -> (policy [batch, actions or action dimensions], value outputs [batch] or [batch, atoms]).
    Discrete: the policy output is logits. Continuous: it is the mean; `log_std` [dimensions] is free of the state.
    The value `head` makes the last layer of the critic. `critic_config`: where the critic's torso is to be another.
    """

    def __init__(
        self,
        spaces: Spaces,
        config: NetworkConfig,
        *,
        shared_torso: bool,
        head: ValueHead,
        normalize_observations: bool,
        generator: torch.Generator,
        critic_config: NetworkConfig | None = None,
    ) -> None:
        super().__init__()
        inputs = math.prod(spaces.observation_shape)
        self.normalizer = ObservationNormalizer(inputs) if normalize_observations else None
        self.actor_torso = build_torso(spaces, config, generator)
        self.critic_torso = None if shared_torso else build_torso(spaces, critic_config or config, generator)
        features = self.actor_torso.features
        self.policy_head = linear(features, spaces.action_size, config.initializer, generator, gain=0.01)
        features = features if self.critic_torso is None else self.critic_torso.features
        self.value_head = head.layer(features, 1, config.initializer, generator)
        continuous = spaces.actions == "continuous"
        self.log_std = nn.Parameter(torch.zeros(spaces.action_size, dtype=torch.float32)) if continuous else None
        self.scalar_value = head.atoms == 1

    def part_of(self, name: str) -> str:
        """encoder, actor or critic, for the name of a parameter or module."""
        if self.critic_torso is None and name.startswith(("actor_torso", "normalizer")):
            return "encoder"
        return "critic" if name.startswith(("critic", "value")) else "actor"

    def forward(self, observations: Tensor, capture: Capture | None = None, part: ActorOrCritic | None = None):
        """(policy, value outputs); asked to `capture`, ((policy, value outputs), captured).

        For one `part` alone the other's output is None where it would take a torso of its own.
        """
        if self.normalizer is not None:
            observations = self.normalizer(observations)
        if part is not None and self.critic_torso is not None:
            if part == "actor":
                return self.policy_head(self.actor_torso(observations)[0]).float(), None
            return None, self.valued(self.critic_torso(observations)[0])
        actor_features, captured = self.actor_torso(observations, "actor_torso.", capture)
        critic_features = actor_features
        if self.critic_torso is not None:
            critic_features, more = self.critic_torso(observations, "critic_torso.", capture)
            captured = captured | more
        outputs = self.policy_head(actor_features).float(), self.valued(critic_features)
        return outputs if capture is None else (outputs, captured)

    def valued(self, features: Tensor) -> Tensor:
        """Value outputs, from what the critic's torso gives."""
        values = self.value_head(features).float()
        return values.squeeze(1) if self.scalar_value else values
