"""Observations of a Stable-Baselines3 model, as its features extractors take them."""

import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from torch import Tensor

from plasticity_probes.sb3.networks import preprocessed


def example_for(model: BaseAlgorithm, generator: torch.Generator) -> Tensor:
    """Two made-up observations, preprocessed; the space itself is not asked, for that would move its generator."""
    zeros = torch.zeros(2, *model.observation_space.shape, dtype=torch.int64)
    return torch.randn(preprocessed(model, zeros).shape, generator=generator).to(model.device)


class Observations:
    """Draws, with replacement, from DQN's replay or PPO's latest complete rollout by `generator` alone."""

    def __init__(self, model: BaseAlgorithm, generator: torch.Generator) -> None:
        self.model, self.generator = model, generator
        self._rollout: np.ndarray | None = None

    def keep_rollout(self) -> None:
        """The rollout is complete. (The next one is written elsewhere, and the updates flatten a copy.)"""
        observations = self.model.rollout_buffer.observations
        self._rollout = observations.reshape(-1, *observations.shape[2:])

    def sample(self, n: int) -> Tensor:
        """[n, ...], preprocessed, and normalised where SB3 does it. RuntimeError while there are none."""
        drawn = self._of_rollout(n) if isinstance(self.model, PPO) else self._of_replay(n)
        return preprocessed(self.model, torch.as_tensor(drawn, device=self.model.device))

    def _of_rollout(self, n: int) -> np.ndarray:
        rows = self._rollout
        if rows is None:
            buffer = self.model.rollout_buffer
            rows = buffer.observations[: buffer.pos].reshape(-1, *buffer.observations.shape[2:])
        return rows[self._draw(len(rows), n)]

    def _of_replay(self, n: int) -> np.ndarray:
        buffer = self.model.replay_buffer
        size = buffer.size()
        if buffer.optimize_memory_usage and buffer.full:  # what stands at `pos` has been overwritten
            rows = (1 + self._draw(size - 1, n) + buffer.pos) % size
        else:
            rows = self._draw(size, n)
        found = buffer.observations[rows, self._draw(buffer.n_envs, n)]
        return buffer._normalize_obs(found, self.model.get_vec_normalize_env())

    def _draw(self, below: int, n: int) -> np.ndarray:
        if below < 1:
            raise RuntimeError("sample: there are no observations yet")
        return torch.randint(below, (n,), generator=self.generator).numpy()
