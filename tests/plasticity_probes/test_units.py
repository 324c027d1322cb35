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
from agents.heads import ValueHead
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
    return QNetwork(build_torso(spaces, config, generator), spaces.action_size, ValueHead(), "torch", generator)


def actor_critic(spaces, config, shared):
    options = {"shared_torso": shared, "head": ValueHead(), "normalize_observations": False}
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
    "q_network_nature_cnn_padded": lambda: (
        q_network(ATARI, NetworkConfig(width=16, padding="same")),
        images(2, 4, 84, 84),
        None,
        {
            "torso.convolutions.conv1": (32, "relu", None, {"torso.convolutions.conv2": blocks(32)}),
            "torso.convolutions.conv2": (64, "relu", None, {"torso.convolutions.conv3": blocks(64)}),
            "torso.convolutions.conv3": (64, "relu", None, {"torso.dense.dense1": blocks(64, 121)}),
            "torso.dense.dense1": (16, "relu", None, {"head": blocks(16)}),
        },
    ),
    "padded_by_hand_and_doubled": lambda: (  # layer norm, CReLU, a pad that is not symmetric, a pad before a flatten
        q_network(SMALL_IMAGE, NetworkConfig("small_cnn", 4, padding="same", norm="layer", doubled="crelu")),
        images(2, 4, 36, 36),
        None,
        {
            "torso.convolutions.conv1": (
                32,
                "crelu",
                "torso.convolutions.norm1",
                {"torso.convolutions.conv2": [*range(32), *range(32)]},
            ),
            "torso.convolutions.conv2": (
                32,
                "crelu",
                "torso.convolutions.norm2",
                {"torso.dense.dense1": blocks(32, 81) * 2},
            ),
            "torso.dense.dense1": (2, "crelu", "torso.dense.norm1", {"head": [0, 1, 0, 1]}),
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
            f"qf{i}.{a}": (n, "relu", None, {f"qf{i}.{b}": blocks(n)})
            for i in (0, 1)
            for a, b, n in ((0, 2, 4), (2, 4, 3))
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
        Model(lambda m, x: m.head(crelu(m.conv(x).flatten(1))), conv=nn.Conv2d(1, 2, 2), head=nn.Linear(2 * 2 * 4, 1)),
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


def two(function, **layers):
    """3 inputs, `first` of 4 units, `second` of 1."""
    return Model(function, **{"first": nn.Linear(3, 4), "second": nn.Linear(4, 1)} | layers)


def written_into_a_buffer(m, x):
    buffer, h = torch.zeros(len(x), 4), m.first(x)
    buffer[:, :2], buffer[:, 2:] = h[:, :2].relu(), h[:, 2:].relu()
    return m.second(buffer)


def changed_through_a_view(m, x):
    h = m.first(x).relu()
    h[:, 1:3].mul_(2.0)
    return m.second(h)


def looked_at(m, x):
    h = m.first(x).relu()
    return m.second(h) if h.sum() > 0 else x


class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.mean = nn.Parameter(torch.randn(4, 4))

    def forward(self, x):
        return F.linear(x, self.mean + torch.randn_like(self.mean))


def tied():
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 1))
    model[2].weight = model[0].weight
    return model


def gate(m, x):
    return m.second(m.first(x).relu() * m.gate(x).sigmoid())


# What cannot be answered, and the words that say why; the layer asked about is the first.
REFUSALS = {
    "where": (lambda: two(lambda m, x: m.second(torch.where((h := m.first(x)) > 0, h, 0.1 * h))), "aten.where"),
    "masked_fill": (lambda: two(lambda m, x: m.second(m.first(x).masked_fill(x[:, :1] > 0, 0.0))), "aten.masked_fill"),
    "softmax": (lambda: two(lambda m, x: m.second(m.first(x).softmax(1))), "aten._softmax"),
    "gate": (lambda: two(gate, gate=nn.Linear(3, 4)), "aten.mul joins different units, of 'first', 'gate'"),
    "sum_of_branches": (
        lambda: two(lambda m, x: m.second((m.first(x) + m.other(x)).relu()), other=nn.Linear(3, 4)),
        "aten.add joins different units, of 'first', 'other'",
    ),
    "mean_over_units": (lambda: two(lambda m, x: m.second(m.first(x).mean(1, True).expand(-1, 4))), "aten.mean mixes"),
    "mixed": (
        lambda: two(lambda m, x: m.second(m.first(x[:, None].expand(-1, 4, -1)).relu().mT)),
        "a column that 'second' (Linear) reads belongs to no single unit",
    ),
    "norm_after": (
        lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.LayerNorm(4), nn.Linear(4, 1)),
        "'2' (LayerNorm) normalises after the nonlinearity",
    ),
    "norm_of_two": (
        lambda: two(
            lambda m, x: m.second(m.norm(torch.cat([m.first(x)[:, :2], m.other(x)], 1)).relu()),
            norm=nn.LayerNorm(4),
            other=nn.Linear(3, 2),
        ),
        "'norm' (LayerNorm) normalises units of several layers together",
    ),
    "norm_with_other_gains": (
        lambda: nn.Sequential(
            nn.Unflatten(1, (1, 3)), nn.Conv1d(1, 2, 2), nn.LayerNorm(2), nn.ReLU(), nn.Conv1d(2, 1, 1)
        ),
        "'2' (LayerNorm) has no gain for each unit",
    ),
    "parameter": (
        lambda: two(lambda m, x: m.second(m.first(x).relu() * m.scale.weight[0]), scale=nn.Linear(4, 1)),
        "aten.mul with a parameter that belongs neither to the layer nor to its norm",
    ),
    "spectral_norm": (
        lambda: nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(3, 4)), nn.ReLU(), nn.Linear(4, 1)),
        "computed from other parameters",
    ),
    "spectral_norm_by_hook": (
        lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.utils.spectral_norm(nn.Linear(4, 1))),
        "the weight of '2' (Linear) is computed from other parameters",
    ),
    "tied": (tied, "a parameter of '0' (Linear) is used elsewhere as well"),
    "functional_weights": (
        lambda: two(lambda m, x: F.linear(m.first(x).relu(), m.first.weight.T)),
        "meets weights outside of a Linear or convolution",
    ),
    "own_layer": (
        lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU(), Noisy(), nn.ReLU(), nn.Linear(4, 1)),
        "feeds '2' (Noisy), which is not a plain Linear or convolution",
    ),
    "grouped": (
        lambda: nn.Sequential(nn.Unflatten(1, (3, 1)), nn.Conv1d(3, 4, 1), nn.ReLU(), nn.Conv1d(4, 4, 1, groups=2)),
        "feeds '3' (Conv1d), a grouped convolution",
    ),
    "transposed": (
        lambda: nn.Sequential(nn.Unflatten(1, (3, 1)), nn.Conv1d(3, 4, 1), nn.ReLU(), nn.ConvTranspose1d(4, 1, 1)),
        "feeds '3' (ConvTranspose1d), which is not a plain Linear or convolution",
    ),
    "shared_head": (
        lambda: two(lambda m, x: m.second(m.first(x).relu()) + m.second(m.other(x).relu()), other=nn.Linear(3, 4)),
        "'second' (Linear) is used 2 times in a forward pass",
    ),
    "two_nonlinearities": (
        lambda: two(lambda m, x: m.second((h := m.first(x)).relu()) + m.other(h.tanh()), other=nn.Linear(4, 1)),
        "it is read after different nonlinearities or norms: relu(x), tanh(x)",
    ),
    "halves": (
        lambda: Model(
            lambda m, x: m.left((h := m.first(x))[:, :2].relu()) + m.right(h[:, 2:].relu()),
            first=nn.Linear(3, 4),
            left=nn.Linear(2, 1),
            right=nn.Linear(2, 1),
        ),
        "no one tensor holds the values of all its units",
    ),
    "features_returned": (
        lambda: two(lambda m, x: {"q": m.second(h := m.first(x).relu()), "features": h}),
        "it is part of the model's output as well",
    ),
    "read_by_python": (lambda: two(looked_at), "is read into Python"),
    "buffer": (lambda: two(written_into_a_buffer), "written in place"),
    "view": (lambda: two(changed_through_a_view), "written in place"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_is_not_understood_is_not_separable(name):
    build, words = REFUSALS[name]
    layer = hidden_layers(build(), torch.randn(2, 3))[0]
    assert not layer.separable
    assert words in layer.reason


class OwnNorm(nn.RMSNorm):
    traced_as = "norm"

    def forward(self, x):
        shape = (-1, *[1] * (x.ndim - 2))
        return x / x.square().mean(tuple(range(1, x.ndim)), keepdim=True).sqrt() * self.weight.view(shape)


class ByWeight(nn.Module):
    """Divides by a norm of another module's weight."""

    traced_as = "scale"

    def __init__(self, layer, flatten=False):
        super().__init__()
        self.layer, self.flatten = (layer,), flatten

    def forward(self, x):
        x = x.flatten(1) if self.flatten else x
        return x / self.layer[0].weight.square().sum().sqrt()


def test_modules_that_say_what_they_are():
    first, second, head = nn.Conv2d(1, 4, 2), nn.Conv2d(4, 3, 2), nn.Linear(3, 2)
    model = nn.Sequential(
        *(ByWeight(first), first, OwnNorm(4), nn.ReLU(), ByWeight(second), second, nn.Tanh(), nn.Flatten()),
        *(ByWeight(head), head),
    )
    layers = hidden_layers(model, torch.randn(2, 1, 3, 3))
    assert [layer.producer for layer in layers] == [first, second]
    assert [layer.norm for layer in layers] == [model[2], None]
    assert [layer.activation for layer in layers] == ["relu", "tanh"]
    assert all(layer.separable for layer in layers)
    assert [[(m, owner.tolist()) for m, owner in layer.consumers] for layer in layers] == [
        [(second, [0, 1, 2, 3])],
        [(head, [0, 1, 2])],
    ]
    batch = torch.randn(5, 1, 3, 3)
    found = activations(model, batch)
    assert torch.equal(found["5"].post, model[:7](batch))
    assert torch.equal(found["1"].pre, model[:3](batch))


def test_who_says_nothing_or_what_is_not_so_is_not_believed():
    silent = type("Silent", (ByWeight,), {"traced_as": ""})
    head = nn.Linear(4, 2)
    layer = hidden_layers(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), silent(head), head), torch.randn(2, 3))[0]
    assert not layer.separable and "(Linear) is used elsewhere as well" in layer.reason
    head = nn.Linear(16, 2)
    model = nn.Sequential(nn.Conv2d(1, 4, 2), nn.ReLU(), ByWeight(head, flatten=True), head)
    layer = hidden_layers(model, torch.randn(2, 1, 3, 3))[0]
    assert not layer.separable and "another shape" in layer.reason


def test_fourier_features():
    model = two(lambda m, x: m.second(torch.cat([torch.sin(h := m.first(x)), torch.cos(h)], 1)), second=nn.Linear(8, 1))
    (layer,) = hidden_layers(model, torch.randn(2, 3))
    assert layer.activation == "fourier" and layer.separable
    assert [owner.tolist() for _, owner in layer.consumers] == [[0, 1, 2, 3] * 2]
    assert activations(model, torch.randn(5, 3))["first"].post.shape == (5, 8)
    pieces = {"first": nn.Conv2d(1, 4, 2), "second": nn.Linear(32, 1)}
    model = two(lambda m, x: m.second(torch.cat([torch.sin(h := m.first(x).flatten(1)), torch.cos(h)], 1)), **pieces)
    batch = torch.randn(5, 1, 3, 3)
    found, h = activations(model, batch)["first"].post, model.first(batch).flatten(2)
    assert torch.equal(found, torch.cat([torch.sin(h), torch.cos(h)], 1))


# Rarer steps on the way that are understood: [function, owner of the 4 or 8 columns of `second`]
STEPS = {
    "max_pool1d": (lambda h: F.max_pool1d(F.pad(h[:, :, None], (1, 1)), 3).relu().squeeze(2), [0, 1, 2, 3]),
    "detached": (lambda h: h.data.detach().relu().to(torch.float64).float(), [0, 1, 2, 3]),
    "inference": (lambda h: torch.inference_mode()(lambda x: x.flatten(1).relu())(h), [0, 1, 2, 3]),
    "scaled": (lambda h: (2.0 - h.relu() / 3.0) * torch.rand_like(h), [0, 1, 2, 3]),
    "chosen": (lambda h: h.relu()[:, torch.tensor([3, 0])].roll(1, 1), [0, 3]),
    "halves": (lambda h: torch.cat([h[:, 2:].relu(), h[:, :2].relu()], 1), [2, 3, 0, 1]),
    "interleaved": (lambda h: torch.stack([h.relu(), (-h).relu()], 2).flatten(1), [0, 0, 1, 1, 2, 2, 3, 3]),
    "joined_and_parted": (lambda h: torch.cat([torch.ones_like(h), h.relu()], 1)[:, 4:], [0, 1, 2, 3]),
    "with_constants": (lambda h: torch.cat([F.pad(h.relu(), (0, 1)), torch.ones(len(h), 1)], 1), [0, 1, 2, 3, -1, -1]),
    "larger": (lambda h: torch.max(h, torch.ones(4) / 9), [0, 1, 2, 3]),
    "twice": (lambda h: h.relu().repeat(1, 2), [0, 1, 2, 3] * 2),
    "normalised": (lambda h: F.layer_norm(h, (4,)).relu(), [0, 1, 2, 3]),
    "whitened": (lambda h: ((h - h.mean(0)) / h.amax(0)).tanh(), [0, 1, 2, 3]),
    "dropped": (lambda h: F.alpha_dropout(F.relu_(h), 0.5, training=True), [0, 1, 2, 3]),
    "parametric": (lambda h: F.prelu(h, torch.tensor([0.1, 0.2, 0.3, 0.4])), [0, 1, 2, 3]),
}


def test_a_part_without_units_is_nobodys():
    def function(m, x):
        both = torch.cat([x, m.first(x).relu()], 1)
        return m.second(both[:, 3:]) + m.raw(both[:, :3])

    (layer,) = hidden_layers(two(function, raw=nn.Linear(3, 1)), torch.randn(2, 3))
    assert layer.separable
    assert [owner.tolist() for _, owner in layer.consumers] == [[0, 1, 2, 3]]


@pytest.mark.parametrize("name", STEPS)
def test_other_steps(name):
    function, owner = STEPS[name]
    model = two(lambda m, x: m.second(function(m.first(x))), second=nn.Linear(len(owner), 1))
    (layer,) = hidden_layers(model, torch.randn(3, 3))
    assert (layer.separable, layer.reason) == (True, "")
    assert [(module, columns.tolist()) for module, columns in layer.consumers] == [(model.second, owner)]
    if name == "normalised":
        return  # its statistics move every column

    def columns(h):
        torch.manual_seed(2)
        return function(h.clone())

    h = torch.randn(16, 4)
    for unit in range(4):  # moving one unit moves its columns and no other
        moved = columns(torch.where(torch.arange(4) == unit, torch.randn(16, 1), h)) != columns(h)
        assert moved.any(0).tolist() == [column == unit for column in owner]


class Restless(nn.Module):
    """Draws, counts, keeps, and changes its input, its buffers and itself."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2), nn.ReLU(inplace=True), nn.Dropout(), nn.Flatten()
        )
        self.spectral = nn.utils.parametrizations.spectral_norm(nn.Linear(8, 4))
        self.head = nn.Linear(4, 1)
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("nothing", None)
        self.calls, self.fail = 0, False

    def forward(self, x):
        self.calls, self.last = self.calls + 1, x.mul_(0.5)
        self.count += 1
        h = self.spectral(self.layers(x)).relu()
        self.count = self.count + h.mean()
        if self.fail:
            raise KeyError("on purpose")
        return self.head(h) + torch.randn(())


def state_of(model):
    """Everything that must not change: tensors (as copies), and the rest as plain values."""
    named = dict((*model.named_parameters(), *model.named_buffers()))
    tensors = {name: value.clone() for name, value in model.state_dict().items()}
    tensors |= {f"{name}.grad": p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    tensors["random"] = torch.random.get_rng_state()
    plain = {name: (id(value), value._version, value.requires_grad) for name, value in named.items()}
    plain["modules"] = [
        (m.training, len(m._forward_hooks), len(m._forward_pre_hooks), [*vars(m)]) for m in model.modules()
    ]
    plain["torch"] = (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch._C._len_torch_dispatch_stack())
    plain["attention"] = torch.backends.mha.get_fastpath_enabled()
    return tensors, plain


def assert_same(before, after):
    torch.testing.assert_close(after, before, rtol=0, atol=0)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("fail", [False, True])
@pytest.mark.parametrize("context", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_nothing_is_touched(training, fail, context):
    model, images = Restless().train(training), torch.rand(5, 1, 3, 3)
    model(images.clone()).sum().backward()
    model.head.bias.requires_grad_(False)
    model.fail, calls, last = fail, model.calls, model.last
    before, pixels = state_of(model), images.clone()
    with context():
        images = images.clone()
        for measure in (hidden_layers, activations):
            if fail:
                with pytest.raises(KeyError, match="on purpose"):
                    measure(model, images)
            else:
                assert len(measure(model, images)) == 2
    assert_same(before[0], (after := state_of(model))[0])
    assert before[1] == after[1]
    assert torch.equal(images, pixels)
    assert (model.calls, model.last) == (calls, last)


def test_sb3s_draws_do_not_move_the_random_state():
    policy = ActorCriticPolicy(BOX, ACTIONS, lambda _: 1e-3, net_arch=[4])
    observations, before = torch.randn(3, 5), torch.random.get_rng_state()
    activations(policy, observations)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_backward_pass_may_be_pending():
    model, x = (
        nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(inplace=True), nn.Linear(4, 1)),
        torch.randn(5, 3),
    )
    loss = model(x).square().sum()
    activations(model, x)
    loss.backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    model(x).square().sum().backward()
    assert_same(gradients, [parameter.grad for parameter in model.parameters()])


def test_activations_are_what_goes_in_and_comes_out():
    torso = nn.Sequential(
        nn.Conv2d(1, 2, 2), nn.LayerNorm((2, 3, 3)), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(18, 4)
    )
    model = Model(lambda m, x: m.head(crelu(m.torso(x))), torso=torso, head=nn.Linear(8, 1))
    x = torch.randn(5, 1, 4, 4)
    values = activations(model, x)
    with torch.no_grad():
        normed = torso[1](torso[0](x))
        dense = torso[4](normed.relu().flatten(1))
    expected = {"torso.0": (normed, normed.relu()), "torso.4": (dense, torch.cat([dense.relu(), (-dense).relu()], 1))}
    assert_same(expected, {name: (value.pre, value.post) for name, value in values.items()})
    assert not any(value.pre.requires_grad or value.post.requires_grad for value in values.values())


def test_units_are_brought_to_dimension_1():
    conv, head, x = nn.Conv2d(1, 3, 2), nn.Linear(12, 1), torch.randn(2, 1, 3, 3)
    z = conv(x).detach().flatten(2)
    last = activations(
        Model(lambda m, x: m.head(m.conv(x).permute(0, 2, 3, 1).relu().flatten(1)), conv=conv, head=head), x
    )
    assert_same((z, z.relu()), (last["conv"].pre.flatten(2), last["conv"].post))
    flat = activations(Model(lambda m, x: m.head(m.conv(x).flatten(1).tanh()), conv=conv, head=head), x)
    assert_same(z.tanh(), flat["conv"].post)
    both = activations(Model(lambda m, x: m.head(crelu(m.conv(x).flatten(1))), conv=conv, head=nn.Linear(24, 1)), x)
    assert_same(torch.cat([z.relu(), (-z).relu()], 1), both["conv"].post)
    twice = activations(
        Model(lambda m, x: m.head(m.conv(x).repeat(1, 2, 1, 1).relu().flatten(1)), conv=conv, head=nn.Linear(24, 1)), x
    )
    assert_same(torch.cat([z.relu(), z.relu()], 2), twice["conv"].post)
    left = nn.Linear(4, 2)
    joined = Model(
        lambda m, x: m.head(torch.cat([m.left(x), m.right(x)], 1).relu()),
        left=left,
        right=nn.Linear(4, 3),
        head=nn.Linear(5, 1),
    )
    x = torch.randn(6, 4)
    assert_same(left(x).relu().detach(), activations(joined, x)["left"].post)
    sequence = activations(nn.Sequential(left, nn.ReLU(), nn.Linear(2, 1)), x.view(2, 3, 4))
    assert_same(left(x.view(2, 3, 4)).relu().mT.detach(), sequence["0"].post)


def test_layers_traced_once_serve_copies_other_batches_and_modes():
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(), nn.ReLU(), nn.Linear(4, 2), nn.Tanh(), nn.Linear(2, 1))
    layers = hidden_layers(model, torch.randn(2, 3))
    other, x = copy.deepcopy(model), torch.randn(7, 3)
    with torch.no_grad():
        other[0].bias.add_(1.0)
        other.eval()  # no dropout: another forward pass than the one traced
        expected = other[0](x)
    assert_same(expected, activations(other, x, layers=layers)["0"].pre)
    assert list(activations(model, x, layers=layers[1:])) == ["3"]
    assert activations(model, x, layers=[]) == {}


def test_calls_no_more_than_needed():
    model, calls = mlp(3, nn.ReLU()), []
    model.register_forward_hook(lambda *_: calls.append(1))
    layers = hidden_layers(model, torch.randn(2, 3))
    assert len(calls) == 1
    activations(model, torch.randn(4, 3), layers=layers)
    assert len(calls) == 2


def test_hooks_of_others_are_followed():
    model = mlp(3, nn.ReLU())
    model[0].register_forward_hook(lambda module, inputs, output: output.flip(1))
    (layer,) = hidden_layers(model, torch.randn(2, 3))
    assert layer.separable
    assert layer.consumers[0][1].tolist() == [3, 2, 1, 0]


def test_compiled_models_are_followed_as_written():
    model = torch.compile(mlp(3, nn.GELU(), norm=True), backend="eager")
    model(torch.randn(2, 3))
    (layer,) = hidden_layers(model, torch.randn(2, 3))
    assert (layer.name, layer.activation, layer.separable) == ("_orig_mod.0", "gelu", True)
    assert layer.norm is model.get_submodule("_orig_mod.1")


def test_dtypes_and_autocast():
    (double,) = hidden_layers(mlp(3, nn.ReLU()).double(), torch.randn(2, 3, dtype=torch.float64))
    with torch.autocast("cpu", torch.bfloat16):
        (mixed,) = hidden_layers(mlp(3, nn.ReLU()), torch.randn(2, 3))
    assert double.separable and mixed.separable


def test_models_without_hidden_layers():
    assert hidden_layers(nn.Linear(3, 1), torch.randn(2, 3)) == []
    assert activations(nn.Sequential(nn.Flatten(), nn.Linear(3, 1), nn.Tanh()), torch.randn(2, 3)) == {}


def test_lazy_layers_are_refused():
    model = nn.Sequential(nn.LazyLinear(3), nn.ReLU(), nn.Linear(3, 1))
    with pytest.raises(ValueError, match="lazy"):
        hidden_layers(model, torch.randn(2, 3))
    assert isinstance(model[0], nn.LazyLinear)


def test_vmap_is_refused():
    model = Model(lambda m, x: torch.vmap(m.layers)(x), layers=mlp(3, nn.ReLU()))
    with pytest.raises(NotImplementedError, match="vmap"):
        hidden_layers(model, torch.randn(2, 3))


@needs_cuda
def test_on_a_gpu_without_waiting_for_it():
    model = q_network(SMALL_IMAGE, NetworkConfig(width=8)).cuda()
    batch, before = images(4, 4, 36, 36).cuda(), torch.cuda.get_rng_state()
    layers = hidden_layers(model, batch)
    assert all(layer.separable and owner.is_cuda for layer in layers for _, owner in layer.consumers)
    activations(model, batch, layers=layers)
    torch.cuda.set_sync_debug_mode("error")
    try:
        values = activations(model, batch, layers=layers)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(value.post.is_cuda for value in values.values())
    assert torch.equal(torch.cuda.get_rng_state(), before)


def made_by_exec():
    """Where exec is given no __name__, classes and functions have no module (torch.fx makes such ones)."""
    names = {"nn": nn, "F": F}
    exec(
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.a, self.b = nn.Linear(5, 4), nn.Linear(4, 2)\n"
        "    def forward(self, x):\n"
        "        return self.b(F.relu(self.a(x)))\n",
        names,
    )
    return names["Net"]()


def named_from_nowhere():
    kind = type("Net", (nn.Sequential,), {"__module__": None})
    return kind(type("Layer", (nn.Linear,), {"__module__": None})(5, 4), nn.ReLU(), nn.Linear(4, 2))


NAMELESS = {
    "exec": made_by_exec,
    "type()": named_from_nowhere,
    "torch.fx": lambda: torch.fx.symbolic_trace(nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2))),
}


@pytest.mark.parametrize("build", NAMELESS.values(), ids=NAMELESS)
def test_classes_without_a_module_name(build):
    (layer,) = hidden_layers(build(), torch.randn(3, 5))
    assert (layer.units, layer.activation, layer.separable) == (4, "relu", True)
    assert layer.consumers[0][1].tolist() == [0, 1, 2, 3]


def test_a_linear_with_a_forward_from_nowhere_is_not_taken_for_torchs():
    def forward(self, x):
        return x @ self.weight.T * 2

    forward.__module__ = None
    layer = type("Twice", (nn.Linear,), {"forward": forward})(5, 4)
    (found,) = hidden_layers(nn.Sequential(layer, nn.ReLU(), nn.Linear(4, 2)), torch.randn(3, 5))
    assert not found.separable and "Twice is not a plain Linear" in found.reason
