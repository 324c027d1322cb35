"""What a study's arms are measured by: trials that differ from theirs in a few flags. Imports no torch."""

from collections.abc import Iterable, Iterator

from experiments.config import TrainConfig
from experiments.sweep.cells import Cell

Pairs = Iterable[tuple[Cell, TrainConfig]]


def random_controls(cells: Pairs) -> Iterator[Cell]:
    """Of each world, and agent in it, a cell in which nothing is learned."""
    seen = set()
    for cell, config in cells:
        key = (config.world, config.run.steps, config.agent_name == "ppo")
        if key in seen:
            continue
        seen.add(key)
        if config.agent_name == "ppo":
            ticks = -(-config.run.steps // config.world.num_envs)
            never = {"rollout-steps": str(ticks + 1), "num-minibatches": "1"}
        else:
            never = {"learning-starts": str(config.run.steps)}
        yield cell.but({**never, "interventions": "none", "probes": "none"}, "random")


def fresh_controls(cells: Pairs) -> Iterator[Cell]:
    """Of each cell whose world changes, an agent for each whole task after the first: alone, and as long as that."""
    for cell, config in cells:
        period = config.world.task.period
        for task in range(1, config.run.steps // period if period else 0):
            alone = {"task.period": "0", "task.first": str(task), "steps": str(period)}
            yield cell.but(alone, f"{cell.arm} fresh")
