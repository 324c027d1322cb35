"""What the probes' files say of themselves: that it is true, that no two say the same, and that the page says it."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from plasticity_probes import Prober, Readout, Subject
from plasticity_probes.probe import RefitSettings
from plasticity_probes.prober import CURRENT, FRESH, REFERENCE
from plasticity_probes.probes import NAMES, probes

PAGE = (Path(__file__).parents[2] / "docs" / "probes.md").read_text()


@pytest.fixture(scope="module")
def found():
    """Everything that all probes find in a small network, tags by probe, without the group of tags."""
    torch.manual_seed(0)

    def build():
        return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))

    network, by_probe, groups = build(), {}, {}
    options = {"optimizer": torch.optim.Adam(network.parameters()), "behaviour": lambda y: y, "fresh": build}
    functions = lambda n, x: n(x).square().sum(1), lambda n, x: (n(x)[:, 0], x[:, 0])
    readout = Readout("", lambda y: y[:, 0], "first", *functions)
    subject = Subject(network, lambda n: {"observations": torch.randn(n, 4)}, (readout,), **options)
    for name in NAMES:
        refits = RefitSettings(targets=1, steps=3)
        prober = Prober(subject, (name,), samples=16, heavy_samples=4, refits=refits, tell=pytest.fail)
        tags = prober.measure(1).tags
        network(torch.randn(4, 4)).mean().backward()
        options["optimizer"].step()
        update = prober.after_update()
        tags += [] if update is None else update.tags
        by_probe[name] = {tag.split("/", 1)[1] for tag in tags}
        groups[name] = {tag.split("/", 1)[0] for tag in tags}
    return by_probe, groups


@pytest.mark.parametrize("name", NAMES)
def test_tags_are_those_declared_and_none_is_declared_in_vain(name, found):
    declared = probes()[name].tags
    beginnings = {start for tag in found[0][name] for start in declared if tag == start or tag.startswith(f"{start}/")}
    assert beginnings == set(declared)
    others = [tag for other in NAMES if other != name for tag in probes()[other].tags]
    assert not set(declared) & set(others)


@pytest.mark.parametrize("name", NAMES)
def test_batches_are_those_declared(name, found):
    probe, groups = probes()[name], found[1][name]
    assert (REFERENCE in groups) == probe.of_batch
    assert (FRESH in groups) == probe.beside_fresh
    assert CURRENT in groups


def test_what_cannot_be_taken_is_left_out_of_the_groups_and_refused_by_name() -> None:
    network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    subject = Subject(network, lambda n: {"observations": torch.randn(n, 4)})
    assert Prober(subject, ("default",)).names == ("units", "ranks", "weights", "preactivations", "values")
    told = []
    prober = Prober(subject, ("adam", "churn"), tell=told.append)
    prober.measure(1)
    assert told == [
        "probe adam failed and is left out where it does: optimizer = None: must be given",
        "probe churn failed and is left out where it does: behaviour = None: must be given",
    ]


def test_the_page_has_every_probe_its_cost_and_its_tags() -> None:
    (table,) = re.findall(r"\| name \| tags .*?\n\n", PAGE, re.DOTALL)
    said, name = {}, ""
    for row in table.strip().splitlines()[2:]:
        first, tags = (cell.strip() for cell in row.split("|")[1:3])
        name = first or name
        said.setdefault(name, set()).update(re.findall(r"`([a-z_]+)", tags))
    costs = {re.search("`(.*)`", name)[1]: (re.search(r"\((\w+)\)", name) or ["", "light"])[1] for name in said}
    assert costs == {name: probe.cost for name, probe in probes().items()}
    for name, tags in said.items():
        probe = probes()[re.search("`(.*)`", name)[1]]
        scalars = {tag.split("/")[0] for tag in probe.tags} - {"unit_scores", "singular_values"}
        assert scalars <= tags, name
