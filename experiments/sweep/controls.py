"""What a study's arms are measured by: trials that differ from theirs in a few flags. Imports no torch."""

from collections.abc import Iterable, Iterator

from experiments.config import TrainConfig
from experiments.sweep.cells import Cell

Pairs = Iterable[tuple[Cell, TrainConfig]]
MOST_AT_RANDOM = 50_000
"""Steps in which PPO acts at random, in each task."""


def random_controls(cells: Pairs) -> Iterator[Cell]:
    """Of each world, and agent in it, a cell in which nothing is learned.

    PPO learns nothing in less than a rollout, which memory has to hold: so its cells are short, and where the world
    changes there is one for each whole task.
    """
    seen = set()
    for cell, config in cells:
        key = (config.world, config.run.steps, config.agent_name == "ppo")
        if key in seen:
            continue
        seen.add(key)
        plain = {"interventions": "none", "probes": "none"}
        if config.agent_name != "ppo":
            yield cell.but({**plain, "learning-starts": str(config.run.steps)}, "random")
            continue
        period = config.world.task.period
        steps = min(period or config.run.steps, MOST_AT_RANDOM)
        ticks = -(-steps // config.world.num_envs)
        never = {**plain, "steps": str(steps), "rollout-steps": str(ticks + 1), "num-minibatches": "1"}
        for task in range(max(1, config.run.steps // period)) if period else (None,):
            alone = {} if task is None else {"task.period": "0", "task.first": str(task)}
            yield cell.but({**never, **alone}, "random")


def fresh_controls(cells: Pairs) -> Iterator[Cell]:
    """Of each cell whose world changes, an agent for each whole task after the first: alone, and as long as that."""
    for cell, config in cells:
        period = config.world.task.period
        for task in range(1, config.run.steps // period if period else 0):
            alone = {"task.period": "0", "task.first": str(task), "steps": str(period)}
            yield cell.but(alone, f"{cell.arm} fresh")


def fork_sources(cells: Pairs) -> Iterator[Cell]:
    """Of each cell whose world changes, the same run as far as its last task, its replay kept: what is forked."""
    for cell, config in cells:
        period = config.world.task.period
        if period and config.run.steps // period > 1:
            last = (config.run.steps // period - 1) * period
            yield cell.but({"steps": str(last), "checkpoint.replay": "always"})
