"""Losses, targets and advantages as pure functions of tensors.

Names carry the time: q_tm1 is Q at the state acted in, r_t and discount_t came of that action, q_t is Q at the next
state. discount_t is gamma**k, or 0 where the future ends. Everything works on any device and under `torch.func.vmap`.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

from agents.config import SupportEnds


def _same_shape(*tensors: Tensor) -> None:
    """[batch] beside [batch, 1] would broadcast to a wrong loss without a word."""
    shapes = [tuple(tensor.shape) for tensor in tensors]
    if len(set(shapes)) > 1:
        raise ValueError(f"shapes {shapes}: must be equal")


def atoms(
    v_min: float, v_max: float, num_atoms: int, device: torch.device | str = "cpu", ends: SupportEnds = "centres"
) -> Tensor:
    """Evenly spaced support of a categorical value, float32 [num_atoms]: from v_min to v_max (Bellemare et al. 2017),
    or, where the `ends` are "edges", the centres of as many bins between them (Farebrother24)."""
    if ends == "edges":
        half = (v_max - v_min) / num_atoms / 2
        v_min, v_max = v_min + half, v_max - half
    return torch.linspace(v_min, v_max, num_atoms, dtype=torch.float32, device=device)


def atom_spacing(support: Tensor) -> Tensor:
    """Distance between neighbouring atoms; 0-d. From the ends, since the difference of two atoms loses digits."""
    return (support[-1] - support[0]) / (len(support) - 1)


def td_target(r_t: Tensor, discount_t: Tensor, v_t: Tensor) -> Tensor:
    """r_t + discount_t * v_t; all [batch]."""
    _same_shape(r_t, discount_t, v_t)
    return r_t + discount_t * v_t


def huber(prediction: Tensor, target: Tensor, delta: float = 1.0) -> Tensor:
    """Huber loss per example [batch]: quadratic within `delta` (with factor 1/2), linear beyond."""
    _same_shape(prediction, target)
    return functional.huber_loss(prediction, target, reduction="none", delta=delta)


def squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Squared error per example [batch], without a factor 1/2."""
    _same_shape(prediction, target)
    return functional.mse_loss(prediction, target, reduction="none")


def categorical_projection(z_t: Tensor, p_t: Tensor, support: Tensor) -> Tensor:
    """Project mass `p_t` [batch, n] at places `z_t` [batch, n] onto the evenly spaced `support` [m] -> [batch, m].

    Each place is clipped to the support and its mass split between the two neighbouring atoms (Bellemare et al. 2017,
    eq. 7). Deterministic on every device: adding in place is on a CPU only, elsewhere the dense form is taken.
    """
    spacing = atom_spacing(support)
    clipped = z_t.clamp(support[0], support[-1])
    if z_t.device.type != "cpu":
        distance = (clipped.unsqueeze(-2) - support.unsqueeze(-1)).abs()  # [batch, m, n]
        return ((1.0 - distance / spacing).clamp(0.0, 1.0) * p_t.unsqueeze(-2)).sum(-1)
    position = (clipped - support[0]) / spacing
    lower = position.floor().clamp(max=len(support) - 2)
    above, index = position - lower, lower.nan_to_num().long()  # a NaN goes on in `above`, for the guard to find
    mass = torch.zeros(*z_t.shape[:-1], len(support), dtype=p_t.dtype)
    return mass.scatter_add(-1, index, p_t * (1.0 - above)).scatter_add(-1, index + 1, p_t * above)


def two_hot(target: Tensor, support: Tensor) -> Tensor:
    """Spread scalar `target` [batch] over its two neighbouring atoms so that the mean is kept -> [batch, atoms]."""
    return categorical_projection(target.unsqueeze(-1), torch.ones_like(target).unsqueeze(-1), support)


def span(support: Tensor, ends: SupportEnds = "centres") -> tuple[Tensor, Tensor]:
    """v_min and v_max, 0-d each, beyond which targets are clipped: the outermost atoms, or the edges of their bins."""
    if ends == "centres":
        return support[0], support[-1]
    reach = atom_spacing(support) / 2
    return support[0] - reach, support[-1] + reach


def hl_gauss(target: Tensor, support: Tensor, sigma_bins: float = 0.75, ends: SupportEnds = "centres") -> Tensor:
    """Mass of N(target, sigma) in the bin around each atom -> [batch, atoms] (Farebrother24, section 3.1).

    sigma = `sigma_bins` bin widths; bins reach half a spacing to each side of their atom; the Gaussian is cut off at
    the outer edges and renormalised. `target` [batch] is clipped first, to the outermost atoms or, as `ends` says, to
    the outer edges (the atoms are those of `atoms` with the same `ends`).
    """
    spacing = atom_spacing(support)
    edges = torch.cat([support - spacing / 2, support[-1:] + spacing / 2])
    clipped = target.clamp(*span(support, ends)).unsqueeze(-1)
    cdf = torch.erf((edges - clipped) / (math.sqrt(2.0) * sigma_bins * spacing))
    return (cdf[..., 1:] - cdf[..., :-1]) / (cdf[..., -1:] - cdf[..., :1])


def cross_entropy(logits: Tensor, target_probabilities: Tensor) -> Tensor:
    """-sum_i target_i * log softmax(logits)_i per example; both [batch, atoms] -> [batch]."""
    _same_shape(logits, target_probabilities)
    return -(target_probabilities * torch.log_softmax(logits, dim=-1)).sum(-1)


def expected_value(logits: Tensor, support: Tensor) -> Tensor:
    """Mean of the categorical distribution softmax(logits) on `support`; [..., atoms] -> [...]."""
    return (torch.softmax(logits, dim=-1) * support).sum(-1)


def clipped_share(z_t: Tensor, p_t: Tensor, support: Tensor, ends: SupportEnds = "centres") -> Tensor:
    """Share of the targets' mass that lies outside the support: mean over the batch of the mass `p_t` [batch, n] at
    places `z_t` [batch, n] beyond its ends, the outermost atoms or the edges of their bins. A scalar in [0, 1]."""
    slack = 1e-4 * atom_spacing(support)  # rounding of v_max itself is not clipping
    lowest, highest = span(support, ends)
    outside = (z_t < lowest - slack) | (z_t > highest + slack)
    return (outside * p_t).sum(-1).mean()


def gae(
    r_t: Tensor, discount_t: Tensor, v_tm1: Tensor, v_t: Tensor, continues_t: Tensor, lambda_: float
) -> tuple[Tensor, Tensor]:
    """Generalised advantages and value targets (Schulman et al. 2016, eq. 16); all inputs [time, environments].

    v_t is the value of the state REACHED (final_obs at an episode's end), discount_t gamma, or 0 where that value must
    not count, continues_t 1 where the next row goes on in the same episode, else 0. Returns (advantages, advantages +
    v_tm1).
    """
    advantages = reverse_scan(r_t + discount_t * v_t - v_tm1, discount_t * continues_t * lambda_)
    return advantages, advantages + v_tm1


def reverse_scan(x: Tensor, decay: Tensor) -> Tensor:
    """y with y_t = x_t + decay_t * y_(t+1) and nothing after the last row; all [time, ...].

    By doubling: what rows t to t + n say together follows from two halves, so a few operations a power of 2 (Hillis and
    Steele 1986) take the place of two a row.
    """
    reach, rows = 1, len(x)
    while reach < rows:
        x = torch.cat([torch.addcmul(x[:-reach], decay[:-reach], x[reach:]), x[-reach:]])
        decay = torch.cat([decay[:-reach] * decay[reach:], decay[-reach:]])
        reach *= 2
    return x


def standardize(x: Tensor) -> Tensor:
    """(x - mean) / (std + 1e-8) over all entries, with the unbiased std as CleanRL and Stable-Baselines3 take it."""
    std, mean = torch.std_mean(x)
    return (x - mean) / (std + 1e-8)


def ppo_policy_loss(log_ratio: Tensor, advantages: Tensor, clip_coef: float) -> Tensor:
    """Clipped surrogate per example, to be minimised (Schulman et al. 2017, eq. 7); all [batch].

    The clipped term counts only where it is the smaller one, and there it is (1 + clip) A, or (1 - clip) A where A is
    negative: no ratio is in it.
    """
    _same_shape(log_ratio, advantages)
    return -torch.minimum(log_ratio.exp() * advantages, advantages + clip_coef * advantages.abs())


def clipped_value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip_coef: float) -> Tensor:
    """The larger of the squared errors of `values` and of `values` held within `clip_coef` of `old_values`; [batch]."""
    held = old_values + (values - old_values).clamp(-clip_coef, clip_coef)
    return torch.maximum((values - returns).square(), (held - returns).square())


def categorical_log_prob_entropy(logits: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
    """Log probability of integer `actions` [batch] under softmax(logits [batch, actions]), and the entropy [batch]."""
    log_p = torch.log_softmax(logits, dim=-1)
    return log_p.gather(-1, actions.unsqueeze(-1)).squeeze(-1), -(log_p.exp() * log_p).sum(-1)


def gaussian_log_prob_entropy(mean: Tensor, log_std: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
    """Log density of `actions` [batch, d] under a diagonal Gaussian, and its entropy [batch] (log_std is [d])."""
    scaled = (actions - mean) * torch.exp(-log_std)
    spread = (log_std + 0.5 * math.log(2 * math.pi)).sum(-1)
    log_prob = -0.5 * scaled.square().sum(-1) - spread
    return log_prob, (spread + 0.5 * log_std.shape[-1]).expand_as(log_prob)
