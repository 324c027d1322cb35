"""Churn against loops over probabilities and torch's own divergences in float64."""

import math

import numpy as np
import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

from plasticity_probes import greedy_action_churn, policy_churn, value_churn


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(1,), (5, 3), (4, 6, 51)])
def test_value_churn_against_numpy(shape):
    before, after = draw(*shape), draw(*shape, seed=1)
    expected = np.abs(after.double().numpy() - before.double().numpy()).mean()
    assert value_churn(before, after.requires_grad_()).item() == pytest.approx(expected, rel=1e-6)
    assert not value_churn(before, after).requires_grad
    assert value_churn(before, before).item() == 0


def test_greedy_actions_that_change():
    before = torch.tensor([[1.0, 2.0], [3.0, 0.0], [5.0, 5.0], [0.0, 1.0]])
    after = torch.tensor([[2.0, 1.0], [4.0, 0.0], [5.0, 5.0], [0.0, 9.0]])
    assert greedy_action_churn(before, after).item() == 0.25


@pytest.mark.parametrize(("states", "actions"), [(1, 1), (7, 2), (20, 18)])
def test_categorical_divergence_against_loops(states, actions):
    before, after = 3 * draw(states, actions), 3 * draw(states, actions, seed=1)
    total = 0.0
    for row_before, row_after in zip(before.double().tolist(), after.double().tolist(), strict=True):
        p = [math.exp(x) / sum(map(math.exp, row_before)) for x in row_before]
        q = [math.exp(x) / sum(map(math.exp, row_after)) for x in row_after]
        total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    assert policy_churn(before, after).item() == pytest.approx(total / states, rel=1e-5, abs=1e-7)
    assert policy_churn(before, before + 3).item() == pytest.approx(0, abs=1e-6)  # a constant changes no probability


def test_a_masked_action_counts_as_nothing():
    before = torch.tensor([[0.0, 0.0, -torch.inf]])
    after = torch.tensor([[0.0, math.log(3.0), -torch.inf]])
    assert policy_churn(before, after).item() == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3), rel=1e-6)


@pytest.mark.parametrize("per_state", [False, True])
def test_gaussian_divergence_against_torch(per_state):
    shape = (9, 4) if per_state else (4,)
    before, after = (draw(9, 4), draw(*shape, seed=1)), (draw(9, 4, seed=2), draw(*shape, seed=3))
    first, second = (
        Independent(Normal(mean.double(), log_std.double().exp().expand(9, 4)), 1) for mean, log_std in (before, after)
    )
    expected = kl_divergence(first, second).mean().item()
    assert policy_churn(before, after, "continuous").item() == pytest.approx(expected, rel=1e-5)


def test_a_small_change_of_a_gaussian_keeps_its_digits():
    mean, log_std = torch.zeros(1, 1), torch.zeros(1)
    change = 2.0**-10
    churn = policy_churn((mean, log_std), (mean + change, log_std), "continuous")
    assert churn.item() == pytest.approx(change**2 / 2, rel=1e-5)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="q of shapes"):
        value_churn(torch.zeros(2, 1), torch.zeros(2))
    with pytest.raises(ValueError, match="q_before of shape"):
        greedy_action_churn(torch.zeros(2), torch.zeros(2))
    with pytest.raises(ValueError, match="logits of shape"):
        policy_churn(torch.zeros(2), torch.zeros(2))
    with pytest.raises(ValueError, match="log_std of shape"):
        policy_churn((torch.zeros(2, 3), torch.zeros(2)), (torch.zeros(2, 3), torch.zeros(2)), "continuous")
    with pytest.raises(ValueError, match="kind = 'beta'"):
        policy_churn(torch.zeros(2, 2), torch.zeros(2, 2), "beta")
