"""The loop: worlds and agents meet here, and everybody who watches reads its events."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from gymnasium.vector import VectorEnv
from torch import Tensor

from agents.agent import Agent
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


def finished_episodes(infos: dict) -> tuple[Episode, ...]:
    """The games that ended in this step, from the world's `episode` statistics."""
    if "episode" not in infos:
        return ()
    statistics, ended = infos["episode"], np.flatnonzero(infos["_episode"])
    tasks = statistics.get("task_index", np.zeros(len(infos["_episode"]), int))
    return tuple(Episode(int(i), float(statistics["r"][i]), int(statistics["l"][i]), int(tasks[i])) for i in ended)


def hindmost_task(infos: dict) -> tuple[int, dict[str, float | int | str]]:
    """(index, parameters) of the task that the hindmost environment is in."""
    hindmost = int(np.lexsort((infos["task_stage"], infos["task_index"]))[0])
    parameters = {name: values[hindmost].item() for name, values in infos["task"].items()}
    return int(infos["task_index"][hindmost]), parameters


def training(agent: Agent, world: VectorEnv, steps: int) -> Iterator[Tick | TaskChange | TaskDrift | Update]:
    """Act, observe, learn for `steps` steps over all environments; yields what happened.

    An agent hears of a task when the last environment has entered it. What is learned at a tick is learned before that.
    A task that the last step would begin is not begun: nobody hears of it, and the agent ends as it ended the last one.
    """
    observations, infos = world.reset()
    nobody = np.zeros(world.num_envs, bool)
    step, tasks = 0, infos.get("task_index")
    if tasks is not None:
        yield TaskChange(step, *hindmost_task(infos))
    while step < steps:
        actions = agent.act(observations)
        next_observations, rewards, terminated, truncated, infos = world.step(actions)
        life_lost, reached = infos.get("life_lost", nobody), infos.get("final_obs")
        next_tasks = infos.get("task_index")
        ends = (rewards, terminated, truncated, life_lost)
        agent.observe(Transitions(observations, actions, *ends, next_observations, reached, tasks, next_tasks))
        observations = next_observations
        step += world.num_envs
        yield Tick(step, finished_episodes(infos))
        while agent.update_due():
            yield Update(step, agent.update())
        # A world hands out the same array until something changes.
        if next_tasks is not tasks and step < steps:
            if next_tasks.min() > tasks.min():
                yield TaskChange(step, *hindmost_task(infos))  # first: what is measured now is the task that ended
                agent.on_task_change()
            elif infos["task_stage"].any():
                yield TaskDrift(step, *hindmost_task(infos))
            tasks = next_tasks
