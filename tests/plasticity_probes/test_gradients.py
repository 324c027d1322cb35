"""Per-example gradients against autograd row by row in float64, their cosines against NumPy."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from agents.config import NetworkConfig
from agents.heads import ValueHead
from agents.networks import QNetwork, SmallCNN
from plasticity_probes import (
    cluster_order,
    cosine_matrix,
    gradient_covariance,
    gradient_gram,
    gradient_norms,
    negative_share,
    per_example_gradients,
)

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=generator(seed))


def with_weights(model: nn.Module, seed: int = 0) -> nn.Module:
    source = generator(seed)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5, generator=source)
    return model


def dense() -> nn.Module:
    return with_weights(nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.Tanh(), nn.Linear(7, 3)))


def convolutional() -> nn.Module:
    return with_weights(nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(27, 3)))


def squared_error(model: nn.Module, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return (model(inputs) - targets).square().sum(1)


class Gaussian(nn.Module):
    """A policy with a parameter that its forward does not use."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = with_weights(nn.Linear(5, 3))
        self.log_std = nn.Parameter(torch.full((3,), 0.3))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.mean(inputs)


def log_density(model: Gaussian, inputs: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
    scaled = (actions - model(inputs)) * (-model.log_std).exp()
    return -(0.5 * scaled.square() + model.log_std).sum(1)


CASES = {
    "dense": (dense, squared_error, (6, 5)),
    "convolution": (convolutional, squared_error, (5, 2, 5, 5)),
    "parameter read by the loss": (Gaussian, log_density, (4, 5)),
}


def row_by_row(model: nn.Module, loss_fn, *batch: torch.Tensor) -> np.ndarray:
    model = copy.deepcopy(model).cpu().double()
    rows = []
    for index in range(len(batch[0])):
        model.zero_grad()
        loss_fn(model, *(part[index : index + 1].cpu().double() for part in batch)).sum().backward()
        rows.append(np.concatenate([p.grad.numpy().ravel() for p in model.parameters() if p.requires_grad]))
    return np.stack(rows)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("chunk_size", "vectorized"), [(1, True), (4, True), (32, True), (32, False)])
@pytest.mark.parametrize("case", CASES)
def test_per_example_gradients_against_autograd(case, chunk_size, vectorized, device):
    build, loss_fn, shape = CASES[case]
    model, batch = build().to(device), (draw(*shape).to(device), draw(shape[0], 3, seed=1).to(device))
    rows = per_example_gradients(model, loss_fn, batch, chunk_size, vectorized)
    assert rows.dtype == torch.float32 and rows.device.type == device and not rows.requires_grad
    np.testing.assert_allclose(rows.cpu().numpy(), row_by_row(model, loss_fn, *batch), rtol=2e-5, atol=2e-5)


def test_images_in_channels_last():
    source = generator()
    network = QNetwork(SmallCNN((1, 14, 14), NetworkConfig(width=16), source), 3, ValueHead(), "orthogonal", source)
    network.to(memory_format=torch.channels_last)
    images = torch.randint(0, 256, (3, 1, 14, 14), dtype=torch.uint8, generator=source)
    before = images.clone()

    def greedy(model, inputs):
        return model(inputs).amax(1)

    expected = []
    for image in images:
        gradients = torch.autograd.grad(greedy(network, image[None]).sum(), list(network.parameters()))
        expected.append(torch.cat([gradient.reshape(-1) for gradient in gradients]))
    for vectorized in (True, False):
        rows = per_example_gradients(network, greedy, images, vectorized=vectorized)
        torch.testing.assert_close(rows, torch.stack(expected), rtol=1e-4, atol=1e-5)
    assert torch.equal(images, before)


@pytest.mark.parametrize("grad_enabled", [True, False])
@pytest.mark.parametrize("vectorized", [True, False])
def test_the_model_stays_as_it_was(vectorized, grad_enabled):
    model = dense()
    model.register_buffer("calls", torch.zeros(()))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    state, random_state = copy.deepcopy(model.state_dict()), torch.get_rng_state()

    def loss_fn(model, inputs):
        model.calls += 1
        return model(inputs).sum(1)

    with torch.set_grad_enabled(grad_enabled):
        rows = per_example_gradients(model, loss_fn, draw(4, 5), vectorized=vectorized)
    assert rows.abs().sum() > 0
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(bool((parameter.grad == 1).all()) and parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), random_state)


def test_frozen_parameters_are_left_out():
    model = dense()
    model[0].requires_grad_(False)
    rows = per_example_gradients(model, squared_error, (draw(3, 5), draw(3, 3)))
    assert rows.shape == (3, 14 + 24)
    np.testing.assert_allclose(
        rows.numpy(), row_by_row(model, squared_error, draw(3, 5), draw(3, 3)), rtol=1e-5, atol=1e-5
    )


def test_mean_of_the_rows_is_the_batch_gradient():
    model, batch = dense(), (draw(9, 5), draw(9, 3, seed=1))
    squared_error(model, *batch).mean().backward()
    flat = torch.cat([parameter.grad.reshape(-1) for parameter in model.parameters()])
    torch.testing.assert_close(per_example_gradients(model, squared_error, batch).mean(0), flat)


@pytest.mark.parametrize("rows_that_fit", [1, 2, 3, 5, 11, 100])
def test_the_gram_matrix_is_the_same_in_blocks(rows_that_fit):
    model, batch = dense(), (draw(11, 5), draw(11, 3, seed=1))
    rows = row_by_row(model, squared_error, *batch)
    max_bytes = 2 * 4 * rows.shape[1] * rows_that_fit
    gram = gradient_gram(model, squared_error, batch, chunk_size=4, max_bytes=max_bytes)
    assert torch.equal(gram, gram.T)
    np.testing.assert_allclose(gram.numpy(), rows @ rows.T, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(cosine_matrix(gram), gradient_covariance(torch.from_numpy(rows)), rtol=0, atol=2e-6)


def test_the_gram_matrix_keeps_to_its_memory(monkeypatch):
    sizes = []

    def counted(model, loss_fn, batch, *args):
        rows = per_example_gradients(model, loss_fn, batch, *args)
        sizes.append(4 * rows.numel())
        return rows

    monkeypatch.setattr("plasticity_probes.gradients.per_example_gradients", counted)
    batch = (draw(11, 5), draw(11, 3, seed=1))
    gradient_gram(dense(), squared_error, batch, max_bytes=2000)
    assert 2 * max(sizes) <= 2000 and len(sizes) > 1  # two blocks at a time
    sizes.clear()
    gradient_gram(dense(), squared_error, batch, max_bytes=4 * 11 * 80)
    assert len(sizes) == 1


@pytest.mark.parametrize("shape", [(1, 4), (6, 1), (12, 50), (40, 7)])
def test_cosines_against_loops(shape):
    rows = draw(*shape)
    array = rows.double().numpy()
    expected = [[a @ b / np.sqrt(a @ a) / np.sqrt(b @ b) for b in array] for a in array]
    cosines = gradient_covariance(rows)
    np.testing.assert_allclose(cosines.numpy(), expected, atol=2e-6)
    torch.testing.assert_close(gradient_covariance(rows * 3), cosines)
    if len(rows) > 1:
        pairs = [expected[i][j] < 0 for i in range(len(rows)) for j in range(i)]
        assert negative_share(cosines).item() == pytest.approx(np.mean(pairs))


def test_cosines_by_hand():
    cosines = gradient_covariance(torch.tensor([[2.0, 0.0], [0.0, 5.0], [-1.0, 0.0], [0.0, 0.0]]))
    assert cosines.tolist() == [[1, 0, -1, 0], [0, 1, 0, 0], [-1, 0, 1, 0], [0, 0, 0, 0]]
    assert negative_share(cosines).item() == pytest.approx(1 / 6)
    assert negative_share(torch.full((2, 2), torch.nan)).isnan()


def test_clusters_stand_together():
    """Three groups of 12, 8 and 5 that learn from each other only within the group, in a scrambled order."""
    group = torch.tensor([0] * 12 + [1] * 8 + [2] * 5)[torch.randperm(25, generator=generator(3))]
    cosines = torch.where(group[:, None] == group, 0.9, -0.1) + 0.02 * draw(25, 25)
    order = cluster_order(cosines, clusters=3, generator=generator(1))
    assert sorted(order.tolist()) == list(range(25))
    assert group[order].tolist() == [0] * 12 + [1] * 8 + [2] * 5
    assert torch.equal(order, cluster_order(cosines, clusters=3, generator=generator(1)))


@pytest.mark.parametrize("matrix", [torch.ones(1, 1), torch.ones(5, 5), torch.eye(4), torch.zeros(9, 9)])
def test_clusters_of_next_to_nothing(matrix):
    state = torch.get_rng_state()
    assert sorted(cluster_order(matrix).tolist()) == list(range(len(matrix)))
    assert torch.equal(torch.get_rng_state(), state)


def test_gradient_norms_against_numpy():
    model, batch = dense(), (draw(6, 5), draw(6, 3))
    assert all(value.item() == 0 for value in gradient_norms(model).values())
    squared_error(model, *batch).mean().backward()
    model[0].bias.grad = None
    arrays = {name: p.grad.double().numpy() for name, p in model.named_parameters() if p.grad is not None}
    for norms in (
        gradient_norms(model),
        gradient_norms(model, {n: p.grad for n, p in model.named_parameters() if n in arrays}),
    ):
        assert list(norms) == [*dict(model.named_parameters()), "total"]
        assert norms["0.bias"].item() == 0
        for name, array in arrays.items():
            assert norms[name].item() == pytest.approx(np.linalg.norm(array.ravel()), rel=1e-5)
        total = np.sqrt(sum((array**2).sum() for array in arrays.values()))
        assert norms["total"].item() == pytest.approx(total, rel=1e-5)


def test_bad_arguments_are_refused():
    model = dense()
    with pytest.raises(ValueError, match="chunk_size = 0"):
        per_example_gradients(model, squared_error, (draw(2, 5), draw(2, 3)), chunk_size=0)
    for batch in ((draw(2, 5), draw(3, 3)), draw(0, 5), torch.tensor(1.0), ()):
        with pytest.raises(ValueError, match="batch with"):
            per_example_gradients(model, squared_error, batch)
    with pytest.raises(ValueError, match="no parameter that requires a gradient"):
        gradient_gram(model.requires_grad_(False), squared_error, (draw(2, 5), draw(2, 3)))
    with pytest.raises(ValueError, match=r"gradients names \['9.weight'\]"):
        gradient_norms(model, {"9.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match="gradients of shape"):
        gradient_covariance(torch.zeros(3))
    with pytest.raises(ValueError, match="gram of shape"):
        cosine_matrix(torch.zeros(3, 2))
    with pytest.raises(ValueError, match="1 example"):
        negative_share(torch.ones(1, 1))
    with pytest.raises(ValueError, match="finite"):
        cluster_order(torch.full((2, 2), torch.nan))


class Twice(nn.Module):
    """One layer registered under two names, and another whose weight is tied to a third's."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(3, 3)
        self.again = self.a
        self.b, self.c = nn.Linear(3, 3), nn.Linear(3, 3)
        self.c.weight = self.b.weight

    def forward(self, x):
        return self.c(torch.tanh(self.b(torch.tanh(self.again(self.a(x))))))


@pytest.mark.parametrize("vectorized", [True, False])
def test_modules_under_two_names_and_tied_weights_are_measured_and_left_alone(vectorized):
    torch.manual_seed(0)
    model, inputs = Twice(), torch.randn(5, 3)
    before = dict(model.named_parameters(remove_duplicate=False))
    values = {name: parameter.detach().clone() for name, parameter in before.items()}
    rows = per_example_gradients(model, lambda m, x: m(x).square().sum(1), inputs, vectorized=vectorized)
    after = dict(model.named_parameters(remove_duplicate=False))
    assert all(after[name] is before[name] and torch.equal(after[name], values[name]) for name in before)
    assert model.again is model.a and model.c.weight is model.b.weight
    for row, example in zip(rows, inputs, strict=True):
        wanted = torch.autograd.grad(model(example[None]).square().sum(), list(model.parameters()))
        assert torch.allclose(row, torch.cat([part.flatten() for part in wanted]), atol=1e-5)


def test_inner_products_over_many_parameters_keep_their_digits():
    """300,000 parameters: the loss's gradient is the example itself, so the products are those of the inputs."""
    model = nn.Linear(300_000, 1, bias=False)
    rows = torch.full((3, 300_000), 0.1) + 0.01 * torch.randn(3, 300_000, generator=torch.Generator().manual_seed(0))
    gram = gradient_gram(model, lambda model, x: model(x).squeeze(1), rows)
    wanted = rows.double() @ rows.double().T
    torch.testing.assert_close(gram.double(), wanted, rtol=2e-7, atol=0)
