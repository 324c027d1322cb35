"""What dead units cost a CPU whose subnormal numbers are not flushed to zero (`agents.precision.subnormal_flushed`).

A DQN learns the image MDP twice, from one seed: as it stands, and without flushing. They take turns, a stretch of steps
each; printed are the microseconds of a step by processor time, and the share of Adam's first moments that are
subnormal after it. Returns and weights of the two are equal, which is checked at the end.

    python -m benchmarks.subnormal [--stretches 6] [--steps 600]
"""

import argparse
from contextlib import nullcontext
from unittest.mock import patch

import torch

from benchmarks.learners import Ours
from benchmarks.throughput import VALUE, settings_of
from benchmarks.turns import machine

FLAGS = f"dqn --env ImageMDP-v0 {VALUE} --loss huber"


def subnormal(agent: object) -> float:
    """Share of the first moments that are neither zero nor normal."""
    states = agent.learner.optimization.adam.state.values()
    moments = torch.cat([state["exp_avg"].flatten() for state in states]).abs()
    return float(((moments > 0) & (moments < torch.finfo(torch.float32).tiny)).float().mean())


class Unflushed(Ours):
    """Ours, without flushing."""

    def run(self, steps: int) -> int:
        """Run on for at least `steps` steps."""
        with patch("agents.execution.subnormal_flushed", nullcontext):
            return super().run(steps)


def main() -> None:
    """Print a line a stretch."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--stretches", type=int, default=6)
    parser.add_argument("--steps", type=int, default=600, help="of a stretch")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(machine(), flush=True)
    learners = {"flushed": Ours(settings_of(FLAGS)), "not flushed": Unflushed(settings_of(FLAGS))}
    for learner in learners.values():
        learner.run(1_040)
    print(f"{'steps':>6} " + " ".join(f"{f'{name}, us a step':>24} {'subnormal':>10}" for name in learners))
    for _ in range(arguments.stretches):
        spent = {name: learner.window(0, arguments.steps).cpu for name, learner in learners.items()}
        cells = [f"{spent[name] * 1e6:24,.0f} {subnormal(each.agent):10.1%}" for name, each in learners.items()]
        print(f"{learners['flushed'].step:6,} " + " ".join(cells), flush=True)
    weights = [list(learner.agent.network.parameters()) for learner in learners.values()]
    equal = all(torch.equal(one, other) for one, other in zip(*weights, strict=True))
    print(f"weights are {'equal to the bit' if equal else 'NOT equal'}")
    for learner in learners.values():
        learner.close()


if __name__ == "__main__":
    main()
