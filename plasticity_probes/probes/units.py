"""Units that have stopped working."""

from torch import Tensor

from plasticity_probes import dormancy
from plasticity_probes.probe import Curve, Findings, Probe, ProbeInput

TAUS = (0.025, 0.1)
"""Thresholds of dormancy (Sokar23 use .1 and .025)."""
SMOOTH = ("tanh", "gelu", "silu", "leaky_relu", "elu", "sigmoid", "softplus")


class Units(Probe):
    """Dormant, dead, inactive and linearised units of every hidden layer, and of all layers pooled."""

    position = 1
    beside_fresh = True
    tags = ("dormant_fraction", "dead_fraction", "inactive_fraction", "linearized_fraction", "unit_scores")
    curves = (
        Curve("dormant, tau .025", "dormant_fraction/tau=0.025", "units", under_a_norm="dormant"),
        Curve("dead", "dead_fraction", "units"),
        Curve("linearised", "linearized_fraction", "units"),
    )

    def measure(self, given: ProbeInput) -> Findings:
        """Masks of units, each layer's share and that of all."""
        found = Findings()
        masks: dict[str, dict[str, Tensor]] = {}
        for name, tensors in given.activations.items():
            kind, post = given.nonlinearities[name], tensors.post
            if kind == "crelu":  # unit i is positive in one half or in the other
                post = post.narrow(1, 0, post.shape[1] // 2) + post.narrow(1, post.shape[1] // 2, post.shape[1] // 2)
            scores = dormancy.unit_scores(post)
            for tau in TAUS:
                masks.setdefault(f"dormant_fraction/tau={tau}", {})[name] = dormancy.dormant_by_score(scores, tau)
            if kind in ("relu", "crelu"):  # smooth units are never 0
                masks.setdefault("inactive_fraction", {})[name] = dormancy.inactive_units(post)
            if kind in ("relu", "crelu", "tanh"):
                dead = dormancy.dead_units(post, "tanh" if kind == "tanh" else "relu")
                masks.setdefault("dead_fraction", {})[name] = dead
            if kind == "relu" or kind in SMOOTH:
                linear = dormancy.linearized_units(tensors.pre, "relu" if kind == "relu" else "smooth")
                masks.setdefault("linearized_fraction", {})[name] = linear
            if given.pictures:
                found.histograms[f"unit_scores/{name}"] = scores
        for probe, by_layer in masks.items():
            found.scalars |= {f"{probe}/{name}": mask.mean() for name, mask in by_layer.items()}
            found.scalars[f"{probe}/all"] = dormancy.pooled_fraction(by_layer)
        return found
