"""The runs of a study of supervised problems: planned, made in processes of one thread each, resumed by name."""

import hashlib
import json
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

from agents.config import require
from envs.cores import usable_cores
from experiments.json_file import read_json
from experiments.naming import safe
from experiments.places import fitting_name
from experiments.run_directory import ENDING
from experiments.supervised.config import SupervisedConfig, config_of, to_json
from experiments.sweep.cells import cells_of
from experiments.sweep.plan import check_claims
from experiments.sweep.study import Study

EVERY = 15.0
"""Seconds between two lines on how far it is."""


@dataclass(frozen=True)
class SupervisedTrial:
    """One run of a study."""

    arm: str
    world: str
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
    """Every run of the study. ValueError: names the arm, the field, its value and what is allowed."""
    require(not study.control and study.tune is None, "study", study.name, "without control and tune: it has a problem")
    cells, found = cells_of(study), []
    check_claims(study, cells)
    place = Path.cwd() / runs_dir / study.name / study.size / "trials"
    for cell in cells:
        try:
            config = config_of(cell.fields)
        except ValueError as error:
            raise ValueError(f"{cell.name}: {error}") from None
        for seed in study.seeds:
            one = replace(config, seed=seed)
            digest = hashlib.sha256(json.dumps(to_json(replace(config, seed=0)), sort_keys=True).encode()).hexdigest()
            name = fitting_name(safe("_".join([*cell.arm.split(), f"s{seed}", digest[:6]])))
            found.append(SupervisedTrial(cell.arm, cell.world, seed, place / name, one))
    return found


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
    with ProcessPoolExecutor(at_once, get_context("spawn"), _alone) as pool:
        futures = {pool.submit(_make, trial, command): trial for trial in left}
        try:
            for future in as_completed(futures):
                note(futures[future], future.result())
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return failed


def _alone() -> None:
    import torch

    os.environ["OMP_WAIT_POLICY"] = "passive"
    torch.set_num_threads(1)


def _make(trial: SupervisedTrial, command: list[str]) -> str:
    """Why the run failed; empty where it is finished."""
    from agents.guard import NonFiniteError
    from experiments.supervised.training import train

    try:
        train(trial.config, trial.directory, command)
        return ""
    except (ValueError, OSError, ArithmeticError, NonFiniteError) as error:
        return " ".join(str(error).split())[:300] or type(error).__name__
