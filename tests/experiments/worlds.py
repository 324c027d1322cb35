"""Small worlds for the tests of runs."""

import gymnasium
import numpy as np


class GoesWrong(gymnasium.Env):
    """Pays NaN, or shows infinity, at its 150th step."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (3,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, what: str = "reward", render_mode: str | None = None) -> None:
        self.what, self.steps, self.render_mode = what, 0, render_mode

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        super().reset(seed=seed)
        return self.np_random.normal(size=3).astype(np.float32), {}

    def step(self, action: int):
        self.steps += 1
        bad = self.steps == 150
        observation = self.np_random.normal(size=3).astype(np.float32)
        if bad and self.what == "observation":
            observation[1] = np.inf
        reward = float("nan") if bad and self.what == "reward" else 1.0
        return observation, reward, self.steps % 40 == 0, False, {}


for kind in ("reward", "observation"):
    gymnasium.register(f"GoesWrong-{kind}-v0", entry_point=GoesWrong, kwargs={"what": kind})


class GoesHuge(gymnasium.Env):
    """Shows observations of size 1e30 from its `start`-th step on: finite, but their variance is not in float32."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (3,), np.float32)

    def __init__(self, start: int = 0, continuous: bool = False, render_mode: str | None = None) -> None:
        self.start, self.steps, self.render_mode = start, 0, render_mode
        discrete, box = gymnasium.spaces.Discrete(2), gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.action_space = box if continuous else discrete

    def _observe(self) -> np.ndarray:
        return (self.np_random.normal(size=3) * (1e30 if self.steps >= self.start else 1.0)).astype(np.float32)

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        super().reset(seed=seed)
        return self._observe(), {}

    def step(self, action: np.ndarray):
        assert np.isfinite(action).all(), f"the world was given {action}"
        self.steps += 1
        return self._observe(), 1.0, self.steps % 40 == 0, False, {}


gymnasium.register("GoesHuge-v0", entry_point=GoesHuge)
gymnasium.register("GoesHugeLater-v0", entry_point=GoesHuge, kwargs={"start": 200, "continuous": True})
