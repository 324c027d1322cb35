"""FrictionAnt-v0: an Ant-v5 whose sliding friction changes from task to task (Dohare et al. 2024, Nature 632:768-774);
see envs/friction.py."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from envs.families.mujoco import ANT, AntOptions, MuJoCo
from envs.family import Backend, Options, require

if TYPE_CHECKING:
    from envs.config import WorldConfig
    from envs.pools import TaskPool
    from envs.tasks import TaskLaw, TaskSchedule

FRICTION_ANT = "FrictionAnt-v0"


@dataclass(frozen=True)
class FrictionConfig:
    """FrictionAnt-v0: the law of the sliding friction, drawn once a task (Dohare et al. 2024: log-uniform [.02, 2])."""

    low: float = 0.02
    """Least friction; > 0."""
    high: float = 2.0
    """Greatest friction; >= low."""
    law: Literal["log_uniform", "uniform"] = "log_uniform"
    """log_uniform: every factor alike (10 ** uniform); uniform: every difference alike."""

    def __post_init__(self) -> None:
        require(0.0 < self.low < float("inf"), "friction.low", self.low, "must be > 0 and finite")
        allowed = f"must be at least friction.low = {self.low} and finite"
        require(self.low <= self.high < float("inf"), "friction.high", self.high, allowed)
        require(self.law in ("log_uniform", "uniform"), "friction.law", self.law, "must be log_uniform or uniform")


@dataclass(frozen=True)
class FrictionOptions(Options):
    """What else FrictionAnt-v0 has."""

    where: ClassVar[str] = FRICTION_ANT
    friction: FrictionConfig = FrictionConfig()
    """FrictionAnt-v0's frictions."""


class FrictionAnt(MuJoCo):
    """See the module."""

    name = "friction_ant"
    worlds = FRICTION_ANT
    ids = registered = (FRICTION_ANT,)
    backends = saved_exactly = ("native", "gymnasium")
    usual_backends = ""
    options = (AntOptions, FrictionOptions)
    own_changes: ClassVar = {"friction": FRICTION_ANT}
    usual_change = "friction"
    changes_anywhere = False

    def robot(self, config: WorldConfig) -> str:
        return ANT

    def law(self, config: WorldConfig) -> FrictionLaw:
        return FrictionLaw(config.friction)

    def make_pool(self, config: WorldConfig, backend: Backend, schedule: Callable[[TaskLaw], TaskSchedule]) -> TaskPool:
        from envs.friction import FrictionGymnasiumPool, NativeFrictionPool

        schedule(self.law(config))
        if config.resolved_backend == "gymnasium":
            return FrictionGymnasiumPool(config, backend.render_mode)
        return NativeFrictionPool(config, backend.threads)


FAMILY = FrictionAnt()


class FrictionLaw:
    """A friction for each task, drawn independently (a `TaskLaw`; contents are floats)."""

    distinct: int | None = None
    listed = False
    gradual = True

    def __init__(self, config: FrictionConfig) -> None:
        self.low, self.high, self.logarithmic = config.low, config.high, config.law == "log_uniform"

    def draw(self, seed: int, variant: int) -> float:
        """The friction of task `variant`, in [low, high]."""
        from envs.tasks import generator

        random = generator(seed, variant)
        if not self.logarithmic:
            return random.uniform(self.low, self.high)
        friction = 10.0 ** random.uniform(math.log10(self.low), math.log10(self.high))
        return min(max(friction, self.low), self.high)  # 10 ** log10(x) may miss x by a rounding

    def between(self, start: float, end: float, share: float) -> float:
        """The friction `share` of the way: by equal factors where the law is log-uniform, else by equal differences."""
        return start * (end / start) ** share if self.logarithmic else start + share * (end - start)

    def describe(self, content: float) -> dict[str, float]:
        """{"friction": friction}."""
        return {"friction": content}
