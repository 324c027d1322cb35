"""What goes into the nonlinearities."""

from plasticity_probes.dormancy import preactivation_statistics
from plasticity_probes.probe import Findings, Probe, ProbeInput


class Preactivations(Probe):
    """Mean and variance of the preactivations over samples, and their spread over units."""

    position = 4
    beside_fresh = True
    tags = ("preactivation",)

    def measure(self, given: ProbeInput) -> Findings:
        """Of every hidden layer."""
        return Findings(
            {
                f"preactivation/{statistic}/{name}": value
                for name, tensors in given.activations.items()
                for statistic, value in preactivation_statistics(tensors.pre).items()
            }
        )
