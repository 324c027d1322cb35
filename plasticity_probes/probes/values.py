"""What is predicted and what should be."""

import torch

from plasticity_probes.probe import Findings, Probe, ProbeInput
from plasticity_probes.targets import target_statistics, td_error_statistics


class Values(Probe):
    """Predictions, targets and their errors, in units of the return."""

    position = 5
    tags = ("target", "prediction", "td_error")

    def measure(self, given: ProbeInput) -> Findings:
        """Of every readout that is a regression."""
        found = Findings()
        for readout in given.readouts("regression"):
            with torch.no_grad():
                predictions, wanted = readout.regression(given.answering, *given.prepared)
            mean, std = target_statistics(wanted)
            found.scalars |= {readout.tag("target/mean"): mean, readout.tag("target/std"): std}
            found.scalars[readout.tag("prediction/mean")] = predictions.detach().float().mean()
            errors = td_error_statistics(predictions, wanted)
            found.scalars |= {readout.tag(f"td_error/{name}"): value for name, value in errors.items()}
        return found
