"""A run from its settings to a finished directory: what is told, saved and written of it on the way."""

import traceback
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from gymnasium.vector import VectorEnv
from rich.console import Console
from rich.markup import escape

from agents.agent import Agent
from agents.guard import NonFiniteError, Watch
from envs.errors import WorldError
from envs.patience import end_children
from experiments.checkpoints import Checkpoints
from experiments.config import TrainConfig, to_dict
from experiments.earlier import EarlierRun
from experiments.fork import take_over
from experiments.lock import RunLock
from experiments.machine import placement_in_words
from experiments.naming import preset_in_words
from experiments.remarks import close, remarks, unwritten, world_failure
from experiments.run import Run, TaskChange
from experiments.run_directory import RunDirectory
from experiments.setup import never_learns, spaces_of
from experiments.signals import EXIT_SAVED
from experiments.sizes import products_of_a_batch
from experiments.store import Unsound, differences
from experiments.surgery_report import idle, sentences, surgery_in_short
from experiments.task_report import table
from experiments.wandb_log import WandbLog
from experiments.watchers import Watchers

Ending = Literal["finished", "interrupted", "not finite", "world failed", "not written", "crashed"]
SHORT_TASK = 100
"""A task is short where so many of them end between two checkpoints that are due by the steps."""


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
    """The newest one that is the run's end, or that it can go on from; None where there is none."""
    exact: bool = True
    """Whether that holds all of the run, as it is."""
    raised: Exception | None = None
    """What it crashed with."""

    @property
    def exit_code(self) -> int:
        """0: finished; 75: asked to stop, and saved; 130: the same inside a step, without; 1: its ending says why."""
        interrupted = EXIT_SAVED if self.exact else 130
        return {"finished": 0, "interrupted": interrupted}.get(self.ending, 1)

    def leave_no_process(self) -> None:
        """For a command, whose children are the world's: one that has failed ends them no more."""
        if self.ending == "world failed":
            end_children()


class Pause(NamedTuple):
    """Where a run waits for the others that are trained in its process, and for whoever drives it."""

    learns: bool = False
    """It learns next; else its tick is over, or all of them are and only the end is left."""
    save: bool = False
    """It is time for a checkpoint."""


class Answer(NamedTuple):
    """How a run goes on after a pause."""

    save: bool = False
    stop: str = ""
    """Who asks it to stop."""


class Training:
    """A run, its directory, and who is told of it.

    `carry_out` is read to its end, `finish` called with what it returns. `seeds`: of how many in one process it is one;
    of several, each says which it is. `stacked`: the seeds whose gradient steps are computed as one, itself one.
    """

    def __init__(
        self,
        config: TrainConfig,
        world: VectorEnv,
        agent: Agent,
        console: Console,
        earlier: EarlierRun | None = None,
        seeds: int = 1,
        stacked: Sequence[int] = (),
    ) -> None:
        self.config, self.world, self.agent, self.console, self.seeds = config.settled, world, agent, console, seeds
        self.stacked = list(stacked)
        self.resumed, self.lock = earlier and earlier.checkpoint, earlier and earlier.lock
        self.exact = True  # between two steps, and all can be saved
        self.ended: tuple[Ending, str] | None = None
        self.raised: Exception | None = None  # of what is neither the world's nor a file's
        products, before = products_of_a_batch(config, spaces_of(world)), earlier.threads if earlier else 0
        self.placement = placement_in_words(config.run.device, config.run.threads, products, agent.device, before)
        executor = agent.learner.executor
        self.placement += f", execution {executor.mode}" * (executor.mode != "eager")
        executor.say = self.say
        self.watch = Watch(agent.learner.optimization, agent.state_dict)
        try:
            self._begin(earlier)
        except BaseException:
            world.close()
            if self.lock is not None:
                self.lock.release()
            raise

    def _begin(self, earlier: EarlierRun | None) -> None:
        """Make the directory, or open that of the `earlier` run, and restore where that was."""
        config, agent, step = self.config, self.agent, self.resumed.step if self.resumed else None
        self.directory = RunDirectory(config, earlier=earlier and earlier.directory)
        try:
            self.lock = self.lock or RunLock(self.directory.path)
            made_by = self.directory.write_manifest(agent.device, self.placement, step or 0)
            made_by |= {"stacked_seeds": self.stacked} if self.stacked else {}
            self.wandb = self._wandb()
            also = self.wandb and self.wandb.line
            self.watchers = Watchers(config, agent, self.directory, self.watch, self.say, also, step)
            self.run = Run(agent, self.world, config.run.steps, self.watchers.all)
            self.forked = take_over(self.run, config.fork) if config.fork.run and self.resumed is None else ""
            settings = to_dict(config), made_by, config.run.keep_checkpoints, config.checkpoint.replay
            self.checkpoints = Checkpoints(self.directory.path, self.run, *settings, self.resumed)
            if self.resumed is not None:
                self.watch.flush()
        except OSError as error:
            raise self.directory.without_room(error) from error
        except (ValueError, NonFiniteError) as error:
            self.directory.remove()
            raise error if self.resumed is None else Unsound(self.resumed.path, str(error)) from error
        self.changed = differences(self.resumed.made_by, made_by) if self.resumed else []
        self.saved_at = step  # of the newest checkpoint

    def _wandb(self) -> WandbLog | None:
        """The run's log on wandb where it was asked for."""
        if not self.config.run.wandb:
            return None
        log = WandbLog(self.config, self.directory.path, self.directory.manifest().get("wandb_id"))
        self.directory.note("wandb_id", log.id)
        return log

    @property
    def step(self) -> int:
        """Steps made."""
        return self.run.clock.steps

    def say(self, sentence: str, markup: bool = False) -> None:
        """Tell the person who watches."""
        self._print(f"seed {self.config.run.seed}: {sentence}" if self.seeds > 1 else sentence, markup)

    def _print(self, sentence: str, markup: bool = False) -> None:
        self.console.print(sentence, highlight=False, soft_wrap=True, markup=markup)

    def introduce(self, of_all: bool = True) -> None:
        """Say what is about to be run, and where; what holds for all seeds alike if `of_all`."""
        size = sum(parameter.numel() for parameter in self.agent.network.parameters())
        self.say(f"[bold]{escape(str(self.directory.path))}[/]  {size:,} parameters", markup=True)
        if of_all:
            self._introduce_settings()
        if self.checkpoints.leftovers:
            self.say(f"removed, of writes that were broken off: {', '.join(self.checkpoints.leftovers)}")
        if self.resumed is not None:
            self._introduce_resumed()
        elif self.config.fork.run:
            kept = ", ".join(self.config.fork.keep)
            self.say(f"forked at step {self.step:,} from {self.config.fork.run}, keeping {kept}")
            if self.forked:
                self.say(f"[bold red]not exactly[/]: {escape(self.forked)}", markup=True)

    def _introduce_settings(self) -> None:
        config = self.config
        self._print(f"on {self.placement}")
        self._print(preset_in_words(config))
        if config.interventions:
            moments = "" if config.surgery.moments == "own" else f"; surgery.moments {config.surgery.moments}"
            self._print(f"interventions: {', '.join(map(surgery_in_short, config.interventions))}{moments}")
        if reason := never_learns(config, config.run.steps):
            self._print(f"note: nothing will be learned: {reason}")
        for sentence in [*remarks(self.world, self.agent, config.run.steps), self.checkpoints.disk_use]:
            if sentence:
                self._print(sentence)

    def _introduce_resumed(self) -> None:
        """Say from where the run goes on, and how exactly."""
        changed = f"it was made by others ({'; '.join(self.changed)})" if self.changed else ""
        inexact = "; ".join(filter(None, [self.checkpoints.inexact, changed]))
        exactly = "exactly as it was"
        if self.agent.device.type != "cpu":
            exactly += ", but for the order in which a GPU's kernels add up"
        how = f"[bold red]not exactly[/]: {escape(inexact)}" if inexact else exactly
        self.say(f"[bold]goes on from step {self.step:,}[/] ({escape(self.resumed.path.name)}), {how}", markup=True)

    def carry_out(self) -> Generator[Pause, Answer, tuple[Ending, str]]:
        """Make the run, with a pause before whatever is learned and after every tick: how it ends, and why."""
        try:
            if self.resumed is None:
                self.save()
            answer = yield Pause()
            while not self.run.over and not answer.stop:
                before = self.step
                self.exact = False
                for _ in self.run.tick():
                    if self.agent.update_due():
                        yield Pause(learns=True)
                self.exact = True
                self.checkpoints.tick()
                answer = yield Pause(save=self._due(before))
                if answer.save:
                    self.save()
            if not self.run.over:
                self.save()
                return "interrupted", answer.stop
            yield from self._end()
            return "finished", ""
        except NonFiniteError as error:
            self.exact = False
            return "not finite", self.watch.explain(error)
        except WorldError as error:
            return "world failed", world_failure(error, self.directory.path)
        except OSError as error:  # of the run's own files: what a world raises is a WorldError
            self.exact = False
            return "not written", unwritten(error, self.directory.path, self.step)
        except KeyboardInterrupt:  # where no signals are heard, or the world raises it
            return "interrupted", self.watch.unsound() or ""
        except Exception as error:
            self.raised = error
            return "crashed", traceback.format_exception_only(error)[-1].strip().partition("\n")[0][:300]

    def _due(self, before: int) -> bool:
        """Whether it is time for a checkpoint; that of the last step is another's."""
        every = self.config.checkpoint_every
        ends = isinstance(self.run.change, TaskChange) and (self.step - self.saved_at) * SHORT_TASK >= every
        return (ends or self.step // every > before // every) and not self.run.over

    def _end(self) -> Iterator[Pause]:
        """No more steps are made: save. With more steps it goes on as if it had not ended."""
        if not self.checkpoints.lets_go or self.seeds > 1:
            self.save()
        yield Pause()  # all of them are saved before the first one's replay goes
        self.watchers.last(self.step)  # the last probes
        if self.checkpoints.lets_go:
            self.save(finished=True)

    def stack_with(self, seeds: Sequence[int]) -> None:
        """From now on its gradient steps are computed as one with those of `seeds` alone."""
        made_by = self.checkpoints.made_by
        made_by.pop("stacked_seeds")
        made_by |= {"stacked_seeds": list(seeds)} if len(seeds) > 1 else {}

    def save(self, finished: bool = False) -> None:
        """Write a checkpoint, between two steps. Raises `NonFiniteError` where something is not finite."""
        self.watch.flush()
        if finished or self.saved_at != self.step:
            self.checkpoints.save(finished)
        self.saved_at = self.step

    def go_without_the_world(self, error: WorldError) -> None:
        """Finish, in the thread that has waited: the main one hangs in the world, and cannot be interrupted."""
        self.world, why = None, world_failure(error, self.directory.path)
        self.console.show_cursor()
        if self.ended is None:
            self.finish("world failed", why)
            return
        self._say_end("world failed", why)  # it is the closing that hangs
        ended = ("world failed", why) if self.ended[0] == "finished" else self.ended
        self.directory.write_ending(*ended, self.step)

    def abandon(self) -> None:
        """Another seed cannot begin: nothing of a new run is left."""
        self.watchers.logger.close()
        self.checkpoints.close()
        self.world.close()
        self.directory.remove()
        self.lock.release()

    def finish(self, ending: Ending, why: str) -> Result:
        """Say why the run stops, write and save what there is of it, and sum up."""
        self.ended = ending, why
        if ending != "finished":
            self._say_end(ending, why)
        unwritable = self.watchers.close(self.step, ending == "finished")
        unclosed = close(self.world, self.directory.path) if self.world is not None else ""
        if unwritable is not None and ending == "finished":
            ending, why = "not written", unwritten(unwritable, self.directory.path, self.step)
            self._say_end(ending, why)
        if ending not in ("finished", "interrupted") or not self.exact:
            self._save_what_is_finite(why or ending)
        if unclosed:
            self._say_end("world failed", unclosed)
            ending, why = ("world failed", unclosed) if ending == "finished" else (ending, why)
        self._sum_up()
        self.directory.write_ending(ending, why, self.step)
        self.checkpoints.close()
        self.lock.release()
        newest = self.checkpoints.newest
        newest = newest and newest[0]
        result = Result(self.directory.path, self.step, ending, why, newest, self.exact, self.raised)
        if self.wandb is not None:
            self.wandb.finish(result.exit_code, {"exit_code": result.exit_code, "steps": self.step})
        return result

    def _say_end(self, ending: Ending, why: str) -> None:
        if ending == "interrupted":
            saved = " and saved" if self.exact else ""
            reason = why and f": {escape(why)}"
            self.say(f"[bold]interrupted at step {self.step:,}{saved}[/]{reason}", markup=True)
        else:
            at = f"stopped at step {self.step:,}:" if ending == "not finite" else "stopped:"
            self.say(f"[bold red]{at}[/] {escape(why)}", markup=True)

    def _save_what_is_finite(self, why: str) -> None:
        """Save the weights that a run which was broken off has come to, and say what it goes on from."""
        newest = self.checkpoints.newest
        good = "there is no checkpoint from before"
        if newest is not None:
            good = f"the last good checkpoint is {newest[0]} (step {newest[1]:,})"
        try:
            path = self.checkpoints.save_crashed(why)
            self.say(f"its weights are in {path}, for evaluate.py alone; {good}")
        except (NonFiniteError, OSError):
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
