"""What a prober is given: a network that learns, what it learns, and where its batches come from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Readout:
    """One thing that a network learns: DQN's Q, PPO's actor and its critic."""

    name: str
    """Part of the tags; "" where there is one readout."""
    output: Callable[[Any], Tensor]
    """From what `Subject.forward` gives to one scalar an example, [n], for the eNTK."""
    output_name: str
    """What that scalar is, for the tag."""
    losses: Callable[..., Tensor] | None = None
    """losses(network, *batch) -> [n], differentiable; `batch` as `Subject.prepare` gives it."""
    regression: Callable[..., tuple[Tensor, Tensor]] | None = None
    """regression(network, *batch) -> predictions [n] and their targets [n], in units of the return."""
    on_policy: bool = False
    """Losses and targets belong to the policy that drew the batch (PPO's): on a frozen batch they mean nothing, and are
    left out there."""

    def tag(self, tag: str) -> str:
        """`tag` as this one's."""
        return f"{tag}/{self.name}" if self.name else tag


@dataclass(frozen=True)
class Subject:
    """What a prober needs to know of an agent, anybody's."""

    network: nn.Module
    """The network that learns (not the target network)."""
    draw: Callable[[int], dict[str, Tensor] | None]
    """draw(n): a fresh batch, "observations" [n, ...] and what the readouts need, from a generator of its own; None as
    long as there is not enough."""
    readouts: tuple[Readout, ...] = ()
    prepare: Callable[[dict[str, Tensor]], tuple[Tensor, ...]] = lambda batch: (batch["observations"],)
    """From a batch to what the readouts' functions take; called without gradients."""
    forward: Callable[[nn.Module, Tensor], Any] = lambda network, observations: network(observations)
    """How to call the network on observations."""
    optimizer: torch.optim.Optimizer | None = None
    behaviour: Callable[[Any], Any] | None = None
    """From what `forward` gives to Q-values or logits [n, actions], or (mean, log_std), for the churn of an update."""
    behaviour_kind: str = "values"
    """"values", "discrete" (logits) or "continuous"."""
    critic: Callable[[Any], Tensor] | None = None
    """From what `forward` gives to values [n], for the churn of a critic beside a policy's."""
    fresh: Callable[[], nn.Module] | None = None
    """A freshly initialised network of the same shape, from a generator of its own."""
    layer_name: Callable[[str], str] = lambda name: name
    """A layer's name in tags, from its name in the network."""
    recent: Any = None
    """What `draw` draws from where it remembers something, with `state_dict` and `load_state_dict`."""
