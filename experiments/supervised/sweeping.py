"""The runs of a study of supervised problems: planned, made in processes of one thread each, resumed by name."""

import hashlib
import json
import time
from collections.abc import Callable, Iterable
from concurrent.futures import as_completed
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from agents.config import require
from envs.cores import usable_cores
from experiments.json_file import read_json
from experiments.naming import safe
from experiments.places import fitting_name
from experiments.processes import of_one_thread
from experiments.run_directory import ENDING
from experiments.supervised.config import SupervisedConfig, config_of, to_json
from experiments.sweep import tuning
from experiments.sweep.cells import Cell, cells_of
from experiments.sweep.grid import Fields
from experiments.sweep.plan import TRIALS, TUNING, check_claims, values_of
from experiments.sweep.study import Study

TUNED = "tuned.json"
"""What tuning chose, and why, in a study's directory."""
EVERY = 15.0
"""Seconds between two lines on how far it is."""


@dataclass(frozen=True)
class SupervisedTrial:
    """One run of a study."""

    arm: str
    world: str
    tuned: Fields
    """What is tried for, or was chosen by, tuning."""
    seed: int
    directory: Path
    config: SupervisedConfig

    @property
    def finished(self) -> bool:
        """Whether it has been made."""
        path = self.directory / ENDING
        try:
            return path.is_file() and read_json("ending", path).get("ending") == "finished"
        except (ValueError, AttributeError):
            return False


def is_supervised(study: Study) -> bool:
    """Whether a study is of supervised problems, and not of agents in worlds."""
    return "problem" in study.base


def planned(study: Study, runs_dir: Path) -> list[SupervisedTrial]:
    """Every run of the study that is reported: of what is tuned with the values that were chosen, before that with the
    smallest. ValueError: names the arm, the field, its value and what is allowed."""
    require(not study.control, "control", ", ".join(study.control), "left out: it has a problem, and no world")
    cells = cells_of(study)
    check_claims(study, cells)
    chosen = _chosen(study, runs_dir)
    settled = []
    for cell in cells:
        tried = values_of(study, cell)
        own = chosen.get(cell.name, {})
        fits = own.keys() == tried.keys() and all(own[name] in words for name, words in tried.items())
        settled.append(cell.but(own if fits else {name: words[0] for name, words in tried.items()}))
    return _trials(study, settled, _place(study, runs_dir) / TRIALS, study.seeds)


def tuners(study: Study, runs_dir: Path) -> list[SupervisedTrial]:
    """The runs that tune: of each arm one for every value, or combination of values, and seed."""
    if study.tune is None:
        return []
    candidates = []
    for cell in cells_of(study):
        values, tasks = values_of(study, cell), int(cell.fields.get("tasks", SupervisedConfig.tasks))
        shorter = {"tasks": str(max(1, round(tasks * study.tune.share)))}
        candidates += [
            cell.but(dict(zip(values, words, strict=True)) | shorter)
            for words in (product(*values.values()) if values else ())
        ]
    return _trials(study, candidates, _place(study, runs_dir) / TUNING, study.tune.seeds)


def _place(study: Study, runs_dir: Path) -> Path:
    return Path.cwd() / runs_dir / study.name / study.size


def _chosen(study: Study, runs_dir: Path) -> dict[str, Fields]:
    """By arm what tuning has chosen."""
    path = _place(study, runs_dir) / TUNED
    if study.tune is None or not path.is_file():
        return {}
    return {cell: one["chosen"] for cell, one in read_json("tuned", path).items()}


def _trials(study: Study, cells: list[Cell], place: Path, seeds: Iterable[int]) -> list[SupervisedTrial]:
    found = []
    for cell in cells:
        try:
            config = config_of(cell.fields)
        except ValueError as error:
            raise ValueError(f"{cell.name}: {error}") from None
        tuned = {name: cell.fields[name] for name in values_of(study, cell)}
        words = [*cell.arm.split(), *(f"{name}={word}" for name, word in tuned.items())]
        digest = hashlib.sha256(json.dumps(to_json(replace(config, seed=0)), sort_keys=True).encode()).hexdigest()
        for seed in seeds:
            name = fitting_name(safe("_".join([*words, f"s{seed}", digest[:6]])))
            found.append(SupervisedTrial(cell.arm, cell.world, tuned, seed, place / name, replace(config, seed=seed)))
    return found


def made(
    study: Study, runs_dir: Path, workers: int, command: list[str], say: Callable[[str], None]
) -> tuple[list[SupervisedTrial], list[tuple[SupervisedTrial, str]]]:
    """(the runs that are reported, those of them that failed, with the reason), once what is left of them is made, what
    tunes before. `say` hears how far it is."""
    path = _place(study, runs_dir) / TUNED
    if (tuning_ones := tuners(study, runs_dir)) and not path.is_file():
        say(f"{len(tuning_ones):,} runs tune")
        sweep(tuning_ones, workers, command, say)
        choices = tuning.choose(tuning_ones)
        tuning.write(choices, path)
        for choice in choices:
            say(tuning.in_words(choice))
    trials = planned(study, runs_dir)
    return trials, sweep(trials, workers, command, say)


def sweep(
    trials: list[SupervisedTrial], workers: int, command: list[str], say: Callable[[str], None]
) -> list[tuple[SupervisedTrial, str]]:
    """Make those of `trials` that are not finished; those that failed, with the reason. `say` hears how far it is."""
    left = [trial for trial in trials if not trial.finished]
    if len(left) < len(trials):
        say(f"{len(trials) - len(left):,} of {len(trials):,} are finished, and are not made again")
    failed: list[tuple[SupervisedTrial, str]] = []
    if not left:
        return failed
    at_once = min(workers or usable_cores(), len(left))
    begun, said, done = time.monotonic(), 0.0, 0

    def note(trial: SupervisedTrial, why: str) -> None:
        nonlocal said, done
        done += 1
        if why:
            failed.append((trial, why))
            say(f"failed: {trial.directory.name}: {why}")
        now = time.monotonic() - begun
        if now - said >= EVERY or done == len(left):
            said = now
            say(f"{done:,} of {len(left):,} runs made, {now / done * (len(left) - done) / 60:.1f} min left")

    if at_once == 1:
        for trial in left:
            note(trial, _make(trial, command))
        return failed
    with of_one_thread(at_once) as pool:
        futures = {pool.submit(_make, trial, command): trial for trial in left}
        try:
            for future in as_completed(futures):
                note(futures[future], future.result())
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return failed


def _make(trial: SupervisedTrial, command: list[str]) -> str:
    """Why the run failed; empty where it is finished."""
    from agents.guard import NonFiniteError
    from experiments.supervised.training import train

    try:
        train(trial.config, trial.directory, command)
        return ""
    except (ValueError, OSError, ArithmeticError, NonFiniteError) as error:
        return " ".join(str(error).split())[:300] or type(error).__name__
