"""Continual backprop: a few of the least useful mature units are replaced all the time (Dohare et al. 2024, Nature
632:768, "Continual backpropagation"; the earlier arXiv 2306.13812)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor, nn

from agents.interventions._utility import STEPS_TOGETHER, AlikeContribution, LayerUtility, Utility, corrections
from agents.interventions.base import Forward, Intervention
from agents.interventions.slices import Slots, UnitSet, replaceable, trains
from agents.interventions.surgery import Moments, Surgery
from plasticity_probes.units import HiddenLayer


@dataclass(eq=False)
class CBP(Intervention):
    """After every gradient step each hidden layer's units get older and their utility u is brought up to date, u <-
    decay u + (1 - decay) y; of those older than `maturity`, a share `replacement_rate` with the lowest u is replaced:
    incoming weights anew by the layer's own law, outgoing ones 0, age and utility 0 (Dohare24, algorithm 1).

    What counts is h, the values out of the nonlinearity in the update's own batch, and the weights after the step. Out
    of a convolution |h| is also averaged over positions, unless the consumer has a column for each (after a flatten),
    and y is the mean over all outgoing weights of a unit, of whatever consumer. (The paper sums, the authors' code
    averages; the order within a layer is the same.) Units that anyone else replaces start at age 0 and utility 0 too.
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
        self.require(self.utility in get_args(Utility), "utility", ", ".join(get_args(Utility)))
        self.require(self.accumulation in ("accumulate", "bernoulli"), "accumulation", "accumulate or bernoulli")
        self.require(self.moments in ("zero", "keep", "mean", "local"), "moments", "zero, keep, mean or local")

    @classmethod
    def as_dohare24(cls, **changes: Any) -> Self:
        """The settings of the authors' PPO: rate 1e-4, maturity 1e4, decay .99, contribution, Bernoulli draws, nothing
        absorbed by the biases, Adam's moments left alone. (They run it with L2 1e-4 and betas .99, .99.)

        Three things their code does otherwise: it replaces layer by layer, so that weights between two units replaced
        together are random there and 0 here (as in the paper's algorithm); it cuts a share above 1 down to whole units,
        where here what is left is the chance of one more; and in convolutions it takes the share of ALL units."""
        return cls(**{"accumulation": "bernoulli", "moments": "keep", **changes})

    def check_beside(self, others: Sequence[Intervention]) -> None:
        """What a layer adds to a consumer is divided by a spectral norm's sigma, which no bias knows of."""
        beside = any(other.name == "spectral_norm" for other in others)
        self.require(not (self.bias_correction and beside), "bias_correction", "off beside spectral_norm")

    def attach(self, networks: Mapping[str, nn.Module], generator: torch.Generator) -> None:
        """Start all ages and utilities at 0. ValueError: a layer's units cannot be replaced one by one, no layer
        trains, or, with `bias_correction`, a consumer cannot absorb."""
        alike = self._alike(replaceable(self.layers, self.name))
        layers = [layer for group in alike for layer in group]
        sizes, device = [layer.units for layer in layers], layers[0].producer.weight.device
        self.ages = torch.zeros(sum(sizes), dtype=torch.int64, device=device)
        self.utilities = torch.zeros(sum(sizes), dtype=torch.float32, device=device)
        views = zip(layers, self.ages.split(sizes), self.utilities.split(sizes), strict=True)
        settings = (self.utility, self.decay, self.bias_correction, f"{self.name}.bias_correction")
        self._followed = [LayerUtility(layer, ages, utilities, *settings) for layer, ages, utilities in views]
        self._together, self._apart, first = [], [], 0
        for group in alike:
            members = self._followed[first : first + len(group)]
            start = sum(sizes[:first])
            utilities = self.utilities[start : start + len(group) * group[0].units].view(len(group), -1)
            if self._simple(group[0]):
                self._together.append(AlikeContribution(members, utilities, self.decay))
            else:
                self._apart += members
            first += len(group)
        # layers as rows, padded to the widest
        starts, place = torch.tensor([0, *sizes[:-1]]).cumsum(0), torch.arange(max(sizes))
        inside = place < torch.tensor(sizes)[:, None]
        self._outside, self._grid = ~inside.to(device), torch.where(inside, starts[:, None] + place, 0).to(device)
        self._slots = [min(size, math.ceil(self.replacement_rate * size) + 1) for size in sizes]
        self._accumulated: list[float] | Tensor = [0.0] * len(sizes)
        self._shares, self._settled, self._due = [0.0] * len(sizes), 0, 0
        seed = int(torch.randint(2**62, (1,), generator=generator, device=generator.device))
        self._chance = torch.Generator(device).manual_seed(seed)  # not the surgeon's: who goes and what comes are apart
        self._oldest = 0  # no unit is older
        self._on_host = device.type == "cpu"
        self._ages_count = any(follow.averages_h for follow in self._apart)
        self._behind = 0  # gradient steps that ages and some utilities do not yet know of
        self._watched = [module.weight for layer in layers for module in (layer.producer, *dict(layer.consumers))]
        self._requiring: list[bool] = []
        self._see_who_trains()

    def _simple(self, layer: HiddenLayer) -> bool:
        return self.utility == "contribution" and not self.bias_correction and AlikeContribution.fits(layer)

    def _alike(self, layers: Sequence[HiddenLayer]) -> list[list[HiddenLayer]]:
        """Layers that are measured together, side by side."""
        groups: dict[Any, list[HiddenLayer]] = {}
        for layer in layers:
            groups.setdefault(layer.units if self._simple(layer) else layer.name, []).append(layer)
        return list(groups.values())

    def after_step(self, surgery: Surgery, forward: Forward, gradient_step: int) -> None:
        """Age, measure, replace."""
        captured = forward.captured
        requiring = [weight.requires_grad for weight in self._watched]
        if requiring != self._requiring:
            self._requiring = requiring
            if any(follow.trains != trains(follow.layer) for follow in self._followed):
                self._catch_up()
                self._see_who_trains()
        self._behind += 1
        self._oldest += 1
        if self._ages_count:
            self._catch_up()  # running averages of h need the ages
        for group in self._together:
            group.keep(captured)
        if self._apart:
            with torch.no_grad():
                for follow in self._apart:
                    if follow.trains:
                        follow.update(captured[follow.layer.name][-1])
        if not self._on_host or self._behind == STEPS_TOGETHER:
            self._catch_up()
        if self._oldest > self.maturity and self.replacement_rate > 0:
            self._replace(surgery)

    def _catch_up(self) -> None:
        """Bring ages and utilities up to date."""
        if self._behind:
            self.ages.add_(self._aging, alpha=self._behind)
            self._behind = 0
        for follow in self._apart:
            follow.catch_up()
        for group in self._together:
            group.update()

    def _see_who_trains(self) -> None:
        """Frozen layers (a plasticity injection's, before or after) do not age and are not replaced; those that are no
        longer frozen are new."""
        for follow in self._followed:
            before, follow.trains = follow.trains, trains(follow.layer)
            if follow.trains and not before:
                follow.forget(torch.ones_like(follow.ages, dtype=torch.bool))
        self._count_anew()

    def _count_anew(self) -> None:
        aging = [torch.full((follow.layer.units,), int(follow.trains)) for follow in self._followed]
        self._aging, self._looked_until = torch.cat(aging).to(self.ages.device), 0

    def _replace(self, surgery: Surgery) -> None:
        if not self._on_host:
            eligible = self._eligible()
            numbers = self._numbers_on_device(self._by_layer(eligible))
            index, valid = self._lowest(eligible, numbers)
            slots = zip(self._followed, self._slots, index, valid, strict=True)
            self._operate(surgery, {follow: Slots(i[:k], v[:k]) for follow, k, i, v in slots})
            return
        # the same with no more work than needed: on a CPU reading back costs nothing
        if self._oldest < min(self._looked_until, self._due):
            return
        numbers = self._numbers()
        if any(numbers):
            self._catch_up()
            index, valid = self._lowest(self._eligible(), torch.tensor(numbers))
            numbers = valid.sum(1).tolist()
            chosen = zip(self._followed, numbers, index, strict=True)
            until = min(self._looked_until, self._oldest + self.maturity + 1)  # when the new ones can be mature
            self._operate(surgery, {follow: i[:n] for follow, n, i in chosen if n})
            self._looked_until = until
            self._share([count - n for count, n in zip(self._eligible_units, numbers, strict=True)])

    def _eligible(self) -> Tensor:
        """bool [units of all layers]"""
        return (self.ages > self.maturity) & (self._aging > 0)

    def _by_layer(self, eligible: Tensor) -> Tensor:
        return eligible[self._grid].masked_fill_(self._outside, False).sum(1)

    def _look(self) -> None:
        """Count the eligible units of each layer; they stay as many until one is replaced or matures. A restored run
        looks when the original does not: nothing is brought up to date here, which would round utilities elsewhere."""
        ages = self.ages + self._behind * self._aging
        eligible = (ages > self.maturity) & (self._aging > 0)
        oldest = int(torch.where(eligible, 0, ages * self._aging).max())
        self._looked_until = self._oldest + max(self.maturity + 1 - oldest, 1)
        self._share(self._by_layer(eligible).tolist())

    def _share(self, eligible: list[int]) -> None:
        """That many units of each layer are eligible from now on."""
        self._eligible_units, self._shares = eligible, [count * self.replacement_rate for count in eligible]
        waits = (
            (1 - before) / share if share else math.inf
            for before, share in zip(self._accumulated, self._shares, strict=True)
        )
        # before then no layer's shares make a whole unit; a step less, for sums are rounded
        self._due = self._oldest if self.accumulation == "bernoulli" else self._oldest + min(waits) - 2

    def _settle(self, until: int) -> None:
        """Add up the shares of the steps up to that one, one by one: the sums are those of every other order."""
        counts = self.accumulation == "accumulate" and any(self._shares)
        for _ in range(until - max(self._settled, self.maturity) if counts else 0):
            self._accumulated = [before + share for before, share in zip(self._accumulated, self._shares, strict=True)]
        self._settled = until

    def _numbers(self) -> list[int]:
        """How many units each layer replaces now."""
        if self.accumulation == "bernoulli":
            if self._oldest >= self._looked_until:
                self._look()
            draws = self._draws().tolist()
            return [int(share) + (draw < share - int(share)) for share, draw in zip(self._shares, draws, strict=True)]
        if self._oldest >= self._looked_until:
            self._settle(self._oldest - 1)
            self._look()
        self._settle(self._oldest)
        if max(self._accumulated) < 1:
            return []
        numbers = [int(total) for total in self._accumulated]
        self._accumulated = [total - number for total, number in zip(self._accumulated, numbers, strict=True)]
        return numbers

    def _numbers_on_device(self, eligible: Tensor) -> Tensor:
        """The same, bit for bit, with nothing read back; float64 [layers]."""
        shares = eligible.double() * self.replacement_rate
        if self.accumulation == "bernoulli":
            return shares.floor() + (self._draws() < shares - shares.floor())
        if not isinstance(self._accumulated, Tensor):
            self._accumulated = torch.tensor(self._accumulated, dtype=torch.float64, device=shares.device)
        numbers = self._accumulated.add_(shares).floor()
        self._accumulated.sub_(numbers)
        return numbers

    def _draws(self) -> Tensor:
        layers, device = len(self._followed), self.ages.device
        return torch.rand(layers, dtype=torch.float64, generator=self._chance, device=device)

    def _lowest(self, eligible: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """The `numbers` [layers] eligible units of lowest utility: index and validity [layers, slots]."""
        utilities = self.utilities
        if self.correct_utility and self.decay ** (self.maturity + 1) > 2.0**-26:  # else float32 cannot see it
            utilities = utilities / corrections(self.ages, self.decay)
        ranked = torch.where(eligible, utilities, math.inf)[self._grid].masked_fill_(self._outside, math.inf)
        ranked, index = (found[:, : max(self._slots)] for found in ranked.sort(dim=1, stable=True))
        return index, (torch.arange(index.shape[1], device=index.device) < numbers[:, None]) & (ranked < math.inf)

    def _operate(self, surgery: Surgery, chosen: Mapping[LayerUtility, Slots | Tensor]) -> None:
        absorb = {follow.layer: follow.averages() for follow in chosen} if self.bias_correction else None
        surgery.replace({follow.layer: slots for follow, slots in chosen.items()}, self.moments, absorb)

    def on_replaced(self, layer: HiddenLayer, units: UnitSet) -> None:
        """They are as young as units can be."""
        self._catch_up()
        for follow in self._followed:
            if follow.layer.name == layer.name:
                follow.forget(units.mask)
                self._looked_until = 0

    def state_dict(self) -> dict[str, Any]:
        """Ages, utilities and running averages by layer, what is left of the shares, and the draws' generator. Ages are
        `behind` steps old, and the utilities of dense layers by as many as are `kept`: to bring them up to date would
        round otherwise than the run that goes on."""
        self._settle(self._oldest)
        for follow in self._apart:
            follow.catch_up()
        layers = {
            follow.layer.name: {
                "ages": follow.ages.clone(),
                "utilities": follow.utilities.clone(),
                "means": None if follow.running is None else follow.running.clone(),
                "accumulated": float(accumulated),
                "trains": follow.trains,
            }
            for follow, accumulated in zip(self._followed, self._accumulated, strict=True)
        }
        kept = [group.state_dict() for group in self._together]
        known = {"oldest": self._oldest, "behind": self._behind, "generator": self._chance.get_state()}
        return {"layers": layers, "kept": kept, **known}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        for follow in self._followed:
            kept = state["layers"][follow.layer.name]
            follow.ages.copy_(kept["ages"])
            follow.utilities.copy_(kept["utilities"])
            follow.running = None if kept["means"] is None else kept["means"].to(self.utilities.device, copy=True)
            follow.trains = kept["trains"]
            follow.taken.clear()
            follow.sees_shapes_anew()
        self._accumulated = [state["layers"][follow.layer.name]["accumulated"] for follow in self._followed]
        for group, kept in zip(self._together, state["kept"], strict=True):
            group.load_state_dict(kept)
        self._oldest, self._behind, self._requiring = state["oldest"], state["behind"], []
        self._settled = self._oldest
        self._count_anew()
        self._chance.set_state(state["generator"].cpu())
