"""What a backend is: E environments that are stepped and reset. Gymnasium's own and envpool's; ALE's is in ale_pool.py,
and that of worlds that other people made in foreign_pool.py."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
from gymnasium.spaces import Space

from envs.errors import WorldError, failed
from envs.snapshots import environment_state, set_environment
from envs.tasks import Task

NO_LIMIT = 2**30
"""A time limit in steps that no episode reaches; the backends' own limits are set to it, `World` counts instead."""


class Outcome(NamedTuple):
    """What one step of a pool gave: rows of E environments, none of them reset yet."""

    observations: np.ndarray  # [E, ...], the last one of its game where a game ended
    rewards: np.ndarray  # [E], unclipped
    terminated: np.ndarray  # bool [E]
    truncated: np.ndarray | None  # bool [E], None where only `World` limits time
    lives: np.ndarray | None  # int [E], None for worlds without lives
    infos: dict[str, np.ndarray]  # further columns of the transition, each [E] and fresh


class Pool:
    """A backend: E environments that are stepped and reset, with nothing said about episodes, limits or statistics.

    Every array it returns is fresh: the pool does not write to it again.
    """

    num_envs: int
    single_observation_space: Space
    single_action_space: Space

    def start(self, seed: int | None) -> tuple[np.ndarray, np.ndarray | None]:
        """Reset all; a seed makes what follows deterministic. Returns observations [E, ...] and lives [E] or None."""
        raise NotImplementedError

    def advance(self, actions: np.ndarray, ids: np.ndarray | None = None) -> Outcome:
        """Step all E environments once, or only those in `ids` (int [n], ascending; actions and rows are then theirs).
        Games that ended are NOT reset: `restart` follows for these."""
        raise NotImplementedError

    def restart(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Begin a new game in the environments `ids` (int [n], ascending): observations [n, ...], lives [n] or None."""
        raise NotImplementedError

    def render(self) -> tuple[np.ndarray, ...]:
        """E RGB images [height, width, 3], for backends built with a render mode; `make_vec` refuses it for others."""
        raise RuntimeError("rendering needs backend = 'gymnasium'")

    def close(self) -> None:
        """Release the backend."""

    believed = True
    """Whether the same seed and actions are known to give the same observations."""
    reseeds = False
    """Whether a task that is entered says from which seed all begin anew."""

    def carried(self) -> dict[str, Any]:
        """What a pool that takes this one's place should know; numbers alone."""
        return {}

    def carry(self, before: dict[str, Any]) -> None:
        """Take over what `carried` gave."""

    exact = False
    """Whether `state_dict` says all that the next steps depend on, but for the tasks entered."""

    def state_dict(self) -> dict[str, Any]:
        """Where the pool stands, in NumPy arrays, numbers, strings, None, and lists and dicts of these."""
        raise NotImplementedError(f"{type(self).__name__} cannot say where it stands")

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`; the pool was built alike, and its environments are in the tasks of that moment."""
        raise NotImplementedError(f"{type(self).__name__} cannot be put anywhere")


class TaskPool(Pool):
    """A pool whose environments can enter another task (see tasks.py)."""

    carries_over = False
    """Whether a task can change under a running episode, observation and all. Else the episode must be cut first."""

    def enter(self, ids: np.ndarray, task: Task) -> None:
        """Environments `ids` (int [n], ascending) are in `task`: from their next restart on, which follows at once, or
        from now on where the pool carries over and no restart follows. Called for all before the first `start`."""
        raise NotImplementedError


class PythonPool(Pool):
    """E Python environments, called one after the other; what they raise is told as theirs. A subclass resets them, by
    ``_reset(ids, seed)``: environment i with seed + i, where there is one.

    Args:
        make_one: builds one environment.
        num_envs: E.
        env: the world's name, for errors.
    """

    def __init__(self, make_one: Callable[[], Any], num_envs: int, env: str) -> None:
        self.num_envs = num_envs
        self.env = env
        self.steps = 0
        """Steps that were made, over all environments."""
        self._all = np.arange(num_envs)
        self._closed = False
        self.envs: list[Any] = []
        try:
            for _ in range(num_envs):
                self.envs.append(make_one())
        except BaseException:
            with suppress(WorldError):
                self.close()
            raise

    def _call(self, i: int, moment: Callable[[int], str], function: Callable[..., Any], *args: Any, **kw: Any) -> Any:
        """`function` of environment `i`. What it raises becomes a `WorldError`; `moment` of the row says when."""
        try:
            return function(*args, **kw)
        except (KeyboardInterrupt, WorldError):
            raise
        except BaseException as error:  # a world may also call sys.exit, or panic in another language
            raise failed(self.env, int(i), moment(i), error) from error

    def start(self, seed: int | None) -> tuple[np.ndarray, np.ndarray | None]:
        return self._reset(self._all, seed)

    def restart(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        return self._reset(ids, None)

    def carried(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def carry(self, before: dict[str, Any]) -> None:
        self.steps = before["steps"]

    def at_step(self, row: int) -> str:
        """The moment of the step that row `row` of the environments is making."""
        return f"at step {self.steps + row + 1:,}"

    def at_reset(self, _: int) -> str:
        """The moment of a reset."""
        return f"at the reset after step {self.steps:,}" if self.steps else "at its first reset"

    def render(self) -> tuple[np.ndarray, ...]:
        return tuple(self._call(i, lambda _: "when it was to be drawn", one.render) for i, one in enumerate(self.envs))

    def close(self) -> None:
        """See `Pool.close`. All are closed, whatever one of them raises; the first error is told."""
        if self._closed:
            return
        self._closed = True
        first: WorldError | None = None
        for i, one in enumerate(self.envs):
            try:
                self._call(i, lambda _: "when it was closed", one.close)
            except WorldError as error:
                first = first or error
        if first is not None:
            raise first


class GymnasiumPool(PythonPool):
    """Atari games and robots of gymnasium's: trusted to keep its API, with infos of which the `reported` ones pass."""

    def __init__(
        self, make_one: Callable[[], Any], num_envs: int, env: str, reported: frozenset[str] = frozenset()
    ) -> None:
        super().__init__(make_one, num_envs, env)
        self._reported = reported
        self.single_observation_space = self.envs[0].observation_space
        self.single_action_space = self.envs[0].action_space

    def advance(self, actions: np.ndarray, ids: np.ndarray | None = None) -> Outcome:
        ids = self._all if ids is None else ids
        actions = np.asarray(actions)
        actions = actions if self.single_action_space.shape else actions.tolist()  # discrete: Python integers
        rows = [self._call(i, self.at_step, self.envs[i].step, action) for i, action in zip(ids, actions, strict=True)]
        self.steps += len(rows)
        observations, rewards, terminated, truncated, infos = zip(*rows, strict=True)
        columns = {
            key: np.array([info[key] for info in infos], np.float64) for key in infos[0] if key in self._reported
        }
        return Outcome(
            np.stack(observations),
            np.array(rewards, dtype=np.float64),
            np.array(terminated, dtype=bool),
            np.array(truncated, dtype=bool),
            _lives(infos),
            columns,
        )

    def _reset(self, ids: np.ndarray, seed: int | None) -> tuple[np.ndarray, np.ndarray | None]:
        rows = [
            self._call(i, self.at_reset, self.envs[i].reset, seed=None if seed is None else seed + int(i)) for i in ids
        ]
        observations, infos = zip(*rows, strict=True)
        return np.stack(observations), _lives(infos)

    exact = True

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "envs": [environment_state(env) for env in self.envs]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]
        for env, own in zip(self.envs, state["envs"], strict=True):
            set_environment(env, own)


def _lives(infos: tuple[dict[str, Any], ...]) -> np.ndarray | None:
    return np.array([info["lives"] for info in infos], dtype=np.int64) if "lives" in infos[0] else None


class EnvPool(Pool):
    """An envpool pool. Its own autoreset (a made-up row on the next step) is never reached: `restart` comes first.

    The C++ side is called directly, because envpool's Python layer rebuilds a tree of arrays on every step. The arrays
    it hands over own their memory (a buffer is used again only after the arrays over it are gone), so none is copied.
    A pool takes its seed at birth alone: a new seed rebuilds it.

    Args:
        task: envpool's name of the world.
        num_envs: E.
        threads: C++ threads, 0 for one a core.
        settings: envpool's own options.
        terminated: state column that says a game ended by itself.
        reported: columns of its infos that pass.
    """

    def __init__(
        self,
        task: str,
        num_envs: int,
        seed: int,
        threads: int,
        settings: dict[str, Any],
        terminated: str = "done",
        reported: frozenset[str] = frozenset(),
    ) -> None:
        self.num_envs = num_envs
        self._task = task
        self._settings = {**settings, "num_threads": threads, "max_episode_steps": NO_LIMIT}
        self._terminated, self._passing = terminated, reported
        self._ids = np.arange(num_envs, dtype=np.int32)
        self._build(seed)
        self.single_observation_space = self._native.single_observation_space
        self.single_action_space = self._native.single_action_space
        self._action_dtype = self.single_action_space.dtype if self.single_action_space.shape else np.int32

    def _build(self, seed: int) -> None:
        import envpool

        self._native = envpool.make_gymnasium(self._task, num_envs=self.num_envs, seed=seed, **self._settings)
        self._born_with: int | None = seed
        keys = self._native._state_keys
        self._column = {key: index for index, key in enumerate(keys)}
        self._reported = [(key[5:], self._column[key]) for key in keys if key[5:] in self._passing]

    def start(self, seed: int | None) -> tuple[np.ndarray, np.ndarray | None]:
        if seed is not None and seed != self._born_with:
            self._build(seed)
        self._born_with = None  # used up: the same seed again needs a new pool
        return self.restart(self._ids)

    def advance(self, actions: np.ndarray, ids: np.ndarray | None = None) -> Outcome:
        actions = np.ascontiguousarray(actions, dtype=self._action_dtype)
        rows = self._ids if ids is None else ids.astype(np.int32)
        try:
            self._native._send([rows, rows, actions])
            state = self._native._recv()
        except Exception as error:
            raise failed(self._task, None, "at a step", error) from error
        column = self._column
        return Outcome(
            state[column["obs"]],
            state[column["reward"]],
            state[column[self._terminated]].astype(bool),
            None,
            state[column["info:lives"]] if "info:lives" in column else None,
            {key: state[index] for key, index in self._reported},
        )

    def restart(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        try:
            self._native._reset(ids.astype(np.int32))
            state = self._native._recv()
        except Exception as error:
            raise failed(self._task, None, "at a reset", error) from error
        column = self._column
        return state[column["obs"]], state[column["info:lives"]] if "info:lives" in column else None

    def close(self) -> None:
        self._native.close()
