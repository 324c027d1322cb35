"""What PPO remembers: one rollout, on the training device."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from agents.transitions import Spaces

COLUMNS = ("observations", "actions", "log_probs", "values", "final_values", "rewards", "terminated", "ended")


class Rollout:
    """`steps` steps of `num_envs` environments, preallocated; `add` fills row by row, `clear` starts over.

    values are of the states acted in; final_values, where an episode ended, of the state it reached.
    """

    def __init__(self, spaces: Spaces, steps: int, num_envs: int, device: torch.device) -> None:
        rows = (steps, num_envs)
        discrete = spaces.actions == "discrete"
        action_shape = rows if discrete else (*rows, spaces.action_size)
        self.observations = torch.zeros(
            *rows, *spaces.observation_shape, dtype=torch.uint8 if spaces.is_image else torch.float32, device=device
        )
        self.actions = torch.zeros(action_shape, dtype=torch.int64 if discrete else torch.float32, device=device)
        self.log_probs, self.values, self.final_values, self.rewards = torch.zeros(
            4, *rows, dtype=torch.float32, device=device
        )
        self.terminated, self.ended = torch.zeros(2, *rows, dtype=torch.bool, device=device)
        self.row = 0
        self.known = 0
        """Rows whose observations can be looked at: those filled, or, where there is none, the rollout before."""

    @property
    def full(self) -> bool:
        """Whether every row is filled."""
        return self.row == len(self.rewards)

    def add(self, **columns: Tensor) -> None:
        """Fill the next row of each named tensor with values [num_envs, ...]."""
        if self.full:
            raise RuntimeError(f"rollout: all {self.row} rows are filled; update first")
        for name, value in columns.items():
            getattr(self, name)[self.row] = value
        self.row += 1
        self.known = self.row

    def cut(self, values: Tensor) -> None:
        """Every episode breaks off after the last row, in states of `values` [num_envs]."""
        if self.row:
            going = ~self.ended[self.row - 1]
            self.final_values[self.row - 1] = torch.where(going, values, self.final_values[self.row - 1])
            self.ended[self.row - 1] = True

    def clear(self) -> None:
        """Forget the rows."""
        self.row = 0

    def state_dict(self) -> dict[str, Any]:
        """The rows known."""
        return {"row": self.row, "rows": {name: getattr(self, name)[: self.known] for name in COLUMNS}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self.row, self.known = state["row"], len(state["rows"]["rewards"])
        for name, rows in state["rows"].items():
            getattr(self, name)[: self.known] = rows

    def reached_values(self, last_values: Tensor) -> Tensor:
        """Value of the state each step reached, [steps, num_envs]: the next row's, or final_values at an end."""
        following = torch.cat([self.values[1:], last_values.unsqueeze(0)])
        return torch.where(self.ended, self.final_values, following)
