"""Losses against slow float64 loops written from the papers, and against cases worked out by hand."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from agents import losses
from agents.config import SupportConfig
from agents.value_config import C51Config, DQNConfig
from tests.agents.helpers import needs_cuda


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def noise(*shape, seed=0, scale=1.0):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape) * scale)


def probabilities(batch, n, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).dirichlet(np.ones(n), batch))


class Elsewhere(torch.Tensor):
    """A CPU tensor that says it lies on another device, so that the paths for devices run on a CPU."""

    device = type("Device", (), {"type": "cuda"})


# -- regression ------------------------------------------------------------------------------------------------------


def test_huber_is_half_the_square_within_delta_and_linear_beyond():
    # errors 0, .5, 1, 3, -3 with delta 1: 0, .125, .5, 3 - .5, 2.5
    loss = losses.huber(tensor(0.0, 0.5, 1.0, 3.0, -3.0), torch.zeros(5, dtype=torch.float64))
    assert loss.tolist() == pytest.approx([0.0, 0.125, 0.5, 2.5, 2.5])


def test_huber_with_another_delta():
    # delta 2: |e| = 1 -> .5; |e| = 5 -> 2 * (5 - 1) = 8
    assert losses.huber(tensor(1.0, 5.0), tensor(0.0, 0.0), delta=2.0).tolist() == pytest.approx([0.5, 8.0])


def test_squared_error_has_no_half():
    assert losses.squared_error(tensor(3.0, -1.0), tensor(1.0, 1.0)).tolist() == [4.0, 4.0]


def test_td_target():
    # 1 + .9 * 10, 2 + 0 * 10
    assert losses.td_target(tensor(1.0, 2.0), tensor(0.9, 0.0), tensor(10.0, 10.0)).tolist() == [10.0, 2.0]


def test_atoms_include_both_ends():
    assert losses.atoms(-1.0, 1.0, 5).tolist() == [-1.0, -0.5, 0.0, 0.5, 1.0]


# -- C51 projection --------------------------------------------------------------------------------------------------


def project(places, masses, v_min, v_max, n):
    """Bellemare et al. 2017, Algorithm 1, with the mass of an exact hit kept (l = u loses it in the paper's text)."""
    spacing = (v_max - v_min) / (n - 1)
    m = [0.0] * n
    for place, mass in zip(places, masses, strict=True):
        b = (min(max(place, v_min), v_max) - v_min) / spacing
        lower, upper = math.floor(b), math.ceil(b)
        if lower == upper:
            m[lower] += mass
        else:
            m[lower] += mass * (upper - b)
            m[upper] += mass * (b - lower)
    return m


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        (0.25, [0, 0, 0.5, 0.5, 0]),  # half way between 0 and .5
        (-0.9, [0.8, 0.2, 0, 0, 0]),  # a fifth of the way from -1 to -.5
        (-0.5, [0, 1, 0, 0, 0]),  # an exact hit keeps all its mass
        (0.0, [0, 0, 1, 0, 0]),
        (-1.0, [1, 0, 0, 0, 0]),  # the ends
        (1.0, [0, 0, 0, 0, 1]),
        (-7.0, [1, 0, 0, 0, 0]),  # beyond the ends: clipped
        (7.0, [0, 0, 0, 0, 1]),
    ],
)
@pytest.mark.parametrize("kind", [torch.Tensor, Elsewhere])
def test_projection_by_hand(place, expected, kind):
    support = losses.atoms(-1.0, 1.0, 5)
    z = torch.tensor([[place]]).as_subclass(kind)
    projected = losses.categorical_projection(z, torch.ones(1, 1), support)
    assert projected[0].tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("kind", [torch.Tensor, Elsewhere])
@pytest.mark.parametrize(("v_min", "v_max", "n"), [(-10, 10, 51), (0, 100, 111), (-1, 3, 2), (-0.3, 0.4, 7)])
def test_projection_is_algorithm_1(kind, v_min, v_max, n):
    support = torch.linspace(v_min, v_max, n, dtype=torch.float64)
    rng = np.random.default_rng(1)
    discounts = np.array([0.0, 0.99, 0.5, 1.0, 0.9, 0.99])
    rewards = np.array([0.0, 1.0, -30.0, 0.0, (v_max - v_min) / (n - 1), 200.0])
    z = rewards[:, None] + discounts[:, None] * support.numpy()
    p = rng.dirichlet(np.ones(n), 6)
    expected = [project(places, masses, v_min, v_max, n) for places, masses in zip(z, p, strict=True)]
    found = losses.categorical_projection(torch.from_numpy(z).as_subclass(kind), torch.from_numpy(p), support)
    np.testing.assert_allclose(np.array(found.tolist()), expected, atol=1e-12)


@given(
    places=st.lists(st.floats(-50, 50), min_size=1, max_size=8),
    v_min=st.floats(-20, 0),
    width=st.floats(0.1, 40),
    n=st.integers(2, 60),
)
@settings(max_examples=100, deadline=None, derandomize=True)
def test_projection_keeps_mass_and_clipped_mean_in_float32(places, v_min, width, n):
    support = losses.atoms(v_min, v_min + width, n)
    z = torch.tensor([places])
    p = torch.full_like(z, 1 / len(places))
    projected = losses.categorical_projection(z, p, support)
    assert projected.sum().item() == pytest.approx(1.0, abs=1e-5)
    # atoms, and so their spacing, are known to float32's 1.2e-7 of their size; a place is up to n - 1 spacings away
    spacing = width / (n - 1)
    rounding = 4 * 1.2e-7 * (abs(v_min) + width) / spacing * (n - 1)
    assert (projected >= -rounding).all()
    mean = (projected.double() * support.double()).sum().item()
    clipped = np.clip(places, support[0].item(), support[-1].item()).mean()
    assert mean == pytest.approx(clipped, abs=1e-4 * max(1.0, width + abs(v_min)))


@needs_cuda
def test_projection_on_cuda_equals_cpu():
    support, z, p = losses.atoms(-10, 10, 51), noise(64, 51, scale=8).float(), probabilities(64, 51).float()
    cpu = losses.categorical_projection(z, p, support)
    cuda = losses.categorical_projection(z.cuda(), p.cuda(), support.cuda())
    torch.testing.assert_close(cuda.cpu(), cpu, atol=1e-5, rtol=0)


# -- scalar targets spread over atoms --------------------------------------------------------------------------------


def test_two_hot_keeps_the_mean_on_at_most_two_atoms():
    support = losses.atoms(-10, 10, 41).double()
    targets = noise(50, scale=4).clamp(-10, 10)
    spread = losses.two_hot(targets, support)
    torch.testing.assert_close((spread * support).sum(-1), targets)
    torch.testing.assert_close(spread.sum(-1), torch.ones(50, dtype=torch.float64))
    assert ((spread > 0).sum(-1) <= 2).all()


def test_two_hot_by_hand():
    # atoms 0, 2, 4; 2.5 lies a quarter of the way from 2 to 4; 9 is clipped to 4
    spread = losses.two_hot(tensor(2.5, 9.0), tensor(0.0, 2.0, 4.0))
    assert spread.tolist() == [pytest.approx([0, 0.75, 0.25]), pytest.approx([0, 0, 1])]


def gaussian_bins(target, v_min, v_max, n, sigma_bins):
    """Farebrother24: mass of N(target, sigma) in each bin, renormalised over all bins; math.erf in float64."""
    width = (v_max - v_min) / (n - 1)
    sigma = sigma_bins * width
    target = min(max(target, v_min), v_max)
    edges = [v_min - width / 2 + i * width for i in range(n + 1)]
    cdf = [0.5 * (1 + math.erf((edge - target) / (sigma * math.sqrt(2)))) for edge in edges]
    return [(cdf[i + 1] - cdf[i]) / (cdf[-1] - cdf[0]) for i in range(n)]


@pytest.mark.parametrize("sigma_bins", [0.25, 0.75, 2.0])
def test_hl_gauss_is_the_mass_of_a_gaussian_in_each_bin(sigma_bins):
    targets = [-10.0, -9.9, -0.2, 0.0, 3.3, 10.0, 25.0, -25.0]
    support = torch.linspace(-10, 10, 21, dtype=torch.float64)
    found = losses.hl_gauss(torch.tensor(targets, dtype=torch.float64), support, sigma_bins)
    expected = [gaussian_bins(target, -10, 10, 21, sigma_bins) for target in targets]
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-12)


def farebrother24(target, v_min, v_max, bins, sigma_bins=0.75):
    """The paper's appendix written out: v_min and v_max are the outer EDGES, sigma is in bin widths."""
    width = (v_max - v_min) / bins
    edges = np.linspace(v_min, v_max, bins + 1)
    cdf = [math.erf((edge - target) / (math.sqrt(2) * sigma_bins * width)) for edge in edges]
    return np.diff(cdf) / (cdf[-1] - cdf[0]), (edges[1:] + edges[:-1]) / 2


@pytest.mark.parametrize(("v_min", "v_max", "bins"), [(-10, 10, 51), (0, 1, 2), (-3, 100, 7)])
def test_hl_gauss_between_edges_is_farebrother24s(v_min, v_max, bins):
    targets = np.linspace(v_min, v_max, 11)  # in the outer half of the last bin and at the very edge as well
    found = losses.atoms(v_min, v_max, bins, ends="edges")
    _, centres = farebrother24(0.0, v_min, v_max, bins)
    np.testing.assert_allclose(found.numpy(), centres, atol=1e-6 * (v_max - v_min))
    support = torch.from_numpy(centres)
    spread = losses.hl_gauss(torch.from_numpy(targets), support, ends="edges")
    np.testing.assert_allclose(spread, [farebrother24(t, v_min, v_max, bins)[0] for t in targets], atol=1e-12)
    beyond = losses.hl_gauss(torch.tensor([v_min - 5.0, v_max + 5.0], dtype=torch.float64), support, ends="edges")
    np.testing.assert_allclose(beyond, [farebrother24(t, v_min, v_max, bins)[0] for t in (v_min, v_max)], atol=1e-12)


def test_the_same_flags_mean_other_bins_between_centres_and_edges():
    """Two bins on [0, 1] and a target of .5 are alike; at 1 the last bin's centre is .75 between edges."""
    edges, centres = (losses.atoms(0, 1, 2, ends=ends) for ends in ("edges", "centres"))
    assert (edges.tolist(), centres.tolist()) == ([0.25, 0.75], [0.0, 1.0])
    one = torch.ones(1)
    # between edges: sigma .375, the halves (0, .5) and (.5, 1) seen from 1
    far, near = (math.erf((1 - x) / (math.sqrt(2) * 0.375)) for x in (0.0, 0.5))
    torch.testing.assert_close(
        losses.hl_gauss(one, edges, ends="edges"), torch.tensor([[(far - near) / far, near / far]]), atol=1e-6, rtol=0
    )
    # between centres: sigma .75, bins (-.5, .5) and (.5, 1.5)
    a, b, c = (math.erf((x - 1) / (math.sqrt(2) * 0.75)) for x in (-0.5, 0.5, 1.5))
    torch.testing.assert_close(
        losses.hl_gauss(one, centres), torch.tensor([[(b - a) / (c - a), (c - b) / (c - a)]]), atol=1e-6, rtol=0
    )


def test_clipped_between_edges_is_what_lies_beyond_the_edges():
    support, everywhere = losses.atoms(-10, 10, 4, ends="edges"), torch.ones(4, 1)  # atoms -7.5, -2.5, 2.5, 7.5
    values = torch.tensor([[-10.0], [9.9], [10.1], [3.0]])
    assert losses.clipped_share(values, everywhere, support, "edges").item() == 0.25
    assert losses.clipped_share(values, everywhere, support).item() == 0.75


@pytest.mark.parametrize(
    ("config", "what"),
    [
        (lambda support: C51Config(support=support), "support_ends = 'edges': must be centres in C51"),
        (
            lambda support: DQNConfig(loss="two_hot", support=support),
            "support_ends = 'edges': must be centres with",
        ),
    ],
)
def test_edges_are_of_bins(config, what):
    with pytest.raises(ValueError, match=what):
        config(SupportConfig(support_ends="edges"))


def test_hl_gauss_sums_to_one_and_is_finite_far_outside_the_support():
    support = losses.atoms(-5, 5, 11)
    spread = losses.hl_gauss(torch.tensor([0.0, 4.9, 1e6, -1e6, 3e38, -3e38]), support)
    assert torch.isfinite(spread).all()
    torch.testing.assert_close(spread.sum(-1), torch.ones(6))


def test_hl_gauss_keeps_the_mean_in_the_interior():
    # the remaining bias of a 3/4-bin Gaussian binned around its atoms is below a hundredth of a bin
    support = losses.atoms(-10, 10, 51).double()
    targets = torch.linspace(-7, 7, 101, dtype=torch.float64)
    mean = (losses.hl_gauss(targets, support) * support).sum(-1)
    assert (mean - targets).abs().max() < 0.01 * 0.4


# -- categorical values ----------------------------------------------------------------------------------------------


def test_cross_entropy_by_hand():
    # softmax of (0, log 3) is (1/4, 3/4); target (1/2, 1/2): -(log 1/4 + log 3/4) / 2
    loss = losses.cross_entropy(tensor(0.0, math.log(3))[None], tensor(0.5, 0.5)[None])
    assert loss.item() == pytest.approx(-(math.log(0.25) + math.log(0.75)) / 2)


def test_cross_entropy_is_finite_for_extreme_logits():
    loss = losses.cross_entropy(torch.tensor([[1e4, -1e4]]), torch.tensor([[0.0, 1.0]]))
    assert loss.item() == pytest.approx(2e4)


def test_expected_value_by_hand():
    # (1/4, 3/4) on atoms (-2, 2): 1
    assert losses.expected_value(tensor(0.0, math.log(3)), tensor(-2.0, 2.0)).item() == pytest.approx(1.0)


def test_clipped_share_counts_mass_outside_only():
    support = losses.atoms(-1, 1, 5)
    z = torch.tensor([[-1.0, 0.0, 1.0, 1.5], [-3.0, -1.2, 0.3, 9.0]])
    p = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.1, 0.2, 0.3, 0.4]])
    # first example .4 (the 1.5), second .1 + .2 + .4 = .7; mean .55
    assert losses.clipped_share(z, p, support).item() == pytest.approx(0.55)


# -- advantages ------------------------------------------------------------------------------------------------------


def explicit_gae(rewards, values, last, final, terminated, truncated, gamma, lambda_):
    """Schulman et al. 2016, eq. 16, as the sum it is: sum_l (gamma lambda)^l delta_{t+l}, cut at the episode's end."""
    steps, envs = rewards.shape
    following = np.concatenate([values[1:], last[None]])
    deltas, advantages = np.zeros((steps, envs)), np.zeros((steps, envs))
    for t in range(steps):
        for e in range(envs):
            reached = 0.0 if terminated[t, e] else final[t, e] if truncated[t, e] else following[t, e]
            deltas[t, e] = rewards[t, e] + gamma * reached - values[t, e]
    for t in range(steps):
        for e in range(envs):
            for k in range(t, steps):
                advantages[t, e] += (gamma * lambda_) ** (k - t) * deltas[k, e]
                if terminated[k, e] or truncated[k, e]:
                    break
    return advantages


def gae_from_flags(rewards, values, last, final, terminated, truncated, gamma, lambda_):
    ended = terminated | truncated
    reached = np.where(ended, final, np.concatenate([values[1:], last[None]]))
    arrays = (rewards, gamma * (~terminated).astype(float), values, reached, (~ended).astype(float))
    return losses.gae(*map(torch.from_numpy, arrays), lambda_)


@pytest.mark.parametrize(("gamma", "lambda_"), [(0.99, 0.95), (0.9, 1.0), (0.9, 0.0), (1.0, 0.5)])
def test_gae_is_the_discounted_sum_of_deltas_within_an_episode(gamma, lambda_):
    rng = np.random.default_rng(3)
    steps, envs = 30, 5
    rewards, values, final = rng.standard_normal((3, steps, envs))
    terminated = rng.random((steps, envs)) < 0.1
    truncated = (rng.random((steps, envs)) < 0.1) & ~terminated
    terminated[-1, 0], truncated[-1, 1], truncated[-1, 0] = True, True, False
    terminated[-1, 1] = False
    case = (rewards, values, rng.standard_normal(envs), final, terminated, truncated, gamma, lambda_)
    advantages, returns = gae_from_flags(*case)
    expected = explicit_gae(*case)
    np.testing.assert_allclose(advantages.numpy(), expected, atol=1e-12)
    np.testing.assert_allclose(returns.numpy(), expected + values, atol=1e-12)


@pytest.mark.parametrize(
    ("terminated_1", "truncated_1", "expected"),
    [
        # r = 1, 2, 3; v = 1, 1, 1; last value 4; gamma = lambda = 1/2, so the decay is 1/4.
        # deltas 1 + .5 - 1 = .5, 2 + .5 - 1 = 1.5, 3 + 2 - 1 = 4; 4, 1.5 + 1 = 2.5, .5 + .625 = 1.125
        (False, False, [1.125, 2.5, 4.0]),
        # step 1 ends the world: delta 2 - 1 = 1; then .5 + .25 = .75
        (True, False, [0.75, 1.0, 4.0]),
        # step 1 is cut at a state worth 10: delta 2 + 5 - 1 = 6; then .5 + 1.5 = 2
        (False, True, [2.0, 6.0, 4.0]),
    ],
)
def test_gae_by_hand(terminated_1, truncated_1, expected):
    column = lambda *values: np.array(values)[:, None]  # noqa: E731
    terminated, truncated = column(False, terminated_1, False), column(False, truncated_1, False)
    case = (column(1.0, 2.0, 3.0), column(1.0, 1.0, 1.0), np.array([4.0]), column(0.0, 10.0, 0.0))
    advantages, _ = gae_from_flags(*case, terminated, truncated, 0.5, 0.5)
    assert advantages[:, 0].tolist() == pytest.approx(expected)


@pytest.mark.parametrize("steps", [1, 2, 3, 127, 128, 2048])
@pytest.mark.parametrize("decay", [0.9405, 1.0])
def test_the_scan_by_doubling_is_a_loop_in_double_precision(steps, decay):
    """In float32 over whole rollouts, episodes ending here and there: sums of about 20 (decay 1: of 100) terms."""
    random = np.random.default_rng(steps)
    x = random.standard_normal((steps, 3)).astype(np.float32)
    decays = np.where(random.random((steps, 3)) < 0.01, 0.0, decay).astype(np.float32)
    y, expected = np.zeros(3), np.zeros((steps, 3))
    for t in reversed(range(steps)):
        y = expected[t] = x[t] + np.float64(decays[t]) * y
    found = losses.reverse_scan(torch.from_numpy(x), torch.from_numpy(decays)).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5 if decay < 1 else 1e-4)


def test_standardize_takes_the_unbiased_std():
    # 1, 2, 3: mean 2, unbiased std 1
    assert losses.standardize(tensor(1.0, 2.0, 3.0)).tolist() == pytest.approx([-1.0, 0.0, 1.0])
    assert losses.standardize(torch.ones(4)).tolist() == [0.0] * 4


# -- PPO -------------------------------------------------------------------------------------------------------------


def test_ppo_policy_loss_by_hand():
    # clip .2. Ratio 1.5: A = 2 -> -min(3, 2.4); A = -2 -> -min(-3, -2.4). Ratio .5: -min(1, 1.6); -min(-1, -1.6)
    log_ratio = tensor(1.5, 1.5, 0.5, 0.5).log()
    loss = losses.ppo_policy_loss(log_ratio, tensor(2.0, -2.0, 2.0, -2.0), 0.2)
    assert loss.tolist() == pytest.approx([-2.4, 3.0, -1.0, 1.6])


def test_clipped_value_loss_by_hand():
    # old 0, new 1, clip .2: held at .2. Return 1: max(0, .64); return -1: max(4, 1.44). New .1 is within: (.1 - 1)^2
    loss = losses.clipped_value_loss(tensor(1.0, 1.0, 0.1), tensor(0.0, 0.0, 0.0), tensor(1.0, -1.0, 1.0), 0.2)
    assert loss.tolist() == pytest.approx([0.64, 4.0, 0.81])


def test_categorical_log_prob_and_entropy_are_scipys():
    logits, actions = noise(20, 5, scale=2), torch.arange(20) % 5
    log_probs, entropies = losses.categorical_log_prob_entropy(logits, actions)
    for row in range(20):
        p = np.exp(logits[row].numpy()) / np.exp(logits[row].numpy()).sum()
        law = stats.rv_discrete(values=(np.arange(5), p))
        assert log_probs[row].item() == pytest.approx(law.logpmf(row % 5))
        assert entropies[row].item() == pytest.approx(law.entropy())


def test_gaussian_log_prob_and_entropy_are_scipys():
    mean, log_std, actions = noise(20, 3), noise(3, seed=1), noise(20, 3, seed=2, scale=2)
    log_probs, entropies = losses.gaussian_log_prob_entropy(mean, log_std, actions)
    for row in range(20):
        law = stats.multivariate_normal(mean[row].numpy(), np.diag(np.exp(2 * log_std.numpy())))
        assert log_probs[row].item() == pytest.approx(law.logpdf(actions[row].numpy()))
        assert entropies[row].item() == pytest.approx(law.entropy())


# -- all of them: gradients and vmap ---------------------------------------------------------------------------------

SUPPORT = torch.linspace(-2, 2, 9, dtype=torch.float64)
ACTIONS = torch.tensor([0, 3, 2, 1])
GRADIENT_CASES = {
    "huber": (losses.huber, noise(4, scale=2), noise(4, seed=1)),
    "squared_error": (losses.squared_error, noise(4), noise(4, seed=1)),
    "cross_entropy": (partial(losses.cross_entropy, target_probabilities=probabilities(4, 9)), noise(4, 9)),
    "expected_value": (partial(losses.expected_value, support=SUPPORT), noise(4, 9)),
    "ppo_policy_loss": (partial(losses.ppo_policy_loss, clip_coef=0.2), noise(4, scale=0.4), noise(4, seed=1)),
    "clipped_value_loss": (partial(losses.clipped_value_loss, clip_coef=0.2), *(noise(4, seed=i) for i in range(3))),
    "categorical": (partial(losses.categorical_log_prob_entropy, actions=ACTIONS), noise(4, 5)),
    "gaussian": (losses.gaussian_log_prob_entropy, noise(4, 3), noise(3, seed=1), noise(4, 3, seed=2)),
}


@pytest.mark.parametrize("name", GRADIENT_CASES)
def test_gradients_are_the_finite_differences(name):
    function, *inputs = GRADIENT_CASES[name]
    assert torch.autograd.gradcheck(function, [x.clone().requires_grad_() for x in inputs])


VMAP_CASES = {
    "td_target": (losses.td_target, noise(6, 4), noise(6, 4, seed=1), noise(6, 4, seed=2)),
    "huber": (losses.huber, noise(6, 4), noise(6, 4, seed=1)),
    "squared_error": (losses.squared_error, noise(6, 4), noise(6, 4, seed=1)),
    "categorical_projection": (
        partial(losses.categorical_projection, support=SUPPORT),
        noise(6, 4, 9),
        probabilities(24, 9).unflatten(0, (6, 4)),
    ),
    "two_hot": (partial(losses.two_hot, support=SUPPORT), noise(6, 4)),
    "hl_gauss": (partial(losses.hl_gauss, support=SUPPORT), noise(6, 4)),
    "cross_entropy": (losses.cross_entropy, noise(6, 4, 9), probabilities(24, 9).unflatten(0, (6, 4))),
    "expected_value": (partial(losses.expected_value, support=SUPPORT), noise(6, 4, 9)),
    "clipped_share": (
        partial(losses.clipped_share, support=SUPPORT),
        noise(6, 4, 9, scale=3),
        probabilities(24, 9).unflatten(0, (6, 4)),
    ),
    "gae": (partial(losses.gae, lambda_=0.9), *(noise(6, 7, 2, seed=i) for i in range(5))),
    "standardize": (losses.standardize, noise(6, 4)),
    "ppo_policy_loss": (partial(losses.ppo_policy_loss, clip_coef=0.2), noise(6, 4), noise(6, 4, seed=1)),
    "clipped_value_loss": (partial(losses.clipped_value_loss, clip_coef=0.2), *(noise(6, 4, seed=i) for i in range(3))),
    "categorical": (losses.categorical_log_prob_entropy, noise(6, 4, 5), ACTIONS.expand(6, 4)),
    "gaussian": (losses.gaussian_log_prob_entropy, noise(6, 4, 3), noise(6, 3, seed=1), noise(6, 4, 3, seed=2)),
}


@pytest.mark.parametrize("name", VMAP_CASES)
def test_vmap_equals_a_loop(name):
    function, *inputs = VMAP_CASES[name]
    stacked = torch.func.vmap(function)(*inputs)
    stacked = stacked if isinstance(stacked, tuple) else (stacked,)
    for index in range(6):
        single = function(*(x[index] for x in inputs))
        single = single if isinstance(single, tuple) else (single,)
        for whole, one in zip(stacked, single, strict=True):
            torch.testing.assert_close(whole[index], one)
