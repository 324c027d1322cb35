"""The image MDP against the paper's text, restated naively; its label law; its optimal values in closed form.

Images are told apart by their bytes (all 10,000 of the embedded set differ), so that the tests see what an agent sees
and nothing of the pool's state. Seeds are fixed; a law is refused where its chance is below 1e-6.
"""

from itertools import pairwise
from random import Random

import numpy as np
import pytest
from scipy import stats

from envs.datasets import Dataset, load_dataset
from envs.image_mdp import ImagePool, LabelLaw, balanced
from envs.tasks import Task, TaskSchedule, generator
from envs.vector import World

VARIANTS = ("true_label", "random_label", "sparse", "bandit")
CHANCE = 1e-6
DATA = load_dataset("fashion_mnist_test")
INDEX = {image.tobytes(): i for i, image in enumerate(DATA.images)}
TINY = Dataset(np.arange(12, dtype=np.uint8).reshape(12, 1, 1, 1).repeat(4, 2), np.arange(12) % 4, 4)


def which(observations):
    """Index of each image, found by its bytes."""
    return np.array([INDEX[image.tobytes()] for image in observations])


def task(labels, index=0):
    return Task(index, index, 0, labels, {})


def pool_of(variant, num_envs, seed=0, data=DATA, redraw=1.0):
    """A started pool, its first observations and the labels in force."""
    law = LabelLaw(data.labels, data.num_classes, variant, redraw)
    labels = law.draw(seed, 0)
    pool = ImagePool(data, variant, num_envs)
    pool.enter(np.arange(num_envs), task(labels))
    return pool, pool.start(seed)[0], labels


class NaiveWorld:
    """One environment in the paper's words: states are classes, the observation is an image of the state's class."""

    def __init__(self, variant, labels, num_classes, seed):
        self.variant, self.labels, self.random = variant, list(labels), Random(seed)
        self.states = range(num_classes)
        self.members = {state: [i for i, label in enumerate(self.labels) if label == state] for state in self.states}
        self.image = self.begin()

    def begin(self):
        if self.variant == "bandit":
            return self.random.randrange(len(self.labels))
        return self.random.choice(self.members[self.random.choice(self.states)])

    def reward(self, image, action):
        state = self.labels[image]
        if action != state:
            return 0.0
        if self.variant == "sparse":
            return 1.0 if state == self.states[-1] else 0.0
        return 1.0

    def step(self, action):
        reward, state = self.reward(self.image, action), self.labels[self.image]
        if self.variant == "sparse" and action == state:
            following = 0 if state == self.states[-1] else state + 1
            self.image = self.random.choice(self.members[following])
        else:
            self.image = self.begin()
        return self.image, reward


def half_right(labels, images, random):
    """The right action half of the time, else any action: every rule is met often in every state."""
    guess = random.integers(10, size=len(images))
    return np.where(random.random(len(images)) < 0.5, labels[images], guess)


def record(variant, num_envs, steps, seed):
    """Images before, actions, rewards, images after; each [steps, E]; and the labels."""
    pool, observations, labels = pool_of(variant, num_envs, seed)
    random, image, rows = np.random.default_rng(seed + 100), which(observations), []
    for _ in range(steps):
        actions = half_right(labels, image, random)
        outcome = pool.advance(actions)
        following = which(outcome.observations)
        assert outcome.rewards.dtype == np.float64 and not outcome.terminated.any() and outcome.truncated is None
        rows.append((image, actions, outcome.rewards, following))
        image = following
    return *(np.stack(column) for column in zip(*rows, strict=True)), labels


def fits(counts, probabilities):
    """Whether counts are plausible draws from the probabilities; a probability of 0 allows none."""
    counts, probabilities = np.asarray(counts), np.asarray(probabilities)
    assert not counts[probabilities == 0].any()
    kept = probabilities > 0
    return kept.sum() == 1 or stats.chisquare(counts[kept], counts.sum() * probabilities[kept]).pvalue > CHANCE


@pytest.mark.parametrize("variant", VARIANTS)
def test_rewards_and_laws_are_the_papers(variant):
    before, actions, rewards, after, labels = (x.reshape(-1) for x in record(variant, 16, 1500, seed=3))
    naive = NaiveWorld(variant, labels, 10, seed=0)
    expected = [naive.reward(image, action) for image, action in zip(before.tolist(), actions.tolist(), strict=True)]
    assert rewards.tolist() == expected

    uniform = np.bincount(labels, minlength=10) / len(labels) if variant == "bandit" else np.full(10, 0.1)
    for state in range(10):
        for right in (True, False):
            rows = (labels[before] == state) & ((actions == state) == right)
            jump = variant != "sparse" or not right
            law = uniform if jump else np.eye(10)[(state + 1) % 10]
            counts = np.bincount(labels[after[rows]], minlength=10)
            assert counts.sum() > 500 and fits(counts, law)
    for state in range(10):  # within its class every image is as likely as another
        members = np.flatnonzero(labels == state)
        seen = np.bincount(after, minlength=len(labels))[members]
        assert fits(seen, np.full(len(members), 1 / len(members)))


@pytest.mark.parametrize("variant", VARIANTS)
def test_naive_worlds_and_the_pool_meet_the_same_states(variant):
    """Two-sample comparison of (state, action right, next state) and of the rewards' sum, 12,000 steps each."""
    before, actions, rewards, after, labels = record(variant, 8, 1500, seed=5)
    tables, sums = [np.zeros((10, 2, 10)), np.zeros((10, 2, 10))], [rewards.sum(), 0.0]
    np.add.at(tables[0], (labels[before], (actions == labels[before]).astype(int), labels[after]), 1)
    random = np.random.default_rng(9)
    for seed in range(8):
        naive = NaiveWorld(variant, labels.tolist(), 10, seed)
        for _ in range(1500):
            image = naive.image
            action = half_right(labels, np.array([image]), random)[0]
            following, reward = naive.step(action)
            tables[1][labels[image], int(action == labels[image]), labels[following]] += 1
            sums[1] += reward
    rows = np.stack([table.reshape(-1) for table in tables])
    assert stats.chi2_contingency(rows[:, rows.sum(0) > 0]).pvalue > CHANCE
    assert abs(sums[0] - sums[1]) < 5 * np.sqrt(2 * 12_000) * 0.5


@pytest.mark.parametrize("variant", VARIANTS)
def test_first_states_are_uniform(variant):
    pool, observations, labels = pool_of(variant, 5000, seed=11)
    share = np.bincount(labels, minlength=10) / len(labels) if variant == "bandit" else np.full(10, 0.1)
    assert fits(np.bincount(labels[which(observations)], minlength=10), share)
    some = np.arange(0, 5000, 2)
    again, lives = pool.restart(some)
    assert lives is None and fits(np.bincount(labels[which(again)], minlength=10), share)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_seed_decides_everything(variant):
    runs = []
    for seed in (1, 1, 2):
        pool, observations, _ = pool_of(variant, 6, seed=0)
        observations = [pool.start(seed)[0]]
        for step in range(50):
            observations.append(pool.advance(np.full(6, step % 10)).observations)
        runs.append(np.stack(observations))
    assert np.array_equal(runs[0], runs[1]) and not np.array_equal(runs[0], runs[2])
    assert not np.array_equal(pool.start(None)[0], pool.start(None)[0])


def test_some_environments_are_stepped_and_the_others_stay():
    pool, first, labels = pool_of("true_label", 6, seed=4)
    ids = np.array([1, 4])
    outcome = pool.advance(labels[which(first[ids])], ids)
    assert outcome.observations.shape == (2, 1, 28, 28) and outcome.rewards.tolist() == [1.0, 1.0]
    assert outcome.terminated.shape == (2,) and outcome.infos == {}
    shown = first.copy()
    shown[ids] = outcome.observations
    right = labels[which(shown)]  # the images that are on show now decide the rewards of all
    assert pool.advance(right).rewards.tolist() == [1.0] * 6
    assert np.array_equal(shown[ids], outcome.observations)


def test_environments_in_different_tasks_at_once():
    pool, observations, first = pool_of("true_label", 4, seed=6)
    law = LabelLaw(DATA.labels, 10, "true_label", 1.0)
    labels = [first, law.draw(0, 1), law.draw(0, 2)]
    assert (labels[0] != labels[1]).mean() > 0.8
    in_force = [0, 0, 0, 0]
    for ids, index in (([1], 1), ([2], 2), ([0, 1], 2), ([3], 1), ([0, 1, 2, 3], 2), ([0], 0)):
        pool.enter(np.array(ids), task(labels[index].copy(), index))  # equal values, another array
        in_force = [index if i in ids else old for i, old in enumerate(in_force)]
        for _ in range(40):  # the first of them on the image of before the change: it carries over
            for off in (0, 1):
                right = [labels[k][i] for k, i in zip(in_force, which(observations), strict=True)]
                outcome = pool.advance((np.array(right) + off) % 10)
                assert outcome.rewards.tolist() == [1.0 - off] * 4
                observations = outcome.observations
        assert len(pool._kept) == len(set(in_force))


def test_classes_without_images_are_skipped():
    labels = np.array([0, 0, 0, 2, 2, 2, 2, 2, 2, 3, 3, 3])  # nothing is a 1
    pool = ImagePool(TINY, "sparse", 2000)
    pool.enter(np.arange(2000), task(labels))
    observations, _ = pool.start(1)
    first = labels[observations[:, 0, 0, 0]]
    assert fits(np.bincount(first, minlength=4), np.array([1, 0, 1, 1]) / 3)
    outcome = pool.advance(first)
    following = labels[outcome.observations[:, 0, 0, 0]]
    assert {(a, b) for a, b in zip(first.tolist(), following.tolist(), strict=True)} == {(0, 2), (2, 3), (3, 0)}
    assert np.array_equal(outcome.rewards, first == 3)
    wrong = labels[pool.advance((following + 1) % 4).observations[:, 0, 0, 0]]
    assert fits(np.bincount(wrong, minlength=4), np.array([1, 0, 1, 1]) / 3)


@pytest.mark.parametrize("variant", VARIANTS)
def test_classes_of_unequal_size(variant):
    """The bandit draws every image alike; elsewhere every class is, and within it every image."""
    labels = np.array([0, 0, 0, 0, 0, 0, 1, 1, 2, 2, 3, 3])
    share = np.full(12, 1 / 12) if variant == "bandit" else 1 / 4 / np.bincount(labels)[labels]
    pool = ImagePool(TINY, variant, 20_000)
    pool.enter(np.arange(20_000), task(labels))
    first = pool.start(2)[0][:, 0, 0, 0]
    after = pool.advance((labels[first] + 1) % 4).observations[:, 0, 0, 0]
    for shown in (first, after):
        assert fits(np.bincount(shown, minlength=12), share)


def test_a_balanced_part_takes_the_first_images_of_each_class():
    part = balanced(DATA, 503)
    counts = np.bincount(part.labels)
    assert sorted(counts) == [50] * 7 + [51] * 3 and part.num_classes == 10
    members = [np.flatnonzero(DATA.labels == k)[: counts[k]] for k in range(10)]
    expected = np.sort(np.concatenate(members))
    assert np.array_equal(part.images, DATA.images[expected]) and np.array_equal(part.labels, DATA.labels[expected])
    assert balanced(DATA, 0) is DATA
    for number in (9, 10_001, -1):
        with pytest.raises(ValueError, match=f"image.num_images = {number}: must be between 10 and 10000"):
            balanced(DATA, number)


def test_observations_are_fresh_and_in_their_space():
    pool, first, _ = pool_of("bandit", 3)
    kept = first.copy()
    outcome = pool.advance(np.zeros(3, dtype=np.int32))
    assert np.array_equal(first, kept) and not np.shares_memory(outcome.observations, DATA.images)
    assert pool.single_observation_space.contains(outcome.observations[0]) and pool.single_action_space.n == 10


def test_rendered_images_are_the_observations_enlarged():
    pool, observations, _ = pool_of("true_label", 2)
    pictures = pool.render()
    assert len(pictures) == 2 and pictures[0].shape == (280, 280, 3) and pictures[0].dtype == np.uint8
    assert np.array_equal(pictures[1][5::10, 5::10, 2], observations[1, 0])
    colours = Dataset(np.random.default_rng(0).integers(256, size=(4, 3, 32, 30), dtype=np.uint8), np.arange(4), 4)
    pool = ImagePool(colours, "bandit", 1)
    observations, _ = pool.start(0)
    (picture,) = pool.render()
    assert picture.shape == (288, 270, 3) and np.array_equal(picture[::9, ::9], np.moveaxis(observations[0], 0, 2))
    pool.close()


def test_in_a_world_time_limits_make_the_returns():
    """Right actions alone: every game of 100 steps returns 100."""
    pool, _, labels = pool_of("true_label", 4)
    world = World(pool, 0, np.asarray, pool.single_observation_space, limit=100)
    observations, _ = world.reset()
    for step in range(1, 251):
        observations, rewards, terminated, truncated, infos = world.step(labels[which(observations)])
        assert rewards.all() and not terminated.any() and truncated.all() == (step % 100 == 0)
        if truncated.any():
            assert infos["episode"]["r"].tolist() == [100.0] * 4
            assert not np.array_equal(infos["final_obs"], observations)


@pytest.mark.parametrize("redraw", [0.01, 0.3, 1.0])
@pytest.mark.parametrize("variant", ["true_label", "random_label"])
def test_redrawn_labels_follow_their_law(variant, redraw):
    law = LabelLaw(DATA.labels, 10, variant, redraw)
    tasks = [law.draw(7, k) for k in range(21)]
    assert (variant == "random_label") != np.array_equal(tasks[0], DATA.labels)
    if variant == "random_label":
        assert fits(np.bincount(tasks[0], minlength=10), np.full(10, 0.1))
    drawn = round(redraw * 10_000)
    changed = np.array([(old != new).sum() for old, new in pairwise(tasks)])
    assert (changed <= drawn).all()
    assert stats.binomtest(int(changed.sum()), 20 * drawn, 0.9).pvalue > CHANCE  # one in ten redraws the old label
    pairs = np.zeros((10, 10))
    for old, new in pairwise(tasks):
        np.add.at(pairs, (old[old != new], new[old != new]), 1)
    for label in range(10):  # whatever a label was, the new one is any other
        assert fits(pairs[label], (1 - np.eye(10)[label]) / 9)
    ever = np.zeros(10_000, dtype=int)
    for old, new in pairwise(tasks):
        ever += old != new
    # Every image is as likely to be chosen: the counts over images spread as binomial ones do.
    share = 0.9 * redraw
    expected = 10_000 * stats.binom.pmf(np.arange(21), 20, share)
    cells = expected > 20
    counts = np.bincount(ever, minlength=21)
    assert fits([*counts[cells], counts[~cells].sum()], [*(expected[cells] / 1e4), 1 - expected[cells].sum() / 1e4])


def test_tasks_depend_on_seed_and_number_alone():
    law, other = (LabelLaw(DATA.labels, 10, "random_label", 0.2) for _ in range(2))
    forwards = [law.draw(3, k).copy() for k in range(6)]
    assert np.array_equal(other.draw(3, 5), forwards[5]) and np.array_equal(other.draw(3, 2), forwards[2])
    assert np.array_equal(other.draw(3, 4), forwards[4]) and np.array_equal(other.draw(3, 3), forwards[3])
    assert not np.array_equal(other.draw(4, 4), forwards[4]) and np.array_equal(other.draw(3, 4), forwards[4])
    assert forwards[5].dtype == np.int64 and not law.draw(3, 5).flags.writeable
    random = generator(3, 5)  # each task's own random numbers
    by_hand, chosen = forwards[4].copy(), random.choice(10_000, 2000, replace=False)
    by_hand[chosen] = random.integers(10, size=2000)
    assert np.array_equal(by_hand, forwards[5])
    sequences = []
    for num_envs in (1, 16):
        schedule = TaskSchedule(law, period=160, num_envs=num_envs, at="now", seed=3)
        seen = [schedule.current.parameters["labels"]]
        for _ in range(640 // num_envs):
            if schedule.advance():
                seen.append(schedule.current.parameters["labels"])
        sequences.append(seen)
    assert sequences[0] == sequences[1] and len(set(sequences[0])) == 5


def test_labels_are_described_by_what_they_are():
    law = LabelLaw(DATA.labels, 10, "true_label", 0.5)
    assert law.describe(law.draw(0, 0))["true_share"] == 1.0
    described = law.describe(law.draw(0, 1))
    assert described["true_share"] == np.mean(law.draw(0, 1) == DATA.labels) and 0.53 < described["true_share"] < 0.57
    assert described == law.describe(law.draw(0, 1).copy()) != law.describe(law.draw(1, 1))
    assert law.distinct is None and not law.listed and not law.gradual
    with pytest.raises(ValueError, match="image.redraw = 1e-05: redraws none of 10000 labels"):
        LabelLaw(DATA.labels, 10, "true_label", 1e-5)
    with pytest.raises(NotImplementedError, match="a jump"):
        law.between(law.draw(0, 0), law.draw(0, 1), 0.5)


def optimal_values(variant, labels, gamma):
    """Value iteration over the 10,000 images as states: values [N], to about 1e-8."""
    states, values = np.arange(10), np.zeros(len(labels))
    sizes = np.bincount(labels, minlength=10)
    while True:
        of_class = np.bincount(labels, values, minlength=10) / sizes
        anywhere = values.mean() if variant == "bandit" else of_class.mean()
        follows = of_class[(states + 1) % 10] if variant == "sparse" else np.full(10, anywhere)
        reward = (states == 9).astype(float) if variant == "sparse" else np.ones(10)
        new = np.maximum(reward + gamma * follows, gamma * anywhere)[labels]  # the right action, or any other
        if np.abs(new - values).max() < 1e-9 * (1 - gamma):
            return new
        values = new


@pytest.mark.parametrize("gamma", [0.9, 0.99])
@pytest.mark.parametrize("variant", ["bandit", "true_label", "random_label"])
def test_optimal_value_is_one_over_one_minus_gamma(variant, gamma):
    labels = LabelLaw(DATA.labels, 10, variant, 1.0).draw(1, 0)
    assert np.abs(optimal_values(variant, labels, gamma) - 1 / (1 - gamma)).max() < 1e-6


def sparse_values(gamma):
    """Optimal values [10] of the sparse variant, and the class from which on the right action is the better one.

    A jump (a wrong action) is worth W = gamma * m from anywhere, with m the mean of the ten values. Walking on from
    class s reaches class 9 after 9 - s steps: gamma ** (9 - s) * V_9, which grows with s. So there is a c such that the
    agent jumps from the classes below c and walks from c on:

        V_s = W for s < c,    V_s = gamma ** (9 - s) * V_9 for s >= c.

    In class 9 the right action pays 1 and leads to class 0, which with c >= 1 is worth W: V_9 = 1 + gamma * W. Then

        W = gamma / 10 * (c * W + V_9 * S),    S = sum of gamma ** j for j = 0 .. 9 - c
        W = gamma * S / (10 - gamma * c - gamma ** 2 * S).

    With c = 0 nobody jumps: V_9 = 1 + gamma * gamma ** 9 * V_9 = 1 / (1 - gamma ** 10). The best c gives the greatest
    values in every state. At gamma = .9 and .99 it is 6: from class 5 the walk takes 4 steps, a jump is worth more.
    """
    candidates = []
    for c in range(10):
        walked = sum(gamma**j for j in range(10 - c))
        jump = gamma * walked / (10 - gamma * c - gamma**2 * walked)
        last = 1 + gamma * jump if c else 1 / (1 - gamma**10)
        candidates.append(([jump if s < c else gamma ** (9 - s) * last for s in range(10)], c))
    values, c = max(candidates, key=lambda candidate: sum(candidate[0]))
    return np.array(values), c


@pytest.mark.parametrize(("gamma", "first_to_walk"), [(0.5, 7), (0.9, 6), (0.99, 6)])
def test_optimal_values_of_the_sparse_variant(gamma, first_to_walk):
    values, c = sparse_values(gamma)
    found = optimal_values("sparse", DATA.labels, gamma)
    assert np.abs(found - values[DATA.labels]).max() < 1e-6
    assert c == first_to_walk


@pytest.mark.parametrize(("variant", "gamma"), [("sparse", 0.9), ("sparse", 0.5), ("bandit", 0.9)])
def test_the_optimal_policy_earns_the_optimal_values(variant, gamma):
    """Discounted returns of 4,000 games of 200 steps, by first class, within 5 standard errors."""
    values, c = sparse_values(gamma) if variant == "sparse" else (np.full(10, 1 / (1 - gamma)), 0)
    pool, observations, labels = pool_of(variant, 4000, seed=8)
    state = first = labels[which(observations)]
    returns = np.zeros(4000)
    for t in range(200):
        outcome = pool.advance(np.where(state >= c, state, (state + 1) % 10))
        returns += gamma**t * outcome.rewards
        state = labels[which(outcome.observations)]
    for s in range(10):
        of_state = returns[first == s]
        error = of_state.std(ddof=1) / np.sqrt(len(of_state))
        assert abs(of_state.mean() - values[s]) < 5 * error + 1e-8
