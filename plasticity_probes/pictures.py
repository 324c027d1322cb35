"""Matrices as images."""

import torch
from torch import Tensor


def in_colours(matrix: Tensor) -> Tensor:
    """A matrix with entries in [-1, 1] as an RGB image uint8 [3, rows, columns]: -1 blue, 0 white, 1 red; rows and
    columns are repeated where there are few, so that it can be looked at."""
    values = matrix.detach().float().cpu().nan_to_num().clamp(-1, 1)
    positive, negative = values.clamp(min=0), (-values).clamp(min=0)
    image = torch.stack([1 - negative, 1 - positive - negative, 1 - positive])
    times = max(1, 256 // len(values))
    return (image * 255).byte().repeat_interleave(times, 1).repeat_interleave(times, 2)
