"""Weight clipping (Elsayed et al. 2024, arXiv 2407.01704): no weight leaves a multiple of its initial range."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from agents.initializers import Initializer, initializer_for
from agents.interventions.base import Forward, Intervention
from agents.interventions.surgery import Surgery
from agents.randomness import Generators
from plasticity_probes.units import CONVOLUTIONS


@dataclass(eq=False)
class WeightClip(Intervention):
    """After every gradient step each weight and bias is clipped to +-kappa times its layer's initial bound
    (Elsayed et al. 2024). Moments are kept.

    The bound is that of the layer's own uniform law; a bias that starts at 0 takes its weight's. Orthogonal layers have
    none: sqrt(3) times their standard deviation, the bound of the uniform law with the same variance, stands in for it
    (ours; the authors' PPO uses torch's 1/sqrt(fan_in) there). Heads are clipped like the other layers, as by the
    authors' default. Norms and log_std, which have no initial range, are left alone.
    """

    name = "weight_clip"
    is_surgery = True
    kappa: float = 3.0
    """The range in multiples of each layer's initial bound; > 0 (the authors' PPO: 3)."""

    def __post_init__(self) -> None:
        self.require(0 < self.kappa < math.inf, "kappa", "> 0 and finite")

    def attach(self, networks: Mapping[str, nn.Module], generators: Generators) -> None:
        """Note every parameter's range. ValueError: there is no layer with weights in its part."""
        self.ranges: list[tuple[nn.Parameter, float]] = []
        for name, module in networks["online"].named_modules():
            if isinstance(module, (nn.Linear, *CONVOLUTIONS)) and self.within(name):
                for kind, bound in initial_bounds(module).items():
                    if isinstance(module._parameters.get(kind), nn.Parameter):
                        self.ranges.append((module._parameters[kind], self.kappa * bound))
        if not self.ranges:
            raise ValueError(f"{self.name}: there is no Linear or convolution to clip in only = {self.only!r}")

    def every_step(self, surgery: Surgery, forward: Forward, drawn: Mapping[str, Tensor]) -> None:
        limits = {parameter: limit for parameter, limit in self.ranges if parameter.requires_grad}
        if limits:
            upper = list(limits.values())
            with torch.no_grad():
                clipped = torch._foreach_clamp_max(list(limits), upper)
                torch._foreach_clamp_min_(clipped, [-limit for limit in upper])
            surgery.project(limits, dict(zip(limits, clipped, strict=True)).__getitem__)


def initial_bounds(layer: nn.Module) -> dict[str, float]:
    """The largest magnitude that "weight" and "bias" of a Linear or convolution have at the start, by its own law (or
    torch's default)."""
    law: Initializer = getattr(layer, "initializer", None) or initializer_for("torch", layer)
    if law.law == "uniform":
        bound = law.bound
    else:
        rows, *row_shape = layer.weight.shape
        bound = math.sqrt(3) * law.gain / math.sqrt(max(law.rows, rows, math.prod(row_shape)))
    return {"weight": bound, "bias": law.bias_bound or bound}
