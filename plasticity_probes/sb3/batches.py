"""Batches of a Stable-Baselines3 model's experience, drawn without moving any of its generators."""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from torch import Tensor

from plasticity_probes.sb3.networks import preprocessed
from plasticity_probes.trainability import forked_random_state


@contextmanager
def own_random_state(device: torch.device, seed: int | None = None) -> Iterator[None]:
    """The global generators of Python, NumPy and torch are put back on leaving; inside they start from `seed`, if any.
    (SB3's buffers and networks draw from them.)"""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with forked_random_state(device, seed):
            if seed is not None:
                random.setstate(random.Random(seed).getstate())
                np.random.set_state(np.random.RandomState(seed).get_state())
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


class Seeds:
    """A stream of seeds."""

    def __init__(self, *entropy: int) -> None:
        self._generator = np.random.default_rng(entropy)

    def next(self) -> int:
        return int(self._generator.integers(2**32))


class ReplayBatches:
    """Batches from an off-policy model's replay buffer, normalised as for its own updates."""

    def __init__(self, model: BaseAlgorithm, seed: int, samples: int) -> None:
        self.model, self.samples, self.seed = model, samples, seed

    def ready(self) -> bool:
        """Whether there is enough for a batch."""
        buffer = self.model.replay_buffer
        return buffer.size() * buffer.n_envs >= self.samples

    def drawing(self) -> Callable[[int], dict[str, Tensor] | None]:
        """A `Subject.draw` with a stream of its own; two of them draw the same transitions."""
        seeds, model = Seeds(self.seed, 1), self.model

        def draw(samples: int) -> dict[str, Tensor] | None:
            if not self.ready():
                return None
            with own_random_state(model.device, seeds.next()):
                data = model.replay_buffer.sample(samples, env=model.get_vec_normalize_env())
                noise = {name: torch.randn(data.actions.shape, device=model.device) for name in ("noise", "next_noise")}
            discounts = getattr(data, "discounts", None)  # of n-step returns
            columns = {name: getattr(data, name) for name in ("actions", "next_observations", "dones", "rewards")}
            columns["discounts"] = torch.full_like(data.rewards, model.gamma) if discounts is None else discounts
            return {"observations": preprocessed(model, data.observations), **columns, **noise}

        return draw


class RolloutBatches:
    """Batches from an on-policy model's latest rollout, or the latest few."""

    def __init__(self, model: BaseAlgorithm, seed: int, samples: int) -> None:
        self.model, self.samples = model, samples
        self._generator = np.random.default_rng([seed, 1])
        self._parts: deque[dict[str, np.ndarray]] = deque(maxlen=math.ceil(samples / (model.n_steps * model.n_envs)))

    def ready(self) -> bool:
        """Whether there is enough for a batch."""
        return len(self._parts) == self._parts.maxlen

    def keep(self) -> None:
        """Copy some rows of the rollout that has just ended; the buffer is overwritten soon."""
        buffer = self.model.rollout_buffer
        steps, envs = buffer.returns.shape
        rows = self._generator.permutation(steps * envs)[: self.samples]
        where = np.unravel_index(rows, (steps, envs))
        names = ("observations", "actions", "log_probs", "advantages", "returns", "values")
        self._parts.append({name: getattr(buffer, name)[where] for name in names})

    def draw(self, samples: int) -> dict[str, Tensor] | None:
        """`Subject.draw`; actions int64 [n] where they are discrete, else [n, dimensions]."""
        if not self.ready():
            return None
        joined = {name: np.concatenate([part[name] for part in self._parts])[-samples:] for name in self._parts[0]}
        batch = {name: torch.as_tensor(array, device=self.model.device) for name, array in joined.items()}
        if isinstance(self.model.action_space, spaces.Discrete):
            batch["actions"] = batch["actions"].long().flatten()
        batch["observations"] = preprocessed(self.model, batch["observations"])
        return batch
