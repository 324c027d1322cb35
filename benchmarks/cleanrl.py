"""CleanRL's scripts, from a checkout of it, on current packages: what they call is there again under its old name.

    python -m benchmarks.cleanrl CHECKOUT dqn_atari.py [its flags]

Nothing of the scripts is changed. What has moved since: gymnasium's GrayScaleObservation and FrameStack have other
names, TransformObservation wants a space, Atari's ids are registered by hand, `gym` is `gymnasium`, whose wrappers pass
nothing on, and envpool has no worlds of gym's old kind any more (four values a step). Vector environments now begin a
new episode a step later than they did: each episode has a step more that means nothing, which costs time as any step
does, and the returns of games are printed no more.
"""

import runpy
import sys
import types
from pathlib import Path
from typing import Any

import ale_py
import envpool
import gymnasium
import torch
from gymnasium import wrappers

from benchmarks.learners import Elsewhere

SPEED = "^SPS:"
"""The lines that its scripts print every hundred steps, or every rollout."""


def _transformed(env: gymnasium.Env, function: Any) -> gymnasium.Env:
    return NEW_TRANSFORM(env, function, env.observation_space)


NEW_TRANSFORM = wrappers.TransformObservation


class OldPool(gymnasium.Env):
    """One of envpool's pools as it was under gym: spaces of one environment, observations alone from a reset, four
    values from a step, one thread."""

    def __init__(self, task: str, env_type: str, **settings: Any) -> None:
        self.pool = NEW_MAKE(task, env_type="gymnasium", num_threads=1, **settings)
        self.action_space, self.observation_space = self.pool.single_action_space, self.pool.single_observation_space

    def reset(self, **_: Any) -> Any:
        return self.pool.reset()[0]

    def step(self, action: Any) -> tuple:
        observations, rewards, terminated, truncated, infos = self.pool.step(action)
        return observations, rewards, terminated | truncated, infos


NEW_MAKE = envpool.make


class OldWrapper(gymnasium.Wrapper):
    """gym's, which also gave what it did not know of itself."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.env, name)


def old_names() -> None:
    """Let current packages be called as the scripts do."""
    gymnasium.register_envs(ale_py)
    wrappers.GrayScaleObservation, wrappers.FrameStack = wrappers.GrayscaleObservation, wrappers.FrameStackObservation
    wrappers.TransformObservation = _transformed
    gym = types.ModuleType("gym")
    vars(gym).update(vars(gymnasium), Wrapper=OldWrapper)
    sys.modules["gym"] = gym
    envpool.make = OldPool


def script(checkout: Path, name: str, flags: list[str], steps: int, folder: Path) -> Elsewhere:
    """The script as a process that takes turns, writing to `folder`; `steps` between two of its lines."""
    command = [sys.executable, "-m", "benchmarks.cleanrl", str(checkout.resolve()), name, "--no-cuda", *flags]
    return Elsewhere(command, folder, SPEED, steps, {"PYTHONPATH": str(Path(__file__).parents[1])})


def main() -> None:
    """Run the script of the command line."""
    checkout, name, *flags = sys.argv[1:]
    path = Path(checkout) / "cleanrl" / name
    sys.argv = [str(path), *flags]
    sys.path.insert(0, checkout)
    torch.set_num_threads(1)
    old_names()
    runpy.run_path(str(path), run_name="__main__")


if __name__ == "__main__":
    main()
