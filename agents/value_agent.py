"""What DQN and C51 share: everything but the head and its loss."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from agents.clock import Clock
from agents.execution import Executor
from agents.guard import require_finite, require_finite_transitions
from agents.heads import Target
from agents.interventions.base import Intervention
from agents.interventions.lifecycle import check_interventions
from agents.kinds import check_agent
from agents.learner import Learner, Step
from agents.networks import QNetwork
from agents.policies import Player, QPolicy
from agents.quick_pass import quick_values
from agents.randomness import Generators
from agents.replay import Batch, Replay, storage_device
from agents.rewards import RewardTransform
from agents.rounding import without_gradient
from agents.transitions import Spaces, Transitions
from agents.value_config import ValueAgentConfig
from plasticity_probes import target_statistics


def take(outputs: Tensor, actions: Tensor) -> Tensor:
    """Outputs of one action an example: [batch, actions(, atoms)], int64 [batch] -> [batch(, atoms)]."""
    index = actions.view(-1, *[1] * (outputs.dim() - 1)).expand(-1, 1, *outputs.shape[2:])
    return outputs.gather(1, index).squeeze(1)


class ValueAgent:
    """Epsilon-greedy Q-learning from replay with a target network (Mnih et al. 2015). `policy`: makes DQN's or C51's of
    the other arguments."""

    def __init__(
        self,
        config: ValueAgentConfig,
        policy: Callable[..., QPolicy],
        spaces: Spaces,
        num_envs: int,
        generators: Generators,
        device: torch.device = torch.device("cpu"),
        precision: str = "fp32",
        interventions: Sequence[Intervention] = (),
        moments: str = "own",
        clock: Clock | None = None,
        executor: Executor | None = None,
    ) -> None:
        check_agent(config, spaces, num_envs)
        check_interventions(interventions, config)
        self.config, self.spaces, self.num_envs, self.generators = config, spaces, num_envs, generators
        self.device, self.precision, self.clock = device, precision, clock or Clock()
        self.policy = policy(config, spaces, device, precision, interventions)
        self.head = self.policy.head
        remembering = config.buffer_size, config.n_step, config.gamma
        stored_on = storage_device(config.replay_device, device, spaces.replay_bytes(config.buffer_size))
        self.replay = Replay(spaces, num_envs, *remembering, generators.numpy("replay"), device, stored_on)
        drawing = generators.numpy("surgery's samples")
        self.learner = Learner(
            config,
            self.policy.build_network,
            spaces.example(device),
            generators,
            lambda n: self.replay.sample(n, drawing).observations,
            precision=precision,
            interventions=interventions,
            moments=moments,
            clock=self.clock,
            executor=executor,
            target=True,
        )
        self.learner.hold(self.head.unsettled())
        self.transform = RewardTransform(config.reward.reward_transform, num_envs, config.gamma)
        self.exploration = generators.numpy("exploration")

    @property
    def network(self) -> QNetwork:
        """The online network."""
        return self.learner.network

    @property
    def epsilon(self) -> float:
        """Probability of a uniformly random action now."""
        since = self.config.epsilon.since(self.clock.steps, self.clock.task_began, self.config.learning_starts)
        return 1.0 if since < 0 else self.config.epsilon.value(since)

    def act(self, observations: np.ndarray) -> np.ndarray:
        """Epsilon-greedy actions, int64 [E], for observations [E, ...]."""
        return self.policy.act(self._greedily, observations, self.epsilon, self.exploration)

    def _greedily(self, observations: Tensor) -> Tensor:
        return self.learner.executor.run(self._greedy, observations)

    def _greedy(self, observations: Tensor) -> Tensor:
        return self.policy.greedy(self.learner.quick(quick_values, observations), observations)

    def player(self, greedy: bool, generators: Generators) -> Player:
        """Plays greedily, or epsilon-greedily with the final epsilon; that changes nothing in the agent."""
        return self.policy.player(self.network, greedy, generators)

    def observe(self, transitions: Transitions) -> None:
        """Remember one step of every environment. Raises `NonFiniteError` before storing anything not finite."""
        require_finite_transitions(self.clock.steps, transitions, transitions.ended)
        rewards = self.transform(transitions.rewards, transitions.over)
        require_finite(self.clock.steps, transformed_reward=rewards)
        self.replay.add(transitions, rewards, self.config.life_loss_discount)
        self.clock.steps += self.num_envs
        if transitions.tasks is not None:
            self.clock.task = int(transitions.next_tasks.min())

    def cut(self, observations: np.ndarray) -> None:
        """Every episode breaks off here, in `observations` [E, ...] that were reached: they are bootstrapped from."""
        self.replay.cut(observations)

    def update_due(self) -> bool:
        """Whether the replay ratio asks for another gradient step now."""
        owed = int((self.clock.steps - self.config.learning_starts) * self.config.replay_ratio)
        return self.clock.gradient_steps < owed and self.replay.ready(self.config.batch_size)

    def update(self) -> dict[str, Tensor]:
        """One gradient step; metrics as 0-d tensors on the device."""
        self.learner.anneal(self.clock.steps)
        metrics = self.learner.update(self.learn, self.replay.sample(self.config.batch_size))
        if self.clock.gradient_steps % self.config.target_period == 0:
            self.learner.sync_target(self.config.tau)
        return metrics

    def learn(self, batch: Batch) -> dict[str, Tensor]:
        """One gradient step on `batch`, of whatever size, as far as it happens on the device."""
        target = self.target(batch.rewards, batch.discounts, batch.next_observations)
        self.learner.begin()
        self.head.meet(target.values, self.learner.surgery)
        statistics = target_statistics(target.values)
        # a support clips an infinite target, and the loss does not show it
        watched = {} if target.clipped_share is None else {"target": statistics[0]}
        step = self.learner.step(batch.observations, self.loss, (batch.actions, target.regressand), **watched)
        return self._metrics(step, self.head.values(step.aside), target, statistics)

    def loss(self, outputs: Tensor, wanted: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """(Mean loss, outputs of the actions taken), from the network's outputs and (actions, regressand) [batch]."""
        actions, regressand = wanted
        taken = take(outputs, actions)
        return self.head.loss(taken, regressand).mean(), taken.detach()

    @torch.no_grad()
    def target(self, rewards: Tensor, discounts: Tensor, next_observations: Tensor) -> Target:
        """What to regress on: the target network's value of the greedy action, the online one's choice if double."""
        with without_gradient(self.learner.target, self.device, self.precision):
            next_outputs = self.learner.target(next_observations)
        selector = next_outputs
        if self.config.double:
            with without_gradient(self.network, self.device, self.precision):
                selector = self.network(next_observations)
        next_actions = self.head.values(selector).argmax(1)
        return self.head.bootstrap(rewards, discounts, take(next_outputs, next_actions))

    def _metrics(self, step: Step, q: Tensor, target: Target, statistics: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        mean, std = statistics
        metrics = {
            "losses/td_loss": step.loss,
            "losses/q_values": q.mean(),
            "losses/td_error": (q - target.values).abs().mean(),
            "losses/gradient_norm": step.norm,
            "targets/mean": mean,
            "targets/std": std,
        }
        if target.clipped_share is not None:
            metrics["targets/clipped_share"] = target.clipped_share
        return metrics | step.penalty_metrics()

    def scalars(self) -> dict[str, float]:
        """Settings that change with the steps, for the log."""
        scalars = {"charts/epsilon": self.epsilon, "charts/learning_rate": self.learner.learning_rate}
        if self.clock.task is not None:
            scalars["replay/current_task_share"] = self.replay.task_share(self.clock.task)
        return scalars

    def on_task_change(self) -> None:
        """Told when every environment has entered the new task."""
        self.clock.task_began = self.clock.steps
        if self.config.replay.on_task_change == "clear":
            self.replay.keep_task(self.clock.task)
        self.learner.on_task_change()

    def state_dict(self) -> dict:
        """All of it between two ticks but the replay, and where its random generators stand, which their registry
        knows."""
        return self.learner.state_dict() | {"transform": self.transform.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        """Take over what `state_dict` gave."""
        self.learner.load_state_dict(state)
        self.transform.load_state_dict(state["transform"])
