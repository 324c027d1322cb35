"""Measurements of plasticity as pure functions of tensors, on the device where the tensors lie. Needs torch alone."""

from plasticity_probes.norms import global_norm, weight_norms
from plasticity_probes.targets import target_statistics

__all__ = ["global_norm", "target_statistics", "weight_norms"]
