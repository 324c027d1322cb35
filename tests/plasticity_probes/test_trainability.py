"""Refits: what they measure worked out without training where that is possible, and that they leave no trace."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from plasticity_probes import held_out_accuracy, random_function_labels, trainability

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=generator(seed))


def build(source: torch.Generator, outputs: int = 3) -> nn.Module:
    """An MLP drawn from `source` alone."""
    model = nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, outputs))
    for layer in (model[0], model[2]):
        nn.init.normal_(layer.weight, std=layer.in_features**-0.5, generator=source)
        nn.init.normal_(layer.bias, std=0.1, generator=source)
    return model


def dead(outputs: int = 3) -> nn.Module:
    """All hidden units silent for good: only the output's bias still learns."""
    model = build(generator(9), outputs)
    nn.init.constant_(model[0].bias, -1000.0)
    return model


def adam(parameters) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, 1e-2)


def still(parameters) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, 0.0)


def kept(networks: list, factory=build):
    """`factory`, and every network that it made kept in `networks`."""

    def make(source: torch.Generator) -> nn.Module:
        networks.append(factory(source))
        return copy.deepcopy(networks[-1])

    return make


def outputs_of(network: nn.Module, inputs: torch.Tensor) -> np.ndarray:
    return network(inputs).detach().cpu().numpy()


@pytest.mark.parametrize("device", DEVICES)
def test_the_target_is_the_paper_s(device):
    """With a learning rate of 0 the error is that of the start: mean of (f - mean f - sin(1e5 f_fresh))^2."""
    network, inputs, made = build(generator(1)).to(device), draw(20, 6).to(device), []
    found = trainability(network, inputs, still, kept(made), targets=2, steps=1, generator=generator(2))
    assert list(found) == ["error", "fresh_error", "excess"]
    for index in range(2):
        target_network, student = made[2 * index : 2 * index + 2]
        noise = np.sin(np.float32(1e5) * outputs_of(target_network.to(device), inputs)).astype(np.float64)
        for name, start in (("error", network), ("fresh_error", student.to(device))):
            start = outputs_of(start, inputs).astype(np.float64)
            expected = ((start - start.mean(0) - noise) ** 2).mean()
            assert found[name][index].item() == pytest.approx(expected, rel=1e-4)
    torch.testing.assert_close(found["excess"], found["error"] - found["fresh_error"])


def test_a_network_that_learns_and_one_that_cannot():
    inputs = draw(24, 6)
    settings = {"targets": 2, "steps": 300, "batch_size": 24}
    alive = trainability(build(generator(1)), inputs, adam, build, **settings)
    assert alive["error"].max() < 0.05 and alive["excess"].abs().max() < 0.05
    lost = trainability(dead(), inputs, adam, build, **settings)
    assert lost["error"].min() > 0.3 and lost["error"].max() < 0.7  # the variance of a sine, 1/2
    assert lost["excess"].min() > 0.25
    torch.testing.assert_close(lost["fresh_error"], alive["fresh_error"])


def test_a_scalar_output_and_one_picked_from_several():
    class ActorCritic(nn.Module):
        def __init__(self, source: torch.Generator) -> None:
            super().__init__()
            self.body = build(source, 1)

        def forward(self, inputs):
            return None, self.body(inputs).squeeze(1)

    def value(outputs):
        return outputs[1]

    inputs = draw(10, 6)
    found = trainability(ActorCritic(generator()), inputs, still, ActorCritic, targets=1, steps=1, output=value)
    plain = trainability(build(generator(), 1), inputs, still, lambda g: build(g, 1), targets=1, steps=1)
    torch.testing.assert_close(found["error"], plain["error"])
    with pytest.raises(ValueError, match="output gave tuple for 10 inputs"):
        trainability(ActorCritic(generator()), inputs, still, ActorCritic, targets=1, steps=1)


class Global(nn.Module):
    """Draws its weights and, in training, its dropout from the global generator, and counts its calls."""

    def __init__(self, source: torch.Generator | None = None) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.BatchNorm1d(8), nn.Linear(8, 3))

    def forward(self, inputs):
        return self.layers(inputs)


def probes_of(network: nn.Module, optimizer: torch.optim.Optimizer):
    inputs, labels = draw(20, 6), torch.arange(20) % 3
    seed = {"generator": generator(5), "steps": 3}
    yield trainability(network, inputs, adam, Global, targets=2, **seed)
    state = optimizer.state_dict()
    yield held_out_accuracy(network, inputs, labels, adam, optimizer_state=state, fresh_network=Global, **seed)


@pytest.mark.parametrize("training", [True, False])
def test_no_trace_is_left_and_a_seed_decides_everything(training):
    with torch.random.fork_rng([]):
        network = Global().train(training)
        optimizer = adam(network.parameters())
        network(draw(20, 6)).sum().backward()
        optimizer.step()
        before = copy.deepcopy((network.state_dict(), optimizer.state_dict(), [p.grad for p in network.parameters()]))
        state = torch.get_rng_state()
        first = list(probes_of(network, optimizer))
        assert torch.equal(torch.get_rng_state(), state)
        after = (network.state_dict(), optimizer.state_dict(), [p.grad for p in network.parameters()])
        torch.testing.assert_close(after, before, rtol=0, atol=0)
        assert network.training == training and all(p.requires_grad for p in network.parameters())
        torch.rand(7)  # another global state, the same results
        with torch.no_grad():
            second = list(probes_of(network, optimizer))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    for result in first:
        assert all(value.dtype == torch.float32 and not value.requires_grad for value in result.values())


def blobs(samples: int = 90, seed: int = 3):
    labels = torch.arange(samples) % 3
    centres = 4 * draw(3, 6, seed=8)
    return centres[labels] + 0.3 * draw(samples, 6, seed=seed), labels


def test_held_out_accuracy_of_classes_apart():
    inputs, labels = blobs()
    found = held_out_accuracy(dead(), inputs, labels, adam, fresh_network=build, steps=100, batch_size=32)
    assert found["train/fresh_network"].item() == 1 and found["held_out/fresh_network"].item() == 1
    assert found["held_out/fresh_optimizer"] < 0.6  # one constant answer
    alive = held_out_accuracy(build(generator()), inputs, labels, adam, steps=100, batch_size=32)
    assert alive["held_out/fresh_optimizer"].item() == 1
    assert list(alive) == ["train/fresh_optimizer", "held_out/fresh_optimizer", "held_out/chance"]


def test_random_labels_are_memorised_and_not_generalised():
    inputs, labels = draw(60, 6), torch.randint(3, (60,), generator=generator(4))
    found = held_out_accuracy(build(generator()), inputs, labels, adam, held_out=0.5, steps=400, batch_size=30)
    assert found["train/fresh_optimizer"] > 0.95 and found["held_out/fresh_optimizer"] < 0.7


def test_accuracy_before_training_and_the_split():
    """With a learning rate of 0 the accuracies of the two sides, weighted, are the network's own."""
    network, (inputs, labels) = build(generator(1)), blobs(50)
    right = (outputs_of(network, inputs).argmax(1) == labels.numpy()).mean()
    found = held_out_accuracy(network, inputs, labels, still, held_out=0.3, steps=1)
    parts = [found["train/fresh_optimizer"].item(), found["held_out/fresh_optimizer"].item()]
    assert np.average(parts, weights=[35, 15]) == pytest.approx(right, abs=1e-6)
    order = torch.randperm(50, generator=generator()).tolist()
    held, train = order[:15], order[15:]
    assert parts[1] == pytest.approx((outputs_of(network, inputs[held]).argmax(1) == labels[held].numpy()).mean())
    commonest = np.bincount(labels[train]).argmax()
    assert found["held_out/chance"].item() == pytest.approx((labels[held].numpy() == commonest).mean())


def test_the_carried_optimizer_is_used_and_left_alone():
    network, (inputs, labels) = build(generator(1)), blobs(50)
    optimizer = adam(network.parameters())
    nn.functional.cross_entropy(network(inputs), labels).backward()
    optimizer.step()
    carried = {**optimizer.state_dict()}
    carried["param_groups"] = [{**carried["param_groups"][0], "lr": 0.0}]
    before = copy.deepcopy(optimizer.state_dict())
    found = held_out_accuracy(network, inputs, labels, adam, optimizer_state=carried, steps=100)
    still_ones = held_out_accuracy(network, inputs, labels, still, steps=1)
    assert found["held_out/fresh_optimizer"].item() == 1
    assert found["train/carried_optimizer"] == still_ones["train/fresh_optimizer"]  # it came with a rate of 0
    torch.testing.assert_close(optimizer.state_dict(), before, rtol=0, atol=0)


def test_carried_moments_change_the_refit():
    network, (inputs, labels) = build(generator(1)), blobs(50)
    optimizer = adam(network.parameters())
    for parameter in network.parameters():
        parameter.grad = torch.full_like(parameter, 1e3)
    optimizer.step()
    state = optimizer.state_dict()
    found = held_out_accuracy(network, inputs, labels, adam, optimizer_state=state, steps=40, held_out=0.5)
    assert found["train/fresh_optimizer"].item() == 1
    assert found["train/carried_optimizer"] < 0.9  # huge second moments leave no step for the small gradients


def test_labels_of_a_random_function():
    network, inputs = build(generator(1)), draw(300, 6)
    outputs = outputs_of(network, inputs).astype(np.float64)
    expected = ((outputs - outputs.mean(0)) / outputs.std(0)).argmax(1)
    labels = random_function_labels(network, inputs)
    assert labels.dtype == torch.int64 and (labels.numpy() == expected).mean() > 0.99
    assert np.bincount(labels, minlength=3).min() > 30
    with pytest.raises(ValueError, match="1 output"):
        random_function_labels(build(generator(), 1), inputs)


def test_progress_counts_every_gradient_step():
    seen = []
    inputs, labels = blobs(30)
    trainability(build(generator()), inputs, adam, build, targets=2, steps=3, progress=lambda *p: seen.append(p))
    assert seen == [(done, 12) for done in range(1, 13)]
    seen.clear()
    held_out_accuracy(dead(), inputs, labels, adam, fresh_network=build, steps=2, progress=lambda *p: seen.append(p))
    assert seen == [(done, 4) for done in range(1, 5)]


def test_bad_arguments_are_refused():
    network, (inputs, labels) = build(generator()), blobs(30)
    for name in ("targets", "steps", "batch_size", "scale"):
        with pytest.raises(ValueError, match=f"{name} = 0"):
            trainability(network, inputs, adam, build, **{name: 0})
    with pytest.raises(ValueError, match="output gave"):
        trainability(network, inputs, adam, build, output=lambda outputs: outputs.mean())
    for wrong in (labels[:-1], labels.float(), labels[:, None]):
        with pytest.raises(ValueError, match="labels"):
            held_out_accuracy(network, inputs, wrong, adam)
    for share in (0, 1, 0.001):
        with pytest.raises(ValueError, match="held_out = "):
            held_out_accuracy(network, inputs, labels, adam, held_out=share)
