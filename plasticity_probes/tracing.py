"""Follows units through one forward pass: which unit each element of each tensor belongs to.

Every tensor that depends on a hidden layer carries a map of the same shape with the number of the unit behind each
element. The map of an operation's result comes from the operation itself, run on the maps of its inputs, where it only
moves elements (view, permute, slice, cat, pad, ...), and from a rule where it works on each element or pools over
positions. Anything else makes the units *lost*, with the reason. Nothing is inferred from names or shapes of layers.

Operations are seen below autograd, as ATen operators: there `F.relu(x)`, `x.relu()` and `nn.ReLU()(x)` are one and the
same. Tensors are known by the memory they lie in, so that views and writes in place are noticed.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Operators by what they do to units: names without namespace, overload and in-place underscore.
FRESH = _names(
    """empty_like zeros_like ones_like full_like rand_like randn_like new_empty new_zeros new_ones new_full"""
)
SAME = _names("alias detach clone lift_fresh positive _to_copy")
MOVED = SAME | _names(
    """view _unsafe_view t transpose permute squeeze unsqueeze expand slice select split unsafe_split split_with_sizes
    unbind unfold cat stack repeat flip roll index gather index_select pixel_shuffle pixel_unshuffle channel_shuffle
    constant_pad_nd reflection_pad1d reflection_pad2d replication_pad1d replication_pad2d upsample_nearest1d
    upsample_nearest2d copy"""
)
LINEAR = _names("add sub rsub mul div native_dropout")
ELEMENTWISE = LINEAR | _names(
    """relu leaky_relu _prelu_kernel rrelu_with_noise elu celu gelu silu mish softplus softshrink hardshrink hardtanh
    hardswish hardsigmoid threshold sigmoid log_sigmoid_forward tanh sin cos atan erf exp expm1 log log1p sqrt rsqrt
    reciprocal pow abs sign neg clamp clamp_min clamp_max maximum minimum gt ge lt le eq ne"""
)
POOLED = _names(
    """max_pool2d_with_indices max_pool3d_with_indices avg_pool1d avg_pool2d avg_pool3d _adaptive_avg_pool2d
    _adaptive_avg_pool3d adaptive_max_pool2d adaptive_max_pool3d"""
)
REDUCED = _names("mean sum amax amin max min")
NORMALIZED = _names("native_layer_norm _fused_rms_norm")
SPELLINGS = {"_prelu_kernel": "prelu", "rrelu_with_noise": "rrelu", "log_sigmoid_forward": "logsigmoid"}


class NotFollowed(Exception):
    """After this an element belongs to no single unit; the message says why."""


@dataclass(frozen=True, eq=False)
class Place:
    """A tensor of a forward pass: output `output` of operation number `operation`, its memory, its map of units."""

    operation: int
    output: int
    pointer: int
    ids: Tensor


@dataclass(frozen=True, eq=False)
class Path:
    """How a layer's units came to a tensor.

    `expression` is what was done to the preactivation x: "x", "relu(x)", "cat(relu(x), relu(neg(x)))". Moving, pooling,
    dropout, casts, and scaling and shifting by constants do not show in it. `pre` is the last tensor before the
    first nonlinear operation that still holds every unit, `post` the result of the last one.
    """

    expression: str
    norm: nn.Module | None
    pre: Place
    post: Place


Lost = dict[int, tuple[Path, str]]


@dataclass(frozen=True, eq=False)
class Tag:
    """What is known of a tensor that depends on units or parameters. Layers go by their number."""

    ids: Tensor | None = None  # float32, the tensor's shape: numbers of units, -1 for none; None for none anywhere
    paths: dict[int, Path] = field(default_factory=dict)  # the layers whose units `ids` names
    lost: Lost = field(default_factory=dict)  # the layers whose units are in here somewhere, and why no one knows where
    weights: bool = False  # made from parameters alone


@dataclass(eq=False)
class Layer:
    """A module with weights as the forward pass met it. Its units have the numbers first .. first + units - 1."""

    name: str
    module: nn.Module
    first: int
    units: int
    opaque: str  # why its units cannot be told apart, "" where they can
    uses: list["Use"] = field(default_factory=list)
    objections: list[tuple[Path, str]] = field(default_factory=list)
    before_weights: bool = False  # flows into weights that belong to no known module
    in_output: bool = False

    def mine(self, ids: Tensor) -> Tensor:
        """Where `ids` names units of this layer."""
        return (ids >= self.first) & (ids < self.first + self.units)

    def complete(self, ids: Tensor) -> bool:
        """Whether each sample of a tensor with this map holds every unit equally often."""
        sample = ids[0] if ids.ndim > 1 else ids
        counts = torch.bincount(sample[self.mine(sample)].long() - self.first, minlength=self.units)
        return bool((counts == counts[0]).all() & (counts[0] > 0))


@dataclass(frozen=True, eq=False)
class Use:
    """A module read a layer's units: `owner` [input columns] numbers them from 0, `reason` says what is wrong or ""."""

    module: nn.Module
    owner: Tensor
    path: Path
    reason: str


@dataclass(eq=False)
class _Storage:
    """The tags of the tensors that lie in one piece of memory, by offset, shape, strides and dtype."""

    memory: Any  # kept, so that the address is not given away again
    tags: dict[tuple, tuple[Tag, int]] = field(default_factory=dict)
    written: int = -1


@dataclass(frozen=True, eq=False)
class Call:
    """One operation: `name` without overload and in-place underscore, `number` in the forward pass."""

    func: Any
    name: str
    args: tuple
    kwargs: dict
    outs: list[Tensor]
    number: int


def tensors(tree: Any, depth: int = 3) -> Iterator[Tensor]:
    """Every tensor in nested lists, tuples and dicts, and in the attributes of other objects."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, (list, tuple, dict)):
        for item in tree.values() if isinstance(tree, dict) else tree:
            yield from tensors(item, depth)
    elif depth and hasattr(tree, "__dict__") and not isinstance(tree, (type, nn.Module)):
        yield from tensors(vars(tree), depth - 1)


def along(ids: Tensor, dim: int) -> Tensor | None:
    """The numbers along dimension `dim`, if all other dimensions agree on them."""
    if not -ids.ndim <= dim < ids.ndim:
        return None
    rows = ids.movedim(dim, -1).reshape(-1, ids.shape[dim])
    return rows[0] if len(rows) and bool((rows == rows[:1]).all()) else None


@cache
def _is_composite(func: Any) -> bool:
    """Whether `func` is made of others. Arrives whole only where the model itself enters inference mode."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")


class Recorder(TorchDispatchMode):
    """Numbers the operations of a forward pass and calls `seen` after each; while `paused` it looks away."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Any] = []
        self.paused = False

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # compiled code never runs under it; the guard would import the compiler and cost at every call

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if self.paused:
            return func(*args, **kwargs)
        if _is_composite(func):
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        result = func(*args, **kwargs)
        self.operations.append(func)
        self.seen(func, args, kwargs, result)
        return result

    def seen(self, func: Any, args: tuple, kwargs: dict, result: Any) -> None:
        """Operation len(self.operations) - 1 gave `result`."""
        raise NotImplementedError


def _key(tensor: Tensor) -> tuple:
    """Two tensors with the same key are the same values: address of the memory, offset, shape, strides, dtype."""
    if torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        raise NotImplementedError("forward: units cannot be followed through torch.func (vmap, grad, ...)")
    followed = tensor.layout is torch.strided and tensor.device.type != "meta"
    pointer = tensor.untyped_storage().data_ptr() if followed else 0
    return pointer, tensor.storage_offset() if followed else 0, tuple(tensor.shape), tensor.stride(), tensor.dtype


class Follower(Recorder):
    """Keeps a `Tag` for every tensor that depends on `layers` or on `parameters` while a model runs under it.

    While `inside` is positive, operations are part of a module that is taken as a whole, and not followed.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        super().__init__()
        self.layers: list[Layer] = []
        self.inside = 0
        self.read_directly: set[int] = set()  # ids of parameters that other code than their module has used
        self._storages: dict[int, _Storage] = {}
        self._places: dict[tuple, tuple[int, int]] = {}
        self._parameters: dict[tuple, int] = {}
        for parameter in parameters:
            self._parameters[_key(parameter)] = id(parameter)
            self.set(parameter, Tag(weights=True))

    def tag(self, tensor: Tensor) -> Tag | None:
        """What is known of `tensor`; None where it depends on no unit and no parameter."""
        key = _key(tensor)
        storage = self._storages.get(key[0])
        if storage is None:
            return None
        tag, time = storage.tags.get(key, (None, -1))
        if tag is not None and time >= storage.written:
            return tag
        others = [other for other, _ in storage.tags.values()]
        lost = lose(others, "its memory is written in place or seen through a view that cannot be followed")
        return Tag(lost=lost, weights=not lost)

    def set(self, tensor: Tensor, tag: Tag) -> None:
        """From now on `tag` is what is known of `tensor`."""
        key = _key(tensor)
        if not key[0] and tensor.numel():
            for number, (path, why) in lose([tag], "goes into a tensor that cannot be followed").items():
                self.layers[number].objections.append((path, why))
        elif tensor.numel():
            storage = self._storages.setdefault(key[0], _Storage(tensor.untyped_storage()))
            storage.tags[key] = tag, len(self.operations)

    def place(self, tensor: Tensor, ids: Tensor) -> Place:
        """Where `tensor` came from; operation -1 where no operation made it."""
        return Place(*self._places.get(_key(tensor), (-1, 0)), _key(tensor)[0], ids)

    def written_after(self, place: Place) -> bool:
        """Whether the memory of that tensor was written again later."""
        storage = self._storages.get(place.pointer)
        return storage is not None and storage.written > place.operation + 1

    def names(self, tags: Iterable[Tag]) -> str:
        """The layers in `tags`, for messages."""
        numbers = sorted({number for tag in tags for number in (*tag.paths, *tag.lost)})
        return ", ".join(f"'{self.layers[number].name}'" for number in numbers)

    def seen(self, func: Any, args: tuple, kwargs: dict, result: Any) -> None:
        outs = list(tensors(result))
        for output, tensor in enumerate(outs):
            self._places[_key(tensor)] = len(self.operations) - 1, output
        if not self.inside:
            name = func._schema.name.partition("::")[2]
            name = name.removesuffix("_") if func._schema.is_mutable else name
            self._follow(Call(func, name, args, kwargs, outs, len(self.operations) - 1))

    def _follow(self, call: Call) -> None:
        """Tag the results of an operation."""
        inputs = list(tensors((call.args, call.kwargs)))
        known = [tag for tensor in inputs if (tag := self.tag(tensor)) is not None]
        if not known or call.name in FRESH:
            return
        self.read_directly.update(self._parameters[_key(x)] for x in inputs if _key(x) in self._parameters)
        tags = [Tag(weights=True)] * len(call.outs)
        if not all(tag.weights for tag in known):
            try:
                if call.name not in RULES or "out" in call.kwargs:
                    raise NotFollowed(f"aten.{call.name} is not understood")
                tags = RULES[call.name](self, call)
            except NotFollowed as why:
                tags = [Tag(lost=lose(known, str(why)))] * len(call.outs)
                self._object(call, known, lose(known, str(why)))
        if call.func._schema.is_mutable:
            for argument, value in zip(call.func._schema.arguments, call.args, strict=False):
                if argument.is_write and isinstance(value, Tensor) and _key(value)[0]:
                    self._storages.setdefault(_key(value)[0], _Storage(value.untyped_storage()))
                    self._storages[_key(value)[0]].written = len(self.operations)
        for tensor, tag in zip(call.outs, tags, strict=True):
            self.set(tensor, tag)

    def _object(self, call: Call, known: list[Tag], lost: Lost) -> None:
        """Remember what a lost tensor may never show again: values read by Python, weights of no known module."""
        weights = any(tag.weights for tag in known) and call.name not in ELEMENTWISE
        for number, (path, why) in lost.items():
            self.layers[number].before_weights |= weights
            if weights or not call.outs:
                end = "meets weights outside of a Linear or convolution" if weights else "is read into Python"
                self.layers[number].objections.append((path, f"{end} ({why})"))


def lose(tags: list[Tag], why: str) -> Lost:
    """All layers in `tags` as lost: for the reason they already were, else because of `why`; by their shortest path."""
    found = [(number, path, why) for tag in tags for number, path in tag.paths.items()]
    found += [(number, *before) for tag in tags for number, before in tag.lost.items()]
    lost: Lost = {}
    for number, path, reason in found:
        shortest = min(path, lost.get(number, (path,))[0], key=lambda path: len(path.expression))
        lost[number] = shortest, reason
    return lost


def stepped(trace: Follower, number: int, path: Path, out: Tensor, ids: Tensor, expression: str) -> Path:
    """The path to `out`, one operation further."""
    layer = trace.layers[number]
    if expression != path.expression:
        return replace(path, expression=expression, post=trace.place(out, ids))
    if expression == "x":
        return replace(path, pre=trace.place(out, ids)) if layer.complete(ids) else path
    parts_met_again = not layer.complete(path.post.ids) and layer.complete(ids)
    return replace(path, post=trace.place(out, ids)) if parts_met_again else path


def _same_for_all(trace: Follower, call: Call, tag: Tag, maps: list[Tensor]) -> list[Tag]:
    """Tags with the maps `maps` after an operation that does not show in the expression."""
    tags = []
    for out, ids in zip(call.outs, maps, strict=True):
        present = {n: path for n, path in tag.paths.items() if bool(trace.layers[n].mine(ids).any())}
        paths = {n: stepped(trace, n, path, out, ids, path.expression) for n, path in present.items()}
        tags.append(Tag(ids, paths, tag.lost))
    return tags


def _units(trace: Follower, tensor: Tensor) -> Tag:
    """What is known of the units in `tensor`, with a map in any case."""
    tag = trace.tag(tensor) or Tag()
    ids = torch.full(tensor.shape, -1.0, dtype=torch.float32, device=tensor.device) if tag.ids is None else tag.ids
    return Tag(ids, tag.paths, tag.lost)


def _moved(trace: Follower, call: Call) -> list[Tag]:
    """Elements change places, are copied or left out: the maps go the same way."""
    if call.name == "copy":  # copy_(destination, source)
        tag, out = _units(trace, call.args[1]), call.outs[0]
        return _same_for_all(trace, call, tag, [tag.ids.to(out.device).expand(out.shape)])
    source, *rest = call.args
    if call.func._schema.is_mutable or any(trace.tag(tensor) for tensor in tensors((rest, call.kwargs))):
        raise NotFollowed(f"aten.{call.name} is not understood in this form")
    if isinstance(source, (list, tuple)):
        return _concatenated(trace, call, [_units(trace, tensor) for tensor in source])
    tag = _units(trace, source)
    try:
        return _same_for_all(trace, call, tag, _moved_maps(call, tag.ids, rest))
    except (RuntimeError, TypeError) as error:  # an operation that is not made for maps, which are float32
        raise NotFollowed(f"aten.{call.name} cannot be followed") from error


def _moved_maps(call: Call, ids: Tensor, rest: list[Any]) -> list[Tensor]:
    if call.name in SAME:
        return [ids.to(call.outs[0].device)]
    if call.name in ("view", "_unsafe_view"):
        return [ids.reshape(call.outs[0].shape)]
    if call.name == "constant_pad_nd":
        return [_padded(call, ids)]
    return list(tensors(call.func(ids, *rest, **call.kwargs)))


def _padded(call: Call, ids: Tensor) -> Tensor:
    """Zeros around a unit's positions are a part of it; other padding belongs to no unit."""
    pads, shape = call.args[1], call.outs[0].shape
    dims = sorted({ids.ndim - 1 - i // 2 for i, pad in enumerate(pads) if pad})
    inside = ids.amin(dims, keepdim=True) if dims else ids
    if any(call.args[2:]) or not bool((ids == inside).all()):
        return call.func(ids, pads, -1.0)
    return inside.expand(shape)


def _concatenated(trace: Follower, call: Call, tags: list[Tag]) -> list[Tag]:
    """cat and stack. Parts of one layer that went through different operations show in the expression."""
    ids, paths = call.func([tag.ids for tag in tags], *call.args[1:], **call.kwargs), {}
    for number, parts in _by_layer(tags).items():
        expressions = [part.expression for part in parts]
        expression = expressions[0] if len(set(expressions)) == 1 else f"cat({', '.join(expressions)})"
        paths[number] = stepped(trace, number, parts[0], call.outs[0], ids, expression)
    return [Tag(ids, paths, {number: lost for tag in tags for number, lost in tag.lost.items()})]


def _by_layer(tags: list[Tag]) -> dict[int, list[Path]]:
    paths: dict[int, list[Path]] = {}
    for tag in tags:
        for number, path in tag.paths.items():
            paths.setdefault(number, []).append(path)
    return paths


def _spelled(call: Call) -> str:
    """The operation's name in an expression, "" where it only scales or shifts by constants."""
    low = call.kwargs.get("min", call.args[1] if len(call.args) > 1 else None)
    if call.name in ("clamp", "clamp_min") and low == 0 and len(call.args) < 3 and call.kwargs.get("max") is None:
        return "relu"
    if call.name == "hardtanh" and call.args[1:] == (0.0, 6.0):
        return "relu6"
    if call.name in ("mul", "div") and any(isinstance(value, (int, float)) and value < 0 for value in call.args):
        return "neg"
    return "" if call.name in LINEAR else SPELLINGS.get(call.name, call.name)


def _elementwise(trace: Follower, call: Call) -> list[Tag]:
    """Each element of the result depends on one element of each operand: fine while these belong to one unit."""
    operands = list(tensors((call.args, call.kwargs)))
    if call.name != "_prelu_kernel" and any(x.numel() > 1 and (trace.tag(x) or Tag()).weights for x in operands):
        raise NotFollowed(f"aten.{call.name} with a parameter that belongs neither to the layer nor to its norm")
    tags = [tag for x in operands if (tag := trace.tag(x)) is not None and not tag.weights]
    ids = torch.full(call.outs[0].shape, -1.0, dtype=torch.float32, device=call.outs[0].device)
    for tag in tags:
        other = ids if tag.ids is None else tag.ids.to(ids.device).broadcast_to(ids.shape)
        if (tag.lost and len(tags) > 1) or bool(((ids >= 0) & (other >= 0) & (ids != other)).any()):
            raise NotFollowed(f"aten.{call.name} joins different units, of {trace.names(tags)}")
        ids = torch.maximum(ids, other)
    name = "div" if call.name == "div" and trace.tag(call.args[0]) is None else _spelled(call)
    paths = {}
    for number, parts in _by_layer(tags).items():
        inner = ", ".join(part.expression for part in parts)
        expression = f"{name or call.name}({inner})" if name or len(parts) > 1 else inner
        paths[number] = stepped(trace, number, parts[0], call.outs[0], ids, expression)
    return [Tag(ids, paths, tags[0].lost if len(tags) == 1 else {})] * len(call.outs)


def _over(trace: Follower, call: Call, dims: list[int]) -> list[Tag]:
    """The tags after something that takes all elements along `dims` together: fine while these belong to one unit."""
    tag = _units(trace, call.args[0])
    low, high = tag.ids.amin(dims, keepdim=True), tag.ids.amax(dims, keepdim=True)
    if not torch.equal(low, high):
        raise NotFollowed(f"aten.{call.name} mixes units of {trace.names([tag])}")
    shape = call.outs[0].shape
    ids = high.expand(shape) if len(shape) == high.ndim else high.reshape(shape)
    return _same_for_all(trace, call, tag, [ids] * len(call.outs))


def _pooled(trace: Follower, call: Call) -> list[Tag]:
    """Pooling over the last one, two or three dimensions, as the name says."""
    size = int(call.name.partition("pool")[2][0])
    return _over(trace, call, list(range(-size, 0)))


def _reduced(trace: Follower, call: Call) -> list[Tag]:
    """mean, sum, max, ... over given dimensions, or all."""
    dims = call.args[1] if len(call.args) > 1 else call.kwargs.get("dim")
    if isinstance(dims, int):
        dims = [dims]
    return _over(trace, call, list(dims) if dims else list(range(call.args[0].ndim)))


def _normalized(trace: Follower, call: Call) -> list[Tag]:
    """A functional norm without gains; its further results are the statistics, which mix the units."""
    tag = _units(trace, call.args[0])
    if any(argument is not None for argument in call.args[2:4] if not isinstance(argument, float)):
        raise NotFollowed(f"aten.{call.name} with gains that belong to no norm module")
    normed = normalize(trace, tag, call.outs[0], -len(call.args[1]), None, f"aten.{call.name}")
    return [normed] + [Tag(lost=lose([tag], f"statistics of aten.{call.name}"))] * (len(call.outs) - 1)


def normalize(trace: Follower, tag: Tag, out: Tensor, dim: int, norm: nn.Module | None, what: str) -> Tag:
    """The tag after a norm with its gains along dimension `dim`, if it stands between one layer and its nonlinearity.

    Anywhere else a unit's value reaches every column, or the gain of a column would outlive the unit: `NotFollowed`.
    """
    if tag.lost or len(tag.paths) != 1:
        raise NotFollowed(f"{what} normalises units of several layers together")
    ((number, path),) = tag.paths.items()
    if path.expression != "x":
        raise NotFollowed(f"{what} normalises after the nonlinearity, where its statistics tie a column to other units")
    if path.norm is not None:
        raise NotFollowed(f"{what} is a second norm")
    layer, columns = trace.layers[number], along(tag.ids, dim)
    own = torch.arange(layer.first, layer.first + layer.units, device=tag.ids.device)
    if columns is None or not torch.equal(columns, own.float()):
        raise NotFollowed(f"{what} has no gain for each unit")
    place = trace.place(out, tag.ids)
    return Tag(tag.ids, {number: Path("x", norm, place, place)})


RULES: dict[str, Callable[[Follower, Call], list[Tag]]] = {
    **dict.fromkeys(MOVED, _moved),
    **dict.fromkeys(ELEMENTWISE, _elementwise),
    **dict.fromkeys(POOLED, _pooled),
    **dict.fromkeys(REDUCED, _reduced),
    **dict.fromkeys(NORMALIZED, _normalized),
}
