"""Another nonlinearity."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from torch import nn

from agents.config import AgentConfig, NetworkConfig
from agents.interventions.base import Intervention
from agents.randomness import Generators

NAMES = {"swish": "silu"}


@dataclass(eq=False)
class Activation(Intervention):
    """Another nonlinearity in every hidden layer than the agent's, whose weights are drawn as they were (gains too)."""

    name = "activation"
    needs_hidden_layers = True
    conflicts = frozenset({"crelu"})  # there is one nonlinearity after a layer

    kind: Literal["leaky_relu", "tanh", "gelu", "swish", "fourier"] = "leaky_relu"
    """swish: x sigmoid(x); fourier: concat(sin x, cos x) (deep Fourier features, 2410.20634): twice as many features
    as units, those of unit i are i and i + n."""
    negative_slope: float = 0.01
    """leaky_relu: slope below 0, in (0, 1)."""
    match: Literal["features", "parameters"] = "features"
    """fourier: half the units in every hidden layer, so that as many features come out, or 1/sqrt 2 as many, so that
    there are about as many parameters."""

    def __post_init__(self) -> None:
        self.require(0 < self.negative_slope < 1, "negative_slope", "in (0, 1)")
        slope_counts = self.kind == "leaky_relu" or self.negative_slope == 0.01
        self.require(slope_counts, "negative_slope", f"left alone with activation.kind = {self.kind!r}")
        match_counts = self.kind == "fourier" or self.match == "features"
        self.require(match_counts, "match", f"left alone with activation.kind = {self.kind!r}")

    def check(self, agent: AgentConfig, others: Sequence[Intervention]) -> None:
        same = agent.network.activation == NAMES.get(self.kind, self.kind)
        same = same and (self.kind != "leaky_relu" or agent.network.negative_slope == self.negative_slope)
        self.require(not same, "kind", "another activation than the agent's own")

    def configure(self, network: NetworkConfig) -> NetworkConfig:
        if self.kind == "fourier":
            return replace(network, doubled="fourier", match=self.match)
        activation = NAMES.get(self.kind, self.kind)
        return replace(network, activation=activation, negative_slope=self.negative_slope)

    def attach(self, networks: Mapping[str, nn.Module], generators: Generators) -> None:
        if not any(layer.activation == NAMES.get(self.kind, self.kind) for layer in self.layers):
            raise ValueError("activation: no hidden layer in its part of the network was built with it")
