"""What a world that cannot say where it stands remembers instead: the actions that brought it there."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from gymnasium.spaces import Discrete, Space

FIRST = 1024
"""Ticks that there is room for at first; it doubles."""


class Journal:
    """The actions [ticks, E, ...] of a segment, compactly, and a checksum of what came of them.

    Args:
        num_envs: E.
        space: one environment's actions.
    """

    def __init__(self, num_envs: int, space: Space) -> None:
        self._shape = (num_envs, *space.shape)
        # Continuous ones keep the type that they come in, so that a world is given the very same numbers.
        kinds = (kind for kind in (np.uint8, np.int16, np.int32, np.int64) if isinstance(space, Discrete))
        self._type = next((kind for kind in kinds if space.n - 1 <= np.iinfo(kind).max), None)
        self.begin()

    def begin(self) -> None:
        """A new segment: nothing is remembered."""
        self.ticks = 0
        self.checksum = 0
        self.resets: list[int] = []
        """Before which ticks all games began anew."""
        self._actions = np.empty((0, *self._shape), self._type or np.float32)

    def add(self, actions: np.ndarray, *results: np.ndarray) -> None:
        """Remember a tick."""
        actions = np.asarray(actions)
        if self.ticks == len(self._actions):
            self._grow(actions.dtype)
        elif self._type is None and actions.dtype != self._actions.dtype:
            self._actions = self._actions.astype(np.result_type(self._actions, actions))
        self._actions[self.ticks] = actions
        self.ticks += 1
        for result in results:
            self.checksum = zlib.crc32(np.ascontiguousarray(result), self.checksum)

    def _grow(self, given: np.dtype) -> None:
        kind = self._type or (np.result_type(self._actions, given) if self.ticks else given)
        grown = np.zeros((max(FIRST, 2 * self.ticks), *self._shape), kind)
        grown[: self.ticks] = self._actions
        self._actions = grown

    def state_dict(self) -> dict[str, Any]:
        """Actions, resets and checksum."""
        return {"actions": self._actions[: self.ticks].copy(), "resets": list(self.resets), "checksum": self.checksum}


def entries(state: dict[str, Any]) -> Iterator[np.ndarray | None]:
    """What happened in a segment, in order: the actions of each tick, and None where all games began anew."""
    resets = list(state["resets"])
    actions = np.asarray(state["actions"])
    for tick, own in enumerate(actions.astype(np.int64) if actions.dtype.kind in "iu" else actions):
        while resets and resets[0] == tick:
            resets.pop(0)
            yield None
        yield own
    for _ in resets:
        yield None
