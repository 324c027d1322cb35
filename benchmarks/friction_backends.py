"""Steps per second of a friction-changing Ant, by the ways to give it a friction.

- ``envpool``: envpool's Ant-v5 as it is, the reference line.
- ``envpool + xml``: the same C++ Ants read from an XML with another friction; a new friction is a new pool.
- ``envpool, two halves``: the same during a task change, every second Ant in a pool of the old friction, the others in
  a pool of the new one.
- ``mujoco.rollout``: MuJoCo's own thread pool with one model per Ant; observation, reward and ends in NumPy. It returns
  neither the solver's warm start, nor the contact forces, nor the positions of the last Runge-Kutta stage, from which
  Ant-v5 takes its velocity (a sensor would give those of the first). This line makes do with zeros, a contact cost of 0
  and ``qpos``: it is NOT Ant-v5 to the bit, and observes 27 numbers where the others observe 105.
- ``native``: FrictionAnt-v0's native backend: one model and state per Ant, ``mj_step`` from Python threads. Ant-v5 to
  the bit, contact forces and all; a new friction is one assignment.
- ``gymnasium``: gymnasium's Ants one after the other, FrictionAnt-v0's other backend; one thread only.

All lines of a row run in one process and take turns, a warm-up and then a counted window each, random actions, fallen
Ants restarted. Figures are medians over the turns; ``x`` is the median over turns of the ratio to the reference line
within the turn. The last table is what a task change costs by itself.

    OMP_NUM_THREADS=1 python -m benchmarks.friction_backends [--turns N] [--steps N]
"""

from __future__ import annotations

import argparse
import copy
import os
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import envpool
import gymnasium
import mujoco
import numpy as np
from mujoco.rollout import Rollout

from envs.config import WorldConfig
from envs.families.friction_ant import FRICTION_ANT
from envs.friction import FrictionGymnasiumPool, NativeFrictionPool
from envs.pools import EnvPool, Outcome
from envs.tasks import Task

SUBSTEPS, SECONDS = 5, 0.05
"""Physics steps, and their time, of one step."""
SIZES, THREADS = (1, 8, 64), (1, 2)
OLD, NEW = (Task(0, 0, 0, f, {"friction": f}) for f in (0.3, 0.6))


class EnvPoolWithFriction(EnvPool):
    """envpool's Ants with a friction for good, written into an XML that is read while the pool is built."""

    def __init__(self, friction: float, num_envs: int, seed: int, threads: int) -> None:
        self.friction = friction
        super().__init__("Ant-v5", num_envs, seed, threads, {})

    def _build(self, seed: int) -> None:
        assets = Path(envpool.make_spec("Ant-v5").config.base_path).resolve() / "mujoco" / "assets_gym"
        xml = (assets / "ant.xml").read_text()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder).resolve() / "ant.xml"
            path.write_text(xml.replace('friction="1 0.5 0.5"', f'friction="{self.friction!r} 0.5 0.5"'))
            self._settings["xml_file"] = os.path.relpath(path, assets)
            super()._build(seed)


class Halves:
    """A task change under way: every second Ant in the one pool, the others in the other."""

    def __init__(self, num_envs: int, threads: int) -> None:
        everyone = np.arange(num_envs)
        pools = [EnvPoolWithFriction(task.content, num_envs, 0, threads) for task in (OLD, NEW)]
        self.parts = [(pools[0], everyone[::2]), (pools[1], everyone[1::2])]

    def start(self, seed: int) -> None:
        """Start both pools whole."""
        for pool, _ in self.parts:
            pool.start(seed)

    def advance(self, actions: np.ndarray) -> Outcome:
        """Step each pool's own rows and put the rows together."""
        outcomes = [pool.advance(actions[ids], ids) for pool, ids in self.parts]
        columns = []
        for column in zip(*(outcome[:3] for outcome in outcomes), strict=True):
            whole = np.empty((len(actions), *column[0].shape[1:]), column[0].dtype)
            for (_, ids), rows in zip(self.parts, column, strict=True):
                whole[ids] = rows
            columns.append(whole)
        return Outcome(*columns, None, None, {})

    def restart(self, ids: np.ndarray) -> None:
        """Restart each pool's own."""
        for pool, own in self.parts:
            mine = np.intersect1d(ids, own)
            if len(mine):
                pool.restart(mine)

    def close(self) -> None:
        """Close both."""
        for pool, _ in self.parts:
            pool.close()


class RolloutPool:
    """E Ants on `mujoco.rollout`, as near to Ant-v5 as it lets one come."""

    def __init__(self, num_envs: int, threads: int) -> None:
        first = gymnasium.make("Ant-v5").unwrapped.model
        first.geom_friction[:, 0] = NEW.content
        self.models = [first, *(copy.copy(first) for _ in range(num_envs - 1))]
        self.data = [mujoco.MjData(first) for _ in range(threads)]
        self.rollout = Rollout(nthread=threads if threads > 1 else 0)  # 0: none beside the calling one
        self.state = np.zeros((num_envs, 1 + first.nq + first.nv))
        self.path = np.zeros((num_envs, SUBSTEPS, self.state.shape[1]))
        self.sensors = np.zeros((num_envs, SUBSTEPS, 0))
        self.warm_start = np.zeros((num_envs, first.nv))
        self.random = np.random.default_rng(0)

    def start(self, seed: int) -> None:
        """Restart all."""
        self.restart(np.arange(len(self.models)))

    def advance(self, actions: np.ndarray) -> Outcome:
        """One step of all: observations [E, 27] and the reward without contact cost."""
        before = self.state[:, 1].copy()
        self.rollout.rollout(
            self.models,
            self.data,
            self.state,
            np.repeat(actions[:, None], SUBSTEPS, axis=1),
            control_spec=int(mujoco.mjtState.mjSTATE_CTRL),
            skip_checks=True,
            nstep=SUBSTEPS,
            initial_warmstart=self.warm_start,
            state=self.path,
            sensordata=self.sensors,
        )
        self.state = self.path[:, -1].copy()
        observations = self.state[:, 3:].copy()
        height = observations[:, 0]
        healthy = (height >= 0.2) & (height <= 1.0) & np.isfinite(observations).all(axis=1)
        velocity = (self.state[:, 1] - before) / SECONDS
        control = 0.5 * np.square(actions).sum(axis=1)
        infos = {"reward_forward": velocity, "reward_ctrl": -control, "reward_survive": healthy.astype(np.float64)}
        return Outcome(observations, velocity + healthy - control, ~healthy, None, None, infos)

    def restart(self, ids: np.ndarray) -> None:
        """Ant-v5's initial states."""
        model = self.models[0]
        self.state[ids, 0] = 0.0
        self.state[ids, 1 : 1 + model.nq] = model.qpos0 + self.random.uniform(-0.1, 0.1, (len(ids), model.nq))
        self.state[ids, 1 + model.nq :] = 0.1 * self.random.standard_normal((len(ids), model.nv))

    def close(self) -> None:
        """Stop the threads."""
        self.rollout.close()


def candidates(num_envs: int, threads: int) -> dict[str, Any]:
    """The lines of one row, the reference first."""
    config = WorldConfig(env=FRICTION_ANT, num_envs=num_envs)
    pools: dict[str, Any] = {
        "envpool": EnvPool("Ant-v5", num_envs, 0, threads, {}),
        "envpool + xml": EnvPoolWithFriction(NEW.content, num_envs, 0, threads),
    }
    if num_envs > 1:
        pools["envpool, two halves"] = Halves(num_envs, threads)
    pools["mujoco.rollout"] = RolloutPool(num_envs, threads)
    pools["native"] = NativeFrictionPool(config, threads)
    if threads == 1:
        pools["gymnasium"] = FrictionGymnasiumPool(config, None)
    for name in ("native", "gymnasium"):
        if name in pools:
            pools[name].enter(np.arange(num_envs), NEW)
    return pools


def speed(pool: Any, actions: np.ndarray, warmup: int) -> float:
    """Steps per second of `pool` under `actions` [steps, E, 8], the first `warmup` of them not counted."""
    begun = 0.0
    for count, row in enumerate(actions):
        if count == warmup:
            begun = time.perf_counter()
        fallen = np.flatnonzero(pool.advance(row).terminated)
        if len(fallen):
            pool.restart(fallen)
    return (len(actions) - warmup) * actions.shape[1] / (time.perf_counter() - begun)


def measure(num_envs: int, threads: int, turns: int, steps: int) -> None:
    """Measure one row of the table, all lines in turns, and print it."""
    pools = candidates(num_envs, threads)
    for pool in pools.values():
        pool.start(0)
    random, window = np.random.default_rng(1), max(steps // num_envs, 1)
    warmup = max(window // 10, 1)
    speeds: dict[str, list[float]] = {name: [] for name in pools}
    for turn in range(turns):
        actions = random.uniform(-1, 1, (warmup + window, num_envs, 8)).astype(np.float32)
        order = list(pools.items())
        shift = turn % len(order)  # so that no line is always the first, when the machine may still be settling
        for name, pool in order[shift:] + order[:shift]:
            speeds[name].append(speed(pool, actions, warmup))
    for name, pool in pools.items():
        ratio = median(own / reference for own, reference in zip(speeds[name], speeds["envpool"], strict=True))
        print(f"{num_envs:4} {threads:8} {name:22} {median(speeds[name]):9,.0f} {ratio:6.2f}x", flush=True)
        pool.close()


def measure_changes(turns: int) -> None:
    """Print what one change of all Ants to another friction costs, their restart included."""
    print(f"\n{'E':>4} {'envpool + xml':>14} {'native':>8}  ms for a change of friction in all Ants, one thread")
    for num_envs in SIZES:
        everyone, pool = np.arange(num_envs), NativeFrictionPool(WorldConfig(env=FRICTION_ANT, num_envs=num_envs), 1)
        rebuilding, assigning = [], []
        for turn in range(turns):
            begun = time.perf_counter()
            rebuilt = EnvPoolWithFriction(OLD.content, num_envs, turn, 1)
            rebuilt.start(turn)
            rebuilding.append(1e3 * (time.perf_counter() - begun))
            rebuilt.close()
            begun = time.perf_counter()
            pool.enter(everyone, OLD)
            pool.restart(everyone)
            assigning.append(1e3 * (time.perf_counter() - begun))
        pool.close()
        print(f"{num_envs:4} {median(rebuilding):14.1f} {median(assigning):8.2f}", flush=True)


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description="Steps per second of a friction-changing Ant.")
    parser.add_argument("--turns", type=int, default=7, help="alternations a row (default 7)")
    parser.add_argument("--steps", type=int, default=4_000, help="steps of a counted window, over all Ants")
    arguments = parser.parse_args()
    if arguments.turns < 1 or arguments.steps < 1:
        parser.error("--turns and --steps must be at least 1")
    versions = ", ".join(f"{name} {version(name)}" for name in ("envpool", "mujoco", "gymnasium", "numpy"))
    print(f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}; {versions}")
    print(f"{'E':>4} {'threads':>8} {'':22} {'steps/s':>9} {'x':>6}")
    for num_envs in SIZES:
        for threads in THREADS:
            measure(num_envs, threads, arguments.turns, arguments.steps)
    measure_changes(arguments.turns)
    print(f"load at the end {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
