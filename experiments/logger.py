"""TensorBoard, metrics.jsonl and episodes.jsonl; nothing is read back from the device between two flushes."""

import contextlib
import json
import math
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from agents.guard import NonFiniteError, Watch
from experiments.records import EpisodeFile, RecentReturns, go_back, position
from experiments.records import read_metrics as read_metrics
from experiments.run import Event, TaskChange, TaskDrift, Tick, Update
from experiments.surgery_report import USUAL, Done, SurgeryReport, scalars, sentences
from experiments.task_report import TaskSummary, parameters_in_words
from plasticity_probes.pictures import in_colours
from plasticity_probes.probe import Findings

CLOCKS = ("charts/SPS",)
"""Tags whose values are of the clock on the wall: alone in that two runs of one seed have others."""
KEPT = ("lines", "sums", "counts", "task", "tags", "due", "now", "flushed")
"""What of a logger its state holds as it is."""
MOST_WAITING = 100
"""Lines that may wait until what probes found, at the first of them, is read from the device at a flush."""


def _of_threads(raised: threading.ExceptHookArgs) -> None:
    """What TensorBoard's own thread could not write it raises again in ours, which tells it without a traceback."""
    if not (isinstance(raised.exc_value, OSError) and type(raised.thread).__module__.startswith("tensorboard.")):
        threading.__excepthook__(raised)


def event_files(directory: Path) -> set[Path]:
    """TensorBoard's."""
    return set(directory.glob("events.out.tfevents.*"))


class Logger:
    """Averages the metrics of the gradient steps since the last flush and writes them every `every` steps.

    metrics.jsonl has one line a step, in the order of the steps: what belongs to a step is gathered until its tick is
    over (and what probes found at it, or before, has been read), so that no tag has two values at a step. TensorBoard
    and `also` (a function of step and values) get the same.

    Every game goes to episodes.jsonl. Of those that end in one tick the log has the mean (charts/episodic_return,
    charts/episodic_length) and how many they were (charts/episodes); charts/recent_return, with every flush, is the
    mean over the last 100 games that ended in the present task.
    Where the world changes, tasks/index and the task's numbers go with every flush; tasks/changes holds it in words.
    surgery/NAME/... counts what an intervention did to the weights since the last flush (units replaced, by layer).
    charts/SPS is steps per second since the start, learning included, as CleanRL counts it.
    `goes_on`: the step at which a run was saved that goes on here. `preparing`: seconds that count for no speed.
    """

    def __init__(
        self,
        directory: Path,
        every: int,
        watch: Watch | None,
        scalars: Callable[[], dict[str, float]],
        tell: Callable[[str], None] = lambda sentence: None,
        surgeries: Callable[[], Done] = dict,
        also: Callable[[int, dict[str, float]], None] | None = None,
        goes_on: int | None = None,
        preparing: Callable[[], float] = float,
    ) -> None:
        threading.excepthook = _of_threads
        self.directory, earlier = directory, event_files(directory)
        # a TensorBoard that is looking on forgets what it has read from later steps
        self.writer = SummaryWriter(str(directory), flush_secs=20, purge_step=None if goes_on is None else goes_on + 1)
        self.events = event_files(directory) - earlier
        self.file = (directory / "metrics.jsonl").open("a", buffering=1, encoding="utf-8")
        self.episodes = EpisodeFile(directory)
        self.surgery = SurgeryReport(surgeries)
        self.every, self.watch, self.scalars, self.tell, self.also = every, watch, scalars, tell, also
        self.lines: dict[int, dict[str, float]] = {}  # by step: what is not written yet
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}
        self.told_of: set[tuple[str, str]] = set()  # what interventions have done before
        self.not_finite: set[str] = set()  # probes that have been told of
        self.found: dict[int, Findings] = {}  # of probes by step, still on the device
        self.recent = RecentReturns()
        self.task: dict[str, float] = {}  # what tells the present task, for every flush
        self.tags: dict[str, None] = {}  # of all scalars so far, in the order of their first value
        self.due: dict[str, float] | None = None  # the scalars of a tick at whose end a flush is due
        self.now = self.flushed = 0
        self.started, self.preparing = time.perf_counter(), preparing
        self._noticed = {
            Tick: self._tick,
            Update: self._update,
            TaskChange: self._task_change,
            TaskDrift: self._task_drift,
        }

    def notice(self, event: Event) -> None:
        """Take note of what happened. The log comes before the other watchers: what they find belongs to its lines."""
        self._noticed[type(event)](event)

    def _tick(self, event: Tick) -> None:
        """The tick before is over: write it, and flush when due. Then note this one's finished games."""
        if event.episodes:
            self.episodes.write(event.step, event.episodes)
        if self.due is not None:
            self.flush(self.now)
        elif self.lines and (not self.found or len(self.lines) > MOST_WAITING):
            self._read_probes()
            self._write_lines()
        self.now = event.step
        if event.episodes:
            self.recent.add(event.episodes)
            means = {
                "charts/episodic_return": fmean(episode.episodic_return for episode in event.episodes),
                "charts/episodic_length": fmean(episode.length for episode in event.episodes),
                "charts/episodes": len(event.episodes),
            }
            self.write(event.step, means)
        if event.step - self.flushed >= self.every:
            self.due = self.scalars()

    def _task_change(self, event: TaskChange) -> None:
        """Write what has changed, in words and numbers."""
        self._task_drift(event)
        self.recent.enter(event.task)
        self.write(event.step, self.task)
        words = f"step {event.step:,}: task {event.task}, {parameters_in_words(event.parameters)}"
        self.writer.add_text("tasks/changes", f"from {words}", event.step)
        self.tell(words)

    def _task_drift(self, event: TaskChange | TaskDrift) -> None:
        """Note the numbers of a task for the lines to come."""
        numbers = {name: value for name, value in event.parameters.items() if not isinstance(value, str)}
        self.task = {"tasks/index": event.task} | {f"tasks/{name}": value for name, value in numbers.items()}

    def task_summary(self, summary: TaskSummary) -> None:
        """Write a finished task's returns at its last step."""
        names = ("mean_return", "last_tenth_return", "steps_to_level")
        self.write(summary.last_step, {f"tasks/{name}": getattr(summary, name) for name in names})

    def findings(self, step: int, findings: Findings | None) -> None:
        """Keep what probes found at `step`, the latest where they looked twice, until the next flush."""
        if findings is None:
            return
        self.found.setdefault(step, Findings()).merge(findings)
        self.write(step, {})  # its line has its place

    def _update(self, event: Update) -> None:
        """Add the metrics of one update, still on the device: one operation for all of them."""
        known = [name for name in event.metrics if name in self.sums]
        if known:
            torch._foreach_add_([self.sums[name] for name in known], [event.metrics[name] for name in known])
        for name, value in event.metrics.items():
            if name not in self.sums:
                self.sums[name] = value.clone()
            self.counts[name] = self.counts.get(name, 0) + 1

    def flush(self, step: int) -> None:
        """Copy what has gathered from the device in one transfer and write it. Raises `NonFiniteError` where something
        has become not finite since the last flush."""
        self._read_probes()
        self._read_surgeries(step)
        if step > self.flushed or self.sums:
            values = self.scalars() if self.due is None else self.due
            speed = step / max(self._seconds(), 1e-9)
            self.write(step, {"charts/SPS": speed, **self._recent_return(), **values, **self.task, **self._means()})
        self.flushed, self.due = step, None
        self._write_lines()
        if self.watch:
            self.watch.flush()

    def _seconds(self) -> float:
        """That the run took so far, without what it takes to compile and to capture."""
        return time.perf_counter() - self.started - self.preparing()

    def _recent_return(self) -> dict[str, float]:
        mean = self.recent.mean()
        return {} if mean is None else {"charts/recent_return": mean}

    def _means(self) -> dict[str, float]:
        """Of the gradient steps' metrics since the last flush."""
        if not self.sums:
            return {}
        sums = torch.stack([value.float() for value in self.sums.values()]).tolist()
        means = {name: total / self.counts[name] for name, total in zip(self.sums, sums, strict=True)}
        self.sums, self.counts = {}, {}
        return means

    def _read_surgeries(self, step: int) -> None:
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

    def _read_probes(self) -> None:
        """Read what probes have found from the device."""
        for step, findings in self.found.items():
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
        """`flush` for a run that is over, however it ended: what the watch has to say has been said."""
        with contextlib.suppress(NonFiniteError):
            self.flush(step)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Add scalars to the line of `step`; what is undefined (an explained variance of constant returns, say) is left
        out."""
        line = self.lines.setdefault(step, {})
        line.update((name, value) for name, value in values.items() if math.isfinite(value))

    def _write_lines(self) -> None:
        """Write what has gathered, step by step, to all places."""
        while self.lines:
            step = next(iter(self.lines))
            values = self.lines.pop(step)  # first, so that nothing is written twice if this is interrupted
            if not values:
                continue
            for name, value in values.items():
                self.writer.add_scalar(name, value, step)
            self.tags.update(dict.fromkeys(values))
            self.file.write(json.dumps({"step": step, **values}) + "\n")
            if self.also is not None:
                self.also(step, values)

    def state_dict(self) -> dict[str, Any]:
        """What is in no line yet, and how far the files are written."""
        return {
            **{name: getattr(self, name) for name in KEPT},
            "told_of": sorted(self.told_of),
            "not_finite": sorted(self.not_finite),
            "found": {step: vars(findings) for step, findings in self.found.items()},
            "recent": self.recent.state_dict(),
            "surgery": self.surgery.state_dict(),
            "seconds": self._seconds(),
            "sizes": self._sizes(),
        }

    def _sizes(self) -> dict[str, int]:
        """Of the files, all of them on the disk: by name, bytes."""
        self.writer.flush()
        sizes = {Path(file.name).name: position(file) for file in (self.file, self.episodes.file)}
        for path in event_files(self.directory):
            with path.open("rb+") as file:
                sizes[path.name] = position(file)
        return sizes

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave; what was written since is forgotten."""
        for name in KEPT:
            setattr(self, name, state[name])
        self.told_of, self.not_finite = set(state["told_of"]), set(state["not_finite"])
        self.found = {step: Findings(**findings) for step, findings in state["found"].items()}
        self.recent.load_state_dict(state["recent"])
        self.surgery.load_state_dict(state["surgery"])
        self.started = time.perf_counter() - state["seconds"] - self.preparing()
        for name, size in state["sizes"].items():
            told = go_back(self.directory / name, size) if (self.directory / name).exists() else ""
            if told and name.endswith(".jsonl"):  # event files have no lines
                self.tell(told)
        for path in event_files(self.directory) - self.events:
            if path.name not in state["sizes"]:
                path.unlink()

    def close(self) -> None:
        """Write out what is buffered."""
        self._write_lines()
        self.writer.close()
        self.file.close()
        self.episodes.close()
