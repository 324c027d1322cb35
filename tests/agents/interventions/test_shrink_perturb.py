"""Shrink and perturb: each published form's equation, its noise, and what it leaves alone."""

import numpy as np
import pytest
import torch
from scipy import stats

from agents import DQNConfig
from agents.clock import Clock
from agents.interventions.l2 import L2
from agents.interventions.layer_norm import LayerNorm
from agents.interventions.lifecycle import check_interventions
from agents.interventions.nap import NaP
from agents.interventions.shrink_perturb import ShrinkAndPerturb
from tests.agents.helpers import same_tree
from tests.agents.interventions.models import every_model, frozen
from tests.agents.interventions.whole import agent_with, continues_alike, driven, operated

FORMS = {
    "ash": {},
    "ash, gaussian": {"form": "ash", "noise": "gaussian", "perturb": 0.3, "shrink": 0.6},
    "juliani": {"form": "juliani"},
    "juliani, softly": {"form": "juliani", "when": "every gradient step"},
    "dohare": {"form": "dohare", "perturb": 0.2},
}
FACTORS = {  # shrink, noise: as the papers have them, or as set above
    "ash": (0.4, 0.1),
    "ash, gaussian": (0.6, 0.3),
    "juliani": (0.5, 0.5),
    "juliani, softly": (0.999999, 1e-6),
    "dohare": (1.0, 0.2),
}
every_form = pytest.mark.parametrize("form", FORMS)


def act(patient, intervention):
    """Once, in whichever of the two hooks its time is."""
    intervention.every_step(patient.surgery, None, {})
    intervention.intervene(patient.surgery, Clock())


@every_model
@every_form
def test_the_equation_holds_and_moments_stay(kind, form):
    intervention, seed = ShrinkAndPerturb(**FORMS[form]), 11
    patient = operated(kind, intervention, seed=seed)
    before, target = frozen(patient), frozen(patient, "target")
    parameters = [(n, p) for n, p in patient.network.named_parameters() if form != "dohare" or n != "log_std"]
    again = operated(kind, ShrinkAndPerturb(), seed=seed)  # its generator stands where the other's stood
    if intervention.used["noise"] == "fresh":
        noise = again.surgery.fresh([dict(again.network.named_parameters())[name] for name, _ in parameters])
    else:
        sizes = [p.numel() for _, p in parameters]
        drawn = torch.randn(sum(sizes), generator=again.surgery.generator).split(sizes)
        noise = [part.view_as(p) for (_, p), part in zip(parameters, drawn, strict=True)]
    act(patient, intervention)
    after, (shrink, perturb) = frozen(patient), FACTORS[form]
    for (name, _), drawn in zip(parameters, noise, strict=True):
        expected = shrink * before[name, "value"].astype(np.float64) + perturb * drawn.double().numpy()
        np.testing.assert_allclose(after[name, "value"], expected, rtol=1e-5, atol=1e-6)
        assert form == "juliani, softly" or (after[name, "value"] != before[name, "value"]).any()
    touched = {(name, "value") for name, _ in parameters}
    assert all((array == before[key]).all() for key, array in after.items() if key not in touched)
    assert all((array == target[key]).all() for key, array in frozen(patient, "target").items())
    moved = frozen(patient)
    patient.train()
    assert all((frozen(patient)[key] != moved[key]).any() for key in touched)


def noise_of(patient, intervention, name="b.weight"):
    """What was added at one call, in units of `perturb`."""
    weight = dict(patient.network.named_parameters())[name]
    before = weight.detach().double().clone()
    act(patient, intervention)
    shrink, perturb = intervention.used.get("shrink", 1.0), intervention.used["perturb"]
    return (weight.detach().double() - shrink * before) / perturb


@pytest.mark.parametrize("form", ["ash", "ash, gaussian", "juliani", "dohare"])
def test_noise_is_fresh_follows_the_seed_and_has_the_right_law(form):
    intervention, others = ShrinkAndPerturb(**FORMS[form]), [ShrinkAndPerturb(**FORMS[form]) for _ in range(2)]
    patient = operated("mlp", intervention, seed=3)
    draws = [noise_of(patient, intervention) for _ in range(60)]
    same, other = (noise_of(operated("mlp", o, seed=seed), o) for o, seed in zip(others, (3, 4), strict=True))
    torch.testing.assert_close(draws[0], same)
    assert not (draws[0] - draws[1]).abs().lt(1e-3).any()
    assert (draws[0] - other).abs().max() > 0.1
    bound = 6**-0.5  # torch's law for six inputs
    law = stats.uniform(-bound, 2 * bound) if intervention.used["noise"] == "fresh" else stats.norm
    values = torch.stack(draws).flatten().numpy()
    assert stats.kstest(values, law.cdf).pvalue > 1e-3
    assert abs(np.corrcoef(values[:-42], values[42:])[0, 1]) < 0.08  # 2,478 pairs


def test_fresh_norms_have_gain_one_and_a_fresh_log_std_its_start():
    intervention = ShrinkAndPerturb(form="juliani")
    patient = operated("layer norm", intervention)
    gain, bias = patient.network.na.weight.detach().clone(), patient.network.na.bias.detach().clone()
    act(patient, intervention)
    torch.testing.assert_close(patient.network.na.weight.detach(), 0.5 * gain + 0.5)
    torch.testing.assert_close(patient.network.na.bias.detach(), 0.5 * bias)
    patient = operated("actor, critic", intervention)
    log_std = patient.network.log_std.detach().clone()
    assert log_std.any()
    act(patient, intervention)
    torch.testing.assert_close(patient.network.log_std.detach(), 0.5 * log_std)


def test_the_time_of_each_form():
    times = {form: str(ShrinkAndPerturb(**settings).timing) for form, settings in FORMS.items()}
    soft = "every gradient step"
    assert times == dict.fromkeys(FORMS, "at task changes") | {"juliani, softly": soft, "dohare": soft}
    assert ShrinkAndPerturb(when="every-1e3-steps").timing == "every 1000 steps"


def test_dohare_decays_every_parameter_inside_adam_and_spares_log_std_the_noise():
    agent = agent_with("ppo, two torsos", ShrinkAndPerturb(form="dohare", perturb=0.1, weight_decay=0.02))
    (group,) = agent.learner.optimization.adam.param_groups
    assert group["weight_decay"] == 0.02 and not group.get("decoupled_weight_decay", False)
    assert len(group["params"]) == len(list(agent.network.parameters()))
    before = {name: p.detach().clone() for name, p in agent.network.named_parameters()}
    agent.learner.interventions.every_step(None)
    for name, parameter in agent.network.named_parameters():
        assert torch.equal(parameter, before[name]) == (name == "log_std")
    actor = agent_with("ppo, two torsos", ShrinkAndPerturb(form="dohare", only="actor"))
    decays = {id(p): g["weight_decay"] for g in actor.learner.optimization.adam.param_groups for p in g["params"]}
    for name, parameter in actor.network.named_parameters():
        assert decays[id(parameter)] == (0 if actor.network.part_of(name) == "critic" else 1e-4)


def test_it_keeps_to_its_part_and_skips_what_is_frozen():
    intervention = ShrinkAndPerturb(only="critic")
    patient = operated("actor, critic", intervention)
    patient.network.value_head.bias.requires_grad_(False)
    before = frozen(patient)
    act(patient, intervention)
    for (name, key), array in frozen(patient).items():
        touched = patient.network.part_of(name) == "critic" and key == "value" and name != "value_head.bias"
        assert touched == (array != before[name, key]).any(), name


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"form": "ours"}, "form = 'ours'"),
        (
            {"when": "every gradient step"},
            "when = 'every gradient step': must be rarer than every gradient step",
        ),
        ({"form": "dohare", "when": "at task changes"}, "when = 'at task changes': must be 'every gradient step', or"),
        ({"form": "dohare", "shrink": 0.5}, "shrink = 0.5: must be left out with 'dohare'"),
        ({"form": "juliani", "weight_decay": 0.1}, "weight_decay = 0.1: must be left out"),
        ({"form": "juliani", "noise": "gaussian"}, "noise = 'gaussian'"),
        ({"noise": "gaussian"}, "perturb = None: must be given"),
        ({"shrink": 1.5}, r"shrink = 1.5: must be in \[0, 1\]"),
        ({"perturb": -1.0}, "perturb = -1.0: must be >= 0"),
        ({"form": "dohare", "weight_decay": -1.0}, "weight_decay = -1.0: must be >= 0"),
    ],
)
def test_wrong_settings_are_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=rf"shrink_perturb\.{message}"):
        ShrinkAndPerturb(**settings)


def test_two_decays_are_refused():
    with pytest.raises(ValueError, match="dohare.*beside l2"):
        check_interventions([ShrinkAndPerturb(form="dohare"), L2()], DQNConfig())
    check_interventions([ShrinkAndPerturb(), L2()], DQNConfig())


def test_a_part_without_parameters_is_refused():
    with pytest.raises(ValueError, match="shrink_perturb: there is no parameter"):
        operated("mlp", ShrinkAndPerturb(only="actor"))


@pytest.mark.parametrize("kind", ["dqn", "c51 on images", "ppo", "ppo, two torsos"])
def test_through_the_agents(kind):
    agent = driven(kind, LayerNorm(), NaP(), ShrinkAndPerturb(form="juliani", when="every gradient step"))
    assert agent.clock.gradient_steps > 20
    done = agent.learner.interventions.surgeries()
    steps = agent.clock.gradient_steps
    assert {count for (who, what, _), count in done.items() if who == "shrink_perturb"} == {steps}
    assert all(p.isfinite().all() for p in agent.network.parameters())
    for layer, norm in zip(
        agent.learner.interventions.layers, agent.learner.interventions.members[1].norms, strict=True
    ):
        torch.testing.assert_close(layer.producer.weight.norm(), norm, rtol=1e-4, atol=0)  # perturbed after NaP
    plain = driven(kind, LayerNorm(), NaP())
    assert not same_tree(plain.network.state_dict(), agent.network.state_dict())


def test_shrinking_by_nothing_changes_nothing():
    nothing = driven("dqn", ShrinkAndPerturb(form="juliani", when="every gradient step", shrink=1.0, perturb=0.0))
    assert same_tree(nothing.network.state_dict(), driven("dqn").network.state_dict())


@pytest.mark.parametrize("form", ["ash", "juliani, softly", "dohare"])
def test_a_restored_run_goes_on_alike(form):
    assert continues_alike("dqn", lambda: [ShrinkAndPerturb(**FORMS[form])])
