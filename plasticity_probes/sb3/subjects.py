"""What a prober is given of a Stable-Baselines3 model."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from gymnasium import spaces
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor, nn
from torch.nn import functional as F

from plasticity_probes.probe import Findings
from plasticity_probes.prober import Prober
from plasticity_probes.sb3.batches import ReplayBatches, RolloutBatches, Seeds, own_random_state
from plasticity_probes.sb3.networks import ActorView, CriticView, PolicyView, QView, View
from plasticity_probes.subject import Readout, Subject


@dataclass
class ProbedNetwork:
    """A network that is measured by itself."""

    subject: Subject
    optimizer: torch.optim.Optimizer
    """Whose steps change it."""
    name: str = ""
    """Appended to its tags; "" where it is the only one."""
    churn: dict[str, str | None] = field(default_factory=dict)
    """Other names for tags of churn; None leaves one out."""
    prober: Prober | None = None
    awaits_update: bool = False

    @property
    def suffix(self) -> str:
        return f"/{self.name}" if self.name else ""

    def tagged(self, found: Findings) -> Findings:
        """`found` under this network's tags."""
        renamed = {tag: self.churn.get(tag, tag) for tag in found.scalars}
        return Findings(
            {f"{new}{self.suffix}": found.scalars[tag] for tag, new in renamed.items() if new is not None},
            {f"{tag}{self.suffix}": value for tag, value in found.histograms.items()},
            {f"{tag}{self.suffix}": value for tag, value in found.images.items()},
        )


def probed_networks(
    model: BaseAlgorithm, seed: int, samples: int
) -> tuple[ReplayBatches | RolloutBatches, list[ProbedNetwork]]:
    """What is measured of `model`, and where its batches come from; ValueError where it is not supported."""
    if not isinstance(model, (DQN, PPO, A2C, SAC, TD3)):
        allowed = "DQN, PPO, A2C, SAC, TD3 or DDPG of Stable-Baselines3"
        raise ValueError(f"model = {type(model).__name__}: must be {allowed} (recurrent ones are not supported)")
    if isinstance(model.observation_space, spaces.Dict):
        raise ValueError("observation space = Dict: must be Box, Discrete, MultiDiscrete or MultiBinary")
    if getattr(model, "use_sde", False):
        raise ValueError("use_sde = True: must be False")
    if isinstance(model, (PPO, A2C)):
        if not isinstance(model.policy, ActorCriticPolicy):
            raise ValueError(f"policy = {type(model.policy).__name__}: must be an ActorCriticPolicy")
        source = RolloutBatches(model, seed, samples)
        return source, [_on_policy(model, source, seed)]
    source = ReplayBatches(model, seed, samples)
    if isinstance(model, DQN):
        return source, [_dqn(model, source, seed)]
    return source, [_actor(model, source, seed), _critic(model, source, seed)]


def _fresh(model: BaseAlgorithm, seed: int, of: Callable[[nn.Module], View]) -> Callable[[], View]:
    """`Subject.fresh`: a policy built as SB3 builds `model`'s, then the view that `of` takes. (NatureCNN samples the
    observation space that it is given, hence copies.)"""
    seeds = Seeds(seed, 2)

    def fresh() -> View:
        kwargs = copy.deepcopy(model.policy_kwargs)
        with own_random_state(model.device, seeds.next()):
            world = copy.deepcopy(model.observation_space), copy.deepcopy(model.action_space)
            policy = model.policy_class(*world, lambda _: 0.0, **kwargs).to(model.device)
        return of(policy)

    return fresh


def _for_probe(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer | None:
    """What the probes say of optimizers, they say of Adam."""
    return optimizer if isinstance(optimizer, (torch.optim.Adam, torch.optim.AdamW)) else None


def _dqn(model: DQN, source: ReplayBatches, seed: int) -> ProbedNetwork:
    def prepare(batch: dict[str, Tensor]) -> tuple[Tensor, ...]:
        following = model.q_net_target(batch["next_observations"]).amax(1, keepdim=True)
        targets = batch["rewards"] + (1 - batch["dones"]) * batch["discounts"] * following
        return batch["observations"], batch["actions"].long(), targets

    def regression(network: nn.Module, observations: Tensor, actions: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return network(observations).gather(1, actions).squeeze(1), targets.squeeze(1)

    def loss(network: nn.Module, *columns: Tensor) -> Tensor:
        return F.smooth_l1_loss(*regression(network, *columns), reduction="none")

    subject = Subject(
        QView(model.q_net),
        source.drawing(),
        (Readout("", lambda q: q.amax(1), "max_q", loss, regression),),
        prepare,
        optimizer=_for_probe(model.policy.optimizer),
        behaviour=lambda q: q,
        fresh=_fresh(model, seed, lambda policy: QView(policy.q_net)),
    )
    return ProbedNetwork(subject, model.policy.optimizer)


def _on_policy(model: PPO | A2C, source: RolloutBatches, seed: int) -> ProbedNetwork:
    network, space = PolicyView(model.policy), model.action_space
    continuous = isinstance(space, spaces.Box)
    columns_of = ("observations", "actions", "log_probs", "advantages", "returns", "values")

    def forward(policy: nn.Module, observations: Tensor) -> tuple[Tensor, Tensor]:
        """What the policy's distribution is made of [n, ...], and values [n]."""
        outputs, values = policy(observations)
        return outputs, values.squeeze(1)

    def prepare(batch: dict[str, Tensor]) -> tuple[Tensor, ...]:
        advantages = batch["advantages"]
        if model.normalize_advantage:
            advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        return tuple({**batch, "advantages": advantages}[name] for name in columns_of)

    def policy_loss(policy: nn.Module, *columns: Tensor) -> Tensor:
        observations, actions, old_log_probs, advantages, *_ = columns
        log_std = policy.log_std if continuous else None
        log_probs = _log_probs(forward(policy, observations)[0], log_std, actions, space)
        return _policy_loss(model, log_probs, old_log_probs, advantages)

    def value_loss(policy: nn.Module, *columns: Tensor) -> Tensor:
        return _value_loss(model, forward(policy, columns[0])[1], *columns[4:])

    def regression(policy: nn.Module, *columns: Tensor) -> tuple[Tensor, Tensor]:
        return forward(policy, columns[0])[1], columns[4]

    behaviour = None
    if continuous or isinstance(space, spaces.Discrete):

        def behaviour(given: tuple[Tensor, Tensor]) -> Tensor | tuple[Tensor, Tensor]:
            return (given[0], network.log_std) if continuous else given[0]

    subject = Subject(
        network,
        source.draw,
        (
            Readout("actor", lambda given: given[0].sum(1), "policy_sum", policy_loss, on_policy=True),
            Readout("critic", lambda given: given[1], "value", value_loss, regression, on_policy=True),
        ),
        prepare,
        forward,
        optimizer=_for_probe(model.policy.optimizer),
        behaviour=behaviour,
        behaviour_kind="continuous" if continuous else "discrete",
        fresh=_fresh(model, seed, PolicyView),
    )
    return ProbedNetwork(subject, model.policy.optimizer)


def _policy_loss(model: PPO | A2C, log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor) -> Tensor:
    """Of each example [n], as `model` has it: the policy gradient (A2C), its clipped surrogate (PPO)."""
    if isinstance(model, A2C):
        return -advantages * log_probs
    ratio, clip = (log_probs - old_log_probs).exp(), model.clip_range(model._current_progress_remaining)
    return -torch.minimum(advantages * ratio, advantages * ratio.clamp(1 - clip, 1 + clip))


def _value_loss(model: PPO | A2C, values: Tensor, returns: Tensor, old_values: Tensor) -> Tensor:
    """Of each example [n], as `model` has it: clipped where it clips."""
    if getattr(model, "clip_range_vf", None) is not None:
        clip = model.clip_range_vf(model._current_progress_remaining)
        values = old_values + (values - old_values).clamp(-clip, clip)
    return (values - returns).square()


def _log_probs(outputs: Tensor, log_std: Tensor | None, actions: Tensor, space: spaces.Space) -> Tensor:
    """Log-probabilities [n] of `actions` under the distribution that SB3 makes of `outputs` for the action space."""
    if isinstance(space, spaces.Discrete):
        return outputs.log_softmax(1).gather(1, actions[:, None]).squeeze(1)
    if isinstance(space, spaces.MultiDiscrete):
        logits = outputs.split(space.nvec.tolist(), dim=1)
        chosen_ones = actions.long().split(1, dim=1)
        pairs = zip(logits, chosen_ones, strict=True)
        return sum(part.log_softmax(1).gather(1, action).squeeze(1) for part, action in pairs)
    if isinstance(space, spaces.MultiBinary):
        return -F.binary_cross_entropy_with_logits(outputs, actions.to(outputs), reduction="none").sum(1)
    return _gaussian_log_probs((actions - outputs) * (-log_std).exp(), log_std)


def _gaussian_log_probs(standardized: Tensor, log_std: Tensor) -> Tensor:
    """[n] from (action - mean) / std [n, dimensions] and log std, [n, dimensions] or [dimensions]."""
    return (-0.5 * standardized.square() - log_std - 0.5 * math.log(2 * math.pi)).sum(1)


def _sac_action(mean: Tensor, log_std: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """SAC's squashed action [n, dimensions] and its log-probability [n] (1801.01290, appendix C), for standard normal
    `noise`."""
    actions = torch.tanh(mean + log_std.exp() * noise)
    return actions, _gaussian_log_probs(noise, log_std) - (1 - actions.square() + 1e-6).log().sum(1)


def _temperature(model: SAC) -> Tensor:
    return model.ent_coef_tensor if model.log_ent_coef is None else model.log_ent_coef.detach().exp()


def _actor(model: SAC | TD3, source: ReplayBatches, seed: int) -> ProbedNetwork:
    sac, critic = isinstance(model, SAC), CriticView(model.critic)

    def loss(actor: nn.Module, observations: Tensor, noise: Tensor) -> Tensor:
        if not sac:
            return -critic.own.q1_forward(observations, *actor(observations)).squeeze(1)
        actions, log_probs = _sac_action(*actor(observations), noise)
        return _temperature(model) * log_probs - critic(observations, actions).amin(1)

    subject = Subject(
        ActorView(model.actor),
        source.drawing(),
        (Readout("", lambda given: given[0].sum(1), "policy_sum", loss),),
        lambda batch: (batch["observations"], batch["noise"]),
        optimizer=_for_probe(model.actor.optimizer),
        behaviour=(lambda given: given) if sac else (lambda given: given[0]),
        behaviour_kind="continuous" if sac else "values",
        fresh=_fresh(model, seed, lambda policy: ActorView(policy.actor)),
    )
    renamed = {"probes/churn/value": "probes/churn/action", "probes/churn/greedy_action": None}
    return ProbedNetwork(subject, model.actor.optimizer, "actor", renamed)


def _critic(model: SAC | TD3, source: ReplayBatches, seed: int) -> ProbedNetwork:
    """All Q-networks of the critic; actions ride along as the last columns of flattened observations."""
    draw_transitions, network = source.drawing(), CriticView(model.critic)
    shape = network.shape

    def draw(samples: int) -> dict[str, Tensor] | None:
        batch = draw_transitions(samples)
        if batch is not None:
            batch["observations"] = torch.cat([batch["observations"].flatten(1), batch["actions"]], 1)
        return batch

    def forward(critic: nn.Module, joined: Tensor) -> Tensor:
        """Q-values [n, networks]."""
        inputs = math.prod(shape)
        return critic(joined[:, :inputs].reshape(-1, *shape), joined[:, inputs:])

    def prepare(batch: dict[str, Tensor]) -> tuple[Tensor, ...]:
        following = batch["next_observations"]
        if isinstance(model, SAC):
            actions, log_probs = _sac_action(*model.actor.get_action_dist_params(following)[:2], batch["next_noise"])
            bonus = -_temperature(model) * log_probs[:, None]
        else:
            noise = (batch["next_noise"] * model.target_policy_noise).clamp(
                -model.target_noise_clip, model.target_noise_clip
            )
            actions, bonus = (model.actor_target(following) + noise).clamp(-1, 1), 0.0
        values = torch.cat(model.critic_target(following, actions), 1).amin(1, keepdim=True) + bonus
        targets = batch["rewards"] + (1 - batch["dones"]) * batch["discounts"] * values
        return batch["observations"], targets

    def loss(critic: nn.Module, joined: Tensor, targets: Tensor) -> Tensor:
        return (forward(critic, joined) - targets).square().sum(1) * (0.5 if isinstance(model, SAC) else 1.0)

    def regression(critic: nn.Module, joined: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return forward(critic, joined)[:, 0], targets.squeeze(1)

    subject = Subject(
        network,
        draw,
        (Readout("", lambda q: q[:, 0], "qf0", loss, regression),),
        prepare,
        forward,
        optimizer=_for_probe(model.critic.optimizer),
        behaviour=lambda q: q,
        fresh=_fresh(model, seed, lambda policy: CriticView(policy.critic)),
    )
    return ProbedNetwork(subject, model.critic.optimizer, "critic", {"probes/churn/greedy_action": None})
