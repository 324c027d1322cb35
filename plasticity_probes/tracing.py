"""Follows units through one forward pass: which unit each element of each tensor belongs to.

Every tensor that depends on a hidden layer carries a map of the same shape with the number of the unit behind each
element. The map of an operation's result comes from the operation itself, run on the maps of its inputs, where it only
moves elements (view, permute, slice, cat, pad, ...), and from a rule where it works on each element or pools over
positions. Anything else makes the units *lost*, with the reason. Nothing is inferred from names or shapes of layers.

Operations are seen below autograd, as ATen operators: there `F.relu(x)`, `x.relu()` and `nn.ReLU()(x)` are one and the
same. Tensors are known by the memory they lie in, so that views and writes in place are noticed.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
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

    `rules` say, by operation, what becomes of the units. While `inside` is positive, operations are part of a module
    that is taken as a whole, and not followed.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], rules: "Mapping[str, Rule]") -> None:
        super().__init__()
        self.rules = rules
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
                if call.name not in self.rules or "out" in call.kwargs:
                    raise NotFollowed(f"aten.{call.name} is not understood")
                tags = self.rules[call.name](self, call)
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


Rule = Callable[[Follower, Call], list[Tag]]
"""The tags of an operation's results; `NotFollowed` where the units cannot be told apart any more."""


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
