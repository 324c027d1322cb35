"""L2 regularisation through Adam's own coupled `weight_decay`."""

from __future__ import annotations

from dataclasses import dataclass

from agents.interventions.weight_decay import AdamDecay, Beyond


@dataclass(eq=False)
class L2(AdamDecay):
    """Adds rate * theta to the gradient of each parameter theta, inside Adam, so that its moments see it: the gradient
    of rate / 2 * ||theta||^2. It is added after gradient clipping and is not part of the logged loss or gradient norm.

    Dohare24's code hands torch's Adam `weight_decay` for all parameters, biases and log_std included: 1e-3 alone, 1e-4
    beside continual backpropagation or ReDo, each with both of Adam's betas .99.
    """

    name = "l2"
    decoupled = False

    rate: float = 1e-3
    """Coefficient; >= 0. Adam divides by the root of its second moment, so the pull does not grow with the rate where
    the loss's gradient is small."""
    include: tuple[Beyond, ...] = ("norm", "bias", "log_std")
    """What is regularised beside the weights: any of norm (gains and biases of norms), bias and log_std."""
