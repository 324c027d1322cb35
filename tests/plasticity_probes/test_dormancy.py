"""Unit criteria against NumPy loops in float64 and layers whose answer is known."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plasticity_probes import (
    dead_fraction,
    dead_units,
    dormant_fraction,
    dormant_units,
    inactive_fraction,
    inactive_units,
    linearized_fraction,
    linearized_units,
    pooled_fraction,
    preactivation_statistics,
    unit_scores,
)

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))]
SHAPES = [(1, 1), (7, 5), (64, 33), (300, 2), (2, 3, 4, 5), (8, 16, 1, 1), (3, 4, 6, 2)]


def draw(shape: tuple[int, ...], seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def samples_by_unit(tensor: torch.Tensor) -> list[list[float]]:
    """Every unit's samples as a plain list; a channel's come from all positions."""
    array = tensor.detach().cpu().double().numpy()
    units = range(array.shape[1])
    if array.ndim == 2:
        return [[array[n, u] for n in range(len(array))] for u in units]
    n, _, height, width = array.shape
    return [[array[i, u, y, x] for i in range(n) for y in range(height) for x in range(width)] for u in units]


def mixed_layer(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """ReLU activations among which some units are dead, some nearly so, some faint."""
    values = draw(shape, seed).relu()
    units = shape[1]
    for unit in range(units):
        if unit % 4 == 1:
            values[:, unit] = 0
        elif unit % 4 == 2:
            values[:, unit] *= 0.02
        elif unit % 4 == 3:
            values[1:, unit] = 0
    return values


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("device", DEVICES)
def test_scores_against_loops(shape, device):
    values = mixed_layer(shape, 1).to(device)
    sizes = [sum(abs(v) for v in unit) / len(unit) for unit in samples_by_unit(values)]
    average = sum(sizes) / len(sizes)
    expected = [size / average if average else 0.0 for size in sizes]
    scores = unit_scores(values)
    assert scores.shape == (shape[1],) and scores.dtype == torch.float32 and scores.device == values.device
    np.testing.assert_allclose(scores.cpu().numpy(), expected, rtol=2e-6)
    for tau in (0.0, 0.025, 0.1):
        dormant = [score <= tau for score in expected]
        assert dormant_units(values, tau).tolist() == dormant
        assert dormant_fraction(values, tau).item() == pytest.approx(np.mean(dormant))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("device", DEVICES)
def test_dead_inactive_and_linearised_against_loops(shape, device):
    values = mixed_layer(shape, 2).to(device)
    units = samples_by_unit(values)
    assert dead_units(values).tolist() == [all(v == 0 for v in unit) for unit in units]
    assert dead_fraction(values).item() == pytest.approx(np.mean([not np.any(unit) for unit in units]))
    for threshold in (0.0, 0.01, 0.2):
        inactive = [sum(v != 0 for v in unit) <= threshold * len(unit) for unit in units]
        assert inactive_units(values, threshold).tolist() == inactive
        assert inactive_fraction(values, threshold).item() == pytest.approx(np.mean(inactive))
    preactivations = draw(shape, 3).to(device)
    preactivations[:, ::3] = preactivations[:, ::3].abs() + 1e-6
    preactivations[:, 1::3] = 5 + 0.02 * preactivations[:, 1::3]
    units = samples_by_unit(preactivations)
    assert linearized_units(preactivations).tolist() == [min(unit) > 0 for unit in units]
    flat = [np.var(unit) < 1e-3 for unit in units]
    assert linearized_units(preactivations, "smooth").tolist() == flat
    assert linearized_fraction(preactivations, "smooth").item() == pytest.approx(np.mean(flat))
    still = [np.std(unit) < 1e-3 for unit in units]
    assert dead_units(preactivations, "tanh").tolist() == still
    assert linearized_units(preactivations, "smooth", threshold=1e-6).tolist() == still


@pytest.mark.parametrize("shape", [(50, 10), (6, 10, 3, 3)])
def test_k_dead_units_of_ten(shape):
    for k in range(11):
        values = draw(shape).abs() + 0.1
        values[:, :k] = 0
        for fraction in (dormant_fraction(values), dead_fraction(values), inactive_fraction(values)):
            assert fraction.item() == pytest.approx(k / 10)
        assert linearized_fraction(values).item() == pytest.approx(1 - k / 10)


def test_a_layer_that_is_zero():
    values = torch.zeros(4, 3)
    assert unit_scores(values).tolist() == [0, 0, 0]
    assert [f(values).item() for f in (dormant_fraction, dead_fraction, inactive_fraction)] == [1, 1, 1]
    assert dormant_fraction(values, 0.0).item() == 1
    assert linearized_fraction(values).item() == 0  # 0 is not above 0


def test_a_score_at_tau_is_dormant():
    values = torch.tensor([[1.0, -3.0], [-1.0, 3.0]])  # sizes 1 and 3, scores 1/2 and 3/2
    assert unit_scores(values).tolist() == [0.5, 1.5]
    assert dormant_units(values, 0.5).tolist() == [1, 0]
    assert dormant_units(values, 0.49).tolist() == [0, 0]


def test_inactive_counts_samples_not_sizes():
    values = torch.zeros(200, 2)
    values[:2, 0] = 1e6  # 1 % of the samples
    values[:3, 1] = 1e-6
    assert inactive_units(values).tolist() == [1, 0]


def test_a_saturated_tanh_unit_is_dead_and_a_quiet_one_is_linear():
    preactivations = torch.stack([torch.linspace(8, 12, 50), torch.linspace(-0.04, 0.04, 50)], 1)
    assert dead_units(preactivations.tanh(), "tanh").tolist() == [1, 0]
    assert linearized_units(preactivations, "smooth").tolist() == [0, 1]


def test_units_are_pooled_over_layers():
    small, large = torch.ones(5, 2), torch.ones(5, 8)
    small[:, 0] = 0
    layers = {"conv1": small, "dense1": large}
    for several in (layers, list(layers.values()), iter(layers.values())):
        assert dead_fraction(several).item() == pytest.approx(0.1)  # 1 of 10 units; the mean of the shares is 1/4
    assert dormant_fraction(layers).item() == pytest.approx(0.1)
    assert inactive_fraction(layers).item() == pytest.approx(0.1)
    assert linearized_fraction(layers).item() == pytest.approx(0.9)
    masks = {name: dormant_units(layer) for name, layer in layers.items()}
    assert pooled_fraction(masks).item() == pytest.approx(0.1)
    assert pooled_fraction([torch.tensor([True, False])]).item() == 0.5


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(-20, 20), st.integers(0, 10**6))
def test_scores_average_to_one_and_ignore_scale(samples, units, exponent, seed):
    values = draw((samples, units), seed)
    scores = unit_scores(values)
    assert scores.mean().item() == pytest.approx(1, rel=1e-5)
    torch.testing.assert_close(unit_scores(values * 2.0**exponent), scores, rtol=0, atol=0)
    torch.testing.assert_close(unit_scores(-values), scores, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes_are_measured_in_float32(dtype):
    values = draw((4, 6, 2, 2), dtype=dtype).relu()
    torch.testing.assert_close(unit_scores(values), unit_scores(values.float()))
    assert dormant_fraction(values).dtype == torch.float32


def test_layout_and_gradient_do_not_matter():
    values = draw((4, 6, 3, 3))
    scores = unit_scores(values.contiguous(memory_format=torch.channels_last).requires_grad_())
    assert not scores.requires_grad
    torch.testing.assert_close(scores, unit_scores(values))


def test_nan_is_told():
    values = torch.ones(4, 3)
    values[0, 1] = torch.nan
    for fraction in (dormant_fraction, dead_fraction, inactive_fraction, linearized_fraction):
        assert fraction(values).isnan()
    assert dead_units(values).isnan().tolist() == [False, True, False]
    assert dead_units(values, "tanh").isnan().tolist() == [False, True, False]
    assert linearized_units(values, "smooth").isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("shape", SHAPES)
def test_preactivation_statistics_against_loops(shape):
    values = 3 * draw(shape) + 100
    units = samples_by_unit(values)
    means = [sum(unit) / len(unit) for unit in units]
    variances = [sum((v - mean) ** 2 for v in unit) / len(unit) for unit, mean in zip(units, means, strict=True)]
    expected = [np.mean(means), np.std(means), np.mean(variances), np.std(variances)]
    statistics = preactivation_statistics(values)
    assert list(statistics) == ["mean", "mean_spread", "variance", "variance_spread"]
    np.testing.assert_allclose([v.item() for v in statistics.values()], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("probe", [unit_scores, dead_units, inactive_units, linearized_units, preactivation_statistics])
@pytest.mark.parametrize("shape", [(3,), (0, 3), (3, 0), (2, 3, 0)])
def test_bad_shapes_are_refused(probe, shape):
    with pytest.raises(ValueError, match="activations of shape"):
        probe(torch.zeros(shape))


def test_bad_arguments_are_refused():
    values = torch.ones(2, 2)
    with pytest.raises(ValueError, match="tau = -1"):
        dormant_fraction(values, -1)
    with pytest.raises(ValueError, match="kind = 'gelu'"):
        dead_fraction(values, "gelu")
    with pytest.raises(ValueError, match="kind = 'tanh'"):
        linearized_fraction(values, "tanh")
    with pytest.raises(ValueError, match="threshold = 1"):
        inactive_fraction(values, 1)
    with pytest.raises(ValueError, match="threshold = 0"):
        linearized_fraction(values, "smooth", 0)
    with pytest.raises(ValueError, match="activations = "):
        dead_fraction({})
    with pytest.raises(ValueError, match="masks of shape"):
        pooled_fraction(values)


@pytest.mark.parametrize("shape", [(5, 4, 6), (5, 4, 2, 3, 2)])
def test_positions_count_as_samples_however_they_are_arranged(shape):
    values = mixed_layer(shape, 5)
    flat = values.movedim(1, -1).reshape(-1, shape[1])
    assert torch.allclose(unit_scores(values), unit_scores(flat))
    assert torch.equal(dead_units(values), dead_units(flat))
    for name, value in preactivation_statistics(values).items():
        assert torch.allclose(value, preactivation_statistics(flat)[name])
