"""What a person sees while a run goes on: a bar in a terminal, plain lines elsewhere."""

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from experiments.logger import Logger

PLAIN_SECONDS = 10.0
BAR_SECONDS = 0.2


class ProgressLine:
    """Shows steps, steps/s, the mean return of the last 100 games and the time left. Use as a context manager."""

    def __init__(self, steps: int, logger: Logger, console: Console | None = None) -> None:
        self.console = console or Console()
        self.steps, self.logger = steps, logger
        self.started = self.shown = time.perf_counter()
        self.step, self.shown_step = 0, 0
        self.bar = None
        if self.console.is_terminal:
            columns = (
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[speed]} steps/s  return {task.fields[returned]}"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
            )
            self.bar = Progress(*columns, console=self.console)
            self.task = self.bar.add_task("train", total=steps, speed="-", returned="-")

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
        now = time.perf_counter()
        speed = (self.step - self.shown_step) / max(now - self.shown, 1e-9)
        overall = self.step / max(now - self.started, 1e-9)
        self.shown, self.shown_step = now, self.step
        mean = self.logger.recent.mean()
        returned = "-" if mean is None else f"{mean:.1f}"
        if self.bar:
            self.bar.update(self.task, completed=min(self.step, self.steps), speed=f"{overall:,.0f}", returned=returned)
            return
        left = (self.steps - self.step) / max(overall, 1e-9)
        self.console.print(
            f"step {self.step:,}/{self.steps:,}  {speed:,.0f} steps/s  return {returned}  "
            f"{max(left, 0) / 60:.1f} min left",
            highlight=False,
        )
