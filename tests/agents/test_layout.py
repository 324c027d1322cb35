"""Weights that lie in memory the other way round are the same weights."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from agents.adam import FusedAdam
from agents.layout import laid_as, lay_out, stacked
from agents.value_config import DQNConfig
from plasticity_probes.norms import quick_norms
from tests.agents.helpers import ATARI, SMALL, VECTOR, build


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(7, 5), nn.ReLU(), nn.LayerNorm(5), nn.Linear(5, 1), nn.Flatten())


def lies_by_inputs(weight) -> bool:
    return weight.t().is_contiguous()


def test_no_value_and_no_shape_changes():
    plain, laid = network(), lay_out(network())
    assert all(torch.equal(one, other) for one, other in zip(plain.parameters(), laid.parameters(), strict=True))
    assert lies_by_inputs(laid[0].weight) and not lies_by_inputs(plain[0].weight)
    x = torch.randn(32, 7)
    torch.testing.assert_close(laid(x), plain(x))


def test_copies_and_loaded_weights_keep_the_layout():
    plain, laid = network(), lay_out(network())
    assert lies_by_inputs(copy.deepcopy(laid)[0].weight)
    laid.load_state_dict({name: 2 * tensor for name, tensor in plain.state_dict().items()})
    assert lies_by_inputs(laid[0].weight) and torch.equal(laid[0].weight, 2 * plain[0].weight)


def test_agents_without_convolutions_learn_with_weights_laid_so():
    config = DQNConfig(network=SMALL, buffer_size=400)
    dense, images = build(config, VECTOR), build(config, ATARI)
    for module in (*dense.network.modules(), *dense.learner.target.modules()):
        assert not isinstance(module, nn.Linear) or lies_by_inputs(module.weight)
    weights = [module.weight for module in images.network.modules() if isinstance(module, nn.Linear)]
    assert all(weight.is_contiguous() for weight in weights)


def test_a_tensor_in_the_layout_of_another():
    tensor, other = torch.arange(6.0).view(2, 3), torch.zeros(3, 2).t()
    found = laid_as(tensor, other)
    assert torch.equal(found, tensor) and found.stride() == other.stride() == (1, 2)
    assert laid_as(found, other) is found


@pytest.mark.parametrize("shape", [(2, 3), (4,), (), (1, 3), (2, 3, 2, 2)], ids=str)
def test_slices_of_a_stack_keep_their_layout(shape):
    tensors = [torch.randn(shape) for _ in range(3)]
    if len(shape) == 2:
        tensors = [tensor.t().contiguous().t() for tensor in tensors]
    found = stacked(tensors)
    assert torch.equal(found, torch.stack(tensors))
    assert all(tensor.stride() == first.stride() for first, tensor in zip(tensors, found.unbind(), strict=True))


def adam_in_float64(start, gradients, rate=0.1, betas=(0.9, 0.999), eps=1e-8):
    theta, m, v = start.astype(np.float64), 0.0, 0.0
    for t, gradient in enumerate(gradients, 1):
        m, v = betas[0] * m + (1 - betas[0]) * gradient, betas[1] * v + (1 - betas[1]) * gradient**2
        theta = theta - rate * (m / (1 - betas[0] ** t)) / (np.sqrt(v / (1 - betas[1] ** t)) + eps)
    return theta


@pytest.mark.parametrize("step", ["move", "step"])
@pytest.mark.parametrize("weights_by", ["inputs", "units"])
@pytest.mark.parametrize("gradients_by", ["inputs", "units"])
def test_adam_moves_each_weight_along_its_own_gradient(weights_by, gradients_by, step):
    """torch's kernel goes through memory, whatever the layouts."""
    laid = {"units": torch.Tensor.clone, "inputs": lambda tensor: tensor.t().contiguous().t()}
    rng = np.random.default_rng(0)
    start, gradients = rng.normal(size=(3, 5)), rng.normal(size=(4, 3, 5)) * 10.0 ** rng.integers(-4, 2, (4, 3, 5))
    parameter = nn.Parameter(laid[weights_by](torch.from_numpy(start).float()))
    adam = FusedAdam([parameter], 0.1)
    for gradient in gradients:
        parameter.grad = laid[gradients_by](torch.from_numpy(gradient).float())
        getattr(adam, step)()
    np.testing.assert_allclose(parameter.detach().numpy(), adam_in_float64(start, gradients), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(3, 5), (200, 300), (300, 200)], ids=str)
def test_norms_do_not_depend_on_the_layout(shape):
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    exact = float(np.linalg.norm(tensor.numpy().astype(np.float64)))
    for laid in (tensor, tensor.t().contiguous().t()):
        (found,) = quick_norms([laid])
        assert found.item() == pytest.approx(exact, rel=1e-6)
