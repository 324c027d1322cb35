"""One training run from settings to a finished directory."""

from pathlib import Path

from gymnasium.vector import VectorEnv
from rich.console import Console
from rich.markup import escape

from agents.checks import uses_convolutions
from agents.guard import NonFiniteError, Watch
from agents.ppo import PPO
from agents.value_agent import ValueAgent
from experiments.config import TrainConfig, to_dict
from experiments.logger import Logger
from experiments.loop import TaskChange, TaskDrift, Tick, Update, training
from experiments.machine import placement_in_words
from experiments.page import Page
from experiments.probing import Probing
from experiments.progress import ProgressLine
from experiments.run_directory import RunDirectory
from experiments.setup import spaces_of
from experiments.surgery_report import idle, in_short, sentences
from experiments.task_report import TaskReport, TaskSummary, in_words, table


def train(
    config: TrainConfig, world: VectorEnv, agent: ValueAgent | PPO, console: Console | None = None
) -> tuple[Path, int]:
    """Train the `agent` that `setup.build` made of `config` in its `world` and return (run directory, exit code).

    Exit code 0: finished; 1: stopped because something was not finite; 130: interrupted. What was logged is kept in
    every case, and so is a last checkpoint, unless something in it would not be finite: then the one before it stays
    the last and is named. The world is closed at the end.
    """
    console = console or Console()
    directory = RunDirectory(config)
    convolutional = uses_convolutions(config.agent.network, spaces_of(world))
    placement = placement_in_words(config.run.device, config.run.threads, convolutional, agent.device)
    directory.write_manifest(agent.device, placement)
    if config.run.wandb:
        _start_wandb(config, directory.path)
    watch = Watch(agent.optimization, agent.state_dict)
    watchers = _Watchers(config, agent, directory, console, watch)
    console.print(f"[bold]{directory.path}[/]  {_size(agent.network)} parameters", highlight=False)
    console.print(f"on {placement}", highlight=False, soft_wrap=True)
    if config.interventions:
        moments = "" if config.surgery.moments == "own" else f"; surgery.moments {config.surgery.moments}"
        listed = ", ".join(map(in_short, config.interventions))
        console.print(f"interventions: {listed}{moments}", highlight=False, soft_wrap=True)
    code, step, saved = 0, 0, 0
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
    except NonFiniteError as error:
        code = 1
        why = watch.explain(error)
        console.print(f"[bold red]stopped at step {step:,}:[/] {escape(why)}", highlight=False, soft_wrap=True)
    except KeyboardInterrupt:
        code = 130
        unsound = watch.unsound()
        also = f": {escape(unsound)}" if unsound else ""
        console.print(f"[bold]interrupted at step {step:,}[/]{also}", highlight=False, soft_wrap=True)
    finally:
        watchers.close(step)
        world.close()
    if code:
        _save_what_is_finite(directory, agent.state_dict(), step, console)
    for sentence in [*sentences(watchers.logger.surgery.total), *idle(config, watchers.logger.surgery)]:
        console.print(f"in all: {sentence}", highlight=False, soft_wrap=True)
    if watchers.report.count:
        console.print("\n".join(table(watchers.report)), highlight=False, soft_wrap=True)
    return directory.path, code


def _save_what_is_finite(directory: RunDirectory, state: dict, step: int, console: Console) -> None:
    """Save what a stopped run has come to, or say which checkpoint is good."""
    try:
        directory.save(state, step)
    except NonFiniteError:
        good = "there is no checkpoint from before"
        if directory.newest is not None:
            path, at = directory.newest
            good = f"the last good checkpoint is {path} (step {at:,})"
        console.print(escape(f"nothing was saved of it; {good}"), highlight=False, soft_wrap=True)


class _Watchers:
    """Everybody who reads a run's events: log, probes, returns by task."""

    def __init__(
        self,
        config: TrainConfig,
        agent: ValueAgent | PPO,
        directory: RunDirectory,
        console: Console,
        watch: Watch,
    ) -> None:
        self.console = console
        surgeries = agent.interventions.surgeries
        self.logger = Logger(directory.path, config.log_every, watch, agent.scalars, self._say, surgeries)
        self.page = Page(self.logger.writer, agent.network)
        self.probing = Probing(config, agent, directory, self._say)
        self.report = TaskReport(config.run.level_share, self.logger.episodes.path, directory.path / "tasks.jsonl")

    def _say(self, sentence: str) -> None:
        self.console.print(sentence, highlight=False, soft_wrap=True)

    def notice(self, event: Tick | TaskChange | TaskDrift | Update) -> None:
        """Take note of an event. Probes come first: what they measure is what was there before it."""
        if isinstance(event, Tick):
            self.logger.tick(event)
            self.logger.findings(event.step, self.probing.tick(event.step))
        elif isinstance(event, Update):
            self.logger.update(event)
            self.logger.findings(event.step, self.probing.after_update())
        elif isinstance(event, TaskDrift):
            self.logger.task_drift(event)
        else:
            self.logger.findings(event.step, self.probing.at_boundary(event.step))
            self._summarise(self.report.change(event))
            self.logger.task_change(event)
            self._say(f"step {event.step:,}: task {event.task}, {in_words(event.parameters)}")
        self.page.follow(self.logger.tags, event.step)

    def last(self, step: int) -> None:
        """The run has reached its end."""
        self.logger.findings(step, self.probing.last(step))
        self._summarise(self.report.finish(step))
        self.logger.flush(step)

    def close(self, step: int) -> None:
        """The run is over, however it ended: write what is there."""
        self._summarise(self.report.finish(step))
        self.logger.write_out(step)
        self.page.follow(self.logger.tags, step)
        self.logger.close()

    def _summarise(self, summary: TaskSummary | None) -> None:
        if summary is not None:
            self.logger.task_summary(summary)


def _size(network: object) -> str:
    return f"{sum(parameter.numel() for parameter in network.parameters()):,}"


def _start_wandb(config: TrainConfig, path: Path) -> None:
    import wandb

    wandb.init(
        project=config.run.wandb_project, name=path.name, config=to_dict(config), dir=str(path), sync_tensorboard=True
    )
