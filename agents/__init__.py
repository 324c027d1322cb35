"""Algorithms: DQN, C51 and PPO. They know networks, losses and memory; nothing of worlds, files or screens.

Importing this package is light; `build_agent` brings torch in.
"""

from typing import TYPE_CHECKING

from agents.config import AgentConfig
from agents.kinds import C51Config, DQNConfig, PPOConfig, kind_of
from agents.schedule import schedules_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from agents.agent import Agent
    from agents.clock import Clock
    from agents.interventions.base import Intervention
    from agents.randomness import Generators
    from agents.transitions import Spaces

__all__ = ["AgentConfig", "C51Config", "DQNConfig", "PPOConfig", "build_agent"]


def build_agent(
    config: AgentConfig,
    spaces: "Spaces",
    num_envs: int,
    generators: "Generators",
    device: "torch.device",
    precision: str = "fp32",
    interventions: "Sequence[Intervention | str]" = (),
    moments: str = "own",
    clock: "Clock | None" = None,
) -> "Agent":
    """The agent that `config` describes, for `num_envs` environments with `spaces`.

    `precision`: fp32, tf32 or bf16, as `--precision`. It is a policy for the whole process, set here: torch's switches
    are global (agents/precision.py). A name among `interventions` stands for one with its defaults. `moments` other
    than "own" takes the place of what each of them does to Adam's moments by itself. `clock`: the run's.
    """
    for schedule in schedules_of(config).values():
        schedule.value(0)  # raises where it is not in steps
    wanted = {"interventions": interventions, "moments": moments, "clock": clock}
    return kind_of(config).build(config, spaces, num_envs, generators, device=device, precision=precision, **wanted)
