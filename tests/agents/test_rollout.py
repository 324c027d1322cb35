"""The rollout: what is added comes back in its row, and which state each step reached."""

import pytest
import torch

from agents.rollout import Rollout
from tests.agents.helpers import CONTINUOUS, CPU, STACK, VECTOR


def columns(values, ended=(False, False), final=(0.0, 0.0)):
    return {
        "values": torch.tensor(values),
        "ended": torch.tensor(ended),
        "final_values": torch.tensor(final),
    }


def test_shapes_and_types():
    rollout = Rollout(CONTINUOUS, 3, 2, CPU)
    assert rollout.observations.shape == (3, 2, 5) and rollout.observations.dtype == torch.float32
    assert rollout.actions.shape == (3, 2, 2) and rollout.actions.dtype == torch.float32
    assert Rollout(VECTOR, 3, 2, CPU).actions.dtype == torch.int64
    assert Rollout(STACK, 3, 2, CPU).observations.dtype == torch.uint8


def test_rows_come_back_in_order_and_full_means_full():
    rollout = Rollout(VECTOR, 3, 2, CPU)
    for row in range(3):
        assert not rollout.full
        rollout.add(rewards=torch.tensor([row, 10.0 + row]), actions=torch.tensor([row, 2]))
    assert rollout.full
    assert rollout.rewards.tolist() == [[0, 10], [1, 11], [2, 12]]
    assert rollout.actions.tolist() == [[0, 2], [1, 2], [2, 2]]


def test_adding_to_a_full_rollout_is_refused():
    rollout = Rollout(VECTOR, 1, 2, CPU)
    rollout.add(rewards=torch.zeros(2))
    with pytest.raises(RuntimeError, match="filled"):
        rollout.add(rewards=torch.zeros(2))
    rollout.clear()
    rollout.add(rewards=torch.ones(2))
    assert rollout.rewards.tolist() == [[1.0, 1.0]]


def test_a_step_reaches_the_next_rows_state_or_its_episodes_last():
    rollout = Rollout(VECTOR, 3, 2, CPU)
    rollout.add(**columns([1.0, 2.0]))
    rollout.add(**columns([3.0, 4.0], ended=(True, False), final=(50.0, -1.0)))
    rollout.add(**columns([5.0, 6.0], ended=(False, True), final=(-1.0, 60.0)))
    # environment 0: step 1 ends in a state worth 50; environment 1: the last step ends in one worth 60
    assert rollout.reached_values(torch.tensor([7.0, 8.0])).tolist() == [[3, 4], [50, 6], [7, 60]]
