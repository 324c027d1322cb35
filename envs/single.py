"""Our worlds as ordinary gymnasium environments, one at a time: for wrappers, checkers and other people's agents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

import gymnasium
import numpy as np
from gymnasium.error import ResetNeeded

from envs.config import TaskConfig, WorldConfig
from envs.make import make_vec_from_config
from envs.pools import Outcome, Pool
from envs.task_laws import ResetLaw
from envs.task_pools import Through
from envs.tasks import Task, TaskSchedule
from envs.vector import SEED_LIMIT, World

_SECTIONS = {field.name: type(field.default) for field in fields(WorldConfig) if is_dataclass(field.default)}
_OF_THE_STATE = ("lives", "life_lost", "task_index", "task_stage", "task")  # of an observation, not of a transition


def world_config(env_id: str, num_envs: int, task_seed: int, backend: str, options: Mapping[str, Any]) -> WorldConfig:
    """The `WorldConfig` of keyword arguments; `task`, `friction` and `image` may be dicts of their fields.

    Raises:
        ValueError: an option or a dict's key is unknown, a value is out of range, or two task seeds contradict.
    """
    known = {field.name for field in fields(WorldConfig)} - {"env", "num_envs", "backend"}
    unknown = sorted(set(options) - known)
    if unknown:
        name = unknown[0]
        raise ValueError(f"{name} = {options[name]!r}: not an option of {env_id}, which are {', '.join(sorted(known))}")
    sections = {name: _section(name, options[name]) for name in _SECTIONS if name in options}
    task = sections.get("task", TaskConfig())
    if task_seed and task.seed not in (None, task_seed):
        raise ValueError(f"task_seed = {task_seed!r}: must be left out where task.seed = {task.seed!r} is given")
    sections["task"] = replace(task, seed=task_seed if task.seed is None else task.seed)
    options = {"world_segment": 0, **options, **sections}  # nobody resumes it: its games need no cuts
    return WorldConfig(env=env_id, num_envs=num_envs, backend=backend, **options)


def _section(name: str, value: Any) -> Any:
    kind = _SECTIONS[name]
    if isinstance(value, kind):
        return value
    names = [field.name for field in fields(kind)]
    if not isinstance(value, Mapping) or set(value) - set(names):
        raise ValueError(f"{name} = {value!r}: must be a {kind.__name__} or a dict with keys among {', '.join(names)}")
    return kind(**value)


class SingleWorld(gymnasium.Env):
    """Any world of `make_vec` with one environment.

    ``reset(seed=s)`` restarts world and task schedule, and gives what a `World` of one environment gives with that seed
    (s modulo 2**31 - 1); ``reset()`` goes on, in the schedule too: in mid-episode it counts as an episode's end.
    Without a seed the first one is random. The sequence of tasks depends on `task_seed` alone.

    Every info of a changing world has ``task_index`` (int) and ``task`` ({parameter: value}): those of the task in
    which the step was made, after a reset those of the task that begins. Atari adds ``lives`` (int) and ``life_lost``
    (bool), MuJoCo the terms of the reward. The last step of an episode adds ``episode_statistics`` {"r": return,
    "l": length, "task_index"}; the name ``episode`` is left to gymnasium's RecordEpisodeStatistics and SB3's Monitor,
    which refuse or overwrite it.

    With the gymnasium backend, which is the default where there is one, ``env.unwrapped.model``, ``.data`` and ``.ale``
    are those of the backend's environment. At an episode's last step they belong to the next episode already (a `World`
    begins it within that step), but ``render()`` still shows the last moment.

    Args:
        env_id: as `WorldConfig.env`; several games with commas between them are played in turn.
        render_mode: ``"rgb_array"`` or None.
        task_seed: seed of the tasks, where `task` names none.
        backend: as `WorldConfig.backend`; ``"auto"``: gymnasium, for ImageMDP-v0 native.
        options: further fields of `WorldConfig`; `task`, `friction` and `image` may be dicts of their fields.

    Raises:
        ValueError: as `WorldConfig` and `make_vec`, or `num_envs` is given.

    Example:
        >>> env = SingleWorld("CartPole-v1", task={"change": "actions", "period": 1000})
        >>> observation, info = env.reset(seed=1)
        >>> observation.shape, info["task_index"]
        ((4,), 0)
    """

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012 (gymnasium's convention)

    def __init__(
        self,
        env_id: str,
        render_mode: str | None = None,
        task_seed: int = 0,
        backend: str = "auto",
        **options: Any,
    ) -> None:
        config = world_config(env_id, 1, task_seed, backend, options)
        if config.backend == "auto":
            config = replace(config, backend=config.family.drawn_by)
        self._world = make_vec_from_config(config, seed=0, render_mode=render_mode)  # reset() gives the true seed
        self._world.pool = self._last = _LastMoment(self._world.pool, render_mode is not None)
        self.render_mode = render_mode
        self.metadata = _metadata(config, self._world)
        self.observation_space = self._world.single_observation_space
        self.action_space = self._world.single_action_space
        self._begun: tuple[np.ndarray, dict[str, Any]] | None = None  # the next episode, not yet handed out
        self._task: dict[str, Any] = {}
        self._seeded = False

    def __getattr__(self, name: str) -> Any:
        # Only for names that are found nowhere else. Private ones would make copying and pickling go astray.
        if name.startswith("_"):
            raise AttributeError(f"{type(self).__name__!r} has no attribute {name!r}")
        return getattr(self._world.envs[0].unwrapped, name)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode: the observation and its info.

        Raises:
            ValueError: `options` are given (there are none).
        """
        super().reset(seed=seed)
        if options:
            raise ValueError(f"options = {options!r}: this world has none")
        if seed is None and self._begun is not None:
            observation, info = self._begun
        else:
            observations, infos = self._world.reset(seed=self._seed_of_world(seed))
            observation, info = observations[0], _single(infos)
        self._begun = None
        self._task = _of_task(info)
        return observation, info

    def _seed_of_world(self, seed: int | None) -> int | None:
        if seed is None and self._seeded:
            return None
        self._seeded = True
        return int(self.np_random.integers(SEED_LIMIT - 1)) if seed is None else seed % (SEED_LIMIT - 1)

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """One step: `action` is an int or float [action_dim], as the action space says.

        Raises:
            gymnasium.error.ResetNeeded: before the first reset, or after an episode's end.
        """
        if self._begun is not None:
            raise ResetNeeded("step() came after an episode's end: call reset() first")
        observations, rewards, terminated, truncated, infos = self._world.step(np.asarray(action)[None])
        observation = observations[0]
        info = _single(infos)
        now = {name: info[name] for name in _OF_THE_STATE if name in info}
        info.update(self._task)
        if terminated[0] or truncated[0]:
            self._begun = observation, now
            observation = infos["final_obs"][0]
            info["episode_statistics"] = _single(infos["episode"])
            if "lives" in info:
                info["lives"] = self._last.lives
        self._task = _of_task(now)
        return observation, float(rewards[0]), bool(terminated[0]), bool(truncated[0]), info

    def render(self) -> np.ndarray | None:
        """What the last observation shows: RGB uint8 [height, width, 3]; None without a render mode."""
        if self.render_mode is None:
            return None
        over = self._begun is not None
        return self._last.frame if over else self._world.render()[0]

    def close(self) -> None:
        """Release the backend; a second call does nothing."""
        self._world.close()


class _LastMoment(Through):
    """A pool of one that remembers how an episode ended, because `World` begins the next within the same step."""

    def __init__(self, pool: Pool, renders: bool) -> None:
        super().__init__(pool)
        self._renders = renders
        self.lives = 0
        self.frame: np.ndarray | None = None
        self._running = False

    def start(self, seed: int | None) -> tuple[np.ndarray, np.ndarray | None]:
        self._running = False
        return self.pool.start(seed)

    def advance(self, actions: np.ndarray, ids: np.ndarray | None = None) -> Outcome:
        outcome = self.pool.advance(actions, ids)
        self._running = True
        self.lives = 0 if outcome.lives is None else int(outcome.lives[0])
        return outcome

    def enter(self, ids: np.ndarray, task: Task) -> None:
        self._keep_frame()
        self.pool.enter(ids, task)

    def restart(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        self._keep_frame()
        return self.pool.restart(ids)

    def _keep_frame(self) -> None:
        if self._renders and self._running:
            self.frame = self.pool.render()[0]
        self._running = False


def _metadata(config: WorldConfig, world: World) -> dict[str, Any]:
    """What can be rendered, and how many steps make a second."""
    if config.backend != config.family.drawn_by:
        return {"render_modes": []}
    fps = config.family.pictures_a_second or world.envs[0].metadata.get("render_fps")
    return {"render_modes": ["rgb_array"], **({"render_fps": fps} if fps else {})}


def _single(infos: dict[str, Any]) -> dict[str, Any]:
    """The only row of a world's infos, as Python values; final observations and statistics are dealt with apart."""
    return {
        name: _single(column) if isinstance(column, dict) else column[0].item()
        for name, column in infos.items()
        if name not in ("final_obs", "episode") and not name.startswith("_")
    }


def _of_task(info: dict[str, Any]) -> dict[str, Any]:
    told = {name: info[name] for name in ("task_index", "task_stage", "task") if name in info}
    return {**told, "task": dict(told["task"])} if told else {}


class GameCycle(SingleWorld):
    """Several Atari games with their common 18 actions, visited in turn as tasks (gymnasium id ``GameCycle-v0``).

    Args:
        games: two or more ids, a sequence or one string with commas.
        render_mode, options: as `SingleWorld`.

    Raises:
        ValueError: fewer than two games, or as `SingleWorld`.

    Example:
        >>> env = GameCycle(["ALE/Pong-v5", "ALE/Breakout-v5"], task={"period": 100_000})
        >>> env.action_space
        Discrete(18)
    """

    def __init__(self, games: str | Sequence[str], render_mode: str | None = None, **options: Any) -> None:
        super().__init__(joined(games), render_mode, **options)


def joined(games: str | Sequence[str]) -> str:
    """The ids as one string with commas. Raises ValueError where they are fewer than two."""
    names = games if isinstance(games, str) else ",".join(games)
    if "," not in names:
        raise ValueError(f"games = {games!r}: must be two or more ids such as 'ALE/Pong-v5,ALE/Breakout-v5'")
    return names


class PeriodicResetWorld(SingleWorld):
    """A world of ours that begins anew every `period` steps (gymnasium id ``PeriodicReset-v0``); see `PeriodicReset`.

    Args:
        env_id, render_mode, options: as `SingleWorld`.
        period: steps between two new beginnings.

    Example:
        >>> env = PeriodicResetWorld("ALE/Pong-v5", period=10_000, sticky_actions=0.25)
    """

    def __init__(self, env_id: str, period: int, render_mode: str | None = None, **options: Any) -> None:
        super().__init__(env_id, render_mode, **{**options, "task": resetting(period, options.get("task", {}))})


def resetting(period: int, task: Any) -> TaskConfig:
    """`task` with the change 'reset' and this period."""
    return replace(_section("task", task), change="reset", period=period)


class PeriodicReset(gymnasium.Wrapper, gymnasium.utils.RecordConstructorArgs):
    """Any environment, begun anew every `period` steps: the episode is cut as truncation, and the ``reset()`` that
    follows uses a freshly drawn seed. Each stretch counts as a task. (Resetting the network is another matter.)

    The seeds are those that `World` draws under ``task.change="reset"`` with the same task seed. Every info has
    ``task_index`` and ``task``, as in `SingleWorld`. ``reset(seed=s)`` restarts the schedule, ``reset()`` does not.

    Args:
        env: the environment.
        period: steps between two new beginnings; 0: never.
        seed: decides the seeds that are drawn.

    Raises:
        ValueError: `period` is negative.

    Example:
        >>> env = PeriodicReset(gymnasium.make("CartPole-v1"), period=10_000)
        >>> env.reset(seed=1)[1]
        {'task_index': 0, 'task': {'reset_seed': -1}}
    """

    def __init__(self, env: gymnasium.Env, period: int, seed: int = 0) -> None:
        gymnasium.utils.RecordConstructorArgs.__init__(self, period=period, seed=seed)
        gymnasium.Wrapper.__init__(self, env)
        self._schedule = TaskSchedule(ResetLaw(), period=period, at="now", seed=seed)
        self._cut = False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode; without a `seed` the change that is due takes place."""
        if seed is not None:
            self._schedule.restart()
        changed = self._schedule.pending(np.array([0]))
        if changed.size:
            self._schedule.enter(changed)
            seed = self._schedule.current.content
        observation, info = self.env.reset(seed=seed, options=options)
        self._cut = False
        return observation, {**info, **self._of_task()}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """One step.

        Raises:
            gymnasium.error.ResetNeeded: the episode has been cut.
        """
        if self._cut:
            raise ResetNeeded("step() came after the episode was cut: call reset() first")
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._cut = self._schedule.advance()
        truncated = bool(truncated or self._cut) and not terminated
        return observation, reward, terminated, truncated, {**info, **self._of_task()}

    def _of_task(self) -> dict[str, Any]:
        return _single(self._schedule.infos())
