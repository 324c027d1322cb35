"""Adam's statistics against the change of the weights themselves and the update rule written out in NumPy."""

import numpy as np
import pytest
import torch
from torch import nn

from plasticity_probes import adam_statistics

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))]
MAKERS = {
    "adam": lambda p: torch.optim.Adam(p, 1e-2),
    "fused": lambda p: torch.optim.Adam(p, 1e-2, betas=(0.5, 0.9), fused=True),
    "foreach": lambda p: torch.optim.Adam(p, 1e-2, foreach=True),
    "amsgrad": lambda p: torch.optim.Adam(p, 1e-2, betas=(0.9, 0.5), amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, 1e-2, weight_decay=0.0),
    "tensor rate": lambda p: torch.optim.Adam(p, torch.tensor(1e-2), fused=True),
    "large eps": lambda p: torch.optim.Adam(p, 1e-2, eps=0.5),
}


def parameters(device: str = "cpu") -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, 4), (5,), ()]
    return [nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64).to(device)) for shape in shapes]


def step(optimizer: torch.optim.Optimizer, generator: torch.Generator) -> float:
    """One step on random gradients; returns how far the weights moved."""
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    before = [parameter.detach().clone() for parameter in held]
    for index, parameter in enumerate(held):
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.grad = (10.0**index * noise).to(parameter.device)
    optimizer.step()
    moved = [(a.detach() - b).cpu().numpy().ravel() for a, b in zip(held, before, strict=True)]
    return float(np.linalg.norm(np.concatenate(moved)))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("maker", MAKERS)
def test_update_norm_is_how_far_the_weights_moved(maker, device):
    optimizer = MAKERS[maker](parameters(device))
    generator = torch.Generator().manual_seed(1)
    for _ in range(7):
        moved = step(optimizer, generator)
        statistics = adam_statistics(optimizer)
        assert statistics["update_norm"].item() == pytest.approx(moved, rel=1e-5)
        assert all(v.dtype == torch.float32 and v.dim() == 0 and v.device.type == device for v in statistics.values())


def test_groups_have_their_own_settings():
    first, second, third = parameters()
    groups = [{"params": [first], "lr": 1e-3, "betas": (0.0, 0.9)}, {"params": [second, third], "eps": 0.1}]
    optimizer = torch.optim.Adam(groups, 1e-2)
    generator = torch.Generator().manual_seed(1)
    for _ in range(4):
        moved = step(optimizer, generator)
        assert adam_statistics(optimizer)["update_norm"].item() == pytest.approx(moved, rel=1e-5)


def test_update_ratio_against_the_rule_in_numpy():
    parameter = nn.Parameter(torch.zeros(6))
    optimizer = torch.optim.Adam([parameter], 1e-2, betas=(0.8, 0.95), eps=1e-3)
    generator = np.random.default_rng(0)
    m, v = np.zeros(6), np.zeros(6)
    for t in range(1, 9):
        gradient = generator.normal(size=6)
        m, v = 0.8 * m + 0.2 * gradient, 0.95 * v + 0.05 * gradient**2
        parameter.grad = torch.from_numpy(gradient).float()
        optimizer.step()
        ratio = np.abs(m / (1 - 0.8**t)) / (np.sqrt(v / (1 - 0.95**t)) + 1e-3)
        assert adam_statistics(optimizer)["update_ratio"].item() == pytest.approx(ratio.mean(), rel=1e-5)


def test_after_one_step_every_ratio_is_one():
    optimizer = torch.optim.Adam(held := parameters(), 1e-2)
    for parameter in held:
        parameter.grad = torch.full_like(parameter, -3.0)
    optimizer.step()
    statistics = adam_statistics(optimizer)
    assert statistics["update_ratio"].item() == pytest.approx(1)
    assert statistics["update_norm"].item() == pytest.approx(1e-2 * 18**0.5)  # 12 + 5 + 1 entries


def test_a_jump_of_the_gradient_overshoots():
    """After a long quiet phase a gradient that grows moves Adam (.9, .999) by up to 6.57 learning rates at step 12."""
    parameter = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = torch.optim.Adam([parameter], 1e-3, eps=0.0)
    ratios = []
    for t in range(20_000):
        parameter.grad = torch.full((1,), 1e-9 if t < 19_970 else 1.0, dtype=torch.float64)
        optimizer.step()
        if t >= 19_970:
            ratios.append(adam_statistics(optimizer)["update_ratio"].item())
    assert max(ratios) == pytest.approx(6.57, abs=0.01) and np.argmax(ratios) + 1 == 12


def test_before_the_first_step_there_is_nothing():
    optimizer = torch.optim.Adam(held := parameters(), 1e-2)
    zero = {"update_ratio": 0.0, "update_norm": 0.0}
    assert {name: value.item() for name, value in adam_statistics(optimizer).items()} == zero
    assert not optimizer.state
    for parameter in held:  # a state made ahead of the first step
        zeros = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
        optimizer.state[parameter] = {"step": torch.tensor(0.0), **zeros}
    assert {name: value.item() for name, value in adam_statistics(optimizer).items()} == zero


def test_another_optimizer_is_refused():
    with pytest.raises(ValueError, match="optimizer = SGD"):
        adam_statistics(torch.optim.SGD(parameters(), 1e-2))
