"""How useful a hidden layer's units are: what continual backprop (cbp.py) measures at every gradient step."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from agents.interventions._sums import RowSums, absolute_sums
from agents.interventions.base import Captured
from agents.interventions.slices import Slices
from plasticity_probes.units import HiddenLayer

Utility = Literal[
    "contribution", "zero_contribution", "adaptable_contribution", "weight", "adaptation", "feature_by_input"
]
CENTRED = ("zero_contribution", "adaptable_contribution", "feature_by_input")
BY_INPUT = ("adaptable_contribution", "adaptation", "feature_by_input")
BY_OUTPUT = ("contribution", "zero_contribution", "adaptable_contribution", "weight")
STEPS_TOGETHER = 64
"""Gradient steps on a CPU after which utilities and ages are brought up to date at the latest."""


class LayerUtility:
    """One layer's units: `ages` [units] in gradient steps, `utilities` [units], running averages that decay by `decay`.

    `absorbs`: the running average of h is kept as the consumers' biases need it. ValueError, named after `who`: then a
    consumer has no bias, or columns that do not belong to the units one by one.
    """

    def __init__(
        self,
        layer: HiddenLayer,
        ages: Tensor,
        utilities: Tensor,
        kind: Utility,
        decay: float,
        absorbs: bool,
        who: str,
    ) -> None:
        self.layer, self.ages, self.utilities = layer, ages, utilities
        self.kind, self.decay, self.absorbs = kind, decay, absorbs
        self.trains = False
        """Whether new units would learn, as it was last seen."""
        self.running: Tensor | None = None
        """Average of h [units (several times over), positions or 1] once it is known; None where it is not needed."""
        self.slices = Slices(layer)
        outgoing = [(owned, owned.tensor[:, 0].numel()) for owned in self.slices.outgoing]
        self._weights = sum(owned.present.sum(1) * outputs for owned, outputs in outgoing).clamp(min=1)
        self._in_order = [_in_order(owned.positions, owned.tensor) for owned, _ in outgoing]
        self._by_position: bool | None = None
        self.taken: list[tuple[Tensor | None, list[Tensor]]] = []  # by step, what `catch_up` has yet to use
        for owned, (module, _) in zip(self.slices.outgoing, layer.consumers, strict=True) if absorbs else ():
            if module.bias is None or not owned.regular:
                why = "has no bias" if module.bias is None else "does not read all units alike"
                raise ValueError(f"{who}: a {type(module).__name__} that reads '{layer.name}' {why}")

    @property
    def averages_h(self) -> bool:
        """Whether a running average of h is needed, and with it the ages as they are at every step."""
        return self.absorbs or self.kind in CENTRED

    def update(self, post: Tensor) -> None:
        """Take in what came out of the nonlinearity for a batch, [batch, units (several times over), positions...].
        `catch_up` brings the utilities up to date: small operations take a CPU several times as long one by one
        between updates as all in a row."""
        if self._by_position is None:
            self._see_shape(post)
        if self.running is not None:
            self.running.lerp_(_batch_mean(post, self.running.shape[1] > 1), 1 - self.decay)
        weights = self.slices.outgoing if self.kind in BY_OUTPUT else []
        self.taken.append((self._sizes(post), [absolute_sums(owned.tensor)[:, 0] for owned in weights]))
        if self.kind in BY_INPUT:  # whose weights are wanted as they are now
            self.catch_up()

    def catch_up(self) -> None:
        """Bring the utilities up to date with all that was taken in."""
        for sizes, sums in self.taken:
            self.utilities.lerp_(self._measure(sizes, sums), 1 - self.decay)
        self.taken.clear()

    def sees_shapes_anew(self) -> None:
        """Something was restored: ask the next batch again what has to be kept."""
        self._by_position = None

    def _see_shape(self, post: Tensor) -> None:
        copies, positions = post.shape[1] // self.layer.units, post[0, 0].numel()
        wanted = copies * positions
        self._by_position = positions > 1 and any(o.regular and o.most == wanted for o in self.slices.outgoing)
        if self.running is None and self.averages_h:
            columns = positions if self._by_position and self.absorbs else 1
            self.running = torch.zeros(post.shape[1], columns, dtype=torch.float32, device=post.device)
        for consumer in range(len(self.slices.outgoing)) if self.absorbs else ():
            self.slices.consumer_means(self.running, consumer)  # refuses what it does not understand

    def _sizes(self, post: Tensor) -> Tensor | None:
        """E|h|, or E|h - m|, [units (several times over), positions or 1]."""
        if self.kind in CENTRED:
            centre = self.averages().mean(1).view([1, -1, *[1] * (post.ndim - 2)])
            return _batch_mean((post - centre).abs(), self._by_position)
        if self.kind == "contribution":
            found = absolute_sums(post, self._by_position)
            return found / (post.numel() // found.numel())
        return None

    def _measure(self, sizes: Tensor | None, sums: list[Tensor]) -> Tensor:
        if self.kind in BY_OUTPUT:
            found = self._outgoing(sizes, sums)
        else:
            found = 1.0 if sizes is None else sizes.view(-1, self.layer.units, sizes.shape[1]).mean((0, 2))
        if self.kind in BY_INPUT:
            found = found / self.layer.producer.weight.abs().flatten(1).mean(1, dtype=torch.float32)
        return found

    def _outgoing(self, sizes: Tensor | None, sums: list[Tensor]) -> Tensor:
        """Mean over a unit's outgoing weights of |w|, times what its column holds; `sums` of |w| by column."""
        total = 0
        together = zip(self.slices.outgoing, self._in_order, sums, strict=True)
        for consumer, (owned, in_order, found) in enumerate(together):
            found = found.view_as(owned.positions) if in_order else found[owned.positions] * owned.present
            if sizes is not None:
                columns = self.slices.by_column(sizes, consumer)
                if columns is None:  # a pooling or a slice in between: every column holds the unit's average
                    columns = sizes.view(-1, self.layer.units, sizes.shape[1]).mean((0, 2))[:, None]
                found = found * columns
            total = total + found.sum(1)
        return total / self._weights

    def averages(self) -> Tensor:
        """The running average of h without its bias towards 0, as `running`."""
        copies = len(self.running) // self.layer.units
        return self.running / corrections(self.ages, self.decay).repeat(copies)[:, None]

    def forget(self, units: Tensor) -> None:
        """Age, utility and average of the units in the mask start anew."""
        self.ages.masked_fill_(units, 0)
        self.utilities.masked_fill_(units, 0)
        if self.running is not None:
            self.running.masked_fill_(units.repeat(len(self.running) // self.layer.units)[:, None], 0)


class AlikeContribution:
    """The contribution of dense layers with equally many units, together and several gradient steps at a time.

    In small layers an operation costs a CPU more than its arithmetic, the more so right after an update has emptied its
    caches. So a step only sums over the batch and over the weights, all in one, and what follows from the sums waits
    until `update` is called, at the latest after STEPS_TOGETHER. `utilities`: [layers, units] of `layers`, for each of
    which `fits` holds.
    """

    def __init__(self, layers: Sequence[LayerUtility], utilities: Tensor, decay: float) -> None:
        self._names = [follow.layer.name for follow in layers]
        self._utilities, self._decay = utilities, decay
        outgoing = [[owned.tensor for owned in follow.slices.outgoing] for follow in layers]
        self._weights = [weight for weights in outgoing for weight in weights]
        shares = (
            torch.full((1, len(weights)), 1 / sum(map(len, weights)), dtype=torch.float32) for weights in outgoing
        )
        self._average = torch.block_diag(*shares).to(utilities.device)  # of a layer's sums, the mean
        lags = torch.arange(STEPS_TOGETHER - 1, -1, -1, dtype=torch.float64)
        self._fading = ((1 - decay) * decay**lags).float().to(utilities.device)
        sums = len(layers) + len(self._weights)
        self._sums = utilities.new_empty(STEPS_TOGETHER, sums, utilities.shape[1])
        self._by_step = list(self._sums)
        self._batch, self._steps = 0, 0

    @staticmethod
    def fits(layer: HiddenLayer) -> bool:
        """Whether column u of every consumer, a Linear, belongs to unit u of this Linear."""
        order = torch.arange(layer.units)
        pairs = [(layer.producer, order), *layer.consumers]
        return all(isinstance(module, nn.Linear) and torch.equal(owner.cpu(), order) for module, owner in pairs)

    def keep(self, captured: Captured) -> None:
        """What a step's batch gave, [batch, units] for each layer, and the weights as they are now."""
        posts = [captured[name][-1] for name in self._names]
        if (batch := posts[0].shape[0]) != self._batch:
            self.update()
            self._expect(batch)
        self._row_sums([*posts, *self._weights], self._by_step[self._steps])
        self._steps += 1

    def _expect(self, batch: int) -> None:
        """Batches of this size will come."""
        heights = [batch] * len(self._names) + [len(weight) for weight in self._weights]
        self._batch, self._row_sums = (
            batch,
            RowSums(heights, self._sums.shape[2], self._sums.device, len(self._weights)),
        )

    def update(self) -> None:
        """Bring the utilities up to date with all that was kept."""
        if not self._steps:
            return
        layers = len(self._utilities)
        sums = self._sums[: self._steps]
        found = sums[:, :layers] * (self._average @ sums[:, layers:])
        fresh = (self._fading[-self._steps :] / self._batch) @ found.flatten(1)
        self._utilities.mul_(self._decay**self._steps).add_(fresh.view_as(self._utilities))
        self._steps = 0

    def state_dict(self) -> dict[str, Any]:
        """What was kept and not yet used: a checkpoint must not change when that happens, not even by a rounding."""
        if not self._steps:
            return {"batch": 0, "kept": None}
        return {"batch": self._batch, "kept": self._sums[: self._steps].clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self._batch = self._steps = 0
        if state["kept"] is not None:
            self._expect(state["batch"])
            self._steps = len(state["kept"])
            self._sums[: self._steps] = state["kept"]


def corrections(ages: Tensor, decay: float) -> Tensor:
    """1 - decay^age, by which a running average that started at 0 falls short (1 at age 0)."""
    lag = ages.clamp(min=1).float() * (math.log(decay) if decay > 0 else -math.inf)
    return torch.where(ages > 0, -torch.expm1(lag), 1.0)


def _in_order(positions: Tensor, weight: Tensor) -> bool:
    """Whether the columns of `weight` are the first unit's, then the second's, and so on."""
    order = torch.arange(positions.numel(), device=positions.device)
    return positions.numel() == weight.shape[1] and torch.equal(positions.flatten(), order)


def _batch_mean(values: Tensor, by_position: bool) -> Tensor:
    """[batch, channels, positions...] averaged over the batch, as [channels, positions], or over positions as well, as
    [channels, 1]. Sums along memory: other orders take up to ten times as long on a CPU."""
    channels, last = values.shape[1], values.movedim(1, -1)
    if values.ndim == 2:
        return values.mean(0, dtype=torch.float32)[:, None]
    if last.is_contiguous():  # channels_last
        if by_position:
            return last.flatten(1).mean(0, dtype=torch.float32).view(-1, channels).t()
        return last.flatten(0, -2).mean(0, dtype=torch.float32)[:, None]
    if by_position:
        return values.flatten(1).mean(0, dtype=torch.float32).view(channels, -1)
    return values.flatten(2).mean((0, 2), dtype=torch.float32)[:, None]
