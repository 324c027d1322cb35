"""How large the weights are, and how far they have moved."""

from plasticity_probes import norms
from plasticity_probes.probe import Curve, Findings, Probe, ProbeInput


class Weights(Probe):
    """Norm, mean size and changes of the weights, and how far a step turns them."""

    position = 3
    of_batch = False
    tags = ("weight_norm", "mean_abs_weight", "weight_change", "effective_learning_rate")
    curves = (
        Curve("all layers: weight norm", "weight_norm/total"),
        Curve("all layers: change since last probe", "weight_change/since_last_probe/total"),
    )

    def measure(self, given: ProbeInput) -> Findings:
        """By parameter, and in total; with the rate's effect where the subject has an optimizer."""
        network = given.network
        measured = {
            "weight_norm": norms.weight_norms(network),
            "mean_abs_weight": norms.mean_abs_weight(network),
            "weight_change/since_last_probe": norms.weight_change(network, given.previous),
            "weight_change/since_init": norms.weight_change(network, given.initial),
        }
        if given.subject.optimizer is not None:
            rate = given.subject.optimizer.param_groups[0]["lr"]
            measured["effective_learning_rate/adam"] = norms.effective_learning_rate(network, float(rate))
        named = given.parameter_name
        return Findings({f"{probe}/{named(name)}": v for probe, by in measured.items() for name, v in by.items()})
