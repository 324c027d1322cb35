"""What PPO remembers: one rollout."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agents.transitions import Spaces

ACTED = ("observations", "policy", "actions", "values")
COLUMNS = (*ACTED, "log_probs", "final_values", "rewards", "terminated", "ended")


class Rollout:
    """`steps` steps of `num_envs` environments, preallocated; row by row filled by `see`, `act` and `add`, until
    `clear` starts over.

    What the network is shown and gives is on the training device. Rewards and ends are arrays of the host's until all
    of them are asked for: one transfer a rollout. Images lie channels last, in the order that convolutions want.

    `policy` is what the network gave for the states acted in (logits [actions], or means [dimensions]), log_probs those
    of the actions under it, and values are of the same states; these two are known of the rows before `appraised`.
    final_values, where an episode ended, are of the state it reached.
    """

    def __init__(self, spaces: Spaces, steps: int, num_envs: int, device: torch.device) -> None:
        rows, shape, images = (steps, num_envs), spaces.observation_shape, len(spaces.observation_shape) == 3
        discrete, kind = spaces.actions == "discrete", torch.uint8 if spaces.is_image else torch.float32
        each = (*shape[1:], shape[0]) if images else shape
        observations = torch.zeros(*rows, *each, dtype=kind, device=device)
        self.observations = observations.movedim(-1, 2) if images else observations
        self.policy = torch.zeros(*rows, spaces.action_size, dtype=torch.float32, device=device)
        self.actions = (
            torch.zeros(rows, dtype=torch.int64, device=device) if discrete else torch.zeros_like(self.policy)
        )
        self.log_probs, self.values, self.final_values = torch.zeros(3, *rows, dtype=torch.float32, device=device)
        self.rewards = np.zeros(rows, np.float32)
        self.terminated, self.ended = np.zeros((2, *rows), bool)
        self._rows = {name: getattr(self, name).unbind() for name in ACTED}  # to look one up takes longer
        self.row = 0
        self.known = 0
        """Rows whose observations can be looked at: those filled, or, where there is none, the rollout before."""
        self.appraised = 0
        """Rows whose log_probs and values are known."""

    @property
    def full(self) -> bool:
        """Whether every row is filled."""
        return self.row == len(self.rewards)

    def see(self, observations: np.ndarray) -> Tensor:
        """The states [num_envs, ...] that are acted in next, as they lie in the next row."""
        if self.full:
            raise RuntimeError(f"rollout: all {self.row} rows are filled; update first")
        return self._rows["observations"][self.row].copy_(torch.from_numpy(observations))

    def act(self, **columns: Tensor) -> None:
        """What the network gave and was drawn from it there, [num_envs, ...] each."""
        for name, value in columns.items():
            self._rows[name][self.row].copy_(value)

    def add(self, **columns: np.ndarray) -> None:
        """What came of it (rewards, terminated, ended; [num_envs] each): the row is filled."""
        for name, value in columns.items():
            getattr(self, name)[self.row] = value
        self.row += 1
        self.known = self.row

    def end(self, values: Tensor) -> None:
        """The episodes that ended in the last row ended in states of `values` [num_envs]."""
        self.final_values[self.row - 1] = values

    def cut(self, values: Tensor) -> None:
        """Every episode breaks off after the last row, in states of `values` [num_envs]."""
        if self.row:
            ended = torch.from_numpy(self.ended[self.row - 1]).to(values.device)
            self.end(torch.where(ended, self.final_values[self.row - 1], values))
            self.ended[self.row - 1] = True

    def clear(self) -> None:
        """Forget the rows."""
        self.row = self.appraised = 0
        for unknown in (self.log_probs, self.values, self.final_values):
            unknown.zero_()

    def state_dict(self) -> dict[str, Any]:
        """The rows known."""
        rows = {name: torch.as_tensor(getattr(self, name)[: self.known]) for name in COLUMNS}
        return {"row": self.row, "appraised": self.appraised, "rows": rows}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self.row, self.known = state["row"], len(state["rows"]["rewards"])
        self.appraised = state.get("appraised", self.row)  # earlier versions appraised at once
        for name, rows in state["rows"].items():
            torch.as_tensor(getattr(self, name))[: self.known] = rows

    def outcome(self, last_values: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(rewards, terminated, ended, values of the states that the steps reached), [steps, num_envs] each, on the
        training device: a value is the next row's (of the last row one of `last_values` [num_envs]), or final_values
        where an episode ended."""
        rewards, terminated, ended = (
            torch.from_numpy(part).to(last_values.device) for part in (self.rewards, self.terminated, self.ended)
        )
        following = torch.cat([self.values[1:], last_values.unsqueeze(0)])
        return rewards, terminated, ended, torch.where(ended, self.final_values, following)


class Shuffled:
    """The columns of rollouts in another order, in memory that is allocated once."""

    def __init__(self) -> None:
        self._places: dict[str, Tensor] = {}

    def __call__(self, columns: Mapping[str, Tensor], order: Tensor) -> dict[str, Tensor]:
        """`columns` with their rows in this `order`, laid out as they are; until the next call."""
        return {name: self._taken(name, column, order) for name, column in columns.items()}

    def _taken(self, name: str, column: Tensor, order: Tensor) -> Tensor:
        place = self._places.get(name)
        if place is None:
            place = self._places[name] = torch.empty_like(column)  # of the same layout
        if column.ndim == 4:
            torch.index_select(column.movedim(1, -1), 0, order, out=place.movedim(1, -1))
        else:
            torch.index_select(column, 0, order, out=place)
        return place
