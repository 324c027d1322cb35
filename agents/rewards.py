"""What the learner makes of rewards (`--reward-transform`)."""

import math

import numpy as np


class RewardTransform:
    """Maps raw rewards [E] of one step to what is learned from; holds the running statistics of "scale" and "center".

    none: as they are. clip: to [-1, 1] (Mnih et al. 2015). scale: divided by the running standard deviation of the
    discounted return so far, R <- gamma R + r, then clipped to [-10, 10] as CleanRL does. center: minus the running
    mean (simple reward centring, Naik et al. 2024, arXiv 2405.09999, with a step size 1/n that stops falling at 1e-4,
    so that a changed world is followed).

    "scale" is gymnasium's NormalizeReward (1.4) but at the ends of episodes. Here the last reward is added to its
    return, that return counts, and R is 0 when the next episode begins, after termination and truncation alike.
    gymnasium's wrapper of one environment, which CleanRL uses, forgets R before it adds a terminating reward, so that
    what counts is this reward alone and goes on into the next episode, and a truncation forgets nothing. Its wrapper
    of vectors under same-step autoreset does the same to a terminating reward and then starts at 0 after either end.
    Stable-Baselines3's VecNormalize does as is done here.
    """

    def __init__(self, kind: str, num_envs: int, gamma: float) -> None:
        self.kind, self.gamma = kind, gamma
        self.returns = np.zeros(num_envs)
        self.mean, self.variance, self.count = 0.0, 1.0, 1e-4

    def __call__(self, rewards: np.ndarray, ended: np.ndarray) -> np.ndarray:
        """Rewards [E] as float32; `ended` [E] says whose episode ends with them. Where one becomes infinite in float32
        the statistics stay as they were."""
        before = (self.returns, self.mean, self.variance, self.count)
        with np.errstate(over="ignore"):
            found = self._transformed(rewards, ended).astype(np.float32)
        if np.count_nonzero(np.isfinite(found)) < found.size:
            self.returns, self.mean, self.variance, self.count = before
        return found

    def _transformed(self, rewards: np.ndarray, ended: np.ndarray) -> np.ndarray:
        rewards = np.asarray(rewards, np.float64)
        if self.kind == "clip":
            rewards = _clipped(rewards, 1.0)
        elif self.kind == "scale":
            self.returns = self.returns * self.gamma + rewards
            self._merge(self.returns)
            if np.count_nonzero(ended):
                self.returns = np.where(ended, 0.0, self.returns)
            rewards = _clipped(rewards / math.sqrt(self.variance + 1e-8), 10.0)
        elif self.kind == "center":
            self.count += len(rewards)
            self.mean += max(1e-4, 1.0 / self.count) * float((rewards - self.mean).sum())
            rewards = rewards - self.mean
        return rewards

    def _merge(self, samples: np.ndarray) -> None:
        """Parallel mean and variance (Chan et al. 1979)."""
        size = len(samples)
        mean = float(np.add.reduce(samples)) / size  # as samples.mean(), whose Python takes ten times as long on a few
        delta, total = mean - self.mean, self.count + size
        deviations = samples - mean
        spread = self.variance * self.count + float(np.add.reduce(deviations * deviations))
        self.variance = (spread + delta**2 * self.count * size / total) / total
        self.mean += delta * size / total
        self.count = total

    def state_dict(self) -> dict:
        """Running statistics as primitives."""
        return {"returns": self.returns.tolist(), "mean": self.mean, "variance": self.variance, "count": self.count}

    def load_state_dict(self, state: dict) -> None:
        """Take over what `state_dict` gave."""
        self.returns = np.array(state["returns"])
        self.mean, self.variance, self.count = state["mean"], state["variance"], state["count"]


def _clipped(values: np.ndarray, reach: float) -> np.ndarray:
    """np.clip to [-reach, reach], which takes five times as long on a few."""
    return np.minimum(np.maximum(values, -reach), reach)
