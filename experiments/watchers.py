"""Everybody who watches a run: its log, its probes, the report on its tasks and TensorBoard's page."""

from collections.abc import Callable
from functools import partial

from agents.agent import Agent
from agents.guard import Watch
from experiments.config import TrainConfig
from experiments.logger import Logger
from experiments.page import Page, read_me
from experiments.probing import Probing
from experiments.run import Watcher
from experiments.run_directory import RunDirectory
from experiments.settings_page import write_end, write_settings
from experiments.task_report import TaskReport


class Watchers:
    """The watchers of a run by name in `all`, in the order in which they are told.

    Args:
        watch: looks for what is not finite whenever the log is flushed.
        tell: told what a person should know.
        also: told each line of the log.
        goes_on: the step at which a run was saved that goes on here; None: it begins.
    """

    def __init__(
        self,
        config: TrainConfig,
        agent: Agent,
        directory: RunDirectory,
        watch: Watch,
        tell: Callable[[str], None],
        also: Callable[[int, dict[str, float]], None] | None = None,
        goes_on: int | None = None,
    ) -> None:
        learner = agent.learner
        told = tell, learner.interventions.surgeries, also, goes_on, lambda: learner.executor.preparing
        self.logger = Logger(directory.path, config.log_every, watch, agent.scalars, *told)
        self.page = Page(self.logger.writer, agent.network, lambda: self.logger.tags)
        if goes_on is None:
            self.logger.writer.add_text("read_me_first", read_me(agent.network), 0)
            write_settings(self.logger.writer, config)
        files = self.logger.episodes.path, directory.path / "tasks.jsonl"
        self.tasks = TaskReport(config.run.level_share, *files, self.logger.task_summary, tell)
        self.all: dict[str, Watcher] = {"log": self.logger, "tasks": self.tasks, "page": self.page}
        self.probing: Probing | None = None
        if config.run.probes not in ((), ("none",)):
            self.probing = Probing(config, agent, directory, self.logger.findings, tell)
            self.all = {"log": self.logger, "probes": self.probing, "tasks": self.tasks, "page": self.page}

    def last(self, step: int) -> None:
        """The run has reached its end."""
        if self.probing is not None:
            self.probing.last(step)
        self.tasks.finish(step)
        self.logger.flush(step)

    def close(self, step: int, finished: bool) -> OSError | None:
        """The run is over, however it ended: write what is there. What kept a file from being written, if anything."""
        failure = None
        for writing in (partial(self._write_the_end, step, finished), self.logger.close):
            try:
                writing()
            except OSError as error:
                failure = failure or error
        return failure

    def _write_the_end(self, step: int, finished: bool) -> None:
        self.tasks.finish(step)
        self.logger.write_out(step)
        self.page.follow(step)
        if finished:
            write_end(self.logger.writer)
