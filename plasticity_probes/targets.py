"""Size of the regression targets, whose mean alone can ruin the conditioning (Lyle24)."""

from torch import Tensor


def target_statistics(targets: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and (population) standard deviation of `targets`, any shape; 0-d, detached, on their device."""
    values = targets.detach().float()
    return values.mean(), values.std(correction=0)
