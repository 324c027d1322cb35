"""One training run from settings to a finished directory."""

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

from gymnasium.vector import VectorEnv
from rich.console import Console
from rich.markup import escape

from agents.agent import Agent
from agents.checks import uses_convolutions
from agents.guard import NonFiniteError, Watch
from envs.errors import WorldError
from experiments.config import TrainConfig
from experiments.logger import Logger
from experiments.loop import TaskChange, TaskDrift, Tick, Update, training
from experiments.machine import placement_in_words
from experiments.naming import in_words as in_words_of_preset
from experiments.page import Page
from experiments.probing import Probing
from experiments.progress import ProgressLine, RunConsole
from experiments.remarks import close, remarks, told, unwritten
from experiments.run_directory import RunDirectory
from experiments.settings_page import write_end, write_settings
from experiments.setup import never_learns, spaces_of
from experiments.surgery_report import idle, in_short, sentences
from experiments.task_report import TaskReport, TaskSummary, in_words, table
from experiments.wandb_log import WandbError, WandbLog


def train(config: TrainConfig, world: VectorEnv, agent: Agent, console: Console | None = None) -> tuple[Path, int]:
    """Train the `agent` that `setup.build` made of `config` in its `world` and return (run directory, exit code).

    Exit code 0: finished; 1: stopped because something was not finite, the world failed or a file could not be written
    (a full disk); 130: interrupted. What was logged is kept in every case, and so is a last checkpoint, unless it would
    not be finite or there is no room for it: then the one before it stays the last and is named. The world is closed at
    the end. Raises PlaceError or WandbError where the run cannot begin.
    """
    console = console or RunConsole()
    directory = RunDirectory(config)
    convolutional = uses_convolutions(config.agent.network, spaces_of(world))
    placement = placement_in_words(config.run.device, config.run.threads, convolutional, agent.device)
    also = _wandb(config, directory, world)
    watch = Watch(agent.learner.optimization, agent.state_dict)
    try:
        directory.write_manifest(agent.device, placement)
        watchers = _Watchers(config, agent, directory, console, watch, also)
    except OSError as error:
        world.close()
        raise directory.without_room(error) from error
    _introduce(config, agent, directory, placement, watchers.say)
    for sentence in remarks(world, agent):
        console.print(sentence, markup=False, highlight=False, soft_wrap=True)
    code, step, saved = 1, 0, 0
    try:
        with ProgressLine(config.run.steps, watchers.logger, console) as progress:
            for event in training(agent, world, config.run.steps):
                watchers.notice(event)
                if not isinstance(event, Tick):
                    continue
                step = event.step
                progress.tick(step)
                if step - saved >= config.checkpoint_every and step < config.run.steps:
                    watch.flush()
                    directory.save(agent.state_dict(), step)
                    saved = step
        watchers.last(step)
        watch.flush()
        directory.save(agent.state_dict(), step, final=True)
        code = 0
    except NonFiniteError as error:
        why = watch.explain(error)
        console.print(f"[bold red]stopped at step {step:,}:[/] {escape(why)}", highlight=False, soft_wrap=True)
    except WorldError as error:
        _say_failure(console, told(error, directory.path))
    except OSError as error:  # of the run's own files: what a world raises is a WorldError
        _say_failure(console, unwritten(error, directory.path, step))
    except KeyboardInterrupt:
        code = 130
        unsound = watch.unsound()
        why = f": {escape(unsound)}" if unsound else ""
        console.print(f"[bold]interrupted at step {step:,}[/]{why}", highlight=False, soft_wrap=True)
    finally:
        unwritable = watchers.close(step, code)
        unclosed = close(world, directory.path)
    if unwritable is not None and not code:
        code = 1
        _say_failure(console, unwritten(unwritable, directory.path, step))
    if code:
        _save_what_is_finite(directory, agent.state_dict(), step, console)
    if unclosed:
        code = code or 1
        _say_failure(console, unclosed)
    watchers.sum_up(config, step)
    if also is not None:
        also.finish(code, {"exit_code": code, "steps": step})
    return directory.path, code


def _save_what_is_finite(directory: RunDirectory, state: dict, step: int, console: Console) -> None:
    """Save what a stopped run has come to, or say which checkpoint is good."""
    try:
        directory.save(state, step)
    except (NonFiniteError, OSError):
        good = "there is no checkpoint from before"
        if directory.newest is not None:
            path, at = directory.newest
            good = f"the last good checkpoint is {path} (step {at:,})"
        console.print(escape(f"nothing was saved of it; {good}"), highlight=False, soft_wrap=True)


def _introduce(config: TrainConfig, agent: Agent, directory: RunDirectory, placement: str, say: Callable) -> None:
    """What is about to be run, and where."""
    size = sum(parameter.numel() for parameter in agent.network.parameters())
    say(f"[bold]{escape(str(directory.path))}[/]  {size:,} parameters", markup=True)
    say(f"on {placement}")
    say(in_words_of_preset(config))
    if config.interventions:
        moments = "" if config.surgery.moments == "own" else f"; surgery.moments {config.surgery.moments}"
        say(f"interventions: {', '.join(map(in_short, config.interventions))}{moments}")
    if reason := never_learns(config, config.run.steps):
        say(f"note: nothing will be learned: {reason}")


def _wandb(config: TrainConfig, directory: RunDirectory, world: VectorEnv) -> WandbLog | None:
    """The run's log on wandb where it was asked for. Where wandb cannot begin, nothing is left behind."""
    if not config.run.wandb:
        return None
    try:
        return WandbLog(config, directory.path)
    except WandbError:
        world.close()
        shutil.rmtree(directory.path, ignore_errors=True)
        raise


class _Watchers:
    """Everybody who reads a run's events: log, probes, returns by task."""

    def __init__(
        self,
        config: TrainConfig,
        agent: Agent,
        directory: RunDirectory,
        console: Console,
        watch: Watch,
        also: WandbLog | None,
    ) -> None:
        self.console = console
        self.learned = False
        surgeries = agent.learner.interventions.surgeries
        self.logger = Logger(
            directory.path, config.log_every, watch, agent.scalars, self.say, surgeries, also and also.line
        )
        self.page = Page(self.logger.writer, agent.network)
        write_settings(self.logger.writer, config)
        self.probing = Probing(config, agent, directory, self.say)
        self.report = TaskReport(config.run.level_share, self.logger.episodes.path, directory.path / "tasks.jsonl")

    def say(self, sentence: str, markup: bool = False) -> None:
        """Tell the person who watches."""
        self.console.print(sentence, highlight=False, soft_wrap=True, markup=markup)

    def notice(self, event: Tick | TaskChange | TaskDrift | Update) -> None:
        """Take note of an event. Probes come first: what they measure is what was there before it."""
        if isinstance(event, Tick):
            self.logger.tick(event)
            self.logger.findings(event.step, self.probing.tick(event.step))
        elif isinstance(event, Update):
            self.learned = True
            self.logger.update(event)
            self.logger.findings(event.step, self.probing.after_update())
        elif isinstance(event, TaskDrift):
            self.logger.task_drift(event)
        else:
            self.logger.findings(event.step, self.probing.at_boundary(event.step))
            self._summarise(self.report.change(event))
            self.logger.task_change(event)
            self.say(f"step {event.step:,}: task {event.task}, {in_words(event.parameters)}")
        self.page.follow(self.logger.tags, event.step)

    def last(self, step: int) -> None:
        """The run has reached its end."""
        self.logger.findings(step, self.probing.last(step))
        self._summarise(self.report.finish(step))
        self.logger.flush(step)

    def close(self, step: int, code: int) -> OSError | None:
        """The run is over, however it ended: write what is there. What kept a file from being written, if anything."""
        failure = None
        for writing in (partial(self._write_the_end, step, code), self.logger.close):
            try:
                writing()
            except OSError as error:
                failure = failure or error
        return failure

    def _write_the_end(self, step: int, code: int) -> None:
        self._summarise(self.report.finish(step))
        self.logger.write_out(step)
        self.page.follow(self.logger.tags, step)
        if code == 0:
            write_end(self.logger.writer)

    def sum_up(self, config: TrainConfig, step: int) -> None:
        """Say what interventions did, how the tasks went, and whether anything was learned at all."""
        for sentence in [*sentences(self.logger.surgery.total), *idle(config, self.logger.surgery)]:
            self.say(f"in all: {sentence}")
        if self.report.count:
            self.say("\n".join(table(self.report)))
        if not self.learned:
            reason = never_learns(config, step)
            self.say(f"nothing was learned: {reason}" if reason else "nothing was learned: no gradient step was made")

    def _summarise(self, summary: TaskSummary | None) -> None:
        if summary is not None:
            self.logger.task_summary(summary)


def _say_failure(console: Console, sentence: str) -> None:
    console.print("[bold red]stopped:[/]", escape(sentence), highlight=False, soft_wrap=True)
