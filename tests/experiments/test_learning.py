"""The agents learn: CartPole-v1 to a mean greedy return of 450 or more (500 is the most there is), three seeds each.

Each run is the preset that `train.py {dqn,c51,ppo} --env CartPole-v1` takes, and may use at most the steps stated here.
"""

import numpy as np
import pytest
import torch

from agents.randomness import Generators
from envs import make_vec
from experiments.cli import parse_train
from experiments.evaluate import play
from experiments.run import Run, Tick
from experiments.setup import build

BUDGET = {"dqn": 50_000, "c51": 50_000, "ppo": 100_000}
CHECK_EVERY = 2_500


def greedy_return(agent, seed: int) -> float:
    """Mean return of 20 greedy games on worlds that training has not seen."""
    world = make_vec("CartPole-v1", 10, seed)
    returns, _ = play(agent.player(True, Generators(seed)), world, 20)
    world.close()
    return float(np.mean(returns))


def steps_to_solve(algorithm: str, seed: int) -> tuple[int | None, float]:
    """(steps after which greedy play first reached 450, or None within the budget; the last mean return)."""
    budget = BUDGET[algorithm]
    config = parse_train(
        [algorithm, "--env", "CartPole-v1", "--steps", str(budget), "--seed", str(seed), "--threads", "1"]
    )
    world, agent = build(config)
    checked, returned = 0, 0.0
    for event in Run(agent, world, budget):
        if isinstance(event, Tick) and event.step - checked >= CHECK_EVERY:
            checked, returned = event.step, greedy_return(agent, seed + 1000)
            if returned >= 450:
                return event.step, returned
    return None, returned


@pytest.mark.timeout(1200)  # of wall clock: a busy machine may take its time
@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.long) for seed in (2, 3))])
@pytest.mark.parametrize("algorithm", [pytest.param("dqn", marks=pytest.mark.long), "c51", "ppo"])
def test_cartpole_is_solved_within_the_budget(algorithm: str, seed: int) -> None:
    threads = torch.get_num_threads()
    try:
        solved_at, returned = steps_to_solve(algorithm, seed)
    finally:
        torch.set_num_threads(threads)
    assert solved_at is not None, f"{algorithm}, seed {seed}: {returned:.0f} after {BUDGET[algorithm]:,} steps"
