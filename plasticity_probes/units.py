"""The unit graph: which hidden layers a model has, and which input columns of which modules belong to which unit.

    layers = hidden_layers(model, observations)
    for layer in layers:
        for consumer, owner in layer.consumers:
            consumer.weight[:, dead[owner] & (owner >= 0)] = 0  # cuts off the units in the bool mask `dead` [units]

One forward pass is followed operation by operation (tracer.py, tracing.py, rules.py). What is not understood is
reported as `separable=False` with the reason. The model, its buffers and the random state are afterwards what they
were.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from plasticity_probes.tracer import CONVOLUTIONS, NORMS, ForwardFunction, Tracer, count_units, module_kind, run
from plasticity_probes.tracing import Layer, Path, Place, Recorder, along, tensors

__all__ = [
    "CONVOLUTIONS",
    "NORMS",
    "ForwardFunction",
    "HiddenLayer",
    "LayerActivations",
    "activations",
    "hidden_layers",
    "last_layers",
]

ACTIVATION_NAMES = {
    "x": "identity",
    "neg(x)": "identity",
    "cat(relu(x), relu(neg(x)))": "crelu",
    "relu(cat(x, neg(x)))": "crelu",
    "mul(x, sigmoid(x))": "silu",
    "div(x, abs(x))": "softsign",
    "cat(sin(x), cos(x))": "fourier",
}
DOUBLING = ("crelu", "fourier")  # unit i is in columns i and i + n


@dataclass(frozen=True)
class _Capture:
    """Which result of which operation to take, and how to bring its units to dimension 1."""

    operation: int
    output: int
    copied: bool  # its memory is written again later
    shape: tuple[int, ...]  # of one sample in the traced pass
    index: Tensor | None  # channels of this layer, or [units, positions] of the flattened sample
    flattened: bool

    def arrange(self, value: Tensor) -> Tensor:
        """[samples, units (several times over for CReLU and its like), ...] of the layer alone."""
        if self.index is None:
            return value
        index = self.index.to(value.device)
        if not self.flattened:
            return value[:, index]
        value = value.reshape(value.shape[0], -1) if value.ndim > 1 else value[None]
        gathered = value[:, index]
        return gathered.squeeze(2) if index.shape[1] == 1 else gathered


@dataclass(frozen=True, eq=False)
class HiddenLayer:
    """A layer whose output is read by other layers with weights. Units are its output features or channels.

    Unit u owns row u of the producer's weight and bias, row u of the norm's, and in each consumer the input columns
    where `owner == u`. A layer used twice, a recurrent cell, a residual sum and the like are `separable=False`: their
    units cannot be replaced one by one, and `owner` is -1 wherever a column belongs to no single unit.
    """

    name: str
    """The producer's name in model.named_modules()."""
    producer: nn.Module
    """Linear or convolution; a recurrent cell, attention and other modules with weights occur with separable=False."""
    norm: nn.Module | None
    """LayerNorm, RMSNorm, GroupNorm, BatchNorm or InstanceNorm between producer and nonlinearity."""
    activation: str
    """relu, tanh, crelu, fourier, gelu, silu, ..., identity; a formula in the preactivation x where it has no name."""
    initializer: object | None
    """The producer's attribute `initializer`."""
    separable: bool
    reason: str
    """Why the units are not separable, "" where they are."""
    consumers: list[tuple[nn.Module, Tensor]]
    """Each module that reads the layer, with owner int64 [in_features or in_channels], on the consumer's device."""
    _captures: tuple[_Capture, _Capture] | None = field(default=None, repr=False)
    _program: list[Any] = field(default_factory=list, repr=False)

    @property
    def units(self) -> int:
        """Output features or channels of the producer."""
        return count_units(self.producer)


@dataclass(frozen=True, eq=False)
class LayerActivations:
    """A layer's values, detached: [samples, units], or [samples, channels, height, width] of a convolution.

    `pre` goes into the nonlinearity (after the norm), `post` comes out of it; with no nonlinearity both are the same.
    `post` of CReLU and Fourier features has 2n columns or channels, those of unit i are i and i + n. Where the units do
    not lie along dimension 1 (channels last, a nonlinearity after flattening) they are brought there: [samples, units,
    positions].
    """

    pre: Tensor
    post: Tensor


def hidden_layers(model: nn.Module, example_input: Any, forward: ForwardFunction | None = None) -> list[HiddenLayer]:
    """The hidden layers of `model` in the order of their first use, found by following one forward pass.

    `example_input`: a batch as any nest of tensors (first dimension: samples), `forward(model, example_input)` says how
    to call the model, by default model(example_input). Layers that no layer with weights reads (heads, modules not
    used) are left out. Two samples are enough.

    The model runs once as it is, in its own mode, on copies of the input and of its buffers, with torch's random state
    forked, without autograd; buffers, gradients, hooks and attributes are put back even if it raises. (What it writes
    into lists or objects of its own is not.)

    ValueError: a lazy module has not been initialised yet. NotImplementedError: the model is called inside vmap or the
    like.
    """
    if any(is_lazy(tensor) for tensor in (*model.parameters(), *model.buffers())):
        raise ValueError("model: has lazy modules that are not initialised yet; run it once first")
    trace = Tracer(model)
    try:
        trace.attach()
        trace.finish(run(model, example_input, forward, trace))
    finally:
        trace.detach()
    owners: dict[int, int] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    shared = {parameter for parameter, count in owners.items() if count > 1} | trace.read_directly
    found = (_describe(trace, layer, shared) for layer in trace.layers)
    return [layer for layer in found if layer is not None]


def last_layers(layers: Sequence[HiddenLayer]) -> tuple[HiddenLayer, ...]:
    """Those of `layers` that feed none of the others: the features of each branch."""
    producers = {layer.producer for layer in layers}
    return tuple(layer for layer in layers if not any(module in producers for module, _ in layer.consumers))


def activations(
    model: nn.Module, batch: Any, forward: ForwardFunction | None = None, layers: list[HiddenLayer] | None = None
) -> dict[str, LayerActivations]:
    """Values before and after the nonlinearity on `batch`, by layer name, from one forward pass without autograd.

    `layers` from `hidden_layers` (of this model, or of another with the same architecture) saves tracing anew; where
    the model turns out to do something else than it did then (another mode, say), it is traced again. Layers whose
    values stand in no one tensor (recurrent cells, attention) are absent. The model is left as `hidden_layers` does.
    """
    if layers is not None:
        values = _replay(model, batch, forward, layers)
        if values is not None:
            return values
    names = None if layers is None else {layer.name for layer in layers}
    traced = [layer for layer in hidden_layers(model, batch, forward) if names is None or layer.name in names]
    values = _replay(model, batch, forward, traced)
    if values is None:
        raise RuntimeError("forward: performs other operations each time it is called")
    return values


class _Replay(Recorder):
    """Keeps the results of chosen operations."""

    def __init__(self, captures: list[_Capture]) -> None:
        super().__init__()
        self.values: dict[tuple[int, int], Tensor] = {}
        self._wanted: dict[int, list[_Capture]] = {}
        for capture in captures:
            self._wanted.setdefault(capture.operation, []).append(capture)

    def seen(self, func: Any, args: tuple, kwargs: dict, result: Any) -> None:
        for capture in self._wanted.get(len(self.operations) - 1, ()):
            outs = list(tensors(result))
            if capture.output < len(outs):
                value = outs[capture.output].detach()
                self.values[capture.operation, capture.output] = value.clone() if capture.copied else value


def _replay(
    model: nn.Module, batch: Any, forward: ForwardFunction | None, layers: list[HiddenLayer]
) -> dict[str, LayerActivations] | None:
    """The activations, or None if the forward pass was not the one that `layers` were traced in."""
    layers = [layer for layer in layers if layer._captures is not None]
    if not layers:
        return {}
    captures = [capture for layer in layers for capture in layer._captures]
    replay = _Replay(captures)
    run(model, batch, forward, replay)
    programs = {id(layer._program): layer._program for layer in layers}
    if any(program != replay.operations for program in programs.values()):
        return None
    for capture in captures:
        shape = tuple(replay.values[capture.operation, capture.output].shape[1:])
        if capture.index is not None and shape != capture.shape:
            return None
    values = {}
    for layer in layers:
        pre, post = (capture.arrange(replay.values[capture.operation, capture.output]) for capture in layer._captures)
        values[layer.name] = LayerActivations(pre, post)
    return values


def _describe(trace: Tracer, layer: Layer, shared: set[int]) -> HiddenLayer | None:
    """What was found out about `layer`; None if it is no hidden layer. `shared`: parameters used in several places."""
    if not layer.uses and not layer.before_weights:
        return None
    paths = [use.path for use in layer.uses if not use.reason] + [use.path for use in layer.uses]
    path = (paths + [path for path, _ in layer.objections])[0]
    captures = None if layer.opaque else _captures(trace, layer, path)
    reasons = dict.fromkeys(_reasons(trace, layer, path, shared))
    if not reasons and captures is None:
        reasons = ["no one tensor holds the values of all its units, sample by sample"]
    consumers = {use.module: use.owner for use in layer.uses[::-1]}
    name = path.expression.removesuffix("(x)")
    return HiddenLayer(
        name=layer.name,
        producer=layer.module,
        norm=path.norm,
        activation=ACTIVATION_NAMES.get(path.expression, name if name.isidentifier() else path.expression),
        initializer=getattr(layer.module, "initializer", None),
        separable=not reasons,
        reason="; ".join(reasons),
        consumers=[(module, consumers[module]) for module in dict.fromkeys(use.module for use in layer.uses)],
        _captures=captures,
        _program=trace.operations,
    )


def _reasons(trace: Tracer, layer: Layer, path: Path, shared: set[int]) -> Iterator[str]:
    """Why the units of `layer` cannot be replaced one by one."""
    if layer.opaque:
        yield layer.opaque
    modules = dict.fromkeys((layer.module, path.norm, *(use.module for use in layer.uses)))
    for module in (module for module in modules if module is not None):
        if trace.calls[module] > 1:
            yield f"{trace.name(module)} is used {trace.calls[module]} times in a forward pass"
        if any(id(parameter) in shared for parameter in module.parameters()):
            yield f"a parameter of {trace.name(module)} is used elsewhere as well"
        computed = module_kind(module) == "layer" and module._parameters.get("weight") is None
        if computed or hasattr(module, "parametrizations"):
            yield f"the weight of {trace.name(module)} is computed from other parameters"
    yield from (use.reason for use in layer.uses if use.reason)
    yield from (why for _, why in layer.objections)
    formulas = {(use.path.expression, use.path.norm) for use in layer.uses if not use.reason}
    if len(formulas) > 1:
        yield f"it is read after different nonlinearities or norms: {', '.join(sorted(f for f, _ in formulas))}"
    if layer.in_output and not layer.before_weights:
        yield "it is part of the model's output as well"


def _captures(trace: Tracer, layer: Layer, path: Path) -> tuple[_Capture, _Capture] | None:
    """How to get hold of the tensors before and after the nonlinearity; None where one does not hold every unit."""
    pre = path.post if path.expression == "x" else path.pre
    halves = 2 if ACTIVATION_NAMES.get(path.expression) in DOUBLING else 1
    before = _capture(trace, layer, pre, 1, repeats=False)
    after = _capture(trace, layer, path.post, halves, repeats="cat(" in path.expression)
    return None if before is None or after is None else (before, after)


def _capture(trace: Tracer, layer: Layer, place: Place, halves: int, repeats: bool) -> _Capture | None:
    """Where `place` is and how its units are brought to dimension 1.

    `repeats`: units may stand there several times over (0 .. n - 1, 0 .. n - 1, ...). `halves`: so many times they will
    where they have to be gathered; their positions follow in dimension 2.
    """
    ids = place.ids if place.ids.ndim > 1 else place.ids[None]
    samples = ids.reshape(ids.shape[0], -1)
    if place.operation < 0 or not layer.complete(ids) or not bool((samples == samples[:1]).all()):
        return None
    capture = _Capture(
        place.operation, place.output, trace.written_after(place), tuple(place.ids.shape[1:]), None, False
    )
    channels = along(ids, 1)
    if channels is not None:
        index = layer.mine(channels).nonzero().squeeze(1)
        in_order = torch.arange(len(index), device=ids.device) % layer.units
        as_it_is = (repeats or len(index) == layer.units) and ids is place.ids
        if as_it_is and torch.equal(channels[index] - layer.first, in_order.float()):
            return capture if len(index) == len(channels) else replace(capture, index=index)
    index = layer.mine(samples[0]).nonzero().squeeze(1)
    index = index[samples[0][index].argsort(stable=True)].view(layer.units, halves, -1)
    return replace(capture, index=index.transpose(0, 1).flatten(0, 1), flattened=True)
