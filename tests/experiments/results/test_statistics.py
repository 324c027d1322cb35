"""Each statistic beside SciPy's, a slow oracle, or numbers worked out by hand."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from experiments.results.statistics import (
    Interval,
    band,
    bootstrap,
    holm,
    improvement,
    iqm,
    least_p,
    mean,
    of_seeds,
    sign_flips,
    wilson,
    worst_quarter,
)

RNG = np.random.default_rng(7)


@pytest.mark.parametrize("count", range(1, 14))
def test_the_interquartile_mean_is_scipys_trimmed_mean(count):
    values = RNG.normal(size=(3, count))
    assert iqm(values) == pytest.approx(stats.trim_mean(values, 0.25, axis=-1))


def test_the_interquartile_mean_by_hand():
    assert iqm(np.array([100.0, 1, 2, 3, -50])) == 2.0  # 5 // 4 = 1 is cut at each end
    assert iqm(np.array([1.0, 2, 3])) == 2.0  # nothing is cut
    assert iqm(np.array([8.0, 1, 2, 7, 3, 6, 4, 5])) == 4.5  # 3, 4, 5, 6


@pytest.mark.parametrize(
    ("ours", "theirs"), [(mean, np.mean), (iqm, lambda x, axis=-1: stats.trim_mean(x, 0.25, axis=axis))]
)
def test_the_bootstrap_is_scipys_percentile_bootstrap(ours, theirs):
    values = RNG.normal(size=9)
    scipys = stats.bootstrap(
        (values,), theirs, n_resamples=3_000, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    found = bootstrap([values], ours, resamples=3_000)
    assert found == pytest.approx((ours(values), scipys.low, scipys.high), rel=1e-12)


def test_strata_are_drawn_from_separately():
    worlds = [RNG.normal(size=6), 50 + RNG.normal(size=4)]

    def scipys_statistic(a, b, axis=-1):
        return stats.trim_mean(np.concatenate([a, b], axis=axis), 0.25, axis=axis)

    scipys = stats.bootstrap(
        worlds, scipys_statistic, n_resamples=3_000, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    assert bootstrap(worlds, iqm, resamples=3_000)[1:] == pytest.approx((scipys.low, scipys.high), rel=1e-12)
    narrow = bootstrap([np.full(5, 0.0), np.full(5, 1.0)], mean)
    assert narrow == (0.5, 0.5, 0.5)  # between strata there is nothing to draw


def test_a_runs_tasks_are_drawn_together():
    by_seed = np.array([0.0, 1.0])
    scores = np.stack([by_seed, by_seed], axis=-1)  # two tasks that say the same
    found = bootstrap([scores], mean, resamples=4_000)
    assert found == (0.5, 0.0, 1.0)  # a quarter of the draws holds one seed alone
    values = [np.mean([scores[i] for i in drawn]) for drawn in itertools.product(range(2), repeat=2)]
    assert (found.low, found.high) == tuple(np.percentile(values, [2.5, 97.5], method="inverted_cdf"))


def test_the_bootstrap_is_near_the_exact_one():
    values = np.array([3.0, 1.0, 4.0, 1.5, 9.0])
    exact = [stats.trim_mean(drawn, 0.25) for drawn in itertools.product(values, repeat=5)]
    found = bootstrap([values], iqm, resamples=40_000)
    assert found[1:] == pytest.approx(np.percentile(exact, [2.5, 97.5]), abs=0.05)


def test_the_mean_of_seeds():
    assert of_seeds([0.5, 0.5, 0.5]) == (0.5, 0.5, 0.5)
    found = of_seeds([0.0, 1.0] * 50)  # the normal interval: .5 +- 1.96 * .05
    assert found.value == 0.5
    assert found[1:] == pytest.approx((0.402, 0.598), abs=0.015)
    assert of_seeds([1.0, 2.0, 4.0]) == of_seeds(iter([1.0, 2.0, 4.0]))


def test_one_seed_has_no_interval():
    found = bootstrap([np.array([3.0])])
    assert found.value == 3.0 and math.isnan(found.low) and math.isnan(found.high)
    assert all(map(math.isnan, bootstrap([])))


def test_a_band_is_the_bootstrap_of_each_bin():
    rows = RNG.normal(size=(6, 3))
    rows[:3, 2] = np.nan  # half of the seeds have no value there
    means, lows, highs = band(rows)
    for place in (0, 1):
        whole = stats.bootstrap((rows[:, place],), np.mean, n_resamples=40_000, method="percentile", rng=RNG)
        assert means[place] == pytest.approx(rows[:, place].mean())
        assert (lows[place], highs[place]) == pytest.approx(whole.confidence_interval, abs=0.06)
    assert means[2] == pytest.approx(rows[3:, 2].mean()) and lows[2] < means[2] < highs[2]
    one = band(np.array([[1.0, np.nan]]))
    assert one[0][0] == 1.0 and np.isnan(one[0][1]) and np.isnan(one[1:]).all()


def test_many_seeds_are_drawn_in_pieces(monkeypatch):
    values = RNG.normal(size=(8, 3))
    whole = bootstrap([values], iqm, resamples=500)
    monkeypatch.setattr("experiments.results.statistics.AT_A_TIME", 100)
    assert bootstrap([values], iqm, resamples=500) == whole


@pytest.mark.parametrize(("successes", "count"), [(0, 5), (1, 5), (5, 5), (3, 10), (10, 10), (37, 100)])
def test_the_share_is_scipys_wilson_interval(successes, count):
    scipys = stats.binomtest(successes, count).proportion_ci(method="wilson")
    assert wilson(successes, count) == pytest.approx((successes / count, scipys.low, scipys.high), abs=1e-12)


def test_the_share_by_hand():
    # 1 of 4: (.25 + 3.8415/8 -+ 1.95996 sqrt(.25 * .75 / 4 + 3.8415/64)) / (1 + 3.8415/4)
    assert wilson(1, 4) == pytest.approx((0.25, 0.0456, 0.6994), abs=5e-5)
    assert all(map(math.isnan, wilson(0, 0)))


@pytest.mark.parametrize("count", [1, 2, 5, 10, 12])
def test_sign_flips_are_scipys_exact_permutations(count):
    differences = RNG.normal(0.4, 1.0, size=count)
    if count == 1:  # which SciPy refuses
        assert sign_flips(differences) == 1.0
        return
    scipys = stats.permutation_test(
        (differences, np.zeros(count)), lambda a, b: np.mean(a - b), permutation_type="samples", n_resamples=np.inf
    )
    assert sign_flips(differences) == pytest.approx(scipys.pvalue, rel=1e-12)


def test_sign_flips_by_hand():
    assert sign_flips([1.0, 2.0, 3.0]) == 2 / 8  # all of one sign: itself and its mirror image
    assert sign_flips([1.0, 2.0, -3.0]) == 1.0  # a sum of 0
    assert sign_flips([1.0, 2.0, -0.5]) == 4 / 8  # |sums| 2.5, 3.5, 0.5, 1.5, twice each
    assert sign_flips([0.0, 0.0]) == 1.0
    assert math.isnan(sign_flips([]))


def test_more_pairs_than_can_be_tried_are_drawn():
    differences = RNG.normal(0.5, 1.0, size=14)
    signs = np.array(list(itertools.product((-1, 1), repeat=14)))
    exact = np.mean(np.abs(signs @ differences) >= abs(differences.sum()) - 1e-12)
    assert sign_flips(differences) == pytest.approx(exact, abs=4 * math.sqrt(exact / 100_000))
    assert sign_flips(np.ones(40)) == 1 / 100_001  # never 0


def test_the_least_p():
    for pairs in (1, 3, 5, 10, 12):
        assert least_p(pairs) == sign_flips(np.ones(pairs))
    assert least_p(10) == 2 / 1024
    assert least_p(13) == 1 / 100_001
    assert math.isnan(least_p(0))


def test_holm_by_hand():
    # 4 tests: .01 * 4, .02 * 3, .03 * 2 (not below the one before), .5 * 1
    assert holm([0.03, 0.01, 0.5, 0.02]) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    with_nan = holm([0.02, float("nan"), 0.04])
    assert with_nan[0] == 0.04 and math.isnan(with_nan[1]) and with_nan[2] == 0.04
    assert holm([]) == []


def test_holm_rejects_what_the_step_down_procedure_rejects():
    for _ in range(50):
        p_values = RNG.uniform(size=6) ** 3
        rejected, order = set(), np.argsort(p_values)
        for rank, place in enumerate(order):  # as in Holm 1979: stop at the first that is not small enough
            if p_values[place] > 0.05 / (6 - rank):
                break
            rejected.add(place)
        assert {place for place, p in enumerate(holm(p_values)) if p <= 0.05} == rejected


def test_the_probability_of_improvement_is_mann_whitneys():
    ours, theirs = np.array([1.0, 3.0, 3.0, 7.0]), np.array([0.0, 3.0, 5.0])
    expected = stats.mannwhitneyu(ours, theirs).statistic / 12
    assert improvement([ours], [theirs]).value == pytest.approx(expected)
    found = improvement([ours, np.array([1.0, 1.0])], [theirs, np.array([0.0, 0.0])])
    assert found.value == pytest.approx((expected + 1) / 2)  # the mean of the worlds'
    assert 0 <= found.low <= found.value <= found.high <= 1
    assert all(map(math.isnan, improvement([np.array([])], [theirs])))


def test_the_worst_quarter():
    assert worst_quarter([4, 1, 2, 3, 8, 7, 6, 5]) == 1.5
    assert worst_quarter([4, 1, 2, 3, 8, 7, 6, 5], lower_is_worse=False) == 7.5
    assert worst_quarter([4, 1]) == 1


def test_an_interval_is_a_tuple():
    assert Interval(1.0, 0.5, 2.0) == (1.0, 0.5, 2.0)
