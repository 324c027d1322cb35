"""gymnasium's Ant-v5 to the bit, initial states included, with many Ants stepped at once.

Why beside envpool: a lone Ant is handed to no other thread, what it depends on can be read, so that a run goes on from
where it stood, and its model can be changed under way (friction.py). Why not mujoco.rollout: it returns no contact
forces. benchmarks/friction_backends.py measures all of them.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import mujoco
import numpy as np
from gymnasium.utils.seeding import np_random

from envs.config import WorldConfig
from envs.cores import usable_cores
from envs.errors import failed
from envs.families.mujoco import ANT, STATE_SIZE, single_robot
from envs.pools import Outcome, Pool
from envs.snapshots import generator_state, new_generator, robot_state, set_robot

# Ant-v5's own numbers.
SUBSTEPS = 5
CONTROL_COST_WEIGHT = 0.5
HEALTHY_HEIGHTS = (0.2, 1.0)
RESET_NOISE = 0.1


class NativeAntPool(Pool):
    """Ants with a MuJoCo model and state each, stepped by threads.

    Each thread takes the next Ant that nobody has stepped yet; while MuJoCo computes, it leaves Python's lock to the
    others. Observations, rewards and ends are computed for all Ants together.

    Args:
        config: number of Ants and the variants of their reward.
        threads: how many step them, the calling one among them; 0 for one a usable core.
    """

    def __init__(self, config: WorldConfig, threads: int) -> None:
        ant = single_robot(config, None, ANT)
        self.num_envs, self._env = config.num_envs, config.env
        self.single_observation_space = ant.observation_space
        self.single_action_space = ant.action_space
        self._contact_weight = config.contact_cost_weight
        self._pays_at_the_end = config.healthy_reward_on_termination
        first = ant.unwrapped.model
        self._seconds = SUBSTEPS * first.opt.timestep
        self.models = [first, *(copy.copy(first) for _ in range(self.num_envs - 1))]
        self.states = [mujoco.MjData(model) for model in self.models]
        # Views of the states, made once: making them takes a tenth of a step.
        self._controls = [state.ctrl for state in self.states]
        self._torsos = [state.body("torso").xpos for state in self.states]
        self._seen = [(state.qpos[2:], state.qvel, state.cfrc_ext.reshape(-1)) for state in self.states]
        self._numbers = sum(map(len, self._seen[0]))
        self._x = np.zeros(self.num_envs)
        self._random = [np_random()[0] for _ in self.states]
        self._all = np.arange(self.num_envs)
        self._helpers = min(threads or usable_cores(), self.num_envs) - 1
        self._executor = ThreadPoolExecutor(self._helpers, "ant") if self._helpers else None

    def start(self, seed: int | None) -> tuple[np.ndarray, None]:
        """See `Pool.start`: Ant i begins as gymnasium's does with seed + i."""
        if seed is not None:
            self._random = [np_random(seed + i)[0] for i in range(self.num_envs)]
        return self.restart(self._all)

    def restart(self, ids: np.ndarray) -> tuple[np.ndarray, None]:
        raw = self._rows(len(ids))
        for row, i in enumerate(ids):
            model, state, random = self.models[i], self.states[i], self._random[i]
            mujoco.mj_resetData(model, state)
            state.qpos += random.uniform(-RESET_NOISE, RESET_NOISE, size=model.nq)
            state.qvel += RESET_NOISE * random.standard_normal(model.nv)
            mujoco.mj_forward(model, state)
            self._look(i, row, raw)
            self._x[i] = self._torsos[i][0]
        return _observe(raw)[0], None

    def advance(self, actions: np.ndarray, ids: np.ndarray | None = None) -> Outcome:
        ids = self._all if ids is None else ids
        actions = np.asarray(actions)  # in their own type, as gymnasium takes them
        raw, after = self._rows(len(ids)), np.empty(len(ids))
        # One iterator for all threads: its next() is a single operation under Python's lock.
        ants = enumerate(ids.tolist())
        helpers = min(self._helpers, len(ids) - 1)
        running = [self._executor.submit(self._step, ants, actions, raw, after) for _ in range(helpers)]
        self._step(ants, actions, raw, after)
        for helper in running:
            helper.result()
        velocity = (after - (self._x if ids is self._all else self._x[ids])) / self._seconds
        self._x[ids] = after
        return self._judge(actions, raw, velocity)

    def _step(self, ants: Iterator[tuple[int, int]], actions: np.ndarray, raw: np.ndarray, after: np.ndarray) -> None:
        for row, i in ants:
            self._controls[i][:] = actions[row]
            try:
                mujoco.mj_step(self.models[i], self.states[i], SUBSTEPS)
                mujoco.mj_rnePostConstraint(self.models[i], self.states[i])  # the contact forces
            except mujoco.FatalError as error:
                raise failed(self._env, i, "at a step", error) from error
            self._look(i, row, raw)
            after[row] = self._torsos[i][0]  # not qpos[0]: see `_judge`

    def _look(self, i: int, row: int, raw: np.ndarray) -> None:
        np.concatenate(self._seen[i], out=raw[row])

    def _rows(self, count: int) -> np.ndarray:
        """Space for positions without x and y, velocities and the contact forces on all bodies, the world's first."""
        return np.empty((count, self._numbers))

    def _judge(self, actions: np.ndarray, raw: np.ndarray, velocity: np.ndarray) -> Outcome:
        """Ant-v5's observations, rewards and ends. Its velocity [n] comes from the torso's position in the last stage
        of the last Runge-Kutta step, which differs a little from the final one."""
        observations, forces = _observe(raw)
        height, (low, high) = raw[:, 0], HEALTHY_HEIGHTS
        finite = np.logical_and.reduce(np.isfinite(raw[:, :STATE_SIZE]), axis=1)
        healthy = (height >= low) & (height <= high) & finite
        control = CONTROL_COST_WEIGHT * np.add.reduce(np.square(actions), axis=1)
        contact = self._contact_weight * np.add.reduce(np.square(forces), axis=1)
        rewards = velocity + healthy - (control + contact)
        survival = healthy.astype(np.float64)
        if self._pays_at_the_end:
            rewards, survival = rewards + (1.0 - survival), np.ones_like(survival)
        infos = {
            "reward_forward": velocity,
            "reward_ctrl": -control.astype(np.float64),
            "reward_contact": -contact,
            "reward_survive": survival,
            "x_velocity": velocity.copy(),
        }
        return Outcome(observations, rewards, ~healthy, None, None, infos)

    exact = True

    def state_dict(self) -> dict[str, Any]:
        robots = [robot_state(model, state) for model, state in zip(self.models, self.states, strict=True)]
        return {"robots": robots, "x": self._x.copy(), "random": [generator_state(one) for one in self._random]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for model, data, own in zip(self.models, self.states, state["robots"], strict=True):
            set_robot(model, data, own)
        self._x[:] = state["x"]
        self._random = [new_generator(one) for one in state["random"]]

    def close(self) -> None:
        if self._executor is not None:
            self._executor.shutdown()


def _observe(raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Observations [n, 105] and the clipped contact forces on all bodies [n, 84]; the world's six are not observed."""
    forces = np.minimum(np.maximum(raw[:, STATE_SIZE:], -1.0), 1.0)  # np.clip takes several times as long on few
    return np.concatenate((raw[:, :STATE_SIZE], forces[:, 6:]), axis=1), forces
