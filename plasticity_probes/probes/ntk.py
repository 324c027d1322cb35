"""How alike two examples are to the network's gradients."""

from plasticity_probes.gradients import cosine_matrix
from plasticity_probes.ntk import ntk, ntk_statistics
from plasticity_probes.probe import Findings, Probe, ProbeInput, clustered


class NTK(Probe):
    """The empirical neural tangent kernel of each readout's named output."""

    position = 9
    cost = "heavy"
    beside_fresh = True
    tags = ("ntk",)

    def measure(self, given: ProbeInput) -> Findings:
        """On the first examples of the batch."""
        found = Findings()
        observations = given.batch["observations"][: given.heavy_samples]
        for readout in given.subject.readouts:
            kernel = ntk(given.called(), observations, readout.output, vectorized=given.vectorized)
            for name, value in ntk_statistics(kernel).items():
                found.scalars[readout.tag(f"ntk/{readout.output_name}/{name}")] = value
            if given.pictures:
                found.images[readout.tag(f"ntk/{readout.output_name}")] = clustered(cosine_matrix(kernel))
        return found
