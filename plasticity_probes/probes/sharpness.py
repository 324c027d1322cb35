"""How curved the loss is."""

from torch import Tensor

from plasticity_probes.curvature import hessian_eigenvalues
from plasticity_probes.probe import Findings, Probe, ProbeInput
from plasticity_probes.subject import Readout


class Sharpness(Probe):
    """The Hessian's largest eigenvalue (LA) and the one of largest magnitude (LM), for each readout's mean loss."""

    position = 10
    cost = "offline"
    tags = ("hessian_eigenvalue",)

    def measure(self, given: ProbeInput) -> Findings:
        """On the first examples of the batch."""
        found = Findings()
        parameters = [parameter for parameter in given.network.parameters() if parameter.requires_grad]
        for readout in given.readouts("losses"):

            def loss(readout: Readout = readout) -> Tensor:
                return readout.losses(given.network, *given.few).mean()

            for which in ("LA", "LM"):
                result = hessian_eigenvalues(loss, parameters, which=which)
                found.scalars[readout.tag(f"hessian_eigenvalue/{which}")] = result.values[0]
        return found
