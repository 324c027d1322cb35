"""What does a large target mean do to features, and to the next task (Lyle24)?

    python -m experiments.studies.target_mean docs/results/target_mean.png

500 images of Fashion-MNIST have targets c + g(image), g without structure and of unit variance, for 2,000 gradient
steps of 64; then a new g with the same c, for as many. Reported: the squared error at the end of the second task, and
the effective rank of the last features, raw and centred, at the end of the first. Raw ranks fall with any common
mean, so that the error on the next task decides. One arm begins with its output bias at c: what is left there is not
the mean's doing. HL-Gauss spreads targets over 101 atoms on [-5, c + 5]; its error is that of its expectation.
For each arm and each mean, the learning rate is the one with the least error on the FIRST task, and the strength the
one with the least on the second; both by the geometric mean over two seeds of their own. What the .csv of the same
name holds is not run again, nor tuned.
"""

import sys
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agents import losses
from envs.datasets import EMBEDDED, load_dataset
from experiments.results.statistics import of_seeds
from experiments.results.tables import in_markdown
from experiments.studies.arms import STRENGTHS, interventions
from experiments.studies.report import Pairs, completed, draw, in_parallel, parser
from experiments.studies.supervised import SupervisedLearner

IMAGES, TASK_STEPS, BATCH, ATOMS = 500, 2_000, 64, 101
MEANS, RATES, TUNING_SEEDS = (0.0, 100.0), (3e-4, 1e-3, 3e-3), (1_001, 1_002)
ARMS = {arm: arm for arm in STRENGTHS} | {
    "output bias = c": "none",
    "HL-Gauss": "none",
    "HL-Gauss + layer_norm": "layer_norm",
}
"""The interventions of each arm, by their name in arms.py."""


def squared(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean squared error of [batch, 1] beside [batch]."""
    return losses.squared_error(outputs.squeeze(1), targets).mean()


def categorical(outputs: Tensor, targets: Tensor, support: Tensor) -> Tensor:
    """Mean cross-entropy of logits [batch, atoms] to targets [batch] spread over the support (HL-Gauss)."""
    return losses.cross_entropy(outputs, losses.hl_gauss(targets, support, sigma_bins=0.75)).mean()


def run(arm: str, c: float, strength: float, learning_rate: float, seed: int, tasks: int = 2) -> list[dict[str, Any]]:
    """One row: errors of the tasks and the features' ranks."""
    images = torch.from_numpy(load_dataset(EMBEDDED).images[:IMAGES])
    support = losses.atoms(-5.0, c + 5.0, ATOMS) if arm.startswith("HL-Gauss") else None
    chosen = interventions(ARMS[arm], strength, TASK_STEPS)
    loss = squared if support is None else partial(categorical, support=support)
    learner = SupervisedLearner(images, 1 if support is None else ATOMS, loss, chosen, learning_rate, seed)
    if arm == "output bias = c":
        torch.nn.init.constant_(learner.network.head.bias, c)
    noise = np.random.default_rng([seed, 11])
    row = {"arm": arm, "mean": c, "strength": strength, "learning_rate": learning_rate, "seed": seed}
    for task in range(1, tasks + 1):
        targets = torch.from_numpy(c + noise.standard_normal(IMAGES)).float()
        learner.learn(targets, TASK_STEPS, BATCH)
        outputs = learner.outputs()
        values = outputs.squeeze(1) if support is None else losses.expected_value(outputs, support)
        row[f"error of task {task}"] = losses.squared_error(values, targets).mean().item()
        row |= {f"{name}, task {task}": value for name, value in learner.features().items()}
    return [row]


def tuned(arms: list[str], workers: int) -> dict[tuple[str, float], tuple[float, float]]:
    """(strength, learning rate) of each arm at each mean."""

    def errors(settings: list[tuple], tasks: int) -> dict[tuple, float]:
        """The logarithm of the last task's error, by setting."""
        jobs = [(*setting, seed, tasks) for setting in settings for seed in TUNING_SEEDS]
        found = in_parallel(run, jobs, workers, "learning rates" if tasks == 1 else "strengths")
        logs = np.log([rows[0][f"error of task {tasks}"] for rows in found]).reshape(-1, len(TUNING_SEEDS)).mean(1)
        return dict(zip(settings, np.nan_to_num(logs, nan=np.inf), strict=True))

    tried = [(arm, c, strength) for arm in arms for c in MEANS for strength in STRENGTHS[ARMS[arm]]]
    first = errors([(*one, rate) for one in tried for rate in RATES], 1)
    best = [min(((*one, rate) for rate in RATES), key=first.__getitem__) for one in tried]
    second = errors([setting for setting in best if len(STRENGTHS[ARMS[setting[0]]]) > 1], 2)
    chosen: dict[tuple[str, float], tuple[float, float]] = {}
    for arm, c, strength, rate in sorted(best, key=lambda setting: second.get(setting, 0.0)):
        chosen.setdefault((arm, c), (strength, rate))
    return chosen


def summary(rows: list[dict[str, Any]]) -> str:
    """A table by arm and mean, in Markdown."""
    lines = []
    for arm in dict.fromkeys(row["arm"] for row in rows):
        for c in dict.fromkeys(row["mean"] for row in rows):
            mine = [row for row in rows if row["arm"] == arm and row["mean"] == c]
            error, low, high = of_seeds(row["error of task 2"] for row in mine)
            means = {
                name: np.mean([row[name] for row in mine])
                for name in ("error of task 1", "effective rank, raw, task 1", "effective rank, centred, task 1")
            }
            first, raw, centred = means.values()
            interval = f"{error:.2g} [{low:.2g}, {high:.2g}]"
            settings = [f"{mine[0][name]:g}" for name in ("mean", "strength", "learning_rate")]
            lines.append([arm, *settings, f"{first:.2g}", interval, f"{raw:.3g}", f"{centred:.3g}"])
    header = ["arm", "c", "strength", "learning rate", "error, task 1", "error, task 2 [95 %]"]
    return in_markdown([[*header, "effective rank, raw", "centred"], *lines])


def main(arguments: list[str]) -> int:
    """Run what the .csv lacks, draw, print the table."""
    given = parser(__doc__, list(ARMS), seeds=10).parse_args(arguments)

    def jobs(missing: Pairs, rows: list[dict[str, Any]]) -> list[tuple]:
        chosen = {(row["arm"], row["mean"]): (row["strength"], row["learning_rate"]) for row in rows}
        if untried := [arm for arm in dict(missing) if not all((arm, c) in chosen for c in MEANS)]:
            chosen |= tuned(untried, given.workers)
        return [(arm, c, *chosen[arm, c], seed) for arm, seed in missing for c in MEANS]

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
    draw(given.figure, panels, "c, the targets' mean", "Targets c + noise: features, and the next task", time=False)
    print(summary(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
