"""How large Adam's steps are."""

from plasticity_probes.adam import adam_statistics
from plasticity_probes.probe import Curve, Findings, Probe, ProbeInput


class Adam(Probe):
    """Adam's moments: how large its steps are."""

    position = 6
    of_batch = False
    needs = ("optimizer",)
    tags = ("adam",)
    curves = (Curve("Adam: update ratio", "adam/update_ratio"),)

    def measure(self, given: ProbeInput) -> Findings:
        """Over all parameters together."""
        return Findings({f"adam/{name}": value for name, value in adam_statistics(given.subject.optimizer).items()})
