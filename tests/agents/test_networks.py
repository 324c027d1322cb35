"""Networks: sizes worked out by hand, what the input means, and who gets whose gradient."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from agents.config import NetworkConfig, SupportConfig
from agents.heads import CategoricalHead, ValueHead
from agents.layers import same_padding
from agents.networks import MLP, ActorCritic, NatureCNN, ObservationNormalizer, QNetwork, SmallCNN, build_torso
from tests.agents.helpers import ATARI, CONTINUOUS, SMALL, SMALL_IMAGE, STACK, VECTOR, global_random_states


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def parameters(model):
    return sum(p.numel() for p in model.parameters())


def head_of(atoms):
    return ValueHead() if atoms == 1 else CategoricalHead(SupportConfig(num_atoms=atoms), torch.device("cpu"))


def q_network(spaces, config, atoms=1):
    return QNetwork(build_torso(spaces, config, generator()), spaces.action_size, head_of(atoms), "torch", generator())


def actor_critic(spaces, config=SMALL, shared=True, atoms=1, normalize=False):
    return ActorCritic(
        spaces,
        config,
        shared_torso=shared,
        head=head_of(atoms),
        normalize_observations=normalize,
        generator=generator(),
    )


def random_images(*shape):
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, shape, np.uint8))


def test_nature_cnn_for_six_actions_has_1_687_206_parameters():
    # conv1 4*8*8*32 + 32 = 8,224; conv2 32*4*4*64 + 64 = 32,832; conv3 64*3*3*64 + 64 = 36,928
    # 84 -> 20 -> 9 -> 7, so dense1 64*7*7*512 + 512 = 1,606,144; head 512*6 + 6 = 3,078
    assert parameters(q_network(ATARI, NetworkConfig())) == 8_224 + 32_832 + 36_928 + 1_606_144 + 3_078 == 1_687_206


def test_c51s_head_has_51_outputs_an_action():
    # 1,687,206 - 3,078 + 512 * 306 + 306 = 1,841,106
    assert parameters(q_network(ATARI, NetworkConfig(), atoms=51)) == 1_841_106


def test_mlp_parameters():
    # 5*16 + 16 = 96, 16*16 + 16 = 272, head 16*3 + 3 = 51
    assert parameters(q_network(VECTOR, SMALL)) == 96 + 272 + 51


def test_depth_zero_is_linear():
    network = q_network(VECTOR, NetworkConfig(depth=0))
    assert parameters(network) == 5 * 3 + 3
    assert network(torch.zeros(2, 5)).shape == (2, 3)


@pytest.mark.parametrize(("shared", "expected"), [(True, 368 + 34 + 17 + 2), (False, 2 * 368 + 34 + 17 + 2)])
def test_actor_critic_parameters(shared, expected):
    # torso 96 + 272 = 368; policy 16*2 + 2 = 34; value 16 + 1 = 17; log_std 2
    assert parameters(actor_critic(CONTINUOUS, shared=shared)) == expected


def test_q_network_shapes():
    assert q_network(VECTOR, SMALL)(torch.zeros(7, 5)).shape == (7, 3)
    assert q_network(VECTOR, SMALL, atoms=11)(torch.zeros(7, 5)).shape == (7, 3, 11)
    assert q_network(ATARI, NetworkConfig())(random_images(2, 4, 84, 84)).shape == (2, 6)


def test_actor_critic_shapes():
    policy, values = actor_critic(CONTINUOUS)(torch.zeros(7, 5))
    assert policy.shape == (7, 2) and values.shape == (7,)
    policy, values = actor_critic(VECTOR, atoms=11)(torch.zeros(7, 5))
    assert policy.shape == (7, 3) and values.shape == (7, 11)
    assert actor_critic(VECTOR).log_std is None
    assert actor_critic(CONTINUOUS).log_std.tolist() == [0.0, 0.0]


def test_auto_takes_the_cnn_for_large_images_and_the_mlp_otherwise():
    assert isinstance(build_torso(ATARI, NetworkConfig(), generator()), NatureCNN)
    assert isinstance(build_torso(SMALL_IMAGE, NetworkConfig(), generator()), NatureCNN)
    assert isinstance(build_torso(STACK, NetworkConfig(), generator()), MLP)
    assert isinstance(build_torso(VECTOR, NetworkConfig(), generator()), MLP)
    assert isinstance(build_torso(ATARI, NetworkConfig(torso="mlp"), generator()), MLP)


def test_pixels_are_scaled_so_that_255_is_one():
    torso = build_torso(STACK, SMALL, generator())
    white = torch.full((1, 4, 6, 6), 255, dtype=torch.uint8)
    torch.testing.assert_close(torso(white)[0], torso(torch.ones(1, 4, 6, 6))[0])


def test_mlp_is_its_matrices():
    torso = build_torso(VECTOR, SMALL, generator())
    x = torch.randn(6, 5, generator=generator(1))
    w1, b1, w2, b2 = (p.detach().double().numpy() for p in torso.parameters())
    hidden = np.maximum(x.double().numpy() @ w1.T + b1, 0)
    np.testing.assert_allclose(torso(x)[0].detach().numpy(), np.maximum(hidden @ w2.T + b2, 0), atol=1e-5)


def test_nature_cnn_is_its_convolutions():
    torso, images = build_torso(ATARI, NetworkConfig(), generator()), random_images(2, 4, 84, 84)
    weights = {name: p.detach().contiguous().double() for name, p in torso.named_parameters()}
    x = images.double() / 255
    for index, stride in ((1, 4), (2, 2), (3, 1)):
        name = f"convolutions.conv{index}"
        x = F.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], stride).relu()
    x = F.linear(x.contiguous().flatten(1), weights["dense.dense1.weight"], weights["dense.dense1.bias"]).relu()
    torch.testing.assert_close(torso(images)[0].detach().double(), x, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "zeros", "left"),
    [
        (84, 8, 4, (2, 2), 21),  # 20 * 4 + 8 - 84 = 4
        (21, 4, 2, (1, 2), 11),  # 10 * 2 + 4 - 21 = 3: the odd one after
        (11, 3, 1, (1, 1), 11),
        (43, 8, 4, (2, 3), 11),  # 10 * 4 + 8 - 43 = 5
        (8, 2, 4, (0, 0), 2),  # the kernel is shorter than the stride: 4 + 2 - 8 < 0
        (1, 3, 2, (1, 1), 1),
    ],
)
def test_same_padding_by_hand(size, kernel, stride, zeros, left):
    assert same_padding(size, kernel, stride) == zeros
    assert (size + sum(zeros) - kernel) // stride + 1 == left == math.ceil(size / stride)


def slow_convolution(maps, weight, bias, stride):
    """Flax's SAME written out position by position in float64: output (i, j) reads the rows i * stride - low + k."""
    outputs, _, kernel, _ = weight.shape
    batch, _, *sizes = maps.shape
    places, lows = [], []
    for size in sizes:
        places.append(math.ceil(size / stride))
        lows.append(max((places[-1] - 1) * stride + kernel - size, 0) // 2)
    found = np.zeros((batch, outputs, *places))
    for i, j in itertools.product(*map(range, places)):
        found[:, :, i, j] = bias
        for k, m in itertools.product(range(kernel), repeat=2):
            row, column = i * stride - lows[0] + k, j * stride - lows[1] + m
            if 0 <= row < sizes[0] and 0 <= column < sizes[1]:
                found[:, :, i, j] += maps[:, :, row, column] @ weight[:, :, k, m].T
    return np.maximum(found, 0)


@pytest.mark.parametrize(
    ("kind", "shape", "maps", "strides"),
    [
        ("nature_cnn", (4, 84, 84), [(21, 21), (11, 11), (11, 11)], (4, 2, 1)),
        ("nature_cnn", (3, 43, 60), [(11, 15), (6, 8), (6, 8)], (4, 2, 1)),
        ("small_cnn", (1, 28, 28), [(14, 14), (7, 7)], (2, 2)),
    ],
)
def test_padded_torsos_are_flaxs_same(kind, shape, maps, strides):
    spaces = ATARI._replace(observation_shape=shape)
    torso, images = build_torso(spaces, NetworkConfig(kind, 32, padding="same"), generator()), random_images(2, *shape)
    weights = {name: p.detach().double().numpy() for name, p in torso.named_parameters()}
    x = images.double().numpy() / 255
    for index, (stride, expected) in enumerate(zip(strides, maps, strict=True), start=1):
        x = slow_convolution(x, *(weights[f"convolutions.conv{index}.{part}"] for part in ("weight", "bias")), stride)
        assert x.shape[2:] == expected
    x = np.maximum(x.reshape(2, -1) @ weights["dense.dense1.weight"].T + weights["dense.dense1.bias"], 0)
    np.testing.assert_allclose(torso(images)[0].detach().numpy(), x, atol=1e-5, rtol=1e-5)
    hidden = torso.convolutions(images.float().contiguous(memory_format=torch.channels_last))
    assert hidden.is_contiguous(memory_format=torch.channels_last)  # a copy at each layer would cost


def test_dopamines_network():
    """Maps of 21, 11 and 11: 7,744 inputs to dense1, whose Xavier bound is sqrt(6 / (7,744 + 512))."""
    network = q_network(ATARI, NetworkConfig(padding="same", initializer="xavier_uniform"))
    dense1 = network.torso.dense.dense1
    assert dense1.in_features == 7_744 == 64 * 11 * 11
    assert dense1.initializer.bound == pytest.approx(0.0270, abs=5e-5)
    assert 0.99 * 0.0270 < dense1.weight.abs().max() < 0.0270
    valid = q_network(ATARI, NetworkConfig(initializer="xavier_uniform")).torso.dense.dense1
    assert (valid.in_features, valid.initializer.bound) == (3_136, pytest.approx(0.0406, abs=5e-5))
    # 8,224 + 32,832 + 36,928 as above, dense1 7,744 * 512 + 512, head 512 * 6 + 6
    assert parameters(network) == 8_224 + 32_832 + 36_928 + 3_965_440 + 3_078 == 4_046_502


def test_small_cnn_is_its_convolutions():
    config = NetworkConfig(torso="small_cnn", width=256, depth=2)
    spaces = VECTOR._replace(observation_shape=(1, 28, 28), observation_dtype=np.dtype(np.uint8))
    torso = build_torso(spaces, config, generator())
    assert isinstance(torso, SmallCNN)
    # 5x5 and 3x3, stride 2 each: 28 -> 12 -> 5, and 64 channels of 25 positions
    assert parameters(torso) == (25 + 1) * 64 + (9 * 64 + 1) * 64 + (1600 + 1) * 256 + (256 + 1) * 256
    images = random_images(3, 1, 28, 28)
    conv1, conv2 = (torso.convolutions[i] for i in (0, 2))
    hidden = F.relu(F.conv2d(images.float() / 255, conv1.weight, conv1.bias, stride=2))
    hidden = F.relu(F.conv2d(hidden, conv2.weight, conv2.bias, stride=2)).flatten(1)
    for layer in (torso.dense[0], torso.dense[2]):
        hidden = F.relu(F.linear(hidden, layer.weight, layer.bias))
    assert torch.allclose(torso(images)[0], hidden, atol=1e-6)


def test_channel_c_owns_columns_c_s_to_c_plus_1_s_of_the_first_dense_layer():
    torso, images = build_torso(ATARI, NetworkConfig(width=3), generator()), random_images(2, 4, 84, 84)
    maps = torso.convolutions(images.float() / 255).detach()
    places = [(0, 0, 1), (5, 6, 0), (63, 3, 4)]
    with torch.no_grad():
        torso.dense.dense1.weight.zero_()
        torso.dense.dense1.bias.zero_()
        for unit, (channel, row, column) in enumerate(places):
            torso.dense.dense1.weight[unit, channel * 49 + row * 7 + column] = 1.0
    expected = torch.stack([maps[:, c, y, x] for c, y, x in places], dim=1)
    torch.testing.assert_close(torso(images)[0].detach(), expected)


@pytest.mark.parametrize("spaces", [VECTOR, CONTINUOUS, SMALL_IMAGE])
@pytest.mark.parametrize("shared", [True, False])
def test_the_value_loss_reaches_the_actors_torso_only_when_shared(spaces, shared):
    network = actor_critic(spaces, shared=shared)
    inputs = random_images(3, *spaces.observation_shape)
    network(inputs if spaces.is_image else inputs.float() / 255)[1].square().sum().backward()
    reached = any(p.grad is not None and p.grad.any() for p in network.actor_torso.parameters())
    assert reached == shared
    assert network.policy_head.weight.grad is None
    assert network.value_head.weight.grad.any()


@pytest.mark.parametrize("shared", [True, False])
def test_the_policy_loss_does_not_reach_the_critic(shared):
    network = actor_critic(CONTINUOUS, shared=shared)
    network(torch.ones(3, 5))[0].square().sum().backward()
    assert network.value_head.weight.grad is None
    assert shared or all(p.grad is None for p in network.critic_torso.parameters())


def test_orthogonal_gains_of_the_heads():
    # CleanRL: .01 for the policy, 1 for the value; a head's rows are orthonormal times the gain
    network = actor_critic(VECTOR, NetworkConfig(width=16, initializer="orthogonal"))
    assert network.policy_head.weight.norm(dim=1).tolist() == pytest.approx([0.01] * 3)
    assert network.value_head.weight.norm().item() == pytest.approx(1.0)


def test_separate_torsos_start_different():
    network = actor_critic(VECTOR, shared=False)
    first, second = network.actor_torso.layers.dense1.weight, network.critic_torso.layers.dense1.weight
    assert not torch.equal(first, second)


def test_every_layer_keeps_its_initializer():
    for network in (q_network(ATARI, NetworkConfig()), actor_critic(SMALL_IMAGE, shared=False)):
        layers = [m for m in network.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
        assert all(hasattr(layer, "initializer") for layer in layers)


@pytest.mark.parametrize("spaces", [ATARI, VECTOR])
def test_building_leaves_the_global_generators_alone(spaces):
    before = global_random_states()
    q_network(spaces, NetworkConfig(initializer="orthogonal"))
    actor_critic(spaces, NetworkConfig(), shared=False)
    assert global_random_states() == before


# -- running statistics ----------------------------------------------------------------------------------------------


def test_normalizer_holds_the_mean_and_variance_of_all_it_saw():
    rng, normalizer = np.random.default_rng(0), ObservationNormalizer(4)
    batches = [rng.normal([0, 5, -100, 3], [1, 0.1, 20, 0], (size, 4)) for size in (7, 1, 50, 13)]
    for batch in batches:
        normalizer.update(torch.from_numpy(batch).float())
    seen = np.concatenate(batches)
    np.testing.assert_allclose(normalizer.mean.numpy(), seen.mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(normalizer.variance.numpy(), seen.var(0), rtol=1e-3, atol=1e-5)
    assert normalizer.count.item() == 71


def test_normalizer_standardises_and_clips():
    normalizer = ObservationNormalizer(1)
    normalizer.update(torch.tensor([[1.0], [3.0]]))  # mean 2, variance 1
    assert normalizer(torch.tensor([[2.0], [4.5], [100.0], [-100.0]]))[:, 0].tolist() == pytest.approx(
        [0, 2.5, 10, -10]
    )


def test_a_new_normalizer_only_clips():
    assert ObservationNormalizer(1)(torch.tensor([[0.5], [-20.0]]))[:, 0].tolist() == pytest.approx([0.5, -10.0])


def test_using_the_network_does_not_change_the_statistics():
    network = actor_critic(CONTINUOUS, normalize=True)
    network(torch.full((4, 5), 3.0))
    assert network.normalizer.count.item() == 0


def test_normalized_network_sees_standardised_observations():
    plain, normalized = actor_critic(CONTINUOUS), actor_critic(CONTINUOUS, normalize=True)
    normalized.normalizer.update(torch.tensor([[1.0] * 5, [3.0] * 5]))
    x = torch.randn(6, 5, generator=generator(2))
    for ours, expected in zip(normalized(x), plain(x - 2.0), strict=True):
        torch.testing.assert_close(ours, expected)


def stacked(network, networks):
    """The parameters and buffers of several networks of one structure, as one tensor each with a leading axis."""
    return {name: torch.stack([dict(n.state_dict())[name] for n in networks]) for name in network.state_dict()}


@pytest.mark.parametrize("capture", ["hidden", "preactivations"])
@pytest.mark.parametrize(
    ("spaces", "config"),
    [
        (VECTOR, SMALL),
        (VECTOR, NetworkConfig(width=8, depth=2, norm="layer", doubled="crelu", spectral_layers=1)),
        (SMALL_IMAGE, NetworkConfig(width=8, torso="nature_cnn", padding="same")),
    ],
)
@pytest.mark.parametrize("kind", ["q", "actor-critic"])
def test_networks_run_under_functional_call_and_vmap(kind, spaces, config, capture):
    """What is captured is returned, so nothing escapes: each of three stacked networks is the one that it is alone."""

    def build(seed):
        if kind == "q":
            torso = build_torso(spaces, config, generator(seed))
            return QNetwork(torso, spaces.action_size, ValueHead(), "torch", generator(seed))
        parts = {"shared_torso": False, "head": ValueHead(), "normalize_observations": spaces is VECTOR}
        return ActorCritic(spaces, config, **parts, generator=generator(seed))

    networks = [build(seed) for seed in range(3)]
    skeleton = build(9)
    x = random_images(4, *spaces.observation_shape) if spaces.is_image else torch.randn(4, *spaces.observation_shape)

    def call(state):
        return torch.func.functional_call(skeleton, state, (x, capture))

    outputs, captured = torch.func.vmap(call)(stacked(skeleton, networks))
    for index, network in enumerate(networks):
        alone, held = network(x, capture)
        for ours, theirs in zip(*((o if isinstance(o, tuple) else (o,)) for o in (outputs, alone)), strict=True):
            torch.testing.assert_close(ours[index], theirs, rtol=1e-4, atol=1e-5)
        assert list(held) == list(captured) and len(held) >= 2
        for name, values in held.items():
            assert len(values) == (1 if capture == "hidden" else 2)
            for ours, theirs in zip(captured[name], values, strict=True):
                torch.testing.assert_close(ours[index], theirs, rtol=1e-4, atol=1e-5)
