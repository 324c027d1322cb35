"""Each layer's own initialisation law, kept with the layer and able to redraw single rows.

A row is one unit's incoming weights: `weight[i]` of a Linear or a convolution. Laws name fan-in as the product of all
dimensions of a row. Every draw takes its generator; the global one is never touched.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

Law = Literal["uniform", "orthogonal"]


@dataclass(frozen=True)
class Initializer:
    """The law of one layer's weight and bias.

    `law` "uniform" draws U(-bound, bound); "orthogonal" draws rows of `gain` times a random (semi-)orthogonal matrix
    (Saxe et al. 2014) of the layer's `rows`. The bias is U(-bias_bound, bias_bound), exactly 0 where `bias_bound` is 0.
    """

    law: Law
    bound: float = 0.0
    gain: float = 1.0
    rows: int = 0
    bias_bound: float = 0.0

    def weight_rows(self, rows: int, row_shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Draw `rows` new rows, float32 [rows, *row_shape], on the generator's device.

        They are jointly distributed as that many rows of a draw of the whole layer.
        """
        device = generator.device
        if self.law == "uniform":
            drawn = torch.empty(rows, *row_shape, dtype=torch.float32, device=device)
            return drawn.uniform_(-self.bound, self.bound, generator=generator)
        # A tall layer's orthonormal columns are part of a square orthogonal matrix: draw its rows, keep the columns.
        columns = math.prod(row_shape)
        tall = torch.randn(max(self.rows, columns), rows, dtype=torch.float32, device=device, generator=generator)
        q, r = torch.linalg.qr(tall)
        q = q * torch.diagonal(r).sign()  # makes the draw uniform over orthogonal matrices (Mezzadri 2007)
        return self.gain * q.T[:, :columns].reshape(rows, *row_shape)

    def bias_rows(self, rows: int, generator: torch.Generator) -> Tensor:
        """Draw `rows` new biases, float32 [rows]."""
        bias = torch.zeros(rows, dtype=torch.float32, device=generator.device)
        return bias.uniform_(-self.bias_bound, self.bias_bound, generator=generator) if self.bias_bound else bias

    @torch.no_grad()
    def fill(self, layer: nn.Linear | nn.Conv2d, generator: torch.Generator) -> None:
        """Draw all of `layer` anew, in place."""
        rows, *row_shape = layer.weight.shape
        layer.weight.copy_(self.weight_rows(rows, tuple(row_shape), generator))
        if layer.bias is not None:
            layer.bias.copy_(self.bias_rows(rows, generator))


def initializer_for(name: str, layer: nn.Linear | nn.Conv2d, gain: float = math.sqrt(2.0)) -> Initializer:
    """The law called `name` at this layer's size; `gain` is used by "orthogonal" alone.

    torch: U(+-1/sqrt(fan_in)) for weight and bias, torch's default (`kaiming_uniform_(a=sqrt 5)`).
    lecun_uniform: U(+-sqrt(3/fan_in)), bias 0 (Dohare24). xavier_uniform: U(+-sqrt(6/(fan_in + fan_out))), bias 0
    (Dopamine's DQN; a convolution's fans include its receptive field). dopamine_c51: variance scaling 1/sqrt 3, fan-in,
    uniform: U(+-sqrt(sqrt 3/fan_in)), bias 0. orthogonal: `gain` times orthogonal rows, bias 0 (CleanRL's PPO).
    """
    rows, *row_shape = layer.weight.shape
    fan_in = math.prod(row_shape)
    fan_out = rows * math.prod(row_shape[1:])
    if name == "torch":
        return Initializer("uniform", bound=1 / math.sqrt(fan_in), bias_bound=1 / math.sqrt(fan_in))
    if name == "lecun_uniform":
        return Initializer("uniform", bound=math.sqrt(3 / fan_in))
    if name == "xavier_uniform":
        return Initializer("uniform", bound=math.sqrt(6 / (fan_in + fan_out)))
    if name == "dopamine_c51":
        return Initializer("uniform", bound=math.sqrt(math.sqrt(3) / fan_in))
    if name == "orthogonal":
        return Initializer("orthogonal", gain=gain, rows=rows)
    raise ValueError(
        f"initializer = {name!r}: must be torch, lecun_uniform, xavier_uniform, dopamine_c51 or orthogonal"
    )


def initialize(
    layer: nn.Linear | nn.Conv2d, name: str, generator: torch.Generator, gain: float = math.sqrt(2.0)
) -> nn.Linear | nn.Conv2d:
    """Fill `layer` by the law `name`, keep the law as `layer.initializer`, return the layer."""
    layer.initializer = initializer_for(name, layer, gain)
    layer.initializer.fill(layer, generator)
    return layer


def linear(
    inputs: int, outputs: int, initializer: str, generator: torch.Generator, gain: float = math.sqrt(2.0)
) -> nn.Linear:
    """A Linear layer drawn by the law `initializer` from `generator` alone (torch's own constructor would draw from
    the global generator)."""
    return initialize(nn.utils.skip_init(nn.Linear, inputs, outputs, dtype=torch.float32), initializer, generator, gain)
