"""The fused Adam without its wrapping, against torch's own."""

import copy

import torch
from torch import nn

from agents.adam import FusedAdam


def filters(seed):
    """Of a convolution, channels last, then a bias and a matrix."""
    shapes, generator = [(4, 3, 5, 5), (7,), (2, 3)], torch.Generator().manual_seed(seed)
    drawn = [torch.randn(shape, generator=generator) for shape in shapes]
    return [drawn[0].contiguous(memory_format=torch.channels_last), *drawn[1:]]


def groups(parameters):
    return [
        {"params": parameters[:2], "betas": (0.5, 0.9)},
        {"params": parameters[2:], "weight_decay": 0.1, "decoupled_weight_decay": True},
    ]


def pair():
    """(optimizer, its parameters) of torch and of ours, from the same weights."""
    found = []
    for make in (lambda given: torch.optim.Adam(given, 0.1, fused=True), lambda given: FusedAdam(given, 0.1)):
        parameters = [nn.Parameter(tensor) for tensor in filters(0)]
        found.append((make(groups(parameters)), parameters))
    return found


def step(optimizers, seed, without=(), refused=False):
    """A step of each along the same gradients."""
    for adam, parameters in optimizers:
        for place, (parameter, gradient) in enumerate(zip(parameters, filters(seed), strict=True)):
            parameter.grad = None if place in without else gradient
        adam.found_inf, adam.grad_scale = torch.tensor(float(refused)), None
        adam.move() if isinstance(adam, FusedAdam) else adam.step()


def assert_equal(optimizers):
    (torchs, theirs), (adam, ours) = optimizers
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.equal(mine, other)
        for name in ("exp_avg", "exp_avg_sq", "step"):
            assert torch.equal(adam.state[mine][name], torchs.state[other][name])


def test_steps_are_torchs_to_the_bit():
    optimizers = pair()
    for seed in range(1, 12):
        step(optimizers, seed, without=(1,) if seed % 3 == 0 else (), refused=seed == 5)
    assert_equal(optimizers)


def test_moments_that_were_saved_in_another_layout_are_those_of_the_same_weights():
    optimizers = pair()
    (torchs, _), (adam, ours) = optimizers
    step(optimizers, 1)
    saved = copy.deepcopy(torchs.state_dict())
    for state in saved["state"].values():
        state.update({name: state[name].contiguous() for name in ("exp_avg", "exp_avg_sq")})
    adam.load_state_dict(saved)
    assert adam.state[ours[0]]["exp_avg"].stride() == ours[0].stride() != saved["state"][0]["exp_avg"].stride()
    for seed in range(2, 5):
        step(optimizers, seed)
    assert_equal(optimizers)


def test_a_state_from_before_the_first_step_is_taken_over():
    optimizers = pair()
    (torchs, _), (adam, _) = optimizers
    adam.load_state_dict(torchs.state_dict())
    step(optimizers, 1)
    assert_equal(optimizers)


def test_torch_counts_that_weights_have_moved():
    (_, (adam, parameters)) = pair()
    before = [parameter._version for parameter in parameters]
    step([(adam, parameters)], 1, without=(1,))
    assert [now._version > then for now, then in zip(parameters, before, strict=True)] == [True, False, True]


def test_a_state_taken_over_is_a_copy():
    _, (one, weights) = pair()
    _, (other, _) = pair()
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    one.move()
    other.load_state_dict(one.state_dict())
    saved = copy.deepcopy(other.state_dict()["state"])
    one.move()
    for number, state in other.state_dict()["state"].items():
        assert all(torch.equal(value, saved[number][name]) for name, value in state.items())
