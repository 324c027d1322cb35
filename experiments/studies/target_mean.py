"""What does a large target mean do to features, and to the next task (Lyle24)?

    python -m experiments.studies.target_mean docs/results/target_mean.png

500 images of Fashion-MNIST have targets c + g(image), g without structure and of unit variance, for 2,000 gradient
steps of 64; then a new g with the same c, for as many. Reported: the squared error at the end of the second task, and
the effective rank of the last features, raw and centred, at the end of the first. Raw ranks fall with any common
mean, so that the error on the next task decides. One arm begins with its output bias at c: what is left there is not
the mean's doing. HL-Gauss spreads targets over 101 atoms on [-5, c + 5]; its error is that of its expectation.
The learning rate (1e-3) and the strengths are the same for all means and were not tuned. What the .csv of the same
name holds is not run again.
"""

import sys
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agents import losses
from envs.datasets import EMBEDDED, load_dataset
from experiments.studies.arms import interventions
from experiments.studies.report import Pairs, completed, draw, mean_and_interval, parser, table
from experiments.studies.supervised import Learner

IMAGES, TASK_STEPS, BATCH, LEARNING_RATE, ATOMS = 500, 2_000, 64, 1e-3, 101
MEANS = (0.0, 100.0)
ARMS = {
    "none": 0.0,
    "output bias = c": 0.0,
    "layer_norm": 0.0,
    "weight_decay": 1e-1,
    "layer_norm + weight_decay": 1e-1,
    "redo": 0.1,
    "cbp": 1e-4,
    "l2_init": 1e-5,
    "HL-Gauss": 0.0,
    "HL-Gauss + layer_norm": 0.0,
}
"""The strength of each arm, the same for every mean."""


def squared(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean squared error of [batch, 1] beside [batch]."""
    return losses.squared_error(outputs.squeeze(1), targets).mean()


def categorical(outputs: Tensor, targets: Tensor, support: Tensor) -> Tensor:
    """Mean cross-entropy of logits [batch, atoms] to targets [batch] spread over the support (HL-Gauss)."""
    return losses.cross_entropy(outputs, losses.hl_gauss(targets, support, sigma_bins=0.75)).mean()


def run(arm: str, c: float, seed: int) -> list[dict[str, Any]]:
    """One row: errors of both tasks and the features' ranks."""
    images = torch.from_numpy(load_dataset(EMBEDDED).images[:IMAGES])
    support = losses.atoms(-5.0, c + 5.0, ATOMS) if arm.startswith("HL-Gauss") else None
    named = {"output bias = c": "none", "HL-Gauss": "none", "HL-Gauss + layer_norm": "layer_norm"}.get(arm, arm)
    chosen = interventions(named, ARMS[arm], TASK_STEPS)
    loss = squared if support is None else partial(categorical, support=support)
    learner = Learner(images, 1 if support is None else ATOMS, loss, chosen, LEARNING_RATE, seed)
    if arm == "output bias = c":
        torch.nn.init.constant_(learner.network.head.bias, c)
    noise, row = np.random.default_rng([seed, 11]), {"arm": arm, "mean": c, "seed": seed}
    for task in (1, 2):
        targets = torch.from_numpy(c + noise.standard_normal(IMAGES)).float()
        learner.learn(targets, TASK_STEPS, BATCH)
        outputs = learner.outputs()
        values = outputs.squeeze(1) if support is None else losses.expected_value(outputs, support)
        row[f"error of task {task}"] = losses.squared_error(values, targets).mean().item()
        row |= {f"{name}, task {task}": value for name, value in learner.features().items()}
    return [row]


def summary(rows: list[dict[str, Any]]) -> str:
    """A table by arm and mean, in Markdown."""
    lines = []
    for arm in dict.fromkeys(row["arm"] for row in rows):
        for c in dict.fromkeys(row["mean"] for row in rows):
            mine = [row for row in rows if row["arm"] == arm and row["mean"] == c]
            error, low, high = mean_and_interval(row["error of task 2"] for row in mine)
            means = {
                name: np.mean([row[name] for row in mine])
                for name in ("error of task 1", "effective rank, raw, task 1", "effective rank, centred, task 1")
            }
            first, raw, centred = means.values()
            interval = f"{error:.2g} [{low:.2g}, {high:.2g}]"
            lines.append([arm, f"{c:g}", f"{first:.2g}", interval, f"{raw:.3g}", f"{centred:.3g}"])
    return table(["arm", "c", "error, task 1", "error, task 2 [95 %]", "effective rank, raw", "centred"], lines)


def main(arguments: list[str]) -> int:
    """Run what the .csv lacks, draw, print the table."""
    given = parser(__doc__, list(ARMS), seeds=10).parse_args(arguments)

    def jobs(missing: Pairs, _: list[dict[str, Any]]) -> list[tuple]:
        return [(arm, c, seed) for arm, seed in missing for c in MEANS]

    rows = completed(given, list(ARMS), "mean", MEANS, jobs, run)
    panels: dict[str, dict[str, dict[float, list[float]]]] = {}
    for row in rows:
        shown = {
            "log10 of the error on the next task": np.log10(row["error of task 2"] + 1e-8),
            "effective rank after task 1, raw": row["effective rank, raw, task 1"],
            "effective rank after task 1, centred": row["effective rank, centred, task 1"],
        }
        for panel, value in shown.items():
            points = panels.setdefault(panel, {}).setdefault(row["arm"], {})
            points.setdefault(row["mean"], []).append(value)
    draw(given.figure, panels, "c, the targets' mean", "Targets c + noise: features, and the next task")
    print(summary(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
