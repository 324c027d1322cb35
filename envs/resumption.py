"""How a world says where it stands, and how another that is built alike is put there."""

from __future__ import annotations

import zlib
from typing import Any, Literal, NamedTuple

import numpy as np
from gymnasium.spaces import Space

from envs.errors import WorldError
from envs.journal import entries
from envs.snapshots import set_spaces, spaces_state


class Resumption(NamedTuple):
    """How exactly a world goes on from its `World.state_dict`."""

    kind: Literal["exact", "replayed", "reset"]
    """exact: bit by bit, from a snapshot; replayed: the same, by the actions since the last segment began, where the
    same actions give the same again, which is checked; reset: all games begin anew."""
    reason: str = ""
    """Why not exactly; "" where it is."""


class Resumed(NamedTuple):
    """What the next actions are chosen from."""

    observations: np.ndarray
    infos: dict[str, Any]
    """What ``reset`` tells: lives, and the tasks that the environments are in."""
    warning: str = ""
    """Why the world does not go on exactly; "" where it does."""


class Resumable:
    """What `envs.vector.World` can do beside being stepped."""

    @property
    def resumption(self) -> Resumption:
        """How exactly this world goes on from its state."""
        if self.pool.exact:
            return Resumption("exact")
        if self._journal is not None:
            return Resumption("replayed")
        return Resumption("reset", "its backend cannot be read, and no actions are kept (world_segment = 0)")

    def state_dict(self) -> dict[str, Any]:
        """Where the world stands between two steps, in NumPy arrays, numbers, strings, None, and lists and dicts of
        these. The observations returned last are part of it: whoever was given them must not have written to them."""
        state = {"kind": self.resumption.kind, "begun": dict(self._begun), "pending_seed": self._pending_seed}
        if self._pending_seed is not None:
            return state
        state["schedule"] = self.schedule and self.schedule.state_dict()
        state |= {"lengths": self._lengths.copy(), "returns": self._returns.copy()}
        state |= {"lives": None if self._lives is None else self._lives.copy(), "spaces": spaces_state(self._spaces())}
        if self.pool.exact:
            state |= {"observations": self._observations.copy(), "pool": self.pool.state_dict()}
        if self._journal is not None:
            state |= {"journal": self._journal.state_dict(), "checksum": self._checksum()}
        return state

    def _checksum(self) -> int:
        return zlib.crc32(np.ascontiguousarray(self._observations), self._journal.checksum)

    def load_state_dict(self, state: dict[str, Any]) -> Resumed | None:
        """Go on from the `state` of a world that was built alike.

        What comes back takes the place of a reset; where it has a warning, all games have begun anew. None: the state
        was one before the first reset, which is still to come.

        Raises:
            ValueError: the state is of another kind than this world's.
        """
        if state["kind"] != self.resumption.kind:
            raise ValueError(f"state = {state['kind']!r}: must be {self.resumption.kind!r}, as this world's is")
        self._begun, self._pending_seed = dict(state["begun"]), state["pending_seed"]
        if self._pending_seed is not None:
            return None
        set_spaces(self._spaces(), state["spaces"])
        if self.pool.exact:
            return self._restored(state)
        problem = self.resumption.reason or self._replayed(state)
        if not problem:
            return Resumed(self._observations, self._infos_of_the_state())
        if self.schedule is not None:
            self.schedule.load_state_dict(state["schedule"])
        self._begun = {**state["begun"], "index": state["begun"]["index"] + 1}
        return Resumed(*self._given(self._begin_segment()), f"{problem}: all games begin anew")

    def _restored(self, state: dict[str, Any]) -> Resumed:
        """From a snapshot."""
        if self.schedule is not None:
            self.schedule.load_state_dict(state["schedule"])
            for task, ids in self.schedule.tasks():
                self.pool.enter(ids, task)
        self.pool.load_state_dict(state["pool"])
        self._lengths[:], self._returns[:] = state["lengths"], state["returns"]
        self._lives, self._observations = state["lives"], state["observations"]
        return Resumed(self._observations, self._infos_of_the_state())

    def _replayed(self, state: dict[str, Any]) -> str:
        """By the actions since the segment began; why that did not lead there, "" where it did."""
        try:
            if self.schedule is not None:
                self.schedule.load_state_dict(self._begun["schedule"])
            self.pool.carry(self._begun["carried"])
            self._given(self._begin_segment(self._begun["changed"]))
            for actions in entries(state["journal"]):
                if actions is None:
                    self.reset()
                else:
                    self.step(actions)
        except WorldError as error:
            return f"replaying its actions failed ({error})"
        same = self._checksum() == state["checksum"]
        return "" if same else "the same actions did not lead to the same observations again"

    def _spaces(self) -> list[Space]:
        return [self.action_space, self.single_action_space]  # those that a random policy samples from
