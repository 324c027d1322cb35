"""What operations do to units: the rules by which `tracing` follows them."""

from typing import Any

import torch
from torch import Tensor, nn

from plasticity_probes.tracing import (
    ELEMENTWISE,
    LINEAR,
    MOVED,
    NORMALIZED,
    POOLED,
    REDUCED,
    SAME,
    SPELLINGS,
    Call,
    Follower,
    NotFollowed,
    Path,
    Rule,
    Tag,
    along,
    lose,
    stepped,
    tensors,
)


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


RULES: dict[str, Rule] = {
    **dict.fromkeys(MOVED, _moved),
    **dict.fromkeys(ELEMENTWISE, _elementwise),
    **dict.fromkeys(POOLED, _pooled),
    **dict.fromkeys(REDUCED, _reduced),
    **dict.fromkeys(NORMALIZED, _normalized),
}
