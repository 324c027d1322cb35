"""TensorBoard's page to begin with (Custom Scalars): which of a run's curves stand where, and under which name.

A legend there shows whole tags, the colour is the run's and the marker is chance. So what tells lines apart is the
titles: they name the layer first, and a chart holds one tag, or two that its section tells apart: a freshly initialised
network's line is level, for it is measured once. Where a run's line is level, too, each has a chart of its own below.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.plugins.custom_scalar.layout_pb2 import Category, Chart, Layout, MultilineChartContent
from tensorboard.plugins.custom_scalar.metadata import CONFIG_SUMMARY_TAG, PLUGIN_NAME
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from agents.layers import ConcatReLU
from experiments.run import Event
from plasticity_probes.probe import Curve
from plasticity_probes.prober import CURRENT, FRESH, REFERENCE
from plasticity_probes.probes import probes
from plasticity_probes.units import NORMS

BOTH = "reference batch (level line: a fresh network, other line: this run; each alone: last section)"
APART = "reference batch, each alone (this run beside a fresh network, all layers and layer by layer)"

RETURNS = {
    "return of an episode": "charts/episodic_return",
    "return: last 100 of the task": "charts/recent_return",
    "return by task: mean": "tasks/mean_return",
    "return by task: last tenth": "tasks/last_tenth_return",
    "steps to learn a task": "tasks/steps_to_level",
}
TARGETS = {
    "targets: mean": "targets/mean",
    "targets: standard deviation": "targets/std",
    "targets: share beyond the support": "targets/clipped_share",
    "TD error: mean size": "losses/td_error",
    "critic: explained variance": "losses/explained_variance",
}

NORM_NOTES = {
    "LayerNorm": "brings every sample's preactivations to mean 0 and variance 1 over the layer's units",
    "RMSNorm": "brings every sample's preactivations to mean square 1 over the layer's units",
    "BatchNorm": "brings every unit's preactivations to mean 0 and variance 1 over the samples",
}
"""What each norm does right before the nonlinearity (before its gains and biases)."""


def norm_of(network: nn.Module) -> str:
    """The norm of its hidden layers by its name in `NORM_NOTES`, "" where there is none."""
    for module in network.modules():
        if isinstance(module, (nn.LayerNorm, nn.GroupNorm)):  # of an image LayerNorm is a GroupNorm of one group
            return "LayerNorm"
        if isinstance(module, nn.RMSNorm):
            return "RMSNorm"
        if isinstance(module, NORMS):
            return "BatchNorm"
    return ""


@dataclass(frozen=True)
class Section:
    """Charts under one heading."""

    title: str
    charts: Mapping[str, tuple[str, ...]]
    """The tags of each chart by its title."""
    closed: bool = False
    """Whether it is folded up to begin with."""


def page(tags: Iterable[str], norm: str = "") -> list[Section]:
    """The sections of a run that has written `tags`, in the order in which the layers occur there; no chart is empty.

    `norm`: of the network's hidden layers, for the titles of what it makes another quantity.
    """
    tags = dict.fromkeys(tags)
    curves = [curve for probe in probes().values() for curve in probe.curves]
    updates = {curve.title: f"{CURRENT}/{curve.tag}" for curve in curves if curve.among == "updates"}
    layered = [curve for curve in curves if curve.among != "updates"]
    return [
        section
        for section in (
            _plain("returns", RETURNS, tags),
            Section(BOTH, _both(layered, tags, norm)),
            _plain("weights and updates", updates, tags),
            _plain("targets and errors", TARGETS, tags),
            Section(APART, _apart(layered, tags, norm), closed=True),
        )
        if section.charts
    ]


def _plain(title: str, charts: Mapping[str, str], tags: Mapping[str, None]) -> Section:
    return Section(title, {name: (tag,) for name, tag in charts.items() if tag in tags})


def _both(curves: Iterable[Curve], tags: Mapping[str, None], norm: str) -> dict[str, tuple[str, ...]]:
    """Units of all layers, and what is of the last ones: the run's line and the fresh network's."""
    charts = {}
    for curve in curves:
        layers = {"units": ["all"], "last layers": _layers(tags, curve)}.get(curve.among, [])
        for layer in layers:
            pair = (f"{REFERENCE}/{curve.tag}/{layer}", f"{FRESH}/{curve.tag}/{layer}")
            if pair[0] in tags:
                charts[_title(layer, curve, norm)] = tuple(tag for tag in pair if tag in tags)
    return charts


def _apart(curves: Iterable[Curve], tags: Mapping[str, None], norm: str) -> dict[str, tuple[str, ...]]:
    """What is of all layers and of each, the run's and the fresh network's in charts of their own, side by side."""
    charts = {}
    for layer in dict.fromkeys(["all", *(layer for curve in curves for layer in _layers(tags, curve))]):
        for curve in curves:
            for batch, whose in ((REFERENCE, "run"), (FRESH, "fresh")):
                tag = f"{batch}/{curve.tag}/{layer}"
                if tag in tags:
                    charts[f"{_title(layer, curve, norm, '')}, {whose}"] = (tag,)
    return charts


def _layers(tags: Mapping[str, None], curve: Curve) -> list[str]:
    """The layers that have a value on the curve."""
    start = f"{REFERENCE}/{curve.tag}/"
    return [tag.removeprefix(start) for tag in tags if tag.startswith(start) and tag != f"{start}all"]


def _title(layer: str, curve: Curve, norm: str, where: str = ": see TEXT") -> str:
    name = f"{curve.under_a_norm} ({norm}{where})" if norm and curve.under_a_norm else curve.title
    return f"{'all layers' if layer == 'all' else layer}: {name}"


def read_me(network: nn.Module) -> str:
    """What a newcomer should know of the curves, in Markdown, and what is special about those of this network."""
    norm = norm_of(network)
    sentences = [
        "**Custom Scalars** is the page to begin with, laid out by this run; a title there names the layer first. "
        "Of the two lines in a chart of the reference batch the level one is a freshly initialised network's "
        f"(`{FRESH}/...` in the legend) and the other this run's (`{REFERENCE}/...`); the last section, folded up, has "
        "each in a chart of its own.",
        "Smoothing (0.6 at first) bends what is a step: set it to 0 to see what was measured. "
        '"Ignore outliers in chart scaling" cuts off what stands out.',
        "Tags: `probes/` on a batch drawn at that step, `probes_reference/` on one that was frozen at the first probe, "
        "`probes_fresh/` a freshly initialised network on that one. `docs/probes.md` has every definition.",
    ]
    if norm:
        sentences.append(
            f"**Dormancy under {norm} is another quantity**, and so are dead, inactive and linearised units: {norm} "
            f"{NORM_NOTES[norm]} (before gains and biases), so the size of a layer's weights no longer decides who is "
            f"silent. Compare them with the fresh network's here, which has the same norm, and with runs with {norm}; "
            "not with a run without."
        )
    if any(isinstance(module, ConcatReLU) for module in network.modules()):
        sentences.append(
            "**Under CReLU, too, they are another quantity**: a unit counts as active where either of its halves is."
        )
    return "\n\n".join(sentences)


def summary(sections: Iterable[Section]) -> Summary:
    """The layout as TensorBoard reads it (what `SummaryWriter.add_custom_scalars` writes cannot fold a section up)."""
    categories = []
    for section in sections:
        charts = [
            Chart(title=title, multiline=MultilineChartContent(tag=[f"^{re.escape(tag)}$" for tag in tags]))
            for title, tags in section.charts.items()
        ]
        categories.append(Category(title=section.title, chart=charts, closed=section.closed))
    layout = Layout(category=categories).SerializeToString()
    value = Summary.Value(
        tag=CONFIG_SUMMARY_TAG,
        tensor=TensorProto(dtype="DT_STRING", string_val=[layout], tensor_shape=TensorShapeProto()),
        metadata=SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name=PLUGIN_NAME)),
    )
    return Summary(value=[value])


class Page:
    """Keeps the page of a run up to date with `tags`, all that were written so far: TensorBoard shows the layout that
    was written last."""

    def __init__(self, writer: SummaryWriter, network: nn.Module, tags: Callable[[], Mapping[str, None]]) -> None:
        self.writer, self.norm, self.tags = writer, norm_of(network), tags
        self.seen, self.sections = 0, []

    def notice(self, event: Event) -> None:
        """Lay the page out again where the tags fill another chart."""
        self.follow(event.step)

    def follow(self, step: int) -> None:
        """The same at `step`, whatever happened."""
        tags = self.tags()
        if len(tags) == self.seen:
            return
        self.seen = len(tags)
        sections = page(tags, self.norm)
        if sections != self.sections:
            self.sections = sections
            self.writer.file_writer.add_summary(summary(sections), step)

    def state_dict(self) -> dict[str, Any]:
        """Nothing: it follows from the tags."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Lay the page out anew at the next event."""
        self.seen, self.sections = 0, []
