"""MuJoCo worlds on their backends, and the variants of Ant's observation and reward.

Same physics, same observations, same reward terms; envpool draws other initial states, and returns the reward in
float32. Ant has a backend of its own as well, gymnasium's Ant to the bit (envs/ants.py). Actions are used as they come
(no clipping beyond MuJoCo's own control range).

Ant after Dohare et al. 2024 (Nature 632:768-774) is ``ant_observation="padded-111"``, ``contact_cost_weight=0`` and
``healthy_reward_on_termination=True``: their Ant-v3 had 84 contact inputs that were always 0, hence no contact cost,
and it paid the healthy reward on the last step. The number of inputs matters even if most are 0: it sets the scale of
the initial weights.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from envs.family import Backend, Family, Options, Parts, WorldInfo, one_of, require

if TYPE_CHECKING:
    import numpy as np

    from envs.config import WorldConfig
    from envs.pools import Pool
    from envs.tasks import TaskLaw, TaskSchedule

# Observation size, action size and time limit in steps of the worlds that envpool and gymnasium know.
ROBOTS: dict[str, tuple[int, int, int]] = {
    "Ant-v5": (105, 8, 1000),
    "HalfCheetah-v5": (17, 6, 1000),
    "Hopper-v5": (11, 3, 1000),
    "Humanoid-v5": (348, 17, 1000),
    "HumanoidStandup-v5": (348, 17, 1000),
    "InvertedDoublePendulum-v5": (9, 1, 1000),
    "InvertedPendulum-v5": (4, 1, 1000),
    "Pusher-v5": (23, 7, 100),
    "Reacher-v5": (10, 2, 50),
    "Swimmer-v5": (8, 2, 1000),
    "Walker2d-v5": (17, 6, 1000),
}
ANT = "Ant-v5"
ANT_OBSERVATIONS = {"default-105": 105, "plain-27": 27, "padded-111": 111}
STATE_SIZE = 27
"""Ant's positions without x and y (13) and velocities (14): the first numbers of every variant."""
REPORTED = frozenset({"reward_forward", "reward_ctrl", "reward_contact", "reward_survive", "x_velocity"})
"""Columns of the backends' infos that are passed on, where a world has them. Positions are not: the two backends define
them differently (envpool's lags by one physics step)."""


@dataclass(frozen=True)
class AntOptions(Options):
    """The variants of Ant."""

    where: ClassVar[str] = f"{ANT} and FrictionAnt-v0"
    ant_observation: Literal["default-105", "plain-27", "padded-111"] = "default-105"
    """Ant: Ant-v5's own 105 numbers; the 27 of positions and velocities; or these and 84 zeros (Dohare et al. 2024)."""
    contact_cost_weight: float = 5e-4
    """Ant: weight of the squared, clipped contact forces in the reward; Dohare et al. 2024's Ant amounts to 0."""
    healthy_reward_on_termination: bool = False
    """Ant: pay the +1 healthy reward on the step that ends the episode too, as Ant-v3 did and Ant-v5 does not."""

    def check(self) -> None:
        weight, variant = self.contact_cost_weight, self.ant_observation
        require(0.0 <= weight < float("inf"), "contact_cost_weight", weight, "must be a finite number of at least 0")
        require(variant in ANT_OBSERVATIONS, "ant_observation", variant, one_of(ANT_OBSERVATIONS))


class MuJoCo(Family):
    """See the module."""

    name = "mujoco"
    worlds = "Ant-v5 and the other MuJoCo ids"
    ids = tuple(ROBOTS)
    backends = ("native", "envpool", "gymnasium")
    usual_backends = f"native for {ANT}, envpool for the other mujoco ids"
    options = (AntOptions,)
    saved_exactly = ("gymnasium", "native")
    speeds: ClassVar = {"envpool": 4400}
    lives = False
    observes = "numbers"
    bytes_each = 2**18
    drawing_hint = "; without a screen, try MUJOCO_GL=egl or osmesa"

    def backends_of(self, env: str) -> tuple[str, ...]:
        return tuple(one for one in self.backends if one != "native" or env == ANT or env not in ROBOTS)

    def settled(self, config: WorldConfig, given: Collection[str]) -> WorldConfig:
        """With the backend of an Ant by its name: earlier versions recorded "auto", and meant envpool by it."""
        auto = config.env == ANT and config.backend == "auto"
        return replace(config, backend=config.resolved_backend) if auto else config

    def newer(self, name: str) -> str | None:
        """See `Family.newer`: Ant-v4, Hopper-v3 and the like."""
        base, _, version = name.rpartition("-v")
        return f"{base}-v5" if f"{base}-v5" in self.ids and version in ("2", "3", "4") else None

    def describe(self, config: WorldConfig) -> WorldInfo:
        """See `Family.describe`. The sizes come from a table."""
        name = self.robot(config)
        size, action_dim, _ = ROBOTS[name]
        size = ANT_OBSERVATIONS[config.ant_observation] if name == ANT else size
        return self.info(config, (size,), "float32", action_dim=action_dim)

    def build(self, config: WorldConfig, backend: Backend, schedule: Callable[[TaskLaw], TaskSchedule]) -> Parts:
        import numpy as np
        from gymnasium.spaces import Box

        pool = self.make_pool(config, backend, schedule)
        encode, size = encoder(config, pool.single_observation_space.shape[0])
        limit = config.max_episode_steps or ROBOTS[self.robot(config)][2]
        return Parts(pool, encode, Box(-np.inf, np.inf, (size,), np.float32), limit)

    def robot(self, config: WorldConfig) -> str:
        """Which of gymnasium's robots it is."""
        return config.env

    def make_pool(self, config: WorldConfig, backend: Backend, schedule: Callable[[TaskLaw], TaskSchedule]) -> Pool:
        """The pool of `config`'s backend."""
        from envs.pools import EnvPool, GymnasiumPool

        if config.resolved_backend == "gymnasium":
            one = lambda: single_robot(config, backend.render_mode, config.env)  # noqa: E731
            return GymnasiumPool(one, config.num_envs, config.env, REPORTED)
        if config.resolved_backend == "native":
            from envs.ants import NativeAntPool

            return NativeAntPool(config, backend.threads)
        settings: dict[str, Any] = {}
        if config.env == ANT:
            # use_contact_force=False would take the forces out of the observation AND out of the reward.
            settings = {
                "contact_cost_weight": config.contact_cost_weight,
                "legacy_healthy_reward": config.healthy_reward_on_termination,
            }
        return EnvPool(config.env, config.num_envs, backend.seed, backend.threads, settings, reported=REPORTED)


FAMILY = MuJoCo()


def encoder(config: WorldConfig, raw_size: int) -> tuple[Callable[[np.ndarray], np.ndarray], int]:
    """The map from raw observations [n, raw_size] to fresh float32 [n, size], and that size."""
    import numpy as np

    if config.ant_observation == "default-105":
        return lambda raw: raw.astype(np.float32), raw_size
    size = ANT_OBSERVATIONS[config.ant_observation]
    if size == STATE_SIZE:
        return lambda raw: raw[:, :STATE_SIZE].astype(np.float32), size

    def pad(raw: np.ndarray) -> np.ndarray:
        padded = np.zeros((len(raw), size), dtype=np.float32)
        padded[:, :STATE_SIZE] = raw[:, :STATE_SIZE]
        return padded

    return pad, size


def single_robot(config: WorldConfig, render_mode: str | None, name: str) -> Any:
    """One gymnasium environment `name` of `config`, without a time limit."""
    import gymnasium

    class HealthyToTheEnd(gymnasium.Wrapper):
        """Ant-v3's reward: the healthy reward is paid on the step that ends the episode too."""

        def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            observation, reward, terminated, truncated, info = self.env.step(action)
            if terminated:
                missing = self.env.unwrapped._healthy_reward - info["reward_survive"]
                reward, info = reward + missing, {**info, "reward_survive": info["reward_survive"] + missing}
            return observation, reward, terminated, truncated, info

    options = {"contact_cost_weight": config.contact_cost_weight} if name == ANT else {}
    # -1: no TimeLimit wrapper, the world counts the steps itself.
    env = gymnasium.make(name, render_mode=render_mode, max_episode_steps=-1, disable_env_checker=True, **options)
    return HealthyToTheEnd(env) if config.healthy_reward_on_termination else env
