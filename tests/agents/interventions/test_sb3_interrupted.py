"""Stable-Baselines3's models are plain again when `learn` ends, however it ends; and who may hook one beside whom."""

import gc
import pickle
import weakref

import numpy as np
import pytest
import torch
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    ConvertCallback,
    EvalCallback,
    EveryNTimesteps,
)
from stable_baselines3.common.logger import KVWriter, configure

from agents.interventions import CBP, L2, InFeR, L2Init, ReDo
from agents.interventions.sb3 import InterventionCallback
from plasticity_probes.sb3 import PlasticityCallback
from plasticity_probes.sb3.hooks import _holding, holding, let_go
from tests.agents.interventions.sb3_models import (
    AtSyncs,
    AtTasks,
    Each,
    Heard,
    Listener,
    dqn,
    ppo,
    same,
    start,
    whole_state,
    worlds,
)

KINDS = {"dqn": dqn, "ppo": ppo}
pytestmark = pytest.mark.filterwarnings("ignore:.*never acted")


def traces(model):
    """What anything put on the model would show in."""
    optimizer = model.policy.optimizer
    modules = list(model.policy.modules())
    hooks = [name for module in modules for name, value in vars(module).items() if name.endswith("_hooks") and value]
    hooks += [name for name, value in vars(optimizer).items() if name.endswith("_hooks") and value]
    return {
        "hooks": hooks,
        "of the model": sorted(vars(model)),
        "of the optimizer": sorted(vars(optimizer)),
        "of modules": [sorted(vars(module)) for module in modules],
        "options": [dict(group, params=len(group["params"])) for group in optimizer.param_groups],
        "moments": len(optimizer.state),
        "outputs": [type(output).__name__ for output in model.logger.output_formats],
        "held": len(holding(model)),
    }


class Ends(BaseCallback):
    """Raises an error at one of a callback's occasions, as soon as there have been `steps` steps."""

    def __init__(self, at, error, steps=60):
        super().__init__()
        self.at, self.error, self.steps = at, error, steps

    def __getattribute__(self, attribute):
        found = super().__getattribute__(attribute)
        if attribute == super().__getattribute__("at") and self.model.num_timesteps >= self.steps:
            raise self.error("the end")
        return found

    def _on_step(self):
        return True


class Full(KVWriter):
    """An output that cannot be written to after some steps."""

    def __init__(self, error):
        self.error = error

    def write(self, key_values, key_excluded, step=0):
        if step >= 60:
            raise self.error("the end")

    def close(self):
        pass


def raising(error, count):
    """A function that raises `error` when it is called for the `count`-th time."""
    calls = []

    def called(*_, **__):
        calls.append(1)
        if len(calls) == count:
            raise error("the end")

    return called


def in_the_world(model, error):
    environment = model.get_env().envs[0].unwrapped
    step, end = environment.step, raising(error, 61)
    environment.step = lambda action: end() or step(action)


def in_the_optimizer(model, error):
    model.policy.optimizer.register_step_pre_hook(raising(error, 8))


def in_the_forward_pass(model, error):
    end = raising(error, 8)
    net = model.q_net.q_net if isinstance(model, DQN) else model.policy.value_net
    net.register_forward_pre_hook(lambda *_: end() if torch.is_grad_enabled() else None)


def in_the_logger(model, error):
    model.set_logger(configure(None, []))
    model.logger.output_formats.append(Full(error))


ENDS = {
    "in the world": (in_the_world, "none"),
    "in the forward pass": (in_the_forward_pass, "none"),
    "in the optimizer": (in_the_optimizer, "none"),
    "in the logger": (in_the_logger, "none"),
    "at a step, before": (None, "_on_step"),
    "at a step, after": (None, "_on_step"),
    "at a rollout's start, after": (None, "_on_rollout_start"),
    "at a rollout's end, before": (None, "_on_rollout_end"),
    "at a rollout's end, after": (None, "_on_rollout_end"),
    "at the end, before": (None, "_on_training_end"),
    "at the end, after": (None, "_on_training_end"),
}


def interrupted(kind, end, error, callbacks=()):
    """A model whose `learn` has ended with `error`, and what it was like before it."""
    prepare, at = ENDS[end]
    model = KINDS[kind]()
    model.observation_space.seed(9)
    model.set_logger(configure(None, []))
    if prepare is not None:
        prepare(model, error)
    before, ends = traces(model), Ends(at, error)
    with pytest.raises(error, match="the end"):
        model.learn(90, callback=[ends, *callbacks] if end.endswith("before") else [*callbacks, ends])
    return model, before


def on(model, callback=None):
    """Train on."""
    torch.manual_seed(5)
    np.random.seed(5)
    model.learn(60, callback=callback, reset_num_timesteps=False)


def all_kinds():
    """Probes, and interventions that use everything there is."""
    return [PlasticityCallback(20, samples=16), InterventionCallback([CBP(), InFeR(), Listener(heard=Heard())])]


@pytest.mark.long
@pytest.mark.parametrize(
    ("end", "error"),
    [*((end, KeyboardInterrupt) for end in ENDS), *((end, RuntimeError) for end in ENDS if end.startswith("in the "))],
)
@pytest.mark.parametrize("kind", KINDS)
def test_the_model_is_plain_again_and_trains_on_as_if_it_had_never_been_held(kind, end, error, tmp_path):
    idle = [L2Init(rate=0.0), CBP(replacement_rate=0.0), Listener(heard=Heard())]
    callbacks = [PlasticityCallback(20, samples=16), InterventionCallback(idle)]
    model, before = interrupted(kind, end, error, callbacks)
    plain, _ = interrupted(kind, end, error)
    assert callbacks[1].clock.gradient_steps > 0 and callbacks[0].latest
    after = traces(model)
    assert {**after, "moments": 0} == before
    assert after == traces(plain)
    if end != "in the forward pass":  # where a hook of the test's own is on it
        assert b"agents." not in pickle.dumps(model.q_net if kind == "dqn" else model.policy.mlp_extractor)
    model.save(tmp_path / "model")
    loaded = {"dqn": DQN, "ppo": PPO}[kind].load(tmp_path / "model", device="cpu")
    assert same(loaded.policy.state_dict(), model.policy.state_dict())
    if "in the" not in end or end == "in the optimizer":  # the others go on raising, or not, as they are called
        for one in (model, plain):
            on(one)
        assert same(whole_state(model), whole_state(plain))


class Odd(BaseCallback):
    """Refuses to start."""

    def _on_training_start(self):
        raise KeyboardInterrupt("the end")

    def _on_step(self):
        return True


@pytest.mark.parametrize("kind", KINDS)
def test_an_end_before_the_first_step(kind):
    model, callbacks = KINDS[kind](), all_kinds()
    model.set_logger(configure(None, []))
    before = traces(model)
    with pytest.raises(KeyboardInterrupt):
        model.learn(80, callback=[*callbacks, Odd()])
    assert {**traces(model), "moments": 0} == before
    model.learn(80, callback=callbacks)
    assert callbacks[1].clock.gradient_steps > 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("within", ["callback.Prober", "networks.copy.copy"])
def test_an_end_while_the_probes_are_set_up(kind, within, monkeypatch):
    model, callback = KINDS[kind](), PlasticityCallback(20, samples=16)
    with monkeypatch.context() as patched:
        patched.setattr(f"plasticity_probes.sb3.{within}", raising(KeyboardInterrupt, 1))
        with pytest.raises(KeyboardInterrupt):
            model.learn(80, callback=callback)
    model.learn(80, callback=callback)
    assert callback.latest


@pytest.mark.long
@pytest.mark.parametrize("event", ["penalty", "step", "sync", "task", "replaced"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("kind", KINDS)
def test_an_end_within_an_intervention(kind, error, event):
    heard = Heard(**{event: raising(error, 2)})
    model = KINDS[kind]({"task_steps": 20})
    model.set_logger(configure(None, []))
    before = traces(model)
    chosen = [ReDo(when="every 2 gradient steps", tau=0.9, samples=16), InFeR(), L2(rate=1e-3), Listener(heard=heard)]
    chosen += [AtSyncs(heard=heard), AtTasks(heard=heard)]
    callback = InterventionCallback(chosen)
    with pytest.raises(error, match="the end"):
        model.learn(120, callback=callback)
    after = traces(model)
    assert {**after, "moments": 0} == before and after["moments"] in (0, len(list(model.policy.optimizer.state)))
    learnt = model.q_net if kind == "dqn" else model.policy
    assert set(model.policy.optimizer.state) <= set(learnt.parameters())
    model.learn(80, callback=callback)
    assert callback.clock.gradient_steps > 10


@pytest.mark.parametrize("following", ["the same", "another", "none"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_next_learn_begins_anew(kind, following):
    heard, other = Heard(), Heard()
    callback = InterventionCallback([ReDo(when="every 3 gradient steps", tau=0.5), InFeR(), Listener(heard=heard)])
    model, _ = interrupted(kind, "at a step, after", KeyboardInterrupt, [callback])
    done = callback.clock.gradient_steps
    assert heard.steps() == list(range(1, done + 1)) and done > 0
    heard.events.clear()
    new = InterventionCallback([ReDo(when="every 3 gradient steps", tau=0.5), InFeR(), Listener(heard=other)])
    model.learn(80, callback={"the same": callback, "another": new, "none": None}[following])
    steps = {"the same": heard, "another": other}
    assert not heard.events or following == "the same"
    if following != "none":
        assert steps[following].steps() == list(range(1, (20 if kind == "dqn" else 24) + 1))


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_interrupted_goes_on_as_if_training_had_ended(kind):
    runs = []
    for ends in (True, False):
        callback = InterventionCallback([CBP(maturity=2, replacement_rate=0.2), InFeR(), L2Init()])
        if ends:
            model, _ = interrupted(kind, "at a step, after", KeyboardInterrupt, [callback])
        else:
            model = KINDS[kind]()
            model.observation_space.seed(9)
            model.set_logger(configure(None, []))
            model.learn(90, callback=[callback, ConvertCallback(lambda local, _: local["self"].num_timesteps < 60)])
        first = callback.clock.gradient_steps
        on(model, callback)
        assert callback.clock.gradient_steps > first > 0
        runs.append([whole_state(model), callback.state_dict()])
    assert same(*runs)


def test_what_was_measured_before_the_end_is_written():
    callback = PlasticityCallback(60, samples=16)
    interrupted("dqn", "at a step, after", KeyboardInterrupt, [callback])
    assert callback.latest["probes/weight_norm/total"] > 0  # it waited for the churn of an update that never came
    assert not any("churn" in tag for tag in callback.latest)


class OwnLearn(DQN):
    """Trains by a loop of its own, which no wrapper sees."""

    def learn(self, total_timesteps, callback=None, **_):
        _, callback = self._setup_learn(total_timesteps, callback, True)
        callback.on_training_start(locals(), globals())
        raise KeyboardInterrupt


@pytest.mark.parametrize("following", ["new", "the same", "none"])
def test_a_dead_training_of_another_kind_is_let_go_by_the_next(following):
    model = dqn()
    model.set_logger(configure(None, []))
    before, callbacks = traces(model), all_kinds()
    model.__class__ = OwnLearn
    with pytest.raises(KeyboardInterrupt):
        model.learn(80, callback=callbacks)
    assert traces(model) != before
    model.__class__ = DQN
    again = {"new": all_kinds(), "the same": callbacks, "none": []}[following]
    model.learn(80, callback=again)
    assert {**traces(model), "moments": 0} == before
    model.__class__ = OwnLearn
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            model.learn(80, callback=all_kinds())
    assert len(holding(model)) == 2  # the ones before them have let go
    let_go(model)
    assert {**traces(model), "moments": 0} == before


@pytest.mark.parametrize("own_learn", [True, False])
def test_a_model_is_forgotten_with_its_last_user(own_learn):
    model, callbacks = dqn(), all_kinds()
    model.__class__ = OwnLearn if own_learn else DQN
    with pytest.raises(KeyboardInterrupt):
        model.learn(80, callback=[*callbacks, Each(raising(KeyboardInterrupt, 50))])
    gone = weakref.ref(model)
    del model, callbacks
    gc.collect()
    assert gone() is None
    assert not any(holders for holders in _holding.values())


@pytest.mark.parametrize("place", ["list", "nested list", "nested in one", "one and the same"])
@pytest.mark.parametrize("kind", KINDS)
def test_two_intervention_callbacks_are_refused_by_name(kind, place):
    first, second = InterventionCallback([ReDo(), L2Init()]), InterventionCallback([CBP()])
    callback = {
        "list": [first, second],
        "nested list": CallbackList([first, CallbackList([second])]),
        "nested in one": [CallbackList([CallbackList([first]), second])],
        "one and the same": [first, first],
    }[place]
    message = "two on one model, of redo, l2_init and of cbp; give one callback all of them"
    model = KINDS[kind]()
    model.set_logger(configure(None, []))
    before = traces(model)
    with pytest.raises(ValueError, match="is given twice" if place == "one and the same" else message):
        model.learn(80, callback=callback)
    assert traces(model)["hooks"] == [] and {**traces(model), "moments": 0} == before
    model.learn(80, callback=first)
    assert first.clock.gradient_steps > 0


@pytest.mark.parametrize("make", [lambda: InterventionCallback([L2()]), lambda: PlasticityCallback(20, samples=16)])
@pytest.mark.parametrize("place", ["EveryNTimesteps", "a list in it", "EvalCallback", "on a new best", "a list there"])
def test_a_place_within_another_callback_is_refused(make, place):
    mine, model = make(), dqn()
    model.set_logger(configure(None, []))
    before = traces(model)
    evaluation = {"eval_freq": 20, "n_eval_episodes": 1, "verbose": 0, "warn": False}
    callback = {
        "EveryNTimesteps": lambda: EveryNTimesteps(10, mine),
        "a list in it": lambda: [EveryNTimesteps(10, CallbackList([mine]))],
        "EvalCallback": lambda: EvalCallback(worlds(), callback_after_eval=mine, **evaluation),
        "on a new best": lambda: EvalCallback(worlds(), callback_on_new_best=mine, **evaluation),
        "a list there": lambda: EvalCallback(worlds(), callback_on_new_best=CallbackList([mine]), **evaluation),
    }[place]()
    with pytest.raises((ValueError, RuntimeError), match="must be given to learn\\(\\) itself or in a list"):
        model.learn(80, callback=callback)
    assert {**traces(model), "moments": 0} == before
    model.learn(80, callback=mine)  # as it was told


def test_learn_within_learn_does_not_quietly_end_the_interventions():
    model = dqn()
    once = raising(ZeroDivisionError, 50)

    def inner(model):
        try:
            once()
        except ZeroDivisionError:
            model.learn(10, reset_num_timesteps=False)

    with pytest.raises(RuntimeError, match="learn\\(\\) must not be called within learn\\(\\)"):
        model.learn(80, callback=[InterventionCallback([L2()]), Each(inner)])


@pytest.mark.parametrize("probes_first", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_probes_beside_interventions_in_both_orders(kind, probes_first):
    states = []
    for probed in (True, False):
        model, probes = KINDS[kind](), PlasticityCallback(20, samples=16)
        callback = InterventionCallback([ReDo(when="every 3 gradient steps", tau=0.5, samples=16), InFeR(), L2Init()])
        order = [probes, callback] if probes_first else [callback, probes]
        model.observation_space.seed(9)
        model.learn(80, callback=order if probed else callback)
        states.append([whole_state(model), callback.state_dict()])
        assert not probed or {"probes/weight_norm/total", "probes/dormant_fraction/tau=0.025/all"} <= set(probes.latest)
    assert same(*states)


def test_two_probe_callbacks_measure_probes_of_their_own():
    def learnt(*callbacks):
        model = ppo()
        model.observation_space.seed(9)
        model.learn(120, callback=list(callbacks))
        return whole_state(model)

    def kinds():
        return PlasticityCallback(20, ("weights", "churn"), samples=16), PlasticityCallback(60, "units", samples=16)

    alone, together = kinds(), kinds()
    states = [learnt(alone[0]), learnt(alone[1]), learnt(*together), learnt()]
    assert all(same(state, states[-1]) for state in states)
    for one, other in zip(alone, together, strict=True):
        assert one.latest == other.latest and one.latest
    with pytest.raises(ValueError, match="two of them would measure weights, churn of one model"):
        learnt(PlasticityCallback(20), PlasticityCallback(60, ("churn", "weights")))


def test_names_stand_for_interventions_with_their_defaults():
    chosen = InterventionCallback(["redo", L2Init(rate=1e-2), "l2"]).chosen
    assert chosen == (ReDo(), L2Init(rate=1e-2), L2())
    both = InterventionCallback(["redo_l2"])
    assert [one.name for one in both.chosen] == ["adam_betas", "l2", "redo"]
    assert both.chosen[2].when == "every 100 gradient steps"  # as Dohare24's
    model = dqn()
    model.learn(80, callback=both)
    assert both.clock.gradient_steps == 20


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("redo", "interventions = 'redo': must be a list of interventions or their names"),
        (ReDo(), r"interventions = ReDo\(.*: must be a list"),
        (ReDo, "interventions = .*ReDo.*: must be a list"),
        ({"redo": {}}, "interventions = .*: must be a list"),
        ({"redo"}, "interventions = .*: must be a list"),
        (None, "interventions = None: must be a list"),
        (3, "interventions = 3: must be a list"),
        ([ReDo], r"interventions: ReDo is a class: must be an object, such as ReDo\(\)"),
        ([["redo"]], r"interventions: \['redo'\] is neither an intervention nor the name of one"),
        ([None], "interventions: None is neither"),
        (["layernorm"], "interventions = 'layernorm': must be some of .*layer_norm"),
        (["redo", ReDo()], "interventions: redo is given twice"),
        (["redo_l2", "redo"], "interventions: redo is given twice"),
    ],
)
def test_what_is_no_list_of_interventions_is_told_in_a_sentence(given, message):
    with pytest.raises(ValueError, match=message):
        InterventionCallback(given)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"moments": "none"}, "moments = 'none': must be own, zero, keep, mean, local"),
        ({"moments": None}, "moments = None: must be own"),
        ({"seed": -1}, "seed = -1: must be at least 0"),
        ({"seed": "a"}, "seed = 'a': must be a whole number"),
        ({"seed": 0.5}, "seed = 0.5: must be a whole number"),
    ],
)
def test_its_other_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        InterventionCallback([], **settings)


def test_what_is_started_by_hand_is_let_go_by_hand():
    model, callback = dqn(), InterventionCallback([L2()])
    model.set_logger(configure(None, []))
    before = traces(model)["hooks"]
    start(callback, model)
    assert traces(model)["hooks"] != before
    for _ in range(2):
        callback.let_go()
        assert traces(model)["hooks"] == before == []
