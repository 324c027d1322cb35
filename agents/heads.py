"""What a value output means: how it becomes an expected return, what it regresses on, and by which loss.

A head is that of an agent's value: DQN's and C51's Q, PPO's critic. Outputs are [..., actions] or [...], of a
categorical head with one more axis [..., atoms].
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from agents import losses
from agents.config import SupportConfig
from agents.initializers import linear
from agents.interventions.surgery import Surgery


class Target(NamedTuple):
    """What a gradient step regresses on."""

    regressand: Tensor
    """[batch] scalars or [batch, atoms] probabilities."""
    values: Tensor
    """[batch] the target as a value, in units of the return."""
    clipped_share: Tensor | None
    """Share of the target that the support clips; None for a scalar head."""


class ValueHead:
    """One output an action, the value itself. `loss(outputs, targets)`, [batch] each, is per example.

    The other heads differ in what they override.
    """

    atoms = 1

    def __init__(self, loss: Callable[[Tensor, Tensor], Tensor] = losses.squared_error) -> None:
        self._loss = loss

    def layer(self, features: int, outputs: int, initializer: str, generator: torch.Generator) -> nn.Module:
        """The last layer of a network with `outputs` values: [batch, features] -> [batch, outputs * atoms]."""
        return linear(features, outputs * self.atoms, initializer, generator, gain=1.0)

    def values(self, outputs: Tensor) -> Tensor:
        """The expected return that `outputs` stand for: the last axis of a categorical head is summed out."""
        return outputs

    def regressand(self, values: Tensor) -> Tensor:
        """What the loss compares outputs with, for target values [batch]: [batch] or [batch, atoms]."""
        return values

    def clipped_share(self, values: Tensor) -> Tensor | None:
        """Share of these target values [n] that the support clips; None where nothing ever is."""

    def loss(self, outputs: Tensor, regressand: Tensor) -> Tensor:
        """Loss per example [batch] of the outputs [batch(, atoms)]."""
        return self._loss(outputs, regressand)

    def bootstrap(self, rewards: Tensor, discounts: Tensor, next_outputs: Tensor) -> Target:
        """The target r + discount * Q(s', a'), from rewards and discounts [batch] and the outputs of a' in s'."""
        values = losses.td_target(rewards, discounts, self.values(next_outputs))
        return Target(self.regressand(values), values, self.clipped_share(values))

    def meet(self, targets: Tensor, surgery: "Surgery | None") -> None:
        """These target values [n] are learned from next."""

    def unsettled(self) -> Iterable[Tensor]:
        """What `meet` moves, before it is known whether the gradient is finite."""
        return ()


class CategoricalHead(ValueHead):
    """Logits over the atoms of a support; cross-entropy to a scalar target spread over them (two-hot or HL-Gauss,
    Farebrother24). `spread(values [batch], support [atoms])` gives probabilities [batch, atoms]."""

    def __init__(
        self, support: SupportConfig, device: torch.device, spread: Callable[[Tensor, Tensor], Tensor] = losses.two_hot
    ) -> None:
        super().__init__(losses.cross_entropy)
        self.atoms, self._ends, self._spread = support.num_atoms, support.support_ends, spread
        self.support = losses.atoms(support.v_min, support.v_max, self.atoms, device, self._ends)

    def values(self, outputs: Tensor) -> Tensor:
        return losses.expected_value(outputs, self.support)

    def regressand(self, values: Tensor) -> Tensor:
        return self._spread(values, self.support)

    def clipped_share(self, values: Tensor) -> Tensor:
        return losses.clipped_share(values[:, None], torch.ones_like(values)[:, None], self.support, self._ends)


class DistributionalHead(CategoricalHead):
    """The return's distribution over fixed atoms; cross-entropy to the projection of r + discount * Z (Bellemare17)."""

    def bootstrap(self, rewards: Tensor, discounts: Tensor, next_outputs: Tensor) -> Target:
        p_t = torch.softmax(next_outputs, dim=-1)
        z_t = rewards[:, None] + discounts[:, None] * self.support
        projected = losses.categorical_projection(z_t, p_t, self.support)
        return Target(projected, (z_t * p_t).sum(-1), losses.clipped_share(z_t, p_t, self.support))


def head_for(loss: str, support: SupportConfig, device: torch.device) -> ValueHead:
    """The head that learns scalar targets by `loss`: huber, mse, two_hot or hl_gauss."""
    if loss == "two_hot":
        return CategoricalHead(support, device)
    if loss == "hl_gauss":
        spread = partial(losses.hl_gauss, sigma_bins=support.hl_gauss_sigma, ends=support.support_ends)
        return CategoricalHead(support, device, spread)
    return ValueHead({"huber": losses.huber, "mse": losses.squared_error}[loss])


LOWEST, HIGHEST = 1e-4, 1e6


class PopArtLayer(nn.Module):
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


class PopArtHead(ValueHead):
    """A scalar head that compares values and targets as (x - mean) / scale (agents/interventions/popart.py says by
    which rule); `step_size` of the statistics per batch of targets, `who` it is in the surgeon's counts. Statistics are
    those of the layer that was made first, the learning network's."""

    def __init__(self, loss: Callable[[Tensor, Tensor], Tensor], step_size: float, who: str) -> None:
        super().__init__(loss)
        self.step_size, self.who = step_size, who
        self.online: PopArtLayer | None = None

    def layer(self, features: int, outputs: int, initializer: str, generator: torch.Generator) -> nn.Module:
        made = PopArtLayer(super().layer(features, outputs, initializer, generator))
        self.online = self.online or made
        return made

    def loss(self, outputs: Tensor, regressand: Tensor) -> Tensor:
        mean, scale = self.online.mean, self.online.scale
        return super().loss((outputs - mean) / scale, (regressand - mean) / scale)

    def unsettled(self) -> list[Tensor]:
        """Statistics and layer."""
        return [*self.online.buffers(), *self.online.parameters()]

    @torch.no_grad()
    def meet(self, targets: Tensor, surgery: Surgery) -> None:
        """Update the statistics, then rescale the layer so that its outputs stay. Targets that are not all finite
        change nothing."""
        layer, targets = self.online, targets.to(self.online.mean.dtype)
        seen = layer.seen + self.step_size * (1 - layer.seen)
        share = self.step_size / seen
        variance, mean = torch.var_mean(targets, correction=0)
        variance = (1 - share) * (layer.variance + share * (mean - layer.mean).square()) + share * variance
        mean = torch.lerp(layer.mean, mean, share)
        scale = variance.sqrt().clamp(LOWEST, HIGHEST)

        allowed = torch.isfinite(variance) & torch.isfinite(mean)
        found = getattr(surgery.optimizer, "found_inf", None)
        allowed = allowed if found is None else allowed & (found == 0)
        new = {"mean": mean, "variance": variance, "scale": scale, "seen": seen}
        new = {name: torch.where(allowed, value, getattr(layer, name)) for name, value in new.items()}
        ratio, shift = layer.scale / new["scale"], (layer.mean - new["mean"]) / new["scale"]
        surgery.acting = self.who
        surgery.project([layer.linear.weight], lambda weight: weight * ratio)
        surgery.project([layer.linear.bias], lambda bias: bias * ratio + shift)
        for name, value in new.items():
            getattr(layer, name).copy_(value)
