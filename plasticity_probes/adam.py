"""What Adam's moments say about its steps (Lyle23 and Dohare24 trace losses of plasticity to oversized updates)."""

import torch
from torch import Tensor


def _corrected_moments(group: dict, state: dict) -> tuple[Tensor, Tensor]:
    """|m_hat| and sqrt(v_hat) + eps of one parameter, float32; both moments without their bias towards 0."""
    first, second = state["exp_avg"].float(), state.get("max_exp_avg_sq", state["exp_avg_sq"]).float()
    step = torch.as_tensor(state["step"]).to(first.device, torch.float64)
    betas = torch.tensor(group["betas"], dtype=torch.float64).to(first.device)
    corrections = 1 - betas**step
    # at step 0 the moments are 0 and so is the correction
    m_scale, v_scale = (torch.where(step == 0, 1.0, correction).float() for correction in corrections)
    return first.abs() / m_scale, (second / v_scale).sqrt() + group["eps"]


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
        size, root = _corrected_moments(group, state)
        ratio = size / root
        ratios.append(ratio.sum())
        squares.append((group["lr"] * torch.linalg.vector_norm(ratio)).square())
        entries += ratio.numel()
    if not ratios:
        zero = torch.zeros((), device=parameters[0][1].device)
        return {"update_ratio": zero, "update_norm": zero.clone()}
    return {"update_ratio": torch.stack(ratios).sum() / entries, "update_norm": torch.stack(squares).sum().sqrt()}
