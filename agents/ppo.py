"""PPO for discrete and continuous actions (Schulman et al. 2017)."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from agents import losses
from agents.clock import Clock
from agents.execution import Executor
from agents.guard import require_finite, require_finite_transitions
from agents.interventions.base import Intervention
from agents.interventions.lifecycle import check_interventions
from agents.kinds import check_agent
from agents.learner import Learner
from agents.networks import ActorCritic
from agents.policies import ActorPolicy, Player
from agents.ppo_config import PPOConfig
from agents.quick_pass import quick_actor
from agents.randomness import Generators
from agents.rewards import RewardTransform
from agents.rollout import Rollout, Shuffled
from agents.transitions import Spaces, Transitions
from plasticity_probes import target_statistics


class PPO:
    """Clipped policy gradient on rollouts of E environments; policy and value in one `ActorCritic`."""

    def __init__(
        self,
        config: PPOConfig,
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
        self.batch_size = config.rollout_steps * num_envs
        self.config, self.spaces, self.num_envs, self.generators = config, spaces, num_envs, generators
        self.device, self.clock = device, clock or Clock()
        self.policy = ActorPolicy(config, spaces, device, precision, interventions)
        self.head = self.policy.head
        self.rollout = Rollout(spaces, config.rollout_steps, num_envs, device)
        self._drawing = generators.torch("surgery's samples", device)
        self.learner = Learner(
            config,
            self.policy.build_network,
            spaces.example(device),
            generators,
            self._sample,
            precision=precision,
            interventions=interventions,
            moments=moments,
            clock=self.clock,
            executor=executor,
        )
        self.learner.hold(self.head.unsettled())
        self.transform = RewardTransform(config.reward.reward_transform, num_envs, config.gamma)
        self.exploration = generators.torch("exploration", device)
        self.shuffle, self._shuffled = generators.torch("minibatches", device), Shuffled()
        self._next_observations: np.ndarray | None = None
        self.keep_recent: Callable[[dict[str, Tensor]], None] | None = None  # told what each update learns from

    @property
    def network(self) -> ActorCritic:
        """Policy and value."""
        return self.learner.network

    def _sample(self, n: int) -> Tensor:
        """n observations of the rows that the rollout knows, with replacement. RuntimeError where there is none."""
        if not self.rollout.known:
            raise RuntimeError("sample: the first rollout has no observation yet")
        observations = self.rollout.observations[: self.rollout.known].flatten(0, 1)
        rows = torch.randint(len(observations), (n,), generator=self._drawing, device=self.device)
        return observations[rows]

    def act(self, observations: np.ndarray) -> np.ndarray:
        """Actions drawn from the policy for observations [E, ...], as the world takes them. What else is to be known of
        them waits for `appraise`."""
        drawn = self.learner.executor.run(self._draw, self.rollout.see(observations))
        self.rollout.act(**drawn)
        return self.policy.to_world(drawn["actions"], self.clock.steps)

    def _draw(self, states: Tensor) -> dict[str, Tensor]:
        with torch.inference_mode():
            policy, values = self.policy.forward(self.learner.quick(quick_actor, states), states, "actor")
            drawn = {"policy": policy, "actions": self.policy.draw(self.network, policy, self.exploration)}
        return drawn if values is None else drawn | {"values": values}

    @torch.no_grad()
    def appraise(self) -> None:
        """Log probabilities and values of what was acted since the last time; while the network is the one that acted.

        All at once they cost a fraction of what they would one by one.
        """
        rollout = self.rollout
        if rollout.appraised == rollout.row:
            return
        rows = slice(rollout.appraised, rollout.row)
        policy, actions = rollout.policy[rows], rollout.actions[rows]
        rollout.log_probs[rows] = self.policy.log_prob_entropy(self.network, policy, actions)[0]
        if not self.config.shared_torso:
            observations = rollout.observations[rows].flatten(0, 1)
            parts = observations.split(self.batch_size // self.config.num_minibatches)
            values = [self.policy.forward(self.network, part, "critic")[1] for part in parts]
            rollout.values[rows] = torch.cat(values).view(-1, self.num_envs)
        rollout.appraised = rollout.row

    @torch.no_grad()
    def _values(self, observations: np.ndarray) -> Tensor:
        """Of observations [E, ...]."""
        return self.policy.forward(self.network, torch.from_numpy(observations).to(self.device), "critic")[1]

    def player(self, greedy: bool, generators: Generators) -> Player:
        """Plays by the policy's mode, or by draws of its own generator; that changes nothing in the agent."""
        return self.policy.player(self.network, greedy, generators)

    def observe(self, transitions: Transitions) -> None:
        """Add one step of every environment to the rollout. Raises `NonFiniteError` before storing anything not
        finite."""
        ended, over = transitions.ended, transitions.over
        require_finite_transitions(self.clock.steps, transitions, ended, self._next_observations)
        terminated = over if self.config.time_limit == "terminal" else transitions.terminated
        bootstraps = np.count_nonzero(ended) > np.count_nonzero(terminated)
        if self.config.life_loss_discount:
            terminated = terminated | transitions.life_lost
        rewards = self.transform(transitions.rewards, over)
        require_finite(self.clock.steps, transformed_reward=rewards)
        self.rollout.add(rewards=rewards, terminated=terminated, ended=ended)
        if bootstraps:
            self.rollout.end(self._values(transitions.final_observations))
        self._next_observations = transitions.next_observations
        self.clock.steps += self.num_envs
        if transitions.tasks is not None:
            self.clock.task = int(transitions.next_tasks.min())

    def cut(self, observations: np.ndarray) -> None:
        """Every episode breaks off here, in `observations` [E, ...] that were reached: they are bootstrapped from."""
        self.rollout.cut(self._values(observations))

    def update_due(self) -> bool:
        """Whether the rollout is full."""
        return self.rollout.full

    def update(self) -> dict[str, Tensor]:
        """All epochs over the full rollout; metrics as 0-d tensors on the device."""
        config, rollout = self.config, self.rollout
        self.learner.anneal(self.clock.steps - self.batch_size)  # where the rollout began
        self.learner.begin()
        with torch.no_grad():
            self.appraise()
            rewards, terminated, ended, reached = rollout.outcome(self._values(self._next_observations))
            discounts, continues = config.gamma * (~terminated).float(), (~ended).float()
            advantages, returns = losses.gae(rewards, discounts, rollout.values, reached, continues, config.gae_lambda)
            if config.norm_adv == "rollout":
                advantages = losses.standardize(advantages)
        data = {"observations": rollout.observations, "actions": rollout.actions, "log_probs": rollout.log_probs}
        data |= {"advantages": advantages, "returns": returns, "values": rollout.values}
        data = {name: tensor.flatten(0, 1) for name, tensor in data.items()}
        if self.keep_recent is not None:
            self.keep_recent(data)
        self.learner.interventions.on_target_sync()
        self.head.meet(data["returns"], self.learner.surgery)
        steps = []
        for _ in range(config.update_epochs):
            order = torch.randperm(self.batch_size, generator=self.shuffle, device=self.device)
            shuffled = self._shuffled(data, order)
            for minibatch in zip(*(column.chunk(config.num_minibatches) for column in shuffled.values()), strict=True):
                steps.append(self.learner.update(self.learn, dict(zip(data, minibatch, strict=True))))
        if self.network.normalizer is not None:
            self.network.normalizer.update(data["observations"], self.learner.allowed)
        metrics = self._metrics(steps, data)
        rollout.clear()
        return metrics

    def learn(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """One gradient step on a minibatch, as far as it happens on the device; metrics as 0-d tensors there."""
        step = self.learner.step(batch["observations"], self.loss, batch)
        log_ratio = step.aside.pop("log_ratio")
        beyond = torch.expm1(log_ratio)  # ratio - 1
        metrics = {f"losses/{name}": value for name, value in step.aside.items()} | {
            "losses/approx_kl": (beyond - log_ratio).mean(),  # Schulman's low-variance estimator
            "losses/clipfrac": (beyond.abs() > self.config.clip_coef).mean(dtype=torch.float32),
            "losses/gradient_norm": step.norm,
        }
        return metrics | step.penalty_metrics()

    def loss(self, outputs: tuple[Tensor, Tensor], batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """(Loss, what it is made of), from the network's outputs for a minibatch."""
        config, (policy, values) = self.config, outputs
        log_probs, entropies = self.policy.log_prob_entropy(self.network, policy, batch["actions"])
        log_ratio, advantages = log_probs - batch["log_probs"], batch["advantages"]
        if config.norm_adv == "minibatch":
            advantages = losses.standardize(advantages)
        policy_loss = losses.ppo_policy_loss(log_ratio, advantages, config.clip_coef).mean()
        value_loss = self.value_loss(values, batch).mean()
        entropy = entropies.mean()
        loss = policy_loss + config.vf_coef * value_loss - config.ent_coef * entropy
        aside = {"policy_loss": policy_loss, "value_loss": value_loss, "entropy": entropy, "log_ratio": log_ratio}
        return loss, {name: tensor.detach() for name, tensor in aside.items()}

    def value_loss(self, outputs: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """Loss per example [batch]."""
        if self.config.clip_vloss:
            return losses.clipped_value_loss(outputs, batch["values"], batch["returns"], self.config.clip_coef)
        return self.head.loss(outputs, self.head.regressand(batch["returns"]))

    def _metrics(self, steps: list[dict[str, Tensor]], data: dict[str, Tensor]) -> dict[str, Tensor]:
        metrics = {name: torch.stack([step[name] for step in steps]).mean() for name in steps[0]}
        values, returns = data["values"], data["returns"]
        variance = returns.var(correction=0)
        metrics["losses/explained_variance"] = 1 - (returns - values).var(correction=0) / variance
        metrics["losses/v_values"] = values.mean()
        metrics["targets/mean"], metrics["targets/std"] = target_statistics(returns)
        clipped = self.head.clipped_share(returns)
        return metrics if clipped is None else metrics | {"targets/clipped_share": clipped}

    def scalars(self) -> dict[str, float]:
        """Settings that change with the steps, for the log."""
        return {"charts/learning_rate": self.learner.learning_rate}

    def on_task_change(self) -> None:
        """Told when every environment has entered the new task."""
        self.appraise()  # what follows may change the network
        self.clock.task_began = self.clock.steps
        self.learner.on_task_change()

    def state_dict(self) -> dict:
        """All of it between two ticks but where its random generators stand, which their registry knows."""
        memory = {"transform": self.transform.state_dict(), "rollout": self.rollout.state_dict()}
        return self.learner.state_dict() | memory

    def load_state_dict(self, state: dict) -> None:
        """Take over what `state_dict` gave."""
        self.learner.load_state_dict(state)
        self.transform.load_state_dict(state["transform"])
        self.rollout.load_state_dict(state["rollout"])
