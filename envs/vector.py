"""One vector environment for every backend: SAME_STEP autoreset, time limits, lives and whole-game statistics."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.spaces import Box, Space
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from envs.errors import WorldError
from envs.journal import Journal
from envs.pools import NO_LIMIT, Pool, TaskPool
from envs.resumption import Resumable
from envs.tasks import TaskSchedule, derived

SEED_LIMIT = 2**31
"""Seeds lie in [0, SEED_LIMIT - E): environment i of a world uses seed + i, and ALE's seeds are 32-bit integers."""


class World(Resumable, VectorEnv):
    """A `gymnasium.vector.VectorEnv` over a pool, in SAME_STEP autoreset: no made-up row ever exists.

    Where a game ends, ``step`` returns the first observation of the next game in its row, the ended game's last
    observation in ``infos["final_obs"][i]``, and everything else about the transition that ended it. In ``infos``:

    - ``final_obs`` [E, ...] with mask ``_final_obs`` bool [E], only on steps where some game ended; rows outside the
      mask repeat the observation.
    - ``episode`` {"r": float64 [E], "l": int64 [E]} with mask ``_episode``, likewise: the unclipped return and the
      length in steps of the whole game, across lives; 0 outside the mask.
    - Atari, and other worlds from the first step on that tells of them: ``lives`` int [E], those of the returned
      observation (-1 where nothing is known yet), and ``life_lost`` bool [E], True where a life was lost and the game
      went on.
    - MuJoCo: the terms of the reward (``reward_forward`` and so on), float64 [E], of the transition.
    - Worlds with a schedule: ``task_index`` and ``task_stage`` int64 [E] and ``task`` {parameter: [E]}, the task of
      the returned observation; ``episode`` also has ``task_index``, that of the game that ended. ``reset(seed=n)``
      begins the schedule anew, ``reset()`` does not.

    - Worlds with segments (see `segment`), on the step that ends one: ``cut`` bool [E], True where a game that would
      have gone on was cut. It is truncated and has its ``final_obs``, but is no ``episode``.

    A time limit gives truncated; where a game ends by itself on the very step of the limit it is terminated only.

    Args:
        pool: the backend.
        seed: makes the first ``reset()`` deterministic; ``reset(seed=n)`` restarts from n.
        encode: maps raw observations [n, ...] of the pool to those that are returned.
        observation_space: one environment's, after `encode`.
        limit: time limit in steps.
        frame_stack: number of stacked frames of an observation (oldest first), None for worlds without a stack.
        render_mode: what ``render`` gives.
        schedule: when the world changes; the pool is then a `TaskPool`.
        notes: sentences that a user should read, such as how observations are taken.
        rebuild: builds the pool again, from a seed.
        segment: steps over all environments after which a pool that is not exact is built again from a seed of its own,
            so that it can be put anywhere by replaying the actions since; 0: never.
    """

    def __init__(
        self,
        pool: Pool | TaskPool,
        seed: int,
        encode: Callable[[np.ndarray], np.ndarray],
        observation_space: Space,
        limit: int = NO_LIMIT,
        frame_stack: int | None = None,
        render_mode: str | None = None,
        schedule: TaskSchedule | None = None,
        notes: tuple[str, ...] = (),
        rebuild: Callable[[int], Pool | TaskPool] | None = None,
        segment: int = 0,
    ) -> None:
        self.pool = pool
        self.notes = notes
        self.schedule = schedule
        self.num_envs = pool.num_envs
        self.frame_stack = frame_stack
        self.render_mode = render_mode
        self.metadata = {
            "autoreset_mode": AutoresetMode.SAME_STEP,
            "render_modes": [render_mode] if render_mode else [],
        }
        self.single_observation_space = observation_space
        self.single_action_space = _in_float32(pool.single_action_space)
        self.observation_space = batch_space(observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._encode = encode
        self._limit = limit
        self._pending_seed: int | None = check_seed(seed, self.num_envs)
        self._lengths = np.zeros(self.num_envs, dtype=np.int64)
        self._returns = np.zeros(self.num_envs, dtype=np.float64)
        self._lives: np.ndarray | None = None
        self._observations: np.ndarray | None = None  # what was returned last
        self._rebuild, self._segment = rebuild, 0 if pool.exact else segment
        self._born_with: int | None = seed  # of a pool that has not been started
        self._journal = Journal(self.num_envs, self.single_action_space) if self._segment else None
        self._begun: dict[str, Any] = {"seed": seed, "index": 0}  # what the present segment began with

    @property
    def cut_after(self) -> int | None:
        """Steps after which the end of a segment cuts a game at the latest; None where no game can last so long."""
        each = -(-self._segment // self.num_envs)
        return each if 0 < each < self._limit else None

    @property
    def envs(self) -> list[Any]:
        """The single environments of the gymnasium backend (Atari: ``.unwrapped.ale``); other backends have none.

        Raises:
            AttributeError: the backend holds no Python environments.
        """
        if not hasattr(self.pool, "envs"):
            raise AttributeError("envs: only backend = 'gymnasium' holds single environments")
        return self.pool.envs

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin a new game everywhere. `seed` restarts deterministically; without one the random state goes on.

        Raises:
            ValueError: `seed` is out of range, or `options` are given (there are none).
        """
        if options:
            raise ValueError(f"options = {options!r}: this world has none")
        chosen = self._pending_seed if seed is None else check_seed(seed, self.num_envs)
        self._pending_seed = None
        if chosen is not None:
            self._begun = {"seed": chosen, "index": 0}
            if self.schedule is not None:
                self.schedule.restart()
            return self._given(self._begin_segment(changed=True))
        if self._journal is not None:
            self._journal.resets.append(self._journal.ticks)
        if self.schedule is not None:
            self._switch(self.schedule.pending(np.arange(self.num_envs)))
        return self._given(self.pool.start(None))

    def _given(self, raw: tuple[np.ndarray, np.ndarray | None]) -> tuple[np.ndarray, dict[str, Any]]:
        """What all environments show at the beginning of their games, as `reset` returns it."""
        self._lengths[:] = 0
        self._returns[:] = 0.0
        self._lives = raw[1]
        self._observations = self._encode(raw[0])
        return self._observations, self._infos_of_the_state()

    def _begin_segment(self, changed: bool | None = None) -> tuple[np.ndarray, np.ndarray | None]:
        """All games begin anew, where there are segments in a pool built again, and whatever change is due takes place.

        `changed` says whether one does where the schedule no longer knows: a pool that entering a task seeds (a change
        of the whole world) is to be seeded by it then, and else by the segment.
        """
        everyone, index = np.arange(self.num_envs), self._begun["index"]
        seed = self._begun["seed"]
        seed = derived(seed, index) % (SEED_LIMIT - self.num_envs) if index else seed
        if self.schedule is not None:
            pending = self.schedule.pending(everyone)
            changed = pending.size > 0 if changed is None else changed
            self.schedule.enter(pending)
        carried = self.pool.carried()
        if self._journal is not None:
            told = {"changed": changed, "carried": carried, "schedule": self.schedule and self.schedule.state_dict()}
            self._begun |= told
            self._journal.begin()
            if self._born_with != seed:
                with suppress(WorldError):  # it is given up, whatever it has to say about that
                    self.pool.close()
                self.pool = self._rebuild(seed)
                self.pool.carry(carried)
        self._born_with = None
        if self.schedule is not None and (changed or not self.pool.reseeds):
            self.pool.enter(everyone, self.schedule.current)
        return self.pool.start(seed)

    def _infos_of_the_state(self) -> dict[str, Any]:
        infos = {}
        if self._lives is not None:
            infos = {"lives": self._lives.copy(), "life_lost": np.zeros(self.num_envs, dtype=bool)}
        return infos if self.schedule is None else infos | self.schedule.infos()

    def _switch(self, ids: np.ndarray) -> None:
        if ids.size:
            self.pool.enter(ids, self.schedule.current)
            self.schedule.enter(ids)

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Advance every environment by one step: actions int [E] or float [E, action_dim]; see the class for infos.

        Raises:
            gymnasium.error.ResetNeeded: ``reset`` has not been called yet.
        """
        if self._pending_seed is not None:
            raise ResetNeeded("step() came before the first reset()")
        raw, rewards, terminated, truncated, lives, infos = self.pool.advance(actions)
        self._lengths += 1
        self._returns += rewards
        timed_out = self._lengths >= self._limit
        truncated = timed_out if truncated is None else timed_out | truncated
        tasks = None if self.schedule is None else self.schedule.task_index  # those that the step was made in
        if tasks is not None and self.schedule.advance() and self.schedule.at == "now":
            truncated = self._change_now(truncated)
        truncated = truncated & ~terminated
        done = terminated | truncated
        observations = self._encode(raw)
        if lives is not None:
            # A world may tell of lives later than at its first reset.
            infos["life_lost"] = np.zeros_like(done) if self._lives is None else (lives < self._lives) & ~done
        if self._journal is not None:
            # Of backends that are known to repeat themselves rewards and ends will do: frames take a tenth of a step.
            told = (rewards, terminated, truncated) if self.pool.believed else (rewards, terminated, truncated, raw)
            self._journal.add(actions, *told)
        if self._journal is not None and self._journal.ticks * self.num_envs >= self._segment:
            observations, lives = self._cut(done, observations, infos, tasks)
            truncated = ~terminated
        elif np.count_nonzero(done):  # ndarray.any() takes ten times as long on few elements
            observations, lives = self._begin_next_games(done, observations, lives, infos, tasks)
        if lives is not None:
            self._lives = lives
            infos["lives"] = lives.copy()
        if self.schedule is not None:
            infos.update(self.schedule.infos())
        self._observations = observations
        return observations, rewards, terminated, truncated, infos

    def _change_now(self, truncated: np.ndarray) -> np.ndarray:
        """The due task in all environments at once; which episodes are cut, bool [E]."""
        if self.pool.carries_over:
            self._switch(np.arange(self.num_envs))
            return truncated
        return np.ones_like(truncated)

    def _begin_next_games(
        self,
        done: np.ndarray,
        final: np.ndarray,
        lives: np.ndarray | None,
        infos: dict[str, Any],
        tasks: np.ndarray | None,
    ) -> tuple[np.ndarray, np.ndarray | None]:
        ids = np.flatnonzero(done)
        infos.update(final_obs=final, _final_obs=done.copy(), **self._statistics(done, tasks))
        self._returns[ids] = 0.0
        self._lengths[ids] = 0
        if self.schedule is not None:
            self._switch(self.schedule.pending(ids))
        first, first_lives = self.pool.restart(ids)
        observations = final.copy()
        observations[ids] = self._encode(first)
        if lives is not None:
            lives = lives.copy()
            lives[ids] = first_lives
        return observations, lives

    def _statistics(self, done: np.ndarray, tasks: np.ndarray | None) -> dict[str, Any]:
        """Of the games that ended."""
        found = {"r": np.where(done, self._returns, 0.0), "l": np.where(done, self._lengths, 0)}
        return {"episode": found if tasks is None else found | {"task_index": tasks}, "_episode": done.copy()}

    def _cut(
        self, done: np.ndarray, final: np.ndarray, infos: dict[str, Any], tasks: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """The end of a segment. A game that is cut is no episode; for the schedule of tasks it has ended."""
        infos.update(final_obs=final, _final_obs=np.ones_like(done), cut=~done)
        if np.count_nonzero(done):
            infos.update(self._statistics(done, tasks))
        self._begun["index"] += 1
        observations, _ = self._given(self._begin_segment())
        return observations, self._lives

    def render(self) -> tuple[np.ndarray, ...]:
        """One RGB image [height, width, 3] an environment (Atari: the raw screen).

        Raises:
            RuntimeError: the world was built without a render mode.
        """
        if self.render_mode is None:
            raise RuntimeError("render_mode = None: build the world with render_mode='rgb_array' to render it")
        return self.pool.render()

    def close_extras(self, **kwargs: Any) -> None:
        """Release the backend; called once by ``close()``."""
        self.pool.close()


def _in_float32(space: Space) -> Space:
    """The same bounds in one type on every backend; pools take actions of any type."""
    return (
        Box(space.low.astype(np.float32), space.high.astype(np.float32), dtype=np.float32)
        if isinstance(space, Box)
        else space
    )


def check_seed(seed: int, num_envs: int) -> int:
    """`seed` as an int. Raises ValueError outside [0, 2**31 - num_envs)."""
    value = int(seed)
    if not 0 <= value < SEED_LIMIT - num_envs:
        raise ValueError(f"seed = {seed!r}: must be in [0, {SEED_LIMIT - num_envs}) for num_envs = {num_envs}")
    return value
