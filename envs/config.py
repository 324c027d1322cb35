"""Which world a run acts in, as typed fields. Standard library alone, so that a bad flag is answered at once."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from envs.families import BACKENDS, CHANGES, FAMILIES, OPTIONS, canonical, family_of
from envs.family import REPLAY_SECONDS, Family, one_of, require
from envs.ids import MOST_CHARACTERS, well_formed

Change = Literal["auto", *CHANGES]
Backend = Literal["auto", *BACKENDS]

MOST_TASKS = 100_000
"""Largest index of a task that one may begin with: the labels of a task are drawn after those of all before it."""

_ORDERS = ("auto", "sequence", "cycle", "A-B-A")


def backends_of(env: str) -> tuple[str, ...]:
    """The backends that can step `env`, "auto" first."""
    return ("auto", *family_of(env).backends_of(env))


def changes_of(env: str) -> tuple[str, ...]:
    """What can change in `env` from task to task."""
    return family_of(env).changes(env)


def foreign_fields(env: str) -> frozenset[str]:
    """The fields of `WorldConfig` that apply to other worlds alone; of a part that does as a whole, its name."""
    own = family_of(env).options_of(env)
    return frozenset(field.name for options in OPTIONS if options not in own for field in fields(options))


def more_of_backends() -> str:
    """What is to be said of ``--backend``: what "auto" is in each family."""
    usual = (
        family.usual_backends or f"{family.backends[0]} for {'the rest' if family.fallback else family.name}"
        for family in FAMILIES
    )
    return f"auto: {', '.join(usual)}."


def more_of_changes() -> str:
    """What is to be said of ``--task.change``: what can change in one family alone."""
    own = {change: words for family in FAMILIES for change, words in family.own_changes.items()}
    return "In some worlds alone: " + ", ".join(f"{change} ({words})" for change, words in own.items()) + "."


@dataclass(frozen=True)
class TaskConfig:
    """When and how the world changes. Every method meets the same tasks: they depend on the seed here alone."""

    change: Change = "auto"
    """What changes: actions or observations (their meaning or order permuted), rewards (an offset), reset (all episodes
    cut, begun anew from a fresh seed); auto: what the world is made for."""
    period: int = 0
    """Steps of a task over all environments; 0: the world never changes."""
    at: Literal["episode_end", "now"] = "episode_end"
    """When a due change happens: at each environment's next episode end, or at once in all (what cannot change under a
    running episode cuts it, as truncation)."""
    count: int = 0
    """Number of different tasks; 0: all there are, or without end."""
    order: Literal["auto", "sequence", "cycle", "A-B-A"] = "auto"
    """sequence: one after the other, the last one stays; cycle: over and over; A-B-A: each once, then the first one
    again for good; auto: cycle for games and modes, else sequence."""
    stages: int = 1
    """1: jumps; more: a gradual drift to the next task in so many equal parts (friction and rewards)."""
    first: int = 0
    """Index of the task to begin with (with period 0: the only one)."""
    reward_step: float = 1.0
    """Change 'rewards': task k adds k times this to every reward."""
    seed: int | None = None
    """Seed of the tasks; without one it is derived from the run's seed."""

    def __post_init__(self) -> None:
        for field, least in (("period", 0), ("count", 0), ("stages", 1), ("first", 0)):
            value = getattr(self, field)
            require(value >= least, f"task.{field}", value, f"must be at least {least}")
        require(self.first <= MOST_TASKS, "task.first", self.first, f"must be at most {MOST_TASKS:,}")
        choices = (("change", Change.__args__), ("at", ("episode_end", "now")), ("order", _ORDERS))
        for field, allowed in choices:
            require(getattr(self, field) in allowed, f"task.{field}", getattr(self, field), one_of(allowed))
        require(abs(self.reward_step) < float("inf"), "task.reward_step", self.reward_step, "must be a finite number")
        require(self.seed is None or 0 <= self.seed < 2**63, "task.seed", self.seed, "must be in [0, 2**63)")


@dataclass(frozen=True)
class AnyWorld:
    """What every world has."""

    env: str = "ALE/Breakout-v5"
    """Gymnasium id of the world, such as ALE/Pong-v5, Ant-v5, FrictionAnt-v0, ImageMDP-v0 or CartPole-v1; MODULE:ID for
    a world that the module registers; several Atari games with commas between them are played in turn."""
    num_envs: int = 1
    """Number of environments E that step together."""
    backend: Backend = "auto"
    """Which implementation steps the world."""
    max_episode_steps: int = 0
    """Time limit in steps; 0 for the world's own (Atari 27,000 steps = 108,000 frames, Ant 1,000)."""
    world_segment: int | None = None
    """Steps after which a world whose state cannot be read (envpool, ALE's vector environment, others' worlds) is built
    again from a fresh seed, which cuts all games: an interrupted run goes on exactly, by replaying the actions since.
    none: so many that it takes under a minute; 0: never, and such a run goes on from a reset."""
    task: TaskConfig = TaskConfig()
    """When and how the world changes."""


@dataclass(frozen=True)
class WorldConfig(*reversed(OPTIONS), AnyWorld):
    """One world and how it is run: what every world has, and each family's own options. Every field is a command-line
    flag.

    Raises:
        ValueError: a field is out of its range, or does not apply to `env`; the sentence names the field.
    """

    def __post_init__(self) -> None:
        longest = max(len(part) for part in self.env.split(","))
        a_line = longest <= MOST_CHARACTERS and self.env.isprintable()
        require(a_line, "env", self.env, f"must be a Gymnasium id: at most {MOST_CHARACTERS} characters on one line")
        # A frozen field, but one name for one world: files, names of runs and comparisons see this one.
        object.__setattr__(self, "env", canonical(self.env))
        require(
            all(map(well_formed, self.games)),
            "env",
            self.env,
            "must be a Gymnasium id such as 'ALE/Breakout-v5', or MODULE:ID for one that a module registers",
        )
        require(self.num_envs >= 1, "num_envs", self.num_envs, "must be at least 1")
        limit = self.max_episode_steps
        require(limit >= 0, "max_episode_steps", limit, "must be 0 (the world's own limit) or a positive count")
        segment = self.world_segment
        require(segment is None or segment >= 0, "world_segment", segment, "must be at least 0 (never), or none")
        for options in OPTIONS:
            options.check(self)
        require(self.backend in Backend.__args__, "backend", self.backend, one_of(Backend.__args__))
        allowed = backends_of(self.env)
        here = f"must be one of {', '.join(allowed)} for env = {self.env!r}"
        require(self.backend in allowed, "backend", self.backend, here)
        needless = bool(segment) and self.resolved_backend in self.family.saved_exactly
        here = f"must be none for backend = {self.resolved_backend!r}, whose state is saved as it is"
        require(not needless, "world_segment", segment, here)
        self._refuse_foreign_options()
        self._check_tasks()
        self.family.check(self)

    def _refuse_foreign_options(self) -> None:
        for options in OPTIONS:
            for field in fields(options) if options not in self.family.options_of(self.env) else ():
                value = getattr(self, field.name)
                message = f"applies to {options.where} alone and must stay {field.default!r} for env = {self.env!r}"
                require(value == field.default, field.name, value, message)

    def _check_tasks(self) -> None:
        task, change = self.task, self.task.change
        families, first = {family_of(one) for one in self.games}, self.family
        allowed = " or ".join(family.worlds.split()[0] for family in FAMILIES if family.in_turn)
        in_turn = len(self.games) == 1 or (families == {first} and first.in_turn)
        require(in_turn, "env", self.env, f"several worlds in turn must all be {allowed}")
        allowed = changes_of(self.env)
        require(change in ("auto", *allowed), "task.change", change, f"{one_of(allowed)} for env = {self.env!r}")
        foreign = self.change is None and task != TaskConfig(seed=task.seed)
        require(not foreign, "task.change", change, f"name what changes in {self.env!r}: {one_of(allowed)}")

    @property
    def games(self) -> tuple[str, ...]:
        """The ids in `env`: one, or the games that are played in turn."""
        return tuple(part.strip() for part in self.env.split(","))

    @property
    def change(self) -> str | None:
        """What changes in this world, "auto" decided; None: nothing, it is an ordinary world."""
        usual = self.family.in_turn if len(self.games) > 1 else self.family.usual_change
        return usual if self.task.change == "auto" else self.task.change

    @property
    def family(self) -> Family:
        """The family of the world, from the id alone."""
        return family_of(self.env)

    @property
    def segment(self) -> int:
        """`world_segment` with none decided; 0 where there are no segments."""
        usual = REPLAY_SECONDS * self.family.speeds.get(self.resolved_backend, 0)
        return usual if self.world_segment is None else self.world_segment

    @property
    def resolved_backend(self) -> str:
        """The backend with ``"auto"`` decided."""
        return self.family.backends_of(self.env)[0] if self.backend == "auto" else self.backend
