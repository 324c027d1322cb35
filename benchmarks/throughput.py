"""Steps per second with learning on, beside Stable-Baselines3, on the same worlds with the same settings.

Measured: the wall-clock time of whole rollouts (PPO) or of a fixed number of steps with their gradient steps (DQN and
C51, after learning has begun), everything included: acting, the world, memory, updates. One thread each for torch and
for the world. The learners of a row live in one process and take turns, each turn a warm-up and then a counted window,
so that a busy machine slows both alike. The table gives medians over the turns; a ratio is the median over turns of the
ratio within a turn, by wall clock and, steadier where others use the machine too, by CPU time.

    python -m benchmarks.throughput [--quick] [--turns N] [--only ROW]
"""

import argparse
import os
import platform
import time
from dataclasses import dataclass, replace
from importlib.metadata import version
from statistics import median
from typing import NamedTuple

import torch

from agents.config import AgentConfig
from agents.kinds import kind_of
from agents.schedule import CONSTANT
from agents.value_config import Epsilon
from experiments.config import RunConfig, TrainConfig
from experiments.presets import preset_config
from experiments.run import Run, Update
from experiments.sb3_baseline import make_sb3
from experiments.setup import build

LEARNING_STARTS = 1_000
VALUE_CHANGES = {"buffer_size": 20_000, "learning_starts": LEARNING_STARTS, "epsilon": Epsilon(0.01, over=CONSTANT)}
ENDLESS = 2**40
RUN = RunConfig(seed=1, threads=1, device="cpu")
PACKAGES = ("torch", "envpool", "mujoco", "ale-py", "gymnasium", "stable-baselines3", "numpy")


@dataclass(frozen=True)
class Row:
    """One line of the table: settings of ours and of theirs, and how long a turn is."""

    name: str
    ours: TrainConfig
    theirs: TrainConfig
    unit: int
    """Steps of the smallest whole piece: a rollout, or the steps between gradient steps."""
    start: int
    """Steps run before the first turn, so that learning is under way."""
    warmup: int
    """Units run before each counted window."""
    window: int
    """Units counted."""
    note: str = ""


def ppo_row(env: str, family: str, warmup: int, window: int) -> Row:
    """PPO with CleanRL's settings for the world."""
    config = replace(preset_config("ppo", "auto", family, env), run=RUN)
    agent = config.agent
    shape = f"{config.world.num_envs}x{agent.rollout_steps}, {agent.update_epochs}x{agent.num_minibatches}"
    constant = replace(agent, learning_rate=agent.learning_rate.start, life_loss_discount=False)  # no speed in these
    config = replace(config, agent=constant)
    rollout = agent.rollout_steps * config.world.num_envs
    return Row(f"PPO {env.removeprefix('ALE/')} ({shape})", config, config, rollout, rollout, warmup, window)


def value_row(algorithm: str, window: int) -> Row:
    """DQN or C51 on Breakout, one environment, batch 32, a gradient step every 4 steps, beside their DQN."""

    def settings(agent: AgentConfig) -> AgentConfig:
        agent = replace(agent, network=replace(agent.network, padding="valid"), **VALUE_CHANGES)  # as theirs is
        return replace(agent, loss="huber") if kind_of(agent).value_loss else agent

    presets = (preset_config(name, "auto", "atari", "ALE/Breakout-v5") for name in (algorithm, "dqn"))
    ours, theirs = (replace(preset, agent=settings(preset.agent), run=replace(RUN, steps=20_000)) for preset in presets)
    note = "" if algorithm == "dqn" else "beside their DQN: Stable-Baselines3 has no C51"
    name = f"{algorithm.upper()} Breakout-v5 (1, batch 32, every 4)"
    return Row(name, ours, theirs, 4, LEARNING_STARTS + 40, 15, window, note)


def rows(quick: bool) -> dict[str, Row]:
    """The lines of the table by short name."""
    short = 2 if quick else 1
    return {
        "ppo-ant": ppo_row("Ant-v5", "mujoco", 1, 4 // short),
        "ppo-breakout": ppo_row("ALE/Breakout-v5", "atari", 1, 2 // short),
        "dqn-breakout": value_row("dqn", 120 // short),
        "c51-breakout": value_row("c51", 120 // short),
    }


class Ours:
    """Our learner, run on by whole units."""

    def __init__(self, config: TrainConfig) -> None:
        self.world, self.agent = build(config)
        self.events, self.step = iter(Run(self.agent, self.world, ENDLESS)), 0

    def run(self, steps: int) -> int:
        """Run on for at least `steps` steps, up to the end of the update that follows; the steps made."""
        begun = self.step
        for event in self.events:
            if isinstance(event, Update) and event.step - begun >= steps:
                self.step = event.step
                return self.step - begun
        raise RuntimeError("the run ended")

    def close(self) -> None:
        """Close the world."""
        self.world.close()


class Theirs:
    """Stable-Baselines3's learner, run on by whole units."""

    def __init__(self, config: TrainConfig) -> None:
        self.model = make_sb3(config)

    def run(self, steps: int) -> int:
        """Run on for at least `steps` steps, updates included; the steps made."""
        begun = self.model.num_timesteps
        self.model.learn(steps, reset_num_timesteps=False)
        return self.model.num_timesteps - begun

    def close(self) -> None:
        """Close the world."""
        self.model.env.close()


class MeasuredSpeed(NamedTuple):
    """Steps per second of one window."""

    wall: float
    cpu: float
    """By the CPU seconds of all threads of this process."""


def speed(learner: Ours | Theirs, row: Row) -> MeasuredSpeed:
    """The speed over one window, after a warm-up."""
    learner.run(row.warmup * row.unit)
    wall, cpu = time.perf_counter(), time.process_time()
    steps = learner.run(row.window * row.unit)
    return MeasuredSpeed(steps / (time.perf_counter() - wall), steps / (time.process_time() - cpu))


class Result(NamedTuple):
    """Medians over the turns: steps/s, and ours by theirs within a turn."""

    ours: float
    theirs: float
    ratio: float
    cpu_ratio: float


def measure(row: Row, turns: int) -> Result:
    """Both learners of `row` in turns, each turn printed as it ends."""
    learners = Ours(row.ours), Theirs(row.theirs)
    for learner in learners:
        learner.run(row.start)
    pairs = []
    for turn in range(turns):
        # who goes first changes, so that neither always follows the other
        order = learners if turn % 2 == 0 else learners[::-1]
        speeds = {type(learner): speed(learner, row) for learner in order}
        ours, theirs = speeds[Ours], speeds[Theirs]
        pairs.append((ours, theirs))
        print(f"  {row.name}  turn {turn + 1}/{turns}: ours {ours.wall:,.0f}, SB3 {theirs.wall:,.0f}", flush=True)
    for learner in learners:
        learner.close()
    return Result(
        median(ours.wall for ours, _ in pairs),
        median(theirs.wall for _, theirs in pairs),
        median(ours.wall / theirs.wall for ours, theirs in pairs),
        median(ours.cpu / theirs.cpu for ours, theirs in pairs),
    )


def machine() -> str:
    """What the figures depend on besides the code."""
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    cpus = f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}, {torch.get_num_threads()} torch thread"
    return f"{platform.processor() or platform.machine()}, {cpus}, Python {platform.python_version()}\n{versions}"


def main() -> None:
    """Measure the rows asked for and print the table."""
    parser = argparse.ArgumentParser(description="Steps per second with learning on, beside Stable-Baselines3.")
    parser.add_argument("--quick", action="store_true", help="windows of half the length")
    parser.add_argument("--turns", type=int, default=5, help="alternations a row (default 5)")
    parser.add_argument("--only", choices=list(rows(False)), help="one row alone")
    arguments = parser.parse_args()
    if arguments.turns < 1:
        parser.error(f"argument --turns: {arguments.turns} must be at least 1")
    torch.set_num_threads(1)
    print(machine(), flush=True)
    chosen = {name: row for name, row in rows(arguments.quick).items() if arguments.only in (None, name)}
    results = {name: measure(row, arguments.turns) for name, row in chosen.items()}
    print(f"\n{'steps/s with learning on':40} {'ours':>7} {'SB3':>7} {'ratio':>7} {'by CPU time':>12}")
    for name, result in results.items():
        ratios = f"{result.ratio:6.2f}x {result.cpu_ratio:11.2f}x"
        print(
            f"{chosen[name].name:40} {result.ours:7,.0f} {result.theirs:7,.0f} {ratios}  {chosen[name].note}".rstrip()
        )
    print(f"load at the end {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
