"""A network's pass without a gradient for the few observations of a tick, on a CPU.

A kernel takes a microsecond or two there; a module's call, autograd's book-keeping and memory for the result take
several times that. Here kernels alone are called, each of which writes into memory of its own. The numbers are those of
the network's own pass, to the bit.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from agents.networks import MLP, REACH, ActorCritic, ActorOrCritic, ObservationNormalizer, QNetwork

Kernel = Callable[[Tensor], Tensor]
IN_PLACE: dict[type[nn.Module], Kernel] = {nn.Tanh: torch.tanh_, nn.ReLU: torch.relu_}
"""What becomes of a nonlinearity whose input nobody else needs."""


def kernels(modules: Sequence[nn.Module], rows: int) -> list[Kernel]:
    """What `modules` do to [rows, features] one after the other; those that no kernel is known of as they are.

    They see weights that are edited in place, not tensors that take their place, nor hooks; what one gives is
    overwritten at its next call.
    """
    found: list[Kernel] = []
    own = False  # whether what comes in may be overwritten
    for module in modules:
        kernel = IN_PLACE.get(type(module)) if own else None
        if type(module) is nn.Linear:
            weight, bias = module.weight.detach().t(), module.bias.detach()
            kernel = partial(torch.addmm, bias, mat2=weight, out=_memory(rows, module.out_features))
        elif type(module) is ObservationNormalizer:
            kernel = _Standardized(module, rows)
        own = kernel is not None
        found.append(kernel or module)
    return found


def _memory(*shape: int) -> Tensor:
    with torch.inference_mode(False):  # within, it could not be written to outside
        return torch.empty(shape, dtype=torch.float32)


class _Standardized:
    """A normalizer, as an affine map whose constants are kept until its statistics move."""

    def __init__(self, normalizer: ObservationNormalizer, rows: int) -> None:
        self.mean, self.variance, self.eps = normalizer.mean, normalizer.variance, normalizer.eps
        self.out = _memory(rows, len(self.mean))
        self.versions: tuple[int, ...] = ()

    def __call__(self, observations: Tensor) -> Tensor:
        versions = self.mean._version, self.variance._version
        if versions != self.versions:
            self.scale = torch.rsqrt(self.variance + self.eps)
            self.offset, self.versions = -self.mean * self.scale, versions
        return torch.addcmul(self.offset, observations, self.scale, out=self.out).clamp_(-REACH, REACH)


class _Scaled:
    """Pixels of any shape [rows, ...] as numbers in [0, 1], [rows, features]; vectors as they are."""

    def __init__(self, observations: Tensor) -> None:
        flat = observations.flatten(1)
        self.out = _memory(*flat.shape) if flat.dtype == torch.uint8 else None

    def __call__(self, observations: Tensor) -> Tensor:
        flat = observations.flatten(1)
        return flat if self.out is None else self.out.copy_(flat).div_(255.0)


class QuickValues:
    """The pass of a `QNetwork` of dense layers."""

    def __init__(self, network: QNetwork, observations: Tensor) -> None:
        self.scaled, self.shape = _Scaled(observations), network.output_shape
        self.layers = kernels([*network.torso.layers, network.head], len(observations))

    def __call__(self, observations: Tensor) -> Tensor:
        outputs = self.scaled(observations)
        for layer in self.layers:
            outputs = layer(outputs)
        return outputs.unflatten(1, self.shape)


def quick_values(network: QNetwork, observations: Tensor) -> QNetwork | QuickValues:
    """What takes the place of `network` for passes on `observations` of this shape and type; the network itself where
    nothing quicker is known."""
    known = observations.dtype in (torch.uint8, torch.float32) and observations.device.type == "cpu"
    return QuickValues(network, observations) if known and type(network.torso) is MLP else network


class QuickActor:
    """The pass of an `ActorCritic` of dense layers for its part "actor", [rows, features] at a time."""

    def __init__(self, network: ActorCritic, rows: int) -> None:
        before = [] if network.normalizer is None else [network.normalizer]
        self.features = kernels([*before, *network.actor_torso.layers], rows)
        (self.policy,) = kernels([network.policy_head], rows)
        self.valued = network.valued if network.critic_torso is None else None

    def __call__(self, observations: Tensor, part: ActorOrCritic) -> tuple[Tensor, Tensor | None]:
        features = observations
        for kernel in self.features:
            features = kernel(features)
        return self.policy(features), None if self.valued is None else self.valued(features)


def quick_actor(network: ActorCritic, observations: Tensor) -> ActorCritic | QuickActor:
    """What takes the place of `network` for the actor's part of passes on `observations` of this shape and type; the
    network itself where nothing quicker is known."""
    vectors = observations.ndim == 2 and observations.dtype == torch.float32
    known = vectors and observations.device.type == "cpu" and type(network.actor_torso) is MLP
    return QuickActor(network, len(observations)) if known else network
