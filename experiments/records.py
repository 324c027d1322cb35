"""Files of JSON, one object a line, written while a run goes on and read while or after it does."""

import json
import math
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from experiments.run import Episode


def lines_of(path: Path, offset: int = 0) -> Iterator[tuple[int, dict[str, Any]]]:
    """(byte after it, object) of each line of the file at `path`, from the byte `offset` on.

    A last line that is no JSON is left out: whoever wrote it was stopped, or is still writing. Raises ValueError,
    naming file and line, where another one is none.
    """
    with Path(path).open("rb") as file:
        file.seek(offset)
        start = offset
        torn: Exception | None = None
        for number, line in enumerate(file, start=1):
            if torn is not None:
                after = f" (counted from byte {start:,})" if start else ""
                raise ValueError(f"{path}: line {number - 1}{after} is not a JSON object: {torn}")
            try:
                record = json.loads(line)
                if not isinstance(record, dict):
                    raise ValueError("something else")
            except ValueError as error:  # what is not UTF-8 among them
                torn = error
                continue
            offset += len(line)
            yield offset, record


def read_metrics(path: Path) -> dict[str, tuple[list[int], list[float]]]:
    """(steps, values) of each tag in a metrics.jsonl; a torn last line is left out (see `lines_of`). Raises ValueError
    where the file cannot be read, or a line has no step or something else than numbers."""
    series: dict[str, tuple[list[int], list[float]]] = {}
    try:
        for _, record in lines_of(path):
            step = record.pop("step", None)
            if type(step) is not int or not all(isinstance(value, int | float | None) for value in record.values()):
                raise ValueError(f"{path}: a line is no step with numbers: step {step!r}")
            for name, value in record.items():
                steps, values = series.setdefault(name, ([], []))
                steps.append(step)
                values.append(value)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    except RecursionError:
        raise ValueError(f"{path}: a line is nested too deeply") from None
    return series


MOST_AHEAD = 8
"""Tasks whose returns are remembered at a time."""
RECENT = 100
"""Games of a task that count as recent."""


class EpisodeFile:
    """`episodes.jsonl`: every game of a run, one a line, as "step" (over all environments, at which it ended),
    "environment", "task" (the index of the one that it ended in), "return" and "length" (in steps).

    What ends in one tick reaches the operating system in one piece, so that a run that is killed loses none of it.
    """

    NAME = "episodes.jsonl"

    def __init__(self, directory: Path) -> None:
        self.path = directory / self.NAME
        self.file = self.path.open("a", buffering=1, encoding="utf-8")

    def write(self, step: int, episodes: "Iterable[Episode]") -> None:
        """Append the games that ended at `step`. A return that is not finite is null: JSON has no other word for it."""
        self.file.write("".join(_line(step, *episode) for episode in episodes))

    def close(self) -> None:
        """No more games will come."""
        self.file.close()


def position(file: TextIO) -> int:
    """How many bytes `file`, which is being written, has, all of them on the disk."""
    file.flush()
    os.fsync(file.fileno())
    return os.fstat(file.fileno()).st_size


def go_back(path: Path, size: int) -> str:
    """Forget what was written to the file at `path` after its first `size` bytes; what to tell of that, if anything.
    Where it has fewer, its end is lost, and what it has is kept."""
    with path.open("ab") as file:
        written = file.tell()
        if written < size:
            return f"{path} has {written:,} bytes, and had {size:,} when the run was saved: its end is lost"
        torn = written > size and not _ends_a_line(path)
        file.truncate(size)
    return f"{path}: its last line was torn, and is dropped" if torn else ""


def _ends_a_line(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() == b"\n"


def _line(step: int, environment: int, episodic_return: float, length: int, task: int) -> str:
    # By hand, since short games end at every step; a float's repr is JSON.
    known = repr(float(episodic_return)) if math.isfinite(episodic_return) else "null"
    return f'{{"step": {step}, "environment": {environment}, "task": {task}, "return": {known}, "length": {length}}}\n'


class RecentReturns:
    """The returns of the last 100 games that ended in the present task, and in those that some environments have
    entered before the others."""

    def __init__(self) -> None:
        self.task = 0
        self.by_task: dict[int, deque[float]] = {}

    def add(self, episodes: "Iterable[Episode]") -> None:
        """Note finished games."""
        for episode in episodes:
            if episode.task >= self.task:
                self.by_task.setdefault(episode.task, deque(maxlen=RECENT)).append(episode.episodic_return)
                if len(self.by_task) > MOST_AHEAD:  # somebody's game outlasts many tasks: it will enter the newest
                    del self.by_task[min(set(self.by_task) - {self.task})]

    def enter(self, task: int) -> None:
        """`task` is the present one from now on; what came before it is forgotten."""
        self.task = task
        self.by_task = {index: returns for index, returns in self.by_task.items() if index >= task}

    def mean(self) -> float | None:
        """None where no game has ended in the present task."""
        returns = self.by_task.get(self.task)
        return fmean(returns) if returns else None

    def state_dict(self) -> dict[str, Any]:
        """The returns by task."""
        return {"task": self.task, "by_task": {task: list(returns) for task, returns in self.by_task.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self.task = state["task"]
        self.by_task = {task: deque(returns, maxlen=RECENT) for task, returns in state["by_task"].items()}
