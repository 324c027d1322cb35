"""The runs of a demonstration: in processes of one thread each, with a bar."""

from concurrent.futures import as_completed
from dataclasses import replace
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from envs.cores import usable_cores
from experiments.cli import parse_train
from experiments.config import TrainConfig
from experiments.processes import of_one_thread


def made(arms: dict[str, str], world: str, seeds: int, place: Path) -> int:
    """Make a run of each arm (flags by name) and seed in `world` (flags) in `place`, or go on with it. An exit code:
    0: all are finished; 1: one is not."""
    jobs = []
    for seed in range(1, seeds + 1):  # seed by seed: what is there early compares
        for arm, flags in arms.items():
            config = parse_train([*world.split(), *flags.split(), "--seed", str(seed), "--runs-dir", str(place)])
            name = "_".join([arm.replace(", ", "+").replace(" ", "-"), f"s{seed}"])
            jobs.append((replace(config, run=replace(config.run, name=name)), f"{arm}, seed {seed}"))
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    failed = 0
    with Progress(*columns) as bars, of_one_thread(min(usable_cores(), 8)) as pool:
        bar = bars.add_task("training", total=len(jobs))
        futures = {pool.submit(_make, config): label for config, label in jobs}
        for future in as_completed(futures):
            returns, why = future.result()
            failed += bool(why)
            shown = " -> ".join(f"{value:.0f}" for value in returns)
            bars.console.print(f"{futures[future]:42} {why or shown}", highlight=False)
            bars.advance(bar)
    return 1 if failed else 0


def _make(config: TrainConfig) -> tuple[list[float], str]:
    """(the last tenth of each task, why it is not finished)."""
    from experiments.results.runs import read_run
    from experiments.sweep.trials import make

    outcome = make(config)
    if outcome.state != "finished":
        return [], outcome.why or outcome.state
    run = read_run(config.run.runs_dir / config.run.name)
    return [row["last_tenth_return"] for row in run.boundaries], ""
