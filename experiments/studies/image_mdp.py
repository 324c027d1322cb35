"""Does an agent keep learning when the world changes? DQN on ImageMDP-v0, all labels drawn anew in every task.

    python -m experiments.studies.image_mdp docs/results/image_mdp_interventions.png

100 images of Fashion-MNIST with random labels; a task lasts 10,000 steps (5,000 gradient steps) and the replay is
cleared at its end, so that no old label contradicts a new one. Squared error, epsilon .1: the best mean return is 91
of 100. The learning rate is the one that is best for plain DQN on the first task; the strength of each arm is the one
with the best mean return over three tasks, with a seed of its own. Reported: the mean return over the last tenth of
each task. What the .csv of the same name holds is not run again, nor tuned.
"""

import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from experiments.cli import parse_train
from experiments.results.runs import read_run
from experiments.results.statistics import of_seeds, worst_quarter
from experiments.results.tables import in_markdown
from experiments.setup import build, check
from experiments.studies.arms import STRENGTHS, interventions
from experiments.studies.report import Pairs, completed, draw, in_parallel, parser
from experiments.train import train

PERIOD, GRADIENT_STEPS, TUNING_SEED, TUNING_TASKS = 10_000, 5_000, 1_001, 3
FLAGS = (
    "--image.variant random_label --image.num-images 100 --width 256 --loss mse --learning-rate 3e-4"
    " --replay-ratio 0.5 --target-period 100 --buffer-size 20000 --replay.on-task-change clear"
    f" --task.period {PERIOD} --threads 1 --probes none"
)


def run(arm: str, strength: float, seed: int, tasks: int) -> list[dict[str, Any]]:
    """One row a task."""
    flags = f"dqn --env ImageMDP-v0 --steps {tasks * PERIOD} --seed {seed} {FLAGS}"
    config = parse_train(flags.split())
    with tempfile.TemporaryDirectory() as folder:
        chosen = tuple(interventions(arm, strength, GRADIENT_STEPS))
        config = replace(config, interventions=chosen, run=replace(config.run, runs_dir=Path(folder)))
        check(config)
        result = train(config, *build(config))
        summaries = read_run(result.directory).boundaries
    if result.exit_code:
        raise RuntimeError(
            f"{arm}, strength {strength}, seed {seed}: the run ended early ({result.ending}): {result.why}"
        )
    row = {"arm": arm, "strength": strength, "seed": seed}
    return [
        {**row, "task": task, "return": summary["last_tenth_return"]} for task, summary in enumerate(summaries, start=1)
    ]


def tuned(arms: list[str], workers: int) -> dict[str, float]:
    """The strength of each arm."""
    jobs = [
        (arm, strength, TUNING_SEED, TUNING_TASKS)
        for arm in arms
        for strength in STRENGTHS[arm]
        if len(STRENGTHS[arm]) > 1
    ]
    found = in_parallel(run, jobs, workers, "strengths")
    mean = {job[:2]: np.mean([row["return"] for row in rows]) for job, rows in zip(jobs, found, strict=True)}
    return {arm: max(STRENGTHS[arm], key=lambda s, arm=arm: mean.get((arm, s), 0.0)) for arm in arms}


def summary(rows: list[dict[str, Any]]) -> str:
    """A table of first and last task by arm, in Markdown."""
    last = max(row["task"] for row in rows)
    lines = []
    for arm in dict.fromkeys(row["arm"] for row in rows):
        mine = [row for row in rows if row["arm"] == arm]
        begun = np.mean([row["return"] for row in mine if row["task"] == 1])
        ended = [row["return"] for row in mine if row["task"] == last]
        mean, low, high = of_seeds(ended)
        worst = worst_quarter(ended, lower_is_worse=True)
        lines.append(
            [arm, f"{mine[0]['strength']:g}", f"{begun:.1f}", f"{mean:.1f} [{low:.1f}, {high:.1f}]", f"{worst:.1f}"]
        )
    return in_markdown([["arm", "strength", "task 1", f"task {last:.0f} [95 %]", "worst quarter"], *lines])


def main(arguments: list[str]) -> int:
    """Run what the .csv lacks, draw, print the table."""
    flags = parser(__doc__, list(STRENGTHS), seeds=10)
    flags.add_argument("--tasks", type=int, default=5)
    given = flags.parse_args(arguments)

    def jobs(missing: Pairs, rows: list[dict[str, Any]]) -> list[tuple]:
        chosen = {row["arm"]: row["strength"] for row in rows}
        if untried := [arm for arm in dict(missing) if arm not in chosen]:
            chosen |= tuned(untried, given.workers)
        return [(arm, chosen[arm], seed, given.tasks) for arm, seed in missing]

    rows = completed(given, list(STRENGTHS), "task", range(1, given.tasks + 1), jobs, run)
    points: dict[str, dict[float, list[float]]] = {}
    for row in rows:
        points.setdefault(row["arm"], {}).setdefault(row["task"], []).append(row["return"])
    draw(given.figure, {"mean return over the last tenth of a task": points}, "task", "DQN, all labels drawn anew")
    print(summary(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
