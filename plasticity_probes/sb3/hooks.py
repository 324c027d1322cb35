"""Callbacks that put hooks on a Stable-Baselines3 model, and take them off when `learn` ends, however it ends.

SB3 tells callbacks of a training's end where that is a normal one alone; an exception or Ctrl-C passes through `learn`,
and nobody is told. So importing this module wraps the two `learn` methods that those of all its algorithms call: on
every way out they let go what such callbacks hold of the model. To other models they do nothing.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

_holding: weakref.WeakKeyDictionary[BaseAlgorithm, weakref.WeakSet[HookingCallback]] = weakref.WeakKeyDictionary()


class HookingCallback(BaseCallback):
    """What it puts on a model, it has taken off in the end: a subclass gives `hold` a function for each thing.

    It must be given to `learn` itself or in a list, for SB3 tells callbacks within others of single steps alone.

    A subclass overrides `_take_hold`, `_require_beside` and, calling those of this class, `_on_step` and
    `_on_training_end`.
    """

    def __init__(self, verbose: int = 0) -> None:
        super().__init__(verbose)
        self.hold = ExitStack()
        """Called, the latest first, when the model is let go; empty while none is held."""
        self._training: dict[str, Any] | None = None  # the locals of the `learn` in which a model is held

    def _take_hold(self) -> None:
        """Training starts: put hooks on `self.model`."""
        raise NotImplementedError

    def _require_beside(self, other: HookingCallback) -> None:
        """Raise `ValueError` where this one cannot work in one training with the `other`."""

    def _on_training_start(self) -> None:
        if self.parent is not None and self.parent.locals is self.locals:  # else it was within that once
            raise ValueError(f"{self._must_be_in_a_list()}, not within {type(self.parent).__name__}")
        for other in holding(self.model):
            if other._training is not self.locals:
                other.let_go()  # that training is dead; its learn was not one of SB3's own
            elif other is self:
                raise ValueError(f"{type(self).__name__}: one and the same is given twice")
            else:
                self._require_beside(other)
        self.let_go()
        self._training = self.locals
        holders = _holding.setdefault(self.model, weakref.WeakSet())
        holders.add(self)
        self.hold.callback(holders.discard, self)
        self._take_hold()

    def let_go(self) -> None:
        """The model is plain again; nothing where it is already."""
        self._training = None
        hold, self.hold = self.hold, ExitStack()
        hold.close()

    def _on_training_end(self) -> None:
        self.let_go()

    def _on_step(self) -> bool:
        if self._training is None:
            raise RuntimeError(f"{self._must_be_in_a_list()}, and learn() must not be called within learn()")
        return True

    def _must_be_in_a_list(self) -> str:
        return f"{type(self).__name__}: must be given to learn() itself or in a list"


def holding(model: BaseAlgorithm) -> list[HookingCallback]:
    """The callbacks that hold `model` at present."""
    return list(_holding.get(model, ()))


def let_go(model: BaseAlgorithm) -> None:
    """Let `model` go, whoever holds it."""
    with ExitStack() as everybody:  # all of them, even if one cannot
        for callback in holding(model):
            everybody.callback(callback.let_go)


def _letting_go(learn: Callable[..., BaseAlgorithm]) -> Callable[..., BaseAlgorithm]:
    @functools.wraps(learn)
    def until_it_ends(self: BaseAlgorithm, *args: Any, **kwargs: Any) -> BaseAlgorithm:
        try:
            let_go(self)
            return learn(self, *args, **kwargs)
        finally:
            let_go(self)

    return until_it_ends


OnPolicyAlgorithm.learn = _letting_go(OnPolicyAlgorithm.learn)
OffPolicyAlgorithm.learn = _letting_go(OffPolicyAlgorithm.learn)
