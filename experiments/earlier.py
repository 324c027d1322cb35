"""A run that was begun before: whether it may go on, with which settings, and from what. Imports no torch."""

import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from agents.config import require, shown
from experiments.config import TrainConfig, from_dict, load_config
from experiments.durable import PARTIAL, clear_partial, partial_name
from experiments.flags import as_written, flags_of
from experiments.json_file import read_json
from experiments.lock import RunLock
from experiments.places import PlaceError, require_writable
from experiments.run_directory import ENDING
from experiments.store import Checkpoint, Unsound, listed, newest, read

OF_THE_PLACE = ("--runs-dir", "--name")
PATIENCE = "--world-timeout"
"""What may be another when a run goes on: where a world has hung, it is what one changes."""
LOGS = ("metrics.jsonl", "episodes.jsonl", "tasks.jsonl", "events.out.tfevents.*")


def earlier_run(config: TrainConfig) -> "EarlierRun | None":
    """The run whose directory `config` names; None where it names none, or there is nothing yet.

    Raises ValueError where something else is there, or a run with other settings: more steps may be asked for where no
    schedule depends on how many there are, and nothing else.
    """
    directory = config.run.runs_dir / config.run.name
    if not config.run.name or not os.path.lexists(directory):
        return None
    if os.path.isdir(directory) and _had_not_begun(directory):
        return EarlierRun(directory, config)
    try:
        before = load_config(directory)
    except ValueError as error:
        taken = f"new, or a run's that is to go on: {directory} exists already, and holds none ({error})"
        require(False, "name", config.run.name, taken)
    return EarlierRun(directory, _going_on(directory, before, config))


def _had_not_begun(directory: Path) -> bool:
    """Whether it holds nothing but what a run makes before its settings are written."""
    found = {path.name for path in directory.iterdir()}
    made = {"checkpoints", partial_name(directory / "config.json").name}
    return bool(found) and found <= made and not any((directory / "checkpoints").glob("*"))


def _going_on(directory: Path, before: TrainConfig, asked: TrainConfig) -> TrainConfig:
    """The settings of `before` with the steps and the patience that are `asked` for.

    Raises ValueError where that is another run.
    """
    first, now = _settings(before), _settings(_with_cadences(asked, before))
    steps, more = now.pop("--steps"), asked.run.steps > first.pop("--steps")
    both = [name for name in first if name in now]  # of an intervention that one has alone, its name says enough
    differ = [
        f"{name} {as_written(first[name])}, now {as_written(now[name])}" for name in both if first[name] != now[name]
    ]
    if not more and steps != before.run.steps:
        differ.append(f"--steps {before.run.steps}, now {steps}: fewer")
    _refuse(directory, differ)
    if more and before.stretched:
        why = f"{' and '.join(before.stretched)} depends on how many there are (.over run)"
        require(False, "steps", steps, f"{before.run.steps}, as before: {why}")
    return replace(before, run=replace(before.run, steps=steps, world_timeout=asked.run.world_timeout))


def refuse_other_interventions(directory: Path, before: TrainConfig, listed: Iterable[str]) -> None:
    """Raise ValueError where those `listed` are not those of the run in `directory`; their classes, which bring torch,
    need not be there for it."""
    first, now = tuple(one.name for one in before.interventions), tuple(listed)
    if first != now:
        _refuse(directory, [f"--interventions {as_written(first)}, now {as_written(now)}"])


def _refuse(directory: Path, differ: Sequence[str]) -> None:
    same = f"those of the run in {directory}, to go on with it; a new run needs another --name"
    if differ:
        raise ValueError(f"settings: must be {same}; they were {'; '.join(differ)}")


def _with_cadences(asked: TrainConfig, before: TrainConfig) -> TrainConfig:
    """Cadences that are left open are those that were settled when the run began."""
    run, old = asked.run, before.run
    chosen = {name: getattr(run, name) or getattr(old, name) for name in ("log_every", "checkpoint_every")}
    probe = replace(asked.probe, every=asked.probe.every or before.probe.every)
    return replace(asked, run=replace(run, **chosen), probe=probe)


def _settings(config: TrainConfig) -> dict[str, Any]:
    """Every setting by its flag, but where the run lies."""
    found = {flag.name: flag.default for flag in flags_of(config) if flag.name not in (*OF_THE_PLACE, PATIENCE)}
    found["--interventions"] = tuple(one.name for one in config.interventions)
    for one in config.interventions:
        own = one.parameters().items()
        found |= {f"--{one.name}.{name}".replace("_", "-"): value for name, value in own}
    return found


class EarlierRun:
    """A run that goes on in its `directory`. Nobody writes to that from `take_up` on but this process."""

    def __init__(self, directory: Path, config: TrainConfig) -> None:
        self.directory, self.config = directory, config
        self.checkpoint: Checkpoint | None = None
        """From which it goes on, verified; None where it was stopped before there was any."""
        self.lock: RunLock | None = None

    @property
    def threads(self) -> int:
        """Of torch, that it had before: with others its sums would be others. 0: nobody knows."""
        return self.checkpoint.made_by.get("torch_threads", 0) if self.checkpoint else 0

    @property
    def finished(self) -> str:
        """That nothing is left to do, in a sentence; empty where something is."""
        ending: Any = {}
        with suppress(ValueError):
            ending = read_json("ending", self.directory / ENDING)
        done = isinstance(ending, dict) and ending.get("ending") == "finished"
        try:
            last = read(listed(self.directory / "checkpoints")[-1])
        except (OSError, LookupError, Unsound):
            return ""
        if last.step < self.config.run.steps or not (done or last.not_resumable):
            return ""
        more = "" if last.not_resumable else " (with more --steps it goes on)"
        return f"{self.directory} is finished: {last.step:,} steps; nothing was done{more}"

    def take_up(self, say: Callable[[str], None], checkpoint: Checkpoint | None = None) -> None:
        """Lock the directory, and go on from `checkpoint`, or else from the newest one that is sound; `say` is told of
        those that are not.

        Raises Locked, Unsound where there is nothing to go on from, PlaceError where the directory takes no files.
        """
        require_writable("run", self.directory)
        try:
            self.lock = RunLock(self.directory)
        except OSError as error:
            where = shown(str(self.directory))
            raise PlaceError(f"run = {where}: must take files: {error.strerror or error}") from None
        if self.lock.remark:
            say(self.lock.remark)
        if leftovers := [*clear_partial(self.directory), *clear_partial(self.directory / "probes")]:
            say(f"removed, of writes that were broken off: {', '.join(leftovers)}")
        folder = self.directory / "checkpoints"
        logged = any((self.directory / name).exists() and (self.directory / name).stat().st_size for name in LOGS[:3])
        if not logged and not any(path.suffix != PARTIAL for path in folder.glob("*")):
            say(f"{self.directory}: was stopped before its first checkpoint, and begins anew")
            for path in (path for pattern in LOGS for path in self.directory.glob(pattern)):
                path.unlink()
            return
        self.checkpoint = checkpoint or newest(folder, say)
        try:
            _going_on(self.checkpoint.path, from_dict(self.checkpoint.config), self.config)
        except ValueError as error:
            raise Unsound(self.checkpoint.path, f"config.json is not the one that it was saved with: {error}") from None
