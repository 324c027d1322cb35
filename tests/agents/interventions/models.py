"""Small networks of every kind that surgery must understand, and a slow re-statement of what a replacement is."""

import copy

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.dqn.policies import CnnPolicy, DQNPolicy
from torch import nn
from torch.nn import functional as F

from agents.config import NetworkConfig
from agents.heads import ValueHead
from agents.initializers import initialize
from agents.interventions import Slots, Surgery
from agents.networks import ActorCritic
from plasticity_probes.units import hidden_layers
from tests.agents.helpers import CONTINUOUS


class Model(nn.Module):
    """Named layers, each drawn by `law` (None: torch's own constructor), and a function of them and the input."""

    def __init__(self, function, law="lecun_uniform", **layers):
        super().__init__()
        self.function = function
        generator = torch.Generator().manual_seed(7)
        for name, layer in layers.items():
            if law is not None and isinstance(layer, (nn.Linear, nn.Conv2d)):
                initialize(layer, law, generator)
            self.add_module(name, layer)

    def forward(self, x):
        return self.function(self, x)


def crelu(x):
    return torch.cat([F.relu(x), F.relu(-x)], 1)


def mlp():
    return Model(
        lambda m, x: m.c(F.relu(m.b(F.relu(m.a(x))))), "torch", a=nn.Linear(5, 6), b=nn.Linear(6, 7), c=nn.Linear(7, 3)
    )


def plain_mlp():
    """Without initialisers and partly without biases."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = {"a": nn.Linear(5, 6, bias=False), "b": nn.Linear(6, 7), "c": nn.Linear(7, 3, bias=False)}
    return Model(lambda m, x: m.c(torch.tanh(m.b(torch.tanh(m.a(x))))), None, **layers)


def conv():
    return Model(
        lambda m, x: m.c(F.relu(m.b(F.relu(m.a(x))))).mean((2, 3)),
        a=nn.Conv2d(3, 4, 3),
        b=nn.Conv2d(4, 5, 3, padding=1),
        c=nn.Conv2d(5, 2, 1),
    )


def conv_flatten():
    model = Model(
        lambda m, x: m.c(F.relu(m.b(F.relu(m.a(x)).flatten(1)))),
        "orthogonal",
        a=nn.Conv2d(3, 4, 3, 2),
        b=nn.Linear(36, 6),
        c=nn.Linear(6, 3),
    )
    return model.to(memory_format=torch.channels_last)


def conv_channels_last():
    """The flattening puts the channels last, so that a unit's columns lie four apart."""
    return Model(
        lambda m, x: m.b(F.relu(m.a(x)).permute(0, 2, 3, 1).flatten(1)), a=nn.Conv2d(3, 4, 3, 2), b=nn.Linear(36, 3)
    )


def layer_norm():
    return Model(
        lambda m, x: m.c(F.relu(m.nb(m.b(F.relu(m.na(m.a(x))))))),
        a=nn.Linear(5, 6),
        na=nn.LayerNorm(6),
        b=nn.Linear(6, 7),
        nb=nn.RMSNorm(7),
        c=nn.Linear(7, 3),
    )


def conv_norms():
    return Model(
        lambda m, x: m.c(F.relu(m.nb(m.b(F.relu(m.na(m.a(x))))).flatten(1))),
        a=nn.Conv2d(3, 4, 3),
        na=nn.LayerNorm((4, 5, 5)),
        b=nn.Conv2d(4, 6, 3),
        nb=nn.BatchNorm2d(6),
        c=nn.Linear(54, 3),
    )


def crelu_net():
    return Model(
        lambda m, x: m.d(crelu(m.c(crelu(m.b(crelu(m.a(x)))).flatten(1)))),
        a=nn.Conv2d(3, 4, 3),
        b=nn.Conv2d(8, 3, 3),
        c=nn.Linear(54, 5),
        d=nn.Linear(10, 3),
    )


def two_consumers():
    """One head reads everything and the input, one only the first four units."""

    def forward(m, x):
        hidden = F.relu(m.a(x))
        return m.b(torch.cat([x, hidden], 1)) + m.c(hidden[:, :4])

    return Model(forward, a=nn.Linear(5, 6), b=nn.Linear(11, 3), c=nn.Linear(4, 3))


def part_of_a_flatten():
    """One head reads all nine columns of each unit, one nine of the first unit, six of the second and none else."""

    def forward(m, x):
        hidden = F.relu(m.a(x)).flatten(1)
        return m.b(hidden) + m.c(hidden[:, :15])

    return Model(forward, a=nn.Conv2d(3, 4, 3, 2), b=nn.Linear(36, 3), c=nn.Linear(15, 3))


def duelling():
    def forward(m, x):
        hidden = F.relu(m.a(x))
        advantage = m.advantage(F.relu(m.c(hidden)))
        return m.value(F.relu(m.b(hidden))) + advantage - advantage.mean(1, keepdim=True)

    return Model(
        forward,
        a=nn.Linear(5, 6),
        b=nn.Linear(6, 4),
        c=nn.Linear(6, 5),
        value=nn.Linear(4, 1),
        advantage=nn.Linear(5, 3),
    )


def actor_critic():
    return ActorCritic(
        CONTINUOUS,
        NetworkConfig(width=6, depth=2, initializer="orthogonal", activation="tanh"),
        shared_torso=False,
        head=ValueHead(),
        normalize_observations=True,
        generator=torch.Generator().manual_seed(3),
    )


def sb3_mlp():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        policy = DQNPolicy(gym.spaces.Box(-1, 1, (5,)), gym.spaces.Discrete(3), lambda _: 1e-3, net_arch=[6, 7])
    return policy.q_net


def sb3_cnn():
    space = gym.spaces.Box(0, 255, (3, 36, 36), np.uint8)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        policy = CnnPolicy(
            space, gym.spaces.Discrete(3), lambda _: 1e-3, net_arch=[], features_extractor_kwargs={"features_dim": 8}
        )
    return policy.q_net


def vectors(samples=8):
    return torch.randn(samples, 5, generator=torch.Generator().manual_seed(1))


def images(samples=8, size=7):
    return torch.randn(samples, 3, size, size, generator=torch.Generator().manual_seed(1))


MODELS = {
    "mlp": (mlp, vectors),
    "plain mlp": (plain_mlp, vectors),
    "conv": (conv, images),
    "conv -> flatten -> linear": (conv_flatten, images),
    "conv, channels last": (conv_channels_last, images),
    "layer norm": (layer_norm, vectors),
    "conv with norms": (conv_norms, images),
    "crelu": (crelu_net, images),
    "two consumers": (two_consumers, vectors),
    "part of a flatten": (part_of_a_flatten, images),
    "duelling": (duelling, vectors),
    "actor, critic": (actor_critic, vectors),
    "sb3 dqn": (sb3_mlp, vectors),
    "sb3 cnn": (sb3_cnn, lambda: images(2, 36)),
}


every_model = pytest.mark.parametrize("kind", MODELS)


class Patient:
    """A network with its optimizer after a few gradient steps, so that moments and step are not zero."""

    def __init__(self, build, batch, steps=3, interventions=(), seed=0, **adam):
        self.network, self.batch = build(), batch()
        self.layers = hidden_layers(self.network, self.batch)
        self.target = copy.deepcopy(self.network)
        settings = {"lr": 1e-2, "fused": True, **adam}
        self.adam = torch.optim.Adam(self.network.parameters(), **settings)
        self.generator = torch.Generator().manual_seed(seed)
        self.surgery = Surgery(
            {"online": self.network, "target": self.target},
            self.adam,
            self.layers,
            self.generator,
            interventions=interventions,
        )
        for _ in range(steps):
            self.train()

    def output(self):
        output = self.network(self.batch)
        return torch.cat([part.view(len(part), -1) for part in output], 1) if isinstance(output, tuple) else output

    def train(self):
        self.adam.zero_grad()
        with torch.random.fork_rng(devices=[]):
            (self.output() - 1).square().mean().backward()
            if getattr(self.network, "log_std", None) is not None:
                self.network.log_std.sum().backward()
        self.adam.step()

    def separable(self):
        return [layer for layer in self.layers if layer.separable]

    def masks(self, seed=0, share=0.4):
        """Random units of every separable layer, at least one and never all."""
        rng = np.random.default_rng(seed)
        masks = {}
        for layer in self.separable():
            mask = rng.random(layer.units) < share
            mask[0], mask[-1] = False, True
            masks[layer.name] = torch.from_numpy(mask)
        return masks


def slots_of(mask, k, generator=None):
    """The same units in k shuffled slots; invalid ones name units that are not, or that are replaced, or nonsense."""
    chosen = mask.nonzero().squeeze(1)
    spare = k - len(chosen)
    index = torch.cat([chosen, torch.tensor([-1, 10**6, int(chosen[0]), 0] * (spare + 1))[:spare]])
    valid = torch.arange(k) < len(chosen)
    order = torch.randperm(k, generator=generator or torch.Generator().manual_seed(4))
    return Slots(index[order], valid[order])


def frozen(patient, network="network"):
    """Every tensor of network and optimizer, as NumPy copies: {(name, what): array}."""
    module = getattr(patient, network)
    tensors = {(name, "value"): tensor for name, tensor in module.named_parameters()}
    tensors |= {(name, "value"): tensor for name, tensor in module.named_buffers()}
    if network == "network":
        for name, parameter in module.named_parameters():
            tensors |= {(name, key): value for key, value in patient.adam.state[parameter].items()}
    return {key: tensor.detach().numpy().copy() for key, tensor in tensors.items()}


def replaced_slowly(patient, before, masks, draws, moments):
    """What `replace` must make of the arrays `before`, unit by unit and column by column.

    `draws`: {layer name: (rows by unit, biases by unit)}, NumPy [units, ...].
    """
    after = {key: array.copy() for key, array in before.items()}
    name_of = {id(tensor): name for name, tensor in patient.network.named_parameters()}
    name_of |= {id(tensor): name for name, tensor in patient.network.named_buffers()}

    def fill(tensor, place, value, others):
        """Set one slice and its moments; `others`: the same slices of the units that stay."""
        name = name_of[id(tensor)]
        after[name, "value"][place] = value
        if (name, "exp_avg") not in after or moments == "keep":
            return
        after[name, "exp_avg"][place] = 0
        second = after[name, "exp_avg_sq"]
        stays = [second[other].astype(np.float64) for other in others]
        second[place] = np.mean(stays, axis=0) if moments == "mean" and stays else 0

    for layer in patient.separable():
        units = [unit for unit in range(layer.units) if masks[layer.name][unit]]
        rest = [unit for unit in range(layer.units) if unit not in units]
        for unit in units:
            fill(layer.producer.weight, unit, draws[layer.name][0][unit], rest)
            if layer.producer.bias is not None:
                fill(layer.producer.bias, unit, draws[layer.name][1][unit], rest)
            for attribute, start in (("weight", 1), ("bias", 0), ("running_mean", 0), ("running_var", 1)):
                tensor = getattr(layer.norm, attribute, None)
                if tensor is not None:
                    fill(tensor, unit, start, rest)
    for layer in patient.separable():
        for consumer, owner in layer.consumers:
            mine = {unit: [c for c in range(len(owner)) if owner[c] == unit] for unit in range(layer.units)}
            rest = [unit for unit in range(layer.units) if not masks[layer.name][unit]]
            for unit in range(layer.units):
                for position, column in enumerate(mine[unit] if masks[layer.name][unit] else []):
                    others = [(slice(None), mine[o][position]) for o in rest if position < len(mine[o])]
                    fill(consumer.weight, (slice(None), column), 0, others)
    return after


def assert_same(found, expected, tolerance=0.0):
    assert found.keys() == expected.keys()
    for key, array in expected.items():
        np.testing.assert_allclose(found[key], array, rtol=tolerance, atol=0, err_msg=str(key))
