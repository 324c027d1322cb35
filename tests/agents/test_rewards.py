"""Reward transforms against statistics of everything seen so far, in float64."""

import gymnasium
import numpy as np
import pytest

from agents.rewards import RewardTransform


def stream(steps=300, envs=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(2.0, 3.0, (steps, envs)), rng.random((steps, envs)) < 0.1


def test_none_changes_nothing_but_the_type():
    rewards = RewardTransform("none", 2, 0.99)(np.array([3.5, -700.0]), np.array([False, True]))
    assert rewards.tolist() == [3.5, -700.0] and rewards.dtype == np.float32


def test_clip():
    rewards = RewardTransform("clip", 4, 0.99)(np.array([-5, 0.25, 1, 400]), np.zeros(4, bool))
    assert rewards.tolist() == [-1.0, 0.25, 1.0, 1.0]


def test_integer_rewards_are_taken():
    assert RewardTransform("clip", 2, 0.99)(np.array([-5, 7]), np.zeros(2, bool)).tolist() == [-1.0, 1.0]


def test_scale_divides_by_the_std_of_all_discounted_returns_so_far():
    # Returns are summed as R <- gamma R + r and start over after an end. Their variance starts from one prior sample
    # set of mean 0 and variance 1 with weight 1e-4 (gymnasium's NormalizeReward).
    rewards, ended = stream()
    transform, gamma, seen, returns = RewardTransform("scale", 3, 0.9), 0.9, [], [0.0] * 3
    for reward, end in zip(rewards, ended, strict=True):
        for e in range(3):
            returns[e] = gamma * returns[e] + reward[e]
            seen.append(returns[e])
            if end[e]:
                returns[e] = 0.0
        weight = len(seen) + 1e-4
        mean = sum(seen) / weight
        variance = (sum(x * x for x in seen) + 1e-4) / weight - mean**2
        np.testing.assert_allclose(transform(reward, end), reward / np.sqrt(variance + 1e-8), rtol=1e-5)


class Paid(gymnasium.Env):
    """Pays the given rewards and ends as it is told."""

    observation_space = action_space = gymnasium.spaces.Discrete(1)

    def __init__(self, script):
        self.script = iter(script)

    def reset(self, *, seed=None, options=None):
        return 0, {}

    def step(self, action):
        return 0, *next(self.script), {}


def theirs(script):
    """What gymnasium's own wrapper makes of (reward, terminated, truncated)."""
    wrapped = gymnasium.wrappers.NormalizeReward(Paid(script), gamma=0.5)
    wrapped.reset()
    return [wrapped.step(0)[1] for _ in script]


def ours(script):
    transform = RewardTransform("scale", 1, 0.5)
    return [
        float(transform(np.array([r]), np.array([terminated or truncated]))[0]) for r, terminated, truncated in script
    ]


def scaled(rewards, returns):
    """r_t / std of the returns up to t; one prior set of mean 0 and variance 1 has weight 1e-4."""
    found = []
    for t, reward in enumerate(rewards, start=1):
        weight, seen = t + 1e-4, np.array(returns[:t])
        mean = seen.sum() / weight
        found.append(reward / np.sqrt(((seen**2).sum() + 1e-4) / weight - mean**2 + 1e-8))
    return found


def test_within_an_episode_scale_is_gymnasiums_normalize_reward():
    script = [(r, False, False) for r in (2.0, -1.0, 3.0, 0.5)]
    assert ours(script)[1:] == pytest.approx(theirs(script)[1:], rel=1e-6)
    assert ours(script)[1:] == pytest.approx(scaled((2.0, -1.0, 3.0, 0.5), (2.0, 0.0, 3.0, 2.0))[1:], rel=1e-6)


@pytest.mark.parametrize("terminated", [True, False])
def test_where_an_episode_ends_scale_is_not_gymnasiums(terminated):
    """Rewards 2, 4 (the end), 1, 3 at gamma .5. Here R is 2, 5 | 1, 3.5."""
    script = [(2.0, False, False), (4.0, terminated, not terminated), (1.0, False, False), (3.0, False, False)]
    # gymnasium: 2, then 4 alone, which goes on: 4/2 + 1 = 3, 4.5; a truncation forgets nothing: 2, 5, 3.5, 4.75
    returns = (2.0, 4.0, 3.0, 4.5) if terminated else (2.0, 5.0, 3.5, 4.75)
    rewards = [reward for reward, *_ in script]
    assert theirs(script)[1:] == pytest.approx(scaled(rewards, returns)[1:], rel=1e-6)
    assert ours(script)[1:] == pytest.approx(scaled(rewards, (2.0, 5.0, 1.0, 3.5))[1:], rel=1e-6)


def test_center_subtracts_the_mean_of_all_rewards_so_far():
    rewards, ended = stream()
    transform = RewardTransform("center", 3, 0.99)
    for t, (reward, end) in enumerate(zip(rewards, ended, strict=True)):
        # the weight 1e-4 of the starting mean 0 leaves a relative difference of at most 1e-4 / 3
        np.testing.assert_allclose(transform(reward, end), reward - rewards[: t + 1].mean(), atol=5e-4)


def test_center_follows_a_change_after_a_long_time():
    # after 2e5 samples 1/n is 5e-6, but the step stays 1e-4: in 3e4 further samples the mean covers 1 - e^-3 of a jump
    transform, nobody = RewardTransform("center", 10, 0.99), np.zeros(10, bool)
    for _ in range(20_000):
        transform(np.zeros(10), nobody)
    for _ in range(3_000):
        centred = transform(np.ones(10), nobody)
    assert centred[0] == pytest.approx(np.exp(-3.0), abs=0.002)


@pytest.mark.parametrize("kind", ["none", "clip", "scale", "center"])
def test_state_goes_on_where_it_was(kind):
    rewards, ended = stream()
    whole, first, second = (RewardTransform(kind, 3, 0.9) for _ in range(3))
    for t in range(100):
        whole(rewards[t], ended[t])
        first(rewards[t], ended[t])
    second.load_state_dict(first.state_dict())
    for t in range(100, 200):
        np.testing.assert_array_equal(whole(rewards[t], ended[t]), second(rewards[t], ended[t]))


def test_state_is_made_of_primitives():
    transform = RewardTransform("scale", 2, 0.9)
    transform(np.ones(2), np.zeros(2, bool))
    state = transform.state_dict()
    assert all(
        type(value) in (float, int) for value in [*state["returns"], *(v for k, v in state.items() if k != "returns")]
    )
