"""Pools that can enter another task: by changing between pools, or by changing what passes through one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
from gymnasium.spaces import Box, Discrete

from envs.pools import Outcome, Pool, TaskPool
from envs.tasks import Task, derived

KEPT = 3
"""Pools without environments that are kept."""


class SwitchingPool(TaskPool):
    """One pool for every task in force, each stepping the environments that are in its task.

    Between two changes there is one pool, stepped as if it stood alone. During a change, while some environments still
    play their last game, the old pool and the new one step their own rows. Episodes cannot be carried over. The pools
    that were left last wait to be entered again (in a cycle of games), since building one takes longer than a reset.

    Args:
        make: builds the pool of a task from a seed; all must have the same spaces.
        num_envs: E; every pool has that many environments, so that environment i is row i of all of them.
    """

    def __init__(self, make: Callable[[Task, int], Pool], num_envs: int, first: Task, seed: int) -> None:
        self.num_envs = num_envs
        self._make = make
        self._all = np.arange(num_envs)
        self._seed = seed
        pool = make(first, seed)
        self._pools: dict[tuple[int, int], Pool] = {(first.variant, first.stage): pool}
        self._waiting: dict[tuple[int, int], Pool] = {}
        self._tasks = {(first.variant, first.stage): first}  # of all that were ever built
        self._built: Counter[tuple[int, int]] = Counter()  # so that a pool built again draws other numbers
        self._homes = np.zeros(num_envs, dtype=np.int64)  # which pool an environment is in, by its place in _order
        self._order = list(self._pools)
        self.single_observation_space = pool.single_observation_space
        self.single_action_space = pool.single_action_space
        self._started = False

    def enter(self, ids: np.ndarray, task: Task) -> None:
        key = (task.variant, task.stage)
        if key not in self._pools:
            self._pools[key] = self._waiting.pop(key, None) or self._build(task, key)
            self._order.append(key)
        self._homes[ids] = self._order.index(key)
        self._leave_deserted()

    def _build(self, task: Task, key: tuple[int, int]) -> Pool:
        self._built[key] += 1
        self._tasks[key] = task
        seed = derived(self._seed, *key, self._built[key]) % (2**31 - self.num_envs)
        pool = self._make(task, seed)
        _check_spaces(self, pool, task)
        if self._started:
            pool.start(seed)
        return pool

    def _leave_deserted(self) -> None:
        for place in reversed(range(len(self._order))):
            if not (self._homes == place).any():
                key = self._order.pop(place)
                self._waiting[key] = self._pools.pop(key)
                self._homes[self._homes > place] -= 1
        while len(self._waiting) > KEPT:
            self._waiting.pop(next(iter(self._waiting))).close()

    def _inhabited(self) -> list[tuple[Pool, np.ndarray]]:
        return [(self._pools[key], np.flatnonzero(self._homes == place)) for place, key in enumerate(self._order)]

    def _shares(self, ids: np.ndarray) -> list[tuple[Pool, np.ndarray]]:
        """The pools that the environments `ids` are in, each with a mask of those that it has."""
        shares = ((pool, np.isin(ids, inhabitants)) for pool, inhabitants in self._inhabited())
        return [(pool, mine) for pool, mine in shares if mine.any()]

    def start(self, seed: int | None) -> tuple[np.ndarray, np.ndarray | None]:
        if seed is not None:
            self._seed = seed
            self._built.clear()
            self._close_waiting()  # what they would draw next depends on the past
        self._started = True
        parts = [(ids, *_rows_of(pool.start(seed), ids)) for pool, ids in self._inhabited()]
        return _merge_states(parts, self.num_envs)

    def advance(self, actions: np.ndarray, ids: np.ndarray | None = None) -> Outcome:
        if len(self._order) == 1:
            return self._pools[self._order[0]].advance(actions, ids)
        places = self._all if ids is None else ids
        actions, shares = np.asarray(actions), self._shares(places)
        parts = [(np.flatnonzero(mine), pool.advance(actions[mine], places[mine])) for pool, mine in shares]
        return _merge_outcomes(parts, len(places))

    def restart(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        if len(self._order) == 1:
            return self._pools[self._order[0]].restart(ids)
        parts = [(np.flatnonzero(mine), *pool.restart(ids[mine])) for pool, mine in self._shares(ids)]
        return _merge_states(parts, len(ids))

    def render(self) -> tuple[np.ndarray, ...]:
        images: dict[int, np.ndarray] = {}
        for pool, ids in self._inhabited():
            shown = pool.render()
            images |= {int(i): shown[i] for i in ids}
        return tuple(images[i] for i in range(self.num_envs))

    @property
    def envs(self) -> list[Any]:
        """The single environments, for backends that have them."""
        found = {int(i): pool.envs[i] for pool, ids in self._inhabited() for i in ids}
        return [found[i] for i in range(self.num_envs)]

    @property
    def exact(self) -> bool:
        """See `Pool.exact`."""
        return all(pool.exact for pool in self._pools.values())

    def state_dict(self) -> dict[str, Any]:
        def listed(pools: dict[tuple[int, int], Pool]) -> list[dict[str, Any]]:
            return [{"task": _primitive(self._tasks[key]), "pool": pool.state_dict()} for key, pool in pools.items()]

        built = [[*key, count] for key, count in self._built.items()]
        return {
            "seed": self._seed,
            "built": built,
            "homes": self._homes.copy(),
            "order": [list(key) for key in self._order],
            "pools": listed(self._pools),
            "waiting": listed(self._waiting),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.close()
        self._seed, self._started = state["seed"], True
        self._built = Counter({(variant, stage): count for variant, stage, count in state["built"]})
        self._pools, self._waiting = self._restored(state["pools"]), self._restored(state["waiting"])
        self._order = [tuple(key) for key in state["order"]]
        self._homes[:] = state["homes"]

    def _restored(self, listed: list[dict[str, Any]]) -> dict[tuple[int, int], Pool]:
        pools = {}
        for one in listed:
            task = _task(one["task"])
            key = (task.variant, task.stage)
            self._tasks[key], pools[key] = task, self._make(task, self._seed)
            pools[key].load_state_dict(one["pool"])
        return pools

    def close(self) -> None:
        for pool in self._pools.values():
            pool.close()
        self._close_waiting()

    def _close_waiting(self) -> None:
        for pool in self._waiting.values():
            pool.close()
        self._waiting.clear()


def _primitive(task: Task) -> dict[str, Any]:
    content = list(task.content) if isinstance(task.content, tuple) else task.content
    return {**vars(task), "content": content}


def _task(state: dict[str, Any]) -> Task:
    content = state["content"]
    return Task(**{**state, "content": tuple(content) if isinstance(content, list) else content})


def _check_spaces(pool: SwitchingPool, new: Pool, task: Task) -> None:
    for name in ("single_observation_space", "single_action_space"):
        ours, theirs = getattr(pool, name), getattr(new, name)
        if ours != theirs:
            raise ValueError(f"task {task.index} ({task.parameters}): its {name} is {theirs}, the first task's {ours}")


def _rows_of(state: tuple[np.ndarray, np.ndarray | None], ids: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    observations, lives = state
    return observations[ids], None if lives is None else lives[ids]


def _scatter(parts: list[tuple[np.ndarray, np.ndarray]], rows: int) -> np.ndarray:
    """Rows [rows, ...] put together from (their places, their values)."""
    first = parts[0][1]
    whole = np.empty((rows, *first.shape[1:]), dtype=first.dtype)
    for places, values in parts:
        whole[places] = values
    return whole


def _merge_states(
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray | None]], rows: int
) -> tuple[np.ndarray, np.ndarray | None]:
    lives = None if parts[0][2] is None else _scatter([(ids, lives) for ids, _, lives in parts], rows)
    return _scatter([(ids, observations) for ids, observations, _ in parts], rows), lives


def _merge_outcomes(parts: list[tuple[np.ndarray, Outcome]], rows: int) -> Outcome:
    def merged(column: Callable[[Outcome], np.ndarray | None]) -> np.ndarray | None:
        columns = [(places, column(outcome)) for places, outcome in parts]
        return None if columns[0][1] is None else _scatter(columns, rows)

    infos = {key: merged(lambda outcome, key=key: outcome.infos[key]) for key in parts[0][1].infos}
    return Outcome(*(merged(lambda outcome, i=i: outcome[i]) for i in range(5)), infos)


class Through:
    """A pool around another that changes what passes through; what it does not, is the other's."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool

    def __getattr__(self, name: str) -> Any:
        if name == "pool":
            raise AttributeError(name)
        return getattr(self.pool, name)


class PermutedActions(Through):
    """Action i does what action permutation[i] did (continuous: dimension i drives what dimension permutation[i] did).

    Raises:
        ValueError: the dimensions of a continuous action differ in their bounds.
    """

    carries_over = True

    def __init__(self, pool: Pool) -> None:
        super().__init__(pool)
        space = pool.single_action_space
        self.discrete = isinstance(space, Discrete)
        alike = self.discrete or (np.ptp(space.low) == 0 and np.ptp(space.high) == 0)
        if not alike:
            raise ValueError(f"task.change = 'actions': needs dimensions of equal bounds, not {space}")
        self.size = int(space.n) if self.discrete else space.shape[0]
        self._permutations = np.tile(np.arange(self.size), (self.num_envs, 1))

    def enter(self, ids: np.ndarray, task: Task) -> None:
        self._permutations[ids] = task.content

    def advance(self, actions: np.ndarray, ids: np.ndarray | None = None) -> Outcome:
        actions = np.asarray(actions)
        permutations = self._permutations if ids is None else self._permutations[ids]
        if self.discrete:
            return self.pool.advance(permutations[np.arange(len(actions)), actions], ids)
        moved = np.empty_like(actions)
        np.put_along_axis(moved, permutations, actions, axis=1)
        return self.pool.advance(moved, ids)


class PermutedObservations(Through):
    """Number i of a vector, or pixel i of every frame or channel, shows what number or pixel permutation[i] held.

    An episode sees one order only: a frame stack of two orders is no observation of any world. `encode` and `space` are
    those of the plain world: what is permuted is what an agent would see.
    """

    carries_over = False

    def __init__(self, pool: Pool, encode: Callable[[np.ndarray], np.ndarray], space: Box) -> None:
        super().__init__(pool)
        self._encode = encode
        image = space.dtype == np.uint8 and len(space.shape) == 3
        self.size = int(np.prod(space.shape[1:] if image else space.shape))
        low, high = space.low.min(), space.high.max()  # positions trade places, so their bounds must be common
        self.single_observation_space = Box(low, high, space.shape, space.dtype)
        self._permutations = np.tile(np.arange(self.size), (self.num_envs, 1))

    def enter(self, ids: np.ndarray, task: Task) -> None:
        self._permutations[ids] = task.content

    def _permute(self, observations: np.ndarray, ids: np.ndarray | None) -> np.ndarray:
        permutations = self._permutations if ids is None else self._permutations[ids]
        plain = self._encode(observations)
        rows = plain.reshape(len(plain), -1, self.size)
        mixed = [row.take(order, axis=1) for row, order in zip(rows, permutations, strict=True)]
        return np.stack(mixed).reshape(plain.shape)

    def start(self, seed: int | None) -> tuple[np.ndarray, np.ndarray | None]:
        observations, lives = self.pool.start(seed)
        return self._permute(observations, None), lives

    def advance(self, actions: np.ndarray, ids: np.ndarray | None = None) -> Outcome:
        outcome = self.pool.advance(actions, ids)
        return outcome._replace(observations=self._permute(outcome.observations, ids))

    def restart(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        observations, lives = self.pool.restart(ids)
        return self._permute(observations, ids), lives


class ShiftedRewards(Through):
    """Every reward has the task's offset added (float64)."""

    carries_over = True

    def __init__(self, pool: Pool) -> None:
        super().__init__(pool)
        self._offsets = np.zeros(self.num_envs)

    def enter(self, ids: np.ndarray, task: Task) -> None:
        self._offsets[ids] = task.content

    def advance(self, actions: np.ndarray, ids: np.ndarray | None = None) -> Outcome:
        outcome = self.pool.advance(actions, ids)
        return outcome._replace(rewards=outcome.rewards + (self._offsets if ids is None else self._offsets[ids]))


class FreshlySeeded(Through):
    """The whole world begins anew from the task's seed."""

    reseeds = True
    carries_over = False

    def __init__(self, pool: Pool) -> None:
        super().__init__(pool)
        self._next_seed: int | None = None

    def enter(self, ids: np.ndarray, task: Task) -> None:
        """See `TaskPool.enter`. All environments enter together."""
        self._next_seed = task.content

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._next_seed = None  # the task was entered long ago
        self.pool.load_state_dict(state)

    def start(self, seed: int | None) -> tuple[np.ndarray, np.ndarray | None]:
        chosen, self._next_seed = seed if self._next_seed is None else self._next_seed, None
        return self.pool.start(chosen)

    def restart(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        if self._next_seed is None:
            return self.pool.restart(ids)
        return _rows_of(self.start(None), ids)
