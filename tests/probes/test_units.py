"""The unit graph against hand-written answers, a proof of ownership by experiment, and the promise to touch nothing."""

import copy

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.common.policies import ActorCriticCnnPolicy, ActorCriticPolicy
from stable_baselines3.dqn.policies import CnnPolicy, DQNPolicy
from stable_baselines3.sac.policies import SACPolicy
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from agents.config import NetworkConfig
from agents.networks import ActorCritic, QNetwork, build_torso
from plasticity_probes.units import activations, hidden_layers
from tests.agents.helpers import ATARI, CONTINUOUS, SMALL_IMAGE, VECTOR, needs_cuda

TINY = NetworkConfig(width=6, depth=2)
BOX = gym.spaces.Box(-1.0, 1.0, (5,))
IMAGE = gym.spaces.Box(0, 255, (3, 36, 36), np.uint8)
ACTIONS = gym.spaces.Box(-1.0, 1.0, (2,))


@pytest.fixture(autouse=True)
def _forked_random_state():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def blocks(units, size=1):
    """0 0 .. 0 1 1 .. 1 2 ..: `size` columns a unit, channel by channel."""
    return [unit for unit in range(units) for _ in range(size)]


class Model(nn.Module):
    """Named layers and a function of them and the input."""

    def __init__(self, function, **layers):
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x):
        return self.function(self, x)


def images(*shape):
    return torch.randint(0, 256, shape, dtype=torch.uint8)


def q_network(spaces, config):
    generator = torch.Generator().manual_seed(0)
    return QNetwork(build_torso(spaces, config, generator), spaces.action_size, 1, "torch", generator)


def actor_critic(spaces, config, shared):
    options = {"shared_torso": shared, "value_atoms": 1, "normalize_observations": False}
    return ActorCritic(spaces, config, **options, generator=torch.Generator().manual_seed(0))


def crelu(x):
    return torch.cat([F.relu(x), F.relu(-x)], 1)


class CReLU(nn.Module):
    def forward(self, x):
        return torch.cat([x, -x], 1).relu_()


def residual(m, x):
    h = m.inlet(x).relu()
    return m.head(h + m.second(m.first(h).relu()))


def mlp(inputs, activation, *, norm=False):
    layers = nn.Sequential(nn.Linear(inputs, 4))
    if norm:
        layers.append(nn.LayerNorm(4))
    return layers.extend([activation, nn.Linear(4, 2)])


def sac(part):
    policy = SACPolicy(BOX, ACTIONS, lambda _: 1e-3, net_arch=[4, 3])
    return policy.actor if part == "actor" else policy.critic


# name: (model, input, forward, {layer: (units, activation, norm, {consumer: owner} or the reason)})
ARCHITECTURES = {
    "q_network_nature_cnn": lambda: (
        q_network(ATARI, NetworkConfig(width=16)),
        images(2, 4, 84, 84),
        None,
        {
            "torso.convolutions.conv1": (32, "relu", None, {"torso.convolutions.conv2": blocks(32)}),
            "torso.convolutions.conv2": (64, "relu", None, {"torso.convolutions.conv3": blocks(64)}),
            "torso.convolutions.conv3": (64, "relu", None, {"torso.dense.dense1": blocks(64, 49)}),
            "torso.dense.dense1": (16, "relu", None, {"head": blocks(16)}),
        },
    ),
    "small_cnn": lambda: (
        q_network(SMALL_IMAGE, NetworkConfig(torso="small_cnn", width=5, depth=2, activation="gelu")),
        images(2, 4, 36, 36),
        None,
        {
            "torso.convolutions.conv1": (64, "gelu", None, {"torso.convolutions.conv2": blocks(64)}),
            "torso.convolutions.conv2": (64, "gelu", None, {"torso.dense.dense1": blocks(64, 49)}),
            "torso.dense.dense1": (5, "gelu", None, {"torso.dense.dense2": blocks(5)}),
            "torso.dense.dense2": (5, "gelu", None, {"head": blocks(5)}),
        },
    ),
    "actor_critic_shared": lambda: (
        actor_critic(VECTOR, TINY, shared=True),
        torch.randn(3, 5),
        None,
        {
            "actor_torso.layers.dense1": (6, "relu", None, {"actor_torso.layers.dense2": blocks(6)}),
            "actor_torso.layers.dense2": (6, "relu", None, {"policy_head": blocks(6), "value_head": blocks(6)}),
        },
    ),
    "actor_critic_separate": lambda: (
        actor_critic(CONTINUOUS, NetworkConfig(width=6, depth=1, activation="tanh"), shared=False),
        torch.randn(3, 5),
        None,
        {
            "actor_torso.layers.dense1": (6, "tanh", None, {"policy_head": blocks(6)}),
            "critic_torso.layers.dense1": (6, "tanh", None, {"value_head": blocks(6)}),
        },
    ),
    "sb3_dqn": lambda: (
        DQNPolicy(BOX, gym.spaces.Discrete(3), lambda _: 1e-3, net_arch=[4, 3]),
        torch.randn(3, 5),
        lambda policy, x: policy.q_net(x),
        {
            "q_net.q_net.0": (4, "relu", None, {"q_net.q_net.2": blocks(4)}),
            "q_net.q_net.2": (3, "relu", None, {"q_net.q_net.4": blocks(3)}),
        },
    ),
    "sb3_dqn_cnn": lambda: (
        CnnPolicy(
            IMAGE, gym.spaces.Discrete(3), lambda _: 1e-3, features_extractor_kwargs={"features_dim": 8}
        ).q_net.requires_grad_(False),
        images(2, 3, 36, 36),
        None,
        {
            "features_extractor.cnn.0": (32, "relu", None, {"features_extractor.cnn.2": blocks(32)}),
            "features_extractor.cnn.2": (64, "relu", None, {"features_extractor.cnn.4": blocks(64)}),
            "features_extractor.cnn.4": (64, "relu", None, {"features_extractor.linear.0": blocks(64)}),
            "features_extractor.linear.0": (8, "relu", None, {"q_net.0": blocks(8)}),
        },
    ),
    "sb3_ppo": lambda: (
        ActorCriticPolicy(BOX, ACTIONS, lambda _: 1e-3, net_arch=[4]),
        torch.randn(3, 5),
        None,
        {
            "mlp_extractor.policy_net.0": (4, "tanh", None, {"action_net": blocks(4)}),
            "mlp_extractor.value_net.0": (4, "tanh", None, {"value_net": blocks(4)}),
        },
    ),
    "sb3_ppo_cnn_shared": lambda: (
        ActorCriticCnnPolicy(
            IMAGE, gym.spaces.Discrete(3), lambda _: 1e-3, features_extractor_kwargs={"features_dim": 8}
        ),
        images(2, 3, 36, 36),
        None,
        {
            "features_extractor.cnn.0": (32, "relu", None, {"features_extractor.cnn.2": blocks(32)}),
            "features_extractor.cnn.2": (64, "relu", None, {"features_extractor.cnn.4": blocks(64)}),
            "features_extractor.cnn.4": (64, "relu", None, {"features_extractor.linear.0": blocks(64)}),
            "features_extractor.linear.0": (8, "relu", None, {"action_net": blocks(8), "value_net": blocks(8)}),
        },
    ),
    "sb3_ppo_cnn_separate": lambda: (
        ActorCriticCnnPolicy(
            IMAGE,
            ACTIONS,
            lambda _: 1e-3,
            net_arch={"pi": [4], "vf": []},
            share_features_extractor=False,
            features_extractor_kwargs={"features_dim": 8},
        ),
        images(2, 3, 36, 36),
        None,
        {
            f"{side}features_extractor.{name}": (units, "relu", None, {consumer: blocks(units)})
            for side, last in (("", "mlp_extractor.policy_net.0"), ("vf_", "value_net"))
            for name, units, consumer in (
                ("cnn.0", 32, f"{side}features_extractor.cnn.2"),
                ("cnn.2", 64, f"{side}features_extractor.cnn.4"),
                ("cnn.4", 64, f"{side}features_extractor.linear.0"),
                ("linear.0", 8, last),
            )
        }
        | {"mlp_extractor.policy_net.0": (4, "tanh", None, {"action_net": blocks(4)})},
    ),
    "sb3_sac_actor": lambda: (
        sac("actor"),
        torch.randn(3, 5),
        None,
        {
            "latent_pi.0": (4, "relu", None, {"latent_pi.2": blocks(4)}),
            "latent_pi.2": (3, "relu", None, {"mu": blocks(3), "log_std": blocks(3)}),
        },
    ),
    "sb3_sac_critic": lambda: (
        sac("critic"),
        (torch.randn(3, 5), torch.randn(3, 2)),
        lambda critic, x: critic(*x),
        {
            f"qf{i}.{a}": (n, "relu", None, {f"qf{i}.{b}": blocks(n)}) for i in (0, 1) for a, b, n in ((0, 2, 4), (2, 4, 3))
        },
    ),
    "duelling": lambda: (
        Model(
            lambda m, x: (lambda h: (lambda v, a: v + a - a.mean(1, keepdim=True))(m.value(h), m.advantage(h)))(
                F.leaky_relu(m.torso(x.view(-1, 6)))
            ),
            torso=nn.Linear(6, 3),
            value=nn.Sequential(nn.Linear(3, 2), nn.ELU(), nn.Linear(2, 1)),
            advantage=nn.Sequential(nn.Linear(3, 2), nn.SiLU(), nn.Linear(2, 4)),
        ),
        torch.randn(3, 2, 3),
        None,
        {
            "torso": (3, "leaky_relu", None, {"value.0": [0, 1, 2], "advantage.0": [0, 1, 2]}),
            "value.0": (2, "elu", None, {"value.2": [0, 1]}),
            "advantage.0": (2, "silu", None, {"advantage.2": [0, 1]}),
        },
    ),
    "crelu": lambda: (
        Model(
            lambda m, x: m.head(m.crelu(m.dense(crelu(m.conv2(crelu(m.conv1(x)))).flatten(1)))),
            conv1=nn.Conv2d(1, 2, 3),
            conv2=nn.Conv2d(4, 3, 3),
            dense=nn.Linear(3 * 2 * 4, 2),
            crelu=CReLU(),
            head=nn.Linear(4, 2),
        ),
        torch.randn(2, 1, 6, 6),
        None,
        {
            "conv1": (2, "crelu", None, {"conv2": [0, 1, 0, 1]}),
            "conv2": (3, "crelu", None, {"dense": blocks(3, 4) * 2}),
            "dense": (2, "crelu", None, {"head": [0, 1, 0, 1]}),
        },
    ),
    "crelu_after_flatten": lambda: (
        Model(
            lambda m, x: m.head(crelu(m.conv(x).flatten(1))), conv=nn.Conv2d(1, 2, 2), head=nn.Linear(2 * 2 * 4, 1)
        ),
        torch.randn(2, 1, 3, 3),
        None,
        {"conv": (2, "crelu", None, {"head": [0, 0, 0, 0, 1, 1, 1, 1] * 2})},
    ),
    "conv_pool_norm": lambda: (
        Model(
            lambda m, x: m.head(F.dropout(torch.tanh(m.norm2(m.dense(m.flat(m.avg(m.layers(x))))))).double()),
            layers=nn.Sequential(
                nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular"),
                nn.MaxPool2d(2),
                nn.LayerNorm((2, 4, 4)),
                nn.ReLU(inplace=True),
                nn.Conv2d(2, 4, 1),
                nn.GroupNorm(2, 4),
                nn.ReLU(),
            ),
            avg=nn.AdaptiveAvgPool2d((1, 2)),
            flat=nn.Flatten(),
            dense=nn.Linear(8, 3),
            norm2=nn.RMSNorm(3),
            head=nn.Linear(3, 2).double(),
        ).to(memory_format=torch.channels_last),
        torch.randn(2, 1, 8, 8).contiguous(memory_format=torch.channels_last),
        None,
        {
            "layers.0": (2, "relu", "layers.2", {"layers.4": [0, 1]}),
            "layers.4": (4, "relu", "layers.5", {"dense": blocks(4, 2)}),
            "dense": (3, "tanh", "norm2", {"head": [0, 1, 2]}),
        },
    ),
    "concatenation": lambda: (
        Model(
            lambda m, x: m.head(torch.cat([x[:, 4:], m.left(x[:, :4]).relu(), m.right(x / 2).tanh() * 3], 1)),
            left=nn.Linear(4, 2),
            right=nn.Linear(6, 3),
            head=nn.Linear(7, 1),
        ),
        torch.randn(3, 6),
        None,
        {
            "left": (2, "relu", None, {"head": [-1, -1, 0, 1, -1, -1, -1]}),
            "right": (3, "tanh", None, {"head": [-1, -1, -1, -1, 0, 1, 2]}),
        },
    ),
    "dictionary_input": lambda: (
        Model(
            lambda m, x: m.head(torch.cat((m.state(x["state"]).relu().reshape(3, -1), x["action"]), -1)),
            state=nn.Conv1d(1, 2, 2),
            head=nn.Linear(6, 1),
        ),
        {"state": torch.randn(3, 1, 3), "action": torch.randn(3, 2)},
        None,
        {"state": (2, "relu", None, {"head": [0, 0, 1, 1, -1, -1]})},
    ),
    "identity": lambda: (
        nn.Sequential(nn.Linear(3, 4), nn.Identity(), nn.Linear(4, 2), nn.BatchNorm1d(2), nn.Linear(2, 2)),
        torch.randn(4, 3),
        None,
        {"0": (4, "identity", None, {"2": blocks(4)}), "2": (2, "identity", "3", {"4": [0, 1]})},
    ),
    "written_out": lambda: (
        Model(
            lambda m, x: m.third((lambda h: h * torch.sigmoid(h))(m.second((lambda h: h * (h > 0))(m.first(x))))),
            first=nn.Linear(3, 4),
            second=nn.Linear(4, 2),
            third=nn.Linear(2, 2),
        ),
        torch.randn(4, 3),
        None,
        {"first": (4, "mul(x, gt(x))", None, {"second": blocks(4)}), "second": (2, "silu", None, {"third": [0, 1]})},
    ),
    "channels_last_by_hand": lambda: (
        Model(
            lambda m, x: m.head(m.norm(m.conv(x).permute(0, 2, 3, 1)).relu().flatten(1)),
            conv=nn.Conv2d(1, 3, 2),
            norm=nn.LayerNorm(3),
            head=nn.Linear(12, 1),
        ),
        torch.randn(2, 1, 3, 3),
        None,
        {"conv": (3, "relu", "norm", {"head": [0, 1, 2] * 4})},
    ),
    "residual": lambda: (
        Model(residual, inlet=nn.Linear(3, 4), first=nn.Linear(4, 5), second=nn.Linear(5, 4), head=nn.Linear(4, 2)),
        torch.randn(3, 3),
        None,
        {
            "inlet": (4, "relu", None, "aten.add joins different units, of 'inlet', 'second'"),
            "first": (5, "relu", None, {"second": blocks(5)}),
            "second": (4, "identity", None, "aten.add joins different units, of 'inlet', 'second'"),
        },
    ),
    "used_twice": lambda: (
        Model(
            lambda m, x: m.head(m.shared(m.shared(m.inlet(x).relu()).relu()).relu()),
            inlet=nn.Linear(3, 4),
            shared=nn.Linear(4, 4),
            head=nn.Linear(4, 1),
        ),
        torch.randn(3, 3),
        None,
        {
            "inlet": (4, "relu", None, "'shared' (Linear) is used 2 times"),
            "shared": (4, "relu", None, "'shared' (Linear) is used 2 times"),
        },
    ),
    "lstm": lambda: (
        Model(
            lambda m, x: m.head(m.lstm(m.inlet(x).relu())[0][:, -1]),
            inlet=nn.Linear(3, 4),
            lstm=nn.LSTM(4, 5, batch_first=True),
            head=nn.Linear(5, 1),
        ),
        torch.randn(3, 2, 3),
        None,
        {
            "inlet": (4, "relu", None, "feeds 'lstm' (LSTM), which is recurrent"),
            "lstm": (5, "identity", None, "LSTM is recurrent"),
        },
    ),
    "gru_cell": lambda: (
        Model(
            lambda m, x: m.head(m.cell(m.inlet(x[:, 1]).relu(), m.cell(m.inlet(x[:, 0]).relu()))),
            inlet=nn.Linear(3, 4),
            cell=nn.GRUCell(4, 5),
            head=nn.Linear(5, 1),
        ),
        torch.randn(3, 2, 3),
        None,
        {
            "inlet": (4, "relu", None, "feeds 'cell' (GRUCell), which is recurrent"),
            "cell": (5, "identity", None, "GRUCell is recurrent"),
        },
    ),
    "attention": lambda: (
        Model(
            lambda m, x: m.head((lambda h: m.attention(h, h, h)[0])(m.inlet(x).relu()).mean(1)),
            inlet=nn.Linear(3, 4),
            attention=nn.MultiheadAttention(4, 2, batch_first=True),
            head=nn.Linear(4, 1),
        ).eval(),
        torch.randn(3, 2, 3),
        None,
        {
            "inlet": (4, "relu", None, "feeds 'attention' (MultiheadAttention), which is attention"),
            "attention": (4, "identity", None, "MultiheadAttention is attention"),
        },
    ),
}


def call(model, example, forward):
    """Outputs as one flat vector, from a fixed random state."""
    torch.manual_seed(1)
    with torch.no_grad():
        outputs = forward(model, example) if forward else model(example)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return torch.cat([output.double().flatten() for output in outputs])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_hand_written_answers(name):
    model, example, forward, expected = ARCHITECTURES[name]()
    names = {module: name for name, module in model.named_modules()}
    layers = hidden_layers(model, example, forward)
    assert [layer.name for layer in layers] == list(dict.fromkeys(layer.name for layer in layers))
    assert {layer.name for layer in layers} == set(expected)
    for layer in layers:
        units, activation, norm, answer = expected[layer.name]
        assert layer.producer is model.get_submodule(layer.name)
        assert (layer.units, layer.activation) == (units, activation)
        assert layer.norm is (None if norm is None else model.get_submodule(norm))
        assert layer.initializer is getattr(layer.producer, "initializer", None)
        if isinstance(answer, str):
            assert not layer.separable and answer in layer.reason
            continue
        assert layer.separable and layer.reason == ""
        assert {names[module]: owner.tolist() for module, owner in layer.consumers} == answer
        assert all(owner.dtype == torch.int64 for _, owner in layer.consumers)


class Forced(TorchDispatchMode):
    """Sets a unit's part of the result that equals `post` to zero."""

    def __init__(self, post, columns):
        super().__init__()
        self.post, self.columns, self.times = post, columns, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        value = result[0] if isinstance(result, tuple) else result  # norms give their statistics as well
        if isinstance(value, torch.Tensor) and value.shape == self.post.shape and torch.equal(value, self.post):
            value[self.columns] = 0.0
            self.times += 1
        return result


def columns_of(name, unit, post, units):
    """Where `unit` stands along dimension 1 of the nonlinearity's result, and that result as the model has it."""
    if name == "crelu_after_flatten":  # [samples, 2 * units, positions] -> [samples, 2 * units * positions]
        return (slice(None), [4 * half + 4 * unit + i for half in (0, units) for i in range(4)]), post.flatten(1)
    if name == "channels_last_by_hand":  # [samples, units, positions] -> [samples, height, width, units]
        return (..., unit), post.mT.unflatten(1, (2, 2))
    return (slice(None), slice(unit, None, units)), post


def without(model, layer, unit):
    """A copy of `model` in which the columns that `unit` owns are zero."""
    copied, names = copy.deepcopy(model), {module: name for name, module in model.named_modules()}
    for consumer, owner in layer.consumers:
        copied.get_submodule(names[consumer]).weight.data[:, owner == unit] = 0.0
    return copied


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_zeroing_the_owned_columns_removes_the_unit(name):
    model, example, forward, _ = ARCHITECTURES[name]()
    model.eval()
    before, changed = call(model, example, forward), 0
    layers = [layer for layer in hidden_layers(model, example, forward) if layer.separable]
    torch.manual_seed(1)
    values = activations(model, example, forward)
    for layer in layers:
        for unit in torch.randperm(layer.units)[:4].tolist():
            columns, post = columns_of(name, unit, values[layer.name].post, layer.units)
            with Forced(post, columns) as removed:
                expected = call(model, example, forward)
            assert removed.times
            assert torch.allclose(call(without(model, layer, unit), example, forward), expected, rtol=1e-5, atol=1e-6)
            changed += not torch.equal(expected, before)
    assert changed or not layers
