"""Trials in this process, one after the other."""

from collections.abc import Sequence

from experiments.sweep.board import Board
from experiments.sweep.plan import Trial


class Here:
    """Makes trials without Ray. As `OnRay`, which says what its methods do."""

    def __init__(self, lock_timeout: float) -> None:
        self.lock_timeout = lock_timeout

    def make(self, trials: Sequence[Trial], board: Board) -> bool:
        """Make all `trials`; False where a signal ended it before."""
        from experiments.sweep.trials import make

        for trial in trials:
            for last in (False, True):
                board.set(trial, "running")
                outcome = make(trial.config, self.lock_timeout)
                if last or not outcome.out_of_memory:
                    break
                board.say(f"tried once more: {trial.config.run.name}: {outcome.why}")
            if outcome.state == "interrupted":
                board.set(trial, "left", outcome.why)
                return False
            board.set(trial, outcome.state, outcome.why)
        return True

    def close(self) -> None:
        """Nothing is held."""
