"""The runs of a directory in a table: how each stands, and whether it can go on. Imports no torch."""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from agents.config import require, shown
from experiments.json_file import read_json
from experiments.lock import holder
from experiments.records import EpisodeFile
from experiments.run_directory import ENDING
from experiments.store import Checkpoint, Unsound, listed, read

TAIL = 1 << 16
"""Bytes of a log's end that are read."""
RETURNS = ("charts/recent_return", "charts/episodic_return", "return")
"""What a run last returned, by tag of the log or in a game's line, the best first."""
FORMER = "final.pt"
"""What versions before left of a finished run."""


@dataclass(frozen=True)
class Listed:
    """One run directory."""

    name: str
    state: str
    """running, finished, interrupted, crashed, or unreadable."""
    why: str
    """Who runs it, why it ended, what cannot be read."""
    step: int
    steps: int
    last_return: float | None
    """Mean of the last games; None where none has ended."""
    resumable: str
    """From what it goes on, or why it does not."""


def listing(place: Path) -> list[Listed]:
    """The runs in the directory `place`, by name; `place` itself where it is one. ValueError: there are none."""
    require(os.path.isdir(place), "run", str(place), "a directory of runs beside --list")
    try:
        found = [place] if (place / "config.json").exists() else sorted(place.iterdir())
        runs = [path for path in found if (path / "config.json").is_file()]
    except OSError as error:
        raise ValueError(f"run = {shown(str(place))}: {error.strerror or error}") from None
    require(bool(runs), "run", str(place), "a directory of runs beside --list: none is here")
    return [listed_run(path) for path in runs]


def listed_run(path: Path) -> Listed:
    """How the run in the directory `path` stands."""
    try:
        steps = _steps(path / "config.json")
    except ValueError as error:
        return Listed(path.name, "unreadable", str(error), 0, 0, None, "no: its settings cannot be read")
    newest, why_not = _newest(path)
    lines = list(chain(_last_lines(path / "metrics.jsonl"), _last_lines(path / EpisodeFile.NAME)))
    seen = [line["step"] for line in lines if type(line.get("step")) is int]
    step = max([*seen, 0 if newest is None else newest.step])
    state, why = _state(path, newest, steps)
    resumable = f"from step {newest.step:,}" if newest is not None and not why_not else f"no: {why_not}"
    if state == "running":
        resumable = "it runs"
    elif state == "finished":
        step, resumable = max(step, steps), "with more steps" if not why_not else "no: it is finished"
    return Listed(path.name, state, why, step, steps, _last_return(lines), resumable)


def _steps(path: Path) -> int:
    """How long the run is to be. The settings as a whole would bring torch, where they list interventions."""
    settings = read_json("config", path)
    run = settings.get("run") if isinstance(settings, dict) else None
    steps = run.get("steps") if isinstance(run, dict) else None
    require(type(steps) is int, "run.steps", steps, f"a whole number in {path}")
    return steps


def _newest(path: Path) -> tuple[Checkpoint | None, str]:
    """(the newest checkpoint whose manifest is sound, why no run can go on from it); sizes are looked at, bytes are
    not."""
    try:
        paths = listed(path / "checkpoints")
    except OSError as error:
        return None, error.strerror or str(error)
    why = "it has no checkpoint that a run can go on from"
    for place in reversed(paths):
        try:
            found = read(place)
        except Unsound as error:
            why = str(error)
            continue
        lacking = [name for name, recorded in found.files.items() if _size(place / name) != recorded.bytes]
        lacking += [name for name, recorded in found.shared.items() if _size(path / name) != recorded.bytes]
        if not lacking or found.not_resumable:
            return found, found.not_resumable
        why = f"{shown(str(place))}: {lacking[0]} is not as it was written"
    return None, why


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _state(path: Path, newest: Checkpoint | None, steps: int) -> tuple[str, str]:
    """(how it stands, why)"""
    if (who := holder(path)) is not None:
        return "running", str(who)
    ending: Any = {}
    if (path / ENDING).exists():
        try:
            ending = read_json("ending", path / ENDING)
        except ValueError as error:
            return "unreadable", str(error)
    how, why = (str(ending.get(name, "")) for name in ("ending", "why")) if isinstance(ending, dict) else ("", "")
    if how == "finished" or (path / "checkpoints" / FORMER).exists():
        return "finished", ""
    if not how and newest is not None and newest.step >= steps and newest.not_resumable:
        return "finished", ""
    if how in ("", "interrupted"):
        return "interrupted", why if how else "no word of why: it was killed, or its machine stopped"
    return "crashed", f"{how}: {why}"


def _last_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects in the last lines of a log, the last first."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
            tail = file.read()
    except OSError:
        return
    for line in reversed(tail.split(b"\n")):
        try:
            record = json.loads(line)
        except ValueError:  # torn, at either end
            continue
        if isinstance(record, dict):
            yield record


def _last_return(lines: list[dict[str, Any]]) -> float | None:
    for tag in RETURNS:
        for line in lines:
            if isinstance(line.get(tag), int | float):
                return float(line[tag])
    return None


def table(runs: list[Listed]) -> list[str]:
    """The runs as lines of text."""
    width = max(len("run"), *(len(run.name) for run in runs))
    lines = [f"{'run':{width}}  {'state':11}  {'step':>27}  {'return':>9}  goes on"]
    for run in runs:
        returned = "-" if run.last_return is None else f"{run.last_return:.1f}"
        steps = f"{run.step:,} of {run.steps:,}"
        lines.append(f"{run.name:{width}}  {run.state:11}  {steps:>27}  {returned:>9}  {run.resumable}")
        if run.why:
            lines.append(f"{'':{width}}  {run.why}")
    return lines


def as_json(runs: list[Listed]) -> list[dict[str, Any]]:
    """The same for a program."""
    return [asdict(run) for run in runs]
