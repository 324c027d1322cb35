"""What the tasks are, for changes that any world can undergo, and for Atari's games and modes."""

from __future__ import annotations

from typing import Any

import numpy as np

from envs.tasks import fingerprint, generator


class Jump:
    """A change with nothing between two tasks."""

    distinct: int | None = None
    listed = False
    gradual = False

    def between(self, start: Any, end: Any, share: float) -> Any:
        """Not defined."""
        raise NotImplementedError("this change is a jump")


class UnseenLaw(Jump):
    """Stands for a law of jumps that building the world would tell: as much as decides which tasks there are."""

    def draw(self, seed: int, variant: int) -> None:
        """No content."""

    def describe(self, content: None) -> dict[str, Any]:
        """No parameters."""
        return {}


class Chain(Jump):
    """Each task is made of the one before it: `first(seed)`, then `following(content, random)` again and again. A later
    task builds on the one drawn last."""

    _last: tuple[int | None, int, Any] = (None, 0, None)  # seed, variant and what was drawn

    def draw(self, seed: int, variant: int) -> np.ndarray:
        """The content of task `variant`, not to be written to."""
        begun_with, number, content = self._last
        if begun_with != seed or number > variant:
            number, content = 0, self.first(seed)
        for k in range(number + 1, variant + 1):
            content = self.following(content, generator(seed, k))
        self._last = seed, variant, content
        return content


class PermutationLaw(Chain):
    """Orders of `size` things: task 0 leaves them as they are, every task rearranges the one before it by a permutation
    drawn uniformly from those that change something.

    Raises:
        ValueError: there are fewer than two things.
    """

    def __init__(self, size: int) -> None:
        if size < 2:
            raise ValueError(f"task.change: {size} thing cannot be permuted")
        self.size = size

    def first(self, seed: int) -> np.ndarray:
        """Every thing in its own place: int64 [size], position i shows what position content[i] held."""
        return np.arange(self.size)

    def following(self, content: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """Something has changed its place."""
        while True:
            drawn = random.permutation(self.size)
            if (drawn != np.arange(self.size)).any():
                return content[drawn]

    def describe(self, content: np.ndarray) -> dict[str, str]:
        """{"permutation": eight hexadecimal digits}."""
        return {"permutation": fingerprint(content)}


class RewardLaw:
    """Task k adds k * `step` to every reward: the mean of the targets drifts while the optimal policy stays."""

    distinct: int | None = None
    listed = False
    gradual = True

    def __init__(self, step: float) -> None:
        self.step = step

    def draw(self, seed: int, variant: int) -> float:
        """The offset."""
        return variant * self.step

    def between(self, start: float, end: float, share: float) -> float:
        """The offset on a straight line."""
        return start + share * (end - start)

    def describe(self, content: float) -> dict[str, float]:
        """{"reward_offset": offset}."""
        return {"reward_offset": content}


class ResetLaw(Jump):
    """Each task begins the world anew from a freshly drawn seed; the first keeps the world's own."""

    def draw(self, seed: int, variant: int) -> int | None:
        """The seed, below 2**30; None for task 0."""
        return int(generator(seed, variant).integers(2**30)) if variant else None

    def describe(self, content: int | None) -> dict[str, int]:
        """{"reset_seed": seed, -1 for the world's own}."""
        return {"reset_seed": -1 if content is None else content}


class ListLaw(Jump):
    """Tasks from a list, in its order: games, or (mode, difficulty) pairs of one game.

    Args:
        items: what each task is.
        names: parameter names; one for items that are plain values, else one an entry.
    """

    listed = True

    def __init__(self, items: tuple[Any, ...], names: tuple[str, ...]) -> None:
        self.items, self.names, self.distinct = items, names, len(items)

    def draw(self, seed: int, variant: int) -> Any:
        """The item."""
        return self.items[variant]

    def describe(self, content: Any) -> dict[str, float | int | str]:
        """The item under its names."""
        values = content if isinstance(content, tuple) else (content,)
        return dict(zip(self.names, values, strict=True))
