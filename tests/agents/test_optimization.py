"""The optimizer step against torch's own clipping and plain Adam, and schedules."""

import pytest
import torch
from torch import nn

from agents.config import AdamConfig
from agents.optimization import Optimization, autocast
from tests.agents.helpers import CPU, gradient_step, same_tree, snapshot


def model(seed=0):
    generator = torch.Generator().manual_seed(seed)
    network = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(generator=generator)
    return network


def loss_of(network, step):
    inputs = torch.randn(16, 4, generator=torch.Generator().manual_seed(step))
    return (network(inputs).squeeze(1) - 3 * step).square().mean()


@pytest.mark.parametrize("max_norm", [0.0, 1e-3, 0.5, 1e6])
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.99, 0.99), (0.0, 0.9)])
def test_steps_are_clip_grad_norm_and_plain_adam(max_norm, betas):
    network, plain = model(), model()
    optimization = Optimization(network.parameters(), 0.01, AdamConfig(betas, 1e-5), max_norm)
    adam = torch.optim.Adam(plain.parameters(), 0.01, betas=betas, eps=1e-5, foreach=False, fused=False)
    for step in range(30):
        adam.zero_grad()
        loss_of(plain, step).backward()
        expected = torch.nn.utils.clip_grad_norm_(plain.parameters(), max_norm or float("inf"))
        adam.step()
        norm = gradient_step(optimization, loss_of(network, step))
        torch.testing.assert_close(norm, expected, rtol=1e-4, atol=1e-4)
    for ours, theirs in zip(network.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert optimization.clock.gradient_steps == 30


def test_the_norm_returned_is_that_before_clipping():
    network = nn.Linear(2, 1, bias=False)
    optimization = Optimization(network.parameters(), 0.1, AdamConfig(), max_norm=1.0)
    norm = gradient_step(optimization, (network.weight * torch.tensor([[3.0, 4.0]])).sum())  # gradient (3, 4)
    assert norm.item() == pytest.approx(5.0)
    torch.testing.assert_close(network.weight.grad, torch.tensor([[0.6, 0.8]]), atol=1e-5, rtol=0)


def test_adams_first_step_is_the_learning_rate_by_sign():
    # bias correction makes m / sqrt(v) = g / |g|
    network = nn.Linear(2, 1, bias=False)
    before = network.weight.detach().clone()
    optimization = Optimization(network.parameters(), 0.5, AdamConfig(), 0.0)
    optimization.set_learning_rate(0.01)
    gradient_step(optimization, (network.weight * torch.tensor([[3.0, -4.0]])).sum())
    torch.testing.assert_close(network.weight.detach() - before, torch.tensor([[-0.01, 0.01]]), atol=1e-6, rtol=0)


def test_parameters_without_a_gradient_are_left_alone():
    network = nn.ModuleList([nn.Linear(2, 1), nn.Linear(2, 1)])
    idle = snapshot(network[1])
    optimization = Optimization(network.parameters(), 0.1, AdamConfig(), 0.5)
    gradient_step(optimization, network[0].weight.square().sum())
    assert same_tree(snapshot(network[1]), idle)


def test_state_goes_on_where_it_was():
    first, second = model(), model(1)
    a, b = (Optimization(network.parameters(), 0.01, AdamConfig(), 0.5) for network in (first, second))
    for step in range(5):
        gradient_step(a, loss_of(first, step))
    second.load_state_dict(first.state_dict())
    b.load_state_dict(snapshot(a))
    for step in range(5, 8):
        gradient_step(a, loss_of(first, step))
        gradient_step(b, loss_of(second, step))
    assert same_tree(snapshot(first), snapshot(second))


def test_bf16_is_used_only_where_asked():
    x = torch.ones(2, 2)
    with autocast(CPU, "bf16"):
        assert (x @ x).dtype == torch.bfloat16
    with autocast(CPU, "fp32"):
        assert (x @ x).dtype == torch.float32
