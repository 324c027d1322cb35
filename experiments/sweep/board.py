"""What a person sees while trials are made: a table in a terminal, plain lines elsewhere. Imports no torch."""

import json
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from experiments.progress import in_time
from experiments.sweep.plan import Trial

State = Literal["waiting", "running", "finished", "failed", "left"]
"""left: it was broken off as the sweep was, and goes on with the next."""
TAIL = 1 << 14
"""Bytes of a log's end that are read."""
RECENT = 20
"""Lines of a log that the speed is taken over."""
TABLE_SECONDS, LINE_SECONDS = 2.0, 10.0
MOST_ROWS = 20
"""Running trials that are shown one by one; more would not fit on a screen."""


def last_step(directory: Path) -> tuple[float, int]:
    """(when it was written, in seconds since 1970; the last step) of a run's log; (0, 0) where there is none."""
    with suppress(OSError), (directory / "metrics.jsonl").open("rb") as file:
        written = os.fstat(file.fileno()).st_mtime
        file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
        for line in reversed(file.read().split(b"\n")):
            with suppress(ValueError):  # torn, at either end
                record = json.loads(line)
                if isinstance(record, dict) and isinstance(record.get("step"), int):
                    return written, record["step"]
    return 0.0, 0


@dataclass
class Row:
    """A trial, and how it goes."""

    trial: Trial
    state: State = "waiting"
    why: str = ""
    step: int = 0
    seen: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=RECENT))
    """When it went on, when lines of its log were written since then, and the steps."""

    def look(self) -> None:
        """Read how far it is."""
        written, step = last_step(self.trial.directory)
        if step != self.step:
            self.seen.append((written, step))
        self.step = step

    @property
    def speed(self) -> float:
        """Steps per second; 0 where nothing is known."""
        if self.state != "running" or len(self.seen) < 2:
            return 0.0
        (then, before), (now, after) = self.seen[0], self.seen[-1]
        return max(0.0, (after - before) / max(now - then, 1e-9))

    @property
    def left(self) -> int:
        """Steps that are to be made."""
        return 0 if self.state in ("finished", "failed") else max(0, self.trial.config.run.steps - self.step)


class Board:
    """Shows `trials`, told of each by `set`. Use as a context manager."""

    def __init__(self, trials: Iterable[Trial], title: str, console: Console | None = None) -> None:
        self.title, self.console, self.started = title, console or Console(), time.monotonic()
        self.rows = {trial.directory: Row(trial) for trial in trials}
        self._over, self._thread = threading.Event(), threading.Thread(target=self._go_on, name="board", daemon=True)
        self._live = Live(console=self.console, auto_refresh=False) if self.console.is_terminal else None

    def set(self, trial: Trial, state: State, why: str = "") -> None:
        """`trial` has come to `state`."""
        row = self.rows[trial.directory]
        row.state, row.why = state, why
        if state == "running":
            row.step = last_step(trial.directory)[1]
            row.seen.clear()
            row.seen.append((time.time(), row.step))
        if self._live is None and state in ("finished", "failed"):
            done = sum(other.state in ("finished", "failed") for other in self.rows.values())
            self.say(f"{state} ({done:,} of {len(self.rows):,})  {trial.config.run.name}{why and f': {why}'}")

    def say(self, sentence: str) -> None:
        """Print a sentence above the table, or as a line."""
        self.console.print(sentence, highlight=False, markup=False, soft_wrap=True)

    def __enter__(self) -> "Board":
        if self._live is not None:
            self._live.start()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()
        if self._live is not None:
            self._live.update(self.table(), refresh=True)
            self._live.stop()

    def _go_on(self) -> None:
        while not self._over.wait(TABLE_SECONDS if self._live is not None else LINE_SECONDS):
            for row in self.running:
                row.look()
            if self._live is not None:
                self._live.update(self.table(), refresh=True)
            else:
                self.say("\n".join([self.summary(), *(f"  {'  '.join(cells)}" for cells in self._cells())]))

    @property
    def running(self) -> list[Row]:
        """The trials that are being made."""
        return [row for row in self.rows.values() if row.state == "running"]

    def summary(self) -> str:
        """All trials in a line."""
        counted = Counter(row.state for row in self.rows.values())
        speed, left = sum(row.speed for row in self.rows.values()), sum(row.left for row in self.rows.values())
        parts = [
            f"{counted[state]:,} {state}" for state in ("finished", "running", "waiting", "failed") if counted[state]
        ]
        parts += [f"{speed:,.0f} steps/s", f"about {in_time(left / speed)} left"] if speed else []
        return f"{self.title}: {', '.join(parts)}, after {in_time(time.monotonic() - self.started)}"

    def _cells(self) -> list[tuple[str, ...]]:
        """By running trial: its name, step, speed and time left."""
        rows = self.running
        cells = [
            (
                row.trial.config.run.name,
                f"{row.step:,} of {row.trial.config.run.steps:,} steps",
                f"{row.speed:,.0f} steps/s" if row.speed else "-",
                f"{in_time(row.left / row.speed)} left" if row.speed else "-",
            )
            for row in rows[:MOST_ROWS]
        ]
        return [*cells, *([(f"and {len(rows) - MOST_ROWS} more", "", "", "")] if len(rows) > MOST_ROWS else [])]

    def table(self) -> Group:
        """The summary, what runs, and what has failed."""
        found = Table("trial", "state", "steps", "speed", "left", box=None, pad_edge=False)
        for cells in self._cells():
            found.add_row(cells[0], "running", *cells[1:])
        failed = [row for row in self.rows.values() if row.state == "failed"]
        for row in failed[:MOST_ROWS]:
            found.add_row(row.trial.config.run.name, "[red]failed[/]", f"at {row.step:,}")
        return Group(self.summary(), found)
