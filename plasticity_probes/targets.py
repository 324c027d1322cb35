"""Regression targets, TD errors and Q-values. Results are 0-d, detached float32 tensors on the inputs' device.

The size of the targets' mean alone can ruin the conditioning of the network that regresses on them (Lyle24).
"""

from torch import Tensor


def target_statistics(targets: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and (population) standard deviation of `targets`, any shape; 0-d, detached, on their device."""
    values = targets.detach().float()
    return values.mean(), values.std(correction=0)


def td_error_statistics(predictions: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Of the errors targets - predictions, same shape, in units of the return: "mean", "mean_abs", "std" (population)
    and
    "max_abs". ValueError where the shapes differ or are empty."""
    if predictions.shape != targets.shape or predictions.numel() == 0:
        shapes = f"{tuple(predictions.shape)} and targets of shape {tuple(targets.shape)}"
        raise ValueError(f"predictions of shape {shapes}: must be equal and not empty")
    errors = targets.detach().float() - predictions.detach().float()
    sizes = errors.abs()
    return {
        "mean": errors.mean(),
        "mean_abs": sizes.mean(),
        "std": errors.std(correction=0),
        "max_abs": sizes.max(),
    }


def q_statistics(q_values: Tensor) -> dict[str, Tensor]:
    """Of Q-values [samples, actions], in units of the return: "mean" over samples and actions, "max_mean" (mean over
    samples of the greedy value), "max_std" (its population standard deviation over samples) and "action_gap" (mean
    difference of the best and the second best action; 0 where there is one action). ValueError for other shapes."""
    if q_values.dim() != 2 or q_values.numel() == 0:
        raise ValueError(f"q_values of shape {tuple(q_values.shape)}: must be [samples, actions], not empty")
    values = q_values.detach().float()
    best = values.topk(min(2, values.shape[1]), dim=1).values
    return {
        "mean": values.mean(),
        "max_mean": best[:, 0].mean(),
        "max_std": best[:, 0].std(correction=0),
        "action_gap": (best[:, 0] - best[:, -1]).mean(),
    }
