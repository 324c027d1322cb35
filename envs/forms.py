"""How a foreign world's observations and actions are taken: from any space of gymnasium's to the arrays agents know."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Space, Tuple, flatdim, flatten

from envs.errors import found, in_short

MOST_ONE_HOT = 100_000
"""More inputs than this are not made out of numbers that are no arrays."""
LEAST_IMAGE_SIDE = 36
"""Observations with two sides of at least this length were meant as images."""


class Misfit(ValueError):
    """A value is not what its space promised; the message is "FOUND, where PROMISED was promised"."""


class ObservationForm(NamedTuple):
    """How observations of one environment become arrays."""

    space: Box
    """What agents see: uint8 images [channels, height, width], uint8 vectors, or float32."""
    read: Callable[[Any], np.ndarray]
    """An observation as an array of that space's shape, in any type that it takes without loss of meaning; possibly a
    view of what the world wrote. Raises `Misfit`."""
    note: str = ""
    """What a user should know of it; empty where nothing was changed."""


class ActionForm(NamedTuple):
    """How actions of one environment are handed to it."""

    space: Discrete | Box
    """What agents see: Discrete counted from 0, or a float32 Box of one dimension."""
    write: Callable[[Any], Any]
    """An agent's action (an int, or floats [dimensions]) as the world takes it, a copy of its own."""
    note: str = ""


def observation_form(env: str, space: Any) -> ObservationForm:
    """The form of observations in `space`.

    - Box of uint8 with bounds 0 and 255 and two or more dimensions: images, with the channels first. The channels are
      the last axis where that is smaller than both others (84 x 84 x 3), else the first. Images without an axis of
      channels get one; leading axes (stacked frames) are channels too. One dimension: stays uint8.
    - any other Box: float32 as it is, a single number a vector of one.
    - Discrete, MultiDiscrete, MultiBinary, and Dict and Tuple of these and of vectors: one float32 vector, as
      gymnasium's FlattenObservation gives (Discrete one-hot).

    Raises:
        ValueError: anything else, with what to do instead.
    """
    if not isinstance(space, Space):
        raise ValueError(f"env = {env!r}: its observation_space must be a space of gymnasium's, not {found(space)}")
    if isinstance(space, Box):
        return _box_form(env, space)
    return _flat_form(env, space)


def _box_form(env: str, space: Box) -> ObservationForm:
    shape = space.shape
    if 0 in shape:
        raise ValueError(f"env = {env!r}: observations must hold a number at least, not {in_short(str(space), 100)}")
    read = _reader(space)
    pixels = space.dtype == np.uint8 and (space.low == 0).all() and (space.high == 255).all()
    if pixels and len(shape) == 1:
        return ObservationForm(Box(0, 255, shape, np.uint8), read)
    if pixels and shape:
        seen, note, arrange = _image(shape)
        return ObservationForm(Box(0, 255, seen, np.uint8), lambda value: arrange(read(value)), note)
    low, high = as_float32(space.low), as_float32(space.high)
    if not shape:
        seen = Box(low.reshape(1), high.reshape(1), dtype=np.float32)
        return ObservationForm(
            seen, lambda value: read(value).reshape(1), "observations are single numbers: vectors of 1"
        )
    note = ""
    if len(shape) >= 2 and sorted(shape)[-2] >= LEAST_IMAGE_SIDE:
        note = (
            f"observations {_times(shape)} ({space.dtype}) are taken as {math.prod(shape):,} separate numbers; images "
            "are uint8 from 0 to 255 (gymnasium.wrappers.RescaleObservation and DtypeObservation make them so)"
        )
    return ObservationForm(Box(low, high, dtype=np.float32), read, note)


def _image(shape: tuple[int, ...]) -> tuple[tuple[int, ...], str, Callable[[np.ndarray], np.ndarray]]:
    """(shape as agents see it, a note, the map to it) of images of `shape`."""
    if len(shape) == 2:
        seen = (1, *shape)
        return seen, f"images {_times(shape)} without channels are taken as {_times(seen)}", lambda image: image[None]
    *frames, a, b, c = shape
    last = c < min(a, b)
    seen = (math.prod(frames) * (c if last else a), *((a, b) if last else (b, c)))
    if last:
        note = f"images {_times(shape)} with the channels last are taken as {_times(seen)}"
        return seen, note, lambda image: np.moveaxis(image, -1, -3).reshape(seen)
    note = f"stacked images {_times(shape)} are taken as {_times(seen)}" if frames else ""
    if a >= min(b, c):
        note = f"images {_times(shape)}: no axis is plainly that of the channels, so the first one is taken as it"
    return seen, note, lambda image: image.reshape(seen)


def _flat_form(env: str, space: Space) -> ObservationForm:
    words = in_short(str(space), 100)
    images = any(isinstance(leaf, Box) and len(leaf.shape) >= 3 for leaf in _leaves(space))
    if images:
        hint = "keep one with gymnasium.wrappers.FilterObservation, or flatten all with FlattenObservation"
        raise ValueError(f"env = {env!r}: observations must be one array, not images beside others: {hint} ({words})")
    try:
        read, size = _reader(space), flatdim(space)
    except (TypeError, ValueError, NotImplementedError):
        hint = "numbers, vectors or images; make them so with gymnasium.wrappers.TransformObservation"
        raise ValueError(f"env = {env!r}: observations must be {hint}, not {words}") from None
    if not size:
        raise ValueError(f"env = {env!r}: observations must hold a number at least, not {words}")
    if size > MOST_ONE_HOT:
        hint = "make them smaller with gymnasium.wrappers.TransformObservation"
        allowed = f"at most {MOST_ONE_HOT:,} inputs when flattened, not {size:,}: {hint}"
        raise ValueError(f"env = {env!r}: observations must have {allowed} ({words})")
    low, high = _flat_bounds(space)
    note = f"observations {words} are taken as {size:,} numbers, as of gymnasium.wrappers.FlattenObservation"
    return ObservationForm(Box(low, high, dtype=np.float32), lambda value: flatten(space, read(value)), note)


def _flat_bounds(space: Space) -> tuple[np.ndarray, np.ndarray]:
    parts = [
        (as_float32(leaf.low).reshape(-1), as_float32(leaf.high).reshape(-1))
        if isinstance(leaf, Box)
        else (np.zeros(flatdim(leaf), np.float32), np.ones(flatdim(leaf), np.float32))
        for leaf in _leaves(space)
    ]
    low, high = zip(*parts, strict=True)
    return np.concatenate(low), np.concatenate(high)


def _leaves(space: Space) -> list[Space]:
    if isinstance(space, Dict):
        return [leaf for part in space.spaces.values() for leaf in _leaves(part)]
    if isinstance(space, Tuple):
        return [leaf for part in space.spaces for leaf in _leaves(part)]
    return [space]


def _reader(space: Space) -> Callable[[Any], Any]:
    """A function that returns a value of `space` in that space's structure, or raises `Misfit`."""
    if isinstance(space, Box):
        return _array_reader(space.shape, space.dtype)
    if isinstance(space, MultiBinary):
        return _array_reader(space.shape, np.dtype(bool))
    if isinstance(space, MultiDiscrete):
        return _counts_reader(space)
    if isinstance(space, Discrete):
        return _count_reader(space)
    if isinstance(space, Tuple):
        return _tuple_reader([_reader(part) for part in space.spaces])
    if isinstance(space, Dict):
        return _dict_reader({name: _reader(part) for name, part in space.spaces.items()})
    raise TypeError(f"{type(space).__name__} is no space of arrays")


def _array_reader(shape: tuple[int, ...], dtype: np.dtype) -> Callable[[Any], np.ndarray]:
    promised = f"an array of shape {shape} ({dtype})" if shape else f"a single value ({dtype})"

    def read(value: Any) -> np.ndarray:
        array = value if type(value) is np.ndarray else _as_array(value, promised)
        if array.shape != shape or (array.dtype != dtype and not _holds(array, dtype)):
            beyond = " with values beyond that type" if array.shape == shape and array.dtype.kind in "biu" else ""
            like = value if isinstance(value, np.ndarray | np.generic | int | float | str) or value is None else array
            raise Misfit(f"{found(like)}{beyond}, where {promised} was promised")
        return array

    return read


def _as_array(value: Any, promised: str) -> np.ndarray:
    if isinstance(value, dict):  # NumPy would wrap it into an array of one object
        raise Misfit(f"{found(value)}, where {promised} was promised")
    try:
        return np.asarray(value)
    except Exception as error:  # ragged lists, tensors that live elsewhere, ...
        raise Misfit(f"{found(value)}, where {promised} was promised") from error


def _holds(array: np.ndarray, dtype: np.dtype) -> bool:
    """Whether `dtype` can take the values of `array`: every number goes into floats, only fitting integers into
    integers."""
    kind = array.dtype.kind
    if dtype.kind == "f":
        return kind in "biuf"
    if kind not in "biu":
        return False
    least, most = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    return int(array.min()) >= least and int(array.max()) <= most


def _count_reader(space: Discrete) -> Callable[[Any], int]:
    first, last = int(space.start), int(space.start + space.n - 1)

    def read(value: Any) -> int:
        whole = isinstance(value, int | np.integer) or (
            isinstance(value, np.ndarray) and value.shape == () and value.dtype.kind in "biu"
        )
        if not whole or not first <= int(value) <= last:
            raise Misfit(f"{found(value)}, where an integer from {first} to {last} was promised")
        return int(value)

    return read


def _counts_reader(space: MultiDiscrete) -> Callable[[Any], np.ndarray]:
    arrays = _array_reader(space.shape, space.dtype)

    def read(value: Any) -> np.ndarray:
        array = arrays(value)
        if ((array < space.start) | (array >= space.start + space.nvec)).any():
            raise Misfit(f"values outside the space, where {in_short(str(space), 60)} was promised")
        return array

    return read


def _tuple_reader(readers: list[Callable[[Any], Any]]) -> Callable[[Any], tuple]:
    def read(value: Any) -> tuple:
        if not isinstance(value, tuple | list) or len(value) != len(readers):
            raise Misfit(f"{found(value)}, where a tuple of {len(readers)} was promised")
        return tuple(part(item) for part, item in zip(readers, value, strict=True))

    return read


def _dict_reader(readers: dict[str, Callable[[Any], Any]]) -> Callable[[Any], dict]:
    def read(value: Any) -> dict:
        if not isinstance(value, dict) or set(readers) - set(value):
            raise Misfit(f"{found(value)}, where a dict with {', '.join(map(str, readers))} was promised")
        return {name: part(value[name]) for name, part in readers.items()}

    return read


def as_float32(bound: np.ndarray) -> np.ndarray:
    """Bounds in float32; what lies beyond its range becomes infinite."""
    with np.errstate(over="ignore"):
        return np.asarray(bound).astype(np.float32)


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def action_form(env: str, space: Any) -> ActionForm:
    """The form of actions in `space`: Discrete is counted from 0, a Box has one dimension and float32 bounds. Those of
    integers are rounded.

    Raises:
        ValueError: any other space, or a Box without a number.
    """
    if isinstance(space, Discrete):
        start = int(space.start)
        return ActionForm(Discrete(int(space.n)), (lambda action: int(action) + start) if start else int)
    if not isinstance(space, Box) or 0 in space.shape:
        what = in_short(str(space), 100) if isinstance(space, Space) else found(space)
        hint = "Discrete or a Box of numbers (gymnasium.wrappers.TransformAction makes others so)"
        raise ValueError(f"env = {env!r}: actions must be {hint}, not {what}")
    shape, dtype = space.shape, space.dtype
    low, high = _within_float32(space.low, space.high)
    seen = Box(low.reshape(-1), high.reshape(-1), dtype=np.float32)
    if dtype.kind == "f":
        return ActionForm(seen, lambda action: np.array(action, dtype).reshape(shape))

    def whole(action: np.ndarray) -> np.ndarray:
        # Clipped here whatever the agent does: an integer out of range would come out at the other end.
        return np.rint(np.clip(action, seen.low, seen.high)).astype(dtype).reshape(shape)

    return ActionForm(seen, whole, f"actions are integers ({dtype}): the agent's numbers are rounded")


def _within_float32(low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bounds in float32, rounded inwards, so that an action clipped to them lies within the world's own."""
    least, most = as_float32(low), as_float32(high)
    if low.dtype == np.float32:
        return least, most
    infinity = np.float32(np.inf)
    least = np.where(least.astype(np.float64) < low, np.nextafter(least, infinity), least)
    most = np.where(most.astype(np.float64) > high, np.nextafter(most, -infinity), most)
    return least, np.maximum(least, most)
