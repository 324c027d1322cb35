"""Whether everything in a nested state is finite, and what is not, by name."""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

NAMED = 3
"""How many tensors a sentence names."""


def not_finite(state: Any) -> list[str]:
    """Names of what holds a NaN or an infinity in `state` (mappings and sequences of tensors, arrays and numbers, as a
    `state_dict` is), in its order: keys joined by dots, Adam's moments by the parameter that they belong to.

    The largest magnitude of every tensor is taken in one fused reduction a device and type, and read back in one
    transfer each.
    """
    leaves = list(_leaves(state, ""))
    together: dict[tuple[torch.device, torch.dtype], list[int]] = defaultdict(list)
    bad = []
    for place, (_, leaf) in enumerate(leaves):
        if isinstance(leaf, Tensor):
            together[leaf.device, leaf.dtype].append(place)
        elif not np.isfinite(leaf).all():
            bad.append(place)
    for places in together.values():
        largest = torch.stack(torch._foreach_norm([leaves[place][1].detach() for place in places], math.inf))
        bad += [place for place, fine in zip(places, torch.isfinite(largest).tolist(), strict=True) if not fine]
    return [leaves[place][0] for place in sorted(bad)]


def names_in_words(names: Sequence[str]) -> str:
    """The first of `names`, and how many more there are."""
    listed, more = ", ".join(names[:NAMED]), len(names) - NAMED
    return f"{listed} and {more} more" if more > 0 else listed


def _leaves(state: Any, name: str) -> Iterator[tuple[str, Tensor | np.ndarray | float]]:
    """Everything in `state` that could be not finite, with its name."""
    if isinstance(state, Mapping):
        owners = state.get("parameters", ()) if "adam" in state else ()  # an Optimization's: see optimization.py
        for key, value in state.items():
            inner = f"{name}.{key}".removeprefix(".")
            if key == "adam" and owners:
                yield from _moments(value["state"], owners)
                yield from _leaves(value["param_groups"], f"{inner}.param_groups")
            else:
                yield from _leaves(value, inner)
    elif isinstance(state, (list, tuple)):
        for index, value in enumerate(state):
            yield from _leaves(value, f"{name}.{index}".removeprefix("."))
    elif isinstance(state, Tensor):
        if state.dtype.is_floating_point and state.numel():
            yield name, state
    elif isinstance(state, (float, np.floating)) or (isinstance(state, np.ndarray) and state.dtype.kind == "f"):
        yield name, state


def _moments(state: Mapping[int, Mapping[str, Any]], owners: Sequence[str]) -> Iterator[tuple[str, Any]]:
    for index, moments in state.items():
        for kind, tensor in moments.items():
            yield from _leaves(tensor, f"Adam's {kind} of {owners[index]}")
