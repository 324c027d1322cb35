"""Plasticity injection: nothing shows until the birth, nothing shows at it, and then the newborn learns."""

import copy
import re

import pytest
import torch
from torch import nn

from agents import DQNConfig, PPOConfig
from agents.interventions.batch_norm import BatchNorm
from agents.interventions.dropout import Dropout
from agents.interventions.layer_norm import LayerNorm
from agents.interventions.lifecycle import check_interventions
from agents.interventions.nap import NaP
from agents.interventions.plasticity_injection import InjectedHead, Injection, PlasticityInjection
from agents.interventions.popart import PopArt
from agents.interventions.reset import Reset
from agents.interventions.spectral_norm import SpectralNorm
from agents.interventions.weight_clip import WeightClip
from plasticity_probes.units import activations
from tests.agents.helpers import VECTOR, NoiseWorld, drive, same_tree, snapshot
from tests.agents.interventions.whole import AGENTS, agent_with, continues_alike, driven, operated

every_agent = pytest.mark.parametrize("kind", AGENTS)
NEVER = 10**9


def observations(agent, n=6):
    generator = torch.Generator().manual_seed(5)
    shape = (n, *agent.spaces.observation_shape)
    if agent.spaces.is_image:
        return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    return torch.randn(shape, generator=generator)


def outputs(agent, network=None):
    with torch.no_grad():
        found = (network or agent.network)(observations(agent))
    return (
        torch.cat([part.flatten(1) if part.ndim > 1 else part[:, None] for part in found], 1)
        if isinstance(found, tuple)
        else found
    )


def injections(agent):
    return [module for module in agent.network.modules() if isinstance(module, Injection)]


def parts(agent, which):
    return [parameter for injection in injections(agent) for parameter in getattr(injection, which).parameters()]


def plain_name(name, home):
    """What a parameter is called without injection; None for those that there are not."""
    return (
        None
        if re.search(r"\.(a|b)\.", name)
        else name.replace(".encoder", "").replace("torso.live", f"torso.{home}").replace("head.live", "head")
    )


@every_agent
@pytest.mark.parametrize("last", [None, 1, 3])
def test_until_the_birth_the_run_is_the_run_without_it(kind, last):
    # the live network is drawn first, so that it starts as without; bit-identical through training and target syncs
    agent, plain = driven(kind, PlasticityInjection(last=last, when=f"at step {NEVER}")), driven(kind)
    home = "dense" if kind == "c51 on images" else "layers"  # where a torso keeps its dense layers
    own = {plain_name(name, home): p for name, p in agent.network.named_parameters()}
    dense = dict(plain.network.named_parameters())
    assert own.keys() == {*dense, None}
    assert all(torch.equal(own[name], dense[name]) for name in dense)
    assert all(torch.equal(a, b) for a, b in zip(parts(agent, "a"), parts(agent, "b"), strict=True))
    assert torch.equal(outputs(agent), outputs(plain))


@every_agent
def test_a_and_b_are_one_fresh_draw_by_each_layers_own_law(kind):
    agent, other = (
        agent_with(kind, PlasticityInjection(when="at task changes")),
        agent_with(kind, PlasticityInjection(when=f"at gradient step {NEVER}"), seed=1),
    )
    for injection, elsewhere in zip(injections(agent), injections(other), strict=True):
        for live, a, b, stranger in zip(
            *(part.modules() for part in (injection.live, injection.a, injection.b, elsewhere.a)), strict=True
        ):
            if not isinstance(live, nn.Linear):
                continue
            assert torch.equal(a.weight, b.weight) and torch.equal(a.bias, b.bias) and a.weight is not b.weight
            assert not torch.equal(live.weight, a.weight) and not torch.equal(stranger.weight, a.weight)
            assert a.initializer == live.initializer
            if a.initializer.law == "uniform":
                assert 0.5 * a.initializer.bound < a.weight.abs().max() <= a.initializer.bound
            else:
                singular = torch.linalg.svdvals(a.weight)
                torch.testing.assert_close(singular, torch.full_like(singular, a.initializer.gain))


@every_agent
def test_the_birth(kind):
    agent = driven(kind, PlasticityInjection(when="at task changes"))
    adam, world = agent.learner.optimization.adam, NoiseWorld(AGENTS[kind][1], 2, seed=7)
    assert not any(p.requires_grad for p in parts(agent, "a") + parts(agent, "b"))
    assert all(p.requires_grad for p in parts(agent, "live"))
    in_optimizer = {id(p) for group in adam.param_groups for p in group["params"]}
    assert in_optimizer == {id(p) for p in agent.network.parameters()}
    before, states = snapshot(agent.network), copy.deepcopy(adam.state_dict())
    expected = outputs(agent)
    target = getattr(agent, "target_network", None)
    expected_target = None if target is None else outputs(agent, target)
    agent.on_task_change()
    assert torch.equal(outputs(agent), expected)
    assert target is None or torch.equal(outputs(agent, target), expected_target)
    assert target is None or not any(p.requires_grad for p in target.parameters())
    assert same_tree(before, agent.network.state_dict()) and same_tree(states, adam.state_dict())
    assert all(p.grad is None and not p.requires_grad for p in parts(agent, "live") + parts(agent, "b"))
    born = agent.learner.interventions.surgeries()
    assert sum(count for (_, what, _), count in born.items() if what == "born") == len(injections(agent))
    encoder = {
        n: p
        for n, p in agent.network.named_parameters()
        if p.requires_grad and id(p) not in set(map(id, parts(agent, "a")))
    }
    held = [p.detach().clone() for p in parts(agent, "live") + parts(agent, "b")]
    moved = {name: p.detach().clone() for name, p in [*encoder.items(), *enumerate(parts(agent, "a"))]}
    drive(agent, world, 12)
    assert all(map(torch.equal, held, parts(agent, "live") + parts(agent, "b")))
    assert all(not torch.equal(p, moved[name]) for name, p in [*encoder.items(), *enumerate(parts(agent, "a"))])
    steps = agent.clock.gradient_steps - int(max(s["step"] for s in states["state"].values()))
    assert steps > 2 and all(adam.state[p]["step"] == steps for p in parts(agent, "a"))
    agent.on_task_change()  # once a run
    assert ("plasticity_injection", "born") not in {key[:2] for key in agent.learner.interventions.surgeries()}


def test_gradients_reach_the_encoder_through_live_and_b_alike():
    agent = agent_with("dqn", PlasticityInjection(when="at task changes"))
    agent.on_task_change()
    network, weight = agent.network, agent.network.torso.encoder.layers.dense1.weight
    for which in ("live", "a", "b"):
        silent = copy.deepcopy(network)
        for other in {"live", "a", "b"} - {which}:
            for parameter in getattr(silent.head, other).parameters():
                parameter.data.zero_()
        silent(observations(agent)).sum().backward()
        assert silent.torso.encoder.layers.dense1.weight.grad.any(), which
        assert weight.grad is None


@pytest.mark.parametrize(
    ("time", "expected"),
    [("at gradient step 9", 9), ("at step 31", 15), ("at step 10", 1), (f"at step {NEVER}", None)],
)
def test_the_birth_comes_at_its_time(time, expected):
    agent, world = agent_with("dqn", PlasticityInjection(when=time)), NoiseWorld(VECTOR, 2)
    found = None
    for _ in range(40):
        agent.observe(world.step(agent.act(world.observations)))
        while agent.update_due():
            agent.update()
            if agent.learner.interventions.members[0].born and found is None:
                found = agent.clock.gradient_steps
    assert agent.clock.gradient_steps > 20 and found == expected
    agent.on_task_change()
    assert agent.learner.interventions.members[0].born == (expected is not None)


@every_agent
@pytest.mark.parametrize("others", [[], [LayerNorm()]], ids=["", "layer norm"])
def test_all_hidden_layers_are_known_captured_and_separable(kind, others):
    agent = agent_with(kind, *others, PlasticityInjection(when=f"at gradient step {NEVER}"))
    plain = agent_with(kind, *others, LayerNorm() if not others else NaP())
    layers = {layer.name: layer for layer in agent.learner.interventions.layers}
    assert all(layer.separable for layer in layers.values())
    inside = [name for name in layers if any(f".{part}." in name for part in ("live", "a", "b"))]
    assert len(layers) == len(plain.learner.interventions.layers) + 2 * len(inside) // 3
    captured = agent.learner.interventions.capture(agent.network, observations(agent))
    truth = activations(agent.network, observations(agent))
    assert captured.keys() == layers.keys()
    for name, (pre, post) in captured.items():
        torch.testing.assert_close(pre, truth[name].pre)
        torch.testing.assert_close(post, truth[name].post)


def test_what_is_injected():
    default = {
        kind: [
            name
            for name, m in agent_with(
                kind, PlasticityInjection(when=f"at gradient step {NEVER}")
            ).network.named_modules()
            if isinstance(m, nn.Linear)
        ]
        for kind in AGENTS
    }
    assert default["dqn"] == [
        "torso.encoder.layers.dense1",
        "torso.live.dense2",
        "torso.a.dense2",
        "torso.b.dense2",
        "head.live",
        "head.a",
        "head.b",
    ]
    assert [name for name in default["c51 on images"] if "live" in name] == [
        "torso.live.dense1",
        "torso.live.dense2",
        "head.live",
    ]
    heads = agent_with("ppo", PlasticityInjection(last=1, when=f"at step {NEVER}")).network
    assert [name for name, m in heads.named_modules() if isinstance(m, Injection)] == ["policy_head", "value_head"]
    actor = agent_with("ppo, two torsos", PlasticityInjection(only="actor", when=f"at step {NEVER}")).network
    assert isinstance(actor.policy_head, InjectedHead) and isinstance(actor.value_head, nn.Linear)
    for kind in AGENTS:
        network = agent_with(kind, PlasticityInjection(when=f"at gradient step {NEVER}")).network
        for name, _ in network.named_parameters():
            if ".live." in name or ".a." in name or ".b." in name:
                assert (network.part_of(name) == "encoder") == ("torso" in name and kind != "ppo, two torsos")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"last": 0}, "last = 0: must be >= 1"),
        ({"when": "at step 0"}, "when = 'at step 0': must be every N gradient steps"),
        ({"when": "every 5 steps"}, "when = 'every 5 steps': must be at step N, at gradient step N or at task changes"),
        ({"when": "at target syncs"}, "when = 'at target syncs': must be at step N, at gradient step N or at task ch"),
    ],
)
def test_wrong_settings_are_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=rf"plasticity_injection\.{message}"):
        PlasticityInjection(**settings)


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="last = 4: must be <= 3, the Linear layers there are"):
        agent_with("dqn", PlasticityInjection(last=4, when=f"at step {NEVER}"))
    for config, part in ((DQNConfig(), "critic"), (PPOConfig(), "actor"), (PPOConfig(), "encoder")):
        with pytest.raises(ValueError, match=rf"only = '{part}': must be all: the torso is injected with every head"):
            check_interventions([PlasticityInjection(only=part, when=f"at step {NEVER}")], config)
    for other in (Dropout(rate=0.5), BatchNorm()):
        with pytest.raises(
            ValueError, match=f"plasticity_injection and {other.name} cannot work together, but with last"
        ):
            agent_with("dqn", other, PlasticityInjection(when=f"at gradient step {NEVER}"))
        agent_with("dqn", other, PlasticityInjection(last=1, when=f"at step {NEVER}"))
    with pytest.raises(ValueError, match="cannot work together"):
        check_interventions([PopArt(), PlasticityInjection(when=f"at gradient step {NEVER}")], DQNConfig())
    with pytest.raises(ValueError, match="nothing was injected"):
        operated("sb3 dqn", PlasticityInjection(when=f"at gradient step {NEVER}"))


@every_agent
def test_together_with_others(kind):
    others = [LayerNorm(), Reset(when="every 9 gradient steps", last=2), WeightClip(kappa=2.0), NaP()]
    agent = driven(kind, *others, PlasticityInjection(when="at gradient step 10"), ticks=30)
    assert agent.clock.gradient_steps > 20 and agent.learner.interventions.members[-1].born
    assert agent.clock.gradient_steps % 9  # the step after a reset scales what it drew
    whats = {(who, what) for who, what, _ in agent.learner.interventions.surgeries()}
    assert whats >= {
        ("nap", "projected"),
        ("reset", "reset"),
        ("weight_clip", "projected"),
        ("plasticity_injection", "born"),
    }
    assert all(p.isfinite().all() for p in agent.network.parameters())
    for layer, norm in zip(
        agent.learner.interventions.layers, agent.learner.interventions.members[3].norms, strict=True
    ):
        torch.testing.assert_close(layer.producer.weight.detach().norm(), norm, rtol=1e-5, atol=0)


def test_spectrally_normed_layers_go_with_theirs():
    agent = agent_with("dqn", SpectralNorm(hidden_layers=2), PlasticityInjection(when=f"at step {NEVER}"))
    assert [name for name, _ in agent.network.torso.live.named_children()] == ["spectral2", "dense2", "activation2"]
    for part in ("live", "a", "b"):
        branch = getattr(agent.network.torso, part)
        assert branch.spectral2.layer is branch.dense2
        sigma = torch.linalg.svdvals(branch.dense2.weight)[0]
        torch.testing.assert_close(branch.spectral2.sigma(), sigma, rtol=0.05, atol=0)
    plain = drive(agent_with("dqn", SpectralNorm(hidden_layers=2)), NoiseWorld(VECTOR, 2), 30)
    assert torch.equal(outputs(drive(agent, NoiseWorld(VECTOR, 2), 30)), outputs(plain))


@pytest.mark.parametrize("time", ["at gradient step 5", "at gradient step 8", "at task changes"])
def test_a_restored_run_goes_on_alike(time):
    assert continues_alike("dqn", lambda: [PlasticityInjection(when=time)])


def test_a_restored_run_freezes_what_was_frozen():
    born = driven("dqn", PlasticityInjection(when="at gradient step 3"))
    other = agent_with("dqn", PlasticityInjection(when="at gradient step 3"))
    for state, a_learns in (
        (born.state_dict(), True),
        (agent_with("dqn", PlasticityInjection(when=f"at gradient step {NEVER}")).state_dict(), False),
    ):
        other.load_state_dict(state)
        assert all(p.requires_grad is a_learns for p in parts(other, "a"))
        assert all(p.requires_grad is not a_learns for p in parts(other, "live"))
        assert not any(p.requires_grad for p in parts(other, "b"))


def test_without_a_time_for_the_birth_it_is_refused():
    with pytest.raises(
        ValueError, match=r"plasticity_injection\.when = None: must be given, the time of the birth: at"
    ):
        check_interventions([PlasticityInjection()], DQNConfig())
    with pytest.raises(ValueError, match="when = None: must be given, the time of the birth"):
        operated("sb3 dqn", PlasticityInjection())
