"""One named random generator a consumer, all derived from the run's seed. The global generators are never used."""

import zlib

import numpy as np
import torch


class Generators:
    """Makes generators from (seed, name): equal pairs give equal streams, different names independent ones."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def _sequence(self, name: str) -> np.random.SeedSequence:
        return np.random.SeedSequence([self.seed, zlib.crc32(name.encode())])

    def integer(self, name: str) -> int:
        """A seed for something that wants a number, in [0, 2**31)."""
        return int(self._sequence(name).generate_state(1, np.uint32)[0] >> 1)

    def numpy(self, name: str) -> np.random.Generator:
        """A NumPy generator."""
        return np.random.Generator(np.random.PCG64(self._sequence(name)))

    def torch(self, name: str, device: torch.device | str = "cpu") -> torch.Generator:
        """A torch generator on `device`."""
        state = int(self._sequence(name).generate_state(1, np.uint64)[0] >> 1)
        return torch.Generator(device).manual_seed(state)
