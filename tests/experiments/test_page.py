"""TensorBoard's page to begin with, as real runs lay it out and as TensorBoard reads it."""

import json
import re
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.custom_scalar.custom_scalars_plugin import CustomScalarsPlugin
from torch import nn

from agents.config import NetworkConfig
from agents.layers import add_hidden
from experiments.logger import read_metrics
from experiments.page import NORM_NOTES, norm_of, page, read_me
from tests.experiments.test_run import SMALL, one_thread, run  # noqa: F401

WIDEST_TITLE = 46  # characters that a card of the page has room for, 330 pixels
PROBES = ("--probe.samples", "32", "--probe.every", "100")
IMAGES = ("--image.num-images", "40", "--max-episode-steps", "20", "--task.period", "150", "--learning-rate", "1e-3")
RUNS = {
    "dqn": ("dqn", "ImageMDP-v0", 400, *SMALL["dqn"], *IMAGES, "--depth", "2"),
    "dqn with LayerNorm": ("dqn", "ImageMDP-v0", 400, *SMALL["dqn"], *IMAGES, "--interventions", "layer_norm"),
    "c51": ("c51", "CartPole-v1", 400, *SMALL["c51"]),
    "ppo": ("ppo", "Ant-v5", 200, "--width", "16", "--rollout-steps", "64", "--num-minibatches", "4"),
    "ppo with BatchNorm": ("ppo", "CartPole-v1", 300, *SMALL["ppo"], "--interventions", "batch_norm"),
    "dqn with CReLU": ("dqn", "CartPole-v1", 400, *SMALL["dqn"], "--interventions", "crelu"),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    return {
        kind: run(folder, *arguments, *PROBES, "--name", kind.replace(" ", "_"))[0] for kind, arguments in RUNS.items()
    }


def shown(folder: Path) -> list[dict]:
    """The sections as TensorBoard's server hands them to the browser."""
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(folder)).Reload()
    context = TBContext(data_provider=MultiplexerDataProvider(multiplexer, str(folder)), plugin_name_to_instance={})
    return json.loads(CustomScalarsPlugin(context).layout_impl(RequestContext(), ""))["category"]


def charts(sections: list[dict]) -> list[tuple[str, str, list[str]]]:
    """(section, title, regular expressions) of each chart."""
    return [(one["title"], chart["title"], chart["multiline"]["tag"]) for one in sections for chart in one["chart"]]


def text(path: Path) -> str:
    events = EventAccumulator(str(path)).Reload()
    return events.Tensors("read_me_first/text_summary")[0].tensor_proto.string_val[0].decode()


@pytest.mark.parametrize("kind", RUNS)
def test_every_chart_shows_one_tag_or_a_run_beside_its_fresh_network(kind: str, runs: dict[str, Path]) -> None:
    tags = set(read_metrics(runs[kind] / "metrics.jsonl"))
    sections = shown(runs[kind])
    assert [section["title"].split(" (")[0] for section in sections] == [
        *("returns", "reference batch", "weights and updates", "targets and errors"),
        "reference batch, each alone",
    ]
    titles = [title for _, title, _ in charts(sections)]
    assert len(set(titles)) == len(titles) and max(map(len, titles)) <= WIDEST_TITLE
    for section, title, patterns in charts(sections):
        found = [[tag for tag in tags if re.match(pattern, tag)] for pattern in patterns]
        assert all(len(matches) == 1 for matches in found), title  # no chart is empty, no pattern catches more
        found = [tag for (tag,) in found]
        assert "tasks/index" not in found
        if section.startswith("reference batch ("):
            assert [tag.split("/")[0] for tag in found] == ["probes_reference", "probes_fresh"]
            assert len({tag.split("/", 1)[1] for tag in found}) == 1
        else:
            assert len(found) == 1
        if section.startswith("reference batch"):
            layer = title.split(":")[0]
            assert found[0].endswith("/all" if layer == "all layers" else f"/{layer}")


def test_the_first_section_of_probes_has_all_layers_and_the_last_ones(runs: dict[str, Path]) -> None:
    def of(kind: str) -> list[str]:
        return [title for section, title, _ in charts(shown(runs[kind])) if section.startswith("reference batch (")]

    units = ["all layers: dormant, tau .025", "all layers: dead", "all layers: linearised"]
    assert of("dqn") == [*units, "dense2: effective rank, centred", "dense2: srank, centred"]
    ranks = ("effective rank, centred", "srank, centred")
    assert of("ppo")[-4:] == [f"{part}/dense2: {rank}" for rank in ranks for part in ("actor", "critic")]


def test_everything_stands_alone_as_well_beside_the_fresh_networks_and_folded_up(runs: dict[str, Path]) -> None:
    sections = shown(runs["dqn"])
    assert [bool(section.get("closed")) for section in sections] == [False] * 4 + [True]
    last = [(title, pattern) for section, title, (pattern, *_) in charts(sections) if "each alone (" in section]
    both = [title for section, title, _ in charts(sections) if section.startswith("reference batch (")]
    assert {f"{title}, {whose}" for title in both for whose in ("run", "fresh")} <= {title for title, _ in last}
    assert [title.split(":")[0] for title, _ in last[:6]] == ["all layers"] * 6
    assert last[6:8] == [
        ("dense1: dormant, tau .025, run", r"^probes_reference/dormant_fraction/tau=0\.025/dense1$"),
        ("dense1: dormant, tau .025, fresh", r"^probes_fresh/dormant_fraction/tau=0\.025/dense1$"),
    ]
    assert len(last) == 2 * (3 * 3 + 4)  # units of all layers and of two, and the last one's four ranks


@pytest.mark.parametrize(
    ("kind", "norm"), [("dqn with LayerNorm", "LayerNorm"), ("ppo with BatchNorm", "BatchNorm"), ("dqn", "")]
)
def test_where_a_norm_makes_dormancy_another_quantity_the_page_says_so(
    kind: str, norm: str, runs: dict[str, Path]
) -> None:
    dormant = [title for _, title, _ in charts(shown(runs[kind])) if "dormant" in title]
    assert dormant[0] == (f"all layers: dormant ({norm}: see TEXT)" if norm else "all layers: dormant, tau .025")
    assert all((norm or "tau .025") in title for title in dormant)
    assert ("is another quantity" in text(runs[kind])) is bool(norm)
    assert not norm or f"Dormancy under {norm} is another quantity" in text(runs[kind])


@pytest.mark.parametrize("layer", [nn.Linear(3, 4), nn.Conv2d(3, 4, 3)])
@pytest.mark.parametrize(
    ("norm", "name"), [("layer", "LayerNorm"), ("rms", "RMSNorm"), ("batch", "BatchNorm"), ("none", "")]
)
def test_every_norm_there_is_has_its_note(layer: nn.Module, norm: str, name: str) -> None:
    layers = nn.Sequential()
    add_hidden(layers, "hidden", 1, layer, NetworkConfig(norm=norm), after=0)
    assert norm_of(layers) == name
    assert not name or f"{name} {NORM_NOTES[name]}" in read_me(layers)


def test_what_crelu_makes_of_a_unit_is_said(runs: dict[str, Path]) -> None:
    assert "either of its halves" in text(runs["dqn with CReLU"])
    assert "either of its halves" not in text(runs["dqn"])


def test_several_runs_on_one_page(runs: dict[str, Path]) -> None:
    sections = shown(runs["dqn"].parent)
    assert len(sections) == 5  # TensorBoard puts together what has one title
    named = charts(sections)
    assert len(set(map(str, named))) == len(named)
    rank = [title for _, title, _ in named if title.endswith("effective rank, centred")]
    assert set(rank) == {f"{layer}: effective rank, centred" for layer in ("dense2", "actor/dense2", "critic/dense2")}


def test_a_run_without_probes_has_no_section_for_them(tmp_path: Path) -> None:
    path, _, _ = run(tmp_path, "dqn", "CartPole-v1", 300, *SMALL["dqn"], "--probes", "none")
    assert [section["title"] for section in shown(path)] == ["returns", "targets and errors"]


def test_no_tags_no_page() -> None:
    assert page([]) == []
    assert page(["tasks/index", "probes/dead_fraction/all", "charts/SPS"]) == []
