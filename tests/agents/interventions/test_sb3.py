"""Interventions on Stable-Baselines3's DQN and PPO: when they are called, with what, and what they do there."""

import copy

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import A2C, DQN
from stable_baselines3.common.vec_env import VecNormalize
from torch import nn

from agents.interventions import (
    CBP,
    L2,
    PFO,
    Activation,
    InFeR,
    L2Init,
    LayerNorm,
    PopArt,
    ReDo,
    Reset,
    ShrinkAndPerturb,
    WeightClip,
    WeightDecay,
)
from agents.interventions.sb3 import InterventionCallback
from agents.interventions.surgery import Surgery
from tests.agents.interventions.sb3_models import (
    MODELS,
    NORMED,
    TWO,
    AtSyncs,
    AtTasks,
    Each,
    Heard,
    Listener,
    dqn,
    learnt,
    ppo,
    same,
    start,
    whole_state,
    worlds,
)

IDLE = [ReDo(when="every 1e9 gradient steps"), CBP(replacement_rate=0.0), WeightDecay(rate=0.0), PFO(coefficient=0.0)]


@pytest.mark.filterwarnings("ignore:.*never acted")
@pytest.mark.parametrize("name", MODELS)
def test_training_is_sb3s_own_to_the_bit(name):
    plain = whole_state(learnt(MODELS[name]()))
    for chosen in ([], [*IDLE, Listener(heard=Heard())]):
        assert same(whole_state(learnt(MODELS[name](), chosen)[0]), plain)


@pytest.mark.parametrize("name", MODELS)
def test_several_work_together_in_every_model(name, monkeypatch):
    told, note = set(), Surgery.note
    monkeypatch.setattr(Surgery, "note", lambda self, *given: told.add((self.acting, given[0])) or note(self, *given))
    chosen = [
        *(ReDo(when="every 3 gradient steps", tau=0.5), CBP(maturity=2, replacement_rate=0.2), InFeR(), PFO()),
        *(L2Init(), WeightDecay()),
        *(ShrinkAndPerturb(form="juliani", when="every gradient step"), Reset(when="every 7 gradient steps")),
    ]
    heard = Heard()
    model, callback = learnt(MODELS[name](), [*chosen, Listener(heard=heard)])
    assert heard.steps() == list(range(1, callback.clock.gradient_steps + 1))
    assert all(parameter.isfinite().all() for parameter in model.policy.parameters())
    assert all(int(count) > 0 for count in callback.lifecycle.surgery.replaced.values())
    wanted = {("redo", "replaced"), ("cbp", "replaced"), ("shrink_perturb", "projected"), ("reset", "reset")}
    assert wanted <= told


def test_gradient_steps_are_counted_not_environment_steps():
    heard = Heard()
    learnt(dqn(envs=2, gradient_steps=3), [Listener(heard=heard)])
    steps = [event for event in heard.events if event[0] == "step"]
    assert [step for _, step, _ in steps] == list(range(1, len(steps) + 1))
    assert [at for *_, at in steps] == [at for at in (48, 56, 64, 72, 80) for _ in range(3)]
    heard = Heard()
    learnt(ppo(), [Listener(heard=heard), AtSyncs(heard=heard)], steps=40)
    assert heard.steps() == list(range(1, 13))
    assert heard.events[0] == "sync"  # an update phase begins


@pytest.mark.parametrize("name", ["dqn", "ppo"])
def test_forward_passes_of_others_are_none_of_the_updates(name):
    def look(model):
        zeros = torch.zeros(3, 4)
        values = model.q_net(zeros) if name == "dqn" else model.policy.evaluate_actions(zeros, torch.zeros(3))[0]
        values.sum().backward()

    def hear(listener, *given):
        network = listener.networks["online"]
        assert not any(module.training for module in network.modules())  # eval mode, as everywhere

    model, heard = MODELS[name](), Heard(penalty=hear, step=hear, sync=hear)
    model.learn(80, callback=[InterventionCallback([Listener(heard=heard), AtSyncs(heard=heard)]), Each(look)])
    counts = [sum(event == "penalty" for event in heard.events), len(heard.steps())]
    assert counts == ([20, 20] if name == "dqn" else [24, 24])
    assert getattr(model, "q_net", model.policy).training  # as SB3's updates leave it


def by_hand(network, observations, activation):
    """Before and after each nonlinearity, from the layers' own weights, in float64."""
    found, x = {}, observations.double().flatten(1)
    for name, layer in network:
        before = x @ layer.weight.double().T + layer.bias.double()
        x = activation(before)
        found[name] = (before, x)
    return found


def test_what_is_captured_is_the_updates_own_forward_pass():
    model, batches = dqn(world={"observations": spaces.Discrete(5)}), []
    sample = model.replay_buffer.sample

    def double(*args, **kwargs):
        """As double DQN, which asks the online network about the next observations."""
        batches.append(sample(*args, **kwargs))
        with torch.no_grad():
            model.q_net(batches[-1].next_observations)
        return batches[-1]

    model.replay_buffer.sample = double

    def hear(listener, forward):
        assert torch.equal(forward.observations.argmax(2), batches[-1].observations.long())
        layers = [(f"q_net.{n}", model.q_net.q_net[n]) for n in (0, 2)]
        wanted = by_hand(layers, forward.observations, torch.relu)
        assert forward.captured.keys() == wanted.keys()
        for name, pair in forward.captured.items():
            assert all(tensor.requires_grad for tensor in pair)
            for got, want in zip(pair, wanted[name], strict=True):
                torch.testing.assert_close(got.double(), want, atol=1e-5, rtol=1e-5)

    heard = Heard(penalty=hear)
    learnt(model, [Listener(heard=heard)])
    assert len(batches) == len(heard.steps()) > 10


def test_captured_values_of_actor_and_critic():
    model, batches = ppo(policy_kwargs={"net_arch": {"pi": [7], "vf": [9, 5]}}), []  # tanh
    get = model.rollout_buffer._get_samples
    model.rollout_buffer._get_samples = lambda *args: batches.append(get(*args)) or batches[-1]

    def hear(listener, forward):
        assert torch.equal(forward.observations, batches[-1].observations)
        nets = model.policy.mlp_extractor
        wanted = by_hand([("mlp_extractor.policy_net.0", nets.policy_net[0])], forward.observations, torch.tanh)
        critic = [(f"mlp_extractor.value_net.{n}", nets.value_net[n]) for n in (0, 2)]
        wanted |= by_hand(critic, forward.observations, torch.tanh)
        assert forward.captured.keys() == wanted.keys()
        for name, pair in forward.captured.items():
            for got, want in zip(pair, wanted[name], strict=True):
                torch.testing.assert_close(got.double(), want, atol=1e-5, rtol=1e-5)

    learnt(model, [Listener(heard=Heard(penalty=hear))])
    assert len(batches) == 24


@pytest.mark.parametrize(("envs", "tau"), [(1, 1.0), (2, 1.0), (1, 0.25)])
def test_target_syncs_are_heard_before_the_next_gradient_step(envs, tau):
    model, online = dqn(envs=envs, tau=tau, target_update_interval=6, train_freq=4 // envs), []

    def hear(listener, surgery):
        online.append(model._n_calls)
        if tau == 1:
            assert same(model.q_net.state_dict(), model.q_net_target.state_dict())

    learnt(model, [AtSyncs(heard=Heard(sync=hear))])
    assert online == list(range(6 // envs, 80 // envs + 1, 6 // envs))  # each of them, at once
    model = ppo()
    heard = Heard()
    learnt(model, [Listener(heard=heard), AtSyncs(heard=heard)])
    assert [event for event in heard.events if event in ("sync", ("step", 12, 40), ("step", 24, 80))] == [
        *("sync", ("step", 12, 40), "sync", ("step", 24, 80))
    ]


def test_task_changes():
    for envs, model in ((1, dqn({"task_steps": 25})), (2, ppo({"task_steps": 15}, envs=2))):
        heard, at = Heard(), []
        heard.do["task"] = lambda listener, clock, at=at: at.append(clock.steps)
        _, callback = learnt(model, [AtTasks(heard=heard)])
        assert at == [25, 50, 75] if envs == 1 else at == [30, 60]
        callback.on_task_change()  # between two calls of learn, as well
        assert len(at) == (4 if envs == 1 else 3)
    with pytest.raises(RuntimeError, match="training has not started"):
        InterventionCallback([]).on_task_change()


def test_a_task_changes_when_the_last_environment_has_entered_it():
    heard = Heard()
    callback = InterventionCallback([AtTasks(heard=heard)])
    start(callback, dqn())
    for tasks in ([0, 0], [0, 1], [1, 1], [1, 1], [2, 1], [1, 1], [3, 2], [None, 5]):
        callback.locals = {"infos": [{} if task is None else {"task_index": task} for task in tasks]}
        callback.on_step()
    assert heard.events == ["task", "task"]


def test_samples_come_from_replay_by_their_own_generator():
    venv = VecNormalize(worlds(2))
    settings = {"learning_starts": 8, "batch_size": 8, "buffer_size": 40, "optimize_memory_usage": True, "seed": 1}
    settings |= {"replay_buffer_kwargs": {"handle_timeout_termination": False}, "device": "cpu"}
    model, callback = learnt(DQN("MlpPolicy", venv, **settings), [L2Init()])
    state, buffer = np.random.get_state()[1].copy(), model.replay_buffer
    drawn = callback.lifecycle.surgery.sample(500).numpy()
    assert np.array_equal(np.random.get_state()[1], state) and buffer.full
    rows = venv.normalize_obs(buffer.observations.copy()).astype(np.float32)
    overwritten = buffer.pos
    known = {row.tobytes() for index in range(20) if index != overwritten for row in rows[index]}
    assert {row.tobytes() for row in drawn} == known


def test_samples_come_from_the_latest_complete_rollout():
    model, drawn = ppo(envs=2), []

    def hear(listener, surgery, *_):
        drawn.append((surgery.sample(400), model.rollout_buffer.generator_ready))

    heard = Heard(sync=hear, step=hear)
    _, callback = learnt(model, [Listener(heard=heard), AtSyncs(heard=heard)], steps=40)
    assert [ready for _, ready in drawn] == [False] + [True] * 12
    rows = {row.tobytes() for row in model.rollout_buffer.observations.reshape(-1, 4)}
    assert len(rows) == 40
    assert all({row.numpy().tobytes() for row in batch} == rows for batch, _ in drawn)
    callback = InterventionCallback([Listener(heard=heard)])
    start(callback, ppo())
    with pytest.raises(RuntimeError, match="no observations yet"):
        callback.lifecycle.surgery.sample(3)


def test_values_are_captured_although_they_are_overwritten():
    def hear(listener, forward):
        for pre, post in forward.captured.values():
            assert (pre < 0).any() and torch.equal(post, pre.relu())

    heard = Heard(penalty=hear)
    learnt(dqn(**NORMED), [Listener(heard=heard)], steps=60)
    assert heard.steps()


class Odd(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(2 * x)


def test_an_unknown_nonlinearity_is_refused_only_if_somebody_looks():
    odd = {"policy_kwargs": {"activation_fn": Odd, "net_arch": [6]}}
    learnt(dqn(**odd), [L2Init()])
    with pytest.raises(ValueError, match=r"layer 'q_net.0': its values are not those of silu"):
        learnt(dqn(**odd), [PFO()])
    with pytest.raises(ValueError, match=r"layer 'q_net.0': its values are not those of silu"):
        learnt(dqn(**odd), [ReDo(when="every 1 gradient steps")])


@pytest.mark.parametrize(
    ("make", "chosen", "message"),
    [
        (lambda: A2C("MlpPolicy", worlds()), [], "model = A2C: must be DQN or PPO"),
        (dqn, [LayerNorm()], "layer_norm: is a matter of building .* instead: a features extractor"),
        (dqn, [Activation("tanh")], r"activation: .* policy_kwargs=dict\(activation_fn=torch.nn.Tanh\)"),
        (dqn, [Activation("swish")], r"activation: .* policy_kwargs=dict\(activation_fn=torch.nn.SiLU\)"),
        (dqn, [Activation(negative_slope=0.2)], r"activation_fn=partial\(torch.nn.LeakyReLU, 0.2\)"),
        (dqn, [Activation("fourier")], "activation: .* instead: a features extractor .* doubles the columns"),
        (dqn, [ShrinkAndPerturb(form="dohare"), L2()], "shrink_perturb.form = 'dohare': has a weight decay .* l2"),
        (ppo, [WeightDecay(), ShrinkAndPerturb(form="dohare")], "has a weight decay of its own beside weight_decay"),
        (dqn, [PopArt()], "popart: .* SB3 has nothing that does the same"),
        (
            lambda: dqn(policy_kwargs={"optimizer_class": torch.optim.SGD}),
            [L2()],
            r"policy_kwargs\['optimizer_class'\] = SGD: must be torch.optim.Adam or AdamW",
        ),
        (lambda: ppo({"actions": TWO}, use_sde=True), [L2()], "use_sde = True"),
    ],
)
def test_refusals(make, chosen, message):
    model = make()
    before = copy.deepcopy(model.policy.optimizer.param_groups)
    with pytest.raises(ValueError, match=message):
        learnt(model, chosen)
    assert same(model.policy.optimizer.param_groups, before)


def test_who_never_acted_is_told_at_the_end():
    idle = [ReDo(when="every 1e9 gradient steps"), Reset(when="at task changes"), WeightClip()]
    with pytest.warns(UserWarning, match="in 20 gradient steps") as told:
        learnt(dqn(), idle)
    sentences = [str(warning.message) for warning in told if "gradient steps" in str(warning.message)]
    assert sentences[0] == "redo: never acted, in 20 gradient steps"
    assert sentences[1].startswith("reset: waits for a task change, and none came")
    assert len(sentences) == 2


@pytest.mark.parametrize("name", ["dqn", "dqn, images", "ppo"])
@pytest.mark.parametrize("wanted", [{"hidden"}, {"hidden", "preactivations"}])
def test_what_comes_before_the_nonlinearity_is_held_only_where_it_is_asked_for(name, wanted):
    held = []

    def hear(listener, surgery, forward, step):
        held.extend(len(values) == 2 for values in forward.captured.values())

    kind = type("Some", (Listener,), {"captures": frozenset(wanted)})
    learnt(MODELS[name](), [kind(heard=Heard(step=hear))])
    assert set(held) == {"preactivations" in wanted}


def test_two_of_a_kind_are_refused():
    with pytest.raises(ValueError, match="redo is given twice"):
        InterventionCallback([ReDo(), ReDo()])


def test_an_optimizer_step_without_an_update_is_an_error():
    callback = InterventionCallback([L2Init()])
    model = dqn()
    start(callback, model)
    with pytest.raises(RuntimeError, match="after no forward pass of an update"):
        model.policy.optimizer.step()
