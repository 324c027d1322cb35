"""ReDo: who is dormant, when, and what becomes of them."""

import numpy as np
import pytest
import torch
from scipy import stats

from agents import C51Config, DQNConfig, PPOConfig, build_agent
from agents.clock import Clock
from agents.config import NetworkConfig
from agents.interventions import Intervention, LayerNorm, ReDo
from agents.interventions.redo import scores
from agents.randomness import Generators
from plasticity_probes.units import activations
from tests.agents.helpers import CONTINUOUS, CPU, STACK, VECTOR, NoiseWorld, drive, same_tree
from tests.agents.interventions.models import MODELS, Patient, assert_same, frozen


def captured_in(network, observations):
    """What an agent's own forward pass gives, by the probes' way of following a network."""
    return {name: (values.pre, values.post) for name, values in activations(network, observations).items()}


class Listener(Intervention):
    name = "listener"

    def __init__(self):
        self.heard = {}

    def on_replaced(self, layer, units):
        self.heard[layer.name] = units.mask.clone()


def patient_with(kind, **settings):
    """A network with ReDo, which samples the whole batch at every gradient step."""
    redo, listener = ReDo(**{"when": "every gradient step", **settings}), Listener()
    patient = Patient(*MODELS[kind], interventions=[redo, listener])
    patient.surgery._sample, patient.surgery._capture = (lambda n: patient.batch), captured_in
    redo.layers = tuple(patient.layers)
    redo.attach({"online": patient.network}, Generators(0))
    patient.redo, patient.listener = redo, listener
    patient.recycle = lambda: redo.intervene(patient.surgery, Clock())
    return patient


def silence(patient, units):
    """Make these units (index lists by layer) say 0 on everything, whatever they are given."""
    with torch.no_grad():
        for layer in patient.separable():
            for unit in units.get(layer.name, ()):
                layer.producer.weight[unit] = 0
                if layer.producer.bias is not None:
                    layer.producer.bias[unit] = -1 if layer.activation == "relu" else 0
                if layer.norm is not None and getattr(layer.norm, "weight", None) is not None:
                    layer.norm.weight[unit] = 0
                    if getattr(layer.norm, "bias", None) is not None:
                        layer.norm.bias[unit] = 0


def some(patient):
    return {layer.name: [0, layer.units - 1] for layer in patient.separable()}


@pytest.mark.parametrize("kind", MODELS)
def test_scores_unit_by_unit(kind):
    patient = patient_with(kind)
    found = activations(patient.network, patient.batch)
    for layer in patient.separable():
        post = found[layer.name].post.double().numpy()
        sizes = []
        for unit in range(layer.units):
            mine = [np.abs(post[:, c]).mean() for c in range(post.shape[1]) if c % layer.units == unit]
            sizes.append(np.mean(mine))
        expected = np.array(sizes) / np.mean(sizes)
        np.testing.assert_allclose(scores(found[layer.name].post, layer.units).numpy(), expected, rtol=1e-4)
        assert expected.mean() == pytest.approx(1)


def test_scores_by_hand():
    # E|h| = 1, 2, 0, 5: mean 2; crelu: units (1, 2) and (0, 5) in columns i and i + 2, so E|h| = 1.5 and 2.5
    post = torch.tensor([[1.0, -2.0, 0.0, 4.0], [1.0, 2.0, 0.0, -6.0]])
    assert scores(post, 4).tolist() == [0.5, 1.0, 0.0, 2.5]
    both = torch.tensor([[1.0, 0.0, 2.0, 4.0], [-1.0, 0.0, 2.0, 6.0]])
    torch.testing.assert_close(scores(both, 2), torch.tensor([0.75, 1.25]))
    image = post[:, :, None, None] * torch.tensor([[1.0, 3.0], [1.0, -3.0]])
    torch.testing.assert_close(scores(image, 4), torch.tensor([0.5, 1.0, 0.0, 2.5]))
    assert scores(torch.zeros(3, 2), 2).tolist() == [0, 0]


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("tau", [0.0, 0.4, 0.9])
def test_the_dormant_and_no_others_are_replaced_all_layers_at_once(kind, tau):
    patient = patient_with(kind, tau=tau)
    silence(patient, {name: units[:1] for name, units in some(patient).items()})
    found = activations(patient.network, patient.batch)
    expected = {layer.name: scores(found[layer.name].post, layer.units) <= tau for layer in patient.separable()}
    untouched = frozen(patient, "target")
    patient.recycle()
    assert patient.listener.heard.keys() == expected.keys()
    for name, mask in expected.items():
        assert torch.equal(patient.listener.heard[name], mask)
        assert mask[0] or kind in ("conv with norms",)
    assert_same(frozen(patient, "target"), untouched)


UNNORMALISED = [kind for kind in MODELS if "norm" not in kind]


@pytest.mark.parametrize("kind", UNNORMALISED)
def test_at_tau_zero_the_function_stays_as_it_is(kind):
    patient = patient_with(kind, tau=0.0)
    silence(patient, some(patient))
    before = patient.output().detach()
    patient.recycle()
    assert sum(int(mask.sum()) for mask in patient.listener.heard.values()) >= 2 * len(patient.separable())
    torch.testing.assert_close(patient.output(), before, atol=2e-6, rtol=1e-6)


def test_behind_layer_norm_it_moves_even_at_tau_zero():
    patient = patient_with("layer norm", tau=0.0)
    silence(patient, {"a": [0, 2, 5]})
    before = patient.output().detach()
    patient.recycle()
    assert patient.listener.heard["a"].tolist() == [True, False, True, False, False, True]
    assert (patient.output() - before).abs().max() > 0.2 * before.std()


def test_a_silent_layer_is_replaced_whole_and_speaks_again():
    patient = patient_with("mlp", tau=0.0)
    silence(patient, {"a": range(6)})
    patient.recycle()
    assert patient.listener.heard["a"].all()
    assert torch.isfinite(patient.output()).all()
    assert activations(patient.network, patient.batch)["a"].post.any()
    assert not patient.network.b.weight.any()


def test_a_weight_between_two_dormant_units_ends_at_zero():
    patient = patient_with("mlp", tau=0.0)
    silence(patient, {"a": [2], "b": [5]})
    patient.recycle()
    mask = patient.listener.heard
    assert mask["a"][2] and mask["b"][5]
    assert not patient.network.b.weight[:, 2].any()
    assert patient.network.b.weight[5][~mask["a"]].all()


@pytest.mark.parametrize("kind", ["mlp", "conv -> flatten -> linear", "crelu", "conv with norms", "duelling"])
def test_moments_are_zero_exactly_where_weights_were_replaced(kind):
    patient = patient_with(kind, tau=0.4)
    silence(patient, some(patient))
    before = frozen(patient)
    patient.recycle()
    names = {id(p): n for n, p in patient.network.named_parameters()}
    gone = {name: np.zeros(p.shape, bool) for name, p in patient.network.named_parameters()}
    for layer in patient.separable():
        units = patient.listener.heard[layer.name].numpy()
        for module in (layer.producer, layer.norm):
            for parameter in () if module is None else module.parameters():
                gone[names[id(parameter)]][units] = True
        for consumer, owner in layer.consumers:
            gone[names[id(consumer.weight)]][:, np.isin(owner.numpy(), np.flatnonzero(units))] = True
    after, moved = frozen(patient), 0
    for name, where in gone.items():
        for key in ("exp_avg", "exp_avg_sq"):
            expected = np.where(where, 0, before[name, key])
            np.testing.assert_array_equal(after[name, key], expected)
            moved += (before[name, key] != expected).sum()
        np.testing.assert_array_equal(after[name, "value"][~where], before[name, "value"][~where])
        assert after[name, "step"] == before[name, "step"] == 3
    assert moved > 10


@pytest.mark.parametrize(("kind", "bound"), [("mlp", 5**-0.5), ("duelling", (3 / 5) ** 0.5)])
def test_new_incoming_weights_follow_the_layers_own_law(kind, bound):
    patient, drawn = patient_with(kind, tau=0.0), []
    for _ in range(40):
        silence(patient, {"a": [1, 4]})
        patient.recycle()
        drawn.append(patient.network.a.weight[[1, 4]].detach().flatten())
    assert stats.kstest(torch.cat(drawn).double().numpy(), stats.uniform(-bound, 2 * bound).cdf).pvalue > 1e-3


def test_it_looks_once_at_as_many_samples_as_it_is_told():
    patient, asked = patient_with("mlp", tau=0.5), []
    patient.surgery._sample = lambda n: asked.append(n) or patient.batch
    patient.recycle()
    assert asked == [256] and patient.listener.heard
    assert ReDo().timing == "every 1000 gradient steps"


def test_frozen_layers_are_left_alone():
    patient = patient_with("duelling", tau=0.0)
    silence(patient, {"a": [1], "b": [1]})
    patient.network.b.weight.requires_grad_(False)
    patient.recycle()
    assert "b" not in patient.listener.heard and patient.listener.heard["a"][1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tau": -0.1}, r"redo\.tau = -0\.1: must be >= 0"),
        ({"tau": float("nan")}, r"redo\.tau = nan: must be >= 0"),
        ({"when": "every 0 gradient steps"}, r"redo\.when = 'every 0 gradient steps': must be every N gradient steps"),
        ({"samples": 0}, r"redo\.samples = 0: must be >= 1"),
        ({"moments": "all"}, r"redo\.moments = 'all': must be zero, keep, mean or local"),
    ],
)
def test_bad_parameters_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ReDo(**settings)


def test_the_papers_defaults():
    usual = {"tau": 0.1, "when": "every 1000 gradient steps", "samples": 256, "moments": "zero", "only": "all"}
    assert ReDo().parameters() == usual


SMALL = NetworkConfig(width=16, depth=2)
VALUE = {"batch_size": 8, "buffer_size": 500, "learning_starts": 20, "replay_ratio": 1.0, "network": SMALL}
AGENTS = {
    "dqn": (DQNConfig(**VALUE), STACK),
    "c51": (C51Config(**VALUE), VECTOR),
    "ppo": (PPOConfig(rollout_steps=32, num_minibatches=4, update_epochs=2, network=SMALL), VECTOR),
    "ppo, two torsos": (
        PPOConfig(rollout_steps=32, num_minibatches=4, update_epochs=2, network=SMALL, shared_torso=False),
        CONTINUOUS,
    ),
}


def run(name, interventions, ticks=64):
    config, spaces = AGENTS[name]
    agent = build_agent(config, spaces, 2, Generators(0), CPU, interventions=interventions)
    return drive(agent, NoiseWorld(spaces, 2), ticks)


@pytest.mark.parametrize("name", AGENTS)
@pytest.mark.parametrize("beside", [(), (LayerNorm(),)], ids=["alone", "layer norm"])
def test_it_works_in_agents(name, beside):
    agent = run(name, [*beside, ReDo(tau=0.6, when="every 3 gradient steps", samples=16)])
    done = agent.learner.interventions.surgeries()
    assert {what for _, what, _ in done} == {"replaced"}
    assert {where for *_, where in done} == {layer.name for layer in agent.learner.interventions.layers}
    assert sum(int(count) for count in done.values()) > 5
    assert all(torch.isfinite(parameter).all() for parameter in agent.network.parameters())


@pytest.mark.parametrize("name", AGENTS)
def test_where_there_are_fewer_observations_than_it_scores_some_come_more_than_once(name):
    """DQN's first gradient steps come with two dozen transitions; two environments' rollout of 32 has 64."""
    agent = run(name, [ReDo(tau=0.6, when="every 3 gradient steps")], ticks=36)
    held = len(agent.replay) if "ppo" not in name else 64
    assert held < 256
    assert {len(post) for _, post in agent.learner.interventions.surgery.activations(256).values()} == {256}
    assert sum(map(int, agent.learner.interventions.surgeries().values())) > 5


@pytest.mark.parametrize("name", AGENTS)
def test_beyond_the_runs_end_it_changes_nothing(name):
    plain, beside = run(name, []), run(name, [ReDo()])
    assert same_tree(plain.network.state_dict(), beside.network.state_dict())


def test_one_part_alone():
    agent = run("ppo, two torsos", [ReDo(tau=0.6, when="every 3 gradient steps", samples=16, only="actor")])
    assert all(where.startswith("actor") for *_, where in agent.learner.interventions.surgeries())
