"""What Adam's moments say about its steps (Lyle23 and Dohare24 trace losses of plasticity to oversized updates)."""

import torch
from torch import Tensor

from plasticity_probes.norms import float64_sum


def _ratio_sums(group: dict, state: dict) -> tuple[Tensor, Tensor]:
    """Sum and sum of squares over one parameter of |m_hat| / (sqrt(v_hat) + eps), both moments rid of their bias
    towards 0; float64."""
    first, second = state["exp_avg"], state.get("max_exp_avg_sq", state["exp_avg_sq"])
    step = torch.as_tensor(state["step"]).double()  # left where it lies: a CPU's 0-d tensor goes with any device
    corrections = [1 - beta**step for beta in group["betas"]]
    # at step 0 the moments are 0 and so are the corrections
    m_scale, v_scale = (torch.where(step == 0, 1.0, correction) for correction in corrections)
    eps, factor = group["eps"] * v_scale.sqrt(), v_scale.sqrt() / m_scale

    def ratio(first: Tensor, second: Tensor) -> Tensor:
        return (first / second.sqrt().add_(eps)).abs_()

    total = float64_sum(ratio, first, second)
    squares = float64_sum(lambda *moments: ratio(*moments).square_(), first, second)
    return factor * total, factor.square() * squares


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
        total, square = _ratio_sums(group, state)
        ratios.append(total)
        squares.append(group["lr"] ** 2 * square)
        entries += parameter.numel()
    if not ratios:
        zero = torch.zeros((), dtype=torch.float32, device=parameters[0][1].device)
        return {"update_ratio": zero, "update_norm": zero.clone()}
    ratio, norm = torch.stack(ratios).sum() / entries, torch.stack(squares).sum().sqrt()
    return {"update_ratio": ratio.float(), "update_norm": norm.float()}
