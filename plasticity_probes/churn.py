"""How much one update changes what the agent does on states that the update did not see.

The caller evaluates the network on held-out states before and after the update. Results are 0-d, detached float32
tensors on the inputs' device.
"""

import torch
from torch import Tensor


def _require_equal_shapes(before: Tensor, after: Tensor, name: str) -> None:
    if before.shape != after.shape or before.numel() == 0:
        shapes = f"{tuple(before.shape)} before and {tuple(after.shape)} after"
        raise ValueError(f"{name} of shapes {shapes}: must be equal and not empty")


def value_churn(q_before: Tensor, q_after: Tensor) -> Tensor:
    """Mean |Q_after - Q_before| over all entries; any shape, the same for both, in units of the return (C-CHAIN,
    2506.00592). ValueError where the shapes differ."""
    _require_equal_shapes(q_before, q_after, "q")
    return (q_after.detach().float() - q_before.detach().float()).abs().mean()


def greedy_action_churn(q_before: Tensor, q_after: Tensor) -> Tensor:
    """Share of states whose greedy action changed; both Q-values or logits [states, actions]. Of equal values the first
    is taken. ValueError for other shapes."""
    _require_equal_shapes(q_before, q_after, "q")
    if q_before.dim() != 2:
        raise ValueError(f"q_before of shape {tuple(q_before.shape)}: must be [states, actions]")
    return (q_before.detach().argmax(1) != q_after.detach().argmax(1)).float().mean()


def _categorical_kl(before: Tensor, after: Tensor) -> Tensor:
    """KL(softmax(before) || softmax(after)) per state; [states, actions] -> [states]."""
    log_before, log_after = before.log_softmax(-1), after.log_softmax(-1)
    # p log(p / q) is 0 for an action of probability 0 (logit -inf, an action masked out), not NaN
    gap = torch.where(log_before == -torch.inf, 0.0, log_before - log_after)
    return (log_before.exp() * gap).sum(-1)


def _gaussian_kl(before: tuple[Tensor, Tensor], after: tuple[Tensor, Tensor]) -> Tensor:
    """KL of diagonal Gaussians (mean, log_std), each [states, dimensions] or broadcast to it -> [states]."""
    (mean_before, log_std_before), (mean_after, log_std_after) = before, after
    log_ratio = log_std_before - log_std_after
    distance = (mean_before - mean_after) * (-log_std_after).exp()
    # expm1(2r) - 2r instead of exp(2r) - 1 - 2r: small changes keep their digits
    return 0.5 * (torch.expm1(2 * log_ratio) - 2 * log_ratio + distance.square()).sum(-1)


def policy_churn(
    before: Tensor | tuple[Tensor, Tensor], after: Tensor | tuple[Tensor, Tensor], kind: str = "discrete"
) -> Tensor:
    """Mean over states of KL(policy before || policy after), in nats.

    kind "discrete": logits [states, actions]. kind "continuous": (mean [states, dimensions], log_std [dimensions] or
    [states, dimensions]) of a diagonal Gaussian. ValueError where shapes differ or do not fit, and for another kind.
    """
    if kind == "discrete":
        _require_equal_shapes(before, after, "logits")
        if before.dim() != 2:
            raise ValueError(f"logits of shape {tuple(before.shape)}: must be [states, actions]")
        return _categorical_kl(before.detach().float(), after.detach().float()).mean()
    if kind == "continuous":
        _require_equal_shapes(before[0], after[0], "mean")
        _require_equal_shapes(before[1], after[1], "log_std")
        mean, log_std = before
        if mean.dim() != 2 or log_std.shape not in (mean.shape, mean.shape[1:]):
            shapes = f"mean of shape {tuple(mean.shape)}, log_std of shape {tuple(log_std.shape)}"
            raise ValueError(f"{shapes}: must be [states, dimensions] and [dimensions] or [states, dimensions]")
        policies = [tuple(part.detach().float() for part in policy) for policy in (before, after)]
        return _gaussian_kl(*policies).mean()
    raise ValueError(f"kind = {kind!r}: must be 'discrete' or 'continuous'")
