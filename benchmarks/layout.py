"""What it brings that the weights of dense layers lie as products read them (`agents/layout.py`).

First the products of one layer on a batch, with either layout: forward, the gradient of its inputs, that of its
weights, and forward for one observation; microseconds, each pair in turn. Then learners on the image MDP with either,
who take turns.

    python -m benchmarks.layout [--turns 9] [--batch 32] [--steps 400]
"""

import argparse
from collections.abc import Callable
from statistics import median
from unittest.mock import patch

import torch

from benchmarks.learners import Ours
from benchmarks.throughput import VALUE, settings_of
from benchmarks.turns import machine as described
from benchmarks.turns import ratio, take_turns, timed
from experiments.machine import keep_memory

SHAPES = ((784, 512), (512, 512), (128, 128), (64, 64))
"""(Inputs, units)."""
AGAIN = 50
SETTINGS = {
    "512-512": f"dqn --env ImageMDP-v0 {VALUE} --loss huber",
    "128-128": f"dqn --env ImageMDP-v0 {VALUE} --loss huber --width 128",
}


def products(inputs: int, units: int, batch: int) -> dict[str, dict[str, Callable[[], torch.Tensor]]]:
    """By product and layout."""
    x, slope, bias = torch.randn(batch, inputs), torch.randn(batch, units), torch.randn(units)
    rows = torch.randn(units, inputs)
    columns = rows.t().contiguous().t()
    return {
        "forward": {
            "rows": lambda: torch.addmm(bias, x, rows.t()),
            "columns": lambda: torch.addmm(bias, x, columns.t()),
        },
        "of inputs": {"rows": lambda: slope.mm(rows), "columns": lambda: slope.mm(columns)},
        "of weights": {"rows": lambda: slope.t().mm(x), "columns": lambda: x.t().mm(slope)},
        "acting": {
            "rows": lambda: torch.addmm(bias, x[:1], rows.t()),
            "columns": lambda: torch.addmm(bias, x[:1], columns.t()),
        },
    }


def repeated(work: Callable[[], object]) -> int:
    """Do it so often."""
    for _ in range(AGAIN):
        work()
    return AGAIN


def plainly(settings: str) -> Ours:
    """A learner whose weights lie as torch lays them."""
    with patch("agents.interventions.lifecycle.lay_out", lambda network: network):
        return Ours(settings_of(settings))


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=400, help="of a learner's turn")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_memory()
    print(described(), flush=True)
    print(f"{'inputs x units':>16} " + " ".join(f"{name:>20}" for name in products(1, 1, 1)))
    for inputs, units in SHAPES:
        cells = []
        for pair in products(inputs, units, arguments.batch).values():
            windows = {name: lambda work=work: timed(lambda: repeated(work)) for name, work in pair.items()}
            found = take_turns(windows, arguments.turns)
            before, after = (median(spent.cpu for spent in found[name]) * 1e6 for name in ("rows", "columns"))
            cells.append(f"{before:8.1f} -> {after:8.1f}")
        print(f"{inputs:8} x {units:5} " + " ".join(f"{cell:>20}" for cell in cells), flush=True)
    print(f"\n{'DQN image MDP':>16} {'us a step, rows':>20} {'columns':>20} {'times as fast':>20}")
    for name, settings in SETTINGS.items():
        learners = {"rows": plainly(settings), "columns": Ours(settings_of(settings))}
        for learner in learners.values():
            learner.run(1_040)
        windows = {kind: lambda one=one: one.window(20, arguments.steps) for kind, one in learners.items()}
        found = take_turns(windows, arguments.turns)
        spent = {kind: median(each.cpu for each in found[kind]) * 1e6 for kind in found}
        gain = ratio(found["columns"], found["rows"])
        print(f"{name:>16} {spent['rows']:20,.0f} {spent['columns']:20,.0f} {gain:20.3f}", flush=True)
        for learner in learners.values():
            learner.close()


if __name__ == "__main__":
    main()
