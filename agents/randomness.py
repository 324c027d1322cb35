"""One named random generator a consumer, all derived from the run's seed and remembered by one registry. The global
generators are never used."""

import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch


class Generators:
    """Makes generators from (seed, name), and remembers each: equal pairs give equal streams, different names
    independent ones. `state_dict` is where every stream stands.

    ValueError where a name is asked for twice: two consumers would draw the same numbers.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._made: dict[str, np.random.Generator | torch.Generator] = {}

    def _sequence(self, name: str) -> np.random.SeedSequence:
        return np.random.SeedSequence([self.seed, zlib.crc32(name.encode())])

    def _remember(self, name: str, generator: np.random.Generator | torch.Generator) -> None:
        if name in self._made:
            raise ValueError(f"generator {name!r}: has a consumer already; must be another name, or a child's")
        self._made[name] = generator

    def on(self, device: torch.device) -> list[torch.Generator]:
        """Torch's generators on such a device that were made so far."""
        made = self._made.values()
        return [one for one in made if isinstance(one, torch.Generator) and one.device.type == device.type]

    def integer(self, name: str) -> int:
        """A seed for something that wants a number, in [0, 2**31); the same each time, and no stream."""
        return int(self._sequence(name).generate_state(1, np.uint32)[0] >> 1)

    def numpy(self, name: str) -> np.random.Generator:
        """A NumPy generator."""
        generator = np.random.Generator(np.random.PCG64(self._sequence(name)))
        self._remember(name, generator)
        return generator

    def torch(self, name: str, device: torch.device | str = "cpu") -> torch.Generator:
        """A torch generator on `device`."""
        state = int(self._sequence(name).generate_state(1, np.uint64)[0] >> 1)
        generator = torch.Generator(device).manual_seed(state)
        self._remember(name, generator)
        return generator

    def child(self, name: str) -> "Generators":
        """A registry of its own for what is derived anew on purpose, its streams independent of these."""
        return Generators(int(self._sequence(f"child {name}").generate_state(1, np.uint64)[0]))

    def state_dict(self) -> dict[str, Any]:
        """Where each stream stands, by name: tensors and primitives."""
        return {
            name: made.get_state() if isinstance(made, torch.Generator) else made.bit_generator.state
            for name, made in self._made.items()
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` stood. ValueError: it is of other streams than were asked for here."""
        if state.keys() != self._made.keys():
            differ = ", ".join(sorted(state.keys() ^ self._made.keys()))
            raise ValueError(f"generators: the state's streams are not those of this run; one alone has {differ}")
        for name, made in self._made.items():
            if isinstance(made, torch.Generator):
                made.set_state(state[name].cpu())
            else:
                made.bit_generator.state = state[name]
