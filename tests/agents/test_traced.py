"""Functions as flat lists of operations: the same numbers, and nothing that aliases what it should not."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.func import vmap

from agents import traced
from agents.traced import Traced

aten, X = torch.ops.aten, torch.ones(3, 4)


def ones(x: Tensor) -> Tensor:
    return (x * 1).pow(1.0) + x * 1.0


def spread(x: Tensor) -> Tensor:
    row = x[:1]
    return row.expand(3, 4) * x - x / row.expand(3, 4) + row.expand(3, 4)


def seen_twice(x: Tensor) -> Tensor:
    return x.view(4, 3) * x.view(4, 3) + x.t().t().reshape(4, 3)


def constants(x: Tensor) -> Tensor:
    return x * torch.tensor(0.5) + torch.tensor(3)


def written(x: Tensor) -> Tensor:
    kept = x * 1
    kept.masked_fill_(x > 0, 0.0)
    return kept + x


def written_before(x: Tensor) -> Tensor:
    fresh = x + 1
    kept = fresh * 1
    fresh.mul_(0)
    return kept + fresh


def written_through_a_view(x: Tensor) -> Tensor:
    fresh = x + 1
    fresh.view(-1)[:5].zero_()
    return fresh.view(-1) * 1 + x.view(-1)


def viewed_and_written(x: Tensor) -> Tensor:
    fresh = x + 1
    kept, part = fresh.view(-1) * 1, fresh[1:].t() * 1
    fresh.mul_(0)
    return kept + fresh.view(-1) + part.sum()


def in_a_row(x: Tensor) -> Tensor:
    return vmap(lambda row: row.sum().expand(4) * row)(x)


@pytest.mark.parametrize(
    "function",
    [
        ones,
        spread,
        seen_twice,
        constants,
        written,
        written_before,
        written_through_a_view,
        viewed_and_written,
        in_a_row,
    ],
    ids=lambda function: function.__name__,
)
def test_the_numbers_are_the_same(function: Callable[[Tensor], Tensor]):
    made = Traced(function, (), (torch.randn(3, 4),))
    for seed in range(3):
        x = torch.randn(3, 4, generator=torch.Generator().manual_seed(seed))
        before = x.clone()
        assert torch.equal(made(x), function(x)) and torch.equal(x, before)


def test_what_is_returned_is_another_tensor():
    made = Traced(lambda x: (x * 1, x.pow(1.0).t(), torch.tensor(2.0) * 1, torch.tensor([3]).view(1, 1)), (), (X,))
    x = torch.randn(3, 4)
    for one in made(x):
        one.zero_()
    assert x.all() and [one.sum().item() for one in made(x)[2:]] == [2.0, 3] and torch.equal(made(x)[0], x)


def operations(function: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch) -> list:
    """What `function` is made of."""
    modules = []
    monkeypatch.setattr(traced, "_without_python", lambda module, _: modules.append(module) or module.forward)
    Traced(function, (), (torch.randn(3, 4),))
    return [node.target for node in modules[0].graph.nodes if node.op == "call_function"]


def test_what_changes_nothing_is_left_out(monkeypatch):
    assert operations(ones, monkeypatch) == [aten.add.Tensor]
    assert operations(constants, monkeypatch) == [aten.mul.Tensor, aten.add.Tensor]
    assert aten.expand.default not in operations(spread, monkeypatch)
    assert operations(lambda x: x.view(4, 3) * x.view(4, 3), monkeypatch).count(aten.view.default) == 1
    assert operations(written, monkeypatch).count(aten.mul.Tensor) == 1
