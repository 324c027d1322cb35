"""What a person sees while a run goes on: a bar in a terminal, plain lines elsewhere."""

import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from statistics import fmean
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from experiments.command import nobody_reads

if TYPE_CHECKING:
    from experiments.logger import Logger

PLAIN_SECONDS = 10.0
BAR_SECONDS = 0.2
RECENT_SECONDS = 20.0
"""What "now" is: long enough for rollouts and updates in turn, short enough to forget a warm-up without learning."""


class Speed:
    """Steps per second over the last `RECENT_SECONDS`, or since the start, at step `first`."""

    def __init__(self, first: int = 0) -> None:
        self.seen = deque([(time.perf_counter(), first)])

    def note(self, step: int) -> float:
        """The speed now that there are `step` steps."""
        now = time.perf_counter()
        self.seen.append((now, step))
        while len(self.seen) > 2 and self.seen[1][0] <= now - RECENT_SECONDS:
            self.seen.popleft()
        (then, before), (now, step) = self.seen[0], self.seen[-1]
        return (step - before) / max(now - then, 1e-9)


class Lines:
    """Progress where nobody watches a terminal: lines on standard error, so that what a command prints stays clean."""

    def __init__(self) -> None:
        self.watched = Console(stderr=True).is_terminal
        self.said = time.perf_counter()

    def say(self, sentence: Callable[[], str], now: bool = False) -> None:
        """Write what `sentence` gives, if the last line is `PLAIN_SECONDS` old, or `now`. In a terminal, which has
        bars, nothing is written."""
        at = time.perf_counter()
        if not self.watched and (now or at - self.said >= PLAIN_SECONDS):
            self.said = at
            print(sentence(), file=sys.stderr, flush=True)


class GamesShown:
    """Progress of games that are played: a bar on a terminal's standard error, elsewhere lines. Use as a context
    manager."""

    def __init__(self, episodes: int) -> None:
        self.episodes, self.lines, self.started = episodes, Lines(), time.perf_counter()
        columns = (TextColumn("games"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[steps]:,} steps"))
        self.bar = Progress(*columns, console=Console(stderr=True), transient=True, disable=not self.lines.watched)
        self.task = self.bar.add_task("games", total=episodes, steps=0)

    def __enter__(self) -> "GamesShown":
        self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def tick(self, games: int, steps: int) -> None:
        """`games` have ended, and every environment has made `steps` steps."""
        if self.lines.watched:
            self.bar.update(self.task, completed=games, steps=steps)
            return
        self.lines.say(
            lambda: (
                f"{games:,}/{self.episodes:,} games, {steps:,} steps in each environment, "
                f"{in_time(time.perf_counter() - self.started)}"
            )
        )


class RunConsole(Console):
    """Where a run says what happens. Where its reader has left (`| head`, a `tee` that was killed, a terminal that was
    closed) what is still to be said is dropped, and `on_closed` is called; rich would end the run there and then."""

    def __init__(self, on_closed: Callable[[], None] = lambda: None, **settings: Any) -> None:
        super().__init__(**settings)
        self.on_closed = on_closed

    def _write_buffer(self) -> None:
        try:
            super()._write_buffer()
        except OSError:
            del self._buffer[:]
            nobody_reads()
            self.on_closed()


class ProgressLine:
    """Shows steps, steps/s of late, the mean return of the last 100 games of the present task and, at that speed, the
    time left. `first`: the step at which it begins. Of several seeds side by side, whose `loggers` these are, a step is
    that of each, and the return a mean over seeds. Use as a context manager."""

    def __init__(self, steps: int, loggers: "Sequence[Logger]", console: Console | None = None, first: int = 0) -> None:
        self.console = console or Console()
        self.steps, self.loggers, self.speed = steps, loggers, Speed(first)
        self.each = f" for each of {len(loggers)} seeds" if len(loggers) > 1 else ""
        self.shown = time.perf_counter()
        self.step, self.shown_step = first, first
        self.bar = None
        if self.console.is_terminal:
            columns = (
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[speed]} steps/s" + self.each + "  return {task.fields[returned]}"),
                TimeElapsedColumn(),
                TextColumn("{task.fields[left]} left"),
            )
            self.bar = Progress(*columns, console=self.console)
            self.task = self.bar.add_task("train", total=steps, completed=first, speed="-", returned="-", left="-")

    def __enter__(self) -> "ProgressLine":
        if self.bar:
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar:
            self._show()
            self.bar.stop()
        elif self.step > self.shown_step:
            self._show()

    def tick(self, step: int) -> None:
        """Note the steps so far; show them when it is time."""
        self.step = step
        if time.perf_counter() - self.shown >= (BAR_SECONDS if self.bar else PLAIN_SECONDS):
            self._show()

    def _show(self) -> None:
        speed = self.speed.note(self.step)
        self.shown, self.shown_step = time.perf_counter(), self.step
        means = [mean for logger in self.loggers if (mean := logger.recent.mean()) is not None]
        returned = f"{fmean(means):.1f}" if means else "-"
        left = in_time(max(self.steps - self.step, 0) / speed) if speed else "-"
        if self.bar:
            shown = {"speed": f"{speed:,.0f}", "returned": returned, "left": left}
            self.bar.update(self.task, completed=min(self.step, self.steps), **shown)
            return
        self.console.print(
            f"step {self.step:,}/{self.steps:,}  {speed:,.0f} steps/s{self.each}  return {returned}  {left} left",
            highlight=False,
        )


def in_time(seconds: float) -> str:
    """For people: "0:02:05", "3 days 0:00:00"."""
    days, rest = divmod(round(seconds), 86_400)
    clock = f"{rest // 3600}:{rest // 60 % 60:02}:{rest % 60:02}"
    return f"{days:,} day{'s' * (days != 1)} {clock}" if days else clock
