"""What stands beside the Linear layers and convolutions of a torso: norms, nonlinearities, dropout, spectral norm."""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agents.config import NetworkConfig

NORM_EPS = 1e-5
"""Added to the variance (RMS: the mean square) of every norm, torch's default for LayerNorm."""
FROM_SCRATCH = 50
"""Power iterations for a weight that nothing is known of."""

Capture = Literal["hidden", "preactivations"]
"""What a forward pass is to return: values after the nonlinearities, or these and those before them. The latter would
otherwise live until the end of the update, in memory that the next layer could have used while it is in the cache."""
Captured = dict[str, tuple[Tensor, ...]]
"""By hidden layer's name in the network, in the order of their use: (before, after the nonlinearity), or (after,) where
"hidden" was asked for; [batch, units, ...] each."""


class ConcatReLU(nn.Module):
    """concat(relu(x), relu(-x)) along dimension 1 (Shang et al. 2016): no input is lost. Twice the columns."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([F.relu(x), F.relu(-x)], 1)


class Fourier(nn.Module):
    """concat(sin x, cos x) along dimension 1 (deep Fourier features, 2410.20634). Twice the columns."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([torch.sin(x), torch.cos(x)], 1)


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "leaky_relu": nn.LeakyReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
}
DOUBLED: dict[str, Callable[[], nn.Module]] = {"crelu": ConcatReLU, "fourier": Fourier}
NONLINEARITIES = frozenset({*ACTIVATIONS.values(), *DOUBLED.values()})


class RMSNorm(nn.RMSNorm):
    """RMSNorm (Zhang & Sennrich 2019) over all units of an example, an image's positions included, with one gain for
    each unit along dimension 1. torch's own would give every position of an image a gain of its own."""

    traced_as = "norm"

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        scale = torch.rsqrt(wide.square().mean(tuple(range(1, x.ndim)), keepdim=True) + self.eps)
        if self.weight is not None:
            scale = scale * self.weight.view(-1, *[1] * (x.ndim - 2))
        return (wide * scale).to(x.dtype)


class SeededDropout(nn.Module):
    """Zeroes each feature with probability `rate` and divides the others by 1 - rate, while learning.

    The masks come from `generator`, which must be on the features' device; RuntimeError where none was given.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.generator: torch.Generator | None = None

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        if self.generator is None:
            raise RuntimeError("Dropout: learning without a generator; set `generator` first")
        kept = torch.empty_like(x).bernoulli_(1 - self.rate, generator=self.generator)
        return x * kept.div_(1 - self.rate)


class SpectralScale(nn.Module):
    """Stands before a Linear or convolution W x + b and divides x by sigma(W), so that (W / sigma) x + b comes out,
    while the layer itself stays one that surgery knows how to edit.

    sigma = u^T W v, W as a matrix [outputs, everything else] (Miyato et al. 2018). u and v are buffers, constants to
    the gradient, which flows through W alone; they change in `iterate` only, never in a forward pass. With `relaxed`
    the divisor is max(1, sigma). Where sigma is 0 or, far from converged, negative, nothing is divided.
    """

    traced_as = "scale"

    def __init__(self, layer: nn.Linear | nn.Conv2d, relaxed: bool = False) -> None:
        super().__init__()
        self.relaxed = relaxed
        self._layer = (layer,)  # in a tuple, so that its parameters stay its own
        matrix = layer.weight.flatten(1)
        for name, size in (("u", matrix.shape[0]), ("v", matrix.shape[1])):
            self.register_buffer(name, matrix.new_full((size,), 1 / math.sqrt(size)))
        self.iterate(FROM_SCRATCH)

    @property
    def layer(self) -> nn.Linear | nn.Conv2d:
        """The layer whose input is divided."""
        return self._layer[0]

    @torch.no_grad()
    def iterate(self, times: int = 1) -> None:
        """Power iterations: v = W^T u, u = W v, each of length 1 (kept as it is where that would be 0)."""
        matrix = self.layer.weight.flatten(1)
        for _ in range(times):
            self.v.copy_(_unit(matrix.T @ self.u, self.v))
            self.u.copy_(_unit(matrix @ self.v, self.u))

    def sigma(self) -> Tensor:
        """The estimate of the largest singular value, 0-d, with a gradient for the weight."""
        weight = self.layer.weight
        with torch.autocast(weight.device.type, enabled=False):
            return self.u @ (weight.flatten(1) @ self.v)

    def forward(self, x: Tensor) -> Tensor:
        sigma = self.sigma()
        least = 1.0 if self.relaxed else 1e-6
        return x / torch.where(sigma > least, sigma, 1.0)


def _unit(vector: Tensor, otherwise: Tensor) -> Tensor:
    length = vector.norm()
    return torch.where(length > 0, vector / length, otherwise)


MODED = frozenset({nn.BatchNorm1d, nn.BatchNorm2d, SeededDropout})
"""Modules that do something else while learning."""


def nonlinearity(config: NetworkConfig) -> nn.Module:
    """The module that `config` names."""
    if config.doubled != "none":
        return DOUBLED[config.doubled]()
    if config.activation == "leaky_relu":
        return nn.LeakyReLU(config.negative_slope)
    return ACTIVATIONS[config.activation]()


def norm_for(layer: nn.Linear | nn.Conv2d, config: NetworkConfig) -> nn.Module:
    """The norm after `layer`. Of an image, layer and rms take channels, height and width together and have one gain
    (and bias) a channel, the unit's own: a GroupNorm of one group is that LayerNorm."""
    image, affine = isinstance(layer, nn.Conv2d), config.norm_affine
    units = layer.out_channels if image else layer.out_features
    if config.norm == "batch":
        return (nn.BatchNorm2d if image else nn.BatchNorm1d)(units, NORM_EPS, affine=affine, dtype=torch.float32)
    if config.norm == "rms":
        return RMSNorm(units, NORM_EPS, affine, dtype=torch.float32)
    if image:
        return nn.GroupNorm(1, units, NORM_EPS, affine, dtype=torch.float32)
    return nn.LayerNorm(units, NORM_EPS, affine, dtype=torch.float32)


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Zeros before and after `size` positions, so that ceil(size / stride) come out: as few as do, the odd one after
    (Flax's and XLA's SAME)."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def padded(
    layers: nn.Sequential, index: int, map_size: tuple[int, int], kernel: int, stride: int, padding: str
) -> tuple[tuple[int, int], tuple[int, int]]:
    """(Height and width that convolution number `index` sees with its padding, the padding that is its own), on maps of
    `map_size`; what cannot be its own is appended to `layers`."""
    if padding == "valid":
        return map_size, (0, 0)
    rows, columns = (same_padding(size, kernel, stride) for size in map_size)
    sizes = (map_size[0] + sum(rows), map_size[1] + sum(columns))
    if rows[0] == rows[1] and columns[0] == columns[1]:
        return sizes, (rows[0], columns[0])
    layers.add_module(f"pad{index}", nn.ZeroPad2d((*columns, *rows)))
    return sizes, (0, 0)


def add_hidden(
    layers: nn.Sequential, name: str, index: int, layer: nn.Linear | nn.Conv2d, config: NetworkConfig, after: int
) -> None:
    """Append hidden layer number `index` and all that goes with it, in the order in which it is used. `after`: how many
    more hidden layers come."""
    if after < config.spectral_layers:
        layers.add_module(f"spectral{index}", SpectralScale(layer, config.spectral_relaxed))
    layers.add_module(f"{name}{index}", layer)
    if config.norm != "none":
        layers.add_module(f"norm{index}", norm_for(layer, config))
    layers.add_module(f"activation{index}", nonlinearity(config))
    if config.dropout:
        layers.add_module(f"dropout{index}", SeededDropout(config.dropout))
