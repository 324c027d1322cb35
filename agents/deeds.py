"""What was done to the weights, counted: by whom, what, and where."""

from torch import Tensor

Key = tuple[str, str, str]
Done = dict[Key, Tensor | int]
"""How much was done, by (intervention, what, where)."""


class Deeds:
    """Counts since they were last taken. Those in tensors stay in their places, so that a replayed graph goes on with
    them; where they are `replayed`, they are there, maybe as zeros, though Python has not heard of any since."""

    def __init__(self, replayed: bool) -> None:
        self.since: Done = {}
        self._replayed, self._places = replayed, {}

    def add(self, key: Key, amount: Tensor | int) -> None:
        """So much more."""
        if not isinstance(amount, Tensor):
            self.since[key] = self.since.get(key, 0) + amount
        elif key in self._places:
            self.since[key] = self._places[key].add_(amount)
        else:
            self.since[key] = self._places[key] = amount.clone()

    def take(self) -> Done:
        """All of it; the counts begin anew."""
        done = {key: amount.clone() if isinstance(amount, Tensor) else amount for key, amount in self.since.items()}
        self.since = dict(self._places) if self._replayed else {}
        for count in self._places.values():
            count.zero_()
        return done
