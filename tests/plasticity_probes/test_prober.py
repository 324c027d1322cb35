"""The prober: when it measures, on what, and that nothing of the run is touched."""

import copy

import pytest
import torch
from torch import nn

import plasticity_probes as pp
from plasticity_probes.prober import Prober, undisturbed
from plasticity_probes.probes import chosen
from plasticity_probes.subject import Readout, Subject


def network(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        hidden = nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU()
        return nn.Sequential(*hidden, nn.Linear(8, 2))


class Data:
    """Draws batches of a generator of its own."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(3)
        self.drawn: list[torch.Tensor] = []
        self.enough = True

    def draw(self, samples: int) -> dict[str, torch.Tensor] | None:
        if not self.enough:
            return None
        self.drawn.append(torch.randn(samples, 4, generator=self.generator))
        return {"observations": self.drawn[-1], "targets": self.drawn[-1][:, 0] * 2}


def losses(model: nn.Module, observations: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return (model(observations)[:, 0] - targets).square()


def subject(model: nn.Module, data: Data, **changes) -> Subject:
    settings = {
        "readouts": (Readout("", lambda out: out.sum(1), "sum", losses, lambda m, x, t: (m(x)[:, 0], t)),),
        "prepare": lambda batch: (batch["observations"], batch["targets"]),
        "optimizer": torch.optim.Adam(model.parameters()),
        "behaviour": lambda out: out,
        "fresh": lambda: network(7),
    }
    return Subject(model, data.draw, **{**settings, **changes})


def make(probes=("all",), **changes) -> tuple[Prober, nn.Module, Data]:
    model, data = network(), Data()
    options = {"every": 100, "heavy_factor": 2, "samples": 24, "heavy_samples": 6}
    options |= {name: changes.pop(name) for name in list(changes) if name in (*options, "tell")}
    return Prober(subject(model, data, **changes), probes, **options), model, data


def test_what_is_predicted_takes_no_further_pass_where_the_network_is_called_as_it_is() -> None:
    passes = []

    def found(**changes) -> dict[str, torch.Tensor]:
        prober, model, _ = make(("units", "values"), **changes)
        model.register_forward_hook(lambda module, given, out: passes.append(len(out)))
        return prober.measure(100).scalars

    known = found()
    once = len(passes)
    own = found(forward=lambda model, x: model(x))  # may be anything, so that nothing is known of it
    assert len(passes) - once == once + 2  # of the recent batch and of the frozen one
    assert known == own


def test_it_is_due_every_so_many_steps_after_the_last_probe() -> None:
    prober, _, _ = make(("units",))
    assert [step for step in (0, 99, 100, 150) if prober.due(step)] == [100, 150]
    prober.measure(150)
    assert not prober.due(249) and prober.due(250)
    assert prober.measure(150) is None  # once a step
    assert prober.measure(150, boundary=True) is not None  # but for what a boundary adds


def test_heavy_probes_come_less_often_and_at_boundaries() -> None:
    prober, _, _ = make()
    heavy = []
    for step, boundary in ((100, False), (200, False), (300, False), (310, True), (400, False)):
        heavy.append(any("/ntk/" in tag for tag in prober.measure(step, boundary).scalars))
    assert heavy == [True, False, True, True, True]  # every second one, and the boundary


def test_the_reference_batch_is_frozen_and_the_current_one_is_not() -> None:
    prober, model, data = make(("units", "ranks"))
    first, second = prober.measure(100), prober.measure(200)
    assert torch.equal(prober.reference["observations"], data.drawn[0])
    assert torch.equal(prober.current["observations"], data.drawn[1])
    tag = "effective_rank/raw/3"
    assert torch.equal(first.scalars[f"probes_reference/{tag}"], second.scalars[f"probes_reference/{tag}"])
    assert not torch.equal(first.scalars[f"probes/{tag}"], second.scalars[f"probes/{tag}"])
    hidden = copy.deepcopy(model).eval()[:5](data.drawn[1])
    assert second.scalars[f"probes/{tag}"].item() == pytest.approx(pp.effective_rank(hidden).item(), rel=1e-5)


def test_values_are_those_of_the_functions_by_hand() -> None:
    prober, model, data = make()
    found = prober.measure(100).scalars
    plain = copy.deepcopy(model).eval()
    first, second = plain[:3](data.drawn[0]), plain[:5](data.drawn[0])
    dormant = torch.cat([pp.dormant_units(first), pp.dormant_units(second)])
    assert found["probes/dormant_fraction/tau=0.025/all"].item() == pytest.approx(dormant.mean().item())
    assert found["probes/dead_fraction/0"].item() == pytest.approx(pp.dead_fraction(first).item())
    errors = data.drawn[0][:, 0] * 2 - plain(data.drawn[0])[:, 0]
    assert found["probes/td_error/mean_abs"].item() == pytest.approx(errors.abs().mean().item(), rel=1e-5)
    losses(plain, data.drawn[0], data.drawn[0][:, 0] * 2).mean().backward()
    norm = torch.cat([p.grad.flatten() for p in plain.parameters()]).norm()
    assert found["probes/gradient_norm/total"].item() == pytest.approx(norm.item(), rel=1e-5)


def test_a_fresh_networks_values_are_measured_once_and_drawn_as_a_line() -> None:
    prober, _, _ = make(("units",))
    first, second = prober.measure(100), prober.measure(200)
    fresh = {tag for tag in first.scalars if tag.startswith("probes_fresh/")}
    assert fresh and not any(tag.startswith("probes_fresh/") for tag in second.scalars)
    assert set(prober.fresh_line()) == fresh


def test_changes_are_counted_from_the_last_probe_and_from_the_start() -> None:
    prober, model, _ = make(("weights",))
    with torch.no_grad():
        model[0].weight += 0.5
    prober.measure(100)
    with torch.no_grad():
        model[0].weight += 0.25
    found = prober.measure(200).scalars
    assert found["probes/weight_change/since_last_probe/0.weight"].item() == pytest.approx(0.25, rel=1e-5)
    assert found["probes/weight_change/since_init/0.weight"].item() == pytest.approx(0.75, rel=1e-5)


def test_churn_is_what_the_first_update_after_a_probe_did() -> None:
    prober, model, data = make(("churn",))
    assert prober.after_update() is None  # nothing was asked for
    prober.measure(100)
    before = copy.deepcopy(model).eval()(data.drawn[0])
    with torch.no_grad():
        model[5].bias += torch.tensor([1.0, -3.0])
    found = prober.after_update().scalars
    after = copy.deepcopy(model).eval()(data.drawn[0])
    assert found["probes/churn/value"].item() == pytest.approx(2.0, rel=1e-5)
    changed = (before.argmax(1) != after.argmax(1)).float().mean().item()
    assert found["probes/churn/greedy_action"].item() == pytest.approx(changed)
    assert prober.after_update() is None


def test_a_probe_that_fails_says_why_once_and_the_others_go_on() -> None:
    def broken(model: nn.Module, *batch: torch.Tensor) -> torch.Tensor:
        raise ValueError("these losses have no definition")

    told: list[str] = []
    readout = Readout("", lambda out: out.sum(1), "sum", broken)
    prober, _, _ = make(readouts=(readout,), tell=told.append)
    for step in (100, 300, 500):
        found = prober.measure(step, boundary=True)
        assert "probes/ntk/sum/rank" in found.scalars and "probes/dead_fraction/all" in found.scalars
    assert told == ["probe gradients failed and is left out where it does: these losses have no definition"]


def test_weights_that_are_not_finite_stop_no_run() -> None:
    told: list[str] = []
    prober, model, _ = make(tell=told.append)
    prober.measure(100)
    with torch.no_grad():
        model[3].weight[0, 0] = float("nan")
    found = prober.measure(200, boundary=True)
    assert found.scalars["probes/srank/raw/3"].isnan()
    assert all("failed" in sentence for sentence in told)  # k-means of NaN, say


def test_nothing_is_measured_without_enough_data_or_without_probes() -> None:
    prober, _, data = make()
    data.enough = False
    assert prober.measure(100) is None and prober.due(100)
    nothing, _, data = make(("none",))
    assert not nothing.due(10**9) and nothing.measure(100) is None and data.drawn == []


def test_the_run_is_left_as_it_was() -> None:
    prober, model, _ = make(("all", "sharpness"))
    model.train()
    model(torch.randn(8, 4)).sum().backward()
    state, gradients = copy.deepcopy(model.state_dict()), [p.grad.clone() for p in model.parameters()]
    random = torch.random.get_rng_state()
    prober.measure(100, boundary=True)
    prober.after_update()
    assert torch.equal(torch.random.get_rng_state(), random)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in state.items())
    assert all(torch.equal(a, p.grad) for a, p in zip(gradients, model.parameters(), strict=True))
    assert all(module.training for module in model.modules())
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())


def test_undisturbed_puts_things_back_when_something_is_raised() -> None:
    model = network().train()
    before = model[1].running_mean.clone()

    def measure_and_fail() -> None:
        with undisturbed(model):
            assert not model[1].training
            model[1].running_mean.add_(5)
            raise KeyError

    with pytest.raises(KeyError):
        measure_and_fail()
    assert model[1].training and torch.equal(model[1].running_mean, before)


def test_names_and_what_they_stand_for() -> None:
    light = ("units", "ranks", "weights", "preactivations", "values", "adam", "churn")
    assert chosen(("default",)) == light
    assert chosen(("all",)) == (*light, "gradients", "ntk")
    assert chosen(("none",)) == ()
    assert chosen(("ntk", "units", "ntk")) == ("units", "ntk")
    with pytest.raises(ValueError, match="probes = 'dormancy': must be default, all, none or some of units"):
        chosen(("dormancy",))
    with pytest.raises(ValueError, match="samples = 0: must be at least 1"):
        make(samples=0)
    assert chosen("units") == chosen(["units"]) == ("units",)  # not its letters
    assert make(every=1e3)[0].every == 1000
    with pytest.raises(ValueError, match="every = 1.5: must be a whole number"):
        make(every=1.5)
    with pytest.raises(ValueError, match="probes = 7: must be a list of names"):
        chosen(7)


def test_a_boundary_on_a_probes_step_adds_the_heavy_ones_on_the_same_batch() -> None:
    prober, model, data = make()
    prober.measure(100)
    with torch.no_grad():
        model[0].weight += 0.5
    light = prober.measure(200)
    full = prober.measure(200, boundary=True)
    assert len(data.drawn) == 2
    assert not any("/ntk/" in tag for tag in light.scalars) and "probes/ntk/sum/rank" in full.scalars
    assert full.histograms and full.images
    assert "probes/weight_change/since_last_probe/total" not in full.scalars  # it would be 0
    shared = set(light.scalars) & set(full.scalars)
    assert shared and all(torch.equal(light.scalars[tag], full.scalars[tag]) for tag in shared)


def test_no_churn_is_taken_at_a_boundary() -> None:
    prober, _, _ = make(("churn", "units"))
    prober.measure(100, boundary=True)
    assert prober.after_update() is None


def test_on_policy_losses_and_targets_are_left_out_on_the_frozen_batch() -> None:
    readout = Readout("", lambda out: out.sum(1), "sum", losses, lambda m, x, t: (m(x)[:, 0], t), on_policy=True)
    prober, _, _ = make(readouts=(readout,))
    found = prober.measure(100).scalars
    assert "probes/target/mean" in found and "probes/gradient_norm/total" in found
    assert "probes_reference/target/mean" not in found and "probes_reference/gradient_norm/total" not in found
    assert "probes_reference/ntk/sum/rank" in found


def test_a_critics_values_churn_beside_the_policy() -> None:
    settings = {"behaviour_kind": "discrete", "critic": lambda out: out[:, 1]}
    prober, model, _ = make(("churn",), **settings)
    prober.measure(100)
    with torch.no_grad():
        model[5].bias += torch.tensor([0.0, 0.25])
    found = prober.after_update().scalars
    assert found["probes/churn/value/critic"].item() == pytest.approx(0.25, rel=1e-4)
    assert found["probes/churn/policy_kl"] > 0


def test_fewer_examples_than_asked_for_and_than_units_are_told_of_once() -> None:
    told: list[str] = []
    prober, _, data = make(("ranks",), samples=6, tell=told.append)
    prober.measure(100)
    prober.measure(200)
    assert told == ["ranks of 3: 8 features, but only 6 examples, which no rank can exceed"]
    data.draw = lambda samples: {"observations": torch.zeros(5, 4), "targets": torch.zeros(5)}
    prober, _, _ = make(("units",), tell=told.append)
    object.__setattr__(prober.subject, "draw", data.draw)
    prober.measure(100)
    assert told[1:] == ["probes asked for 24 examples and got 5, all that there are at a time"]
