"""The tangent kernel against explicit Jacobians in float64 and kernels worked out by hand."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from plasticity_probes import ntk, ntk_statistics

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))]


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def network(hidden: int = 6) -> nn.Module:
    model = nn.Sequential(nn.Linear(4, hidden), nn.Tanh(), nn.Linear(hidden, 3))
    source = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, generator=source)
    return model


def by_differences(model: nn.Module, inputs: torch.Tensor, scalar) -> np.ndarray:
    """Jacobian [n, p] by central differences of every parameter in turn, float64."""
    model, inputs, columns = copy.deepcopy(model).cpu().double(), inputs.cpu().double(), []
    with torch.no_grad():
        for parameter in model.parameters():
            for index in range(parameter.numel()):
                entry = parameter.view(-1)[index]
                original, step = entry.item(), 1e-5
                entry.fill_(original + step)
                above = scalar(model(inputs))
                entry.fill_(original - step)
                columns.append(((above - scalar(model(inputs))) / (2 * step)).numpy())
                entry.fill_(original)
    return np.stack(columns, 1)


SCALARS = {
    "sum": lambda outputs: outputs.sum(1),
    "max": lambda outputs: outputs.max(1).values,
    "expected": lambda outputs: (outputs.softmax(1) * torch.arange(3).to(outputs)).sum(1),
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("chunk_size", "max_bytes"), [(32, 2**30), (3, 2**30), (2, 1)])
@pytest.mark.parametrize("output", SCALARS)
def test_kernel_against_central_differences(output, chunk_size, max_bytes, device):
    model, inputs = network().to(device), draw(7, 4).to(device)
    jacobian = by_differences(model, inputs, SCALARS[output])
    named = output if output in ("sum", "max") else SCALARS[output]
    kernel = ntk(model, inputs, named, chunk_size, max_bytes=max_bytes)
    assert kernel.dtype == torch.float32 and kernel.device.type == device and not kernel.requires_grad
    np.testing.assert_allclose(kernel.cpu().numpy(), jacobian @ jacobian.T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("outputs", [1, 4])
@pytest.mark.parametrize("bias", [False, True])
def test_a_linear_model_has_the_kernel_of_its_inputs(bias, outputs):
    inputs = draw(9, 5)
    array = inputs.double().numpy()
    kernel = ntk(nn.Linear(5, outputs, bias=bias), inputs)
    np.testing.assert_allclose(kernel.numpy(), outputs * (array @ array.T + bias), rtol=1e-5, atol=1e-5)


def test_two_layers_by_hand():
    """f(x) = a . relu(W x): K(x, y) = sum_k relu_k(x) relu_k(y) + a_k^2 [k on at x] [k on at y] (x . y)."""
    model = nn.Sequential(nn.Linear(3, 5, bias=False), nn.ReLU(), nn.Linear(5, 1, bias=False))
    inputs = draw(8, 3)
    weight, head = (layer.weight.detach().double().numpy() for layer in (model[0], model[2]))
    expected = np.zeros((8, 8))
    for i, x in enumerate(inputs.double().numpy()):
        for j, y in enumerate(inputs.double().numpy()):
            for k in range(5):
                at_x, at_y = weight[k] @ x, weight[k] @ y
                expected[i, j] += max(at_x, 0) * max(at_y, 0) + head[0, k] ** 2 * (at_x > 0) * (at_y > 0) * (x @ y)
    np.testing.assert_allclose(ntk(model, inputs).numpy(), expected, rtol=1e-5, atol=1e-6)


def test_inputs_of_several_tensors_and_outputs_of_several_parts():
    class Critic(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 1)

        def forward(self, observations, actions):
            return None, self.layer(torch.cat([observations, actions], 1)).squeeze(1)

    observations, actions = draw(6, 3), draw(6, 1, seed=1)
    rows = torch.cat([observations, actions, torch.ones(6, 1)], 1)
    kernel = ntk(Critic(), (observations, actions), output=lambda outputs: outputs[1])
    torch.testing.assert_close(kernel, rows @ rows.T)


@pytest.mark.parametrize(("n", "rank"), [(1, 1), (5, 5), (20, 3), (12, 11)])
def test_statistics_against_numpy(n, rank):
    rows = draw(n, rank)
    kernel = rows @ rows.T
    array = kernel.double().numpy()
    eigenvalues = np.clip(np.linalg.eigvalsh(array), 0, None)
    shares = eigenvalues / eigenvalues.sum()
    floor = n * np.finfo(np.float32).eps * eigenvalues[-1]
    off = sum(abs(array[i, j]) for i in range(n) for j in range(n) if i != j)
    statistics = {name: value.item() for name, value in ntk_statistics(kernel).items()}
    assert statistics == {
        "rank": rank,
        "effective_rank": pytest.approx(np.exp(-sum(p * np.log(p) for p in shares if p > 0)), rel=1e-4),
        "condition_number": pytest.approx(eigenvalues[-1] / max(eigenvalues[0], floor), rel=1e-4),
        "off_diagonal_share": pytest.approx(off / np.abs(array).sum(), abs=1e-6),
    }


def test_statistics_of_kernels_that_are_known():
    diagonal = {name: value.item() for name, value in ntk_statistics(torch.diag(torch.tensor([8.0, 2.0]))).items()}
    assert diagonal["rank"] == 2 and diagonal["condition_number"] == 4 and diagonal["off_diagonal_share"] == 0
    constant = {name: value.item() for name, value in ntk_statistics(torch.ones(10, 10), tolerance=1e-4).items()}
    assert constant["rank"] == 1 and constant["off_diagonal_share"] == pytest.approx(0.9)
    assert constant["effective_rank"] == pytest.approx(1, abs=1e-4)
    assert constant["condition_number"] == pytest.approx(1e4)
    zero = ntk_statistics(torch.zeros(3, 3))
    assert zero["rank"].item() == zero["effective_rank"].item() == 0
    assert zero["condition_number"].isnan() and zero["off_diagonal_share"].isnan()
    assert all(value.isnan() for value in ntk_statistics(torch.full((2, 2), torch.nan)).values())


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="output = 'mean'"):
        ntk(network(), draw(2, 4), "mean")
    with pytest.raises(ValueError, match="kernel of shape"):
        ntk_statistics(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="tolerance = 0"):
        ntk_statistics(torch.eye(2), 0)
