"""What in a nested state is not finite, by name."""

import numpy as np
import pytest
import torch
from torch import nn

from agents.config import AdamConfig
from agents.finite import names_in_words, not_finite
from agents.optimization import Optimization
from tests.agents.helpers import gradient_step, needs_cuda

NAN, INF = float("nan"), float("inf")


def filled(size, place, value, dtype=torch.float32):
    tensor = torch.ones(size, dtype=dtype)
    tensor[place] = value
    return tensor


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("place", [0, 70_000, -1])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_cuda)])
def test_one_value_in_a_large_tensor_is_found_by_name(value, dtype, place, device):
    network = {"weight": torch.ones(5, dtype=dtype), "bias": filled(100_000, place, value, dtype)}
    assert not_finite({"network": {name: tensor.to(device) for name, tensor in network.items()}}) == ["network.bias"]


def test_names_come_in_the_order_of_the_state_whatever_their_type():
    state = {
        "a": [1.0, NAN, {"x": torch.tensor(INF)}],
        "b": torch.tensor([1, 2]),
        "c": np.array([0.0, INF]),
        "d": filled(3, 1, NAN, torch.float64),
        "e": np.float32(INF),
        "f": -INF,
    }
    assert not_finite(state) == ["a.1", "a.2.x", "c", "d", "e", "f"]


def test_what_is_large_empty_whole_or_no_number_is_fine():
    state = {
        "large": torch.tensor([3.4e38, -3.4e38]),
        "larger": torch.tensor([1e300], dtype=torch.float64),
        "empty": torch.ones(0),
        "whole": torch.tensor([2**62]),
        "flag": torch.tensor(True),
        "text": "nan",
        "nothing": None,
        "count": 10**400,
    }
    assert not_finite(state) == []


def test_adams_moments_are_named_by_the_parameter_that_they_belong_to():
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    optimization = Optimization(network.parameters(), 1e-3, AdamConfig(), 0.0, network)
    gradient_step(optimization, network(torch.ones(1, 2)).sum())
    optimization.adam.state[network[1].weight]["exp_avg_sq"][0, 1] = INF
    assert not_finite({"optimization": optimization.state_dict()}) == ["Adam's exp_avg_sq of 1.weight"]


def test_a_sentence_names_a_few_and_counts_the_rest():
    assert names_in_words(["a"]) == "a"
    assert names_in_words(["a", "b", "c"]) == "a, b, c"
    assert names_in_words(["a", "b", "c", "d", "e"]) == "a, b, c and 2 more"
