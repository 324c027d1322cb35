"""A gradient step that is followed gives the numbers of the step as it stands, to the bit."""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor

from agents import build_agent, followed_step, traced
from agents.agent import Agent
from agents.config import NetworkConfig
from agents.guard import NonFiniteError
from agents.interventions import NAMES, L2Init, intervention_class
from agents.ppo_config import PPOConfig
from agents.randomness import Generators
from agents.replay import Batch, channels_last
from agents.schedule import in_steps
from agents.transitions import Spaces
from agents.value_config import C51Config, DQNConfig
from tests.agents.helpers import ATARI
from tests.agents.test_stacking import AGENTS, DISCRETE, INTERVENTIONS, MLP, learns

STEPS = 24
IMAGES = Spaces((1, 28, 28), np.dtype(np.uint8), "discrete", 10)
WIDE = NetworkConfig(torso="mlp", width=512, depth=2)
FOLLOWED = ("none", "norm and decay", "redo", "cbp", "reset", "local moments", "doubled", "pulled")


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> list:
    """Steps are followed from the fourth on; what calls the operations."""
    calling, without_python = [], traced._without_python

    def noted(*given: object) -> object:
        calling.append(without_python(*given))
        return calling[-1]

    monkeypatch.setattr(followed_step, "WARM_UP", 3)
    monkeypatch.setattr(traced, "_without_python", noted)
    return calling


def made(agent: str, interventions: str = "none", execution: str = "auto", **changes: object) -> Agent:
    config, spaces = AGENTS[agent]
    config = in_steps(type(config)(**{**vars(config), **changes}), 1000)
    chosen = [intervention_class(name)(**given) for name, given in INTERVENTIONS[interventions].items()]
    how = {"interventions": chosen, "execution": execution}
    one = build_agent(config, spaces, 1, Generators(0), torch.device("cpu"), **how)
    if one.learner.surgery is not None:
        shown = torch.Generator().manual_seed(0)
        one.learner.surgery._sample = lambda n: torch.randn(n, *spaces.observation_shape, generator=shown)
    return one


def equal(one: Agent, other: Agent) -> None:
    """Weights, moments and step counts."""
    mine, theirs = one.learner.state_dict(), other.learner.state_dict()
    for part in ("network", "target_network"):
        for name in theirs.get(part, ()):
            assert torch.equal(mine[part][name], theirs[part][name]), name
    adam = mine["optimization"]["adam"]["state"], theirs["optimization"]["adam"]["state"]
    for place in adam[1]:
        assert all(torch.equal(adam[0][place][name], adam[1][place][name]) for name in adam[1][place])


@pytest.mark.parametrize(
    ("agent", "interventions"),
    [
        pytest.param(agent, name, marks=() if name == "none" or agent == "ppo, continuous" else pytest.mark.exhaustive)
        for agent in AGENTS
        for name in FOLLOWED
    ],
)
def test_equal_to_the_step_as_it_stands(agent: str, interventions: str, soon: list) -> None:
    eager, followed = made(agent, interventions, "eager"), made(agent, interventions)
    expected, found = learns(eager, 0, STEPS), learns(followed, 0, STEPS)
    assert [run.__name__ for run in soon] == ["run"]  # once, and not from Python
    equal(followed, eager)
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in INTERVENTIONS])
def test_equal_with_every_intervention(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"when": "at gradient step 9"} if name == "plasticity_injection" else {}
    monkeypatch.setitem(INTERVENTIONS, name, {name: given})
    eager, followed = made("dqn, mse", name, "eager"), made("dqn, mse", name)
    expected, found = learns(eager, 0, STEPS), learns(followed, 0, STEPS)
    equal(followed, eager)
    assert all(torch.equal(found[-1][metric], expected[-1][metric]) for metric in expected[-1])


@pytest.mark.parametrize(
    "config",
    [
        DQNConfig(network=WIDE, buffer_size=64, loss="huber"),
        DQNConfig(network=WIDE, buffer_size=64, loss="mse", double=True),
        C51Config(network=WIDE, buffer_size=64),
    ],
)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_equal_on_pixels_and_in_wide_layers(config: DQNConfig | C51Config, precision: str, soon: list) -> None:
    pair = []
    for execution in ("eager", "auto"):
        how = {"execution": execution, "precision": precision}
        agent = build_agent(in_steps(config, 1000), IMAGES, 1, Generators(0), torch.device("cpu"), **how)
        generator = torch.Generator().manual_seed(1)
        for step in range(24):
            pixels = torch.randint(256, (2, 32, 1, 28, 28), dtype=torch.uint8, generator=generator)
            actions = torch.randint(10, (32,), generator=generator)
            rewards = torch.randn(32, generator=generator)
            agent.learner.update(agent.learn, Batch(pixels[0], actions, rewards, torch.full((32,), 0.9), pixels[1]))
            if step % 8 == 7:
                agent.learner.sync_target()
        pair.append(agent)
    assert len(soon) == 1
    equal(*pair)


def test_hooks_that_come_later_are_called(soon: list) -> None:
    followed, eager = made("dqn, mse"), made("dqn, mse", execution="eager")
    network, called = followed.network, []
    learns(followed, 0, 8)
    hooks = (
        network.head.register_forward_hook(lambda *_: called.append("forward")),
        followed.learner.target.head.register_forward_pre_hook(lambda *_: called.append("target")),
        network.head.register_full_backward_hook(lambda *_: called.append("backward")),
        network.head.bias.register_hook(lambda _: called.append("gradient")),
        network.head.bias.register_post_accumulate_grad_hook(lambda _: called.append("grad")),
    )
    for hook in hooks:  # each by itself
        learns(followed, 1, 1)
        hook.remove()
    learns(followed, 1, 1)
    counts = {"forward": 1, "target": 2, "backward": 3, "gradient": 4, "grad": 5}
    assert {name: called.count(name) for name in called} == counts
    learns(eager, 0, 8)
    for _ in range(6):
        learns(eager, 1, 1)
    equal(followed, eager)
    assert len(soon) == 1


def test_what_is_not_finite_is_refused_as_it_would_be() -> None:
    followed, eager = made("dqn, mse"), made("dqn, mse", execution="eager")
    for agent in (followed, eager):
        learns(agent, 0, 10)
        with pytest.raises(NonFiniteError, match="loss is not finite at gradient step 15"):
            learns(agent, 1, 10, spoilt=4)
        assert agent.clock.gradient_steps == 14
    equal(followed, eager)


def test_goes_on_from_a_state_that_is_loaded_and_in_a_copy(soon: list) -> None:
    followed, eager, other = made("c51"), made("c51", execution="eager"), made("c51")
    for agent in (followed, eager):
        learns(agent, 0, 10)
    learns(other, 5, 7)
    other.load_state_dict(copy.deepcopy(followed.state_dict()))
    again = copy.deepcopy(followed)
    for agent in (followed, eager, other, again):
        learns(agent, 3, 10)
    for agent in (followed, other, again):
        equal(agent, eager)
    assert len(soon) == 4  # a copy's tensors and loaded ones lie elsewhere


def test_batches_of_each_size_and_frozen_layers_are_followed_for_themselves(soon: list) -> None:
    pair = made("dqn, mse"), made("dqn, mse", execution="eager")
    for agent in pair:
        generator, head = torch.Generator().manual_seed(2), agent.network.head
        for step in range(40):
            size = 8 if step % 2 else 5

            def normal(*shape: int, generator: torch.Generator = generator) -> Tensor:
                return torch.randn(*shape, generator=generator)

            head.weight.requires_grad_(step // 10 % 2 == 0)  # and learns again
            actions = torch.randint(3, (size,), generator=generator)
            batch = Batch(normal(size, 7), actions, normal(size), torch.full((size,), 0.9), normal(size, 7))
            agent.learner.update(agent.learn, batch)
    assert len(soon) == 4
    equal(*pair)


def on_frames(config: DQNConfig | C51Config | PPOConfig, **how: object) -> tuple[Agent, list[dict[str, Tensor]]]:
    """(An agent after ten gradient steps on noise, what they gave)."""
    agent = build_agent(in_steps(config, 1000), ATARI, 1, Generators(0), torch.device("cpu"), **how)
    generator, found = torch.Generator().manual_seed(1), []
    for step in range(10):
        frames = channels_last(torch.randint(256, (16, 4, 84, 84), dtype=torch.uint8, generator=generator))
        actions, rewards = torch.randint(6, (8,), generator=generator), torch.randn(8, generator=generator)
        if isinstance(config, PPOConfig):
            batch = {"observations": frames[:8], "actions": actions, "log_probs": -rewards.abs()}
            batch |= {"advantages": rewards, "returns": rewards, "values": rewards / 2}
        else:
            batch = Batch(frames[:8], actions, rewards, torch.full((8,), 0.9), frames[8:])
        found.append(agent.learner.update(agent.learn, batch))
        if step == 6 and agent.learner.target is not None:
            agent.learner.sync_target()
    return agent, found


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("config", "interventions"),
    [
        (DQNConfig(buffer_size=64), []),
        (DQNConfig(buffer_size=64, double=True, network=NetworkConfig(padding="same")), ["l2_init", "cbp"]),
        (C51Config(buffer_size=64), ["crelu"]),
        (DQNConfig(buffer_size=64), ["layer_norm", "redo"]),
        (PPOConfig(rollout_steps=16, num_minibatches=2), ["spectral_norm"]),
    ],
)
def test_equal_with_convolutions(
    config: DQNConfig | C51Config | PPOConfig, interventions: list[str], precision: str, soon: list
) -> None:
    how = {"precision": precision, "interventions": interventions}
    eager, expected = on_frames(config, execution="eager", **how)
    followed, found = on_frames(config, execution="auto", **how)
    assert [run.__name__ for run in soon] == ["run"]
    equal(followed, eager)
    assert all(torch.equal(found[-1][name], expected[-1][name]) for name in expected[-1])


def test_a_penalty_that_comes_and_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = [made("dqn, mse", "pulled", execution) for execution in ("eager", "auto")]
    penalty, at = L2Init.penalty, {id(agent.learner.interventions.members[0]): agent.clock for agent in pair}
    monkeypatch.setattr(
        L2Init, "penalty", lambda self, forward: penalty(self, forward) if at[id(self)].gradient_steps % 3 else None
    )
    expected, found = (learns(agent, 0, STEPS) for agent in pair)
    equal(*pair)
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_penalties_of_activity_a_popart_head_and_dropout_are_not_followed() -> None:
    cpu, small = torch.device("cpu"), DQNConfig(buffer_size=64, network=MLP, loss="mse")
    with_one = [
        build_agent(in_steps(small, 1000), DISCRETE, 1, Generators(0), cpu, interventions=[name])
        for name in ("infer", "popart", "dropout")
    ]
    said = [agent.learner.run_step.__self__.why_not for agent in with_one]
    words = (
        "the penalty of infer reads the forward pass",
        "before its gradient",
        "in the forward pass",
    )
    assert [word in sentence for word, sentence in zip(words, said, strict=True)] == [True] * 3
