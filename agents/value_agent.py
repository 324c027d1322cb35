"""What DQN and C51 share: everything but head, target and loss, which an `Objective` brings."""

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from agents.checks import check_value_agent
from agents.config import ValueAgentConfig
from agents.guard import require_finite, require_finite_transitions
from agents.interventions.base import Intervention
from agents.interventions.lifecycle import Lifecycle, check_interventions
from agents.networks import QNetwork, build_torso, learning
from agents.optimization import Optimization, autocast, linear_schedule
from agents.precision import set_precision
from agents.randomness import Generators
from agents.replay import Replay
from agents.rewards import RewardTransform
from agents.transitions import Spaces, Transitions
from plasticity_probes import target_statistics


class Target(NamedTuple):
    """What a gradient step regresses on."""

    regressand: Tensor
    """[batch] scalars or [batch, atoms] probabilities."""
    values: Tensor
    """[batch] the target as a value, in units of the return."""
    clipped_share: Tensor | None
    """Share of the target that the support clips; None for a regression head."""


class Objective(Protocol):
    """Head, target and loss of a value agent. Outputs are [..., actions] or [..., actions, atoms]."""

    atoms: int

    def values(self, outputs: Tensor) -> Tensor:
        """The expected return that `outputs` stand for: the last axis of a categorical head is summed out."""

    def target(self, rewards: Tensor, discounts: Tensor, next_outputs: Tensor) -> Target:
        """Target from rewards [batch], discounts [batch] and the bootstrap action's outputs [batch(, atoms)]."""

    def loss(self, outputs: Tensor, regressand: Tensor) -> Tensor:
        """Loss per example [batch] of the taken action's outputs [batch(, atoms)]."""


def take(outputs: Tensor, actions: Tensor) -> Tensor:
    """Outputs of one action an example: [batch, actions(, atoms)], int64 [batch] -> [batch(, atoms)]."""
    return outputs[torch.arange(len(actions), device=outputs.device), actions]


class ValueAgent:
    """Epsilon-greedy Q-learning from replay with a target network (Mnih et al. 2015)."""

    def __init__(
        self,
        config: ValueAgentConfig,
        objective: Objective,
        spaces: Spaces,
        num_envs: int,
        generators: Generators,
        device: torch.device = torch.device("cpu"),
        precision: str = "fp32",
        interventions: Sequence[Intervention] = (),
        moments: str = "own",
    ) -> None:
        check_value_agent(config, spaces, num_envs)
        check_interventions(interventions, config)
        self.config, self.objective, self.spaces, self.num_envs = config, objective, spaces, num_envs
        self.device, self.precision = device, precision
        set_precision(precision, device)
        self.interventions = Lifecycle(interventions, partial(autocast, device, precision))
        self.network = self.build_network(generators.torch("init"))
        self.target_network = copy.deepcopy(self.network).requires_grad_(False)
        networks = {"online": self.network, "target": self.target_network}
        groups = self.interventions.attach(networks, spaces.example(device), generators.torch("interventions"))
        self.optimization = Optimization(groups, config.learning_rate, config.adam, config.max_grad_norm, self.network)
        self.optimization.guard.hold(self.interventions.unsettled())
        storage = device if config.replay_device == "device" else torch.device("cpu")
        self.replay = Replay(
            spaces,
            num_envs,
            config.buffer_size,
            config.n_step,
            config.gamma,
            generators.numpy("replay"),
            device,
            storage,
        )
        drawing = generators.numpy("surgery's samples")
        self.interventions.operate(
            self.optimization.adam,
            generators.torch("surgery", device),
            lambda n: self.replay.sample(n, drawing).observations,
            moments,
            drawing,
        )
        self.transform = RewardTransform(config.reward.reward_transform, num_envs, config.gamma)
        self.exploration = generators.numpy("exploration")
        self.steps = 0
        self.task: int | None = None  # the task that every environment has entered
        self.task_began = 0

    def build_network(self, generator: torch.Generator) -> QNetwork:
        """A freshly initialised network of this agent's shape, on its device."""
        config = self.interventions.configure(self.config.network, "encoder")
        torso = build_torso(self.spaces, config, generator)
        network = QNetwork(torso, self.spaces.action_size, self.objective.atoms, config.initializer, generator)
        return self.interventions.build(network, generator).to(self.device).eval()

    @property
    def epsilon(self) -> float:
        """Probability of a uniformly random action now."""
        config = self.config
        since = self.steps - max(config.learning_starts, self.task_began if config.anneal_per_task else 0)
        return 1.0 if since < 0 else linear_schedule(config.start_e, config.end_e, config.exploration_steps, since)

    def act(self, observations: np.ndarray) -> np.ndarray:
        """Epsilon-greedy actions, int64 [E], for observations [E, ...]."""
        return self._play(observations, self.epsilon, self.exploration)

    def player(self, greedy: bool, generators: Generators) -> Callable[[np.ndarray], np.ndarray]:
        """A function from observations [E, ...] to actions: greedy, or epsilon-greedy with the final epsilon and a
        generator of its own. Playing changes nothing in the agent."""
        generator = generators.numpy("playing")
        return lambda observations: self._play(observations, 0.0 if greedy else self.config.end_e, generator)

    def _play(self, observations: np.ndarray, epsilon: float, generator: np.random.Generator) -> np.ndarray:
        rows = len(observations)
        explore = generator.random(rows) < epsilon
        actions = generator.integers(self.spaces.action_size, size=rows)
        if not explore.all():
            with torch.inference_mode(), autocast(self.device, self.precision):
                outputs = self.network(torch.from_numpy(observations).to(self.device))
                greedy = self.objective.values(outputs).argmax(1).cpu().numpy()
            actions = np.where(explore, actions, greedy)
        return actions

    def observe(self, transitions: Transitions) -> None:
        """Remember one step of every environment. Raises `NonFiniteError` before storing anything not finite."""
        ended = transitions.terminated | transitions.truncated
        require_finite_transitions(self.steps, transitions, ended)
        rewards = self.transform(transitions.rewards, ended)
        require_finite(self.steps, transformed_reward=rewards)
        self.replay.add(transitions, rewards, self.config.life_loss_discount)
        self.steps += self.num_envs
        if transitions.tasks is not None:
            self.task = int(transitions.next_tasks.min())

    def update_due(self) -> bool:
        """Whether the replay ratio asks for another gradient step now."""
        owed = int((self.steps - self.config.learning_starts) * self.config.replay_ratio)
        return self.optimization.gradient_steps < owed and self.replay.ready(self.config.batch_size)

    def update(self) -> dict[str, Tensor]:
        """One gradient step; metrics as 0-d tensors on the device."""
        config, objective = self.config, self.objective
        self.optimization.begin()
        batch = self.replay.sample(config.batch_size)
        target = self.target(batch.rewards, batch.discounts, batch.next_observations)
        self.interventions.on_targets(target.values)
        captured = self.interventions.capturing()
        with autocast(self.device, self.precision), learning(self.network):
            outputs = take(self.network(batch.observations, captured), batch.actions)
        loss = self.loss(outputs, target.regressand).mean()
        forward = self.interventions.forward(batch.observations, captured)
        penalties = self.interventions.penalties(forward)
        statistics = target_statistics(target.values)
        # a support clips an infinite target, and the loss does not show it
        watched = {} if target.clipped_share is None else {"target": statistics[0]}
        gradient_norm = self.optimization.step(sum(penalties.values(), start=loss), **watched)
        gradient_step = self.optimization.gradient_steps
        self.interventions.after_step(forward, gradient_step, self.steps)
        if gradient_step % config.target_period == 0:
            self.sync_target()
            self.interventions.on_target_sync()
        metrics = self._metrics(loss, gradient_norm, objective.values(outputs.detach()), target, statistics)
        return metrics | {f"losses/penalty/{name}": penalty.detach() for name, penalty in penalties.items()}

    def loss(self, outputs: Tensor, regressand: Tensor) -> Tensor:
        """Loss per example [batch] of the taken action's outputs [batch(, atoms)]."""
        return self.objective.loss(*self.interventions.regression(outputs, regressand))

    @torch.no_grad()
    def target(self, rewards: Tensor, discounts: Tensor, next_observations: Tensor) -> Target:
        """What to regress on: the target network's value of the greedy action, the online one's choice if double."""
        with autocast(self.device, self.precision):
            next_outputs = self.target_network(next_observations)
            selector = self.network(next_observations) if self.config.double else next_outputs
            next_actions = self.objective.values(selector).argmax(1)
            return self.objective.target(rewards, discounts, take(next_outputs, next_actions))

    @torch.no_grad()
    def sync_target(self) -> None:
        """Move the target network's parameters by `tau` towards the online network's and copy its buffers, unless the
        guard has latched."""
        allowed = self.optimization.guard.allowed
        weight = self.config.tau if allowed is None else self.config.tau * allowed.float()
        for target, online in zip(self.target_network.parameters(), self.network.parameters(), strict=True):
            target.lerp_(online, weight)
        for target, online in zip(self.target_network.buffers(), self.network.buffers(), strict=True):
            target.copy_(online if allowed is None else torch.where(allowed, online, target))

    def _metrics(
        self, loss: Tensor, gradient_norm: Tensor, q: Tensor, target: Target, statistics: tuple[Tensor, Tensor]
    ) -> dict[str, Tensor]:
        mean, std = statistics
        metrics = {
            "losses/td_loss": loss.detach(),
            "losses/q_values": q.mean(),
            "losses/td_error": (q - target.values).abs().mean(),
            "losses/gradient_norm": gradient_norm,
            "targets/mean": mean,
            "targets/std": std,
        }
        return metrics if target.clipped_share is None else {**metrics, "targets/clipped_share": target.clipped_share}

    def scalars(self) -> dict[str, float]:
        """Settings that change with the steps, for the log."""
        scalars = {"charts/epsilon": self.epsilon, "charts/learning_rate": self.optimization.learning_rate}
        if self.task is not None:
            scalars["replay/current_task_share"] = self.replay.task_share(self.task)
        return scalars

    def on_task_change(self) -> None:
        """Told when every environment has entered the new task."""
        self.task_began = self.steps
        if self.config.replay.on_task_change == "clear":
            self.replay.keep_task(self.task)
        self.interventions.on_task_change()

    def state_dict(self) -> dict:
        """Weights, optimizer and counters (not the replay)."""
        return {
            "network": self.network.state_dict(),
            "target_network": self.target_network.state_dict(),
            "optimization": self.optimization.state_dict(),
            "interventions": self.interventions.state_dict(),
            "transform": self.transform.state_dict(),
            "steps": self.steps,
            "task_began": self.task_began,
        }

    def load_state_dict(self, state: dict) -> None:
        """Take over what `state_dict` gave."""
        self.network.load_state_dict(state["network"])
        self.target_network.load_state_dict(state["target_network"])
        self.optimization.load_state_dict(state["optimization"])
        self.interventions.load_state_dict(state.get("interventions", {}))
        self.transform.load_state_dict(state["transform"])
        self.steps = state["steps"]
        self.task_began = state.get("task_began", 0)
