"""A run: where a world and an agent meet, and whose events everybody who watches reads."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from torch import Tensor

from agents.agent import Agent
from agents.config import require
from agents.transitions import Transitions


class Episode(NamedTuple):
    """A whole game, as its players count it: unclipped, across lives."""

    environment: int
    episodic_return: float
    length: int
    """Steps."""
    task: int = 0
    """Index of the task it ended in."""


class Tick(NamedTuple):
    """Every environment has advanced by one step."""

    step: int
    """Steps so far, over all environments."""
    episodes: tuple[Episode, ...]


class TaskChange(NamedTuple):
    """Every environment has entered a task; the first one at step 0."""

    step: int
    task: int
    """Its index."""
    parameters: dict[str, float | int | str]


class TaskDrift(NamedTuple):
    """The hindmost environment has gone a stage further towards the next task."""

    step: int
    task: int
    parameters: dict[str, float | int | str]


class Update(NamedTuple):
    """The agent has learned."""

    step: int
    metrics: dict[str, Tensor]
    """0-d tensors on the training device."""


Event = Tick | TaskChange | TaskDrift | Update


class Watcher(Protocol):
    """Somebody who reads a run's events, and never changes the run."""

    def notice(self, event: Event) -> None:
        """Something has happened."""

    def state_dict(self) -> dict[str, Any]:
        """What it remembers between two ticks, as tensors and primitives."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave."""


def finished_episodes(infos: dict) -> tuple[Episode, ...]:
    """The games that ended in this step, from the world's `episode` statistics."""
    if "episode" not in infos:
        return ()
    statistics, ended = infos["episode"], np.flatnonzero(infos["_episode"])
    tasks = statistics.get("task_index", np.zeros(len(infos["_episode"]), int))
    return tuple(Episode(int(i), float(statistics["r"][i]), int(statistics["l"][i]), int(tasks[i])) for i in ended)


def hindmost_task(infos: dict) -> tuple[tuple[int, int], dict[str, float | int | str]]:
    """((index, stage), parameters) of the task that the hindmost environment is in."""
    hindmost = int(np.lexsort((infos["task_stage"], infos["task_index"]))[0])
    parameters = {name: values[hindmost].item() for name, values in infos["task"].items()}
    return (int(infos["task_index"][hindmost]), int(infos["task_stage"][hindmost])), parameters


class Run:
    """One training from one seed: an agent in a world until `steps` steps over all environments are made, and who
    watches. Iterating it gives what happens; each of the `watchers` is told of it before, in their order.

    An agent hears of a task when the last environment has entered it. What is learned at a tick is learned before that,
    and a task change belongs to the tick that follows it: nobody hears of a task that the last step would begin.

    Between two ticks `state_dict` is all of it but what the replay stores: a run that was built alike and given that
    goes on from it to the bit, where its world can (`World.resumption`).

    Args:
        agent: its clock and its registry of random generators are the run's.
        world: not reset yet.
    """

    def __init__(
        self, agent: Agent, world: VectorEnv, steps: int, watchers: Mapping[str, Watcher] | None = None
    ) -> None:
        self.agent, self.world, self.steps, self.watchers = agent, world, steps, dict(watchers or {})
        self.clock, self.generators = agent.clock, agent.generators
        self.observations: np.ndarray | None = None  # what the agent acts in next; None before the first tick
        self.tasks: np.ndarray | None = None  # of each environment; None where the world never changes
        self.hindmost = (0, 0)  # index and stage of the task that the last environment is in
        self.change: TaskChange | TaskDrift | None = None  # that the next tick begins with
        self.unfinished: np.ndarray | None = None  # what was reached when a world that now begins anew was left
        self._nobody = np.zeros(world.num_envs, bool)

    @property
    def over(self) -> bool:
        """Whether all steps are made."""
        return self.clock.steps >= self.steps

    def __iter__(self) -> Iterator[Event]:
        while not self.over:
            yield from self.tick()

    def advance(self) -> None:
        """Make a tick."""
        for _ in self.tick():
            pass

    def tick(self) -> Iterator[Event]:
        """Act, observe and learn once; to be read to its end."""
        if self.observations is None:
            self._reset()
        if self.unfinished is not None:
            self.agent.cut(self.unfinished)
            self.unfinished = None
        if self.change is not None:
            change, self.change = self.change, None
            yield self._told(change)  # first: what is measured now is the task that ended
            if change.step and isinstance(change, TaskChange):
                self.agent.on_task_change()
        agent, observations = self.agent, self.observations
        actions = agent.act(observations)
        next_observations, rewards, terminated, truncated, infos = self.world.step(actions)
        life_lost, reached = infos.get("life_lost", self._nobody), infos.get("final_obs")
        ends, next_tasks = (rewards, terminated, truncated, life_lost), infos.get("task_index")
        tasks = self.tasks, next_tasks
        agent.observe(Transitions(observations, actions, *ends, next_observations, reached, *tasks, infos.get("cut")))
        self.observations = next_observations
        if next_tasks is not self.tasks:  # a world hands out the same array until something changes
            self.tasks = next_tasks
            self._look_for_a_change(infos)
        yield self._told(Tick(self.clock.steps, finished_episodes(infos)))
        while agent.update_due():
            yield self._told(Update(self.clock.steps, agent.update()))

    def _reset(self) -> None:
        self.observations, infos = self.world.reset()
        self.tasks = infos.get("task_index")
        if self.tasks is not None:
            self.hindmost, parameters = hindmost_task(infos)
            self.change = TaskChange(0, self.hindmost[0], parameters)

    def _look_for_a_change(self, infos: dict) -> None:
        before, (self.hindmost, parameters) = self.hindmost, hindmost_task(infos)
        if self.hindmost != before:
            kind = TaskChange if self.hindmost[0] > before[0] else TaskDrift
            self.change = kind(self.clock.steps, self.hindmost[0], parameters)

    def _told(self, event: Event) -> Event:
        for watcher in self.watchers.values():
            watcher.notice(event)
        return event

    def state_dict(self) -> dict[str, Any]:
        """Where the run stands between two ticks, tensors and primitives alone. Tensors are the run's own, not copies:
        they are to be saved, or copied, before it goes on."""
        loop = {"observations": self.observations, "unfinished": self.unfinished, "hindmost": list(self.hindmost)}
        loop["change"] = self.change and [type(self.change).__name__, *self.change]
        return {
            "loop": as_tensors(loop),
            "world": None if self.observations is None else as_tensors(self.world.state_dict()),
            "agent": self.agent.state_dict(),
            "generators": self.generators.state_dict(),
            "watchers": {name: watcher.state_dict() for name, watcher in self.watchers.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> str:
        """Take over what `state_dict` gave, its tensors on the agent's device. Why the run does not go on exactly, as
        far as the world is concerned (its games then begin anew, and those left are cut); empty where it does.

        ValueError: it is of other random streams or watchers than this run has.
        """
        require(set(state["watchers"]) == set(self.watchers), "watchers", list(self.watchers), list(state["watchers"]))
        warning = self.begin_from(state)
        for name, watcher in self.watchers.items():
            watcher.load_state_dict(state["watchers"][name])
        return warning

    def begin_from(self, state: Mapping[str, Any]) -> str:
        """As `load_state_dict`, but for the watchers, who have seen nothing yet."""
        loop = as_arrays(state["loop"])
        change, self.unfinished = loop["change"], loop["unfinished"]
        self.hindmost = tuple(loop["hindmost"])
        self.change = change and {"TaskChange": TaskChange, "TaskDrift": TaskDrift}[change[0]](*change[1:])
        self.agent.load_state_dict(state["agent"])
        self.generators.load_state_dict(state["generators"])
        return self._resume_world(state["world"], loop["observations"])

    def _resume_world(self, state: Any, reached: np.ndarray | None) -> str:
        if state is None:
            return ""
        resumed = self.world.load_state_dict(as_arrays(state))
        self.observations, self.tasks = resumed.observations, resumed.infos.get("task_index")
        if resumed.warning:
            self.unfinished = reached
            if self.tasks is not None:
                self._look_for_a_change(resumed.infos)
        return resumed.warning


def as_tensors(node: Any) -> Any:
    """A nest of dicts and lists with tensors in place of arrays, for torch's safe loader."""
    if isinstance(node, dict):
        return {key: as_tensors(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [as_tensors(value) for value in node]
    if isinstance(node, np.ndarray):
        return torch.from_numpy(node.copy())
    return node.item() if isinstance(node, np.generic) else node


def as_arrays(node: Any) -> Any:
    """The inverse."""
    if isinstance(node, dict):
        return {key: as_arrays(value) for key, value in node.items()}
    if isinstance(node, list):
        return [as_arrays(value) for value in node]
    return node.cpu().numpy() if isinstance(node, torch.Tensor) else node
