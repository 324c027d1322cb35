"""Curvature against quadratics of known Hessian, central differences, and whole Hessians by double backward passes."""

import numpy as np
import pytest
import torch
from torch import nn

from plasticity_probes import hessian_eigenvalues, hessian_vector_product

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))]
ORDER = {"LA": lambda values: -values, "SA": lambda values: values, "LM": lambda values: -np.abs(values)}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def quadratic(eigenvalues, dtype=torch.float64, device="cpu"):
    """Loss x.Hx / 2 + b.x with a rotated H of these eigenvalues, x in two parts; also H."""
    size = len(eigenvalues)
    rotation = torch.linalg.qr(torch.randn(size, size, generator=generator(1), dtype=torch.float64))[0]
    hessian = (rotation * torch.tensor(eigenvalues, dtype=torch.float64)) @ rotation.T
    matrix = hessian.to(device, dtype)
    point = torch.randn(size, generator=generator(2), dtype=torch.float64).to(device, dtype)
    params = [part.clone().requires_grad_() for part in point.split([size // 2, size - size // 2])]

    def loss():
        x = torch.cat(params)
        return 0.5 * x @ matrix @ x + x.sum()

    return loss, params, hessian.numpy()


def network(activation=nn.Tanh, dtype=torch.float64):
    """A small network and its loss, with a Hessian that has eigenvalues of either sign."""
    model = nn.Sequential(nn.Linear(3, 5), activation(), nn.Linear(5, 2)).to(dtype)
    source = generator()
    for parameter in model.parameters():
        nn.init.normal_(parameter, generator=source)
    inputs, targets = (torch.randn(12, size, generator=source).to(dtype) for size in (3, 2))
    return model, lambda: (model(inputs) - targets).square().mean()


def full_hessian(loss, params) -> np.ndarray:
    """Row by row by a second backward pass."""
    gradients = torch.autograd.grad(loss(), params, create_graph=True)
    rows = []
    for entry in torch.cat([gradient.reshape(-1) for gradient in gradients]):
        row = torch.autograd.grad(entry, params, retain_graph=True, allow_unused=True)
        row = [torch.zeros_like(p) if part is None else part for part, p in zip(row, params, strict=True)]
        rows.append(torch.cat([part.reshape(-1) for part in row]).double().numpy())
    return np.stack(rows)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_product_with_a_known_hessian(dtype):
    loss, params, hessian = quadratic([3.0, -5.0, 0.5, 0.0, 2.0], dtype)
    vector = torch.randn(5, generator=generator(), dtype=dtype)
    product = hessian_vector_product(loss, params, vector)
    assert product.dtype == dtype and not product.requires_grad
    np.testing.assert_allclose(product.numpy(), hessian @ vector.double().numpy(), rtol=1e-4, atol=1e-5)
    assert all(param.grad is None for param in params)


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU, nn.GELU])
def test_product_against_central_differences_of_the_gradient(activation):
    model, loss = network(activation)
    params = list(model.parameters())
    vector = torch.randn(sum(p.numel() for p in params), generator=generator(3), dtype=torch.float64)

    def gradient_at(shift: float) -> np.ndarray:
        pieces = vector.split([p.numel() for p in params])
        with torch.no_grad():
            for param, piece in zip(params, pieces, strict=True):
                param += shift * piece.view_as(param)
        flat = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss(), params)]).numpy()
        with torch.no_grad():
            for param, piece in zip(params, pieces, strict=True):
                param -= shift * piece.view_as(param)
        return flat

    expected = (gradient_at(1e-6) - gradient_at(-1e-6)) / 2e-6
    np.testing.assert_allclose(hessian_vector_product(loss, params, vector).numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("which", ORDER)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "spectrum",
    [
        [4.0],
        [-7.0, 1.0, 2.0, 3.0, 6.0],
        [5.0, 5.0, 5.0, -5.5, 1.0, 1.0],  # repeated: a single Krylov chain sees each value once
        [0.0, 0.0, 0.0, 2.0],
        [0.0, 0.0, 0.0],
        [-3.0, -2.0, -1.0],
        list(np.linspace(-10, 20, 30)),
    ],
    ids=str,
)
def test_whole_spectrum_of_a_quadratic(spectrum, dtype, which, device):
    loss, params, hessian = quadratic(spectrum, dtype, device)
    k = len(spectrum)
    found = hessian_eigenvalues(loss, params, k, which, iterations=k + 5)
    exact = np.linalg.eigvalsh(hessian)
    assert found.values.shape == found.residuals.shape == (k,) and found.values.device.type == device
    assert found.values.dtype == torch.float32
    np.testing.assert_allclose(np.sort(found.values.cpu().numpy()), exact, atol=1e-4)
    keys = ORDER[which](found.values.cpu().double().numpy())
    assert (np.diff(keys) >= -1e-4).all()
    assert found.residuals.max() < 1e-4


@pytest.mark.parametrize("which", ORDER)
@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
def test_network_against_its_whole_hessian(activation, which):
    model, loss = network(activation)
    params = list(model.parameters())
    exact = np.linalg.eigvalsh(full_hessian(loss, params))
    assert exact[0] < 0 < exact[-1]
    expected = np.array(sorted(exact, key=ORDER[which]))[:3]
    found = hessian_eigenvalues(loss, params, 3, which, iterations=30, generator=generator(5))
    np.testing.assert_allclose(found.values.numpy(), expected, rtol=1e-3, atol=1e-4)
    again = hessian_eigenvalues(loss, params, 3, which, iterations=30, generator=generator(5))
    assert torch.equal(found.values, again.values) and torch.equal(found.residuals, again.residuals)


def test_largest_in_magnitude_may_be_negative():
    loss, params, _ = quadratic([-9.0, 1.0, 4.0])
    values = {which: hessian_eigenvalues(loss, params, 1, which).values.item() for which in ORDER}
    assert values == {"LA": pytest.approx(4), "SA": pytest.approx(-9), "LM": pytest.approx(-9)}


@pytest.mark.parametrize("iterations", [2, 4, 8, 16])
def test_an_eigenvalue_lies_within_the_residual(iterations):
    loss, params, hessian = quadratic([*np.geomspace(0.01, 100, 60), -30.0])
    exact = np.linalg.eigvalsh(hessian)
    found = hessian_eigenvalues(loss, params, 2, "LM", iterations)
    for value, residual in zip(found.values.tolist(), found.residuals.tolist(), strict=True):
        assert np.abs(exact - value).min() <= residual + 1e-4
    if iterations == 16:
        assert found.residuals[0] < 1e-2


def test_a_loss_without_curvature_and_an_unused_parameter():
    used, unused = torch.ones(3, requires_grad=True), torch.ones(2, requires_grad=True)
    assert hessian_eigenvalues(lambda: used.sum(), [used, unused], 2).values.tolist() == [0, 0]
    found = hessian_eigenvalues(lambda: 3 * used[0].square() + used.sum(), [used, unused], 5)
    np.testing.assert_allclose(found.values.numpy(), [6, 0, 0, 0, 0], atol=1e-6)


def test_nothing_is_left_behind():
    model, loss = network()
    params, state = list(model.parameters()), torch.get_rng_state()
    before = [param.detach().clone() for param in params]
    with torch.no_grad():
        hessian_eigenvalues(loss, params, 2)
    assert all(param.grad is None and torch.equal(param, old) for param, old in zip(params, before, strict=True))
    assert torch.equal(torch.get_rng_state(), state)


def test_derivatives_that_are_not_finite_give_nan():
    x = torch.ones(3, requires_grad=True)
    found = hessian_eigenvalues(lambda: (x - 2).sqrt().sum(), [x], 2)
    assert found.values.isnan().all() and found.residuals.isnan().all()


def test_bad_arguments_are_refused():
    loss, params, _ = quadratic([1.0, 2.0])
    with pytest.raises(ValueError, match="which = 'SM'"):
        hessian_eigenvalues(loss, params, 1, "SM")
    for k, iterations in ((0, 5), (3, 5), (2, 1)):
        with pytest.raises(ValueError, match=f"k = {k}"):
            hessian_eigenvalues(loss, params, k, iterations=iterations)
    with pytest.raises(ValueError, match="vector of shape"):
        hessian_vector_product(loss, params, torch.zeros(3))
    with pytest.raises(ValueError, match=r"loss_fn\(\) of shape"):
        hessian_vector_product(lambda: params[0], params, torch.zeros(2))
    for bad in ([], [torch.zeros(2)]):
        with pytest.raises(ValueError, match="params"):
            hessian_eigenvalues(loss, bad)
