"""FrictionAnt-v0: an Ant-v5 whose ground and feet get another sliding friction at every task change.

After Dohare et al. 2024 (Nature 632:768-774): the sliding friction, the first of MuJoCo's three numbers, of all 14
geoms, floor included, drawn log-uniformly from [0.02, 2]. (The floor's alone would not do: MuJoCo takes the larger of
the two that touch.) The agent is not told. Observation and reward variants are those of families/mujoco.py.

Both backends are gymnasium's Ant-v5 to the bit. Why not envpool: it must build a new pool for every friction.
"""

from __future__ import annotations

import numpy as np

from envs.ants import NativeAntPool
from envs.config import WorldConfig
from envs.families.mujoco import ANT, REPORTED, single_robot
from envs.pools import GymnasiumPool, TaskPool
from envs.tasks import Task


class FrictionGymnasiumPool(GymnasiumPool, TaskPool):
    """gymnasium's Ants one after the other (a `TaskPool`).

    Example:
        >>> pool = FrictionGymnasiumPool(WorldConfig(env="FrictionAnt-v0", num_envs=2, backend="gymnasium"), None)
        >>> pool.enter(np.arange(2), Task(0, 0, 0, 0.02, {"friction": 0.02}))
        >>> pool.envs[1].unwrapped.model.geom_friction[0].tolist()
        [0.02, 0.5, 0.5]
    """

    def __init__(self, config: WorldConfig, render_mode: str | None) -> None:
        super().__init__(lambda: single_robot(config, render_mode, ANT), config.num_envs, config.env, REPORTED)

    def enter(self, ids: np.ndarray, task: Task) -> None:
        for i in ids:
            self.envs[i].unwrapped.model.geom_friction[:, 0] = task.content


class NativeFrictionPool(NativeAntPool, TaskPool):
    """Ants whose friction can be changed (a `TaskPool`)."""

    def enter(self, ids: np.ndarray, task: Task) -> None:
        for i in ids:
            self.models[i].geom_friction[:, 0] = task.content
