"""Norms, changes, targets and Q-values against cases worked out by hand and NumPy in float64."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import plasticity_probes as probes
from plasticity_probes import (
    adam_statistics,
    effective_learning_rate,
    global_norm,
    gradient_norms,
    mean_abs_weight,
    q_statistics,
    snapshot,
    target_statistics,
    td_error_statistics,
    weight_change,
    weight_norms,
)
from plasticity_probes.norms import float64_sum


def small_network(seed: int = 0) -> nn.Module:
    """conv -> LayerNorm -> dense, with weights that depend on `seed` alone."""
    network = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.LayerNorm(12), nn.Linear(12, 4))
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        nn.init.normal_(parameter, generator=generator)
    return network


def arrays(network: nn.Module) -> dict[str, np.ndarray]:
    return {name: parameter.detach().double().numpy().ravel() for name, parameter in network.named_parameters()}


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_weight_probes_against_numpy(dtype: torch.dtype) -> None:
    network, before = small_network().to(dtype), small_network(1).to(dtype)
    now, then = arrays(network), arrays(before)
    now["total"], then["total"] = (np.concatenate(list(parts.values())) for parts in (now, then))
    tolerance = 1e-2 if dtype == torch.bfloat16 else 1e-6
    results = {
        "norm": (weight_norms(network), lambda name: np.sqrt((now[name] ** 2).sum())),
        "mean": (mean_abs_weight(network), lambda name: np.abs(now[name]).mean()),
        "change": (
            weight_change(network, snapshot(before)),
            lambda name: np.sqrt(((now[name] - then[name]) ** 2).mean()),
        ),
    }
    for values, oracle in results.values():
        assert list(values) == [*dict(network.named_parameters()), "total"]
        for name, value in values.items():
            assert value.dtype == torch.float32 and value.dim() == 0 and not value.requires_grad
            assert value.item() == pytest.approx(oracle(name), rel=tolerance)


SHAPES = {"dense1 of NatureCNN": (512, 3136), "one row": (1, 300_000), "long rows": (3, 100_000), "vector": (300_000,)}


@pytest.fixture
def threads():
    """Sets torch's threads, and puts them back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("law", ["uniform", "constant"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_sums_over_many_weights_are_exact_and_do_not_depend_on_the_threads(shape, law, threads) -> None:
    """The oracle is math.fsum, which is exact. Float32 sums of torch's err by 1e-5 to 8e-3 on these."""
    weight = torch.empty(shape).uniform_(-0.0406, 0.0406, generator=torch.Generator().manual_seed(0))
    weight = weight if law == "uniform" else torch.full(shape, 0.1)
    model, before = nn.Module(), weight + 0.25 * weight
    model.weight = nn.Parameter(weight)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.5, betas=(0.5, 0.75), eps=1e-8)
    model.weight.grad = weight.clone()
    moments = {"exp_avg": 0.5 * weight, "exp_avg_sq": torch.full_like(weight, 0.0025)}  # m_hat = weight, v_hat = .01
    optimizer.state[model.weight] = {"step": torch.tensor(1.0), **moments}
    w, then = weight.double().numpy().ravel(), before.double().numpy().ravel()
    entries, difference, ratio = w.size, w - then, np.abs(w) / (np.sqrt(np.float64(np.float32(0.0025)) / 0.25) + 1e-8)
    norm = math.sqrt(math.fsum(w * w))
    wanted = {
        "norm": norm,
        "gradient norm": norm,
        "mean": math.fsum(np.abs(w)) / entries,
        "change": math.sqrt(math.fsum(difference * difference) / entries),
        "update ratio": math.fsum(ratio) / entries,
        "update norm": 0.5 * math.sqrt(math.fsum(ratio * ratio)),
    }
    sums, found = [], []
    for number in (1, 2):
        threads(number)
        sums.append([float64_sum(f, model.weight).item() for f in (torch.abs, torch.square)])
        adam = adam_statistics(optimizer)
        found.append(
            {
                "norm": weight_norms(model)["total"].item(),
                "gradient norm": gradient_norms(model)["weight"].item(),
                "mean": mean_abs_weight(model)["weight"].item(),
                "change": weight_change(model, {"weight": before})["total"].item(),
                "update ratio": adam["update_ratio"].item(),
                "update norm": adam["update_norm"].item(),
            }
        )
        assert global_norm([weight]).item() == pytest.approx(norm, rel=1e-6)
    assert sums[0] == pytest.approx([math.fsum(np.abs(w)), math.fsum(w * w)], rel=1e-12)
    assert sums[1] == pytest.approx(sums[0], rel=1e-12)
    for one in found:
        assert one == pytest.approx(wanted, rel=6e-8)  # rounded once, to float32


def test_a_norm_of_float64_weights_changes_nothing() -> None:
    model = nn.Linear(3, 2).double()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    weight_norms(model), mean_abs_weight(model), weight_change(model, before)
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())


def test_a_snapshot_stays_while_the_weights_move() -> None:
    network = small_network()
    reference = snapshot(network)
    assert all(value.item() == 0 for value in weight_change(network, reference).values())
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.5
    assert not any(value.requires_grad for value in reference.values())
    for value in weight_change(network, reference).values():
        assert value.item() == pytest.approx(0.5, rel=1e-6)


@pytest.mark.parametrize("lr", [0.1, torch.tensor(0.1)])
def test_effective_learning_rate_by_hand(lr: float | torch.Tensor) -> None:
    model = nn.Sequential(nn.Linear(2, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[3.0, 4.0]]))
    adam, sgd = effective_learning_rate(model, lr), effective_learning_rate(model, lr, "sgd")
    assert list(adam) == list(sgd) == ["0.weight"]
    assert adam["0.weight"].item() == pytest.approx(0.1 / 5)
    assert sgd["0.weight"].item() == pytest.approx(0.1 / 25)


def test_the_effective_rate_is_what_a_normalised_layer_feels() -> None:
    """Doubling a scale-invariant weight and its rate (SGD: four times the rate) turns it by the same angle."""
    model = nn.Sequential(nn.Linear(3, 3))
    before = effective_learning_rate(model, 0.1), effective_learning_rate(model, 0.1, "sgd")
    with torch.no_grad():
        model[0].weight *= 2
    after = effective_learning_rate(model, 0.2), effective_learning_rate(model, 0.4, "sgd")
    for first, second in zip(before, after, strict=True):
        torch.testing.assert_close(first, second)


def test_bad_models_and_references_are_refused() -> None:
    network, nothing = small_network(), nn.ReLU()
    for probe in (weight_norms, mean_abs_weight, snapshot):
        with pytest.raises(ValueError, match="no parameters"):
            probe(nothing)
    with pytest.raises(ValueError, match="reference names"):
        weight_change(network, {})
    wrong = {**snapshot(network), "0.bias": torch.zeros(1)}
    with pytest.raises(ValueError, match=r"reference\['0.bias'\]"):
        weight_change(network, wrong)
    with pytest.raises(ValueError, match="kind = 'lion'"):
        effective_learning_rate(network, 0.1, "lion")
    with pytest.raises(ValueError, match="weight matrix"):
        effective_learning_rate(nn.LayerNorm(3), 0.1)


def test_td_errors_by_hand() -> None:
    predictions, targets = torch.tensor([1.0, 2.0, 3.0, 4.0], requires_grad=True), torch.tensor([2.0, 0.0, 3.0, 7.0])
    statistics = td_error_statistics(predictions, targets)  # errors 1, -2, 0, 3
    assert {name: value.item() for name, value in statistics.items()} == {
        "mean": 0.5,
        "mean_abs": 1.5,
        "std": pytest.approx(3.25**0.5),
        "max_abs": 3.0,
    }
    assert not any(value.requires_grad for value in statistics.values())


def test_q_values_by_hand() -> None:
    q_values = torch.tensor([[1.0, 4.0, 2.0], [8.0, 3.0, 8.0]])
    assert {name: value.item() for name, value in q_statistics(q_values).items()} == {
        "mean": pytest.approx(26 / 6),
        "max_mean": 6.0,
        "max_std": 2.0,
        "action_gap": 1.0,  # (4 - 2 + 8 - 8) / 2
    }
    assert q_statistics(q_values[:, :1])["action_gap"].item() == 0


def test_bad_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"predictions of shape \(2, 1\) and targets of shape \(2,\)"):
        td_error_statistics(torch.zeros(2, 1), torch.zeros(2))
    with pytest.raises(ValueError, match="q_values of shape"):
        q_statistics(torch.zeros(2))


class NothingReadBack(TorchDispatchMode):
    """Fails where a tensor's value is asked for, or decides on a shape: on a GPU both would wait for the device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert not any(part in str(func) for part in ("_local_scalar_dense", "nonzero", "masked_select", "aten.equal"))
        indices = args[1] if str(func).startswith("aten.index.") else ()
        assert not any(index is not None and index.dtype == torch.bool for index in indices)
        return func(*args, **(kwargs or {}))


def during_training() -> dict:
    """Every probe that may run while training, ready to be called."""
    network, values, images = small_network(), torch.randn(8, 5), torch.randn(4, 3, 2, 2)
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    adam = torch.optim.Adam(network.parameters(), 1e-3, fused=True)
    adam.step()
    gradients, reference, layers = torch.randn(6, 9), snapshot(network), {"a": values, "b": images}

    def squared(model: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
        return model(inputs).square().sum(1)

    batch = torch.randn(4, 2, 4, 4)
    return {
        "dormant": lambda: probes.dormant_fraction(layers, 0.1),
        "dead": lambda: [probes.dead_fraction(layers, kind) for kind in ("relu", "tanh")],
        "inactive": lambda: probes.inactive_fraction(layers),
        "linearised": lambda: [probes.linearized_fraction(layers, kind) for kind in ("relu", "smooth")],
        "preactivations": lambda: probes.preactivation_statistics(images),
        "ranks": lambda: probes.ranks(values),
        "norms": lambda: [weight_norms(network), mean_abs_weight(network), weight_change(network, reference)],
        "rate": lambda: [effective_learning_rate(network, 1e-3, kind) for kind in ("adam", "sgd")],
        "targets": lambda: [target_statistics(values), td_error_statistics(values, values), q_statistics(values)],
        "churn": lambda: [probes.value_churn(values, values), probes.greedy_action_churn(values, values)],
        "policy": lambda: [
            probes.policy_churn(values, values),
            probes.policy_churn((values, values[0]), (values, values[0]), "continuous"),
        ],
        "adam": lambda: probes.adam_statistics(adam),
        "gradient norms": lambda: probes.gradient_norms(network),
        "gradient covariance": lambda: probes.negative_share(probes.gradient_covariance(gradients)),
        "per-example gradients": lambda: probes.per_example_gradients(network, squared, batch),
        "ntk": lambda: probes.ntk_statistics(probes.ntk(network, batch)),
    }


def tensors_in(result):
    if isinstance(result, torch.Tensor):
        return [result]
    return [tensor for part in (result.values() if isinstance(result, dict) else result) for tensor in tensors_in(part)]


@pytest.mark.parametrize("name", during_training())
def test_probes_of_training_read_nothing_back_and_give_detached_float32(name: str) -> None:
    probe = during_training()[name]
    state = torch.get_rng_state()
    with NothingReadBack():
        result = probe()
    assert torch.equal(torch.get_rng_state(), state)
    for tensor in tensors_in(result):
        assert tensor.dtype == torch.float32 and not tensor.requires_grad


def test_the_check_sees_what_it_should() -> None:
    for culprit in (lambda x: x.sum().item(), lambda x: bool(x[0] > 0), lambda x: x.nonzero(), lambda x: x[x > 0]):
        with pytest.raises(AssertionError), NothingReadBack():
            culprit(torch.ones(3))
