"""Resets: which layers, when, by which law, and that what was redrawn learns on."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from agents.clock import Clock
from agents.interventions.layer_norm import LayerNorm
from agents.interventions.nap import NaP
from agents.interventions.plasticity_injection import PlasticityInjection
from agents.interventions.reset import Reset
from agents.interventions.weight_clip import WeightClip
from agents.randomness import Generators
from tests.agents.helpers import same_tree
from tests.agents.interventions.models import MODELS, Patient, every_model, frozen, vectors
from tests.agents.interventions.whole import agent_with, continues_alike, driven, operated

LEVELS = {  # by model: the layers that are redrawn with last = 1, then those that 2 adds, ...; worked out by hand
    "mlp": ["c", "b", "a"],
    "plain mlp": ["c", "b", "a"],
    "conv": ["c", "b", "a"],
    "conv -> flatten -> linear": ["c", "b", "a"],
    "conv, channels last": ["b", "a"],
    "layer norm": ["c", "b nb", "a na"],
    "conv with norms": ["c", "b nb", "a na"],
    "crelu": ["d", "c", "b", "a"],
    "two consumers": ["b c", "a"],
    "part of a flatten": ["b c", "a"],
    "duelling": ["value advantage", "b c", "a"],
    "actor, critic": [
        "policy_head value_head",
        "actor_torso.layers.dense2 critic_torso.layers.dense2",
        "actor_torso.layers.dense1 critic_torso.layers.dense1",
    ],
    "sb3 dqn": ["q_net.4", "q_net.2", "q_net.0"],
    "sb3 cnn": [
        "q_net.0",
        "features_extractor.linear.0",
        *(f"features_extractor.cnn.{n}" for n in (4, 2, 0)),
    ],
}


class ShortCut(nn.Module):
    """The head reads a and b, and b reads a, which is as far from the outputs as the longer way."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 6), nn.Linear(6, 4), nn.Linear(10, 3)

    def forward(self, x):
        hidden = torch.relu(self.a(x))
        return self.c(torch.cat([hidden, torch.relu(self.b(hidden))], 1))


def redrawn(patient, act):
    """Names of the tensors whose values the act changes."""
    before = frozen(patient)
    act()
    after = frozen(patient).items()
    return {name for (name, key), array in after if key == "value" and (array != before[name, key]).any()}


@every_model
@pytest.mark.parametrize("last", [1, 2, 3, 9, 0])
def test_the_last_layers_are_redrawn_with_their_norms_and_learn_on(kind, last):
    intervention = Reset(last=last, when="at task changes")
    patient = operated(kind, intervention)
    before, target = frozen(patient), frozen(patient, "target")
    intervention.intervene(patient.surgery, Clock())
    chosen = {name for level in LEVELS[kind][: last or None] for name in level.split()}
    parameters = dict(patient.network.named_parameters())
    hit = {name for name in parameters if name.rpartition(".")[0] in chosen or (name == "log_std" and last == 0)}
    statistics = {name for name, _ in patient.network.named_buffers() if name.rpartition(".")[0] in chosen}
    after, target_after = frozen(patient), frozen(patient, "target")
    for (name, key), array in after.items():
        if name not in hit | statistics:
            assert (array == before[name, key]).all(), (name, key)
        elif name in hit and key != "value":
            assert before[name, key].any() and not array.any()
        elif name in hit:
            assert (array != before[name, key]).any()
            np.testing.assert_array_equal(target_after[name, key], array)
    for key, array in target.items():
        assert key[0] in hit | statistics or (target_after[key] == array).all()
    patient.train()
    last_values = frozen(patient)
    assert all((last_values[name, "value"] != after[name, "value"]).any() for name in hit)
    assert all(last_values[name, "step"] == 1 for name in hit)


def test_a_layer_is_as_far_from_the_outputs_as_the_longest_way():
    for last, expected in ((1, {"c"}), (2, {"c", "b"}), (3, {"c", "b", "a"})):
        intervention = Reset(last=last, when="at task changes")
        patient = Patient(ShortCut, vectors, interventions=[intervention])
        intervention.layers = tuple(patient.layers)
        intervention.attach({"online": patient.network, "target": patient.target}, Generators(0))
        names = redrawn(patient, lambda i=intervention, p=patient: i.intervene(p.surgery, Clock()))
        assert {name.split(".")[0] for name in names} == expected


def test_the_statistics_of_a_batch_norm_start_anew():
    intervention = Reset(last=2, when="at task changes")
    patient = operated("conv with norms", intervention)
    patient.network.nb.running_mean.fill_(3.0)
    intervention.intervene(patient.surgery, Clock())
    assert not patient.network.nb.running_mean.any() and patient.network.nb.running_var.eq(1).all()


def test_new_values_follow_the_layers_own_law():
    intervention = Reset(when="at task changes")
    patient = operated("mlp", intervention)
    draws = []
    for _ in range(60):
        intervention.intervene(patient.surgery, Clock())
        draws.append(torch.cat([patient.network.c.weight.flatten(), patient.network.c.bias]).detach().double())
    bound = 7**-0.5
    assert stats.kstest(torch.cat(draws).numpy(), stats.uniform(-bound, 2 * bound).cdf).pvalue > 1e-3


def test_the_target_keeps_its_own_where_asked():
    intervention = Reset(when="at task changes", target=False)
    patient = operated("mlp", intervention)
    before = frozen(patient, "target")
    intervention.intervene(patient.surgery, Clock())
    assert all((array == before[key]).all() for key, array in frozen(patient, "target").items())


@pytest.mark.parametrize(
    ("part", "last", "names"),
    [
        ("actor", 1, {"policy_head"}),
        ("critic", 2, {"value_head", "critic_torso.layers.dense2"}),
        ("actor", 0, {"policy_head", "actor_torso.layers.dense1", "actor_torso.layers.dense2", ""}),
    ],
)
def test_it_keeps_to_its_part(part, last, names):
    intervention = Reset(only=part, last=last, when="at task changes")
    patient = operated("actor, critic", intervention)
    hit = redrawn(patient, lambda: intervention.intervene(patient.surgery, Clock()))
    assert {name.rpartition(".")[0] for name in hit} == names  # "": log_std


def test_an_encoder_is_counted_from_the_outputs_as_well():
    agent = agent_with("dqn", Reset(only="encoder", last=2, when="at task changes"))
    before = {name: p.detach().clone() for name, p in agent.network.named_parameters()}
    agent.on_task_change()
    hit = {name for name, p in agent.network.named_parameters() if not torch.equal(p, before[name])}
    assert hit == {"torso.layers.dense2.weight", "torso.layers.dense2.bias"}
    with pytest.raises(ValueError, match="nothing to reset in only = 'encoder' with last = 1"):
        agent_with("dqn", Reset(only="encoder", when="at task changes"))


def test_what_is_frozen_stays():
    agent = agent_with("dqn", PlasticityInjection(when="at task changes"), Reset(last=2, when="at task changes"))
    before = {name: p.detach().clone() for name, p in agent.network.named_parameters()}
    agent.on_task_change()  # the birth, then the reset: a learns now, live and b do not
    hit = {name.rpartition(".")[0] for name, p in agent.network.named_parameters() if not torch.equal(p, before[name])}
    assert hit == {"torso.a.dense2", "head.a"}


class Table(nn.Module):
    def __init__(self):
        super().__init__()
        self.head, self.table = nn.Linear(4, 2), nn.Parameter(torch.ones(5, 4))

    def forward(self, x):
        return self.head(x @ self.table)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.memory, self.head = nn.GRU(5, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.memory(x[:, None])[0][:, 0])


@pytest.mark.parametrize(("build", "last", "what"), [(Table, 0, "'table'"), (Recurrent, 2, "'memory'")])
def test_an_unknown_law_is_refused_at_once(build, last, what):
    intervention = Reset(last=last, when="at task changes")
    patient = Patient(build, vectors)
    intervention.layers = tuple(patient.layers)
    with pytest.raises(ValueError, match=f"reset: the law of {what}.* is not known"):
        intervention.attach({"online": patient.network}, Generators(0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"last": -1}, "last = -1: must be >= 0"),
        ({"when": "every 0 steps"}, "when = 'every 0 steps': must be every N gradient steps"),
        ({"when": 20_000}, "when = 20000: must be every N gradient steps"),
    ],
)
def test_wrong_settings_are_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=rf"reset\.{message}"):
        Reset(**settings)


@pytest.mark.parametrize("kind", ["dqn", "c51 on images", "ppo", "ppo, two torsos"])
@pytest.mark.parametrize("last", [1, 0])
def test_through_the_agents(kind, last):
    agent = driven(kind, LayerNorm(), NaP(), Reset(last=last, when="every 10 gradient steps"), WeightClip())
    steps, done = agent.clock.gradient_steps, agent.learner.interventions.surgeries()
    counts = [count for (who, what, _), count in done.items() if (who, what) == ("reset", "reset")]
    assert steps > 20 and set(counts) == {steps // 10}
    assert len(counts) == (len(list(agent.network.parameters())) if last == 0 else 2 + 2 * kind.startswith("ppo"))
    assert all(p.isfinite().all() for p in agent.network.parameters())
    heads = [p for name, p in agent.network.named_parameters() if "head" in name]
    assert all(agent.learner.optimization.adam.state[p]["step"] == steps % 10 for p in heads)


def test_a_reset_that_never_comes_changes_nothing():
    never = driven("dqn", Reset(when="every 1e9 steps"))
    assert same_tree(never.network.state_dict(), driven("dqn").network.state_dict())


@pytest.mark.parametrize("time", ["every 3 gradient steps", "every 6 steps", "at task changes"])
def test_a_restored_run_goes_on_alike(time):
    assert continues_alike("dqn", lambda: [Reset(last=2, when=time)])


def test_models_and_levels_agree():
    assert LEVELS.keys() == MODELS.keys()
