"""What Adam's moments say about its steps (Lyle23 and Dohare24 trace losses of plasticity to oversized updates)."""

import torch
from torch import Tensor


def _ratio_sums(group: dict, state: dict) -> tuple[Tensor, Tensor]:
    """Sum and root of the sum of squares over one parameter of |m_hat| / (sqrt(v_hat) + eps), both moments rid of their
    bias towards 0."""
    first, second = state["exp_avg"].float(), state.get("max_exp_avg_sq", state["exp_avg_sq"]).float()
    step = torch.as_tensor(state["step"]).double()  # left where it lies: a CPU's 0-d tensor goes with any device
    corrections = [1 - beta**step for beta in group["betas"]]
    # at step 0 the moments are 0 and so are the corrections
    m_scale, v_scale = (torch.where(step == 0, 1.0, correction) for correction in corrections)
    ratio = first / second.sqrt().add_(group["eps"] * v_scale.sqrt())
    factor = v_scale.sqrt() / m_scale
    return (factor * torch.linalg.vector_norm(ratio, 1)).float(), (factor * torch.linalg.vector_norm(ratio)).float()


@torch.no_grad()
def adam_statistics(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Of the moments of a `torch.optim.Adam` or `AdamW` (fused, capturable, amsgrad too), over all parameters together:

    "update_ratio": mean over entries of |m_hat| / (sqrt(v_hat) + eps), with bias correction: about 1 where gradients
    are steady, near 0 where they are noise; above 1 the step is larger than the learning rate.
    "update_norm": Euclidean norm of lr * m_hat / (sqrt(v_hat) + eps), the last step taken, weight decay left out.

    0-d float32 on the parameters' device. Both are 0 before the first step; parameters that have no state yet count as
    nothing. ValueError for another optimizer.
    """
    if not isinstance(optimizer, (torch.optim.Adam, torch.optim.AdamW)):
        raise ValueError(f"optimizer = {type(optimizer).__name__}: must be torch.optim.Adam or AdamW")
    parameters = [(group, parameter) for group in optimizer.param_groups for parameter in group["params"]]
    ratios, squares, entries = [], [], 0
    for group, parameter in parameters:
        state = optimizer.state.get(parameter, {})
        if "exp_avg" not in state:
            continue
        total, norm = _ratio_sums(group, state)
        ratios.append(total)
        squares.append((group["lr"] * norm).square())
        entries += parameter.numel()
    if not ratios:
        zero = torch.zeros((), device=parameters[0][1].device)
        return {"update_ratio": zero, "update_norm": zero.clone()}
    return {"update_ratio": torch.stack(ratios).sum() / entries, "update_norm": torch.stack(squares).sum().sqrt()}
