"""What interventions do to the weights, gradients and logs of Stable-Baselines3's DQN and PPO."""

import copy
import csv
import itertools

import pytest
import torch
from stable_baselines3.common.logger import configure
from torch.nn import functional as F

from agents.interventions import (
    CBP,
    L2,
    PFO,
    InFeR,
    NaP,
    ReDo,
    Reset,
    WeightDecay,
)
from agents.interventions.sb3 import InterventionCallback
from plasticity_probes.sb3 import PlasticityCallback
from tests.agents.interventions.sb3_models import (
    MODELS,
    NORMED,
    TWO,
    Heard,
    Listener,
    dqn,
    learnt,
    ppo,
    pull,
    same,
    start,
    whole_state,
)


def test_a_penalty_joins_the_loss_before_gradients_are_clipped():
    model, before, checked = dqn(max_grad_norm=0.5), {}, []
    sample = model.replay_buffer.sample

    def remember(*args, **kwargs):
        before.update(batch=sample(*args, **kwargs), policy=copy.deepcopy(model.policy))
        return before["batch"]

    def hear(listener, surgery, forward, step):
        batch, q_net, target = before["batch"], before["policy"].q_net, before["policy"].q_net_target
        with torch.no_grad():
            goal = batch.rewards + (1 - batch.dones) * 0.99 * target(batch.next_observations).amax(1, keepdim=True)
        first, second, head = q_net.q_net[0], q_net.q_net[2], q_net.q_net[4]
        one = first(batch.observations)
        two = second(one.relu())
        loss = F.smooth_l1_loss(head(two.relu()).gather(1, batch.actions), goal)
        loss = loss + 50 * (one.square().mean() + two.square().mean()) + 3 * first.weight.sum()
        wanted = torch.autograd.grad(loss, list(q_net.parameters()))
        norm = torch.stack([gradient.norm() for gradient in wanted]).norm()
        assert norm > 1
        for parameter, gradient in zip(model.q_net.parameters(), wanted, strict=True):
            torch.testing.assert_close(parameter.grad, gradient * 0.5 / norm, atol=1e-6, rtol=1e-4)
        checked.append(step)

    model.replay_buffer.sample = remember
    learnt(model, [Listener(heard=Heard(penalty=pull, step=hear))])
    assert len(checked) > 10


def test_a_penalty_joins_ppos_loss():
    gradients, wanted = [], []

    def oracle(listener, forward):
        """Of `pull`, on a copy."""
        policy = copy.deepcopy(listener.networks["online"])
        nets, pres = policy.mlp_extractor, []
        for net in (nets.policy_net, nets.value_net):
            pres.append(net[0](forward.observations))
            pres.append(net[2](torch.tanh(pres[-1])))
        penalty = 50 * sum(pre.square().mean() for pre in pres) + 3 * next(policy.parameters()).sum()
        found = torch.autograd.grad(penalty, list(policy.parameters()), allow_unused=True)
        wanted.append([torch.zeros(()) if gradient is None else gradient for gradient in found])

    for penalty in (oracle, pull):

        def hear(listener, surgery, forward, step):
            if step == 1:
                gradients.append([p.grad.clone() for p in listener.networks["online"].parameters()])

        learnt(ppo(max_grad_norm=1e9), [Listener(heard=Heard(penalty=penalty, step=hear))], steps=40)
    assert len(gradients) == 2 and len(gradients[0]) == 12
    for without, given, penalty in zip(*gradients, wanted[0], strict=True):
        torch.testing.assert_close(given - without, penalty.expand_as(given), atol=1e-4, rtol=1e-4)


def adam_of(model, parameter):
    return {key: value.clone() for key, value in model.policy.optimizer.state[parameter].items()}


@pytest.mark.parametrize("name", ["dqn", "ppo"])
def test_redo_replaces_dormant_units_with_their_moments(name):
    model = MODELS[name]()
    layers = model.q_net.q_net if name == "dqn" else model.policy.mlp_extractor.value_net
    first, second = layers[0], layers[2]
    dead = torch.zeros(12, dtype=torch.bool)
    dead[[2, 7]] = True
    kept = {}

    def silence(listener, surgery, forward, step):
        if step == 5:  # ReDo comes next
            with torch.no_grad():
                first.weight[dead], first.bias[dead] = 0.0, 0.0 if name == "ppo" else -1.0
                second.bias += 1.0  # all of its own units are at work
            kept.update(rows=first.weight.clone(), columns=second.weight.clone())
            kept.update(adam={module: adam_of(model, module.weight) for module in (first, second)})

    def look(listener, surgery, forward, step):
        if step != 5:
            return
        assert torch.equal((first.weight != kept["rows"]).any(1), dead)
        assert torch.equal(first.weight[~dead], kept["rows"][~dead]) and (first.bias[dead].abs() <= 0.5).all()
        if name == "ppo":  # parts of rows of an orthogonal 12 x 12 matrix, times sqrt 2
            assert (first.weight[dead].norm(dim=1) <= 2**0.5 + 1e-5).all() and (first.bias[dead] == 0).all()
        else:
            assert (first.weight[dead].abs() <= 0.5).all()
        assert (second.weight[:, dead] == 0).all()
        assert torch.equal(second.weight[:, ~dead], kept["columns"][:, ~dead])
        for module, where in ((first, (dead, slice(None))), (second, (slice(None), dead))):
            now, old = adam_of(model, module.weight), kept["adam"][module]
            assert now["step"] == old["step"] == 5
            for moment in ("exp_avg", "exp_avg_sq"):
                wanted = old[moment].clone()
                assert wanted.abs().sum() > 0
                wanted[where] = 0
                assert torch.equal(now[moment], wanted)

    class Before(Listener):
        name = "before"

    redo = ReDo(tau=0.0, when="every 5 gradient steps")
    chosen = [Before(heard=Heard(step=silence)), redo, Listener(heard=Heard(step=look))]
    _, callback = learnt(model, chosen, steps=60 if name == "dqn" else 40)
    replaced = callback.lifecycle.surgery.replaced["q_net.0" if name == "dqn" else "mlp_extractor.value_net.0"]
    assert int(replaced) >= 2


def test_new_rows_follow_the_law_that_sb3_initialised_ppo_with():
    reset = Reset(last=0, when="every 24 gradient steps")
    model, _ = learnt(ppo(policy_kwargs={"net_arch": [4, 6]}), [reset])
    square = model.policy.mlp_extractor.policy_net[0].weight.double()  # 4 x 4
    torch.testing.assert_close(square @ square.T, 2 * torch.eye(4, dtype=torch.float64), atol=1e-5, rtol=0)
    assert model.policy.action_net.weight.norm(dim=1).allclose(torch.tensor(0.01))
    assert (model.policy.action_net.bias == 0).all()
    plain, _ = learnt(
        ppo(policy_kwargs={"net_arch": [4, 6], "ortho_init": False}), [Reset(last=0, when="every 24 gradient steps")]
    )
    assert (plain.policy.mlp_extractor.policy_net[0].bias != 0).any()


@pytest.mark.parametrize("name", ["dqn", "ppo"])
def test_cbp_replaces_mature_units_with_their_moments(name):
    model, replaced, checked, young = MODELS[name](), [], [], torch.zeros(12, dtype=torch.bool)
    layers = model.q_net.q_net if name == "dqn" else model.policy.mlp_extractor.policy_net

    def remember(listener, layer, units):
        if layer.producer is layers[0]:
            replaced.append(units.mask.clone())

    def look(listener, surgery, forward, step):
        gone = replaced.pop() if replaced else torch.zeros(12, dtype=torch.bool)
        checked.append(int(gone.sum()))
        rows, columns = adam_of(model, layers[0].weight), adam_of(model, layers[2].weight)
        assert torch.equal((layers[2].weight == 0).all(0), gone)
        for moment in ("exp_avg", "exp_avg_sq"):
            assert torch.equal((columns[moment] == 0).all(0), gone)
            assert (rows[moment][gone] == 0).all()
            assert name == "dqn" or (rows[moment][~gone & ~young] != 0).all()  # nobody read the young ones before
        young.copy_(gone)
        assert rows["step"] == columns["step"] == step

    cbp = CBP(replacement_rate=0.25, maturity=5, moments="zero", accumulation="accumulate")
    learnt(model, [cbp, Listener(heard=Heard(replaced=remember, step=look))])
    assert checked[:8] == [0, 0, 0, 0, 0, 3, 2, 2]  # a quarter of 12; of 9, 7 (and what is left over) that are mature


def test_reset_parameters_train_on_and_the_target_gets_them():
    model, seen = dqn(target_update_interval=10**6), []

    def hear(listener, surgery, forward, step):
        head, target = model.q_net.q_net[4], model.q_net_target.q_net[4]
        seen.append((torch.equal(head.weight, target.weight), head.weight.clone(), adam_of(model, head.weight)["step"]))

    learnt(model, [Reset(when="every 6 gradient steps"), Listener(heard=Heard(step=hear))])
    equal, weights, adam_steps = zip(*seen, strict=True)
    assert [step for step, one in enumerate(equal, 1) if one] == list(range(6, len(seen) + 1, 6))
    assert all(not torch.equal(*pair) for pair in itertools.pairwise(weights))
    assert [int(step) for step in adam_steps[:8]] == [1, 2, 3, 4, 5, 0, 1, 2]


def test_the_learning_rate_schedule_is_obeyed_by_all_groups():
    groups = []
    for make in (dqn, ppo):
        model = make(learning_rate=lambda left: 1e-3 * left)

        def hear(listener, surgery, forward, step, model=model):
            rates = {group["lr"] for group in surgery.optimizer.param_groups}
            assert rates == {1e-3 * model._current_progress_remaining}
            groups.append(len(surgery.optimizer.param_groups))

        learnt(model, [InFeR(), WeightDecay(), Listener(heard=Heard(step=hear))])
    assert min(groups) >= 2


def test_groups_keep_sb3s_options_and_take_the_interventions_own():
    def hear(listener, surgery, forward, step):
        for group in surgery.optimizer.param_groups:
            assert group["eps"] == 1e-5 and group["betas"] == (0.9, 0.999)  # PPO's
            for parameter in group["params"]:
                assert group["weight_decay"] == (0.25 if parameter.ndim > 1 else 0.0)

    learnt(ppo({"actions": TWO}), [L2(rate=0.25, include=()), Listener(heard=Heard(step=hear))], steps=40)


PARTS = {
    ("dqn, images", "encoder"): {"features_extractor.cnn", "features_extractor.linear"},
    ("dqn, images", "critic"): {"q_net.0"},
    ("ppo, images, shared", "encoder"): {"features_extractor.cnn", "features_extractor.linear"},
    ("ppo, images, shared", "critic"): {"value_net"},
    ("ppo, continuous, two envs", "actor"): {"mlp_extractor.policy_net", "action_net", "log_std"},
    ("ppo, images, apart", "actor"): {
        *("features_extractor.cnn", "features_extractor.linear", "mlp_extractor.policy_net", "action_net"),
    },
    ("ppo, images, apart", "critic"): {
        *("vf_features_extractor.cnn", "vf_features_extractor.linear", "mlp_extractor.value_net", "value_net"),
    },
}


@pytest.mark.parametrize(("name", "only"), PARTS)
def test_parts(name, only):
    model, callback = MODELS[name](), InterventionCallback([L2(only=only)])
    start(callback, model)
    network = callback.lifecycle.network
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    decayed = [group["params"] for group in model.policy.optimizer.param_groups if group["weight_decay"]]
    found = {names[id(parameter)] for group in decayed for parameter in group}
    short = {".".join(name.split(".")[:2]).removesuffix(".weight").removesuffix(".bias") for name in found}
    assert short == PARTS[name, only]
    policy = dict(getattr(model, "q_net", model.policy).named_parameters())
    assert all(policy[name] is parameter for name, parameter in network.named_parameters())


def test_parts_that_are_not_there():
    for model in (dqn(), MODELS["ppo, images, apart"]()):
        with pytest.raises(ValueError, match="l2.only = 'encoder': must be all or one of"):
            start(InterventionCallback([L2(only="encoder")]), model)


def test_the_logger_tells_what_was_done(tmp_path):
    model, counts = dqn(), {}

    def hear(listener, surgery, forward, step):
        counts.update({name: int(count) for name, count in surgery.replaced.items()})

    model.set_logger(configure(str(tmp_path), ["csv", "log"]))
    chosen = [CBP(maturity=2, replacement_rate=0.1), Listener(heard=Heard(step=hear, penalty=pull))]
    callback = InterventionCallback(chosen)
    model.learn(220, callback=[PlasticityCallback(every=70, samples=20), callback])
    rows = list(csv.DictReader((tmp_path / "progress.csv").open()))
    probed = [row for row in rows if row["probes/weight_norm/total"]]  # written by a logger of the other callback's own
    assert len(probed) == 4 and not any(row["surgery/cbp/replaced"] for row in probed)
    left = {key[2]: int(amount) for key, amount in callback.lifecycle.surgeries().items()}
    for layer in ("q_net.0", "q_net.2"):
        logged = sum(int(row[f"surgery/cbp/replaced/{layer}"] or 0) for row in rows)
        assert logged > 0 and logged + left.get(layer, 0) == counts[layer]
    totals = sum(int(row["surgery/cbp/replaced"] or 0) for row in rows)
    assert totals + sum(left.values()) == sum(counts.values())
    assert any(float(row["train/penalty/listener"] or 0) for row in rows)
    printed = (tmp_path / "log.txt").read_text()
    assert "cbp/replaced " in printed and "cbp/replaced/q_net" not in printed


def test_probes_do_not_meet_interventions():
    latest, states = [], []
    for first in (0, 1):
        model = ppo()
        probes = PlasticityCallback(every=40, samples=20, probes=["gradients", "units"], heavy_factor=1)
        both = [probes, InterventionCallback([Listener(heard=Heard(penalty=pull)), PFO()])]
        model.learn(80, callback=both if first == 0 else both[::-1])
        latest.append(probes.latest)
        states.append(whole_state(model))
    assert latest[0].keys() == latest[1].keys() and same(*latest) and same(*states)


def test_nap_works_where_there_are_norms():
    for make in (dqn, ppo):
        model = make(**NORMED)
        weights = [getattr(model, "q_net", model.policy).features_extractor.layers[n].weight for n in (0, 3)]
        norms = [weight.norm().item() for weight in weights]
        before = [weight.clone() for weight in weights]
        # not at the last step: what a replacement drew is scaled at the end of the step after it
        learnt(model, [ReDo(when="every 7 gradient steps"), PFO(), NaP()])
        assert [weight.norm().item() for weight in weights] == pytest.approx(norms, rel=1e-5)
        assert not any(torch.equal(*pair) for pair in zip(weights, before, strict=True))
    with pytest.raises(ValueError, match=r"nap: 'q_net.0' has no norm before its nonlinearity"):
        learnt(dqn(), [NaP()])
