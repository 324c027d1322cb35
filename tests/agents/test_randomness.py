"""Named generators: equal names equal streams, different names independent ones."""

import itertools

import numpy as np
import pytest
import torch

from agents.randomness import Generators
from tests.agents.helpers import global_random_states

NAMES = ("init", "replay", "exploration", "minibatches", "world", "surgery", "probes")


def numpy_draws(seed, name):
    return Generators(seed).numpy(name).standard_normal(4000)


def torch_draws(seed, name):
    return torch.randn(4000, generator=Generators(seed).torch(name), dtype=torch.float64).numpy()


@pytest.mark.parametrize("draws", [numpy_draws, torch_draws])
def test_the_same_pair_gives_the_same_stream(draws):
    assert np.array_equal(draws(3, "replay"), draws(3, "replay"))


def test_a_stream_does_not_depend_on_what_else_was_made():
    generators = Generators(3)
    for name in NAMES:
        generators.torch(name), generators.numpy(name), generators.integer(name)
    assert np.array_equal(generators.numpy("replay").standard_normal(4000), numpy_draws(3, "replay"))


@pytest.mark.parametrize("draws", [numpy_draws, torch_draws])
def test_different_pairs_give_uncorrelated_streams(draws):
    streams = [draws(seed, name) for seed in (0, 1, 2) for name in NAMES]
    # 210 correlations of 4,000 independent normals have a std of 1/sqrt(4000) = .0158; five of them are .079
    for first, second in itertools.combinations(streams, 2):
        assert abs(np.corrcoef(first, second)[0, 1]) < 5 / np.sqrt(4000)


def test_integers_are_distinct_and_fit_in_31_bits():
    integers = [Generators(seed).integer(name) for seed in range(50) for name in NAMES]
    assert len(set(integers)) == len(integers)
    assert all(0 <= i < 2**31 for i in integers)


def test_integers_are_repeatable_numbers():
    assert type(Generators(0).integer("world")) is int
    assert Generators(0).integer("world") == Generators(0).integer("world")


def test_the_global_generators_are_not_touched():
    before = global_random_states()
    torch_draws(0, "init"), numpy_draws(0, "init"), Generators(0).integer("init")
    assert global_random_states() == before
