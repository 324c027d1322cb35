"""Trials in this process, one after the other."""

from collections import deque
from collections.abc import Sequence

from envs.memory import available_memory
from experiments.sweep.board import Board
from experiments.sweep.plan import Plan, Trial
from experiments.sweep.stacks import Limits, bundles, memory_of
from experiments.sweep.tries import Tries


def limits_here(plan: Plan, workers: int = 1) -> Limits:
    """Those of so many processes on this machine, by the memory that is free."""
    asked, free = plan.study.resources, available_memory()
    return Limits(asked.seeds, workers, lambda trial, seeds: free // memory_of(trial, seeds, asked.memory))


class Here:
    """Makes trials without Ray. As `OnRay`, which says what its methods do."""

    def __init__(self, plan: Plan, lock_timeout: float) -> None:
        self.plan, self.lock_timeout = plan, lock_timeout

    def make(self, trials: Sequence[Trial], board: Board) -> bool:
        """Make all `trials`; False where a signal ended it before."""
        from experiments.sweep.trials import make_together

        waiting, tries = deque(bundles(trials, limits_here(self.plan))), Tries(board)
        while waiting:
            bundle = waiting.popleft()
            for trial in bundle:
                board.set(trial, "running")
            outcomes = make_together([trial.config for trial in bundle], self.lock_timeout)
            if any(outcome.state == "interrupted" for outcome in outcomes):
                for trial, outcome in zip(bundle, outcomes, strict=True):
                    board.set(trial, "left" if outcome.state == "interrupted" else outcome.state, outcome.why)
                return False
            waiting.extendleft(tries.judged(bundle, outcomes))
        return True

    def close(self) -> None:
        """Nothing is held."""
