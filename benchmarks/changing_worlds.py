"""What it costs that a world can change: steps per second beside the plain world, and the price of one change.

Every row is a changing world beside the plain one of the same environments, both stepped by random actions without any
learning, in turns within one process, so that a busy machine slows both alike; who goes first alternates. The changing
world stands between two changes, where a run spends its steps. ``ratio`` is the median over turns of its speed by the
plain world's within the turn, by processor time. ``change`` is the median time of one task change in all environments,
measured apart: the tick on which all change (``at = now``) less an ordinary tick. ``switching`` is what that comes to
in tasks of ``period`` steps: its share of the task's time.

ImageMDP-v0 has no plain world; it stands beside itself with a task that never ends.

    OMP_NUM_THREADS=1 python -m benchmarks.changing_worlds [--turns N] [--only ROW]
"""

import argparse
import os
import platform
import time
from dataclasses import dataclass, replace
from importlib.metadata import version
from statistics import median

from envs import TaskConfig, WorldConfig, make_vec_from_config
from envs.vector import World

NEVER = 2**40
SECONDS = 2.0
CHANGES = 15
ANT = WorldConfig(env="Ant-v5", num_envs=8)
FRICTION = WorldConfig(env="FrictionAnt-v0", num_envs=8, task=TaskConfig(period=NEVER))
BREAKOUT = WorldConfig(env="ALE/Breakout-v5", num_envs=8, full_action_space=True)
GAMES = WorldConfig(env="ALE/Breakout-v5,ALE/Pong-v5", num_envs=8, task=TaskConfig(period=NEVER))
IMAGES = WorldConfig(env="ImageMDP-v0", num_envs=8)


def changing(config: WorldConfig, change: str) -> WorldConfig:
    """`config` with tasks of that kind, the next of which is far away."""
    return replace(config, task=TaskConfig(change=change, period=NEVER))


@dataclass(frozen=True)
class Row:
    """A changing world, the plain one, and the period that a study would take."""

    name: str
    world: WorldConfig
    plain: WorldConfig
    period: int


ROWS = {
    "friction": Row("FrictionAnt-v0 / envpool Ant-v5", FRICTION, ANT, 300_000),
    "friction-1": Row("the same, one environment", replace(FRICTION, num_envs=1), replace(ANT, num_envs=1), 2_000_000),
    "ant-reset": Row("Ant-v5, reset / plain", changing(ANT, "reset"), ANT, 300_000),
    "games": Row("Breakout,Pong / Breakout (envpool)", GAMES, BREAKOUT, 300_000),
    "modes": Row("Breakout, modes / plain", changing(BREAKOUT, "modes"), BREAKOUT, 300_000),
    "atari-reset": Row("Breakout, reset / plain", changing(BREAKOUT, "reset"), BREAKOUT, 300_000),
    "actions": Row("Breakout, actions / plain", changing(BREAKOUT, "actions"), BREAKOUT, 300_000),
    "observations": Row("Breakout, observations / plain", changing(BREAKOUT, "observations"), BREAKOUT, 300_000),
    "rewards": Row("Breakout, rewards / plain", changing(BREAKOUT, "rewards"), BREAKOUT, 300_000),
    "labels": Row("ImageMDP-v0 / without end", changing(IMAGES, "labels"), IMAGES, 10_000),
}


class Stepper:
    """Steps a world by random actions drawn beforehand."""

    def __init__(self, config: WorldConfig) -> None:
        self.world: World = make_vec_from_config(config, seed=1, threads=1)
        self.world.reset()
        self.world.action_space.seed(0)
        self.actions = [self.world.action_space.sample() for _ in range(64)]
        self.tick = 0

    def step(self) -> None:
        """One step of every environment."""
        self.world.step(self.actions[self.tick % len(self.actions)])
        self.tick += 1

    def speed(self, ticks: int) -> tuple[float, float]:
        """Steps per second over `ticks`: by wall clock, by processor time of all threads."""
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(ticks):
            self.step()
        steps = ticks * self.world.num_envs
        return steps / (time.perf_counter() - wall), steps / (time.process_time() - cpu)


def seconds_of_a_change(config: WorldConfig) -> float:
    """Median seconds that a tick on which every environment changes takes beyond an ordinary one."""
    between = 12
    stepper = Stepper(replace(config, task=replace(config.task, period=between * config.num_envs, at="now")))
    ordinary, changes = [], []
    for tick in range(1, between * (CHANGES + 1)):
        begun = time.perf_counter()
        stepper.step()
        (changes if tick % between == 0 else ordinary).append(time.perf_counter() - begun)
    stepper.world.close()
    return median(changes) - median(ordinary)


def measure(row: Row, turns: int) -> str:
    """The row's line of the table."""
    steppers = {"world": Stepper(row.world), "plain": Stepper(row.plain)}
    ticks = {}
    for name, stepper in steppers.items():
        stepper.speed(200)
        ticks[name] = max(50, int(stepper.speed(200)[0] / stepper.world.num_envs * SECONDS))
    pairs = []
    for turn in range(turns):
        order = list(steppers) if turn % 2 == 0 else list(steppers)[::-1]
        speeds = {name: steppers[name].speed(ticks[name]) for name in order}
        pairs.append((speeds["world"], speeds["plain"]))
    for stepper in steppers.values():
        stepper.world.close()
    ratio = median(world[1] / plain[1] for world, plain in pairs)
    change = seconds_of_a_change(row.world)
    world, plain = (median(pair[i][0] for pair in pairs) for i in (0, 1))
    switching = change / (row.period / world)
    return (
        f"{row.name:36} {row.world.num_envs:3d} {world:10,.0f} {plain:10,.0f} {ratio:7.3f} {change * 1e3:9.2f} "
        f"{row.period:10,} {switching:9.3%}"
    )


def main() -> None:
    """Measure the rows asked for and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--turns", type=int, default=7, help="alternations a row (default 7)")
    parser.add_argument("--only", choices=list(ROWS), help="one row alone")
    arguments = parser.parse_args()
    if arguments.turns < 1:
        parser.error(f"argument --turns: {arguments.turns} must be at least 1")
    packages = ", ".join(f"{name} {version(name)}" for name in ("envpool", "mujoco", "ale-py", "gymnasium", "numpy"))
    processor = platform.processor() or platform.machine()
    print(f"{processor}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}, {packages}")
    print("1 thread, random actions, no learning")
    print(
        f"{'changing world / plain world':36} {'E':>3} {'steps/s':>10} {'plain':>10} {'ratio':>7} {'change ms':>9} "
        f"{'period':>10} {'switching':>9}"
    )
    for name, row in ROWS.items():
        if arguments.only in (None, name):
            print(measure(row, arguments.turns), flush=True)
    print(f"load at the end {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
