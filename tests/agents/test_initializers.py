"""Each layer's own law: bounds, moments and distributions, of whole layers and of redrawn rows."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from agents.initializers import Initializer, initialize, initializer_for
from tests.agents.helpers import global_random_states

# Linear(100, 200): fan-in 100, fan-out 200. Conv2d(4, 32, 8): fan-in 4 * 8 * 8 = 256, fan-out 32 * 64 = 2048.
BOUNDS = {
    "torch": (1 / math.sqrt(100), 1 / math.sqrt(256)),
    "lecun_uniform": (math.sqrt(3 / 100), math.sqrt(3 / 256)),
    "xavier_uniform": (math.sqrt(6 / 300), math.sqrt(6 / (256 + 2048))),
    "dopamine_c51": (math.sqrt(3 / (math.sqrt(3) * 100)), math.sqrt(3 / (math.sqrt(3) * 256))),
}
LAYERS = (lambda: nn.utils.skip_init(nn.Linear, 100, 200), lambda: nn.utils.skip_init(nn.Conv2d, 4, 32, 8, 4))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def is_uniform(sample, bound):
    """Kolmogorov-Smirnov at one in ten thousand (the seeds are fixed), and nothing outside."""
    values = np.asarray(sample.detach().double()).ravel()
    inside = np.abs(values).max() <= bound * (1 + 1e-6)
    return inside and stats.kstest(values, stats.uniform(-bound, 2 * bound).cdf).pvalue > 1e-4


@pytest.mark.parametrize("kind", [0, 1], ids=["linear", "convolution"])
@pytest.mark.parametrize("name", BOUNDS)
def test_uniform_laws_have_their_bound(name, kind):
    layer = initialize(LAYERS[kind](), name, generator())
    assert is_uniform(layer.weight, BOUNDS[name][kind])


@pytest.mark.parametrize("kind", [0, 1], ids=["linear", "convolution"])
@pytest.mark.parametrize("name", BOUNDS)
def test_uniform_laws_have_their_variance(name, kind):
    # a uniform law's variance is bound^2 / 3; with at least 8,192 entries it is known to about 1 %
    weight = initialize(LAYERS[kind](), name, generator(1)).weight
    assert weight.var().item() == pytest.approx(BOUNDS[name][kind] ** 2 / 3, rel=0.05)
    assert abs(weight.mean().item()) < 5 * BOUNDS[name][kind] / math.sqrt(3 * weight.numel())


@pytest.mark.parametrize("name", [*BOUNDS, "orthogonal"])
def test_bias_is_zero_except_under_torchs_law(name):
    layer = initialize(nn.utils.skip_init(nn.Linear, 16, 2000), name, generator())
    assert is_uniform(layer.bias, 1 / 4) if name == "torch" else not layer.bias.any()


@pytest.mark.parametrize("layer", [nn.Linear(64, 3000), nn.Conv2d(4, 500, 4)], ids=["linear", "convolution"])
def test_torch_law_is_the_default_of_torch(layer):
    # both draws from the same law: a two-sample test over weights and biases
    ours = initialize(nn.utils.skip_init(type(layer), *shape_arguments(layer)), "torch", generator())
    for name in ("weight", "bias"):
        default, drawn = (getattr(m, name).detach().flatten().numpy() for m in (layer, ours))
        assert stats.ks_2samp(default[:20000], drawn[:20000]).pvalue > 1e-4
        assert np.abs(default).max() == pytest.approx(np.abs(drawn).max(), rel=0.01)


def shape_arguments(layer):
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    return layer.in_channels, layer.out_channels, layer.kernel_size


@pytest.mark.parametrize(("inputs", "outputs"), [(40, 12), (12, 12), (12, 40)])
def test_orthogonal_has_orthonormal_rows_or_columns_times_gain(inputs, outputs):
    weight = initialize(nn.Linear(inputs, outputs), "orthogonal", generator(), gain=3.0).weight.detach().double()
    product = weight @ weight.T if outputs <= inputs else weight.T @ weight
    torch.testing.assert_close(product, 9 * torch.eye(len(product), dtype=torch.float64), atol=1e-5, rtol=0)


def test_orthogonal_convolution_is_orthogonal_over_the_flattened_row():
    weight = initialize(nn.Conv2d(3, 8, 4), "orthogonal", generator()).weight.detach().flatten(1).double()
    torch.testing.assert_close(weight @ weight.T, 2 * torch.eye(8, dtype=torch.float64), atol=1e-5, rtol=0)


def test_orthogonal_draw_is_uniform_over_orthogonal_matrices():
    # an entry of a uniformly random unit vector in 5 dimensions has variance 1/5 and mean 0, wherever it stands;
    # without the sign correction (Mezzadri 2007) the diagonal is biased
    law, source = Initializer("orthogonal", gain=1.0), generator()
    draws = torch.stack([law.weight_rows(5, (5,), source) for _ in range(4000)])
    torch.testing.assert_close(draws.mean(0), torch.zeros(5, 5), atol=5 * math.sqrt(0.2 / 4000), rtol=0)
    torch.testing.assert_close(draws.var(0), torch.full((5, 5), 0.2), atol=0.02, rtol=0)


@pytest.mark.parametrize("name", BOUNDS)
def test_redrawn_rows_follow_the_layers_law(name):
    layer = LAYERS[0]()
    law = initializer_for(name, layer)
    rows = law.weight_rows(50, (100,), generator(5))
    assert rows.shape == (50, 100)
    assert is_uniform(rows, BOUNDS[name][0])
    if name == "torch":
        assert is_uniform(law.bias_rows(3000, generator(6)), BOUNDS[name][0])
    else:
        assert not law.bias_rows(50, generator(6)).any()


@pytest.mark.parametrize(("inputs", "outputs"), [(40, 12), (6, 30)], ids=["wide rows", "more rows than inputs"])
def test_redrawn_orthogonal_rows_follow_the_layers_law(inputs, outputs):
    # One row of the full draw has mean squared norm gain^2 * min(1, inputs / outputs):
    # tall matrices have orthonormal COLUMNS, so the squared rows share gain^2 * inputs among `outputs` rows.
    layer = initialize(nn.Linear(inputs, outputs), "orthogonal", generator())
    source = generator(7)
    single = torch.stack([layer.initializer.weight_rows(1, (inputs,), source)[0] for _ in range(500)])
    expected = 2.0 * min(1.0, inputs / outputs)
    assert layer.weight.square().sum(1).mean().item() == pytest.approx(expected, rel=1e-4)
    assert single.square().sum(1).mean().item() == pytest.approx(expected, rel=0.1)


def test_the_layer_keeps_its_law():
    layer = initialize(nn.Linear(4, 3), "lecun_uniform", generator())
    assert layer.initializer == Initializer("uniform", bound=math.sqrt(3 / 4))


def test_a_layer_without_bias_is_filled():
    layer = initialize(nn.Linear(4, 3, bias=False), "torch", generator())
    assert is_uniform(layer.weight, 0.5)


def test_same_generator_same_layer():
    first, second = (initialize(nn.Linear(4, 3), "orthogonal", generator(9)) for _ in range(2))
    assert torch.equal(first.weight, second.weight)
    other = initialize(nn.Linear(4, 3), "orthogonal", generator(10))
    assert not torch.equal(first.weight, other.weight)


@pytest.mark.parametrize("name", [*BOUNDS, "orthogonal"])
def test_the_global_generators_are_not_touched(name):
    layer = nn.utils.skip_init(nn.Linear, 8, 8)
    before = global_random_states()
    initialize(layer, name, generator())
    layer.initializer.weight_rows(2, (8,), generator(1))
    layer.initializer.bias_rows(2, generator(1))
    assert global_random_states() == before


def test_an_unknown_law_is_named():
    with pytest.raises(ValueError, match="he_normal"):
        initializer_for("he_normal", nn.Linear(2, 2))
