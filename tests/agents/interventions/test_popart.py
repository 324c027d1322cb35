"""PopArt: outputs preserved, statistics as in the paper, faster learning of large targets, and where it is refused."""

import dataclasses

import numpy as np
import pytest
import torch

from agents import build_agent
from agents.heads import PopArtLayer, ValueHead
from agents.interventions import Surgery
from agents.interventions.l2_init import L2Init
from agents.interventions.popart import PopArt
from agents.networks import QNetwork, build_torso
from agents.probing import subject_of
from agents.randomness import Generators
from tests.agents.helpers import CPU, SMALL, VECTOR, NoiseWorld, drive, same_tree, snapshot
from tests.agents.interventions.test_weight_decay import AGENTS, goes_on_after_a_restart, learn, make

regressions = pytest.mark.parametrize("name", ["dqn", "ppo", "continuous ppo"])


class Subject:
    """A network with PopArt whose targets are made up."""

    def __init__(self, dtype=torch.float32, **parameters):
        generator = torch.Generator().manual_seed(0)
        torso = build_torso(VECTOR, SMALL, generator)
        drawn = generator.get_state()
        self.plain = snapshot(QNetwork(torso, 3, ValueHead(), "orthogonal", generator))
        self.head = PopArt(**parameters).value_head(ValueHead())
        self.network = QNetwork(torso, 3, self.head, "orthogonal", generator.set_state(drawn)).to(dtype)
        self.observations = torch.randn(16, 5, generator=generator)
        self.features = torch.rand(16, 16, generator=generator).to(dtype)
        self.adam = torch.optim.Adam(self.network.parameters(), fused=True)
        self.surgery = Surgery({"online": self.network}, self.adam, [], generator)

    def outputs(self):
        """Before any cast to float32 that the network makes of them."""
        with torch.no_grad():
            return self.network.head(self.features)

    def see(self, targets):
        layer = self.head.online
        self.head.meet(torch.as_tensor(targets).to(layer.mean.dtype), self.surgery)
        return layer


def batches(seed=0, updates=1000):
    """Targets whose mean and spread jump between 1 and 1e4."""
    rng, scale, mean = np.random.default_rng(seed), 1.0, 0.0
    for index in range(updates):
        if index % 50 == 0:
            scale, mean = 10.0 ** rng.uniform(0, 4), rng.normal() * 10.0 ** rng.uniform(0, 4)
        yield mean + scale * rng.standard_normal(32)


@pytest.mark.parametrize("step_size", [3e-4, 0.1, 1.0])
def test_outputs_are_preserved(step_size):
    subject = Subject(step_size=step_size)
    for targets in batches():
        before, head = subject.outputs(), subject.head.online
        magnitude = max(before.abs().max(), head.mean.abs(), head.scale)
        subject.see(targets)
        magnitude = max(magnitude, head.mean.abs(), head.scale)  # what float32 has to add up
        assert (subject.outputs() - before).abs().max() <= 1e-5 * magnitude
    exact, scales = Subject(torch.float64, step_size=step_size), []
    first = exact.outputs()
    for targets in batches():
        scales.append(exact.see(targets).scale.item())
    torch.testing.assert_close(exact.outputs(), first, rtol=1e-5, atol=1e-9)
    assert max(scales) > 1000


@pytest.mark.parametrize("step_size", [3e-4, 0.1, 1.0])
def test_statistics_are_the_papers_with_the_bias_corrected(step_size):
    subject, mu, nu = Subject(torch.float64, step_size=step_size), 0.0, 0.0
    for t, targets in enumerate(batches(updates=300), 1):
        mu = (1 - step_size) * mu + step_size * targets.mean()
        nu = (1 - step_size) * nu + step_size * (targets**2).mean()
        corrected = 1 - (1 - step_size) ** t
        head = subject.see(targets)
        assert head.mean.item() == pytest.approx(mu / corrected, rel=1e-9)
        assert head.scale.item() == pytest.approx((nu / corrected - (mu / corrected) ** 2) ** 0.5, rel=1e-6)


def test_the_first_batch_is_taken_over_and_the_scale_is_held_within_bounds():
    head = Subject().see([2.0, 4.0, 6.0])
    assert head.mean == 4
    assert head.scale.item() == pytest.approx((8 / 3) ** 0.5)
    assert Subject().see([7.0, 7.0]).scale.item() == pytest.approx(1e-4)
    assert Subject(torch.float64).see([-1e9, 1e9]).scale.item() == pytest.approx(1e6)


def test_a_large_mean_does_not_drown_the_spread():
    # mean 1e5, standard deviation 1: in float32 mean(g^2) - mean(g)^2 would be noise of several hundred
    subject, rng = Subject(step_size=0.01), np.random.default_rng(0)
    for _ in range(300):
        head = subject.see(1e5 + rng.standard_normal(64))
    assert head.scale.item() == pytest.approx(1.0, rel=0.05)


def test_a_fresh_head_is_the_plain_one_bit_for_bit():
    subject = Subject()
    weights = {name.replace("head.linear", "head"): tensor for name, tensor in subject.network.state_dict().items()}
    assert all(torch.equal(weights[name], tensor) for name, tensor in subject.plain.items())
    head = subject.network.head
    assert torch.equal(head(subject.features), head.linear(subject.features))
    assert head.linear.initializer.law == "orthogonal"


def test_the_layer_before_stays_separable_and_the_linear_is_its_consumer():
    for name, head in (("dqn", "head"), ("ppo", "value_head")):
        agent = make(name, PopArt())
        last = agent.learner.interventions.layers[-1]
        assert last.separable, last.reason
        assert getattr(agent.network, head).linear in [module for module, _ in last.consumers]


@regressions
def test_the_loss_is_that_of_standardised_values(name):
    agent = make(name, PopArt())
    head = agent.head.online
    head.mean.fill_(3.0), head.scale.fill_(2.0)
    outputs, targets = torch.tensor([1.0, 5.0]), torch.tensor([3.0, 9.0])
    if name == "dqn":
        loss = agent.head.loss(outputs, targets)  # Huber of -1 and -2
        assert loss.tolist() == [0.5, 1.5]
    else:
        assert agent.value_loss(outputs, {"returns": targets}).tolist() == [1.0, 4.0]


@pytest.mark.parametrize("name", ["dqn", "ppo"])
def test_targets_that_are_not_finite_and_a_latched_guard_change_nothing(name):
    agent = learn(name, PopArt())
    before = snapshot(agent.network)
    agent.head.meet(torch.tensor([1.0, float("nan")]), agent.learner.surgery)
    agent.head.meet(torch.tensor([1.0, float("inf")]), agent.learner.surgery)
    agent.learner.optimization.adam.found_inf = torch.ones(())
    agent.head.meet(torch.tensor([1.0, 2.0]), agent.learner.surgery)
    assert same_tree(snapshot(agent.network), before)
    agent.learner.optimization.adam.found_inf = torch.zeros(())
    agent.head.meet(torch.tensor([1.0, 2.0]), agent.learner.surgery)
    assert not same_tree(snapshot(agent.network), before)


def test_moments_stay():
    subject = Subject()
    subject.network(subject.observations).sum().backward()
    subject.adam.step()
    before = {n: snapshot(subject.adam.state[p]) for n, p in subject.network.named_parameters()}
    subject.see([10.0, 30.0])
    assert same_tree(before, {n: snapshot(subject.adam.state[p]) for n, p in subject.network.named_parameters()})


def test_the_target_network_keeps_its_own_statistics_until_the_copy():
    agent, world, kept = make("dqn", PopArt()), NoiseWorld(VECTOR, 2), None
    for _ in range(30):
        drive(agent, world, 1)
        steps, target = agent.clock.gradient_steps, snapshot(agent.learner.target)
        if steps % 5 == 0:
            assert same_tree(target, snapshot(agent.network))
        else:
            assert same_tree(target, kept)
            assert not torch.equal(target["head.mean"], agent.network.head.mean)
        kept = target
    assert agent.clock.gradient_steps > 15


class LargeRewards(NoiseWorld):
    """Rewards of mean 1000 that depend on the observation."""

    def step(self, actions):
        transitions = super().step(actions)
        return transitions._replace(rewards=1000 + 5 * transitions.observations[:, 0].astype(np.float64))


def test_large_targets_are_learned_sooner():
    config = dataclasses.replace(AGENTS["dqn"][0], gamma=0.0, learning_rate=1e-3, replay_ratio=1.0)

    def error(*interventions):
        agent = build_agent(config, VECTOR, 2, Generators(0), CPU, interventions=interventions)
        drive(agent, LargeRewards(VECTOR, 2), 300)
        batch = agent.replay.sample(64)
        with torch.no_grad():
            values = agent.network(batch.observations)[torch.arange(64), batch.actions]
        return (values - batch.rewards).abs().mean().item()

    assert error(PopArt()) < error() / 2


@regressions
def test_it_goes_on_after_a_restart(name):
    assert goes_on_after_a_restart(name, PopArt(), L2Init())


@regressions
def test_probes_fresh_networks_are_wrapped_as_well(name):
    agent = learn(name, PopArt())
    fresh = subject_of(agent, Generators(0)).fresh()
    head = "head" if name == "dqn" else "value_head"
    made, learned = getattr(fresh, head), getattr(agent.network, head)
    assert isinstance(made, PopArtLayer) and made.mean == 0 and made.scale == 1
    assert learned is agent.head.online and learned.mean != 0


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("c51", {}, "popart: needs a value head that is learned by regression"),
        ("dqn", {"loss": "hl_gauss"}, "loss = 'hl_gauss': must be huber or mse beside popart"),
        ("dqn", {"tau": 0.5}, "tau = 0.5: must be 1 beside popart"),
        ("ppo", {"value_loss": "hl_gauss"}, "value_loss = 'hl_gauss': must be mse beside popart"),
        ("ppo", {"clip_vloss": True}, "clip_vloss = True: must be off beside popart"),
    ],
)
def test_heads_that_it_cannot_serve_are_refused(name, settings, message):
    config, spaces = AGENTS[name]
    with pytest.raises(ValueError, match=message):
        build_agent(dataclasses.replace(config, **settings), spaces, 2, Generators(0), CPU, interventions=[PopArt()])


def test_bad_parameters_and_other_networks_are_refused():
    with pytest.raises(ValueError, match=r"popart\.step_size = 0: must be in \(0, 1\]"):
        PopArt(step_size=0)
    with pytest.raises(ValueError, match=r"popart\.only = 'actor': must be all or critic"):
        PopArt(only="actor")
