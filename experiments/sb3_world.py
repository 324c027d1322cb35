"""Our worlds as Stable-Baselines3 takes them, so that its agents can be compared with ours on the very same worlds."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvStepReturn


class SB3World(VecEnv):
    """A Stable-Baselines3 `VecEnv` over a `gymnasium.vector.VectorEnv` in SAME_STEP autoreset.

    Observations and actions pass through unchanged. The info of an environment whose episode ended holds

    - ``terminal_observation``: the state reached;
    - ``TimeLimit.truncated``: whether a time limit cut the episode, so that its value is bootstrapped;
    - ``episode`` {"r", "l"}: unclipped return and length in steps of the whole game.

    Args:
        world: the world; closed with this object.
        clip_rewards: clip the rewards that are learned from to [-1, 1].
        time_limits_end: tell the learner that a time limit is an end like any other.

    Raises:
        ValueError: `world` does not begin the next episode within the step that ends one.

    Example:
        >>> from stable_baselines3 import PPO
        >>> PPO("CnnPolicy", SB3World(make_vec("ALE/Pong-v5", 8, seed=1), clip_rewards=True)).learn(10_000)
    """

    def __init__(self, world: VectorEnv, *, clip_rewards: bool = False, time_limits_end: bool = False) -> None:
        mode = world.metadata.get("autoreset_mode")
        if mode is not AutoresetMode.SAME_STEP:
            raise ValueError(f"world: its autoreset mode is {mode}, must be {AutoresetMode.SAME_STEP}")
        self.world, self.clip_rewards, self.time_limits_end = world, clip_rewards, time_limits_end
        self._actions: np.ndarray | None = None
        super().__init__(world.num_envs, world.single_observation_space, world.single_action_space)

    def reset(self) -> np.ndarray:
        """Begin a new episode everywhere: observations [E, ...]. Uses what `seed` was given since the last reset."""
        observations, _ = self.world.reset(seed=self._seeds[0], options=self._options[0] or None)
        self._reset_seeds()
        self._reset_options()
        return observations

    def step_async(self, actions: np.ndarray) -> None:
        """Take note of actions [E] or [E, dimensions] for `step_wait`."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Step: observations [E, ...], rewards float32 [E], dones bool [E], infos; see the class."""
        observations, rewards, terminated, truncated, infos = self.world.step(self._actions)
        rewards = np.array(rewards, dtype=np.float32)  # a copy: Stable-Baselines3 adds bootstrap values in place
        if self.clip_rewards:
            np.clip(rewards, -1.0, 1.0, out=rewards)
        dones = terminated | truncated
        rows: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for i in np.flatnonzero(dones):
            statistics = infos["episode"]
            rows[i] = {
                "terminal_observation": infos["final_obs"][i],
                "TimeLimit.truncated": bool(truncated[i] and not terminated[i]) and not self.time_limits_end,
                "episode": {"r": float(statistics["r"][i]), "l": int(statistics["l"][i])},
            }
        return observations, rewards, dones, rows

    def close(self) -> None:
        """Close the world."""
        self.world.close()

    def get_images(self) -> Sequence[np.ndarray]:
        """One RGB image an environment, for worlds built with a render mode."""
        return self.world.render()

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """The world's attribute, once for each of `indices`."""
        return [getattr(self.world, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Not offered: a world's settings are fixed when it is built."""
        raise AttributeError(f"{attr_name}: a world's settings are fixed when it is built")

    def env_method(self, method_name: str, *method_args, indices: VecEnvIndices = None, **method_kwargs) -> list[Any]:
        """Call a method of the single environments, which only the gymnasium backend has (else AttributeError)."""
        single = self.world.envs
        return [getattr(single[i], method_name)(*method_args, **method_kwargs) for i in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: type, indices: VecEnvIndices = None) -> list[bool]:
        """True for `Monitor` alone, whose ``episode`` infos this adapter gives."""
        return [issubclass(wrapper_class, Monitor) for _ in self._get_indices(indices)]
