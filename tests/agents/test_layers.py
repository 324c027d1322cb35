"""Norms, nonlinearities, dropout and spectral scaling against NumPy, and what the network around them looks like."""

import copy
import timeit

import numpy as np
import pytest
import torch
from torch import nn

from agents.config import NetworkConfig
from agents.heads import ValueHead
from agents.layers import RMSNorm, SeededDropout, SpectralScale
from agents.networks import ActorCritic, QNetwork, SmallCNN, build_torso, learning
from plasticity_probes.units import activations, hidden_layers
from tests.agents.helpers import ATARI, CONTINUOUS, SMALL_IMAGE, VECTOR, global_random_states
from tests.agents.interventions.models import Patient

IMAGE = VECTOR._replace(observation_shape=(1, 20, 20), observation_dtype=np.dtype(np.uint8))
CNN = {"torso": "small_cnn", "width": 12, "depth": 2}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def parameters(model):
    return sum(p.numel() for p in model.parameters())


def observations(spaces, rows=8, seed=0):
    rng = np.random.default_rng(seed)
    if spaces.is_image:
        return torch.from_numpy(rng.integers(0, 256, (rows, *spaces.observation_shape), np.uint8))
    return torch.from_numpy(rng.normal(size=(rows, *spaces.observation_shape)).astype(np.float32))


def q_network(spaces=VECTOR, **settings):
    config = NetworkConfig(**{"width": 16, "depth": 2} | settings)
    network = QNetwork(build_torso(spaces, config, generator()), spaces.action_size, ValueHead(), "torch", generator(1))
    return give_generator(network.eval())


def give_generator(network, seed=0):
    for module in network.modules():
        if isinstance(module, SeededDropout):
            module.generator = generator(seed)
    return network


def captured(network, spaces, rows=8):
    """By layer name: the values before and after the nonlinearity, as NumPy."""
    _, held = network(observations(spaces, rows), "preactivations")
    return {name.split(".")[-1]: [x.detach().double().numpy() for x in pair] for name, pair in held.items()}


# -- norms -----------------------------------------------------------------------------------------------------------


def outputs_of_producers(network, spaces, rows=8):
    """What comes out of each Linear and convolution, by name, before any norm."""
    seen, handles = {}, []
    for name, module in network.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            keep = lambda m, i, out, name=name.split(".")[-1]: seen.update({name: out})  # noqa: E731
            handles.append(module.register_forward_hook(keep))
    network(observations(spaces, rows))
    for handle in handles:
        handle.remove()
    return {name: out.detach().double().numpy() for name, out in seen.items()}


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("kind", ["layer", "rms"])
@pytest.mark.parametrize(("spaces", "settings"), [(VECTOR, {}), (IMAGE, CNN)])
def test_norms_are_their_formulas(kind, affine, spaces, settings):
    network = q_network(spaces, norm=kind, norm_affine=affine, **settings)
    gains = {}
    for name, module in network.named_modules():
        if "norm" in name and affine:
            layer = name.split(".")[-1].replace("norm", "dense" if "dense" in name or spaces is VECTOR else "conv")
            rng = np.random.default_rng(len(gains))
            gains[layer] = rng.uniform(0.5, 2.0, len(module.weight)), rng.normal(size=len(module.weight))
            module.weight.data = torch.from_numpy(gains[layer][0]).float()
            if kind == "layer":
                module.bias.data = torch.from_numpy(gains[layer][1]).float()
    before, found = outputs_of_producers(network, spaces), captured(network, spaces)
    assert len(found) == (4 if settings else 2)
    for layer, (pre, post) in found.items():
        x, axes = before[layer], tuple(range(1, before[layer].ndim))
        mean = x.mean(axes, keepdims=True) if kind == "layer" else 0.0
        expected = (x - mean) / np.sqrt(((x - mean) ** 2).mean(axes, keepdims=True) + 1e-5)
        if affine:
            fits = (1, -1) + (1,) * (x.ndim - 2)
            expected = expected * gains[layer][0].reshape(fits)
            expected = expected + gains[layer][1].reshape(fits) * (kind == "layer")
        np.testing.assert_allclose(pre, expected, atol=2e-5)
        np.testing.assert_array_equal(post, np.maximum(pre, 0))


def test_layer_norm_leaves_mean_0_and_variance_1_for_every_example():
    for layer, (pre, _) in captured(q_network(IMAGE, norm="layer", **CNN), IMAGE).items():
        rows = pre.reshape(len(pre), -1)
        np.testing.assert_allclose(rows.mean(1), 0, atol=1e-5, err_msg=layer)
        np.testing.assert_allclose(rows.var(1), 1, atol=5e-3, err_msg=layer)


def test_without_affine_there_is_nothing_more_to_learn():
    plain = parameters(q_network(IMAGE, **CNN))
    for kind in ("layer", "rms", "batch"):
        assert parameters(q_network(IMAGE, norm=kind, norm_affine=False, **CNN)) == plain
    units = 64 + 64 + 12 + 12
    assert parameters(q_network(IMAGE, norm="layer", **CNN)) == plain + 2 * units
    assert parameters(q_network(IMAGE, norm="batch", **CNN)) == plain + 2 * units
    assert parameters(q_network(IMAGE, norm="rms", **CNN)) == plain + units


@pytest.mark.parametrize("settings", [{"norm": "layer"}, {"norm": "batch"}, {"dropout": 0.5}, {"spectral_layers": 3}])
def test_the_weights_are_drawn_as_without(settings):
    plain, other = (dict(q_network(IMAGE, **CNN, **more).named_parameters()) for more in ({}, settings))
    assert all(torch.equal(weight, other[name]) for name, weight in plain.items())


def test_rms_norm_of_images_is_torchs_over_all_three_dimensions():
    x = torch.randn(5, 4, 3, 3, generator=generator()).contiguous(memory_format=torch.channels_last)
    norm = RMSNorm(4, 1e-5)
    norm.weight.data = torch.tensor([1.0, 2.0, -1.0, 0.5])
    theirs = nn.functional.rms_norm(x, (4, 3, 3), None, 1e-5) * norm.weight.view(1, 4, 1, 1)
    torch.testing.assert_close(norm(x), theirs)
    assert norm(x).is_contiguous(memory_format=torch.channels_last)


# -- batch norm ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("spaces", "settings"), [(VECTOR, {}), (IMAGE, CNN)])
def test_batch_norm_goes_by_the_batch_while_learning_and_by_running_statistics_otherwise(spaces, settings):
    network = q_network(spaces, norm="batch", **settings)
    first = "dense1" if spaces is VECTOR else "conv1"
    norm = network.torso.layers.norm1 if spaces is VECTOR else network.torso.convolutions.norm1
    x = outputs_of_producers(network, spaces)[first]
    axes, fits = (0, *range(2, x.ndim)), (1, -1) + (1,) * (x.ndim - 2)
    mean, variance, n = x.mean(axes), x.var(axes), x.size / x.shape[1]
    with learning(network):
        pre = captured(network, spaces)[first][0]
    np.testing.assert_allclose(pre, (x - mean.reshape(fits)) / np.sqrt(variance.reshape(fits) + 1e-5), atol=2e-5)
    np.testing.assert_allclose(norm.running_mean, 0.1 * mean, atol=1e-6)
    np.testing.assert_allclose(norm.running_var, 0.9 + 0.1 * variance * n / (n - 1), rtol=1e-5)
    moved = copy.deepcopy(network.state_dict())
    pre = captured(network, spaces)[first][0]
    scale = np.sqrt(norm.running_var.double().numpy().reshape(fits) + 1e-5)
    np.testing.assert_allclose(pre, (x - norm.running_mean.double().numpy().reshape(fits)) / scale, atol=2e-5)
    alone = network(observations(spaces)[:1])
    torch.testing.assert_close(alone, network(observations(spaces))[:1])
    assert all(torch.equal(value, moved[name]) for name, value in network.state_dict().items())


# -- nonlinearities --------------------------------------------------------------------------------------------------


def test_parameters_of_nature_cnn_with_half_the_units():
    # conv1 4*8*8*16 + 16 = 4,112; conv2 32*4*4*32 + 32 = 16,416; conv3 64*3*3*32 + 32 = 18,464
    # dense1 3,136*256 + 256 = 803,072; head 512*6 + 6 = 3,078; together half of 1,687,206
    for kind in ("crelu", "fourier"):
        network = q_network(ATARI, width=512, depth=1, doubled=kind)
        assert parameters(network) == 4_112 + 16_416 + 18_464 + 803_072 + 3_078 == 845_142
        assert network.torso.features == 512


def test_parameters_of_nature_cnn_with_a_root_of_a_half_of_the_units():
    # 32, 64, 64, 512 over sqrt 2: 23, 45, 45, 362; twice as many features come out
    network = q_network(ATARI, width=512, depth=1, doubled="crelu", match="parameters")
    conv1, conv2, conv3 = 4 * 64 * 23 + 23, 46 * 16 * 45 + 45, 90 * 9 * 45 + 45
    dense, head = 90 * 49 * 362 + 362, 724 * 6 + 6
    assert parameters(network) == conv1 + conv2 + conv3 + dense + head == 1_676_703
    assert abs(parameters(network) / 1_687_206 - 1) < 0.01


@pytest.mark.parametrize("settings", [{}, CNN])
@pytest.mark.parametrize("kind", ["crelu", "fourier"])
def test_doubled_features(kind, settings):
    spaces = IMAGE if settings else VECTOR
    network = q_network(spaces, doubled=kind, **settings)
    for layer, (pre, post) in captured(network, spaces).items():
        n = pre.shape[1]
        halves = (np.maximum(pre, 0), np.maximum(-pre, 0)) if kind == "crelu" else (np.sin(pre), np.cos(pre))
        assert post.shape[1] == 2 * n, layer
        np.testing.assert_allclose(post[:, :n], halves[0], atol=1e-6)
        np.testing.assert_allclose(post[:, n:], halves[1], atol=1e-6)
    assert network.torso.features == (settings or {"width": 16})["width"]


def test_an_odd_width_cannot_be_halved():
    with pytest.raises(ValueError, match=r"width = 15: must be even"):
        NetworkConfig(width=15, doubled="crelu")
    assert NetworkConfig(width=15, doubled="crelu", match="parameters").width == 15


def test_the_slope_of_leaky_relu():
    for slope in (0.01, 0.3):
        found = captured(q_network(activation="leaky_relu", negative_slope=slope), VECTOR)
        for pre, post in found.values():
            np.testing.assert_allclose(post, np.where(pre > 0, pre, slope * pre), rtol=1e-6)


# -- dropout and the mode of learning --------------------------------------------------------------------------------


def test_dropout_drops_while_learning_alone():
    network, before = q_network(dropout=0.25, width=512), global_random_states()
    plain, x = q_network(width=512), observations(VECTOR, 64)
    assert torch.equal(network(x), plain(x))
    hidden = plain.torso.layers[:2](x).detach()
    with learning(network):
        first, second = (network.torso.layers[:3](x).detach() for _ in range(2))
    assert not torch.equal(first, second)
    for dropped in (first, second):
        kept = dropped != 0
        torch.testing.assert_close(dropped[kept], hidden[kept] / 0.75)
        share = (~kept & (hidden > 0)).sum() / (hidden > 0).sum()
        assert share.item() == pytest.approx(0.25, abs=0.02)
    assert torch.equal(network(x), plain(x))
    assert global_random_states() == before


def test_dropout_follows_its_generator_and_copies_do_not_share_it():
    network, x = q_network(dropout=0.5), observations(VECTOR)
    twin = copy.deepcopy(network)

    def learn(which):
        with learning(which):
            return which(x).detach()

    first, second = learn(network), learn(network)
    assert not torch.equal(first, second)
    assert torch.equal(learn(twin), first)
    assert torch.equal(learn(twin), second)
    assert torch.equal(learn(give_generator(network)), first)
    assert not torch.equal(learn(give_generator(network, seed=1)), first)


def test_dropout_without_a_generator_says_so():
    network = QNetwork(
        build_torso(VECTOR, NetworkConfig(dropout=0.1), generator()), 3, ValueHead(), "torch", generator()
    )
    with pytest.raises(RuntimeError, match="generator"), learning(network.eval()):
        network(observations(VECTOR))
    assert not any(module.training for module in network.modules())


def test_learning_switches_its_own_network_and_back():
    network = q_network(norm="batch", dropout=0.5)
    twin = copy.deepcopy(network)
    for one, other in ((network, twin), (twin, network)):
        with learning(one):
            modes = {type(module).__name__ for module in one.modules() if module.training}
            assert modes == {"BatchNorm1d", "SeededDropout"}
            assert not any(module.training for module in other.modules())
        assert not any(module.training for module in one.modules())


def test_learning_costs_nothing_where_nothing_switches():
    network = q_network()

    def enter():
        with learning(network):
            pass

    enter()
    assert min(timeit.repeat(enter, number=2000, repeat=20)) / 2000 < 2e-6  # about 0.3 us on a quiet machine


# -- spectral norm ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(7, 5), (5, 7), (6, 3, 2, 2)])
def test_sigma_converges_to_numpys_largest_singular_value(shape):
    layer = nn.Linear(shape[1], shape[0]) if len(shape) == 2 else nn.Conv2d(shape[1], shape[0], shape[2])
    layer.weight.data = torch.randn(shape, generator=generator())
    scale, largest = (
        SpectralScale(layer),
        np.linalg.norm(layer.weight.detach().double().numpy().reshape(shape[0], -1), 2),
    )
    assert scale.sigma().item() == pytest.approx(largest, rel=0.05)
    scale.iterate(300)
    assert scale.sigma().item() == pytest.approx(largest, rel=1e-5)


def test_one_power_iteration():
    layer = nn.Linear(5, 7)
    layer.weight.data = torch.randn(7, 5, generator=generator())
    scale, weight = SpectralScale(layer), layer.weight.detach().double().numpy()
    layer.weight.data.add_(torch.randn(7, 5, generator=generator(1)))
    weight, u = layer.weight.detach().double().numpy(), scale.u.double().numpy()
    v = weight.T @ u / np.linalg.norm(weight.T @ u)
    u = weight @ v / np.linalg.norm(weight @ v)
    scale.iterate()
    np.testing.assert_allclose(scale.u, u, atol=1e-6)
    np.testing.assert_allclose(scale.v, v, atol=1e-6)


def test_a_matrix_of_zeros_divides_nothing_and_spectral_norm_recovers():
    layer = nn.Linear(3, 4)
    scale = SpectralScale(layer)
    layer.weight.data.zero_()
    scale.iterate()
    x = torch.ones(2, 3)
    assert torch.equal(scale(x), x)
    assert scale.u.norm().item() == pytest.approx(1) and scale.v.norm().item() == pytest.approx(1)
    layer.weight.data = torch.randn(4, 3, generator=generator())
    scale.iterate(100)
    assert scale.sigma().item() == pytest.approx(np.linalg.norm(layer.weight.detach().numpy(), 2), rel=1e-4)


@pytest.mark.parametrize("relaxed", [False, True])
def test_the_output_is_that_of_the_divided_weight_and_the_gradient_flows_through_sigma(relaxed):
    layer = nn.Linear(5, 7).double()
    for factor in (0.1, 3.0):
        layer.weight.data = factor * torch.randn(7, 5, generator=generator()).double()
        scale = SpectralScale(layer, relaxed)
        u, v, x = scale.u, scale.v, torch.randn(3, 5, generator=generator(2)).double()
        weight = layer.weight.detach().clone().requires_grad_()
        sigma = (u[:, None] * weight * v).sum()
        divisor = torch.maximum(sigma, torch.ones(())) if relaxed else sigma
        expected = torch.tanh(x @ (weight / divisor).T + layer.bias)
        expected.square().sum().backward()
        layer.zero_grad()
        found = torch.tanh(layer(scale(x)))
        found.square().sum().backward()
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(layer.weight.grad, weight.grad)
        assert (sigma < 1) == (factor == 0.1)


def test_which_layers_are_spectrally_normalised():
    scales = lambda network: [n for n, m in network.named_modules() if isinstance(m, SpectralScale)]  # noqa: E731
    assert scales(q_network(spectral_layers=1)) == ["torso.layers.spectral2"]
    assert scales(q_network(IMAGE, spectral_layers=1, **CNN)) == ["torso.dense.spectral2"]
    three = ["torso.convolutions.spectral2", "torso.dense.spectral1", "torso.dense.spectral2"]
    assert scales(q_network(IMAGE, spectral_layers=3, **CNN)) == three
    for spaces, settings, most in ((VECTOR, {}, 2), (IMAGE, CNN, 4)):
        with pytest.raises(ValueError, match=rf"spectral_norm\.hidden_layers = {most + 1}: must be <= {most}"):
            q_network(spaces, spectral_layers=most + 1, **settings)


def test_a_copy_scales_by_its_own_weight():
    network = q_network(spectral_layers=1)
    twin, x = copy.deepcopy(network), observations(VECTOR)
    before = network(x)
    with torch.no_grad():
        twin.torso.layers.dense2.weight.mul_(2)
    assert torch.equal(network(x), before)
    assert twin.torso.layers.spectral2.layer is twin.torso.layers.dense2
    torch.testing.assert_close(twin(x), before)  # twice the weight over twice its singular value
    assert not [name for name in network.state_dict() if "spectral2" in name and name[-1] not in "uv"]


# -- what surgery and probes see -------------------------------------------------------------------------------------

NETWORKS = {
    "mlp": (VECTOR, {}, 2),
    "small cnn": (IMAGE, CNN, 4),
    "nature cnn": (SMALL_IMAGE, {"depth": 1}, 4),
}
COMBINATIONS = [
    {"norm": "layer"},
    {"norm": "layer", "norm_affine": False, "activation": "tanh"},
    {"norm": "rms", "doubled": "crelu", "dropout": 0.1},
    {"norm": "batch", "doubled": "fourier", "spectral_layers": 2},
    {"norm": "layer", "doubled": "crelu", "match": "parameters", "spectral_layers": 2, "dropout": 0.1},
    {"norm": "batch", "activation": "gelu"},
    {"norm": "rms", "norm_affine": False, "activation": "leaky_relu", "spectral_layers": 1},
    {"activation": "silu", "spectral_layers": 2, "spectral_relaxed": True},
]
NORM_TYPES = {
    "none": (),
    "layer": (nn.LayerNorm, nn.GroupNorm),
    "rms": (nn.RMSNorm,),
    "batch": (nn.BatchNorm1d, nn.BatchNorm2d),
}


def build(kind, settings):
    """A network, its spaces and its number of hidden layers."""
    if kind.startswith("actor-critic"):
        network = ActorCritic(
            CONTINUOUS,
            NetworkConfig(**{"width": 8, "depth": 2} | settings),
            shared_torso=kind.endswith("shared"),
            head=ValueHead(),
            normalize_observations=False,
            generator=generator(),
        )
        return give_generator(network.eval()), CONTINUOUS, 2 if kind.endswith("shared") else 4
    spaces, more, layers = NETWORKS[kind]
    return q_network(spaces, **more, **settings), spaces, layers


@pytest.mark.parametrize("kind", [*NETWORKS, "actor-critic shared", "actor-critic separate"])
@pytest.mark.parametrize("settings", COMBINATIONS, ids=lambda settings: " ".join(map(str, settings.values())))
def test_every_hidden_layer_is_separable_and_can_be_operated_on(kind, settings):
    network, spaces, expected = build(kind, settings)
    config, doubled = NetworkConfig(**settings), settings.get("doubled")
    layers = hidden_layers(network, observations(spaces, 2))
    assert len(layers) == expected
    for layer in layers:
        assert layer.separable, (layer.name, layer.reason)
        assert layer.activation == (doubled or config.activation)
        norms = NORM_TYPES[config.norm]
        assert isinstance(layer.norm, norms) if norms else layer.norm is None
        assert layer.norm is None or layer.norm.weight is None or layer.norm.weight.shape == (layer.units,)
        for _, owner in layer.consumers:
            assert torch.bincount(owner[owner >= 0]).eq((owner >= 0).sum() / layer.units).all()
    _, held = network(observations(spaces), "preactivations")
    traced = activations(network, observations(spaces), layers=layers)
    for layer in layers:
        for ours, theirs in zip(held[layer.name], (traced[layer.name].pre, traced[layer.name].post), strict=True):
            torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("kind", ["mlp", "small cnn", "actor-critic separate"])
@pytest.mark.parametrize("settings", COMBINATIONS[2:5], ids=lambda settings: " ".join(map(str, settings.values())))
def test_replacing_units(kind, settings):
    spaces = build(kind, settings)[1]
    patient = Patient(lambda: build(kind, settings)[0], lambda: observations(spaces))
    masks = patient.masks()
    before = {name: tensor.clone() for name, tensor in patient.network.named_parameters()}
    patient.surgery.replace(masks)
    names = {module: name for name, module in patient.network.named_modules()}
    for layer in patient.layers:
        mask, weight = masks[layer.name], layer.producer.weight
        rows = (weight != before[f"{names[layer.producer]}.weight"]).flatten(1).any(1)
        assert rows[mask].all()
        for consumer, owner in layer.consumers:
            assert not consumer.weight[:, mask[owner]].any()
            adam = patient.adam.state[consumer.weight]["exp_avg_sq"]
            assert not adam[:, mask[owner]].any()
            assert adam[:, ~mask[owner]].any()
        if getattr(layer.norm, "weight", None) is not None:
            assert layer.norm.weight[mask].eq(1).all()
            assert layer.norm.weight[~mask].ne(1).any()
    # what comes out no longer depends on the replaced units' own weights, but through the norm's or sigma's statistics
    patient.train()
    assert all(torch.isfinite(p).all() for p in patient.network.parameters())


@pytest.mark.parametrize("settings", COMBINATIONS, ids=lambda settings: " ".join(map(str, settings.values())))
def test_bf16_autocast_runs_forwards_and_backwards(settings):
    network, x = q_network(IMAGE, **CNN, **settings), observations(IMAGE)
    expected, scales = network(x), [module for module in network.modules() if isinstance(module, SpectralScale)]
    sigmas = [scale.sigma() for scale in scales]
    with torch.autocast("cpu", torch.bfloat16):
        found = network(x)
        assert [scale.sigma() for scale in scales] == sigmas
        with learning(network):
            network(x).square().sum().backward()
    assert found.dtype == torch.float32
    assert (found - expected).abs().max() < 0.1 * expected.abs().max()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters())


@pytest.mark.parametrize("settings", COMBINATIONS, ids=lambda settings: " ".join(map(str, settings.values())))
def test_images_stay_channels_last(settings):
    torso = build_torso(IMAGE, NetworkConfig(**CNN, **settings), generator()).eval()
    assert isinstance(torso, SmallCNN)
    x = observations(IMAGE).float().contiguous(memory_format=torch.channels_last)
    for layer in give_generator(torso).convolutions:
        x = layer(x)
        assert x.is_contiguous(memory_format=torch.channels_last), layer
