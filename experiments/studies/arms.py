"""The arms that the studies compare, each a list of interventions at one strength."""

from collections.abc import Callable, Sequence

from agents.interventions import CBP, L2Init, LayerNorm, ReDo, WeightDecay
from agents.interventions.base import Intervention

STRENGTHS: dict[str, tuple[float, ...]] = {
    "none": (0.0,),
    "layer_norm": (0.0,),
    "weight_decay": (1e-3, 1e-2, 1e-1, 1.0, 10.0),
    "layer_norm + weight_decay": (1e-3, 1e-2, 1e-1, 1.0, 10.0),
    "redo": (0.0, 0.025, 0.1, 0.4),
    "cbp": (1e-5, 1e-4, 1e-3, 1e-2),
    "l2_init": (1e-6, 1e-5, 1e-4, 1e-3, 1e-2),
}
"""What is tried for each arm: weight_decay's and l2_init's rate, ReDo's tau, CBP's replacement rate."""


def interventions(arm: str, strength: float, task_steps: int) -> Sequence[Intervention]:
    """Those of `arm` where a task lasts `task_steps` gradient steps.

    Two clocks are set by that: ReDo looks ten times a task (at most every 1,000 steps), and CBP's units mature within
    half a task. The papers' own (1,000 and 10,000 gradient steps) are longer than a task here. ReDo scores 64 samples,
    with which the recorded results were made, and not its authors' 256.
    """
    looks, maturity = min(1_000, task_steps // 10), min(10_000, task_steps // 2)
    made: dict[str, Callable[[], Sequence[Intervention]]] = {
        "none": lambda: [],
        "layer_norm": lambda: [LayerNorm()],
        "weight_decay": lambda: [WeightDecay(rate=strength)],
        "layer_norm + weight_decay": lambda: [LayerNorm(), WeightDecay(rate=strength)],
        "redo": lambda: [ReDo(tau=strength, when=f"every {looks} gradient steps", samples=64)],
        "cbp": lambda: [CBP(replacement_rate=strength, maturity=maturity)],
        "l2_init": lambda: [L2Init(rate=strength)],
    }
    return made[arm]()
