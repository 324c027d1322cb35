"""Continual backprop beside a slow re-statement of the paper, unit by unit in float64."""

import copy
import io
import itertools

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from agents import C51Config, DQNConfig, PPOConfig, build_agent
from agents.config import NetworkConfig
from agents.interventions import CBP, COMBINATIONS, Forward, Intervention, LayerNorm, ReDo, Slots
from agents.randomness import Generators
from plasticity_probes.units import activations
from tests.agents.helpers import ATARI, CONTINUOUS, CPU, VECTOR, NoiseWorld, drive, same_tree
from tests.agents.interventions.models import MODELS, Model, Patient, vectors
from tests.agents.interventions.test_static import NoReadBack


class Listener(Intervention):
    """Notes who was replaced since it was last asked."""

    name = "listener"

    def __init__(self):
        self.heard = {}

    def on_replaced(self, layer, units):
        self.heard[layer.name] = set(np.flatnonzero(units.mask.numpy()))

    def take(self):
        heard, self.heard = self.heard, {}
        return {name: units for name, units in heard.items() if units}


class SlowCBP:
    """Dohare24's algorithm 1, one unit and one weight at a time."""

    def __init__(self, cbp, layers):
        self.cbp, self.layers = cbp, layers
        self.age = {layer.name: [0] * layer.units for layer in layers}
        self.utility = {layer.name: [0.0] * layer.units for layer in layers}
        self.mean = {layer.name: None for layer in layers}
        self.left = {layer.name: 0.0 for layer in layers}
        self.columns, self.weights = {}, {}

    def forget(self, name, units):
        for unit in units:
            self.age[name][unit], self.utility[name][unit] = 0, 0.0
            if self.mean[name] is not None:
                self.mean[name][unit :: len(self.age[name])] = 0

    def step(self, posts, draws):
        """What is to be replaced by layer, given hidden values as arrays [batch, units (times), positions...] and a
        uniform draw a layer."""
        self.weights = {}
        for layer in self.layers:
            self._measure(layer, posts[layer.name].reshape(*posts[layer.name].shape[:2], -1))
        chosen = {}
        for layer, draw in zip(self.layers, draws, strict=True):
            eligible = [u for u in range(layer.units) if self.age[layer.name][u] > self.cbp.maturity]
            for _ in range(self._number(layer.name, len(eligible), draw)):
                lowest = min(eligible, key=lambda unit: self._rank(layer.name, unit))
                eligible.remove(lowest)
                chosen.setdefault(layer.name, set()).add(lowest)
        for name, units in chosen.items():
            self.forget(name, units)
        return chosen

    def _number(self, name, eligible, draw):
        share = self.cbp.replacement_rate * eligible
        if self.cbp.accumulation == "bernoulli":
            return int(share) + (draw < share - int(share))
        self.left[name] += share
        number = int(self.left[name])
        self.left[name] -= number
        return number

    def _rank(self, name, unit):
        short = 1 - self.cbp.decay ** self.age[name][unit]
        return self.utility[name][unit] / (short if self.cbp.correct_utility else 1)

    def _measure(self, layer, post):
        name, decay, kind = layer.name, self.cbp.decay, self.cbp.utility
        if self.mean[name] is None:
            self.mean[name] = np.zeros(post.shape[1])
        for unit in range(layer.units):
            self.age[name][unit] += 1
            mine, age = post[:, unit :: layer.units], self.age[name][unit]  # [batch, copies, positions]
            means = self.mean[name][unit :: layer.units]
            means[:] = decay * means + (1 - decay) * mine.mean((0, 2))
            centre = means / (1 - decay**age) if kind in CENTRED else np.zeros_like(means)
            size = np.abs(mine - centre[:, None]).mean(0)
            made = 1.0
            if kind in ("contribution", "zero_contribution", "adaptable_contribution", "weight"):
                made = self._outgoing(layer, unit, np.ones_like(size) if kind == "weight" else size)
            elif kind == "feature_by_input":
                made = size.mean()
            if kind in ("adaptation", "adaptable_contribution", "feature_by_input"):
                made /= self.now(layer.producer)[unit].mean()
            self.utility[name][unit] = decay * self.utility[name][unit] + (1 - decay) * made

    def _outgoing(self, layer, unit, size):
        total, weights = 0.0, 0
        for consumer, owner in layer.consumers:
            if consumer not in self.columns:
                mine = [[c for c, u in enumerate(owner.tolist()) if u == unit] for unit in range(layer.units)]
                self.columns[consumer] = mine, set(map(len, mine))
            (mine, counts), values = self.columns[consumer], self.now(consumer)
            for place, column in enumerate(mine[unit]):
                held = size.mean()
                if counts == {size.size}:
                    held = size.flatten()[place]
                elif counts == {len(size)}:
                    held = size[place].mean()
                total, weights = total + values[:, column].sum() * held, weights + values[:, column].size
        return total / max(weights, 1)

    def now(self, module):
        """|w| at this step."""
        if module not in self.weights:
            self.weights[module] = np.abs(module.weight.detach().double().numpy())
        return self.weights[module]


CENTRED = ("zero_contribution", "adaptable_contribution", "feature_by_input")


class Bench:
    """A network whose weights move a little at random, hidden values made up, CBP, and its slow twin beside it."""

    def __init__(self, kind="mlp", seed=0, slow=True, host=True, batch=5, **settings):
        self.cbp, self.listener = CBP(**settings), Listener()
        self.patient = Patient(*MODELS[kind], interventions=[self.cbp, self.listener], steps=1)
        self.cbp.layers = tuple(self.patient.layers)
        self.cbp.attach({"online": self.patient.network}, Generators(1))
        self.cbp._may_look = host
        self.rng, self.steps, self.batch = np.random.default_rng(seed), 0, batch
        self.slow = SlowCBP(self.cbp, [follow.layer for follow in self.cbp._followed]) if slow else None
        found = activations(self.patient.network, self.patient.batch)
        self.shapes = {name: value.post.shape[1:] for name, value in found.items()}
        self.scales = {
            n: self.rng.lognormal(0, 0.7, s[0]).reshape(-1, *[1] * (len(s) - 1)) for n, s in self.shapes.items()
        }

    def step(self, batch=None, dtype=torch.float32):
        """One gradient step, hidden values rounded to `dtype` (or to one for each layer); who was replaced, and who
        should have been."""
        self.steps += 1
        with torch.no_grad():
            for parameter in self.patient.network.parameters():
                noise = self.rng.normal(0, 0.03, parameter.shape)
                parameter.mul_(0.98).add_(torch.from_numpy(noise).to(parameter))
        posts = {}
        for name, shape in self.shapes.items():
            values = self.scales[name] * self.rng.standard_normal((batch or self.batch, *shape)) + 0.3
            negative = self.cbp._followed[0].layer.activation not in ("relu", "crelu")
            kind = dtype[len(posts)] if isinstance(dtype, list) else dtype
            posts[name] = torch.from_numpy(values if negative else np.maximum(values, 0)).to(kind)
        captured = {name: (None, post.clone().requires_grad_()) for name, post in posts.items()}
        draws, expected = torch.from_numpy(self.rng.random(len(self.cbp._followed))), None
        if self.slow is not None:
            expected = self.slow.step({name: post.double().numpy() for name, post in posts.items()}, draws.tolist())
        forward = Forward(self.patient.network, self.patient.batch, captured)
        self.cbp.every_step(self.patient.surgery, forward, {"chance": draws})
        return self.listener.take(), expected

    def check_state(self):
        for follow in self.cbp._followed:
            assert follow.ages.tolist() == self.slow.age[follow.layer.name]
            slow = self.slow.utility[follow.layer.name]
            np.testing.assert_allclose(follow.utilities.numpy(), slow, rtol=3e-5, atol=1e-9)


LIVELY = {"replacement_rate": 0.01, "maturity": 20, "decay": 0.9}


@pytest.mark.parametrize("accumulation", ["accumulate", "bernoulli"])
@pytest.mark.parametrize("correct_utility", [True, False])
@pytest.mark.parametrize("host", [True, False])
def test_the_same_units_as_the_paper_over_thousands_of_steps(accumulation, correct_utility, host):
    settings = {"replacement_rate": 0.01, "maturity": 5, "decay": 0.97}
    bench = Bench(accumulation=accumulation, correct_utility=correct_utility, host=host, **settings)
    replaced = 0
    for step in range(2000 if host and correct_utility else 250):
        heard, expected = bench.step(batch=5 if step % 700 else 3)
        assert heard == expected, step
        replaced += sum(map(len, heard.values()))
        if step % 37 == 5:  # somebody else replaces, before or after CBP's turn in this step
            units = {"a": torch.tensor([False, True, False, False, step % 2 == 0, False])}
            bench.patient.surgery.replace(units)
            bench.slow.forget("a", np.flatnonzero(units["a"].numpy()))
            bench.listener.take()
        if step % 101 == 0:
            bench.check_state()
    assert replaced > 15
    counts = bench.patient.surgery.replaced
    assert sum(map(int, counts.values())) > replaced


KINDS = ["plain mlp", "conv", "conv -> flatten -> linear", "conv, channels last", "crelu", "two consumers"]
KINDS += ["part of a flatten", "duelling", "actor, critic", "conv with norms", "layer norm", "sb3 dqn", "sb3 cnn"]


@pytest.mark.parametrize("kind", KINDS)
def test_units_and_utilities_in_every_kind_of_network(kind):
    bench = Bench(kind, replacement_rate=0.03, maturity=4, decay=0.8)
    replaced = 0
    for step in range(40):
        heard, expected = bench.step()
        assert heard == expected, step
        replaced += sum(map(len, heard.values()))
    bench.check_state()
    assert replaced >= 3


@pytest.mark.parametrize(
    "utility", ["zero_contribution", "adaptable_contribution", "weight", "adaptation", "feature_by_input"]
)
@pytest.mark.parametrize("kind", ["mlp", "crelu", "conv -> flatten -> linear"])
def test_the_other_utilities(utility, kind):
    bench = Bench(kind, replacement_rate=0.03, maturity=4, decay=0.8, utility=utility)
    replaced = 0
    for step in range(40):
        heard, expected = bench.step()
        assert heard == expected, step
        replaced += sum(map(len, heard.values()))
    bench.check_state()
    assert replaced >= 3


def test_hidden_values_of_half_the_precision():
    for kind in ("mlp", "conv -> flatten -> linear"):
        bench = Bench(kind, **LIVELY)
        for _ in range(100):
            heard, expected = bench.step(dtype=torch.bfloat16)
            assert heard == expected
        bench.check_state()


def test_layers_of_different_precision_side_by_side():
    """CUDA's autocast gives float32 out of a LayerNorm and half of that without."""
    bench, dtypes = Bench("actor, critic", **LIVELY), itertools.cycle([torch.bfloat16, torch.float32])
    for _ in range(60):
        heard, expected = bench.step(dtype=[next(dtypes) for _ in range(len(bench.shapes) + 1)])
        assert heard == expected
    bench.check_state()


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32 by default", "float64 by default"])
def default_dtype(request):
    torch.set_default_dtype(request.param)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])  # Adam itself fails in float16
@pytest.mark.parametrize("utility", ["contribution", "adaptable_contribution"])
def test_networks_of_other_precision(dtype, utility, default_dtype):
    build, batch = MODELS["conv -> flatten -> linear"]
    patient = Patient(lambda: build().to(dtype), lambda: batch().to(dtype), steps=1)
    cbp = CBP(replacement_rate=0.1, maturity=2, utility=utility, bias_correction=True)
    cbp.layers = tuple(patient.layers)
    cbp.attach({"online": patient.network}, Generators(0))
    for _ in range(29):
        patient.train()
        found = activations(patient.network, patient.batch)
        captured = {name: (None, values.post) for name, values in found.items()}
        cbp.every_step(patient.surgery, Forward(patient.network, patient.batch, captured), {})
    assert sum(map(int, patient.surgery.replaced.values())) >= 10
    assert all(parameter.isfinite().all() for parameter in patient.network.parameters())


def test_by_hand():
    # two units of tanh, |h| 1 and 2, outgoing weights 3 and 1, decay 1/2: y = 3 and 2; u = y (1 - 1/2^t);
    # unit 1 goes first: of two eligible units at rate 1/4 every second step one
    build = lambda: Model(lambda m, x: m.b(torch.tanh(m.a(x))), a=nn.Linear(5, 2), b=nn.Linear(2, 1))  # noqa: E731
    cbp, listener = CBP(replacement_rate=0.25, maturity=3, decay=0.5), Listener()
    patient = Patient(build, vectors, interventions=[cbp, listener], steps=0)
    cbp.layers = tuple(patient.layers)
    cbp.attach({"online": patient.network}, Generators(0))
    with torch.no_grad():
        patient.network.b.weight.copy_(torch.tensor([[-3.0, 1.0]]))
    forward = Forward(patient.network, patient.batch, {"a": (None, torch.tensor([[1.0, -2.0], [-1.0, 2.0]]))})
    heard = []
    for _ in range(6):
        cbp.every_step(patient.surgery, forward, {})
        heard.append(listener.take())
    # step 4: ages 4, share .5; step 5: 1.0, so unit 1; then unit 0 alone: .25 at step 6
    assert heard == [{}, {}, {}, {}, {"a": {1}}, {}]
    state = cbp.state_dict()["layers"]["a"]
    assert state["accumulated"] == 0.25
    assert state["ages"].tolist() == [6, 1]
    used = [3 * (1 - 2.0**-6), 0.0]  # the new unit feeds nobody yet
    torch.testing.assert_close(state["utilities"], torch.tensor(used))
    assert patient.network.b.weight.tolist() == [[-3.0, 0.0]]


@pytest.mark.parametrize(
    ("kind", "accumulation", "moments"),
    [
        ("actor, critic", "accumulate", "zero"),
        ("actor, critic", "bernoulli", "local"),
        ("conv -> flatten -> linear", "accumulate", "local"),
        ("conv -> flatten -> linear", "bernoulli", "keep"),
        ("crelu", "accumulate", "keep"),
        ("crelu", "bernoulli", "mean"),
    ],
)
def test_the_path_without_readback_makes_the_same_edits(kind, accumulation, moments):
    settings = {"replacement_rate": 0.05, "maturity": 7, "decay": 0.9, "bias_correction": kind == "crelu"}
    settings |= {"accumulation": accumulation, "moments": moments}
    benches = [Bench(kind, slow=False, host=host, **settings) for host in (True, False)]
    for bench in benches:  # the rows drawn for slots that turn out invalid would move the generator

        def draw(layer, rows, surgery=bench.patient.surgery):
            weight = surgery.of(layer).layer.producer.weight
            return torch.full((rows, *weight.shape[1:]), 0.25), torch.full((rows,), -0.5)

        bench.patient.surgery.draw = draw
    total = 0
    for _ in range(60):
        (first, _), (second, _) = (bench.step() for bench in benches)
        assert first == second
        total += sum(map(len, first.values()))
        for bench in benches:
            for parameter in bench.patient.network.parameters():
                parameter.grad = torch.full_like(parameter, 0.01)
            bench.patient.adam.step()
            bench.patient.surgery.after_optimizer_step()
    assert total > 10
    for mine, theirs in zip(*(bench.patient.network.parameters() for bench in benches), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)
    first, second = (bench.patient.adam.state_dict()["state"] for bench in benches)
    for key, state in first.items():
        for name, value in state.items():
            torch.testing.assert_close(value, second[key][name], rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("host", [True, False])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"accumulation": "bernoulli"},
        {"utility": "adaptable_contribution"},
        {"bias_correction": True},
        {"replacement_rate": 1e-4, "maturity": 100},  # nobody looks for long
    ],
)
@pytest.mark.parametrize("used", [0, 70])
def test_a_restored_run_goes_on_bit_for_bit_and_saving_changes_nothing(settings, host, used):
    kinds = {**LIVELY, **settings}
    first, second, third = (Bench("mlp", slow=False, host=host, **kinds) for _ in range(3))
    steps = 197
    for _ in range(steps):
        first.step()
        third.step()
    for _ in range(used):
        second.step()
    file = io.BytesIO()
    torch.save({"cbp": first.cbp.state_dict(), "surgery": first.patient.surgery.state_dict()}, file)
    state = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    kept = copy.deepcopy(state)
    second.patient.network.load_state_dict(first.patient.network.state_dict())
    second.cbp.load_state_dict(state["cbp"])
    second.patient.surgery.load_state_dict(state["surgery"])
    second.patient.surgery.generator.set_state(first.patient.surgery.generator.get_state())  # a registry's in a run
    second.rng, second.steps = copy.deepcopy(first.rng), first.steps
    for _ in range(150):
        heard = [bench.step()[0] for bench in (first, second, third)]
        assert heard[0] == heard[1] == heard[2]
    for other in (second, third):
        assert same_tree(first.cbp.state_dict(), other.cbp.state_dict())
        assert same_tree(first.patient.network.state_dict(), other.patient.network.state_dict())
    assert same_tree(state, kept)


@pytest.mark.parametrize("settings", [{"utility": "zero_contribution"}, {"bias_correction": True}])
def test_a_state_without_averages_is_restored_into_one_that_has_some(settings):
    fresh, used = (Bench("conv -> flatten -> linear", slow=False, **LIVELY, **settings) for _ in range(2))
    used.step()
    used.cbp.load_state_dict(fresh.cbp.state_dict())
    used.patient.network.load_state_dict(fresh.patient.network.state_dict())
    used.rng = copy.deepcopy(fresh.rng)
    for _ in range(30):
        assert used.step()[0] == fresh.step()[0]
    assert same_tree(used.cbp.state_dict()["layers"], fresh.cbp.state_dict()["layers"])


def test_ages_and_utilities_that_an_earlier_version_saved_are_taken_over():
    # it counted shares as numbers, was some steps behind, and said so
    bench = Bench(slow=False, **LIVELY)
    kept = {"accumulated": 0.5, "means": None, "trains": True}
    layers = {
        layer.name: {"ages": torch.arange(layer.units), "utilities": torch.rand(layer.units), **kept}
        for layer in bench.cbp.layers
    }
    state = {"layers": layers, "kept": [{"batch": 5, "kept": None}], "oldest": 30, "behind": 3}
    bench.cbp.load_state_dict(state)
    now = bench.cbp.state_dict()["layers"]
    assert all(torch.equal(now[name]["ages"], old["ages"]) for name, old in layers.items())
    assert all(torch.equal(now[name]["utilities"], old["utilities"]) for name, old in layers.items())
    assert [float(each["accumulated"]) for each in now.values()] == [0.5, 0.5]
    bench.step()


def test_nobody_is_looked_at_before_anyone_can_be_mature():
    bench = Bench(slow=False, replacement_rate=0.5, maturity=10)
    for _ in range(10):
        assert bench.step()[0] == {}
    assert bench.step()[0]
    again = Bench(slow=False, replacement_rate=0.5, maturity=10)
    again.cbp.load_state_dict(bench.cbp.state_dict())  # its units are old although it has made no step
    assert again.step()[0]
    assert Bench(slow=False, replacement_rate=1.0, maturity=0).step()[0] == {"a": set(range(6)), "b": set(range(7))}


@pytest.mark.parametrize("kind", ["mlp", "conv -> flatten -> linear", "crelu", "duelling", "actor, critic"])
def test_compensation_keeps_what_consumers_receive_in_the_mean(kind):
    # hidden values that do not change are their own running average, whatever the age
    bench = Bench(kind, slow=False, replacement_rate=0.3, maturity=6, decay=0.9, bias_correction=True)
    network = bench.patient.network
    posts = {name: torch.rand(1, *shape).expand(4, *shape) for name, shape in bench.shapes.items()}
    forward = Forward(network, bench.patient.batch, {name: (None, post) for name, post in posts.items()})
    names = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    compared = 0
    for _ in range(11):
        before = {n: copy.deepcopy(network.get_submodule(n)) for n in names}
        bench.cbp.every_step(bench.patient.surgery, forward, {})
        for name, units in bench.listener.take().items():
            for module, owner in bench.patient.surgery.layers[name].consumers:
                consumer = next((n for n in names if network.get_submodule(n) is module), None)
                if consumer is None:  # a convolution
                    continue
                gone = torch.isin(owner, torch.tensor(sorted(units)))
                inputs = posts[name].flatten(1)
                old, new = before[consumer](inputs), module(torch.where(gone, 0, inputs))
                rows = (before[consumer].weight == module.weight)[:, ~gone].all(1)  # those not replaced themselves
                torch.testing.assert_close(new[:, rows], old[:, rows], atol=1e-5, rtol=1e-5)
                compared += int(rows.sum())
    assert compared > 3


def test_what_cannot_absorb_is_refused_at_once():
    with pytest.raises(ValueError, match=r"cbp\.bias_correction: a Linear that reads 'b' has no bias"):
        Bench("plain mlp", bias_correction=True)
    with pytest.raises(
        ValueError, match=r"cbp\.bias_correction: a Linear that reads 'a' does not read all units alike"
    ):
        Bench("part of a flatten", bias_correction=True)


def test_the_authors_own_setting():
    expected = {"replacement_rate": 1e-4, "maturity": 10_000, "decay": 0.99, "utility": "contribution", "only": "all"}
    expected |= {"accumulation": "bernoulli", "correct_utility": True, "bias_correction": False, "moments": "keep"}
    assert CBP(**COMBINATIONS["cbp_l2"]["cbp"]).parameters() == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"replacement_rate": 1.5}, r"cbp\.replacement_rate = 1\.5: must be in \[0, 1\]"),
        ({"maturity": -1}, r"cbp\.maturity = -1: must be >= 0"),
        ({"decay": 1.0}, r"cbp\.decay = 1\.0: must be in \[0, 1\)"),
        ({"utility": "random"}, r"cbp\.utility = 'random': must be contribution"),
        ({"accumulation": "no"}, r"cbp\.accumulation = 'no': must be accumulate or bernoulli"),
        ({"moments": "half"}, r"cbp\.moments = 'half': must be zero, keep, mean or local"),
    ],
)
def test_bad_parameters_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        CBP(**settings)


def test_layers_that_cannot_be_taken_apart_or_do_not_train_are_refused():
    build = lambda: Model(  # noqa: E731
        lambda m, x: m.c(F.relu(m.b(F.relu(m.a(x)))) + F.relu(m.a(x))),
        a=nn.Linear(5, 5),
        b=nn.Linear(5, 5),
        c=nn.Linear(5, 3),
    )
    for kind in (CBP(), ReDo()):
        patient = Patient(build, vectors)
        kind.layers = tuple(patient.layers)
        with pytest.raises(ValueError, match=f"{kind.name}: the units of 'a' cannot be replaced one by one: "):
            kind.attach({"online": patient.network}, Generators(0))
        frozen = Patient(*MODELS["mlp"])
        frozen.network.requires_grad_(False)
        kind.layers = tuple(frozen.layers)
        with pytest.raises(ValueError, match=f"{kind.name}: there is no hidden layer that trains"):
            kind.attach({"online": frozen.network}, Generators(0))
        kind.layers = ()
        with pytest.raises(ValueError, match="there is no hidden layer"):
            kind.attach({"online": frozen.network}, Generators(0))


@pytest.mark.parametrize("host", [True, False])
def test_a_frozen_layer_rests_and_is_new_when_it_thaws(host):
    bench = Bench("duelling", slow=False, host=host, replacement_rate=0.5, maturity=5)
    for _ in range(3):
        bench.step()
    bench.patient.network.b.weight.requires_grad_(False)
    heard = [bench.step()[0] for _ in range(128)]
    assert not any("b" in each for each in heard) and any("a" in each for each in heard)
    bench.patient.network.b.weight.requires_grad_(True)
    heard = [bench.step()[0] for _ in range(128)]
    first = next(step for step, each in enumerate(heard, 1) if "b" in each)
    assert first == 6  # age 1 at the first gradient step after the thaw, mature beyond 5


SMALL = NetworkConfig(width=16, depth=2)
AGENTS = {
    "dqn": (
        DQNConfig(batch_size=8, buffer_size=500, learning_starts=20, replay_ratio=1.0, target_period=7),
        VECTOR,
    ),
    "c51": (C51Config(batch_size=8, buffer_size=500, learning_starts=20, replay_ratio=1.0, target_period=7), VECTOR),
    "ppo": (PPOConfig(rollout_steps=32, num_minibatches=4, update_epochs=2), VECTOR),
    "ppo, two torsos": (
        PPOConfig(rollout_steps=32, num_minibatches=4, update_epochs=2, shared_torso=False),
        CONTINUOUS,
    ),
}


def agent_of(name, interventions, seed=0, moments="own"):
    config, spaces = AGENTS[name]
    config = type(config)(**{**vars(config), "network": SMALL})
    return build_agent(config, spaces, 2, Generators(seed), CPU, interventions=interventions, moments=moments), spaces


def weights_of(agent):
    return {name: tensor.clone() for name, tensor in agent.network.state_dict().items()}


@pytest.mark.parametrize("name", AGENTS)
def test_it_works_in_agents_beside_others(name):
    chosen = [
        LayerNorm(),
        CBP(replacement_rate=0.02, maturity=5),
        ReDo(tau=0.2, when="every 11 gradient steps", samples=8),
    ]
    agent, spaces = agent_of(name, chosen, moments="local" if name == "c51" else "own")
    drive(agent, NoiseWorld(spaces, 2), 64)
    done = agent.learner.interventions.surgeries()
    assert {who for who, what, _ in done if what == "replaced"} == {"cbp", "redo"}
    assert all(int(count) > 0 for (who, *_), count in done.items() if who == "cbp")
    assert all(torch.isfinite(tensor).all() for tensor in weights_of(agent).values())


@pytest.mark.parametrize("moments", ["own", "local"])
def test_a_restored_agent_goes_on_bit_for_bit(moments):
    chosen = [LayerNorm(), CBP(replacement_rate=0.02, maturity=5)]
    agent, spaces = agent_of("dqn", chosen, moments=moments)
    drive(agent, NoiseWorld(spaces, 2), 32)
    file = io.BytesIO()
    torch.save([agent.state_dict(), agent.generators.state_dict()], file)
    twin, _ = agent_of("dqn", chosen, seed=1, moments=moments)
    state, streams = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    twin.load_state_dict(state)
    twin.generators.load_state_dict(streams)
    twin.replay = copy.deepcopy(agent.replay)
    for _ in range(30):
        agent.update()
        twin.update()
    assert same_tree(agent.state_dict(), twin.state_dict())
    assert sum(int(count) for count in agent.learner.interventions.surgery.replaced.values()) > 10


@pytest.mark.parametrize("name", AGENTS)
def test_at_rate_zero_the_run_is_the_run_without(name):
    found = []
    for chosen in ([], [CBP(replacement_rate=0.0, maturity=0)], [CBP(maturity=10_000)]):
        agent, spaces = agent_of(name, chosen)
        drive(agent, NoiseWorld(spaces, 2), 64)
        found.append(weights_of(agent))
    assert same_tree(found[0], found[1]) and same_tree(found[0], found[2])


def test_one_part_alone():
    agent, spaces = agent_of("ppo, two torsos", [CBP(replacement_rate=0.05, maturity=2, only="critic")])
    drive(agent, NoiseWorld(spaces, 2), 64)
    replaced = [where for _, what, where in agent.learner.interventions.surgeries() if what == "replaced"]
    assert replaced and all(where.startswith("critic") for where in replaced)


def test_several_each_keep_their_effect():
    settings = {"replacement_rate": 0.02, "maturity": 5}
    for chosen in (
        [CBP(**settings), ReDo(tau=0.3, when="every 10 gradient steps", samples=8)],
        [ReDo(tau=0.3, when="every 10 gradient steps", samples=8), CBP(**settings)],
    ):
        agent, spaces = agent_of("dqn", chosen)
        drive(agent, NoiseWorld(spaces, 2), 60)
        done = agent.learner.interventions.surgeries()
        assert {who for (who, *_), count in done.items() if int(count) > 0} == {"cbp", "redo"}


@pytest.mark.parametrize(("padding", "absorbs"), [("valid", False), ("same", False), ("same", True)])
def test_nature_cnn_has_one_utility_a_channel(padding, absorbs):
    network = NetworkConfig(padding=padding)
    config = DQNConfig(network=network, batch_size=4, buffer_size=200, learning_starts=10, replay_ratio=1.0)
    chosen = [CBP(replacement_rate=0.1, maturity=0, bias_correction=absorbs)]
    agent = build_agent(config, ATARI, 1, Generators(0), CPU, interventions=chosen)
    drive(agent, NoiseWorld(ATARI, 1), 17)
    (cbp,) = agent.learner.interventions.members
    kept = cbp.state_dict()["layers"].values()
    assert [len(layer["utilities"]) for layer in kept] == [32, 64, 64, 512]
    replaced = {
        where: int(n) for (_, what, where), n in agent.learner.interventions.surgeries().items() if what == "replaced"
    }
    steps = agent.clock.gradient_steps
    for layer in cbp.layers:  # all are eligible from the first step on, but for those that were just replaced
        assert replaced[layer.name] == pytest.approx(0.1 * layer.units * steps, rel=0.15)


def test_slots_may_be_named_by_index_alone():
    first, second = Patient(*MODELS["two consumers"]), Patient(*MODELS["two consumers"])
    index = torch.tensor([5, 2])
    first.surgery.replace({"a": index}, "mean")
    second.surgery.replace({"a": Slots(index, torch.tensor([True, True]))}, "mean")
    assert same_tree(first.network.state_dict(), second.network.state_dict())
    assert same_tree(first.adam.state_dict(), second.adam.state_dict())
    before = first.network.a.weight.clone()
    first.adam.found_inf = torch.ones(())
    first.surgery.replace({"a": index})
    assert torch.equal(first.network.a.weight, before)


def test_what_trained_when_it_was_saved_is_not_new_when_it_is_restored():
    # a plasticity injection after its birth: in the restored run the layer is frozen until the state has been loaded
    bench, again = (Bench("duelling", slow=False, **LIVELY) for _ in range(2))
    for _ in range(5):
        bench.step()
    again.patient.network.b.weight.requires_grad_(False)
    again.cbp.attach({"online": again.patient.network}, Generators(0))
    again.cbp.load_state_dict(bench.cbp.state_dict())
    again.patient.network.b.weight.requires_grad_(True)
    bench.step()
    again.step()
    for each in (bench, again):
        assert all((layer["ages"] == 6).all() for layer in each.cbp.state_dict()["layers"].values())


@pytest.mark.parametrize("settings", [{}, {"accumulation": "bernoulli", "moments": "mean"}, {"bias_correction": True}])
@pytest.mark.parametrize("kind", ["actor, critic", "crelu", "conv", "conv -> flatten -> linear"])
def test_elsewhere_than_on_a_cpu_no_value_is_read_back(kind, settings):
    bench = Bench(kind, slow=False, host=False, replacement_rate=0.2, maturity=3, **settings)
    values = {name: (None, torch.rand(5, *shape)) for name, shape in bench.shapes.items()}
    forward = Forward(bench.patient.network, bench.patient.batch, values)
    draws = [{n: torch.rand(size, dtype=torch.float64) for n, size in bench.cbp.draws().items()} for _ in range(11)]
    bench.cbp.every_step(bench.patient.surgery, forward, draws.pop())  # learns the shapes
    with NoReadBack():
        for drawn in draws:
            bench.cbp.every_step(bench.patient.surgery, forward, drawn)
    assert sum(map(int, bench.patient.surgery.replaced.values())) > 0


@pytest.mark.parametrize("config", [DQNConfig, PPOConfig])
def test_a_copied_agent_goes_on_alike(config):
    small = {"rollout_steps": 16} if config is PPOConfig else {"learning_starts": 40, "buffer_size": 400}
    settings = config(network=NetworkConfig(width=16, depth=2), **small)
    cbp, world = CBP(replacement_rate=0.1, maturity=3, decay=0.8), NoiseWorld(VECTOR, 2)
    agent = drive(build_agent(settings, VECTOR, 2, Generators(0), CPU, interventions=[cbp]), world, 60)
    world_of_copy, copied = copy.deepcopy(world), copy.deepcopy(agent)
    for each, around in ((agent, world), (copied, world_of_copy)):
        drive(each, around, 40)
    assert same_tree(copied.network.state_dict(), agent.network.state_dict())
    assert same_tree(copied.learner.interventions.state_dict(), agent.learner.interventions.state_dict())
    assert agent.clock.gradient_steps >= 4
