"""Runs as they lie on disk, whole or not. Imports no torch."""

import glob
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from agents.config import require, shown
from agents.interventions import NAMES, parameters_of
from experiments.config import NOT_IN_THE_NAME, TrainConfig, from_dict
from experiments.flags import flags_of
from experiments.json_file import read_json
from experiments.lock import holder, was_killed
from experiments.older import translated
from experiments.records import EpisodeFile, lines_of, read_metrics
from experiments.store import listed, step_of
from experiments.supervised.config import SUPERVISED, settings_from
from experiments.task_summary import PARTS, TENTH

STILL_WRITTEN = 120
"""Seconds since a log was written within which its run may well be going on."""
RETURN = "charts/episodic_return"
FINAL = ("final.pt", "sb3.zip")
"""What a run that has ended as it should leaves among its checkpoints."""
BESIDE = ("probe", "fork", "device", "threads", "replay-device", *(name.replace("_", "-") for name in NOT_IN_THE_NAME))
"""Settings that shape no result,"""
OF_BESIDE = ("probe.", "checkpoint.")
"""and how the names of others begin."""


class Task(NamedTuple):
    """A stretch of a run, as tasks.jsonl has it; a world that does not change is one task."""

    index: int
    parameters: dict[str, Any]
    first_step: int
    last_step: int
    last_tenth: float
    """Mean over what lies in the last tenth of its steps; NaN without any."""
    steps_to_level: float
    """See task_report.TaskSummary; NaN where the level is not reached."""


class Series(NamedTuple):
    """Values over a run."""

    steps: np.ndarray
    values: np.ndarray
    tasks: np.ndarray | None = None
    """Index of the task that each game ended in; None: told by the step alone."""


State = Literal["finished", "unfinished", "crashed", "not finite", "unreadable"]


@dataclass(frozen=True, eq=False)
class Run:
    """One run directory."""

    path: Path
    settings: dict[str, Any]
    """Every setting by its flag without the dashes, and agent, implementation, interventions (names, in order)."""
    manifest: dict[str, Any] = field(default_factory=dict)

    @property
    def seed(self) -> int:
        """Its own."""
        return self.settings["seed"]

    @property
    def steps(self) -> int:
        """How long it was to be."""
        return self.settings["steps"]

    @property
    def name(self) -> str:
        """The directory's."""
        return self.path.name

    @property
    def command(self) -> str:
        """What was typed, or what runs it again."""
        import shlex

        words = self.manifest.get("command")
        words = words if isinstance(words, list) else ["train.py", "--config", f"{self.path}/config.json"]
        return f"python {shlex.join(map(str, words))}"

    @cached_property
    def metrics(self) -> dict[str, tuple[list[int], list[float]]]:
        """metrics.jsonl by tag. ValueError: it cannot be read."""
        path = self.path / "metrics.jsonl"
        return read_metrics(path) if path.exists() else {}

    @cached_property
    def games(self) -> Series:
        """Every game's return at the step at which it ended; of logs without episodes.jsonl what metrics.jsonl has."""
        path = self.path / EpisodeFile.NAME
        if path.exists():
            rows = [(game["step"], game["task"], game["return"]) for _, game in lines_of(path)]
            columns = list(zip(*rows, strict=True)) or [(), (), ()]
            return Series(np.array(columns[0], int), np.array(columns[2], float), np.array(columns[1], int))
        return series_of(self.metrics, RETURN) if RETURN in self.metrics else Series(np.array([], int), np.array([]))

    def series(self, tag: str) -> Series:
        """`tag` over the run. ValueError: it is not there."""
        if tag == RETURN:
            return self.games
        known = ", ".join(sorted({name.partition("/")[0] + "/..." for name in self.metrics}))
        require(tag in self.metrics, "tag", tag, f"a tag of {self.path / 'metrics.jsonl'} ({known})")
        return series_of(self.metrics, tag)

    @cached_property
    def length(self) -> int:
        """Steps that it has run for, as far as its files tell."""
        if self.has_ended:
            return self.steps
        seen = [int(self.games.steps[-1])] if len(self.games.steps) else []
        return min(self.steps, max([0, *seen, *(steps[-1] for steps, _ in self.metrics.values())]))

    @cached_property
    def ending(self) -> dict[str, Any]:
        """How training says that it ended, as "ending", "step" and "why"; empty where it was killed, or goes on."""
        path = self.path / "ending.json"
        found = read_json("ending", path) if path.exists() else {}
        return found if isinstance(found, dict) else {}

    @property
    def has_ended(self) -> bool:
        """Whether it ran to its end."""
        if self.ending.get("ending") == "finished" or any(
            (self.path / "checkpoints" / name).exists() for name in FINAL
        ):
            return True
        folder = self.path / "checkpoints"
        return folder.is_dir() and any(step_of(path) >= self.steps for path in listed(folder))

    @cached_property
    def boundaries(self) -> list[dict[str, Any]]:
        """The lines of tasks.jsonl."""
        path = self.path / "tasks.jsonl"
        return [line for _, line in lines_of(path)] if path.exists() else []

    @cached_property
    def state(self) -> tuple[State, str]:
        """How it ended, and what there is to say of that."""
        try:
            finite = np.isfinite(self.games.values).all()
            at = f"at step {self.length:,} of {self.steps:,}"
            _ = self.boundaries
        except (ValueError, KeyError, TypeError, OSError) as error:
            return "unreadable", f"unreadable: {error}"
        if not finite:
            place = int(self.games.steps[np.flatnonzero(~np.isfinite(self.games.values))[0]])
            return "not finite", f"not finite: a return at step {place:,} is none"
        if self.has_ended:
            return "finished", ""
        gone_on = self.length > self.ending.get("step", 0)  # since that was written
        ending, why = (str("" if gone_on else self.ending.get(name, "")).strip() for name in ("ending", "why"))
        if ending in ("not finite", "world failed", "not written", "crashed"):
            return "not finite" if ending == "not finite" else "crashed", f"{ending} {at}: {why or 'no word of why'}"
        if ending == "interrupted":
            return "unfinished", f"interrupted {at}"
        if (who := holder(self.path)) is not None:
            return "unfinished", f"unfinished {at}, running ({who})"
        if self._crashed:
            lines = (self.path / "traceback.txt").read_text(encoding="utf-8", errors="replace").strip().splitlines()
            return "crashed", f"crashed {at}: {shown(lines[-1])[1:-1] if lines else 'no word of why'}"
        if was_killed(self.path):
            return "unfinished", f"unfinished {at}: it was killed, or its machine stopped"
        return "unfinished", f"unfinished {at}, {self._last_written()}"

    @property
    def _crashed(self) -> bool:
        """Whether there is a traceback of the run as it went last: the manifest is written whenever it goes on."""
        traceback, manifest = self.path / "traceback.txt", self.path / "manifest.json"
        before = manifest.exists() and traceback.exists() and traceback.stat().st_mtime < manifest.stat().st_mtime
        return traceback.exists() and not before

    def _last_written(self) -> str:
        files = [path for path in (self.path / "metrics.jsonl", self.path / EpisodeFile.NAME) if path.exists()]
        if not files:
            return "nothing logged"
        ago = time.time() - max(path.stat().st_mtime for path in files)
        if ago < STILL_WRITTEN:
            return f"last written {ago:.0f} s ago: it may be running"
        return f"last written {ago / 3600:,.1f} h ago: killed, interrupted or stopped"


def series_of(metrics: dict[str, tuple[list[int], list[float]]], tag: str) -> Series:
    """`tag` over a run; what games come to, where the log has means over those that ended in one tick, as often as
    games did."""
    steps, values = (np.array(column) for column in metrics[tag])
    values = values.astype(float)
    if tag in (RETURN, "charts/episodic_length"):
        ended = dict(zip(*metrics.get("charts/episodes", ((), ())), strict=True))
        numbers = np.array([ended.get(step, 1) for step in steps.tolist()], dtype=int)
        steps, values = np.repeat(steps, numbers), np.repeat(values, numbers)
    return Series(steps, values)


def tasks_of(run: Run, tag: str, length: int) -> list[Task]:
    """The tasks of `run` within its first `length` steps, of each the last tenth of `tag`.

    Those that the cut leaves whole say what tasks.jsonl says. One of which it leaves less than nine tenths is left out,
    unless it is the first.
    """
    whole = {"task": 0, "parameters": {}, "first_step": 0, "last_step": length}
    series, found, level = run.series(tag), [], None
    for row in run.boundaries or [whole]:
        first, last = row["first_step"], min(row["last_step"], length)
        if last <= first or (found and last - first < 0.9 * (row["last_step"] - first)):
            break
        mine = (series.steps > first) & (series.steps <= last)
        if series.tasks is not None and run.boundaries:
            mine = (series.tasks == row["task"]) & (series.steps <= last)
        share = run.settings["level-share"]
        tenth, to_level, level = learned(series.steps[mine], series.values[mine], first, last, share, level)
        found.append(Task(row["task"], row["parameters"], first, last, tenth, to_level))
    return found


def learned(
    steps: np.ndarray, values: np.ndarray, first: int, last: int, share: float, level: float | None
) -> tuple[float, float, float]:
    """(mean in the last tenth of the steps in (first, last], steps to the end of the first twentieth whose mean reaches
    `level`, the level), as task_report.TaskReport has them; a `level` of None is made from this, the first, task."""
    part = np.ceil((steps - first) / (last - first) * PARTS).clip(1, PARTS).astype(int) - 1
    counts, sums = np.bincount(part, minlength=PARTS), np.bincount(part, weights=values, minlength=PARTS)

    def mean(low: int, high: int) -> float:
        count = counts[low:high].sum()
        return float(sums[low:high].sum() / count) if count else float("nan")

    played = np.flatnonzero(counts)
    tenth = mean(PARTS - TENTH, PARTS)
    if level is None:
        begun = mean(0, TENTH) if len(played) and played[0] < TENTH else mean(*played[:1], *played[:1] + 1)
        level = begun + share * (tenth - begun) if tenth > begun else float("inf")
    reached = [n for n in played if mean(n, n + 1) >= level]
    return tenth, (reached[0] + 1) * (last - first) / PARTS if reached else float("nan"), level


def settings_of(raw: Any) -> dict[str, Any]:
    """What a config.json says, by flag without the dashes. Interventions are read without their classes, which would
    bring torch: their parameters are `NAME.PARAMETER`. ValueError: it is no config.json."""
    require(isinstance(raw, dict), "settings", raw, "a JSON object")
    if raw.get("algorithm") == SUPERVISED:
        found = settings_from(raw)
    else:
        raw = translated(raw)
        config = from_dict({**raw, "interventions": []})
        found = {"agent": config.agent_name, "implementation": "this suite"}
        found |= {flag.name.removeprefix("--"): flag.default for flag in flags_of(config)}
    listed = raw.get("interventions", [])
    require(isinstance(listed, list), "interventions", listed, "a list")
    for one in listed:
        named = isinstance(one, dict) and one.get("name") in NAMES
        require(named, "interventions", one, f"objects, each with the name of one of {', '.join(NAMES)}")
    found["interventions"] = tuple(one["name"] for one in listed)
    for one in listed:
        values = {parameter.name: parameter.default for parameter in parameters_of(one["name"])} | one
        del values["name"]
        found |= {f"{one['name']}.{name}".replace("_", "-"): _hashable(value) for name, value in values.items()}
    return found


def _hashable(value: Any) -> Any:
    if isinstance(value, dict):
        return tuple((name, _hashable(part)) for name, part in sorted(value.items()))
    return tuple(map(_hashable, value)) if isinstance(value, list | tuple) else value


WORLD_FIELDS = frozenset(
    flag.name.removeprefix("--")
    for flag in flags_of(TrainConfig(agent=from_dict({"algorithm": "dqn"}).agent))
    if flag.path[0] == "world" and flag.path[-1] not in ("num_envs", "backend")
)
"""Settings that make another world; how many copies of it are stepped, and by what, does not."""


def read_run(path: Path) -> Run:
    """The run in the directory `path`. ValueError: its settings cannot be read."""
    settings = settings_of(read_json("config", path / "config.json"))
    if (path / "sb3.json").exists():
        settings["implementation"] = "stable-baselines3"
    manifest = read_json("manifest", path / "manifest.json") if (path / "manifest.json").exists() else {}
    return Run(path, settings, manifest if isinstance(manifest, dict) else {})


def find(places: Sequence[str]) -> list[Path]:
    """The run directories that `places` name: themselves, those in a folder at any depth, those that a pattern meets.

    ValueError: a place is not there, or there is no run in any.
    """
    found: dict[Path, Path] = {}
    for place in places:
        met = [place] if os.path.isdir(place) else sorted(glob.glob(place, recursive=True))
        require(bool(met), "runs", place, "a run directory, a folder of runs or a pattern that meets some")
        for one in met:
            for directory in _runs_below(Path(one)):
                found.setdefault(directory.resolve(), directory)
    require(bool(found), "runs", " ".join(places), "where runs are: no folder there holds a config.json and a log")
    return list(found.values())


def _runs_below(folder: Path) -> Iterator[Path]:
    for place, folders, files in os.walk(folder):
        folders.sort()
        if {"config.json", "metrics.jsonl", "manifest.json"} & set(files):
            folders.clear()
            yield Path(place)


def read_runs(directories: Iterable[Path]) -> tuple[list[Run], list[tuple[Path, str]]]:
    """(the runs whose settings can be read, the directories of others with why not)."""
    runs, others = [], []
    for directory in directories:
        try:
            runs.append(read_run(directory))
        except (ValueError, RecursionError) as error:
            others.append((directory, f"unreadable: {error}"))
    return runs, others
