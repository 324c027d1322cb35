"""What an agent is told about the world."""

import math
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import torch


class Spaces(NamedTuple):
    """The shapes an agent is built for."""

    observation_shape: tuple[int, ...]
    observation_dtype: np.dtype
    """uint8: an image or a stack of frames; anything else: a vector, taken as float32."""
    actions: Literal["discrete", "continuous"]
    action_size: int
    """Number of discrete actions, or dimensions of a continuous action."""
    action_low: np.ndarray | None = None
    action_high: np.ndarray | None = None
    frame_stack: int | None = None
    """Frames in a stacked observation (first axis, oldest first, the first frame repeated after a reset); None: the
    observation is no stack."""

    @property
    def is_image(self) -> bool:
        """Whether observations are uint8 pixels."""
        return self.observation_dtype == np.uint8

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Shape of what the replay keeps of an observation: one frame of a stack, or all of it."""
        return self.observation_shape[1:] if self.frame_stack else self.observation_shape

    def example(self, device: "torch.device") -> "torch.Tensor":
        """Two observations of zeros on `device`, to follow a network by."""
        import torch

        dtype = np.uint8 if self.is_image else np.float32  # as networks see it
        return torch.from_numpy(np.zeros((2, *self.observation_shape), dtype)).to(device)

    def replay_bytes(self, capacity: int) -> int:
        """Bytes that a replay of `capacity` slots takes when full: observations and 23 bytes of the rest a slot."""
        itemsize = 1 if self.is_image else 4
        return capacity * (math.prod(self.stored_shape) * itemsize + 23)


class Transitions(NamedTuple):
    """One step in each of E environments, as NumPy arrays that the agent may keep.

    No row is made up: where an episode ended, `final_observations` holds the state reached and `next_observations` the
    fresh one.
    """

    observations: np.ndarray
    """[E, ...] the states acted in."""
    actions: np.ndarray
    """[E] integers, or [E, dimensions] floats as the world took them."""
    rewards: np.ndarray
    """[E] the game's own."""
    terminated: np.ndarray
    """bool [E]: the world ended."""
    truncated: np.ndarray
    """bool [E]: a time limit cut the episode."""
    life_lost: np.ndarray
    """bool [E]: a life was lost and the game goes on."""
    next_observations: np.ndarray
    """[E, ...] what the agent acts in next: the state reached, or the fresh one where an episode ended."""
    final_observations: np.ndarray | None
    """[E, ...] the states reached, valid where terminated | truncated; None where no episode ended."""
    tasks: np.ndarray | None = None
    """int [E]: the task that each step was made in; None for a world that never changes."""
    next_tasks: np.ndarray | None = None
    """int [E]: the task of `next_observations`."""
    cut: np.ndarray | None = None
    """bool [E]: truncated for the sake of exact resumption alone: bootstraps, and is no episode's end to a normaliser.
    None where nobody was."""

    @property
    def ended(self) -> np.ndarray:
        """bool [E]: another episode begins."""
        return self.terminated | self.truncated

    @property
    def over(self) -> np.ndarray:
        """bool [E]: the episode is over, and not cut."""
        return self.ended if self.cut is None else self.ended & ~self.cut
