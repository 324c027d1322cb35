"""Continual backprop: a few of the least useful mature units are replaced all the time (Dohare et al. 2024, Nature
632:768, "Continual backpropagation"; the earlier arXiv 2306.13812)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from agents.interventions.base import Forward, Intervention
from agents.interventions.slices import Slices, Slots, UnitSet, replaceable, trains
from agents.interventions.surgery import Moments, Surgery
from agents.randomness import Generators
from plasticity_probes.units import HiddenLayer

Utility = Literal[
    "contribution", "zero_contribution", "adaptable_contribution", "weight", "adaptation", "feature_by_input"
]
CENTRED = ("zero_contribution", "adaptable_contribution", "feature_by_input")
BY_INPUT = ("adaptable_contribution", "adaptation", "feature_by_input")
BY_OUTPUT = ("contribution", "zero_contribution", "adaptable_contribution", "weight")
NEVER = 2**62


@dataclass(eq=False)
class CBP(Intervention):
    """After every gradient step each hidden layer's units get older and their utility u is brought up to date, u <-
    decay u + (1 - decay) y; of those older than `maturity`, a share `replacement_rate` with the lowest u is replaced:
    incoming weights anew by the layer's own law, outgoing ones 0, age and utility 0 (Dohare24, algorithm 1).

    What counts is h, the values out of the nonlinearity in the update's own batch, and the weights after the step. Out
    of a convolution |h| is also averaged over positions, unless the consumer has a column for each (after a flatten),
    and y is the mean over all outgoing weights of a unit, of whatever consumer. (The paper sums, the authors' code
    averages; the order within a layer is the same.) Units that anyone else replaces start at age 0 and utility 0 too.

    The combination cbp_l2 has the settings of the authors' PPO. Three things their code does otherwise: it replaces
    layer by layer, so that weights between two units replaced together are random there and 0 here (as in the paper's
    algorithm); it cuts a share above 1 down to whole units, where here what is left is the chance of one more; and in
    convolutions it takes the share of ALL units.
    """

    name = "cbp"
    is_surgery = True
    needs_hidden_layers = True
    captures = frozenset({"hidden"})

    replacement_rate: float = 1e-4
    """Share of a layer's mature units replaced per gradient step, in [0, 1]; 0 replaces none."""
    maturity: int = 10_000
    """Age in GRADIENT steps that a unit must have passed before it can be replaced; >= 0."""
    decay: float = 0.99
    """Of the running averages, per gradient step, in [0, 1)."""
    utility: Utility = "contribution"
    """y, where E is over the batch and the means are over a unit's weights. contribution: E|h| mean|w_out| (Dohare24);
    adaptable_contribution: E|h - m| mean|w_out| / mean|w_in| with m the running average of h (2306.13812);
    zero_contribution: without mean|w_in|; feature_by_input: without mean|w_out|; weight: mean|w_out|; adaptation:
    1 / mean|w_in| (the last four from Dohare24's code)."""
    accumulation: Literal["accumulate", "bernoulli"] = "accumulate"
    """How a share that is no whole number of units is met. accumulate: what is left is kept for later steps (Dohare24,
    algorithm 1); bernoulli: it is the chance of one more (the authors' PPO)."""
    correct_utility: bool = True
    """Compare u / (1 - decay^age) instead of u."""
    bias_correction: bool = False
    """Add a removed unit's mean contribution, w_out times the running average of h, to the consumers' biases. Exact on
    the mean for a Linear consumer, approximate for a convolution (see Surgery.replace)."""
    moments: Moments = "keep"
    """What becomes of Adam's moments in the replaced weights: keep (the authors' PPO); local, 0 with a step count of
    their own and Adam's bias correction by it (the authors' AdamGnT, for supervised learning, counts so and corrects
    otherwise; dear where some unit is always young); zero, overshooting; mean (the first 0, the second that of the
    units that stay). docs/interventions.md has their numbers."""

    def __post_init__(self) -> None:
        self.require(0 <= self.replacement_rate <= 1, "replacement_rate", "in [0, 1]")
        self.require(self.maturity >= 0, "maturity", ">= 0")
        self.require(0 <= self.decay < 1, "decay", "in [0, 1)")

    def check_beside(self, others: Sequence[Intervention]) -> None:
        """What a layer adds to a consumer is divided by a spectral norm's sigma, which no bias knows of."""
        beside = any(other.name == "spectral_norm" for other in others)
        self.require(not (self.bias_correction and beside), "bias_correction", "off beside spectral_norm")

    def attach(self, networks: Mapping[str, nn.Module], generators: Generators) -> None:
        """Start all ages and utilities at 0. ValueError: a layer's units cannot be replaced one by one, no layer
        trains, or, with `bias_correction`, a consumer cannot absorb."""
        layers = replaceable(self.layers, self.name)
        shape, device = (len(layers), max(layer.units for layer in layers)), layers[0].producer.weight.device
        self._ages = torch.zeros(shape, dtype=torch.int64, device=device)  # a row a layer, as wide as the widest
        self._utilities = torch.zeros(shape, dtype=torch.float32, device=device)
        self._bounds = torch.full_like(self._ages, NEVER)  # ages that units must have passed
        self._left = torch.zeros(len(layers), dtype=torch.float64, device=device)  # of the shares
        absorbs = f"{self.name}.bias_correction" if self.bias_correction else ""
        rows = zip(layers, self._ages, self._utilities, self._bounds, strict=True)
        self._followed = [_Followed(*row, absorbs) for row in rows]
        self._slots = [min(layer.units, int(self.replacement_rate * layer.units) + 1) for layer in layers]
        self._order = torch.arange(max(self._slots), device=device)
        self._watched = [module.weight for layer in layers for module in (layer.producer, *dict(layer.consumers))]
        self._requiring: list[bool] = []

    def draws(self) -> dict[str, tuple[int, ...]]:
        """What decides about fractions of a unit, by layer."""
        return {"chance": (len(self._followed),)} if self.accumulation == "bernoulli" else {}

    @torch.no_grad()
    def every_step(self, surgery: Surgery, forward: Forward, drawn: Mapping[str, Tensor]) -> None:
        """Age, measure, replace (algorithm 1)."""
        self._see_who_trains()
        self._ages.add_(1)
        self._measure([each for each in self._followed if each.trains], forward.captured)
        if self.replacement_rate == 0:
            return
        eligible = self._ages > self._bounds
        numbers = self._numbers(eligible.sum(1, dtype=torch.float64) * self.replacement_rate, drawn)
        due = numbers.tolist() if surgery.may_look else [1] * len(numbers)
        if not any(due):
            return  # what follows would change nothing
        index = torch.where(eligible, self._ranks(), math.inf).argsort(dim=1, stable=True)
        valid = self._order < numbers[:, None]
        slots = zip(self._followed, self._slots, index, valid, due, strict=True)
        units = {each: Slots(i[:k], v[:k]) for each, k, i, v, number in slots if number}
        absorb = {each.layer: each.average(self.decay) for each in units} if self.bias_correction else {}
        surgery.replace({each.layer: which for each, which in units.items()}, self.moments, absorb)

    def _see_who_trains(self) -> None:
        """Frozen layers (a plasticity injection's, before or after) are not replaced; those that are no longer frozen
        are new."""
        requiring = [weight.requires_grad for weight in self._watched]
        if requiring == self._requiring:
            return
        self._requiring = requiring
        for each in self._followed:
            before, each.trains = each.trains, trains(each.layer)
            each.bounds.fill_(self.maturity if each.trains else NEVER)
            if each.trains and not before:
                each.forget(torch.ones_like(each.ages, dtype=torch.bool))

    def _measure(self, followed: Sequence["_Followed"], captured: Mapping[str, tuple[Tensor, ...]]) -> None:
        """Bring utilities up to date with what came out of the nonlinearities, by layer [batch, units (several times
        over), positions...]. In few operations: between updates each costs a CPU more than its arithmetic."""
        fading, found = 1 - self.decay, []
        for each in followed:
            post = captured[each.layer.name][-1]
            if self.utility in CENTRED or self.bias_correction:
                each.follow(post, fading)
            size = None
            if self.utility in CENTRED:
                size = each.batch_mean((post - each.centre(post, self.decay)).abs())
            elif self.utility == "contribution":
                size = each.batch_mean(post if each.rectified else post.abs())
            found.append(each.outgoing(size) if self.utility in BY_OUTPUT else each.by_unit(size))
        if self.utility in BY_INPUT:
            incoming = [each.layer.producer.weight.abs().flatten(1).mean(1, dtype=torch.float32) for each in followed]
            torch._foreach_div_(found, incoming)
        if found:
            torch._foreach_lerp_([each.utilities for each in followed], found, fading)

    def _ranks(self) -> Tensor:
        """By which the units of each layer are compared [layers, units]."""
        if self.correct_utility and self.decay ** (self.maturity + 1) > 2.0**-26:  # else float32 cannot see it
            return self._utilities / _corrections(self._ages, self.decay)
        return self._utilities

    def _numbers(self, shares: Tensor, drawn: Mapping[str, Tensor]) -> Tensor:
        """How many units each layer replaces now, float64 [layers]."""
        if self.accumulation == "bernoulli":
            return shares.floor() + (drawn["chance"] < shares - shares.floor())
        numbers = self._left.add_(shares).floor()
        self._left.sub_(numbers)
        return numbers

    def on_replaced(self, layer: HiddenLayer, units: UnitSet) -> None:
        """They are as young as units can be."""
        for each in self._followed:
            if each.layer.name == layer.name:
                each.forget(units.mask)

    def state_dict(self) -> dict[str, Any]:
        """Ages, utilities and running averages by layer, and what is left of the shares."""
        layers = {
            each.layer.name: {
                "ages": each.ages.clone(),
                "utilities": each.utilities.clone(),
                "means": None if each.means is None else each.means.clone(),
                "accumulated": left.clone(),
                "trains": each.trains,
            }
            for each, left in zip(self._followed, self._left, strict=True)
        }
        return {"layers": layers}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for each, left in zip(self._followed, self._left, strict=True):
            kept = state["layers"][each.layer.name]
            each.ages.copy_(kept["ages"])
            each.utilities.copy_(kept["utilities"])
            each.means = None if kept["means"] is None else kept["means"].to(left.device, copy=True)
            each.trains = kept["trains"]
            left.fill_(kept["accumulated"])
        self._requiring = []


class _Followed:
    """A hidden layer's units: `ages` [units] in gradient steps, `utilities` [units], and the `bounds` that ages must
    pass, parts of a row of CBP's.

    ValueError, named after what `absorbs` running averages: a consumer has no bias, or columns that belong to no unit.
    """

    def __init__(self, layer: HiddenLayer, ages: Tensor, utilities: Tensor, bounds: Tensor, absorbs: str) -> None:
        self.layer, self.slices, self.absorbs, self.trains = layer, Slices(layer), absorbs, False
        self.ages, self.utilities, self.bounds = (row[: layer.units] for row in (ages, utilities, bounds))
        self.rectified = layer.activation in ("relu", "crelu")  # |h| is h
        self.means: Tensor | None = None
        """Running average of h [units (several times over), positions...], where it is needed."""
        sides = [[axis for axis in range(owned.tensor.ndim) if axis != 1] for owned in self.slices.outgoing]
        plain = [torch.equal(owner.cpu(), torch.arange(layer.units)) for _, owner in layer.consumers]
        self._outgoing = list(zip(self.slices.outgoing, sides, plain, strict=True))
        counts = (owned.present.sum(1) * owned.tensor[:, 0].numel() for owned in self.slices.outgoing)
        self._weights = sum(counts).clamp(min=1).float()
        for owned, (module, _) in zip(self.slices.outgoing, layer.consumers, strict=True) if absorbs else ():
            if module.bias is None or not owned.regular:
                why = "has no bias" if module.bias is None else "does not read all units alike"
                raise ValueError(f"{absorbs}: a {type(module).__name__} that reads '{layer.name}' {why}")

    def batch_mean(self, values: Tensor) -> Tensor:
        """[batch, units (several times over), positions...] averaged over the batch, and over positions unless a
        consumer has a column for each."""
        copies = values.shape[1] // self.layer.units
        apart = values.ndim == 2 or any(owned.most > copies for owned in self.slices.outgoing)
        return values.mean(0 if apart else [0, *range(2, values.ndim)], dtype=torch.float32)

    def follow(self, post: Tensor, fading: float) -> None:
        """Take a batch into the running average. ValueError: its shapes do not say what consumers absorb."""
        found = self.batch_mean(post)
        if self.means is None:
            self.means = torch.zeros_like(found)
            for consumer in range(len(self.slices.outgoing)) if self.absorbs else ():
                self.slices.consumer_means(found, consumer)
        self.means.lerp_(found, fading)

    def average(self, decay: float) -> Tensor:
        """The running average of h without its bias towards 0, as `means`."""
        short = _corrections(self.ages, decay).repeat(len(self.means) // self.layer.units)
        return self.means / short.view(-1, *[1] * (self.means.ndim - 1))

    def centre(self, post: Tensor, decay: float) -> Tensor:
        """The average of each of `post`'s channels, that `post` can be reduced by."""
        average = self.average(decay)
        return average.view(len(average), -1).mean(1).view(-1, *[1] * (post.ndim - 2))

    def by_unit(self, sizes: Tensor | None) -> Tensor:
        """`sizes` [units (several times over), positions...] averaged by unit [units]; 1 where None."""
        if sizes is None:
            return torch.ones_like(self.utilities)
        return sizes.reshape(-1, self.layer.units, *sizes.shape[1:]).mean([0, *range(2, sizes.ndim + 1)])

    def outgoing(self, sizes: Tensor | None) -> Tensor:
        """Mean over a unit's outgoing weights, of whatever consumer, of |w| times what its column holds of `sizes`
        [units (several times over), positions...], 1 where None."""
        total = None
        for consumer, (owned, sides, plain) in enumerate(self._outgoing):
            found = owned.tensor.abs().sum(sides, dtype=torch.float32)
            if plain and sizes is not None and sizes.shape == found.shape:
                found = found * sizes
            else:
                columns = 1.0 if sizes is None else self.slices.by_column(sizes, consumer)
                if columns is None:  # a pooling or a slice in between: every column holds the unit's average
                    columns = self.by_unit(sizes)[:, None]
                found = (found[owned.positions] * owned.present * columns).sum(1)
            total = found if total is None else total + found
        return total / self._weights

    def forget(self, units: Tensor) -> None:
        """Age, utility and average of the units in the mask start anew."""
        self.ages.masked_fill_(units, 0)
        self.utilities.masked_fill_(units, 0)
        if self.means is not None:
            copies = units.repeat(len(self.means) // self.layer.units)
            self.means.masked_fill_(copies.view(-1, *[1] * (self.means.ndim - 1)), 0)


def _corrections(ages: Tensor, decay: float) -> Tensor:
    """1 - decay^age, by which a running average that started at 0 falls short (1 at age 0)."""
    lag = ages.clamp(min=1).float() * (math.log(decay) if decay > 0 else -math.inf)
    return torch.where(ages > 0, -torch.expm1(lag), 1.0)
