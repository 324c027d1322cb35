"""Bare loops: the least that a row's update, acting and world cost, each alone and in turn, as straight torch beside
nothing.

The same networks, batches and arithmetic as the agents', in the fastest form known on a CPU (channels last, fused Adam,
closed forms), and none of what makes them agents: no sampling, no memory, no checks, no metrics, no interventions. Of
agents/ it takes the settings alone.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional

from agents.kinds import kind_of
from envs import make_vec_from_config
from experiments.config import TrainConfig

Loops = dict[str, Callable[[int], None]]
"""By name (update, act, world): does what so many whole units of steps ask for. A unit is a rollout, or the steps
between two gradient steps."""


class BareLoops:
    """The three loops of one row's settings; `close` when done."""

    def __init__(self, config: TrainConfig) -> None:
        self.agent, self.num_envs = config.agent, config.world.num_envs
        self.autocast = _autocast if config.run.precision == "bf16" else nullcontext
        on_policy = kind_of(config.agent).on_policy
        self.ticks = self.agent.rollout_steps if on_policy else round(1 / self.agent.replay_ratio) // self.num_envs
        self.steps = self.ticks * self.num_envs
        """Of a unit."""
        self.made = make_vec_from_config(config.world, 1, threads=1)
        self.observations, _ = self.made.reset()
        space = self.made.single_action_space
        self.continuous = not hasattr(space, "n")
        self.outputs = space.shape[0] if self.continuous else int(space.n)
        self.actions = [self.made.action_space.sample() for _ in range(64)]
        made = _Rollout(self) if on_policy else _Values(self)
        self.loops: Loops = {"update": made.update, "act": made.act, "world": self.world}
        self._act = made.act_once

    def in_turn(self, units: int) -> None:
        """All three as a run has them: acting and the world tick by tick, then the update."""
        for _ in range(units):
            for tick in range(self.ticks):
                self._act()
                self.observations = self.made.step(self.actions[tick % 64])[0]
            self.loops["update"](1)

    def world(self, units: int) -> None:
        """Steps by actions that were drawn before."""
        for tick in range(units * self.ticks):
            self.observations = self.made.step(self.actions[tick % 64])[0]

    def batch(self, rows: int) -> Tensor:
        """Observations of so many random numbers or pixels."""
        shape = (rows, *self.observations.shape[1:])
        if self.observations.dtype != "uint8":
            return torch.randn(shape)
        pixels = torch.randint(0, 256, shape, dtype=torch.uint8)
        return pixels.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else pixels

    def torso(self) -> tuple[nn.Module, int]:
        """(hidden layers, their features)."""
        network, shape = self.agent.network, self.observations.shape[1:]
        if len(shape) == 3 and min(shape[1:]) >= 36:
            sides = nn.Conv2d(shape[0], 32, 8, 4), nn.Conv2d(32, 64, 4, 2), nn.Conv2d(64, 64, 3)
            maps = nn.Sequential(*(each for layer in sides for each in (layer, nn.ReLU())), nn.Flatten())
            inputs = maps(torch.zeros(1, *shape)).shape[1]
            layers = nn.Sequential(maps, nn.Linear(inputs, network.width), nn.ReLU())
            return _Scaled(layers).to(memory_format=torch.channels_last), network.width
        inputs, nonlinearity = self.observations[0].size, nn.Tanh if network.activation == "tanh" else nn.ReLU
        layers: list[nn.Module] = [nn.Flatten()]
        for width in [network.width] * network.depth:
            layers += [nn.Linear(inputs, width), nonlinearity()]
            inputs = width
        dense = nn.Sequential(*layers)
        return (_Scaled(dense) if self.observations.dtype == "uint8" else dense), inputs

    def adam(self, *networks: nn.Module) -> torch.optim.Adam:
        """Over all their parameters."""
        parameters = [parameter for network in networks for parameter in network.parameters()]
        return torch.optim.Adam(parameters, 1e-4, eps=1e-5, fused=True)

    def descend(self, adam: torch.optim.Adam, loss: Tensor) -> None:
        """A gradient step, clipped where the settings clip."""
        adam.zero_grad(set_to_none=True)
        loss.backward()
        if self.agent.max_grad_norm:
            nn.utils.clip_grad_norm_(adam.param_groups[0]["params"], self.agent.max_grad_norm)
        adam.step()

    def close(self) -> None:
        """Close the world."""
        self.made.close()


def _autocast() -> AbstractContextManager:
    return torch.autocast("cpu", torch.bfloat16)


class _Scaled(nn.Module):
    """Pixels to [0, 1] before the layers."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, pixels: Tensor) -> Tensor:
        return self.layers(pixels.float() * (1 / 255))


class _Values:
    """DQN and C51: a gradient step against a target network on a fixed batch, and greedy actions."""

    def __init__(self, loops: BareLoops) -> None:
        agent = self.agent = loops.agent
        self.loops, rows = loops, agent.batch_size
        self.atoms = kind_of(agent).atoms(agent)
        self.support = torch.linspace(agent.support.v_min, agent.support.v_max, self.atoms) if self.atoms > 1 else None
        self.network, self.target = self._network(), self._network().requires_grad_(False)
        self.adam = loops.adam(self.network)
        self.batches = loops.batch(rows), loops.batch(rows)
        self.taken, self.rewards = torch.randint(0, loops.outputs, (rows,)), torch.rand(rows)
        self.rows = torch.arange(rows)

    def _network(self) -> nn.Module:
        torso, features = self.loops.torso()
        return nn.Sequential(torso, nn.Linear(features, self.loops.outputs * self.atoms))

    def _values(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """(values, outputs) of each action."""
        outputs = outputs.float()
        if self.support is None:
            return outputs, outputs
        outputs = outputs.unflatten(1, (self.loops.outputs, self.atoms))
        return (outputs.softmax(-1) * self.support).sum(-1), outputs

    def update(self, units: int) -> None:
        """As many gradient steps."""
        for _ in range(units):
            before, after = self.batches
            with torch.no_grad(), self.loops.autocast():
                values, reached = self._values(self.target(after))
                best = values.argmax(1)
                goal = self._goal(reached[self.rows, best])
            with self.loops.autocast():
                outputs = self._values(self.network(before))[1]
            chosen = outputs[self.rows, self.taken]
            if self.support is None:
                loss = functional.mse_loss if self.agent.loss == "mse" else functional.smooth_l1_loss
                self.loops.descend(self.adam, loss(chosen, goal))
            else:
                self.loops.descend(self.adam, -(goal * chosen.log_softmax(-1)).sum(-1).mean())

    def _goal(self, reached: Tensor) -> Tensor:
        """What is regressed on: values, or distributions projected onto the atoms."""
        discount = self.agent.gamma**self.agent.n_step
        if self.support is None:
            return self.rewards + discount * reached
        low, high = self.support[0], self.support[-1]
        spacing = (high - low) / (self.atoms - 1)
        place = ((self.rewards.unsqueeze(1) + discount * self.support).clamp(low, high) - low) / spacing
        lower, mass = place.floor().clamp(max=self.atoms - 2), reached.softmax(-1)
        above, index = place - lower, lower.long()
        empty = torch.zeros_like(mass)
        return empty.scatter_add(1, index, mass * (1 - above)).scatter_add(1, index + 1, mass * above)

    def act(self, units: int) -> None:
        """Greedy actions, as an array."""
        for _ in range(units * self.loops.ticks):
            self.act_once()

    def act_once(self) -> None:
        """For the observations reached."""
        with torch.inference_mode(), self.loops.autocast():
            self._values(self.network(torch.from_numpy(self.loops.observations)))[0].argmax(1).numpy()


class _Rollout:
    """PPO: its gradient steps on a fixed rollout, and drawn actions with their values."""

    def __init__(self, loops: BareLoops) -> None:
        agent = self.agent = loops.agent
        self.loops, rows = loops, loops.steps
        shared = agent.shared_torso
        self.torsos = [loops.torso() for _ in range(1 if shared else 2)]
        self.heads = nn.Linear(self.torsos[0][1], loops.outputs), nn.Linear(self.torsos[-1][1], 1)
        self.log_std = nn.Parameter(torch.zeros(loops.outputs))
        free = [nn.ParameterList([self.log_std])] if loops.continuous else []
        self.adam = loops.adam(*(torso for torso, _ in self.torsos), *self.heads, *free)
        self.observations = loops.batch(rows)
        actions = torch.randn(rows, loops.outputs) if loops.continuous else torch.randint(0, loops.outputs, (rows,))
        self.columns = [actions, torch.full((rows,), -1.5), *torch.randn(3, rows)]

    def _forward(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        """(policy outputs, values [batch])."""
        with self.loops.autocast():
            features = [torso(observations) for torso, _ in self.torsos]
            policy, values = self.heads[0](features[0]), self.heads[1](features[-1])
        return policy.float(), values.float().squeeze(1)

    def _log_prob(self, policy: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """(log probability [batch], mean entropy)."""
        if self.loops.continuous:
            scaled = (actions - policy) * (-self.log_std).exp()
            log_prob = -(0.5 * scaled.square() + self.log_std + 0.9189385).sum(-1)
            return log_prob, (self.log_std + 1.4189385).sum()
        log_p = policy.log_softmax(-1)
        return log_p.gather(1, actions.unsqueeze(1)).squeeze(1), -(log_p.exp() * log_p).sum(-1).mean()

    def _minibatches(self, units: int) -> Iterator[list[Tensor]]:
        for _ in range(units * self.agent.update_epochs):
            for rows in torch.randperm(self.loops.steps).chunk(self.agent.num_minibatches):
                yield [column[rows] for column in (self.observations, *self.columns)]

    def update(self, units: int) -> None:
        """All gradient steps of as many rollouts."""
        clip = self.agent.clip_coef
        for observations, actions, old, advantages, returns, old_values in self._minibatches(units):
            policy, values = self._forward(observations)
            log_prob, entropy = self._log_prob(policy, actions)
            advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
            ratio = (log_prob - old).exp()
            surrogate = torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages).mean()
            held = old_values + (values - old_values).clamp(-clip, clip)
            error = torch.maximum((values - returns).square(), (held - returns).square()).mean()
            loss = self.agent.vf_coef * error - surrogate - self.agent.ent_coef * entropy
            self.loops.descend(self.adam, loss)

    def act(self, units: int) -> None:
        """Actions drawn for each tick, as an array, with log probability and value."""
        for _ in range(units * self.loops.ticks):
            self.act_once()

    @torch.inference_mode()
    def act_once(self) -> None:
        """For the observations reached."""
        observations = torch.from_numpy(self.loops.observations)
        if self.loops.observations.dtype != "uint8":
            observations = observations.float()
        policy, _ = self._forward(observations)
        if self.loops.continuous:
            actions = policy + self.log_std.exp() * torch.empty_like(policy).normal_()
        else:
            actions = (policy - torch.empty_like(policy).exponential_().log()).argmax(-1)
        self._log_prob(policy, actions)
        actions.numpy()
