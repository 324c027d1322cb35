"""The probes in a Stable-Baselines3 run, by one line:

    model.learn(100_000, callback=PlasticityCallback(every=10_000))

The run stays as it is, to the bit. What is measured goes to SB3's own logger at the step it was measured at, under the
tags of `catalogue` and `schedule`. Layers and parameters are called as in `named_modules()` of DQN's `q_net`, PPO's and
A2C's `policy`, and `actor` and `critic` of SAC, TD3 and DDPG; for the last three every tag ends in the network's name.
"""

from __future__ import annotations

import copy
import math
import random
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.logger import Image, Logger
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import get_flattened_obs_dim, preprocess_obs
from torch import Tensor, nn
from torch.nn import functional as F

from plasticity_probes.catalogue import Findings
from plasticity_probes.pictures import in_colours
from plasticity_probes.sb3_hooks import HookingCallback
from plasticity_probes.schedule import Prober, chosen, whole
from plasticity_probes.subject import Readout, Subject

SUMMARY = {
    "probes/dormant_fraction/tau=0.025/all": "dormant units, tau .025",
    "probes/dead_fraction/all": "dead units",
    "probes/weight_norm/total": "weight norm",
    "probes/churn/value": "churn, value",
    "probes/churn/policy_kl": "churn, policy KL",
    "probes/churn/action": "churn, action",
}
"""What is printed, under "plasticity/"; everything else is for TensorBoard, CSV and JSON."""
NUMBERS_ONLY, PICTURES_ONLY, PRINT_ONLY = (
    ("stdout", "log"),
    ("stdout", "log", "json", "csv"),
    ("tensorboard", "json", "csv"),
)


class PlasticityCallback(HookingCallback):
    """Measures plasticity every so many steps, before the update that is due then, and once more at the end.

    Works with DQN, PPO, A2C, SAC, TD3 and DDPG, on any observations but dictionaries. Off-policy, batches come from the
    replay buffer, and nothing is measured while it holds fewer than `samples` transitions; on-policy, from the latest
    rollout, or the latest few where one has fewer than `samples` steps. Given to `learn` itself or in a list; several
    may measure one model, each probes of its own. The model is plain again when `learn` ends, however it ends.

    Args:
        every: steps between two probes, over all environments.
        probes: names of `catalogue.PROBES` and "churn", or "default", "all", "none".
        samples: examples in a batch; the ranks of a wider layer cannot show with fewer examples than units.
        heavy_factor: heavy probes (gradients, ntk) run at every so many-th probe, and at the end.
        heavy_samples: examples for them.
        seed: of the probes' own random numbers.
        verbose: 1 prints how long each probe took.

    Raises:
        ValueError: an unknown probe or a number that is none or too small; when training starts, a model that is not
            supported, a place within another callback, another such callback that measures one of these probes.
    """

    def __init__(
        self,
        every: int = 10_000,
        probes: tuple[str, ...] | list[str] | str = ("default",),
        samples: int = 512,
        heavy_factor: int = 10,
        heavy_samples: int = 256,
        seed: int = 0,
        verbose: int = 0,
    ) -> None:
        super().__init__(verbose)
        self.names = chosen(probes)
        self.numbers = {
            "every": whole("every", every),
            "heavy_factor": whole("heavy_factor", heavy_factor),
            "samples": whole("samples", samples),
            "heavy_samples": whole("heavy_samples", heavy_samples),
        }
        self.seed = whole("seed", seed, least=0)
        self.latest: dict[str, float] = {}
        """The latest value by tag."""
        self._parts: list[_Part] = []
        self._source: _Replay | _Rollouts | None = None
        self._policy: nn.Module | None = None
        self._measured_at = -1
        self._pending: Findings | None = None  # measured, but not yet written: the update that churn needs is to come

    def _require_beside(self, other: HookingCallback) -> None:
        common = [name for name in self.names if name in other.names] if isinstance(other, PlasticityCallback) else ()
        if common:
            raise ValueError(
                f"PlasticityCallback: two of them would measure {', '.join(common)} of one model, and write twice under"
                " one tag; give one callback all probes, or each probes of its own"
            )

    def _take_hold(self) -> None:
        if self._policy is not self.model.policy or self.model.num_timesteps < self._measured_at:
            self._policy, self._measured_at, self._pending = None, -1, None
            self._source, self._parts = _parts_of(self.model, self.seed, self.numbers["samples"])
            for part in self._parts:
                adam = isinstance(part.optimizer, (torch.optim.Adam, torch.optim.AdamW))
                names = [name for name in self.names if adam or name != "adam"]
                part.prober = Prober(part.subject, tuple(names), tell=self._tell, **self.numbers)
            self._policy = self.model.policy
        self.hold.callback(self._write_what_waits)
        for part in self._parts:
            hook = part.optimizer.register_step_post_hook(lambda *_, part=part: self._updated(part))
            self.hold.callback(hook.remove)

    def _write_what_waits(self) -> None:
        """For an update that has not come and may never: what was measured before it is worth having."""
        try:
            self._write()
        except Exception as error:  # training may have ended because the logger cannot write
            self._tell(f"the probes at step {self._measured_at} could not be written: {error}")

    def _on_step(self) -> bool:
        super()._on_step()
        if isinstance(self._source, _Replay):
            self._probe_if_due()
        return True

    def _on_rollout_end(self) -> None:
        if isinstance(self._source, _Rollouts):
            self._source.keep()
            self._probe_if_due()

    def _on_training_end(self) -> None:
        super()._on_training_end()
        if not self.names or not self._parts:
            return
        self._measure(boundary=True)
        self._write()
        if self._measured_at < 0:
            self._tell(f"no probe was taken: there were never {self.numbers['samples']} samples")

    def _probe_if_due(self) -> None:
        if self._parts[0].prober.due(self.model.num_timesteps):
            self._measure(boundary=False)

    def _measure(self, boundary: bool) -> None:
        """Write what waited for an update in vain, and measure."""
        step, started = self.model.num_timesteps, time.perf_counter()
        if not self._source.ready() or step == self._measured_at:
            return
        self._write()
        found = Findings()
        with _own_random_state(self.model.device):
            for part in self._parts:
                measured = part.prober.measure(step, boundary) or Findings()
                measured.scalars |= part.prober.fresh_line()  # again and again, for a line in the chart
                part.awaits_update = part.churns and "churn" in part.prober.names
                _add(found, part.tagged(measured))
        self._pending, self._measured_at = found, step
        if self.verbose >= 1:
            print(f"probes at step {step:,}: {time.perf_counter() - started:.2f} s")
        if not any(part.awaits_update for part in self._parts):
            self._write()

    def _updated(self, part: _Part) -> None:
        """An optimizer has made a step."""
        if not part.awaits_update:
            return
        part.awaits_update = False
        with _own_random_state(self.model.device):
            found = part.prober.after_update()
        if found is not None and self._pending is not None:
            _add(self._pending, part.tagged(found))
        if not any(other.awaits_update for other in self._parts):
            self._write()

    def _write(self) -> None:
        """To the writers of SB3's logger; through a logger of our own, so that SB3's averages stay as they are and the
        step is that of the measurement."""
        if self._pending is None:
            return
        found, self._pending = self._pending, None
        for part in self._parts:
            part.awaits_update = False
        values = torch.stack([value.float() for value in found.scalars.values()]).tolist() if found.scalars else []
        finite = {tag: value for tag, value in zip(found.scalars, values, strict=True) if math.isfinite(value)}
        self.latest |= finite
        logger = Logger(self.logger.dir, self.logger.output_formats)
        logger.set_level(self.logger.level)
        logger.record("plasticity/step", self._measured_at, exclude=PRINT_ONLY)
        logger.record("time/total_timesteps", self._measured_at, exclude=(*NUMBERS_ONLY, "tensorboard"))
        for tag, value in finite.items():
            logger.record(tag, value, exclude=NUMBERS_ONLY)
            for part in self._parts:
                short = SUMMARY.get(tag.removesuffix(part.suffix))
                if short is not None and tag.endswith(part.suffix):
                    name = f"plasticity/{short} ({part.name})" if part.name else f"plasticity/{short}"
                    logger.record(name, value, exclude=PRINT_ONLY)
        for tag, vector in found.histograms.items():
            if torch.isfinite(vector).all():
                logger.record(tag, vector.cpu(), exclude=PICTURES_ONLY)
        for tag, matrix in found.images.items():
            logger.record(tag, Image(in_colours(matrix), "CHW"), exclude=PICTURES_ONLY)
        logger.dump(self._measured_at)

    @staticmethod
    def _tell(sentence: str) -> None:
        warnings.warn(sentence, stacklevel=2)


@dataclass
class _Part:
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

    @property
    def churns(self) -> bool:
        return self.subject.behaviour is not None

    def tagged(self, found: Findings) -> Findings:
        """`found` under this network's tags."""
        renamed = {tag: self.churn.get(tag, tag) for tag in found.scalars}
        return Findings(
            {f"{new}{self.suffix}": found.scalars[tag] for tag, new in renamed.items() if new is not None},
            {f"{tag}{self.suffix}": value for tag, value in found.histograms.items()},
            {f"{tag}{self.suffix}": value for tag, value in found.images.items()},
        )


def _add(found: Findings, other: Findings) -> None:
    found.scalars |= other.scalars
    found.histograms |= other.histograms
    found.images |= other.images


@contextmanager
def _own_random_state(device: torch.device, seed: int | None = None) -> Iterator[None]:
    """The global generators of Python, NumPy and torch are put back on leaving; inside they start from `seed`, if any.
    (SB3's buffers and networks draw from them.)"""
    python, numpy = random.getstate(), np.random.get_state()
    on_gpu = device.type == "cuda"
    try:
        with torch.random.fork_rng([device] if on_gpu else []):
            if seed is not None:
                random.setstate(random.Random(seed).getstate())
                np.random.set_state(np.random.RandomState(seed).get_state())
                torch.set_rng_state(torch.Generator().manual_seed(seed).get_state())
                if on_gpu:
                    torch.cuda.set_rng_state(torch.Generator(device).manual_seed(seed).get_state(), device)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


class _Seeds:
    """A stream of seeds."""

    def __init__(self, *entropy: int) -> None:
        self._generator = np.random.default_rng(entropy)

    def next(self) -> int:
        return int(self._generator.integers(2**32))


class _Replay:
    """Batches from an off-policy model's replay buffer, normalised as for its own updates."""

    def __init__(self, model: BaseAlgorithm, seed: int, samples: int) -> None:
        self.model, self.samples, self.seed = model, samples, seed

    def ready(self) -> bool:
        """Whether there is enough for a batch."""
        buffer = self.model.replay_buffer
        return buffer.size() * buffer.n_envs >= self.samples

    def drawing(self) -> Callable[[int], dict[str, Tensor] | None]:
        """A `Subject.draw` with a stream of its own; two of them draw the same transitions."""
        seeds, model = _Seeds(self.seed, 1), self.model

        def draw(samples: int) -> dict[str, Tensor] | None:
            if not self.ready():
                return None
            with _own_random_state(model.device, seeds.next()):
                data = model.replay_buffer.sample(samples, env=model.get_vec_normalize_env())
                noise = {name: torch.randn(data.actions.shape, device=model.device) for name in ("noise", "next_noise")}
            discounts = getattr(data, "discounts", None)  # of n-step returns
            columns = {name: getattr(data, name) for name in ("actions", "next_observations", "dones", "rewards")}
            columns["discounts"] = torch.full_like(data.rewards, model.gamma) if discounts is None else discounts
            observations = _encoded(data.observations, model.observation_space)
            return {"observations": observations, **columns, **noise}

        return draw


class _Rollouts:
    """Batches from an on-policy model's latest rollout, or the latest few."""

    def __init__(self, model: BaseAlgorithm, seed: int, samples: int) -> None:
        self.model, self.samples = model, samples
        self._generator = np.random.default_rng([seed, 1])
        self._parts: deque[dict[str, np.ndarray]] = deque(maxlen=math.ceil(samples / (model.n_steps * model.n_envs)))

    def ready(self) -> bool:
        """Whether there is enough for a batch."""
        return len(self._parts) == self._parts.maxlen

    def keep(self) -> None:
        """Copy some rows of the rollout that has just ended; the buffer is overwritten soon."""
        buffer = self.model.rollout_buffer
        steps, envs = buffer.returns.shape
        rows = self._generator.permutation(steps * envs)[: self.samples]
        where = np.unravel_index(rows, (steps, envs))
        names = ("observations", "actions", "log_probs", "advantages", "returns", "values")
        self._parts.append({name: getattr(buffer, name)[where] for name in names})

    def draw(self, samples: int) -> dict[str, Tensor] | None:
        """`Subject.draw`; actions int64 [n] where they are discrete, else [n, dimensions]."""
        if not self.ready():
            return None
        joined = {name: np.concatenate([part[name] for part in self._parts])[-samples:] for name in self._parts[0]}
        batch = {name: torch.as_tensor(array, device=self.model.device) for name, array in joined.items()}
        if isinstance(self.model.action_space, spaces.Discrete):
            batch["actions"] = batch["actions"].long().flatten()
        batch["observations"] = _encoded(batch["observations"], self.model.observation_space)
        return batch


def _parts_of(model: BaseAlgorithm, seed: int, samples: int) -> tuple[_Replay | _Rollouts, list[_Part]]:
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
        source = _Rollouts(model, seed, samples)
        return source, [_on_policy(model, source, seed)]
    source = _Replay(model, seed, samples)
    if isinstance(model, DQN):
        return source, [_dqn(model, source, seed)]
    return source, [_actor(model, source, seed), _critic(model, source, seed)]


def _view(network: nn.Module) -> nn.Module:
    """`network` itself, its modules and parameters shared, without what is no part of it and cannot be deep-copied; it
    takes observations as `_encoded` gives them, and each of its modules has one name only: functional_call would swap
    the parameters of a module with two names twice, and put the wrong ones back."""
    view = copy.copy(network)
    for name in ("action_dist", "optimizer"):
        vars(view).pop(name, None)
    view._modules = {}
    for name, module in network._modules.items():
        known = module is not None and module in view._modules.values()
        (vars(view) if known else view._modules)[name] = module
    if isinstance(view.observation_space, (spaces.Discrete, spaces.MultiDiscrete)):
        view.observation_space = spaces.Box(0.0, 1.0, (get_flattened_obs_dim(view.observation_space),), np.float32)
    return view


def _encoded(observations: Tensor, space: spaces.Space) -> Tensor:
    """Discrete observations as one-hot vectors: the encoding has no vmap."""
    if isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)):
        return preprocess_obs(observations, space).flatten(1)
    return observations


def _fresh(model: BaseAlgorithm, seed: int, of: Callable[[nn.Module], nn.Module]) -> Callable[[], nn.Module]:
    """`Subject.fresh`: a policy built as SB3 builds `model`'s, then what `of` takes of it. (NatureCNN samples the
    observation space that it is given, hence copies.)"""
    seeds = _Seeds(seed, 2)

    def fresh() -> nn.Module:
        kwargs = copy.deepcopy(model.policy_kwargs)
        with _own_random_state(model.device, seeds.next()):
            world = copy.deepcopy(model.observation_space), copy.deepcopy(model.action_space)
            policy = model.policy_class(*world, lambda _: 0.0, **kwargs).to(model.device)
        return _view(of(policy))

    return fresh


def _for_probe(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer | None:
    """What the catalogue says of optimizers, it says of Adam."""
    return optimizer if isinstance(optimizer, (torch.optim.Adam, torch.optim.AdamW)) else None


def _dqn(model: DQN, source: _Replay, seed: int) -> _Part:
    def prepare(batch: dict[str, Tensor]) -> tuple[Tensor, ...]:
        following = model.q_net_target(batch["next_observations"]).amax(1, keepdim=True)
        targets = batch["rewards"] + (1 - batch["dones"]) * batch["discounts"] * following
        return batch["observations"], batch["actions"].long(), targets

    def regression(network: nn.Module, observations: Tensor, actions: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return network(observations).gather(1, actions).squeeze(1), targets.squeeze(1)

    def loss(network: nn.Module, *columns: Tensor) -> Tensor:
        return F.smooth_l1_loss(*regression(network, *columns), reduction="none")

    subject = Subject(
        _view(model.q_net),
        source.drawing(),
        (Readout("", lambda q: q.amax(1), "max_q", loss, regression),),
        prepare,
        optimizer=_for_probe(model.policy.optimizer),
        behaviour=lambda q: q,
        fresh=_fresh(model, seed, lambda policy: policy.q_net),
    )
    return _Part(subject, model.policy.optimizer)


def _on_policy(model: PPO | A2C, source: _Rollouts, seed: int) -> _Part:
    network, space = _view(model.policy), model.action_space
    continuous = isinstance(space, spaces.Box)
    columns_of = ("observations", "actions", "log_probs", "advantages", "returns", "values")

    def forward(policy: nn.Module, observations: Tensor) -> tuple[Tensor, Tensor]:
        """What the policy's distribution is made of [n, ...], and values [n]."""
        features = policy.extract_features(observations)
        of_actor, of_critic = (features, features) if policy.share_features_extractor else features
        latents = policy.mlp_extractor.forward_actor(of_actor), policy.mlp_extractor.forward_critic(of_critic)
        return policy.action_net(latents[0]), policy.value_net(latents[1]).squeeze(1)

    def prepare(batch: dict[str, Tensor]) -> tuple[Tensor, ...]:
        advantages = batch["advantages"]
        if model.normalize_advantage:
            advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        return tuple({**batch, "advantages": advantages}[name] for name in columns_of)

    def policy_loss(policy: nn.Module, *columns: Tensor) -> Tensor:
        observations, actions, old_log_probs, advantages, *_ = columns
        log_std = policy.log_std if continuous else None
        log_probs = _log_probs(forward(policy, observations)[0], log_std, actions, space)
        if isinstance(model, A2C):
            return -advantages * log_probs
        ratio, clip = (log_probs - old_log_probs).exp(), model.clip_range(model._current_progress_remaining)
        return -torch.minimum(advantages * ratio, advantages * ratio.clamp(1 - clip, 1 + clip))

    def value_loss(policy: nn.Module, *columns: Tensor) -> Tensor:
        returns, old = columns[4:]
        values = forward(policy, columns[0])[1]
        if getattr(model, "clip_range_vf", None) is not None:
            clip = model.clip_range_vf(model._current_progress_remaining)
            values = old + (values - old).clamp(-clip, clip)
        return (values - returns).square()

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
        fresh=_fresh(model, seed, lambda policy: policy),
    )
    return _Part(subject, model.policy.optimizer)


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


def _sac_action(actor: nn.Module, observations: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """SAC's squashed action [n, dimensions] and its log-probability [n] (1801.01290, appendix C), for standard normal
    `noise`."""
    mean, log_std, _ = actor.get_action_dist_params(observations)
    actions = torch.tanh(mean + log_std.exp() * noise)
    return actions, _gaussian_log_probs(noise, log_std) - (1 - actions.square() + 1e-6).log().sum(1)


def _temperature(model: SAC) -> Tensor:
    return model.ent_coef_tensor if model.log_ent_coef is None else model.log_ent_coef.detach().exp()


def _actor(model: SAC | TD3, source: _Replay, seed: int) -> _Part:
    sac, critic = isinstance(model, SAC), _view(model.critic)

    def forward(actor: nn.Module, observations: Tensor) -> tuple[Tensor, ...]:
        return actor.get_action_dist_params(observations)[:2] if sac else (actor(observations),)

    def loss(actor: nn.Module, observations: Tensor, noise: Tensor) -> Tensor:
        if not sac:
            return -critic.q1_forward(observations, actor(observations)).squeeze(1)
        actions, log_probs = _sac_action(actor, observations, noise)
        return _temperature(model) * log_probs - torch.cat(critic(observations, actions), 1).amin(1)

    subject = Subject(
        _view(model.actor),
        source.drawing(),
        (Readout("", lambda given: given[0].sum(1), "policy_sum", loss),),
        lambda batch: (batch["observations"], batch["noise"]),
        forward,
        optimizer=_for_probe(model.actor.optimizer),
        behaviour=(lambda given: given) if sac else (lambda given: given[0]),
        behaviour_kind="continuous" if sac else "values",
        fresh=_fresh(model, seed, lambda policy: policy.actor),
    )
    renamed = {"probes/churn/value": "probes/churn/action", "probes/churn/greedy_action": None}
    return _Part(subject, model.actor.optimizer, "actor", renamed)


def _critic(model: SAC | TD3, source: _Replay, seed: int) -> _Part:
    """All Q-networks of the critic; actions ride along as the last columns of flattened observations."""
    draw_transitions, network = source.drawing(), _view(model.critic)
    shape = network.observation_space.shape

    def draw(samples: int) -> dict[str, Tensor] | None:
        batch = draw_transitions(samples)
        if batch is not None:
            batch["observations"] = torch.cat([batch["observations"].flatten(1).float(), batch["actions"]], 1)
        return batch

    def forward(critic: nn.Module, joined: Tensor) -> Tensor:
        """Q-values [n, networks]."""
        inputs = math.prod(shape)
        return torch.cat(critic(joined[:, :inputs].reshape(-1, *shape), joined[:, inputs:]), 1)

    def prepare(batch: dict[str, Tensor]) -> tuple[Tensor, ...]:
        following = batch["next_observations"]
        if isinstance(model, SAC):
            actions, log_probs = _sac_action(model.actor, following, batch["next_noise"])
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
        fresh=_fresh(model, seed, lambda policy: policy.critic),
    )
    return _Part(subject, model.critic.optimizer, "critic", {"probes/churn/greedy_action": None})
