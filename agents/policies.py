"""From what a network gives to actions: how agents act, and how saved weights are played with nothing that learns."""

import itertools
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from agents import losses
from agents.actions import ActionMap
from agents.guard import require_finite
from agents.heads import ValueHead, head_for
from agents.interventions.base import Intervention
from agents.interventions.lifecycle import Configure, value_head
from agents.networks import ActorCritic, ActorOrCritic, QNetwork, build_torso
from agents.ppo_config import PPOConfig
from agents.randomness import Generators
from agents.rounding import without_gradient
from agents.transitions import Spaces
from agents.value_config import ValueAgentConfig

Player = Callable[[np.ndarray], np.ndarray]
"""From observations [E, ...] to actions as the world takes them."""


class QPolicy:
    """Epsilon-greedy on a network's values; `head` says what its outputs mean before `interventions` change that."""

    def __init__(
        self,
        config: ValueAgentConfig,
        head: ValueHead,
        spaces: Spaces,
        device: torch.device,
        precision: str = "fp32",
        interventions: Sequence[Intervention | str] = (),
    ) -> None:
        self.config, self.spaces, self.device, self.precision = config, spaces, device, precision
        self.head = value_head(head, interventions)

    def build_network(self, configure: Configure, generator: torch.Generator) -> QNetwork:
        """A freshly initialised network."""
        config = configure(self.config.network, "encoder")
        torso = build_torso(self.spaces, config, generator)
        return QNetwork(torso, self.spaces.action_size, self.head, config.initializer, generator)

    @torch.inference_mode()
    def greedy(self, network: QNetwork, observations: Tensor) -> Tensor:
        """The actions of greatest value, int64 [batch]."""
        with without_gradient(network, self.device, self.precision):
            return self.head.values(network(observations)).argmax(1)

    def act(
        self,
        greedy: Callable[[Tensor], Tensor],
        observations: np.ndarray,
        epsilon: float,
        generator: np.random.Generator,
    ) -> np.ndarray:
        """Actions, int64 [E], for observations [E, ...]: uniformly random with probability `epsilon`, else `greedy`."""
        rows = len(observations)
        explore = generator.random(rows) < epsilon
        actions = generator.integers(self.spaces.action_size, size=rows)
        if np.count_nonzero(explore) == rows:
            return actions
        chosen = greedy(torch.from_numpy(observations).to(self.device)).cpu().numpy()
        return np.where(explore, actions, chosen) if np.count_nonzero(explore) else chosen

    def player(self, network: QNetwork, greedy: bool, generators: Generators) -> Player:
        """Greedy, or epsilon-greedy with the final epsilon and a generator of its own."""
        generator, epsilon = generators.numpy("playing"), 0.0 if greedy else self.config.epsilon.final
        chosen = partial(self.greedy, network)
        return lambda observations: self.act(chosen, observations, epsilon, generator)


class ActorPolicy:
    """Draws from the distribution that an `ActorCritic`'s policy outputs stand for."""

    def __init__(
        self,
        config: PPOConfig,
        spaces: Spaces,
        device: torch.device,
        precision: str = "fp32",
        interventions: Sequence[Intervention | str] = (),
    ) -> None:
        self.config, self.spaces, self.device, self.precision = config, spaces, device, precision
        self.continuous = spaces.actions == "continuous"
        self.action_map: ActionMap | None = None  # of a world that was built: one that is described has no bounds
        if spaces.action_low is not None:
            bounds = spaces.action_low, spaces.action_high
            self.action_map = ActionMap(*bounds, config.action_scaling, config.clip_actions)
        self.head = value_head(head_for(config.value_loss, config.support, device), interventions)

    def build_network(self, configure: Configure, generator: torch.Generator) -> ActorCritic:
        """A freshly initialised network."""
        config = self.config
        return ActorCritic(
            self.spaces,
            configure(config.network, "encoder" if config.shared_torso else "actor"),
            shared_torso=config.shared_torso,
            head=self.head,
            normalize_observations=config.normalize_observations,
            generator=generator,
            critic_config=None if config.shared_torso else configure(config.network, "critic"),
        )

    def forward(
        self, network: ActorCritic, observations: Tensor, part: ActorOrCritic | None = None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Policy outputs [batch, ...] and values [batch] (expectations under a categorical head), without a gradient;
        for one `part` alone the other is None where the torsos are apart."""
        with without_gradient(network, self.device, self.precision):
            policy, outputs = network(observations, part=part)
        return policy, None if outputs is None else self.head.values(outputs)

    def log_prob_entropy(self, network: ActorCritic, policy: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Log probability of `actions` under the policy's outputs [batch, ...], and its entropy; [batch] each."""
        if self.continuous:
            return losses.gaussian_log_prob_entropy(policy, network.log_std, actions)
        return losses.categorical_log_prob_entropy(policy, actions)

    def draw(self, network: ActorCritic, policy: Tensor, generator: torch.Generator) -> Tensor:
        """An action for each row of the policy's outputs."""
        if self.continuous:
            return torch.empty_like(policy).normal_(generator=generator).mul_(network.log_std.exp()).add_(policy)
        # argmax of logits - log(Exp(1) draws) is a draw from softmax(logits): the Gumbel-max trick
        return (policy - torch.empty_like(policy).exponential_(generator=generator).log_()).argmax(-1)

    def to_world(self, actions: Tensor, step: int) -> np.ndarray:
        """As the world takes them. Raises `NonFiniteError` where one, at `step`, is not finite."""
        array = actions.cpu().numpy()
        require_finite(step, action=array)  # a world would clip an infinite one without a word
        return array if self.action_map is None else self.action_map(array)

    def player(self, network: ActorCritic, greedy: bool, generators: Generators) -> Player:
        """The policy's mode, or draws of a generator of its own."""
        generator, played = generators.torch("playing", self.device), itertools.count(1)

        @torch.inference_mode()
        def play(observations: np.ndarray) -> np.ndarray:
            policy, _ = self.forward(network, torch.from_numpy(observations).to(self.device), "actor")
            if greedy:
                return self.to_world(policy if self.continuous else policy.argmax(-1), next(played))
            return self.to_world(self.draw(network, policy, generator), next(played))

        return play
