"""The rollout: what is added comes back in its row, and which state each step reached."""

import numpy as np
import pytest
import torch

from agents.rollout import Rollout, Shuffled
from tests.agents.helpers import CONTINUOUS, CPU, STACK, VECTOR


def test_shapes_and_types():
    rollout = Rollout(CONTINUOUS, 3, 2, CPU)
    assert rollout.observations.shape == (3, 2, 5) and rollout.observations.dtype == torch.float32
    assert rollout.actions.shape == (3, 2, 2) and rollout.actions.dtype == torch.float32
    assert Rollout(VECTOR, 3, 2, CPU).actions.dtype == torch.int64
    assert Rollout(STACK, 3, 2, CPU).observations.dtype == torch.uint8


def filled(rollout, row, values, ended=(False, False), final=None):
    """A row of the rollout: states of `row`, actions and values, and what came of them."""
    rollout.see(np.full((2, 5), row, np.float32))
    rollout.act(actions=torch.tensor([row, 2]), values=torch.tensor(values))
    rollout.add(rewards=np.array([row, 10.0 + row]), terminated=np.zeros(2, bool), ended=np.array(ended))
    if final is not None:
        rollout.end(torch.tensor(final))


def test_rows_come_back_in_order_and_full_means_full():
    rollout = Rollout(VECTOR, 3, 2, CPU)
    for row in range(3):
        assert not rollout.full
        filled(rollout, row, [0.0, 0.0])
    assert rollout.full
    assert rollout.rewards.tolist() == [[0, 10], [1, 11], [2, 12]]
    assert rollout.actions.tolist() == [[0, 2], [1, 2], [2, 2]]
    assert rollout.observations[:, :, 0].tolist() == [[0, 0], [1, 1], [2, 2]]


def test_a_full_rollout_takes_no_more():
    rollout = Rollout(VECTOR, 1, 2, CPU)
    filled(rollout, 0, [0.0, 0.0])
    with pytest.raises(RuntimeError, match="filled"):
        rollout.see(np.zeros((2, 5), np.float32))
    rollout.clear()
    filled(rollout, 7, [0.0, 0.0])
    assert rollout.rewards.tolist() == [[7.0, 17.0]]


def test_a_step_reaches_the_next_rows_state_or_its_episodes_last():
    rollout = Rollout(VECTOR, 3, 2, CPU)
    filled(rollout, 0, [1.0, 2.0])
    filled(rollout, 1, [3.0, 4.0], ended=(True, False), final=(50.0, -1.0))
    filled(rollout, 2, [5.0, 6.0], ended=(False, True), final=(-1.0, 60.0))
    # environment 0: step 1 ends in a state worth 50; environment 1: the last step ends in one worth 60
    rewards, terminated, ended, reached = rollout.outcome(torch.tensor([7.0, 8.0]))
    assert reached.tolist() == [[3, 4], [50, 6], [7, 60]]
    assert rewards[2].tolist() == [2, 12] and not terminated.any() and ended.int().tolist() == [[0, 0], [1, 0], [0, 1]]


def test_images_lie_channels_last_and_look_as_they_did():
    """So that convolutions take a minibatch as it is."""
    images = np.random.default_rng(0).integers(256, size=(3, 2, *STACK.observation_shape), dtype=np.uint8)
    rollout = Rollout(STACK, 3, 2, CPU)
    for row in images:
        assert np.array_equal(rollout.see(row).numpy(), row)
        rollout.add()
    together, numbers, shuffled = rollout.observations.flatten(0, 1), torch.arange(12.0).view(6, 2), Shuffled()
    for order in (torch.tensor([4, 0, 2, 3, 5, 1]), torch.tensor([1, 2, 3, 4, 5, 0])):
        found = shuffled({"observations": together, "numbers": numbers}, order)
        assert np.array_equal(found["observations"].numpy(), images.reshape(6, *STACK.observation_shape)[order.numpy()])
        assert torch.equal(found["numbers"], numbers[order])
        for shown in (together, found["observations"], rollout.observations[1]):
            assert shown.is_contiguous(memory_format=torch.channels_last)
