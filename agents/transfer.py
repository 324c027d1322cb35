"""From main memory to the device: on a GPU in one copy that nobody waits for."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

ALIGNED = 8
"""Bytes, the size of the widest number."""


def sent(arrays: Sequence[np.ndarray], device: torch.device) -> list[Tensor]:
    """The arrays as tensors on `device`, a CPU or a GPU. To a GPU they go together, out of pinned memory, without a
    wait."""
    if device.type != "cuda":
        return [torch.from_numpy(array) for array in arrays]
    places = places_of(arrays)
    packed = torch.empty(places[-1], dtype=torch.uint8, pin_memory=True)
    pack(arrays, packed.numpy())
    return unpacked(packed.to(device, non_blocking=True), arrays)


def places_of(arrays: Sequence[np.ndarray]) -> list[int]:
    """Where each begins, in bytes, when they lie one after the other, and where the last one ends."""
    sizes = [-(-array.nbytes // ALIGNED) * ALIGNED for array in arrays]
    return [0, *np.cumsum(sizes).tolist()]


def pack(arrays: Sequence[np.ndarray], packed: np.ndarray) -> None:
    """Lay them into the uint8 `packed`."""
    for array, place in zip(arrays, places_of(arrays), strict=False):
        packed[place : place + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def unpacked(packed: Tensor, arrays: Sequence[np.ndarray]) -> list[Tensor]:
    """Tensors like `arrays`, as they lie in `packed`."""
    found = []
    for array, place in zip(arrays, places_of(arrays), strict=False):
        kind = torch.from_numpy(np.empty(0, array.dtype)).dtype
        found.append(packed[place : place + array.nbytes].view(kind).view(array.shape))
    return found
