"""Whole updates against plain loops in CleanRL's manner, from the same weights on the same samples.

The references use torch.nn, torch.distributions and unfused Adam. Weights must agree within 2e-5 after at least 20
gradient steps that move them by up to 2e-2 (20 times the learning rate): float32 rounding, nothing more.
"""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import Categorical, Normal
from torch.nn import functional as F

from agents.config import AdamConfig, LearningRate, NetworkConfig, SupportConfig
from agents.ppo_config import PPOConfig
from agents.randomness import Generators
from agents.schedule import Over
from agents.value_config import C51Config, DQNConfig
from tests.agents.helpers import CONTINUOUS, SMALL, SMALL_IMAGE, STACK, VECTOR, NoiseWorld, build, drive
from tests.agents.test_losses import farebrother24, gaussian_bins

TOLERANCE = 2e-5
LR = 1e-3


def linear(layer):
    """A plain layer with the same weights."""
    copied = nn.Linear(layer.in_features, layer.out_features)
    copied.load_state_dict(layer.state_dict())
    return copied


def plain_mlp(torso):
    return nn.Sequential(linear(torso.layers.dense1), nn.ReLU(), linear(torso.layers.dense2), nn.ReLU())


def assert_close(ours, theirs, moved_from):
    """Equal weights, and both have moved."""
    pairs = list(zip(ours, theirs, moved_from, strict=True))
    for mine, reference, _ in pairs:
        torch.testing.assert_close(mine.detach(), reference.detach(), atol=TOLERANCE, rtol=0)
    assert max((mine.detach() - start).abs().max().item() for mine, _, start in pairs) > 3 * LR


# -- DQN and C51 -----------------------------------------------------------------------------------------------------


def plain_q(network, spaces):
    """The same network from torch.nn's own modules, [batch, actions * atoms]."""
    if spaces is not SMALL_IMAGE:
        return nn.Sequential(nn.Flatten(), *plain_mlp(network.torso), linear(network.head))
    convolutions = []
    for index, (channels, filters, kernel, stride) in enumerate(((4, 32, 8, 4), (32, 64, 4, 2), (64, 64, 3, 1)), 1):
        layer = nn.Conv2d(channels, filters, kernel, stride)
        layer.load_state_dict(getattr(network.torso.convolutions, f"conv{index}").state_dict())
        convolutions += [layer, nn.ReLU()]
    dense = [linear(network.torso.dense.dense1), nn.ReLU(), linear(network.torso.dense.dense2), nn.ReLU()]
    return nn.Sequential(*convolutions, nn.Flatten(), *dense, linear(network.head))


def scale(observations):
    return observations.float() / 255.0 if observations.dtype == torch.uint8 else observations


def regression_loss(config, q, target, batch):
    rows = torch.arange(config.batch_size)
    with torch.no_grad():
        next_q = target(scale(batch.next_observations))
        chosen = (q(scale(batch.next_observations)) if config.double else next_q).argmax(1)
        td_target = batch.rewards + batch.discounts * next_q[rows, chosen]
    old = q(scale(batch.observations)).gather(1, batch.actions[:, None]).squeeze(1)
    return (F.smooth_l1_loss if config.loss == "huber" else F.mse_loss)(old, td_target)


EDGES = {"support": SupportConfig(-2, 2, 9, support_ends="edges")}


def atoms_of(s):
    edges = torch.linspace(s.v_min, s.v_max, s.num_atoms + 1)
    between = (edges[1:] + edges[:-1]) / 2
    return between if s.support_ends == "edges" else torch.linspace(s.v_min, s.v_max, s.num_atoms)


def bins_of(value, s):
    """HL-Gauss's probabilities as a list."""
    if s.support_ends == "edges":
        held = min(max(value, s.v_min), s.v_max)
        return farebrother24(held, s.v_min, s.v_max, s.num_atoms, s.hl_gauss_sigma)[0].tolist()
    return gaussian_bins(value, s.v_min, s.v_max, s.num_atoms, s.hl_gauss_sigma)


def spread_scalar(config, value):
    """A scalar over the atoms, two-hot or HL-Gauss, as a list."""
    s = config.support
    if config.loss == "hl_gauss":
        return bins_of(value, s)
    place = (min(max(value, s.v_min), s.v_max) - s.v_min) / (s.v_max - s.v_min) * (s.num_atoms - 1)
    return [max(0.0, 1.0 - abs(place - atom)) for atom in range(s.num_atoms)]


def categorical_scalar_loss(config, q, target, batch):
    s, rows = config.support, torch.arange(config.batch_size)
    support = atoms_of(s)
    shape = (config.batch_size, 3, s.num_atoms)
    with torch.no_grad():
        means = (target(scale(batch.next_observations)).view(shape).softmax(-1) * support).sum(-1)
        online = (q(scale(batch.next_observations)).view(shape).softmax(-1) * support).sum(-1)
        chosen = (online if config.double else means).argmax(1)
        td_target = batch.rewards + batch.discounts * means[rows, chosen]
        labels = torch.tensor([spread_scalar(config, value) for value in td_target.tolist()])
    return F.cross_entropy(q(scale(batch.observations)).view(shape)[rows, batch.actions], labels)


def c51_loss(config, q, target, batch):
    """CleanRL's c51.py: lower and upper atoms, filled example by example with index_add_."""
    s, rows = config.support, torch.arange(config.batch_size)
    support, n = torch.linspace(s.v_min, s.v_max, s.num_atoms), s.num_atoms
    shape = (config.batch_size, 3, n)
    with torch.no_grad():
        next_pmfs = target(scale(batch.next_observations)).view(shape).softmax(-1)
        selector = q(scale(batch.next_observations)).view(shape).softmax(-1) if config.double else next_pmfs
        next_pmfs = next_pmfs[rows, (selector * support).sum(-1).argmax(1)]
        tz = (batch.rewards[:, None] + batch.discounts[:, None] * support).clamp(s.v_min, s.v_max)
        b = (tz - s.v_min) / (support[1] - support[0])
        lower, upper = b.floor().clamp(0, n - 1), b.ceil().clamp(0, n - 1)
        to_lower, to_upper = (upper + (lower == upper).float() - b) * next_pmfs, (b - lower) * next_pmfs
        target_pmfs = torch.zeros(config.batch_size, n)
        for i in range(config.batch_size):
            target_pmfs[i].index_add_(0, lower[i].long(), to_lower[i])
            target_pmfs[i].index_add_(0, upper[i].long(), to_upper[i])
    log_pmfs = q(scale(batch.observations)).view(shape)[rows, batch.actions].log_softmax(-1)
    return -(target_pmfs * log_pmfs).sum(-1).mean()


VALUE = {
    "network": SMALL,
    "learning_rate": LR,
    "buffer_size": 400,
    "learning_starts": 40,
    "batch_size": 16,
    "replay_ratio": 0.5,
    "target_period": 7,
    "support": SupportConfig(-3.0, 3.0, 13),
    "life_loss_discount": True,
}
LOOKING_AHEAD = {"n_step": 3, "gamma": 0.9, "max_grad_norm": 0.06}
VALUE_CASES = {
    "huber": (DQNConfig(**VALUE), VECTOR, regression_loss),
    "huber, double, 3 steps, clipped": (DQNConfig(**VALUE, **LOOKING_AHEAD, double=True), VECTOR, regression_loss),
    "mse": (DQNConfig(loss="mse", **VALUE), VECTOR, regression_loss),
    "mse, double, clipped": (DQNConfig(loss="mse", double=True, max_grad_norm=0.1, **VALUE), VECTOR, regression_loss),
    "huber, Polyak": (DQNConfig(**{**VALUE, "target_period": 1, "tau": 0.1}), VECTOR, regression_loss),
    "huber, Adam's constants": (
        DQNConfig(**VALUE, adam=AdamConfig((0.99, 0.99), 1.5e-4)),
        VECTOR,
        regression_loss,
    ),
    "huber, frames": (DQNConfig(**VALUE), STACK, regression_loss),
    "huber, Nature CNN": (DQNConfig(**VALUE), SMALL_IMAGE, regression_loss),
    "two-hot": (DQNConfig(loss="two_hot", **VALUE), VECTOR, categorical_scalar_loss),
    "HL-Gauss, double": (DQNConfig(loss="hl_gauss", double=True, **VALUE), VECTOR, categorical_scalar_loss),
    "HL-Gauss between edges": (DQNConfig(loss="hl_gauss", **(VALUE | EDGES)), VECTOR, categorical_scalar_loss),
    "C51": (C51Config(**VALUE), VECTOR, c51_loss),
    "C51, double, 3 steps, clipped": (C51Config(**VALUE, **LOOKING_AHEAD, double=True), VECTOR, c51_loss),
    "C51, Nature CNN": (C51Config(**VALUE), SMALL_IMAGE, c51_loss),
}


class SameSide(nn.Module):
    """A ReLU that, where its input is 0 within rounding, is on the side on which the agent's was."""

    def __init__(self, sides):
        super().__init__()
        self.sides = iter(sides)

    def forward(self, x):
        if not torch.is_grad_enabled():
            return x.relu()
        near, own, theirs = x.detach().abs() < 1e-6, x.detach() > 0, next(self.sides)
        assert torch.equal(own[~near], theirs[~near]) and near.sum() < 5
        return x * torch.where(near, theirs, own)


def on_the_same_sides(q, network):
    """The plain `q` with such ReLUs in place of its own, beside the `network` that learns first."""
    sides = [[] for layer in q if isinstance(layer, nn.ReLU)]
    ours = [layer for layer in network.modules() if isinstance(layer, nn.ReLU)]
    for layer, kept in zip(ours, sides, strict=True):
        layer.register_forward_hook(lambda _, __, x, kept=kept: kept.append(x > 0) if x.requires_grad else None)
    remaining = iter(sides)
    return nn.Sequential(*(SameSide(next(remaining)) if isinstance(layer, nn.ReLU) else layer for layer in q))


def learn_both_ways(config, spaces, loss_of, updates):
    """[(weights of ours, of the plain loop's on the same batches)] of network and target network, and those before.

    A gradient jumps where a ReLU's input crosses 0: of 45,000 inputs an update some come to lie within rounding of it,
    in 200 updates, and the two would then learn different things, both right. There the plain loop takes our side.
    """
    agent = build(config, spaces)
    q = plain_q(agent.network, spaces)
    target, start = copy.deepcopy(q), [p.detach().clone() for p in q.parameters()]
    q = on_the_same_sides(q, agent.network)
    rate, settings = agent.learner.learning_rate, config.adam
    adam = torch.optim.Adam(q.parameters(), rate, betas=settings.betas, eps=settings.eps, foreach=False, fused=False)
    batches, sample = [], agent.replay.sample
    agent.replay.sample = lambda size: batches.append(sample(size)) or batches[-1]
    drive(
        agent, NoiseWorld(spaces, 2), 20 + updates
    )  # of two environments: 40 steps fill, and one in two is learned in
    assert len(batches) == updates
    for update, batch in enumerate(batches, start=1):
        loss = loss_of(config, q, target, batch)
        adam.zero_grad()
        loss.backward()
        if config.max_grad_norm:
            norm = nn.utils.clip_grad_norm_(q.parameters(), config.max_grad_norm)
            assert update > 3 or norm > config.max_grad_norm  # the case occurs
        adam.step()
        if update % config.target_period == 0:
            for theirs, online in zip(target.parameters(), q.parameters(), strict=True):
                theirs.data.copy_(config.tau * online.data + (1.0 - config.tau) * theirs.data)
    both = (agent.network, q), (agent.learner.target, target)
    return [(list(ours.parameters()), list(plain.parameters())) for ours, plain in both], start


@pytest.mark.parametrize("name", VALUE_CASES)
def test_value_agents_learn_as_the_plain_loop(name):
    both, start = learn_both_ways(*VALUE_CASES[name], updates=26)
    for ours, plain in both:
        assert_close(ours, plain, start)


@pytest.mark.parametrize("name", ["huber, Nature CNN", "C51, Nature CNN"])
def test_two_hundred_updates_channels_last_are_those_of_plain_layers(name):
    config, spaces, loss_of = VALUE_CASES[name]
    config = replace(config, learning_rate=LearningRate(1e-4), adam=AdamConfig(eps=1.5e-4))  # about Dopamine's
    both, start = learn_both_ways(config, spaces, loss_of, updates=200)
    for ours, plain in both:
        for mine, theirs, before in zip(ours, plain, start, strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=0)
            assert (mine - before).abs().max() > 1e-4


# -- PPO -------------------------------------------------------------------------------------------------------------


class PlainActorCritic(nn.Module):
    """Policy and value from torch.nn and torch.distributions, in NumPy-normalised observations where asked."""

    def __init__(self, network, config):
        super().__init__()
        self.actor = plain_mlp(network.actor_torso)
        self.critic = None if config.shared_torso else plain_mlp(network.critic_torso)
        self.policy, self.value = linear(network.policy_head), linear(network.value_head)
        self.log_std = None if network.log_std is None else nn.Parameter(network.log_std.detach().clone())
        self.seen = [] if config.normalize_observations else None
        s = config.support
        self.support = atoms_of(s) if config.value_loss == "hl_gauss" else None

    def weights(self):
        """In the order of the agent's own parameters."""
        modules = [self.actor, self.critic, self.policy, self.value]
        first = [] if self.log_std is None else [self.log_std]
        return first + [p for module in modules if module is not None for p in module.parameters()]

    def forward(self, observations):
        """(distribution, value outputs)."""
        if self.seen:
            seen = np.concatenate(self.seen).astype(np.float64)
            mean, std = seen.mean(0), np.sqrt(seen.var(0) + 1e-8)
            observations = torch.from_numpy(((observations.numpy() - mean) / std).clip(-10, 10)).float()
        hidden = self.actor(observations)
        outputs = self.value(hidden if self.critic is None else self.critic(observations))
        if self.log_std is None:
            return Categorical(logits=self.policy(hidden)), outputs
        mean = self.policy(hidden)
        return Normal(mean, self.log_std.expand_as(mean).exp()), outputs

    def values(self, outputs):
        return outputs.squeeze(-1) if self.support is None else (outputs.softmax(-1) * self.support).sum(-1)


def log_prob_entropy(law, actions):
    if isinstance(law, Categorical):
        return law.log_prob(actions), law.entropy()
    return law.log_prob(actions).sum(-1), law.entropy().sum(-1)


def advantages_of(model, config, record, values):
    """CleanRL's backward loop, with the value of the state reached where an episode was cut."""
    steps, advantages, last = len(record), torch.zeros_like(values), torch.zeros(values.shape[1])
    for t in reversed(range(steps)):
        transitions = record[t]
        with torch.no_grad():
            following = model.values(model(torch.from_numpy(transitions.next_observations))[1])
            if transitions.final_observations is not None:
                final = model.values(model(torch.from_numpy(transitions.final_observations))[1])
        for e in range(values.shape[1]):
            over = transitions.terminated[e] or (transitions.truncated[e] and config.time_limit == "terminal")
            lost = config.life_loss_discount and transitions.life_lost[e]
            cut = transitions.terminated[e] or transitions.truncated[e] or lost
            reached = 0.0 if over or lost else final[e] if cut else following[e]
            delta = transitions.rewards[e] + config.gamma * reached - values[t, e]
            last[e] = delta + (0.0 if cut else config.gamma * config.gae_lambda * last[e])
        advantages[t] = last
    return advantages


def value_loss_of(model, config, outputs, returns, old_values):
    if model.support is not None:
        s = config.support
        bins = [bins_of(value, s) for value in returns.tolist()]
        return F.cross_entropy(outputs, torch.tensor(bins))
    values = outputs.squeeze(-1)
    unclipped = (values - returns) ** 2
    if not config.clip_vloss:
        return unclipped.mean()
    held = old_values + torch.clamp(values - old_values, -config.clip_coef, config.clip_coef)
    return torch.max(unclipped, (held - returns) ** 2).mean()


def plain_ppo_update(model, adam, config, record, actions, shuffle):
    """One rollout's epochs as in CleanRL's ppo.py, without the half on the value loss."""
    observations = torch.from_numpy(np.stack([t.observations for t in record])).flatten(0, 1)
    actions, batch_size = actions.flatten(0, 1), len(observations)
    with torch.no_grad():
        law, outputs = model(observations)
        old_log_probs, _ = log_prob_entropy(law, actions)
        old_values = model.values(outputs)
    advantages = advantages_of(model, config, record, old_values.view(len(record), -1)).flatten()
    returns = advantages + old_values
    if config.norm_adv == "rollout":
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    size = batch_size // config.num_minibatches
    for _ in range(config.update_epochs):
        order = torch.randperm(batch_size, generator=shuffle)
        for first in range(0, batch_size, size):
            rows = order[first : first + size]
            law, outputs = model(observations[rows])
            log_probs, entropy = log_prob_entropy(law, actions[rows])
            ratio, a = (log_probs - old_log_probs[rows]).exp(), advantages[rows]
            if config.norm_adv == "minibatch":
                a = (a - a.mean()) / (a.std() + 1e-8)
            clipped = torch.clamp(ratio, 1 - config.clip_coef, 1 + config.clip_coef)
            policy_loss = torch.max(-a * ratio, -a * clipped).mean()
            value_loss = value_loss_of(model, config, outputs, returns[rows], old_values[rows])
            loss = policy_loss + config.vf_coef * value_loss - config.ent_coef * entropy.mean()
            adam.zero_grad()
            loss.backward()
            if config.max_grad_norm:
                nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
            adam.step()
    if model.seen is not None:
        model.seen.append(observations.numpy())


NETWORK = NetworkConfig(width=16, depth=2, initializer="orthogonal")
ON_POLICY = {
    "network": NETWORK,
    "learning_rate": LR,
    "rollout_steps": 12,
    "num_minibatches": 3,
    "update_epochs": 3,
    "clip_coef": 0.02,  # narrow, so that clipping occurs within a few small steps
}


def falling(steps):
    return {**ON_POLICY, "learning_rate": LearningRate(LR, over=Over(steps))}


PPO_CASES = {
    "discrete, shared": (PPOConfig(**ON_POLICY), VECTOR),
    "discrete, separate, clipped value": (PPOConfig(shared_torso=False, clip_vloss=True, **ON_POLICY), VECTOR),
    "discrete, annealed, no clipping": (
        PPOConfig(max_grad_norm=0.0, **falling(96)),
        VECTOR,
    ),
    "discrete, HL-Gauss": (
        PPOConfig(value_loss="hl_gauss", support=SupportConfig(-3, 3, 13), **ON_POLICY),
        VECTOR,
    ),
    "discrete, HL-Gauss between edges": (
        PPOConfig(value_loss="hl_gauss", support=SupportConfig(-3, 3, 13, support_ends="edges"), **ON_POLICY),
        VECTOR,
    ),
    "continuous, shared": (PPOConfig(ent_coef=0.05, **ON_POLICY), CONTINUOUS),
    "continuous, separate, normalised, annealed": (
        PPOConfig(
            shared_torso=False,
            normalize_observations=True,
            **falling(200),
        ),
        CONTINUOUS,
    ),
    "continuous, as Dohare24": (
        PPOConfig(
            **{**ON_POLICY, "adam": AdamConfig((0.99, 0.99)), "network": SMALL},
            shared_torso=False,
            norm_adv="rollout",
            vf_coef=1.0,
            ent_coef=0.0,
            max_grad_norm=0.0,
            time_limit="terminal",
        ),
        CONTINUOUS,
    ),
    "discrete, a lost life ends the future": (PPOConfig(life_loss_discount=True, **ON_POLICY), VECTOR),
    "discrete, advantages as they are": (PPOConfig(norm_adv="off", **ON_POLICY), VECTOR),
}


@pytest.mark.parametrize(
    ("name", "updates"),
    [(name, 3) for name in PPO_CASES] + [("discrete, shared", 24), ("continuous, as Dohare24", 24)],
)
def test_ppo_learns_as_the_plain_loop(name, updates):
    """3 rollouts of 24 transitions are 27 gradient steps, 24 of them 216."""
    config, spaces = PPO_CASES[name]
    agent, world = build(config, spaces, seed=4), NoiseWorld(spaces, 2)
    model = PlainActorCritic(agent.network, config)
    start = [p.detach().clone() for p in agent.network.parameters()]
    adam = torch.optim.Adam(
        model.parameters(), LR, betas=config.adam.betas, eps=config.adam.eps, foreach=False, fused=False
    )
    shuffle = Generators(4).torch("minibatches")
    clipped = 0.0
    for update in range(updates):
        record = []
        while not agent.update_due():
            record.append(world.step(agent.act(world.observations)))
            agent.observe(record[-1])
        actions = agent.rollout.actions.clone()
        if config.learning_rate.over != "constant":
            adam.param_groups[0]["lr"] = LR * (1.0 - update * 24 / int(config.learning_rate.over))
        clipped += agent.update()["losses/clipfrac"].item()
        plain_ppo_update(model, adam, config, record, actions, shuffle)
    assert clipped > 0.0
    assert_close(agent.network.parameters(), model.weights(), start)
