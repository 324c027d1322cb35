"""TensorBoard and metrics.jsonl, with the same tags; nothing is read back from the device between two flushes."""

import contextlib
import json
import math
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from agents.guard import Guard, NonFiniteError
from experiments.loop import TaskChange, TaskDrift, Tick, Update
from experiments.surgery_report import USUAL, Done, SurgeryReport, scalars, sentences
from experiments.task_report import TaskSummary, in_words
from plasticity_probes.catalogue import Findings
from plasticity_probes.pictures import in_colours


class Logger:
    """Averages the metrics of the gradient steps since the last flush and writes them every `every` steps.

    Episodes are written one by one at the step at which they end (charts/episodic_return, charts/episodic_length).
    Where the world changes, tasks/index and the task's numbers go with every line, and tasks/changes holds it in words.
    surgery/NAME/... counts what an intervention did to the weights since the last line (units replaced, by layer).
    charts/SPS is steps per second since the start, learning included, as CleanRL counts it.
    """

    def __init__(
        self,
        directory: Path,
        every: int,
        guard: Guard | None,
        scalars: Callable[[], dict[str, float]],
        tell: Callable[[str], None] = lambda sentence: None,
        surgeries: Callable[[], Done] = dict,
    ) -> None:
        self.writer = SummaryWriter(str(directory), flush_secs=20)
        self.file = (directory / "metrics.jsonl").open("a", buffering=1)
        self.surgery = SurgeryReport(surgeries)
        self.every, self.guard, self.scalars, self.tell = every, guard, scalars, tell
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}
        self.told_of: set[tuple[str, str]] = set()  # what interventions have done before
        self.not_finite: set[str] = set()  # probes that have been told of
        self.found: list[tuple[int, Findings]] = []  # of probes, still on the device
        self.recent_returns: deque[float] = deque(maxlen=100)
        self.task: dict[str, float] = {}  # what tells the present task, for every line
        self.flushed, self.started = 0, time.perf_counter()

    def tick(self, event: Tick) -> None:
        """Note finished episodes; flush when due."""
        for episode in event.episodes:
            self.recent_returns.append(episode.episodic_return)
            returned = {"charts/episodic_return": episode.episodic_return, "charts/episodic_length": episode.length}
            self.write(event.step, returned)
        if event.step - self.flushed >= self.every:
            self.flush(event.step)

    def task_change(self, event: TaskChange) -> None:
        """Write what has changed, in words and numbers."""
        self.task_drift(event)
        self.write(event.step, self.task)
        words = f"from step {event.step:,}: task {event.task}, {in_words(event.parameters)}"
        self.writer.add_text("tasks/changes", words, event.step)

    def task_drift(self, event: TaskChange | TaskDrift) -> None:
        """Note the numbers of a task for the lines to come."""
        numbers = {name: value for name, value in event.parameters.items() if not isinstance(value, str)}
        self.task = {"tasks/index": event.task} | {f"tasks/{name}": value for name, value in numbers.items()}

    def task_summary(self, summary: TaskSummary) -> None:
        """Write a finished task's returns at its last step."""
        names = ("mean_return", "last_tenth_return", "steps_to_level")
        self.write(summary.last_step, {f"tasks/{name}": getattr(summary, name) for name in names})

    def findings(self, step: int, findings: Findings | None) -> None:
        """Keep what probes found at `step` until the next flush."""
        if findings is not None:
            self.found.append((step, findings))

    def update(self, event: Update) -> None:
        """Add the metrics of one update, still on the device."""
        for name, value in event.metrics.items():
            if name in self.sums:
                self.sums[name] = self.sums[name] + value
                self.counts[name] += 1
            else:
                self.sums[name], self.counts[name] = value, 1

    def flush(self, step: int) -> None:
        """Copy what has gathered from the device in one transfer and write it. Raises `NonFiniteError` where a device
        that is not the CPU met something not finite since the last flush."""
        self._flush_probes()
        self._flush_surgeries(step)
        if step == self.flushed and not self.sums:
            return
        self.flushed = step
        values = {"charts/SPS": step / max(time.perf_counter() - self.started, 1e-9), **self.scalars(), **self.task}
        if self.sums:
            sums = torch.stack([value.float() for value in self.sums.values()]).tolist()
            values |= {name: total / self.counts[name] for name, total in zip(self.sums, sums, strict=True)}
        self.sums, self.counts = {}, {}
        self.write(step, values)
        if self.guard:
            self.guard.flush()

    def _flush_surgeries(self, step: int) -> None:
        """Write how much was done since the last flush; what an intervention does for the first time is told aloud."""
        done = self.surgery.flush()
        if done:
            self.write(step, scalars(done))
            rare = {key: amount for key, amount in done.items() if key[1] not in USUAL}
            if rare:
                self.writer.add_text("surgery/log", "; ".join(sentences(rare)), step)
            first = {key: amount for key, amount in done.items() if key[:2] not in self.told_of}
            self.told_of |= {key[:2] for key in first}
            for sentence in sentences(first):
                self.tell(f"by step {step:,}: {sentence}")

    def _flush_probes(self) -> None:
        for step, findings in self.found:
            if findings.scalars:
                values = torch.stack([value.float() for value in findings.scalars.values()]).tolist()
                named = dict(zip(findings.scalars, values, strict=True))
                self._tell_not_finite(step, named)
                self.write(step, named)
            for tag, values in findings.histograms.items():
                if torch.isfinite(values).all():
                    self.writer.add_histogram(tag, values.cpu(), step)
            for tag, matrix in findings.images.items():
                self.writer.add_image(tag, in_colours(matrix), step)
        self.found.clear()

    def _tell_not_finite(self, step: int, values: dict[str, float]) -> None:
        bad = sorted(name for name, value in values.items() if not math.isfinite(value))
        probes = {name.split("/")[1] for name in bad} - self.not_finite
        if probes:
            self.not_finite |= probes
            self.tell(f"not finite at step {step:,}, and left out where it is: {', '.join(sorted(probes))}")

    def write_out(self, step: int) -> None:
        """`flush` for a run that is over, however it ended: what the guard has to say has been said."""
        with contextlib.suppress(NonFiniteError):
            self.flush(step)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Write scalars at `step` to both places; what is undefined (an explained variance of constant returns, say) is
        left out."""
        values = {name: value for name, value in values.items() if math.isfinite(value)}
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.file.write(json.dumps({"step": step, **values}) + "\n")

    def close(self) -> None:
        """Write out what is buffered."""
        self.writer.close()
        self.file.close()


def read_metrics(path: Path) -> dict[str, tuple[list[int], list[float]]]:
    """(steps, values) of each tag in a metrics.jsonl."""
    series: dict[str, tuple[list[int], list[float]]] = {}
    with Path(path).open() as lines:
        for line in lines:
            record = json.loads(line)
            step = record.pop("step")
            for name, value in record.items():
                steps, values = series.setdefault(name, ([], []))
                steps.append(step)
                values.append(value)
    return series
