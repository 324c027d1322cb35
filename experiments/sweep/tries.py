"""What a trial came to, and how often it is tried. Imports no torch."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from experiments.sweep.board import Board, last_step
from experiments.sweep.plan import Bundle, Trial

LOSSES = 3
"""Processes that a trial may lose without getting any further."""


@dataclass(frozen=True)
class Outcome:
    """What became of a trial."""

    state: Literal["finished", "interrupted", "failed"]
    why: str = ""
    out_of_memory: bool = False


class Tries:
    """Tells `board` what became of trials, and knows how often each has run out of memory and lost its process."""

    def __init__(self, board: Board) -> None:
        self.board = board
        self.short: Counter[Path] = Counter()
        self.lost: dict[Path, list[int]] = {}

    def judged(self, bundle: Bundle, outcomes: Sequence[Outcome]) -> list[Bundle]:
        """Those of `bundle` that are to be tried again: broken off, up to `LOSSES` times without a step more, side by
        side as they were; or out of memory for the first time, each alone."""
        again, alone = [], []
        for trial, outcome in zip(bundle, outcomes, strict=True):
            short = outcome.out_of_memory
            outcome, tried_again = self._judged(trial, outcome)
            if tried_again:
                self.board.set(trial, "waiting")
                self.board.say(f"goes on: {trial.config.run.name}: {outcome.why}")
                (alone if short else again).append(trial)
            else:
                self.board.set(trial, outcome.state, outcome.why)
        return [*([tuple(again)] if again else []), *((trial,) for trial in alone)]

    def _judged(self, trial: Trial, outcome: Outcome) -> tuple[Outcome, bool]:
        place = trial.directory
        if outcome.out_of_memory:
            self.short[place] += 1
            return outcome, self.short[place] == 1
        if outcome.state != "interrupted":
            return outcome, False
        step = last_step(place)[1]
        seen = [step, *(other for other in self.lost.get(place, []) if other >= step)]
        self.lost[place] = seen
        if len(seen) < LOSSES:
            return outcome, True
        return Outcome("failed", f"{LOSSES} times in a row without a step more: {outcome.why}"), False
