"""Named generators: equal names equal streams, different names independent ones."""

import io
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
        generators.torch(f"torch {name}"), generators.numpy(f"numpy {name}"), generators.integer(name)
    assert np.array_equal(generators.numpy("replay").standard_normal(4000), numpy_draws(3, "replay"))


@pytest.mark.parametrize("first", ["torch", "numpy"])
@pytest.mark.parametrize("second", ["torch", "numpy"])
def test_a_name_asked_for_twice_is_an_error(first, second):
    generators = Generators(0)
    getattr(generators, first)("replay")
    with pytest.raises(ValueError, match="generator 'replay': has a consumer already"):
        getattr(generators, second)("replay")
    getattr(generators.child("evaluation"), second)("replay")


def test_a_childs_streams_are_neither_its_parents_nor_anothers():
    streams = [Generators(0), Generators(0).child("a"), Generators(0).child("b"), Generators(0).child("a").child("a")]
    draws = [generators.numpy("replay").standard_normal(4000) for generators in streams]
    for first, second in itertools.combinations(draws, 2):
        assert abs(np.corrcoef(first, second)[0, 1]) < 5 / np.sqrt(4000)
    assert np.array_equal(Generators(0).child("a").numpy("replay").standard_normal(4000), draws[1])


def test_every_stream_goes_on_where_its_state_stood():
    def drawn(generators):
        return generators.numpy("replay"), generators.torch("init")

    first, second = Generators(1), Generators(2)
    (replay, init), (other_replay, other_init) = drawn(first), drawn(second)
    replay.random(7), torch.rand(7, generator=init)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second.load_state_dict(torch.load(file, weights_only=True))
    assert np.array_equal(replay.random(5), other_replay.random(5))
    assert torch.equal(torch.rand(5, generator=init), torch.rand(5, generator=other_init))
    second.torch("surgery")
    with pytest.raises(ValueError, match="one alone has surgery"):
        second.load_state_dict(first.state_dict())


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
