"""What a family of worlds says of itself; each has one file in families/. Standard library alone, so that a bad flag is
answered at once: what a method needs beyond it, that method imports."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from gymnasium.spaces import Box

    from envs.config import WorldConfig
    from envs.pools import Pool
    from envs.tasks import TaskLaw, TaskSchedule

REPLAY_SECONDS = 45
"""How long it takes at most to replay a segment of the usual length."""
ANYWHERE = ("actions", "observations", "rewards", "reset")
"""What can change in any world."""


def require(condition: bool, field: str, value: object, allowed: str) -> None:
    """Raise ValueError, naming the field, its value and what is allowed, unless `condition` holds."""
    if not condition:
        text = repr(value)
        short = text if len(text) <= 200 else f"{text[:120]}...{text[-60:]}"
        raise ValueError(f"{field} = {short}: {allowed}")


def one_of(allowed: Collection[str]) -> str:
    """What is allowed, in words."""
    return f"must be {', '.join(allowed)}" if len(allowed) == 1 else f"must be one of {', '.join(allowed)}"


@dataclass(frozen=True)
class WorldInfo:
    """Shapes and kinds of one world.

    ``observation_shape`` is one environment's, without the leading E. Exactly one of ``num_actions`` (discrete) and
    ``action_dim`` (continuous) is set.
    """

    family: str
    actions: Literal["discrete", "continuous"]
    backend: str
    observation_shape: tuple[int, ...]
    observation_dtype: str
    num_actions: int | None = None
    action_dim: int | None = None
    frame_stack: int | None = None


class Backend(NamedTuple):
    """How a world is built."""

    seed: int
    threads: int
    render_mode: str | None


class Parts(NamedTuple):
    """What a `World` is put together from; see there."""

    pool: Pool
    encode: Callable[[np.ndarray], np.ndarray]
    space: Box
    limit: int
    frame_stack: int | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Options:
    """Fields of `WorldConfig`, and so flags, that mean something to one family alone."""

    where: ClassVar[str]
    """The worlds that they apply to, in words: ids with " and " between them, or a whole family."""

    def check(self) -> None:
        """Raise ValueError for a value out of range."""


class Family:
    """One family of worlds: the entry that lists, helps, refusals and `make_vec` follow. A subclass in a file of
    families/ and an object of it there, `FAMILY`, are all that a new family takes."""

    name: str
    """The file's."""
    worlds: str
    """Its ids, in words."""
    ids: tuple[str, ...] = ()
    """Its ids, where they are few."""
    backends: tuple[str, ...]
    """Which implementations there are; the first of those that step a world is what ``"auto"`` means there."""
    usual_backends = ""
    """What ``"auto"`` means, in words, where that is not the same in all its worlds."""
    options: tuple[type[Options], ...] = ()
    """Its own fields of `WorldConfig`; some may apply to some of its ids alone."""
    own_changes: ClassVar[dict[str, str]] = {}
    """What can change in its worlds alone, and what that is, in words."""
    changes_anywhere = True
    """Whether what can change in any world can in its worlds."""
    usual_change: str | None = None
    """What ``task.change = "auto"`` means; None: nothing changes."""
    in_turn: str | None = None
    """What changes where several of its ids, with commas between them, are one world; None: they cannot be."""
    registered: tuple[str, ...] = ()
    """Those of its ids that are ours, and registered with gymnasium."""
    fallback = False
    """Whether it takes what no other family does."""

    saved_exactly: tuple[str, ...] = ()
    """The backends that say where they stand."""
    speeds: ClassVar[dict[str, int]] = {}
    """Of the other backends, steps a second with one thread (``python -m benchmarks.replay_speed``)."""

    lives = True
    """Whether lives can be lost there."""
    observes: Literal["pixels", "numbers"] | None = None
    """What is observed; None: that depends."""
    bytes_each = 2**11
    """Bytes that one environment takes at least, beside its observations."""

    drawn_by = "gymnasium"
    """The backend that can draw pictures."""
    drawing_hint = ""
    """What may help where it cannot."""
    pictures_a_second: int | None = None
    """At the speed the game is meant to be seen; None: the world says."""
    enlarged = 1
    """How many times pictures are enlarged in a film."""

    def matches(self, env: str) -> bool:
        """Whether the id belongs to this family."""
        return env in self.ids or self.fallback

    def backends_of(self, env: str) -> tuple[str, ...]:
        """Those that step one of its ids."""
        return self.backends

    def newer(self, name: str) -> str | None:
        """The id here that took the place of an older world, whose protocol is still this family's."""

    def meant(self, name: str) -> tuple[str, str]:
        """(the id here that an old or sloppy `name` means, "" for none; what else is to be said of it)."""
        return self.newer(name) or "", ""

    def known_ids(self) -> Collection[str]:
        """All ids that can be suggested."""
        return self.ids

    def options_of(self, env: str) -> list[type[Options]]:
        """Those of `options` that apply to one of its ids."""
        return [one for one in self.options if not self.ids or env in one.where.split(" and ")]

    def changes(self, env: str) -> tuple[str, ...]:
        """What can change in one of its ids from task to task."""
        own = (change for change in self.own_changes if change != self.in_turn)
        return (self.in_turn,) if "," in env and self.in_turn else (*own, *ANYWHERE * self.changes_anywhere)

    def check(self, config: WorldConfig) -> None:
        """Raise ValueError where fields of `config` do not fit each other."""

    def check_known(self, env: str) -> None:
        """Raise ValueError, naming the closest ids, where there is no such world. Nothing is built."""

    def check_files(self, config: WorldConfig) -> None:
        """Raise ValueError where a file that `config` names is not there, or not what it was."""

    def settled(self, config: WorldConfig, given: Collection[str]) -> WorldConfig:
        """`config`, of which the fields in `given` are said anew, with what must be known when a run is recorded."""
        return config

    def describe(self, config: WorldConfig) -> WorldInfo:
        """The shapes of the world. ValueError: it is not there, or no agent takes its spaces."""
        raise NotImplementedError

    def law(self, config: WorldConfig) -> TaskLaw | None:
        """The law of one of its `own_changes`; None where that takes building the world."""
        return None

    def build(self, config: WorldConfig, backend: Backend, schedule: Callable[[TaskLaw], TaskSchedule]) -> Parts:
        """The world. Under one of its `own_changes` the pool is a `TaskPool`, for the tasks of ``schedule(law)``."""
        raise NotImplementedError

    def info(self, config: WorldConfig, shape: tuple[int, ...], dtype: str, **kinds: Any) -> WorldInfo:
        """A `WorldInfo` with num_actions or action_dim, and frame_stack."""
        actions = "discrete" if kinds.get("num_actions") is not None else "continuous"
        return WorldInfo(self.name, actions, config.resolved_backend, shape, dtype, **kinds)
