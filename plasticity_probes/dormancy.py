"""Units that have stopped working: dormant, dead, inactive, linearised; and statistics of preactivations.

A layer's tensor is [samples, units] or, of a convolution, [samples, channels, positions...]: there a unit is a
channel, and each (sample, position) counts as one sample of it. The output layer is not a hidden layer and is left out
by the caller.

Every criterion comes twice. `*_units` gives a float32 mask [units]: 1 where the unit meets it, 0 where not, NaN where
the unit holds a NaN. `*_fraction` gives the share of such units, of one layer or, for a list or dict of layers, of
their units pooled (not the mean of the layers' shares). All results are detached float32 on the tensors' device, and
nothing is read back from it.
"""

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

Layers = Tensor | Mapping[str, Tensor] | Iterable[Tensor]
"""One layer's tensor, or those of several layers."""

TANH_STD = 1e-3
SMOOTH_VARIANCE = 1e-3


def _sample_axes(tensor: Tensor, name: str) -> tuple[int, ...]:
    """The axes over which a unit's samples lie."""
    if tensor.dim() < 2 or tensor.numel() == 0:
        allowed = "[samples, units] or [samples, channels, positions...], and not empty"
        raise ValueError(f"{name} of shape {tuple(tensor.shape)}: must be {allowed}")
    return (0, *range(2, tensor.dim()))


def _moments(values: Tensor, axes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Mean and population variance over `axes`, in two passes: ten times as fast on a CPU as `torch.var_mean`."""
    means = values.mean(axes, keepdim=True)
    return means.squeeze(axes), (values - means).square_().mean(axes)


def _mask(meets: Tensor, statistic: Tensor) -> Tensor:
    """`meets` as 0 and 1, and NaN where `statistic`, which it was decided on, is NaN."""
    return torch.where(statistic.isnan(), torch.nan, meets.float())


def _tensors(layers: Layers, name: str) -> list[Tensor]:
    if isinstance(layers, Tensor):
        return [layers]
    tensors = list(layers.values() if isinstance(layers, Mapping) else layers)
    if not tensors:
        raise ValueError(f"{name} = []: must hold at least one tensor")
    return tensors


def pooled_fraction(masks: Layers) -> Tensor:
    """Share of units over all layers together, 0-d, from their masks [units], float or bool.

    Lets a caller that wants each layer's share and the pooled one compute the masks once. ValueError where a mask is
    not a vector or there is none.
    """
    parts = _tensors(masks, "masks")
    for part in parts:
        if part.dim() != 1:
            raise ValueError(f"masks of shape {tuple(part.shape)}: must be [units]")
    return torch.cat([part.detach().float() for part in parts]).mean()


def _fraction(criterion: Callable[[Tensor], Tensor], layers: Layers, name: str) -> Tensor:
    return pooled_fraction([criterion(layer) for layer in _tensors(layers, name)])


def unit_scores(activations: Tensor) -> Tensor:
    """s_i = E|h_i| / (mean over the layer's units of E|h|), [units] (Sokar23).

    E is over samples and, for a convolution, positions. Scores average to 1 and do not change when the layer is scaled.
    In a layer that is zero on every sample all scores are 0, so that each of its units is dormant at any tau.
    """
    axes = _sample_axes(activations, "activations")
    sizes = activations.detach().float().abs().mean(axes)
    average = sizes.mean()
    return sizes / torch.where(average == 0, torch.ones_like(average), average)


def dormant_units(activations: Tensor, tau: float = 0.025) -> Tensor:
    """Mask [units] of the units whose score is at most `tau` (Sokar23). ValueError for tau < 0."""
    return dormant_by_score(unit_scores(activations), tau)


def dormant_by_score(scores: Tensor, tau: float = 0.025) -> Tensor:
    """The mask of `dormant_units` from `unit_scores` [units], for a caller that has more than one tau."""
    if tau < 0:
        raise ValueError(f"tau = {tau}: must be at least 0")
    return _mask(scores <= tau, scores)


def dormant_fraction(activations: Layers, tau: float = 0.025) -> Tensor:
    """Share of the units of one layer, or of several pooled, whose score in their layer is at most `tau`; 0-d
    (Sokar23).

    Published values use tau 0.025 and 0.1. Compare with a fresh network's share on the same batch.
    """
    return _fraction(lambda layer: dormant_units(layer, tau), activations, "activations")


def dead_units(activations: Tensor, kind: str = "relu") -> Tensor:
    """Mask [units] of the units that say nothing about the input.

    kind "relu": zero on every sample. kind "tanh": population standard deviation over samples below 1e-3, the test for
    any smooth unit, saturated or silent. ValueError for another kind.
    """
    axes = _sample_axes(activations, "activations")
    values = activations.detach().float()
    if kind == "relu":
        largest = torch.maximum(values.amax(axes), -values.amin(axes))  # quicker than to take magnitudes before
        return _mask(largest == 0, largest)
    if kind == "tanh":
        deviation = _moments(values, axes)[1].sqrt()
        return _mask(deviation < TANH_STD, deviation)
    raise ValueError(f"kind = {kind!r}: must be 'relu' or 'tanh'")


def dead_fraction(activations: Layers, kind: str = "relu") -> Tensor:
    """Share of dead units of one layer, or of several pooled; 0-d. `kind` as in `dead_units`."""
    return _fraction(lambda layer: dead_units(layer, kind), activations, "activations")


def inactive_units(activations: Tensor, threshold: float = 0.01) -> Tensor:
    """Mask [units] of the ReLU units that are nonzero on at most a share `threshold` of the samples (Dohare24).

    It says nothing of smooth units, which are never exactly zero. ValueError for a threshold outside [0, 1).
    """
    if not 0 <= threshold < 1:
        raise ValueError(f"threshold = {threshold}: must be at least 0 and below 1")
    axes = _sample_axes(activations, "activations")
    values = activations.detach().float()
    active = values.sign().abs_().mean(axes)  # quicker than a comparison; a NaN has sign 0, hence the sum
    return _mask(active <= threshold, values.sum(axes))


def inactive_fraction(activations: Layers, threshold: float = 0.01) -> Tensor:
    """Share of inactive units of one layer, or of several pooled; 0-d (Dohare24, threshold 1%)."""
    return _fraction(lambda layer: inactive_units(layer, threshold), activations, "activations")


def linearized_units(preactivations: Tensor, kind: str = "relu", threshold: float = SMOOTH_VARIANCE) -> Tensor:
    """Mask [units] of the units that act as a linear function on this batch ("zombies").

    kind "relu": preactivation above 0 on every sample. kind "smooth": population variance of the preactivation below
    `threshold`; its default 1e-3 is our choice, since no source gives one (a tanh unit then departs from its tangent by
    about a thirtieth of its own spread at most). ValueError for another kind or a threshold that is not positive.
    """
    if threshold <= 0:
        raise ValueError(f"threshold = {threshold}: must be above 0")
    axes = _sample_axes(preactivations, "preactivations")
    values = preactivations.detach().float()
    if kind == "relu":
        smallest = values.amin(axes)
        return _mask(smallest > 0, smallest)
    if kind == "smooth":
        variance = _moments(values, axes)[1]
        return _mask(variance < threshold, variance)
    raise ValueError(f"kind = {kind!r}: must be 'relu' or 'smooth'")


def linearized_fraction(preactivations: Layers, kind: str = "relu", threshold: float = SMOOTH_VARIANCE) -> Tensor:
    """Share of linearised units of one layer, or of several pooled; 0-d. `kind`, `threshold` as in
    `linearized_units`."""
    return _fraction(lambda layer: linearized_units(layer, kind, threshold), preactivations, "preactivations")


def preactivation_statistics(preactivations: Tensor) -> dict[str, Tensor]:
    """How one layer's preactivations are distributed, 0-d each (Lyle24 follows their drift).

    With m_i and v_i the mean and population variance of unit i over samples: "mean" and "mean_spread" are the mean and
    standard deviation over units of m_i, "variance" and "variance_spread" those of v_i.
    """
    axes = _sample_axes(preactivations, "preactivations")
    means, variances = _moments(preactivations.detach().float(), axes)
    return {
        "mean": means.mean(),
        "mean_spread": means.std(correction=0),
        "variance": variances.mean(),
        "variance_spread": variances.std(correction=0),
    }
