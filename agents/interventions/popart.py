"""PopArt: targets are standardised, and the value head is rescaled so that its outputs are preserved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from agents.config import AgentConfig, C51Config, DQNConfig, require
from agents.interventions.base import Intervention

if TYPE_CHECKING:
    from agents.interventions.surgery import Surgery

LOWEST, HIGHEST = 1e-4, 1e6


class PopArtHead(nn.Module):
    """scale * linear(x) + mean, in units of the return; scale and mean belong to the targets seen so far."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear
        for name, start in (("mean", 0.0), ("variance", 1.0), ("scale", 1.0), ("seen", 0.0)):
            self.register_buffer(name, torch.full((), start, dtype=linear.weight.dtype, device=linear.weight.device))

    def forward(self, x: Tensor) -> Tensor:
        """Values in units of the return."""
        # in full precision under autocast: mean and scale are of any size
        return self.linear(x).to(self.scale.dtype) * self.scale + self.mean


@dataclass(eq=False)
class PopArt(Intervention):
    """Preserving outputs precisely while adaptively rescaling targets (van Hasselt et al. 2016, arXiv 1602.07714;
    Hessel et al. 2019), with one mean mu and scale sigma for the value head.

    For each batch of targets g: mu and nu move by the share beta_t towards mean(g) and mean(g^2), sigma is
    sqrt(nu - mu^2) held within [1e-4, 1e6] (Hessel19), then weight and bias of the head become w * sigma / sigma' and
    (sigma * b + mu - mu') / sigma', Adam's moments staying as they are, so that every output is what it was
    (1602.07714, proposition 1). The loss compares outputs and targets as (x - mu) / sigma. Networks give values in
    units of the return; a target network has its own mu and sigma, copied with its weights.

    beta_t = step_size / (1 - (1 - step_size)^t), as Adam corrects its bias: 1 at the first batch, whose statistics are
    so taken over as they are and not mixed with a made-up start. nu is kept as the variance nu - mu^2, moved by an
    equal rule, since the difference of the two loses all digits where the mean is large. A batch with a target that is
    not finite changes nothing.
    """

    name = "popart"
    # the head's weights grow with the targets' scale falling: clipped, they would not keep the outputs
    conflicts = frozenset({"weight_clip"})

    step_size: float = 3e-4
    """Step size of the statistics per batch of targets, in (0, 1]: DQN has one a gradient step, PPO one an update
    phase. Hessel19: 3e-4."""

    def __post_init__(self) -> None:
        self.require(0 < self.step_size <= 1, "step_size", "in (0, 1]")
        self.require(self.only in ("all", "critic"), "only", "all or critic: it acts on the value head")

    def check(self, agent: AgentConfig, others: Sequence[Intervention]) -> None:
        """Refuse value heads that do not learn by plain regression, and targets that move by degrees."""
        beside = "beside popart"
        if isinstance(agent, C51Config):
            raise ValueError("popart: needs a value head that is learned by regression, C51's is categorical")
        if isinstance(agent, DQNConfig):
            require(agent.loss in ("huber", "mse"), "loss", agent.loss, f"huber or mse {beside}")
            why = "the mean of two heads with scales of their own is no head's output"
            require(agent.tau == 1, "tau", agent.tau, f"1 {beside}: {why}")
        else:
            require(agent.value_loss == "mse", "value_loss", agent.value_loss, f"mse {beside}")
            require(not agent.clip_vloss, "clip_vloss", agent.clip_vloss, f"off {beside}: it clips in units of return")

    def build(self, network: nn.Module, generator: torch.Generator) -> None:
        """Wrap the value head. ValueError: it is no Linear layer with a bias."""
        name = getattr(network, "value_head_name", None)
        head = getattr(network, name) if name else None
        if not isinstance(head, nn.Linear) or head.bias is None:
            raise ValueError(f"popart: the value head is {type(head).__name__}, must be a Linear layer with a bias")
        setattr(network, name, PopArtHead(head))

    def attach(self, networks: Mapping[str, nn.Module], generator: torch.Generator) -> None:
        """Find the wrapped head. ValueError: another intervention has wrapped it again."""
        online = networks["online"]
        self.head = getattr(online, online.value_head_name)
        if not isinstance(self.head, PopArtHead):
            raise ValueError(f"popart: another intervention has made the value head a {type(self.head).__name__}")

    @torch.no_grad()
    def on_targets(self, surgery: Surgery, targets: Tensor) -> None:
        """Update the statistics, then rescale the head so that its outputs stay."""
        head, targets = self.head, targets.to(self.head.mean.dtype)
        seen = head.seen + self.step_size * (1 - head.seen)
        share = self.step_size / seen
        variance, mean = torch.var_mean(targets, correction=0)
        variance = (1 - share) * (head.variance + share * (mean - head.mean).square()) + share * variance
        mean = torch.lerp(head.mean, mean, share)
        scale = variance.sqrt().clamp(LOWEST, HIGHEST)

        allowed = torch.isfinite(variance) & torch.isfinite(mean)
        found = getattr(surgery.optimizer, "found_inf", None)
        allowed = allowed if found is None else allowed & (found == 0)
        new = {"mean": mean, "variance": variance, "scale": scale, "seen": seen}
        new = {name: torch.where(allowed, value, getattr(head, name)) for name, value in new.items()}
        ratio, shift = head.scale / new["scale"], (head.mean - new["mean"]) / new["scale"]
        surgery.project([head.linear.weight], lambda weight: weight * ratio)
        surgery.project([head.linear.bias], lambda bias: bias * ratio + shift)
        for name, value in new.items():
            getattr(head, name).copy_(value)

    def unsettled(self) -> list[Tensor]:
        """Statistics and head: they follow the targets before the loss is known."""
        return [*self.head.buffers(), *self.head.parameters()]

    def regression(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Both standardised."""
        return (outputs - self.head.mean) / self.head.scale, (targets - self.head.mean) / self.head.scale
