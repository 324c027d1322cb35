"""The unit graph: which hidden layers a model has, and which input columns of which modules belong to which unit.

    layers = hidden_layers(model, observations)
    for layer in layers:
        for consumer, owner in layer.consumers:
            consumer.weight[:, dead[owner] & (owner >= 0)] = 0  # cuts off the units in the bool mask `dead` [units]

One forward pass is followed operation by operation (see tracing.py). What is not understood is reported as
`separable=False` with the reason. The model, its buffers and the random state are afterwards what they were.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_map

from plasticity_probes.tracing import (
    Follower,
    Layer,
    NotFollowed,
    Path,
    Place,
    Recorder,
    Tag,
    Use,
    along,
    lose,
    normalize,
    stepped,
    tensors,
)

Forward = Callable[[nn.Module, Any], Any]

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, _NormBase)
TABLES = (nn.Embedding, nn.EmbeddingBag)  # what they give is input like any other
ACTIVATIONS = {
    "x": "identity",
    "neg(x)": "identity",
    "cat(relu(x), relu(neg(x)))": "crelu",
    "relu(cat(x, neg(x)))": "crelu",
    "mul(x, sigmoid(x))": "silu",
    "div(x, abs(x))": "softsign",
    "cat(sin(x), cos(x))": "fourier",
}
DOUBLED = ("crelu", "fourier")  # unit i is in columns i and i + n


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
        return _units_of(self.producer)


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


def hidden_layers(model: nn.Module, example_input: Any, forward: Forward | None = None) -> list[HiddenLayer]:
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
    trace = _Tracer(model)
    try:
        trace.attach()
        trace.finish(_run(model, example_input, forward, trace))
    finally:
        trace.detach()
    owners: dict[int, int] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    shared = {parameter for parameter, count in owners.items() if count > 1} | trace.read_directly
    found = (_describe(trace, layer, shared) for layer in trace.layers)
    return [layer for layer in found if layer is not None]


def activations(
    model: nn.Module, batch: Any, forward: Forward | None = None, layers: list[HiddenLayer] | None = None
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
    model: nn.Module, batch: Any, forward: Forward | None, layers: list[HiddenLayer]
) -> dict[str, LayerActivations] | None:
    """The activations, or None if the forward pass was not the one that `layers` were traced in."""
    layers = [layer for layer in layers if layer._captures is not None]
    if not layers:
        return {}
    captures = [capture for layer in layers for capture in layer._captures]
    replay = _Replay(captures)
    _run(model, batch, forward, replay)
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


def _run(model: nn.Module, example_input: Any, forward: Forward | None, mode: Recorder) -> Any:
    """The model's output on a copy of the input under `mode`, everything else left as it is."""
    with _undisturbed(model, example_input):
        inputs = tree_map(lambda leaf: leaf.detach().clone() if isinstance(leaf, Tensor) else leaf, example_input)
        with mode:
            return model(inputs) if forward is None else forward(model, inputs)


@contextmanager
def _undisturbed(model: nn.Module, example_input: Any) -> Iterator[None]:
    """Whatever the model does inside to its buffers, its attributes and the random state is undone."""
    everything = (*model.parameters(), *model.buffers(), *tensors(example_input))
    devices = {tensor.device for tensor in everything if tensor.device.type == "cuda"}
    modules = [module for module in model.modules() if not isinstance(module, torch.jit.ScriptModule)]
    kept = [(module, dict(vars(module)), dict(module._buffers)) for module in modules]
    fast_attention = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.random.fork_rng(devices=list(devices)))
        if "torch._dynamo" in sys.modules:  # compiled parts run as they were written
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        try:
            torch.backends.mha.set_fastpath_enabled(False)  # it reads the weights of modules without calling them
            copies = {id(buffer): buffer.detach().clone() for buffer in model.buffers()}
            for module, _, buffers in kept:
                module._buffers.update({name: copies.get(id(buffer)) for name, buffer in buffers.items()})
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast_attention)
            for module, attributes, buffers in kept:
                _put_back(vars(module), attributes)
                _put_back(module._buffers, buffers)


def _put_back(now: dict[str, Any], before: dict[str, Any]) -> None:
    for name in [name for name in now if name not in before]:
        del now[name]
    for name, value in before.items():
        if name not in now or now[name] is not value:
            now[name] = value


def _kind(module: nn.Module) -> str:
    """layer, norm, scale, opaque (weights used in a way that is not known here), or "": followed operation by
    operation."""
    if isinstance(module, (torch.jit.ScriptModule, *TABLES)):
        return ""
    declared = getattr(type(module), "traced_as", "")
    if declared == "scale" or (declared == "norm" and isinstance(module, NORMS)):
        return declared
    own_forward = getattr(type(module).forward, "__module__", None) or ""  # None where a class was made by exec or fx
    if "forward" not in vars(module) and own_forward.startswith("torch.nn."):
        if isinstance(module, (nn.Linear, *CONVOLUTIONS)):
            return "layer"
        if isinstance(module, NORMS):
            return "norm"
    leaf = all(name == "parametrizations" for name, _ in module.named_children())
    matrix = any(parameter.ndim > 1 for parameter in module.parameters())
    return "opaque" if isinstance(module, nn.MultiheadAttention) or (leaf and matrix) else ""


def _why_opaque(module: nn.Module) -> str:
    if isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
        return "is recurrent"
    if isinstance(module, nn.MultiheadAttention):
        return "is attention"
    return "is not a plain Linear or convolution"


def _units_of(module: nn.Module) -> int:
    for name in ("out_features", "out_channels", "hidden_size", "embed_dim"):
        if isinstance(getattr(module, name, None), int):
            return getattr(module, name)
    return next(parameter for parameter in module.parameters() if parameter.ndim > 1).shape[0]


class _Tracer(Follower):
    """Collects `layers` while the model runs under it, between `attach` and `detach`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model.parameters())
        self.calls: dict[nn.Module, int] = {}
        self._names = {module: name for name, module in model.named_modules()}
        self._numbers: dict[nn.Module, int] = {}
        self._read: list[tuple[Tensor, Tag]] = []
        self._handles: list[Any] = []

    def attach(self) -> None:
        """Put temporary hooks on the modules that are taken as a whole.

        Last before and first after the module, so that hooks of other people are followed like any other code.
        """
        for module in self._names:
            if _kind(module):
                self._handles.append(module.register_forward_pre_hook(self._enter, with_kwargs=True))
                self._handles.append(module.register_forward_hook(self._leave, prepend=True))

    def detach(self) -> None:
        """Take the hooks off again."""
        for handle in self._handles:
            handle.remove()

    def finish(self, output: Any) -> None:
        """Note which layers `output` holds."""
        for tensor in tensors(output):
            tag = self.tag(tensor) or Tag()
            for number in (*tag.paths, *tag.lost):
                self.layers[number].in_output = True

    def name(self, module: nn.Module) -> str:
        """With its type, for messages."""
        return f"'{self._names.get(module, '')}' ({type(module).__name__})"

    def _enter(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        if self.inside == 0:
            found = [(tensor, self.tag(tensor)) for tensor in tensors((args, kwargs))]
            self._read = [(tensor, tag) for tensor, tag in found if tag is not None and (tag.paths or tag.lost)]
        self.inside += 1

    def _leave(self, module: nn.Module, args: tuple, output: Any) -> None:
        self.inside -= 1
        if self.inside:
            return
        self.calls[module] = self.calls.get(module, 0) + 1
        self.paused = True
        try:
            if _kind(module) == "norm":
                self._normed(module, output)
            elif _kind(module) == "scale":
                self._scaled(output)
            else:
                for tensor, tag in self._read:
                    self._consumed(module, tensor, tag)
                self._produced(module, output)
        finally:
            self.paused = False

    def _normed(self, norm: nn.Module, output: Tensor) -> None:
        for _, tag in self._read:
            shape = None if hasattr(norm, "traced_as") else getattr(norm, "normalized_shape", None)
            try:
                tag = normalize(self, tag, output, -len(shape) if shape else 1, norm, self.name(norm))
            except NotFollowed as why:
                tag = Tag(lost=lose([tag], str(why)))
            self.set(output, tag)

    def _scaled(self, output: Tensor) -> None:
        """Every element stays where it was, and does not show in the expression."""
        for _, tag in self._read:
            if tag.ids is not None and tag.ids.shape == output.shape:
                paths = {n: stepped(self, n, path, output, tag.ids, path.expression) for n, path in tag.paths.items()}
                self.set(output, replace(tag, paths=paths))
            else:
                self.set(output, Tag(lost=lose([tag], "a module that scales gives another shape")))

    def _consumed(self, module: nn.Module, tensor: Tensor, tag: Tag) -> None:
        """Note whose units the columns of `module`'s input are."""
        dim = -1 - len(module.kernel_size) if isinstance(module, CONVOLUTIONS) else -1
        columns = along(tag.ids, dim) if tag.paths else None
        reason = "" if columns is not None else f"a column that {self.name(module)} reads belongs to no single unit"
        if _kind(module) == "opaque":
            columns, reason = None, f"feeds {self.name(module)}, which {_why_opaque(module)}"
        elif getattr(module, "groups", 1) > 1:
            reason = f"feeds {self.name(module)}, a grouped convolution, whose weight has no column for each channel"
        reasons = {n: (path, reason) for n, path in tag.paths.items()}
        for number, (path, why) in (*reasons.items(), *tag.lost.items()):
            layer = self.layers[number]
            owner = torch.full((tensor.shape[dim],), -1, device=tensor.device)
            if columns is not None and number in tag.paths:
                owner = torch.where(layer.mine(columns), columns.long() - layer.first, -1)
            layer.uses.append(Use(module, owner, path, why))

    def _produced(self, module: nn.Module, output: Any) -> None:
        """Give `module`'s output a fresh tag: its columns are its own units."""
        number = self._numbers.setdefault(module, len(self.layers))
        opaque = f"{type(module).__name__} {_why_opaque(module)}" if _kind(module) == "opaque" else ""
        if number == len(self.layers):
            first = sum(layer.units for layer in self.layers)
            self.layers.append(Layer(self._names.get(module, ""), module, first, _units_of(module), opaque))
        layer = self.layers[number]
        for tensor in tensors(output):
            ids = torch.full(tensor.shape, -1.0, dtype=torch.float32, device=tensor.device)
            if not opaque:
                after = len(module.kernel_size) if isinstance(module, CONVOLUTIONS) else 0
                own = torch.arange(layer.first, layer.first + layer.units, device=tensor.device).float()
                ids = own.view(-1, *[1] * after).expand(tensor.shape)
            place = self.place(tensor, ids)
            path = Path("x", None, place, place)
            self.set(tensor, Tag(lost={number: (path, opaque)}) if opaque else Tag(ids, {number: path}))


def _describe(trace: _Tracer, layer: Layer, shared: set[int]) -> HiddenLayer | None:
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
        activation=ACTIVATIONS.get(path.expression, name if name.isidentifier() else path.expression),
        initializer=getattr(layer.module, "initializer", None),
        separable=not reasons,
        reason="; ".join(reasons),
        consumers=[(module, consumers[module]) for module in dict.fromkeys(use.module for use in layer.uses)],
        _captures=captures,
        _program=trace.operations,
    )


def _reasons(trace: _Tracer, layer: Layer, path: Path, shared: set[int]) -> Iterator[str]:
    """Why the units of `layer` cannot be replaced one by one."""
    if layer.opaque:
        yield layer.opaque
    modules = dict.fromkeys((layer.module, path.norm, *(use.module for use in layer.uses)))
    for module in (module for module in modules if module is not None):
        if trace.calls[module] > 1:
            yield f"{trace.name(module)} is used {trace.calls[module]} times in a forward pass"
        if any(id(parameter) in shared for parameter in module.parameters()):
            yield f"a parameter of {trace.name(module)} is used elsewhere as well"
        computed = _kind(module) == "layer" and module._parameters.get("weight") is None
        if computed or hasattr(module, "parametrizations"):
            yield f"the weight of {trace.name(module)} is computed from other parameters"
    yield from (use.reason for use in layer.uses if use.reason)
    yield from (why for _, why in layer.objections)
    formulas = {(use.path.expression, use.path.norm) for use in layer.uses if not use.reason}
    if len(formulas) > 1:
        yield f"it is read after different nonlinearities or norms: {', '.join(sorted(f for f, _ in formulas))}"
    if layer.in_output and not layer.before_weights:
        yield "it is part of the model's output as well"


def _captures(trace: _Tracer, layer: Layer, path: Path) -> tuple[_Capture, _Capture] | None:
    """How to get hold of the tensors before and after the nonlinearity; None where one does not hold every unit."""
    pre = path.post if path.expression == "x" else path.pre
    halves = 2 if ACTIVATIONS.get(path.expression) in DOUBLED else 1
    before = _capture(trace, layer, pre, 1, repeats=False)
    after = _capture(trace, layer, path.post, halves, repeats="cat(" in path.expression)
    return None if before is None or after is None else (before, after)


def _capture(trace: _Tracer, layer: Layer, place: Place, halves: int, repeats: bool) -> _Capture | None:
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
