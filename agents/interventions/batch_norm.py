"""Batch normalisation before every nonlinearity."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn

from agents.config import AgentConfig, NetworkConfig
from agents.interventions.base import Intervention
from agents.randomness import Generators


@dataclass(eq=False)
class BatchNorm(Intervention):
    """Batch normalisation (Ioffe & Szegedy 2015) right before the nonlinearity of every hidden layer. In RL it is the
    literature's negative control: batches are no independent draws, and they shift with the policy.

    The statistics of the batch are used, and the running ones moved by a tenth, in the update's forward pass alone.
    Acting, probing, bootstrapping and the target network (which gets the running statistics at its sync) go by the
    running ones. In PPO, therefore, the policy that acted is not quite the one that the update sees: the probability
    ratio is not 1 even at the first minibatch of a rollout.
    """

    name = "batch_norm"
    needs_hidden_layers = True
    conflicts = frozenset({"layer_norm"})  # there is one norm before a nonlinearity

    affine: bool = True
    """Whether every unit has a gain and a bias that are learned; they begin at 1 and 0."""

    def check(self, agent: AgentConfig, others: Sequence[Intervention]) -> None:
        size = getattr(agent, "batch_size", 2)
        if size < 2:
            raise ValueError(f"batch_norm: batch_size = {size}: must be >= 2, one example has no variance")

    def configure(self, network: NetworkConfig) -> NetworkConfig:
        return replace(network, norm="batch", norm_affine=self.affine)

    def attach(self, networks: Mapping[str, nn.Module], generators: Generators) -> None:
        if not any(isinstance(layer.norm, (nn.BatchNorm1d, nn.BatchNorm2d)) for layer in self.layers):
            raise ValueError("batch_norm: no hidden layer in its part of the network was built with it")
