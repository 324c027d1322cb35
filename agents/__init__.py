"""Algorithms: DQN, C51 and PPO. They know networks, losses and memory; nothing of worlds, files or screens.

Importing this package is light; `build_agent` brings torch in.
"""

from typing import TYPE_CHECKING

from agents.config import AgentConfig
from agents.kinds import kind_of
from agents.ppo_config import PPOConfig
from agents.schedule import schedules_of
from agents.value_config import C51Config, DQNConfig

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

    from agents.agent import Agent
    from agents.clock import Clock
    from agents.config import Execution
    from agents.interventions.base import Intervention
    from agents.policies import Player
    from agents.randomness import Generators
    from agents.transitions import Spaces

__all__ = ["AgentConfig", "C51Config", "DQNConfig", "PPOConfig", "build_agent", "build_player"]


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
    execution: "Execution" = "auto",
) -> "Agent":
    """The agent that `config` describes, for `num_envs` environments with `spaces`.

    `precision`: fp32, tf32 or bf16, as `--precision`. It is a policy for the whole process, set here: torch's switches
    are global (agents/precision.py). A name among `interventions` stands for one with its defaults. `moments` other
    than "own" takes the place of what each of them does to Adam's moments by itself. `clock`: the run's. `execution`:
    how what happens on the device is run, as `--execution`; what is missing for it is printed.
    """
    from agents.execution import Executor
    from agents.followed_step import FollowedSteps

    for schedule in schedules_of(config).values():
        schedule.value(0)  # raises where it is not in steps
    wanted = {"interventions": interventions, "moments": moments, "clock": clock}
    wanted["executor"] = Executor(execution, device, generators)
    agent = kind_of(config).build(config, spaces, num_envs, generators, device=device, precision=precision, **wanted)
    FollowedSteps(agent.learner)
    return agent


def build_player(
    config: AgentConfig,
    spaces: "Spaces",
    weights: "Mapping[str, torch.Tensor]",
    greedy: bool,
    generators: "Generators",
    device: "torch.device",
    precision: str = "fp32",
    interventions: "Sequence[Intervention | str]" = (),
) -> "Player":
    """What plays with `weights` of that agent's network, greedily or as it explored last; nothing that learns is built.

    Raises RuntimeError, as torch does, where the weights are of another network.
    """
    from agents.interventions.lifecycle import Lifecycle
    from agents.precision import set_precision

    set_precision(precision, device)
    policy = kind_of(config).policy(config, spaces, device, precision, interventions)
    network = Lifecycle(interventions).fresh(policy.build_network, generators.torch("init"), device)
    network.load_state_dict(weights)
    return policy.player(network, greedy, generators)
