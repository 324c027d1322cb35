"""What edits are about: a `UnitSet` of a layer, the slices of weights and moments that its units own, and the laws by
which whole tensors are drawn."""

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from agents.initializers import Initializer, initializer_for
from plasticity_probes.units import CONVOLUTIONS, NORMS, HiddenLayer

NORM_START = {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0}


class Slots(NamedTuple):
    """At most k units of a layer, k from 1 to its number of units. Where `valid` is False the slot names no unit and
    its index may be any number."""

    index: Tensor
    """int64 [k]"""
    valid: Tensor
    """bool [k]"""


@dataclasses.dataclass(frozen=True, eq=False)
class UnitSet:
    """The units that an edit is about, as a mask and as k slots. Slots that name one unit twice agree."""

    mask: Tensor
    """bool [units]: the unit is edited."""
    index: Tensor
    """int64 [k]: the unit in each slot, 0 in an invalid one."""
    edited: Tensor
    """bool [k]: `mask[index]`. Also True in an invalid slot if another names unit 0, so that both write the same."""
    source: Tensor
    """int64 [k]: the first valid slot that names the same unit, whose draw it takes."""
    distinct: bool = False
    """Known without looking: every slot names a unit of its own."""

    @classmethod
    def of(cls, given: Tensor | Slots, units: int, name: str, allowed: Tensor | None = None) -> "UnitSet":
        """From a bool mask [units], `Slots`, or the int64 indices [k] of k different units; none where the 0-d bool
        `allowed` is False. Errors name `name`."""
        if isinstance(given, Tensor) and given.dtype == torch.int64:
            if allowed is not None:
                return cls.of(Slots(given, torch.ones_like(given, dtype=torch.bool)), units, name, allowed)
            mask = torch.zeros(units, dtype=torch.bool, device=given.device).index_fill_(0, given, True)
            return cls(mask, given, *_each_its_own(given.shape[0], given.device), distinct=True)
        if isinstance(given, Tensor):
            if given.dtype != torch.bool or given.shape != (units,):
                raise ValueError(f"units of '{name}': {given.dtype} {list(given.shape)}, must be a bool mask [{units}]")
            mask = given if allowed is None else given & allowed
            index = torch.arange(units, device=given.device)
            return cls(mask, index, mask, index)
        index, valid = given
        if index.dtype != torch.int64 or valid.dtype != torch.bool or index.ndim != 1 or index.shape != valid.shape:
            raise ValueError(f"units of '{name}': slots must be an int64 index [k] and a bool validity flag [k]")
        if not 1 <= len(index) <= units:
            raise ValueError(f"units of '{name}': {len(index)} slots, must be 1 to {units}, the number of units")
        valid = valid if allowed is None else valid & allowed
        index, slots = torch.where(valid, index, 0), len(index)
        if slots == 1:  # what follows, in fewer operations
            mask = torch.zeros(units, dtype=torch.bool, device=index.device).index_copy_(0, index, valid)
            return cls(mask, index, valid, torch.zeros_like(index))
        order = torch.arange(slots, device=index.device).masked_fill(~valid, slots)
        first = torch.full((units,), slots, device=index.device).scatter_reduce(0, index, order, "amin")
        mask, source = first < slots, first[index]
        return cls(mask, index, source < slots, source.clamp(max=slots - 1))

    def spread(self, drawn: Tensor) -> Tensor:
        """Of what was drawn for each slot, the rows that the slots take."""
        return drawn if self.distinct else drawn[self.source]


@functools.cache
def _each_its_own(slots: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """`edited` and `source` of slots that name a unit each, made once."""
    return torch.ones(slots, dtype=torch.bool, device=device), torch.arange(slots, device=device)


class TensorSlices:
    """The slices of `tensor` along dimension `dim` that belong to a layer's units: `owner` int64 [size of that
    dimension], -1 for none. Rows of a producer and its norm, columns of a consumer."""

    def __init__(self, tensor: Tensor, dim: int, owner: Tensor, units: int, start: str | float = 0.0) -> None:
        self.tensor, self.dim, self.owner, self.start = tensor, dim, owner, start
        slices = [(owner.cpu() == unit).nonzero().squeeze(1) for unit in range(units)]
        self.most = max(map(len, slices))
        # where a unit owns fewer slices than another, position 0 stands in and is written with what it should hold
        positions = torch.zeros(units, self.most, dtype=torch.int64)
        present = torch.zeros(units, self.most, dtype=torch.bool)
        for unit, mine in enumerate(slices):
            positions[unit, : len(mine)], present[unit, : len(mine)] = mine, True
        self.positions, self.present = positions.to(owner.device), present.to(owner.device)
        self.regular = bool(present.all())
        self.one_each = self.most == 1 and torch.equal(positions.squeeze(1), torch.arange(units))

    def owned_by(self, units: UnitSet) -> Tensor:
        """bool [size of the dimension]: which slices belong to `units`."""
        return units.mask[self.owner.clamp(min=0)] & (self.owner >= 0)

    def read(self, source: Tensor, units: UnitSet) -> Tensor:
        """The slots' slices of `source` (of the tensor's shape), one after another along the dimension."""
        return source.index_select(self.dim, self._where(units))

    def write(self, units: UnitSet, *pairs: tuple[Tensor, Tensor | float]) -> None:
        """For each pair, give the slices of `units` in the first (of the tensor's shape) the values of the second, in
        place: a number, or a tensor as `read` gives it. Nothing else changes."""
        fits = [-1 if axis == self.dim else 1 for axis in range(self.tensor.ndim)]
        where, edited, whole = self._where(units), None, None
        if units.distinct and self.regular:  # as below, in fewer operations
            for into, values in pairs:
                if isinstance(values, Tensor):
                    into.index_copy_(self.dim, where, values)
                else:
                    into.index_fill_(self.dim, where, values)
            return
        for into, values in pairs:
            if not isinstance(values, Tensor) and len(where) >= len(self.owner):
                whole = self.owned_by(units).view(fits) if whole is None else whole
                into.masked_fill_(whole, values)
                continue
            edited = self._edited(units, where).view(fits) if edited is None else edited
            old = into.index_select(self.dim, where)
            new = torch.where(edited, values, old) if isinstance(values, Tensor) else old.masked_fill_(edited, values)
            into.index_copy_(self.dim, where, new)

    def _where(self, units: UnitSet) -> Tensor:
        return units.index if self.one_each else self.positions[units.index].flatten()

    def _edited(self, units: UnitSet, where: Tensor) -> Tensor:
        if not self.regular:
            return self.owned_by(units)[where]
        return units.edited if self.most == 1 else units.edited.repeat_interleave(self.most)

    def survivors_mean(self, values: Tensor, units: UnitSet) -> Tensor:
        """Mean over the units that are not in `units` of their slices of `values`, as `write` takes it."""
        dim, fits = self.dim, [1] * self.dim + [len(self.positions), self.most] + [1] * (values.ndim - self.dim - 1)
        slices = values.index_select(dim, self.positions.flatten()).unflatten(dim, self.positions.shape)
        alive = (self.present & ~units.mask[:, None]).to(values.dtype).view(fits)
        mean = (slices * alive).sum(dim) / alive.sum(dim).clamp(min=1)
        tiled = torch.cat([mean] * len(units.index), dim)
        if self.regular:
            return tiled
        # what stands in for a missing slice is position 0, the first slice of whoever owns it
        missing = ~self.present[units.index].view([-1 if axis == dim else 1 for axis in range(values.ndim)])
        return torch.where(missing, mean.narrow(dim, 0, 1), tiled)


class Slices:
    """Everything the units of a separable `layer` own."""

    def __init__(self, layer: HiddenLayer) -> None:
        self.layer = layer
        rows = torch.arange(layer.units, device=layer.producer.weight.device)
        self.initializer: Initializer = layer.initializer or initializer_for("torch", layer.producer)
        tensors = [(getattr(layer.producer, kind), kind) for kind in ("weight", "bias")]
        tensors += [(getattr(layer.norm, kind, None), start) for kind, start in NORM_START.items()]
        self.incoming = [
            TensorSlices(tensor, 0, rows, layer.units, start) for tensor, start in tensors if tensor is not None
        ]
        self.outgoing = [TensorSlices(module.weight, 1, owner, layer.units) for module, owner in layer.consumers]

    def by_column(self, post: Tensor, consumer: int) -> Tensor | None:
        """`post` [units (several times over), *positions], averaged over samples, as [units, columns a unit] of the
        consumer's weight, a unit's columns in ascending order; a consumer with one column for all positions gets the
        mean over them. None where the shapes do not say what each column reads."""
        units, columns = self.layer.units, self.outgoing[consumer]
        copies = post.shape[0] // units
        by_unit = post.reshape(copies, units, -1).transpose(0, 1)
        if columns.regular and columns.most == copies * by_unit.shape[2]:
            return by_unit.flatten(1)
        if columns.regular and columns.most == copies:
            return by_unit.mean(2)
        return None

    def consumer_means(self, post: Tensor, consumer: int) -> Tensor:
        """As `by_column`. ValueError where the shapes do not say what each column reads."""
        means = self.by_column(post, consumer)
        if means is None:
            raise ValueError(
                f"absorb of '{self.layer.name}': means of shape {list(post.shape)} do not say what each of the "
                f"{self.outgoing[consumer].most} columns a unit has in consumer {consumer} reads"
            )
        return means


class Reinitializer:
    """By which law each tensor of `network` is drawn anew; `names` of its tensors, for messages."""

    def __init__(self, network: nn.Module, names: Mapping[Tensor, str]) -> None:
        self._network, self._names = network, names
        self._start = {p: p.detach().clone() for p in network.parameters() if p.ndim < 2}

    def plan(self, what: Iterable[nn.Module | nn.Parameter]) -> list[tuple[nn.Module, str, Tensor]]:
        """(module, name in it, tensor) of what is to be redrawn, in the network's order. ValueError: a tensor is not
        the network's, or its law is not known."""
        chosen: set[int] = set()
        for item in what:
            tensors = [item] if isinstance(item, Tensor) else [*item.parameters(), *_statistics(item)]
            if any(tensor not in self._names for tensor in tensors):
                raise ValueError(f"reset: {type(item).__name__} is not part of networks['online']")
            chosen |= set(map(id, tensors))
        plan = [
            (module, name, tensor)
            for module in self._network.modules()
            for name, tensor in (*module._parameters.items(), *module._buffers.items())
            if tensor is not None and id(tensor) in chosen
        ]
        for module, _, tensor in plan:
            if not isinstance(module, (nn.Linear, *CONVOLUTIONS, *NORMS)) and tensor not in self._start:
                name = f"'{self._names[tensor]}' ({type(module).__name__})"
                raise ValueError(f"reset: the law of {name} is not known")
        return plan

    def draw(self, module: nn.Module, name: str, tensor: Tensor, generator: torch.Generator) -> Tensor | float:
        """A new value for `tensor`, which `module` calls `name`."""
        if isinstance(module, NORMS):
            return NORM_START.get(name, 0)
        if not isinstance(module, (nn.Linear, *CONVOLUTIONS)):
            return self._start[tensor]
        law, shape = getattr(module, "initializer", None) or initializer_for("torch", module), tensor.shape
        if name == "bias":
            return law.bias_rows(len(tensor), generator).to(tensor)
        return law.weight_rows(shape[0], tuple(shape[1:]), generator).to(tensor)


def _statistics(module: nn.Module) -> list[Tensor]:
    """The running statistics of all norms in `module`."""
    norms = [part for part in module.modules() if isinstance(part, NORMS)]
    return [buffer for norm in norms for buffer in norm._buffers.values() if buffer is not None]


def trains(layer: HiddenLayer) -> bool:
    """Whether new units would learn: the layer's own weight and that of at least one consumer need a gradient now."""
    return layer.producer.weight.requires_grad and any(module.weight.requires_grad for module, _ in layer.consumers)


def replaceable(layers: Sequence[HiddenLayer], who: str) -> tuple[HiddenLayer, ...]:
    """Those of `layers` whose units can be replaced one by one, for the intervention `who` that replaces units. Some
    may be frozen now and train later (a plasticity injection's): ask `trains` when it matters.

    ValueError, naming `who`: the units of one that trains cannot be replaced one by one, or none trains.
    """
    for layer in layers:
        if not layer.separable and any(parameter.requires_grad for parameter in layer.producer.parameters()):
            raise ValueError(f"{who}: the units of '{layer.name}' cannot be replaced one by one: {layer.reason}")
    found = tuple(layer for layer in layers if layer.separable)
    if not any(map(trains, found)):
        raise ValueError(f"{who}: there is no hidden layer that trains in its part of the network")
    return found
