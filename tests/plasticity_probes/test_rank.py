"""Ranks against NumPy's SVD in float64 and matrices whose ranks are known."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plasticity_probes import effective_rank, feature_rank, pca_rank, ranks, singular_values, srank, stable_rank

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))]
NAMES = ["srank", "pca_rank", "effective_rank", "stable_rank", "feature_rank"]


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def sigma_of(features: torch.Tensor, centred: bool = False) -> np.ndarray:
    array = features.cpu().double().numpy()
    if centred:
        array = array - array.mean(0, keepdims=True)
    return np.linalg.svd(array, compute_uv=False)


def needed(parts: np.ndarray, delta: float) -> int:
    total, running = float(sum(parts)), 0.0
    for k, part in enumerate(parts, start=1):
        running += part
        if running / total >= 1 - delta:
            return k
    return len(parts)


def entropy_rank(sigma: np.ndarray) -> float:
    shares = sigma / sigma.sum()
    return float(np.exp(-sum(p * np.log(p) for p in shares if p > 0)))


def decaying(samples: int, units: int, decades: float) -> torch.Tensor:
    """Random directions with singular values from 30 down by `decades` powers of ten."""
    left = np.linalg.qr(draw(samples, samples).double().numpy())[0]
    right = np.linalg.qr(draw(units, units, seed=1).double().numpy())[0]
    k = min(samples, units)
    return torch.from_numpy(left[:, :k] * np.logspace(0, -decades, k) * 30 @ right[:k]).float()


CASES = {
    "normal": draw(60, 20),
    "relu": draw(40, 30).relu(),
    "wide": draw(10, 25),
    "one sample": draw(1, 5),
    "one unit": draw(9, 1),
    "common mean": 0.1 * draw(80, 40) + 100,
    "three decades": decaying(50, 50, 3),
    "six decades": decaying(70, 40, 6),
    "twelve decades": decaying(40, 64, 12),
    "tiny": 1e-6 * draw(30, 12),
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_singular_values_against_numpy(name, centred, device):
    features = CASES[name].to(device)
    sigma = singular_values(features, centred)
    expected = sigma_of(features, centred)
    assert sigma.dtype == torch.float32 and sigma.device == features.device
    largest = np.linalg.norm(CASES[name].double().numpy(), 2)
    np.testing.assert_allclose(sigma.cpu().numpy(), expected, rtol=1e-6, atol=4e-8 * largest)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", CASES)
def test_all_ranks_against_numpy(name, device):
    features = CASES[name]
    results = {key: value.item() for key, value in ranks(features.to(device)).items()}
    assert list(results) == [f"{kind}/{rank}" for kind in ("raw", "centred") for rank in NAMES]
    for kind in ("raw", "centred"):
        sigma = sigma_of(features, kind == "centred")
        if sigma[0] == 0:  # one sample, centred
            assert [results[f"{kind}/{rank}"] for rank in NAMES] == [0] * 5
            continue
        assert results[f"{kind}/srank"] in {needed(sigma, delta) for delta in (0.01 - 1e-6, 0.01, 0.01 + 1e-6)}
        assert results[f"{kind}/pca_rank"] in {needed(sigma**2, delta) for delta in (0.01 - 1e-6, 0.01, 0.01 + 1e-6)}
        assert results[f"{kind}/effective_rank"] == pytest.approx(entropy_rank(sigma), rel=1e-5)
        assert results[f"{kind}/stable_rank"] == pytest.approx((sigma**2).sum() / sigma[0] ** 2, rel=1e-5)
        assert results[f"{kind}/feature_rank"] == (sigma / np.sqrt(len(features)) > 0.01).sum()


def test_single_ranks_take_features_or_singular_values():
    features = CASES["relu"]
    together, sigma = ranks(features), singular_values(features)
    for name, probe in zip(NAMES[:4], (srank, pca_rank, effective_rank, stable_rank), strict=True):
        assert probe(features) == probe(sigma) == probe(sigma.flip(0)) == together[f"raw/{name}"]
    assert feature_rank(features) == feature_rank(sigma, samples=40) == together["raw/feature_rank"]
    assert srank(features, 0.3) == needed(sigma_of(features), 0.3)
    assert pca_rank(features, 0.3) == needed(sigma_of(features) ** 2, 0.3)


def test_spectrum_worked_out_by_hand():
    sigma = torch.tensor([6.0, 3.0, 1.0])
    assert srank(sigma, 0.2).item() == 2  # 9 of 10
    assert srank(sigma, 0.05).item() == 3
    assert srank(torch.tensor([1.0, 1.0]), 0.5).item() == 1  # half of the sum is enough
    assert pca_rank(sigma, 0.05).item() == 2  # 45 of 46
    assert stable_rank(sigma).item() == pytest.approx(46 / 36)
    assert feature_rank(sigma, 2.0, samples=4).item() == 1  # 3 / sqrt(4) = 1.5
    assert effective_rank(torch.tensor([1.0, 1.0, 0.0, 0.0])).item() == pytest.approx(2)


@pytest.mark.parametrize("samples", [20, 50])
@pytest.mark.parametrize("r", [1, 3, 12])
def test_rank_r_with_equal_singular_values(samples, r):
    left = torch.linalg.qr(draw(samples, r))[0]
    right = torch.linalg.qr(draw(30, r, seed=1))[0]
    features = 7 * left @ right.T
    for probe in (srank, pca_rank, effective_rank, stable_rank, feature_rank):
        assert probe(features).item() == pytest.approx(r, rel=1e-4)


@pytest.mark.parametrize("r", [1, 5])
def test_rounding_does_not_lift_a_low_rank(r):
    """The sum of 400 roundings of a float32 Gram matrix would lift srank many times over."""
    features = draw(500, r).abs() @ draw(r, 400, seed=1).abs()
    values = ranks(features)
    assert values["raw/srank"] <= r and values["raw/feature_rank"] == r
    assert values["raw/effective_rank"].item() <= r * 1.001


def test_orthonormal_columns_have_full_rank():
    features = torch.linalg.qr(draw(64, 16))[0] * 10
    assert effective_rank(features).item() == pytest.approx(16, rel=1e-5)
    assert stable_rank(features).item() == pytest.approx(16, rel=1e-5)
    assert srank(features).item() == 16


@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (1, 1)])
def test_zero_matrix_has_rank_zero(shape):
    assert all(value.item() == 0 for value in ranks(torch.zeros(shape)).values())


@pytest.mark.parametrize("samples", [7, 100, 512])
def test_equal_rows_have_raw_rank_one_and_centred_rank_zero(samples):
    features = (37.3 * draw(1, 20)).expand(samples, 20)
    values = ranks(features)
    assert all(values[f"centred/{name}"].item() == 0 for name in NAMES)
    assert values["raw/srank"].item() == 1 and values["raw/effective_rank"].item() == pytest.approx(1, rel=1e-5)


def test_a_common_mean_collapses_raw_ranks_only():
    features = draw(256, 64)
    before, after = ranks(features), ranks(features + 1000)
    assert before["raw/effective_rank"] > 55 and after["raw/effective_rank"] < 2
    assert after["centred/effective_rank"].item() == pytest.approx(before["centred/effective_rank"].item(), rel=1e-4)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(-10, 10), st.integers(0, 10**6))
def test_invariances(samples, units, exponent, seed):
    features = draw(samples, units, seed=seed)
    values = {name: value.item() for name, value in ranks(features).items()}
    shifted = ranks(features + draw(1, units, seed=seed + 1))
    scaled = ranks(features * 2.0**exponent)
    for rank in ("effective_rank", "stable_rank"):
        assert shifted[f"centred/{rank}"].item() == pytest.approx(values[f"centred/{rank}"], rel=1e-3)
        assert scaled[f"raw/{rank}"].item() == pytest.approx(values[f"raw/{rank}"], rel=1e-5)
    assert values["raw/stable_rank"] <= values["raw/effective_rank"] * 1.0001 <= min(samples, units) * 1.0002
    assert values["centred/srank"] <= max(samples - 1, 0)
    torch.testing.assert_close(singular_values(features.T), singular_values(features), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_non_finite_features_give_nan(value):
    features = draw(6, 4)
    features[2, 1] = value
    assert all(result.isnan() for result in ranks(features).values())


def test_features_that_shrink_lose_feature_rank_only():
    features = draw(100, 10)
    assert feature_rank(features).item() == 10 and feature_rank(features * 1e-3).item() == 0
    assert srank(features * 1e-3) == srank(features)


def test_bad_arguments_are_refused():
    for shape in [(2, 3, 4, 5), (0, 3), (3, 0), ()]:
        with pytest.raises(ValueError, match="features of shape"):
            ranks(torch.zeros(shape))
    with pytest.raises(ValueError, match="delta = 1"):
        srank(torch.ones(2, 2), 1)
    with pytest.raises(ValueError, match="epsilon = 0"):
        feature_rank(torch.ones(2, 2), 0)
    with pytest.raises(ValueError, match="samples = None"):
        feature_rank(torch.ones(2))
