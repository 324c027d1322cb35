"""What each intervention does, alone, to every kind of Stable-Baselines3 model."""

import pytest
import torch
from torch import nn

from agents.interventions import (
    CBP,
    L2,
    PFO,
    AdamBetas,
    InFeR,
    L2Init,
    OptimizerReset,
    Parseval,
    ReDo,
    Reset,
    ShrinkAndPerturb,
    WeightClip,
    WeightDecay,
)
from agents.interventions.lifecycle import Lifecycle
from agents.interventions.surgery import Surgery
from agents.interventions.weight_clip import initial_bounds
from plasticity_probes.units import CONVOLUTIONS
from tests.agents.interventions.sb3_models import MODELS, AtSyncs, Heard, Listener, learnt

every_model = pytest.mark.parametrize("name", MODELS)


def steps_of(name, chosen, look, count=3):
    """Weights before and Adam's state after each of the first gradient steps, as `look` sees them."""
    seen = []

    def hear(listener, surgery, forward, step):
        if step <= count:
            seen.append(look(surgery))

    learnt(MODELS[name](), [*chosen, Listener(heard=Heard(step=hear))])
    return seen


def first_moments(surgery):
    return {
        name: surgery.optimizer.state[parameter]["exp_avg"].detach().double().clone()
        for name, parameter in surgery.networks["online"].named_parameters()
        if parameter in surgery.optimizer.state
    }


def weights(surgery):
    return {name: p.detach().double().clone() for name, p in surgery.networks["online"].named_parameters()}


def before_learning(name):
    """The weights that training begins with."""
    found = {}

    def hear(listener, forward):
        found.setdefault("weights", {n: p.detach().double().clone() for n, p in forward.network.named_parameters()})

    learnt(MODELS[name](), [Listener(heard=Heard(penalty=hear))])
    return found["weights"]


def penalties_of(name, chosen, monkeypatch):
    """What joined the loss, at every gradient step."""
    told, penalties = [], Lifecycle.penalties
    monkeypatch.setattr(Lifecycle, "penalties", lambda self, forward: told.append(penalties(self, forward)) or told[-1])
    learnt(MODELS[name](), chosen)
    return told


@every_model
def test_l2_joins_the_gradient_that_adam_sees(name):
    (plain,) = steps_of(name, [], first_moments, 1)
    (pulled,) = steps_of(name, [L2(rate=0.5)], first_moments, 1)
    start = before_learning(name)
    for key, moment in pulled.items():  # (1 - beta_1) (g + rate theta_0)
        torch.testing.assert_close(moment - plain[key], 0.1 * 0.5 * start[key], rtol=1e-4, atol=1e-7)


@every_model
def test_weight_decay_shrinks_weights_beside_adams_step(name):
    (plain,), (shrunk,) = (steps_of(name, chosen, weights, 1) for chosen in ([], [WeightDecay(rate=2.0)]))
    start, rate = before_learning(name), {"dqn": 1e-4}.get(name.split(",")[0], 3e-4)  # SB3's own learning rates
    for key, weight in shrunk.items():
        factor = rate * 2.0 if key.endswith("weight") else 0.0
        torch.testing.assert_close(weight - plain[key], -factor * start[key], rtol=1e-3, atol=1e-7)


@every_model
def test_adams_betas(name):
    (plain,), (other,) = (steps_of(name, chosen, first_moments, 1) for chosen in ([], [AdamBetas((0.5, 0.99))]))
    for key, moment in other.items():
        torch.testing.assert_close(moment, plain[key] * 5, rtol=1e-5, atol=1e-12)


@every_model
def test_l2_init_and_parseval_are_in_the_loss(name, monkeypatch):
    layers, wanted = [], {"l2_init": [], "parseval": []}

    def hear(listener, forward):
        if not layers:
            layers.append({n: p.detach().double().clone() for n, p in forward.network.named_parameters()})
        now, begun = {n: p.detach().double() for n, p in forward.network.named_parameters()}, layers[0]
        wanted["l2_init"].append(sum(((now[n] - begun[n]) ** 2).sum().item() for n in now if n.endswith("weight")))
        rows = [layer.producer.weight.detach().double().flatten(1) for layer in listener.layers]
        gram = [w @ w.T - 2 * torch.eye(len(w)) for w in rows]
        wanted["parseval"].append(sum((g**2).sum().item() for g in gram))

    chosen = [L2Init(rate=1e-2, include=()), Parseval(rate=1e-3), Listener(heard=Heard(penalty=hear))]
    told = penalties_of(name, chosen, monkeypatch)
    assert len(told) == len(wanted["parseval"]) >= 8
    for found, l2_init, parseval in zip(told, *wanted.values(), strict=True):
        assert found["l2_init"].item() == pytest.approx(1e-2 * l2_init, rel=1e-4, abs=1e-9)
        assert found["parseval"].item() == pytest.approx(1e-3 * parseval, rel=1e-4)


@every_model
def test_pfo_and_infer_are_in_the_loss(name, monkeypatch):
    told = penalties_of(name, [PFO(coefficient=1e-2), InFeR()], monkeypatch)
    assert len(told) >= 8
    for found in told:
        assert set(found) <= {"pfo", "infer"}
        assert all(penalty.isfinite() and penalty >= 0 for penalty in found.values())
    assert told[0]["pfo"] == 0  # nothing has moved yet
    assert all(told[-1][each] > 0 for each in ("pfo", "infer"))


@every_model
def test_clipped_weights_stay_in_their_range(name):
    reached = []

    def hear(listener, surgery, forward, step):
        for module in forward.network.modules():
            if isinstance(module, (nn.Linear, *CONVOLUTIONS)):
                for kind, bound in initial_bounds(module).items():
                    largest = getattr(module, kind).abs().max().item()
                    assert largest <= 0.5 * bound * (1 + 1e-6)
                    reached.append(largest >= 0.5 * bound * (1 - 1e-6))

    learnt(MODELS[name](), [WeightClip(kappa=0.5), Listener(heard=Heard(step=hear))])
    assert any(reached)


@every_model
def test_adams_state_is_forgotten_at_each_sync(name):
    forgotten = []

    def hear(listener, surgery):
        states = [surgery.optimizer.state[p] for group in surgery.optimizer.param_groups for p in group["params"]]
        forgotten.append([key for state in states for key, value in state.items() if value.count_nonzero()])

    model, callback = learnt(MODELS[name](), [OptimizerReset(), AtSyncs(heard=Heard(sync=hear))], steps=120)
    assert len(forgotten) >= 2
    assert not any(forgotten)
    states = [callback.lifecycle.surgery.optimizer.state[p] for p in model.policy.optimizer.param_groups[0]["params"]]
    assert 0 < max(int(state["step"]) for state in states) < callback.clock.gradient_steps


@every_model
@pytest.mark.parametrize(
    ("intervention", "what"),
    [
        (ReDo(when="every 3 gradient steps", tau=0.5, samples=64), "replaced"),
        (CBP(maturity=2, replacement_rate=0.2), "replaced"),
        (ShrinkAndPerturb(form="juliani", when="every gradient step"), "projected"),
        (Reset(when="every 7 gradient steps"), "reset"),
        (WeightClip(kappa=1.0), "projected"),
        (OptimizerReset(), "forgotten"),
    ],
)
def test_surgeries_are_told(name, intervention, what, monkeypatch):
    told, note = [], Surgery.note

    def hear(self, *given):
        told.append((self.acting, *given))
        note(self, *given)

    monkeypatch.setattr(Surgery, "note", hear)
    _, callback = learnt(MODELS[name](), [intervention])
    assert {(who, done) for who, done, *_ in told} == {(intervention.name, what)}
    steps = callback.clock.gradient_steps
    if isinstance(intervention, ReDo):  # asks every layer at every third step
        assert len(told) == steps // 3 * len(callback.lifecycle.layers)
    if isinstance(intervention, Reset):
        heads = len(told) // (steps // 7)
        assert heads >= 1 and len(told) == heads * (steps // 7)
    if isinstance(intervention, (ReDo, CBP)):
        assert sum(int(count) for *_, count in told) > 0
