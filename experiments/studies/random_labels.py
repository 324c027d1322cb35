"""Can a network still memorise? 1,000 images of Fashion-MNIST get random labels, again and again (Lyle23).

    python -m experiments.studies.random_labels docs/results/random_labels.png

Each task draws all labels anew and lasts 600 gradient steps. The learning rate of each arm is the one that is best on
the FIRST task (the smallest of equals), so that nobody is handicapped where there is no plasticity to lose; its
strength is the one with the best mean accuracy over ten tasks. Both are chosen with a seed of their own. What
the .csv of the same name holds is not run again, nor tuned.
"""

import sys
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from envs.datasets import EMBEDDED, load_dataset
from experiments.results.statistics import of_seeds, worst_quarter
from experiments.results.tables import in_markdown
from experiments.studies.arms import STRENGTHS, interventions
from experiments.studies.report import Pairs, completed, draw, in_parallel, parser
from experiments.studies.supervised import SupervisedLearner

IMAGES, TASK_STEPS, RATES = 1_000, 600, (3e-4, 1e-3, 3e-3)
TUNING_SEED, TUNING_TASKS = 1_001, 10


def run(arm: str, strength: float, learning_rate: float, seed: int, tasks: int) -> list[dict[str, Any]]:
    """One row a task: accuracy on all images at its end, and what the features look like."""
    images = torch.from_numpy(load_dataset(EMBEDDED).images[:IMAGES])
    labels = np.random.default_rng([seed, 7])
    learner = SupervisedLearner(
        images, 10, F.cross_entropy, interventions(arm, strength, TASK_STEPS), learning_rate, seed
    )
    rows = []
    for task in range(1, tasks + 1):
        drawn = torch.from_numpy(labels.integers(10, size=IMAGES))
        learner.learn(drawn, TASK_STEPS)
        accuracy = (learner.outputs().argmax(1) == drawn).float().mean().item()
        row = {"arm": arm, "strength": strength, "learning_rate": learning_rate, "seed": seed, "task": task}
        rows.append({**row, "accuracy": accuracy, **learner.features()})
    return rows


def tuned(arms: list[str], workers: int) -> dict[str, tuple[float, float]]:
    """(strength, learning rate) of each arm."""
    settings = [(arm, strength) for arm in arms for strength in STRENGTHS[arm]]
    jobs = [(arm, strength, rate, TUNING_SEED, 1) for arm, strength in settings for rate in RATES]
    first = in_parallel(run, jobs, workers, "learning rates")
    accuracy = {job[:3]: rows[0]["accuracy"] for job, rows in zip(jobs, first, strict=True)}
    rates = {one: max(RATES, key=lambda rate, one=one: accuracy[*one, rate]) for one in settings}
    jobs = [(arm, strength, rates[arm, strength], TUNING_SEED, TUNING_TASKS) for arm, strength in settings]
    found = in_parallel(run, jobs, workers, "strengths")
    mean = {job[:2]: np.mean([row["accuracy"] for row in rows]) for job, rows in zip(jobs, found, strict=True)}
    best = {arm: max(STRENGTHS[arm], key=lambda s, arm=arm: mean[arm, s]) for arm in arms}
    return {arm: (strength, rates[arm, strength]) for arm, strength in best.items()}


def summary(rows: list[dict[str, Any]]) -> str:
    """A table of first and last task by arm, in Markdown."""
    last = max(row["task"] for row in rows)
    lines = []
    for arm in dict.fromkeys(row["arm"] for row in rows):
        mine = [row for row in rows if row["arm"] == arm]
        begun = [row["accuracy"] for row in mine if row["task"] == 1]
        ended = [row for row in mine if row["task"] == last]
        accuracy = [row["accuracy"] for row in ended]
        mean, low, high = of_seeds(accuracy)
        collapsed = np.mean([row < 0.5 * np.mean(begun) for row in accuracy])
        lines.append(
            [
                arm,
                f"{mine[0]['strength']:g}",
                f"{mine[0]['learning_rate']:g}",
                f"{np.mean(begun):.2f}",
                f"{mean:.2f} [{low:.2f}, {high:.2f}]",
                f"{worst_quarter(accuracy, lower_is_worse=True):.2f}",
                f"{collapsed:.0%}",
                f"{np.mean([row['dead or linearised'] for row in ended]):.2f}",
                f"{np.mean([row['effective rank, centred'] for row in ended]):.0f}",
            ]
        )
    header = ["arm", "strength", "learning rate", "task 1", f"task {last:.0f} [95 %]", "worst quarter", "collapsed"]
    return in_markdown([[*header, "dead or linearised", "rank, centred"], *lines])


def main(arguments: list[str]) -> int:
    """Run what the .csv lacks, draw, print the table."""
    flags = parser(__doc__, list(STRENGTHS), seeds=10)
    flags.add_argument("--tasks", type=int, default=12)
    given = flags.parse_args(arguments)

    def jobs(missing: Pairs, rows: list[dict[str, Any]]) -> list[tuple]:
        chosen = {row["arm"]: (row["strength"], row["learning_rate"]) for row in rows}
        if untried := [arm for arm in dict(missing) if arm not in chosen]:
            chosen |= tuned(untried, given.workers)
        return [(arm, *chosen[arm], seed, given.tasks) for arm, seed in missing]

    rows = completed(given, list(STRENGTHS), "task", range(1, given.tasks + 1), jobs, run)
    panels: dict[str, dict[str, dict[float, list[float]]]] = {}
    for panel in ("accuracy", "dead or linearised", "effective rank, centred"):
        for row in rows:
            points = panels.setdefault(panel, {}).setdefault(row["arm"], {})
            points.setdefault(row["task"], []).append(row[panel])
    draw(given.figure, panels, "task", "Random labels, drawn anew for every task")
    print(summary(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
