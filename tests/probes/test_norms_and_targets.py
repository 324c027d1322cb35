"""The first probes against cases worked out by hand and NumPy in float64."""

import numpy as np
import pytest
import torch
from torch import nn

from plasticity_probes import global_norm, target_statistics, weight_norms


def test_global_norm_of_a_3_4_12_box() -> None:
    assert global_norm([torch.tensor([3.0, 0.0]), torch.tensor([[4.0], [12.0]])]).item() == 13.0  # 9 + 16 + 144 = 169


def test_global_norm_against_numpy() -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(shape, generator=generator) for shape in ((7,), (3, 4), (2, 3, 5, 5))]
    flat = np.concatenate([tensor.double().numpy().ravel() for tensor in tensors])
    assert global_norm(tensors).item() == pytest.approx(np.sqrt((flat**2).sum()), rel=1e-6)


def test_global_norm_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="tensors"):
        global_norm([])


def test_weight_norms_name_every_parameter_and_the_total() -> None:
    model = nn.Sequential(nn.Linear(2, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[3.0, 4.0]]))
        model[0].bias.fill_(12.0)
    norms = {name: value.item() for name, value in weight_norms(model).items()}
    assert norms == {"0.weight": 5.0, "0.bias": 12.0, "total": 13.0}
    assert not any(value.requires_grad for value in weight_norms(model).values())


def test_target_statistics_by_hand() -> None:
    mean, std = target_statistics(torch.tensor([[1.0, 3.0], [5.0, 7.0]]))
    assert mean.item() == 4.0
    assert std.item() == pytest.approx(5.0**0.5)  # ((-3)^2 + 1 + 1 + 9) / 4 = 5
