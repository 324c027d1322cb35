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
