"""How large the gradients are, and how those of single examples agree."""

import torch

from plasticity_probes.gradients import cosine_matrix, gradient_gram, gradient_norms, negative_share
from plasticity_probes.probe import Findings, Probe, ProbeInput, clustered


class Gradients(Probe):
    """Gradient norms by layer, and how the gradients of single examples agree."""

    position = 8
    cost = "heavy"
    tags = ("gradient_norm", "gradient_covariance")

    def measure(self, given: ProbeInput) -> Findings:
        """Of every readout that has losses."""
        found = Findings()
        for readout in given.readouts("losses"):
            trained = ((name, p) for name, p in given.network.named_parameters() if p.requires_grad)
            names, parameters = zip(*trained, strict=True)
            with torch.enable_grad():
                loss = readout.losses(given.network, *given.prepared).mean()
                wanted = torch.autograd.grad(loss, parameters, allow_unused=True)
            whole = {name: value for name, value in zip(names, wanted, strict=True) if value is not None}
            for name, value in gradient_norms(given.network, whole).items():
                found.scalars[readout.tag(f"gradient_norm/{given.parameter_name(name)}")] = value
            cosines = cosine_matrix(
                gradient_gram(given.network, readout.losses, given.few, vectorized=given.vectorized)
            )
            found.scalars[readout.tag("gradient_covariance/negative_share")] = negative_share(cosines)
            if given.pictures:
                found.images[readout.tag("gradient_covariance")] = clustered(cosines)
        return found
