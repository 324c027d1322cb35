"""Runs from settings to finished directories: one, or several seeds side by side in one process."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from gymnasium.vector import VectorEnv
from rich.console import Console

from agents.agent import Agent
from agents.config import shown
from agents.stacking import Stack, why_in_turns, why_no_faster
from envs.errors import WorldError
from envs.patience import Patience
from experiments.config import TrainConfig
from experiments.earlier import EarlierRun
from experiments.places import PlaceError, quoted
from experiments.progress import ProgressLine, RunConsole
from experiments.run_directory import write_json
from experiments.signals import EXIT_SAVED, StopRequests
from experiments.training import Answer, Ending, Pause, Result, Training


class Seed(NamedTuple):
    """A run that is to be trained: what `setup.build` made of its settings, and the earlier run that it goes on from,
    taken up."""

    config: TrainConfig
    world: VectorEnv
    agent: Agent
    earlier: EarlierRun | None = None

    def leave(self) -> None:
        """It is not trained after all."""
        self.world.close()
        if self.earlier is not None and self.earlier.lock is not None:
            self.earlier.lock.release()


def train(
    config: TrainConfig,
    world: VectorEnv,
    agent: Agent,
    console: Console | None = None,
    earlier: EarlierRun | None = None,
) -> Result:
    """Train the `agent` that `setup.build` made of `config` in its `world`, in a new run directory; or go on with an
    `earlier` run that was taken up, of whose `config` they were made.

    Whatever ends the run, what was logged is kept. A signal or a closed output lets it finish its step and save all of
    it. Where it is broken off inside a step (something is not finite, the world fails, memory is short), the newest
    checkpoint stays the one to go on from, and the weights as they are, if they are finite, are saved beside it. The
    world is closed at the end; an error of nobody's world is then raised again. `console` is told how it goes; without
    one nothing is printed. Raises PlaceError, WandbError, or of an earlier run Unsound, where the run cannot begin.
    """
    return train_seeds([Seed(config, world, agent, earlier)], console)[0]


def train_seeds(seeds: Sequence[Seed], console: Console | None = None, record: Path | None = None) -> list[Result]:
    """`train` for several seeds of the same settings side by side: each is a run like any other, in a directory of its
    own. They make their ticks in turn, save and stop together, and where that pays take their gradient steps as one
    (agents/stacking.py). One that is broken off leaves the others alone. `record`: a file to write who ran together.

    Raises what `train` raises, where one of them cannot begin, or for the first that an error of nobody's world ended.
    """
    results = side_by_side(seeds, console, record)
    for result in results:
        if result.raised is not None:
            raise result.raised
    return results


def side_by_side(seeds: Sequence[Seed], console: Console | None = None, record: Path | None = None) -> list[Result]:
    """`train_seeds`, but an error of nobody's world is what the result says of the one that it ended."""
    console, settings = console or Console(quiet=True, force_terminal=False), seeds[0].config
    with StopRequests() as stop, Patience(settings.run.world_timeout, settings.world.env) as patience:
        if isinstance(console, RunConsole):
            console.on_closed = partial(stop.ask, "its output was closed")
        company = _Company(seeds, console, stop)
        for training in company.members:
            patience.watch(training.world, partial(company.go_without_the_world, training))
        if record is not None:
            company.write(record)
        company.introduce()
        company.carry_out()
        return company.finish()


class _Company:
    """Runs that are trained side by side."""

    def __init__(self, seeds: Sequence[Seed], console: Console, stop: StopRequests) -> None:
        self.console, self.stop = console, stop
        learners, numbers = [seed.agent.learner for seed in seeds], [seed.config.run.seed for seed in seeds]
        self.in_turns = why_in_turns(learners) or why_no_faster(learners) if len(seeds) > 1 else "one alone"
        stacked = () if self.in_turns else numbers
        self.members: list[Training] = []
        for place, (config, world, agent, earlier) in enumerate(seeds):
            try:
                self.members.append(Training(config, world, agent, console, earlier, len(seeds), stacked))
            except BaseException:
                for training in self.members:
                    training.abandon()
                for other in seeds[place + 1 :]:
                    other.leave()
                raise
        self.stack = None if self.in_turns else Stack(learners)
        self._endings: dict[Training, tuple[Ending, str]] = {}
        self._results: dict[Training, Result] = {}
        self._pauses: dict[Training, Pause] = {}
        self._going = {training: training.carry_out() for training in self.members}

    def write(self, record: Path) -> None:
        """Write who is trained together. Raises PlaceError."""
        runs = {training.directory.path.name: training.config.run.seed for training in self.members}
        try:
            write_json(record, {"runs": runs, "in_turns": self.in_turns})
        except OSError as error:
            for training in self.members:
                training.abandon()
            raise PlaceError(f"runs_dir = {shown(str(record.parent))}: {error.strerror or error}") from None

    def introduce(self) -> None:
        """Say what is about to be run."""
        for training in self.members:
            training.introduce(of_all=training is self.members[0])
        if len(self.members) > 1:
            how = f"in turns: {self.in_turns}" if self.in_turns else "computed as one"
            self.console.print(f"{len(self.members)} seeds side by side, their gradient steps {how}", highlight=False)

    def carry_out(self) -> None:
        """Make the runs, until all have ended."""
        first = self.members[0]
        loggers = [training.watchers.logger for training in self.members]
        with ProgressLine(first.run.steps, loggers, self.console, first.step) as progress:
            self._advance(self.members, None)
            while self._going:
                learning = [training for training in self._going if self._pauses[training].learns]
                if learning:
                    self._learn(learning)
                    continue
                progress.tick(max(training.step for training in self._going))
                save = any(self._pauses[training].save for training in self._going)
                self._advance(list(self._going), Answer(save, self.stop.asked))
                self._keep_stacked()

    def _advance(self, members: Sequence[Training], answer: Answer | None) -> None:
        """Let `members` go on to their next pause."""
        for training in members:
            self._go_on(training, answer)

    def _learn(self, members: Sequence[Training]) -> None:
        """Let `members` go on over gradient steps."""
        if self.stack is None:
            self._advance(members, None)
            return
        self.stack.together({training.agent.learner: partial(self._go_on, training, None) for training in members})
        self._keep_stacked()

    def _keep_stacked(self) -> None:
        """Those that have ended take no more gradient steps."""
        if self.stack is not None and len(self.stack.learners) > len(self._going):
            self.stack.keep([training.agent.learner for training in self._going])
            for training in self._going:
                training.stack_with([each.config.run.seed for each in self._going])

    def _go_on(self, training: Training, answer: Answer | None) -> None:
        try:
            self._pauses[training] = self._going[training].send(answer)
        except StopIteration as end:
            self._endings[training] = ending, why = end.value
            del self._going[training]
            if ending == "interrupted":  # perhaps by what no others hear
                self.stop.ask(why or "Ctrl-C")
            elif ending != "finished" and self._going:  # at once, since the others may go on for long
                self._results[training] = training.finish(ending, why)

    def finish(self) -> list[Result]:
        """Sum up those that have not been."""
        for training in self.members:
            if training not in self._results:
                self._results[training] = training.finish(*self._endings[training])
        return [self._results[training] for training in self.members]

    def go_without_the_world(self, hung: Training, error: WorldError) -> None:
        """The process is left while the world of one hangs: write what there is of all."""
        hung.go_without_the_world(error)
        for training in self.members:
            if training is not hung and training.ended is None:
                training.world, training.exact = None, False  # it is left with the process
                training.finish("interrupted", f"the process was left: {error}")


def exit_code(results: Sequence[Result]) -> int:
    """Of a command: 75 or 130 where a run was asked to stop, and is to be started again; else 1 where one did not
    finish."""
    codes = {result.exit_code for result in results}
    return next((code for code in (130, EXIT_SAVED, 1) if code in codes), 0)


def what_next(results: Sequence[Result], record: Path | None = None) -> list[str]:
    """Sentences on what can be done with runs that were trained side by side, as their `record` says."""
    first, several = results[0].directory, f" --num-seeds {len(results)}" if len(results) > 1 else ""
    said = [f"curves:    tensorboard --logdir {quoted(first.parent)}", f"evaluate:  python evaluate.py {quoted(first)}"]
    unfinished = [result.directory for result in results if result.ending != "finished"]
    if unfinished:
        said.append(f"go on:     python train.py --resume {quoted(record or unfinished[0])}")
    return [*said, f"again:     python train.py --config {quoted(first / 'config.json')}{several}"]
