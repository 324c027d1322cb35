"""Trials in this process, one after the other."""

from collections import deque
from collections.abc import Sequence

from experiments.sweep.board import Board
from experiments.sweep.plan import Trial, bundles
from experiments.sweep.tries import Tries


class Here:
    """Makes trials without Ray, up to `seeds` of an arm side by side. As `OnRay`, which says what its methods do."""

    def __init__(self, seeds: int, lock_timeout: float) -> None:
        self.seeds, self.lock_timeout = seeds, lock_timeout

    def make(self, trials: Sequence[Trial], board: Board) -> bool:
        """Make all `trials`; False where a signal ended it before."""
        from experiments.sweep.trials import make_together

        waiting, tries = deque(bundles(trials, self.seeds)), Tries(board)
        while waiting:
            bundle = waiting.popleft()
            for trial in bundle:
                board.set(trial, "running")
            outcomes = make_together([trial.config for trial in bundle], self.lock_timeout)
            if any(outcome.state == "interrupted" for outcome in outcomes):
                for trial, outcome in zip(bundle, outcomes, strict=True):
                    board.set(trial, "left" if outcome.state == "interrupted" else outcome.state, outcome.why)
                return False
            if again := tries.judged(bundle, outcomes):
                waiting.appendleft(again)
        return True

    def close(self) -> None:
        """Nothing is held."""
