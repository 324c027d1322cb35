"""Continuous actions that lie where a new policy does not draw."""

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box
from gymnasium.wrappers import RescaleAction

from agents.actions import ActionMap, scaled_dimensions

BOUNDS = [  # low, high, whether auto scales: |centre| > half-width, or half-width outside [.25, 4]
    (-1.0, 1.0, False),
    (-0.4, 0.4, False),
    (-0.25, 0.25, False),
    (-0.24, 0.24, True),
    (-4.0, 4.0, False),
    (-4.1, 4.1, True),
    (0.0, 1.0, False),
    (0.0, 2.0, False),
    (0.1, 1.1, True),
    (100.0, 200.0, True),
    (-1000.0, 0.0, True),
    (-3.0, -2.0, True),
    (2.0, 2.0, True),
    (-np.inf, np.inf, False),
    (0.0, np.inf, False),
    (-3.4e38, 3.4e38, False),
    (-1.0, 3e9, False),
]


@pytest.mark.parametrize(("low", "high", "scaled"), BOUNDS)
def test_auto_scales_what_cannot_be_reached_or_filled(low, high, scaled):
    low, high = np.float32([low, -1.0]), np.float32([high, 1.0])
    assert scaled_dimensions(low, high, "auto").tolist() == [scaled, False]
    assert not scaled_dimensions(low, high, "off").any()
    assert scaled_dimensions(low, high, "on").tolist() == [bool(np.abs(low[0]) < 1e9 and np.abs(high[0]) < 1e9), True]


def test_it_is_gymnasiums_rescaling():
    low, high = np.float32([100.0, -7.0]), np.float32([200.0, 3.0])
    given = []

    class Recorder(gymnasium.Env):
        action_space, observation_space = Box(low, high), Box(0, 1, (1,))

        def step(self, action):
            given.append(action)
            return np.zeros(1, np.float32), 0.0, False, False, {}

    drawn = np.random.default_rng(0).normal(size=(200, 2)).astype(np.float32)
    theirs = RescaleAction(Recorder(), np.float32(-1.0), np.float32(1.0))
    for action in np.clip(drawn, -1, 1):
        theirs.step(action)
    ours = ActionMap(low, high, "auto", clip=True)(drawn)
    np.testing.assert_allclose(ours, np.stack(given), rtol=1e-5)
    assert ours.dtype == np.float32 and (ours >= low).all() and (ours <= high).all()
    assert (ours == low).any() and (ours == high).any()


def test_numbers_by_hand():
    low, high = np.float32([100.0, -1.0, 0.0]), np.float32([200.0, 1.0, np.inf])
    drawn = np.float32([[0.0, 0.3, 5.0], [-1.0, 1.7, -2.0], [1.5, -0.1, 0.1]])
    clipped = ActionMap(low, high, "auto", clip=True)(drawn)
    assert clipped.tolist() == np.float32([[150.0, 0.3, 5.0], [100.0, 1.0, 0.0], [200.0, -0.1, 0.1]]).tolist()
    free = ActionMap(low, high, "auto", clip=False)(drawn)
    assert free.tolist() == np.float32([[150.0, 0.3, 5.0], [100.0, 1.7, -2.0], [225.0, -0.1, 0.1]]).tolist()


@pytest.mark.parametrize("clip", [True, False])
def test_off_is_what_was_there_before_to_the_bit(clip):
    low, high = np.full(3, -0.7, np.float32), np.full(3, 0.7, np.float32)
    drawn = np.random.default_rng(1).normal(size=(50, 3)).astype(np.float32)
    for scaling in ("off", "auto"):
        actions = ActionMap(low, high, scaling, clip)(drawn)
        assert np.array_equal(actions, np.clip(drawn, low, high) if clip else drawn)


def test_what_is_scaled_is_said():
    far, near = np.float32([0.0]), np.float32([1000.0])
    assert ActionMap(far, near, "auto", True).remark() == (
        "actions in [0, 1000] are scaled from [-1, 1] (--action-scaling auto)"
    )
    assert "are not where a new policy draws" in ActionMap(far, near, "off", True).remark()
    assert ActionMap(np.float32([-1.0]), np.float32([1.0]), "off", True).remark() == ""
    mixed = ActionMap(np.float32([-1.0, 5.0]), np.float32([1.0, 6.0]), "auto", True).remark()
    assert mixed.startswith("actions in [5, 6] (dimension 1) are scaled")
