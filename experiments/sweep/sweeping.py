"""A whole sweep: tuned, made, and summed up.

from experiments.sweep.study import read_study      # or study_of, for one that Python's own dicts describe
from experiments.sweep.sweeping import sweep

swept = sweep(read_study(Path("study.yaml")), workers=1)
swept.finished, swept.failed                        # trials, with their arms, seeds and directories
"""

import importlib.util
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from rich.console import Console

from agents.config import require
from envs.cores import usable_cores
from experiments.durable import write_whole
from experiments.lock import Locked, RunLock
from experiments.places import from_here, quoted
from experiments.signals import EXIT_SAVED
from experiments.sweep import tuning
from experiments.sweep.board import Board
from experiments.sweep.disk import require_disk
from experiments.sweep.here import Here, limits_here
from experiments.sweep.listed import standing
from experiments.sweep.plan import FORKS, TRIALS, Plan, Trial, planned
from experiments.sweep.stacks import bundles
from experiments.sweep.study import Study

LAST = {"interrupted": 1, "running": 2, "crashed": 3}
"""How a trial may stand that is made after the new ones."""
INSTALL = "pip install -r requirements-sweep.txt"


@dataclass
class Swept:
    """How a sweep ended."""

    plan: Plan
    """With what tuning chose."""
    finished: list[Trial] = field(default_factory=list)
    failed: list[tuple[Trial, str]] = field(default_factory=list)
    """With their reasons."""
    left: list[Trial] = field(default_factory=list)
    """Those that are still to be made, or gone on with."""

    @property
    def exit_code(self) -> int:
        """0: all are finished; 1: some failed; 75: it was asked to stop, and goes on when it is started again."""
        return EXIT_SAVED if self.left else 1 if self.failed else 0


def sweep(
    study: Study,
    runs_dir: Path = Path("runs"),
    workers: int = 0,
    ray_address: str = "",
    lock_timeout: float = 60.0,
    console: Console | None = None,
    plan: Plan | None = None,
) -> Swept:
    """Make the trials of `study` in `runs_dir`: on Ray, or with one worker in this process.

    What is finished is not made again, what was broken off goes on, what fails stops no other. `console` is told;
    `plan` is that of the study where it is there already. Raises ValueError, before anything is made, where something
    is wrong: the study, the cluster, no room on the disk, another sweep of this study that goes on.
    """
    console = console or Console(quiet=True, force_terminal=False)
    plan = plan or tuning.planned_as_tuned(study, runs_dir)
    on_ray = _on_ray(workers, ray_address)

    def say(sentence: str) -> None:
        console.print(sentence, highlight=False, markup=False, soft_wrap=True)

    left = [trial for trial in [*plan.tuning, *plan.trials, *plan.forks] if standing(trial).state != "finished"]
    if not left:
        return Swept(plan, finished=[*plan.trials, *plan.forks])
    processes = len(left) if ray_address and not workers else at_once(workers)
    stacks = sorted(map(len, bundles(left, limits_here(plan, processes))))
    disk = require_disk([trial.config for trial in left], sum(stacks[-processes:]))
    lock = _locked(plan.directory, lock_timeout)
    try:
        say(disk)
        engine = Here(plan, lock_timeout)
        if on_ray and left:
            from experiments.sweep.on_ray import OnRay

            engine = OnRay(plan, ray_address, workers, lock_timeout)
        for note in plan.notes:
            say(f"note: {note}")
        try:
            return _swept(study, runs_dir, plan, engine, console, say)
        finally:
            engine.close()
    finally:
        lock.release()


def at_once(workers: int) -> int:
    """How many processes make trials at the same time on this machine, where so many `workers` are asked for."""
    return workers or (usable_cores() if _ray_is_there() else 1)


def _ray_is_there() -> bool:
    return importlib.util.find_spec("ray") is not None


def _on_ray(workers: int, address: str) -> bool:
    """Whether Ray is asked for, and there."""
    there = _ray_is_there()
    require(there or not address, "ray_address", address, f"left out where Ray is not installed ({INSTALL})")
    require(there or workers <= 1, "workers", workers, f"1 where Ray is not installed ({INSTALL})")
    return there and workers != 1


def _locked(directory: Path, timeout: float) -> RunLock:
    """The lock of a study's directory: two sweeps of one study would be in each other's way."""
    directory.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + timeout
    while True:
        try:
            return RunLock(directory)
        except Locked:
            if time.monotonic() >= until:
                raise
            time.sleep(1)


def _swept(study: Study, runs_dir: Path, plan: Plan, engine: Here, console: Console, say: Callable) -> Swept:
    if plan.tuning:
        tuned = _stage(plan, plan.tuning, "tuning", engine, console)
        if tuned.left:
            return Swept(plan, left=[*tuned.left, *plan.trials, *plan.forks])
        for trial, why in tuned.failed:
            say(f"failed: {trial.config.run.name}: {why}")
        choices = tuning.choose(plan.tuning)
        tuning.write(choices, plan.directory / "tuned.json")
        for choice in choices:
            say(tuning.in_words(choice))
        plan = planned(study, runs_dir, tuning.by_cell(choices))
    write_arms(plan)
    made = _stage(plan, plan.trials, "trials", engine, console)
    if made.left or not plan.forks:
        return replace(made, left=[*made.left, *plan.forks]) if made.left else made
    forked = _stage(plan, plan.forks, "forks", engine, console)
    return Swept(plan, made.finished + forked.finished, made.failed + forked.failed, forked.left)


def _stage(plan: Plan, trials: Sequence[Trial], title: str, engine: Here, console: Console) -> Swept:
    """Make `trials`, and say how each stands then."""
    board, states = Board(trials, title, console), {trial.directory: standing(trial).state for trial in trials}
    # one that ended this process with it should not do so again before the others are made
    new = [trial for trial in trials if states[trial.directory] != "finished"]
    new.sort(key=lambda trial: LAST.get(states[trial.directory], 0))
    for directory, state in states.items():
        if state == "finished":
            board.rows[directory].state = state
    if new:
        if len(new) < len(trials):
            board.say(f"{title}: {len(trials) - len(new):,} of {len(trials):,} are finished, and are not made again")
        with board:
            engine.make(new, board)
    swept = Swept(plan)
    for row in board.rows.values():
        if row.state == "finished":
            swept.finished.append(row.trial)
        elif row.state == "failed":
            swept.failed.append((row.trial, row.why))
        else:
            swept.left.append(row.trial)
    return swept


def write_arms(plan: Plan) -> None:
    """For people and programs: what each directory of the study is, as `arms.json` beside them. Raises OSError."""
    told = {
        trial.config.run.name: {"kind": trial.kind, "arm": trial.arm, "world": trial.world, "seed": trial.seed}
        | ({"tuned": trial.tuned} if trial.tuned else {})
        for trial in [*plan.trials, *plan.forks]
    }
    write_whole(plan.directory / "arms.json", (json.dumps(told, indent=2) + "\n").encode())


def summed_up(swept: Swept, command: str) -> list[str]:
    """What came of a sweep, for people."""
    plan = swept.plan
    lines = [f"failed: {trial.config.run.name}: {why}" for trial, why in swept.failed]
    counted = [f"{len(swept.finished):,} of {len(plan.trials) + len(plan.forks):,} trials are finished"]
    counted += [f"{len(swept.failed):,} failed"] if swept.failed else []
    counted += [f"{len(swept.left):,} are left"] if swept.left else []
    lines.append(", ".join(counted))
    if swept.left or swept.failed:
        lines.append(f"go on:     {command}")
    if swept.finished:
        place = from_here(plan.directory)
        compare = f"python compare.py {quoted(place / TRIALS)}"
        lines.append(f"compare:   {compare} --out {quoted(place / 'comparison')}")
        forked = f"{compare} {quoted(place / FORKS)} --out {quoted(place / 'forked')}"
        lines += [f"forks:     {forked}"] if plan.forks else []
    return lines
