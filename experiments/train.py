"""One training run from settings to a finished directory."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gymnasium.vector import VectorEnv
from rich.console import Console
from rich.markup import escape

from agents.agent import Agent
from agents.checks import uses_convolutions
from agents.guard import NonFiniteError, Watch
from envs.errors import WorldError
from experiments.config import TrainConfig
from experiments.machine import placement_in_words
from experiments.naming import preset_in_words
from experiments.progress import ProgressLine
from experiments.remarks import close, remarks, unwritten, world_failure
from experiments.run import Run
from experiments.run_directory import RunDirectory
from experiments.setup import never_learns, spaces_of
from experiments.surgery_report import idle, sentences, surgery_in_short
from experiments.task_report import table
from experiments.wandb_log import WandbError, WandbLog
from experiments.watchers import Watchers

Ending = Literal["finished", "interrupted", "not finite", "world failed", "not written"]


@dataclass(frozen=True)
class Result:
    """How a run ended."""

    directory: Path
    step: int
    """The last one made, over all environments."""
    ending: Ending
    why: str
    """In a sentence; empty where it finished, or there is no more to say."""
    checkpoint: Path | None
    """The newest one; None where there is none."""

    @property
    def exit_code(self) -> int:
        """0: finished; 130: interrupted; 1: stopped by what its ending says."""
        return {"finished": 0, "interrupted": 130}.get(self.ending, 1)


def train(config: TrainConfig, world: VectorEnv, agent: Agent, console: Console | None = None) -> Result:
    """Train the `agent` that `setup.build` made of `config` in its `world`, in a new run directory.

    Whatever ends the run (something is not finite, the world fails, a file cannot be written as on a full disk,
    Ctrl-C), what was logged is kept, and so is a last checkpoint, unless it would not be finite or there is no room for
    it: then the one before it stays the last. The world is closed at the end. `console` is told how it goes; without
    one nothing is printed. Raises PlaceError or WandbError where the run cannot begin.
    """
    training = _Training(config, world, agent, console or Console(quiet=True, force_terminal=False))
    training.introduce()
    ending, why = training.carry_out()
    return training.finish(ending, why)


class _Training:
    """A run, its directory, and who is told of it."""

    def __init__(self, config: TrainConfig, world: VectorEnv, agent: Agent, console: Console) -> None:
        self.config, self.world, self.agent, self.console = config, world, agent, console
        self.directory = RunDirectory(config)
        convolutional = uses_convolutions(config.agent.network, spaces_of(world))
        self.placement = placement_in_words(config.run.device, config.run.threads, convolutional, agent.device)
        self.wandb = _wandb(config, self.directory, world)
        self.watch = Watch(agent.learner.optimization, agent.state_dict)
        try:
            self.directory.write_manifest(agent.device, self.placement)
            also = self.wandb and self.wandb.line
            self.watchers = Watchers(config, agent, self.directory, self.watch, self.say, also)
        except OSError as error:
            world.close()
            raise self.directory.without_room(error) from error
        self.run = Run(agent, world, config.run.steps, self.watchers.all)

    @property
    def step(self) -> int:
        """Steps made."""
        return self.run.clock.steps

    def say(self, sentence: str, markup: bool = False) -> None:
        """Tell the person who watches."""
        self.console.print(sentence, highlight=False, soft_wrap=True, markup=markup)

    def introduce(self) -> None:
        """Say what is about to be run, and where."""
        config = self.config
        size = sum(parameter.numel() for parameter in self.agent.network.parameters())
        self.say(f"[bold]{escape(str(self.directory.path))}[/]  {size:,} parameters", markup=True)
        self.say(f"on {self.placement}")
        self.say(preset_in_words(config))
        if config.interventions:
            moments = "" if config.surgery.moments == "own" else f"; surgery.moments {config.surgery.moments}"
            self.say(f"interventions: {', '.join(map(surgery_in_short, config.interventions))}{moments}")
        if reason := never_learns(config, config.run.steps):
            self.say(f"note: nothing will be learned: {reason}")
        for sentence in remarks(self.world, self.agent):
            self.say(sentence)

    def carry_out(self) -> tuple[Ending, str]:
        """Make the run: how it ends, and why."""
        run, steps, every = self.run, self.config.run.steps, self.config.checkpoint_every
        try:
            with ProgressLine(steps, self.watchers.logger, self.console) as progress:
                while not run.over:
                    before = self.step
                    run.advance()
                    progress.tick(self.step)
                    if self.step // every > before // every and not run.over:
                        self.save()
            self.watchers.last(self.step)
            self.save(final=True)
        except NonFiniteError as error:
            return "not finite", self.watch.explain(error)
        except WorldError as error:
            return "world failed", world_failure(error, self.directory.path)
        except OSError as error:  # of the run's own files: what a world raises is a WorldError
            return "not written", unwritten(error, self.directory.path, self.step)
        except KeyboardInterrupt:
            return "interrupted", self.watch.unsound() or ""
        return "finished", ""

    def save(self, final: bool = False) -> None:
        """Write a checkpoint, between two ticks. Raises `NonFiniteError` where something is not finite."""
        self.watch.flush()
        self.directory.save(self.agent.state_dict(), self.step, final)

    def finish(self, ending: Ending, why: str) -> Result:
        """Say why the run stops, write and save what there is of it, and sum up."""
        if ending != "finished":
            self._say_end(ending, why)
        unwritable = self.watchers.close(self.step, ending == "finished")
        unclosed = close(self.world, self.directory.path)
        if unwritable is not None and ending == "finished":
            ending, why = "not written", unwritten(unwritable, self.directory.path, self.step)
            self._say_end(ending, why)
        if ending != "finished":
            self._save_what_is_finite()
        if unclosed:
            self._say_end("world failed", unclosed)
            ending, why = ("world failed", unclosed) if ending == "finished" else (ending, why)
        self._sum_up()
        self.directory.write_ending(ending, why, self.step)
        result = Result(self.directory.path, self.step, ending, why, self.directory.newest and self.directory.newest[0])
        if self.wandb is not None:
            self.wandb.finish(result.exit_code, {"exit_code": result.exit_code, "steps": self.step})
        return result

    def _say_end(self, ending: Ending, why: str) -> None:
        if ending == "interrupted":
            self.say(f"[bold]interrupted at step {self.step:,}[/]{why and f': {escape(why)}'}", markup=True)
        else:
            at = f"stopped at step {self.step:,}:" if ending == "not finite" else "stopped:"
            self.say(f"[bold red]{at}[/] {escape(why)}", markup=True)

    def _save_what_is_finite(self) -> None:
        """Save what a stopped run has come to, or say which checkpoint is good."""
        try:
            self.directory.save(self.agent.state_dict(), self.step)
        except (NonFiniteError, OSError):
            good = "there is no checkpoint from before"
            if self.directory.newest is not None:
                path, at = self.directory.newest
                good = f"the last good checkpoint is {path} (step {at:,})"
            self.say(f"nothing was saved of it; {good}")

    def _sum_up(self) -> None:
        """Say what interventions did, how the tasks went, and whether anything was learned at all."""
        done, tasks = self.watchers.logger.surgery, self.watchers.tasks
        for sentence in [*sentences(done.total), *idle(self.config, done)]:
            self.say(f"in all: {sentence}")
        if tasks.count:
            self.say("\n".join(table(tasks)))
        if not self.run.clock.gradient_steps:
            reason = never_learns(self.config, self.step)
            self.say(f"nothing was learned: {reason}" if reason else "nothing was learned: no gradient step was made")


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
