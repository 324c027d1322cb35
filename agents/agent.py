"""What every agent can be told and asked. Imports no torch."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    import torch

    from agents.clock import Clock
    from agents.config import AgentConfig
    from agents.learner import Learner
    from agents.randomness import Generators
    from agents.transitions import Spaces, Transitions


class Agent(Protocol):
    """Acts in E environments at once and learns from what comes of it."""

    config: "AgentConfig"
    spaces: "Spaces"
    device: "torch.device"
    learner: "Learner"
    clock: "Clock"
    generators: "Generators"
    """Of all that it draws."""

    def act(self, observations: "np.ndarray") -> "np.ndarray":
        """Actions for observations [E, ...], as the world takes them."""

    def observe(self, transitions: "Transitions") -> None:
        """Remember one step of every environment. Raises `NonFiniteError` before storing anything not finite."""

    def cut(self, observations: "np.ndarray") -> None:
        """Every episode breaks off here, in `observations` [E, ...] that were reached: they are bootstrapped from."""

    def update_due(self) -> bool:
        """Whether it wants to learn now."""

    def update(self) -> "dict[str, torch.Tensor]":
        """Learn; metrics as 0-d tensors on the device."""

    def on_task_change(self) -> None:
        """Told when every environment has entered the new task."""

    def player(self, greedy: bool, generators: "Generators") -> "Callable[[np.ndarray], np.ndarray]":
        """A function from observations [E, ...] to actions. Playing changes nothing in the agent."""

    def scalars(self) -> dict[str, float]:
        """Settings that change with the steps, for the log."""

    def state_dict(self) -> dict[str, Any]:
        """All of it between two ticks but what a replay stores, and where its generators stand: tensors and
        primitives."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave."""
