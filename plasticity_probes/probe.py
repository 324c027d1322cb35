"""What a probe is, what it is given, and what it finds.

Each file of the folder probes/ holds one probe, a subclass of `Probe`, and has its name. All that is known of a probe
stands there: every list of names, costs, tags and charts is made from these files.

Tags name the definition: ``dormant_fraction/tau=0.025/conv2``, ``srank/raw/dense1``, ``ntk/max_q/rank``. A layer's
value carries the layer's name, ``all`` pools the units of all layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from plasticity_probes.gradients import cluster_order
from plasticity_probes.subject import Readout, Subject
from plasticity_probes.units import HiddenLayer, activations, last_layers


@dataclass
class Findings:
    """What probes found; nothing has been read back from the device."""

    scalars: dict[str, Tensor] = field(default_factory=dict)
    """0-d tensors by tag."""
    histograms: dict[str, Tensor] = field(default_factory=dict)
    """Vectors by tag."""
    images: dict[str, Tensor] = field(default_factory=dict)
    """Matrices [rows, columns] in [-1, 1] by tag."""

    def merge(self, other: Findings, group: str = "") -> None:
        """Take over `other`, its tags under `group`, if any."""
        before = f"{group}/" if group else ""
        for name in ("scalars", "histograms", "images"):
            getattr(self, name).update({f"{before}{tag}": value for tag, value in getattr(other, name).items()})

    @property
    def tags(self) -> list[str]:
        """Of everything."""
        return [*self.scalars, *self.histograms, *self.images]


@dataclass(frozen=True)
class RefitSettings:
    """How long the refits of "trainability" are; Lyle23's own numbers."""

    targets: int = 10
    steps: int = 2000
    progress: Callable[[int, int], None] | None = None
    """progress(done, total), after each gradient step of one refit probe."""


class _Answering:
    """`network`, that gives for the very tensor `observations` the `outputs` known."""

    def __init__(self, network: nn.Module, observations: Tensor, outputs: Any) -> None:
        self.network, self.observations, self.outputs = network, observations, outputs

    def __call__(self, observations: Tensor, *given: Any, **named: Any) -> Any:
        known = observations is self.observations and not given and not named
        return self.outputs if known else self.network(observations, *given, **named)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.network, name)


@dataclass
class ProbeInput:
    """A network and a batch, with what several probes need computed once."""

    subject: Subject
    network: nn.Module
    """The subject's, or a fresh one."""
    batch: Mapping[str, Tensor]
    layers: list[HiddenLayer]
    heavy_samples: int
    initial: Mapping[str, Tensor]
    """The weights at the start, by name,"""
    previous: Mapping[str, Tensor]
    """and at the probe before this one."""
    pictures: bool
    """Whether histograms and pictures are wanted."""
    refits: RefitSettings = RefitSettings()
    reference: bool = False
    """Whether the batch is the frozen one."""
    tell: Callable[[str], None] = lambda sentence: None
    """Told what is wrong with a measurement that is made all the same."""

    def __post_init__(self) -> None:
        self._outputs: Any = None

    @cached_property
    def prepared(self) -> tuple[Tensor, ...]:
        """The batch as the readouts take it."""
        with torch.no_grad():
            return self.subject.prepare(dict(self.batch))

    @cached_property
    def few(self) -> tuple[Tensor, ...]:
        """The first examples of it, for the heavy probes."""
        return tuple(part[: self.heavy_samples] for part in self.prepared)

    @cached_property
    def activations(self) -> dict[str, Any]:
        """Pre- and post-nonlinearity tensors by layer name (that of tags)."""

        def forward(network: nn.Module, observations: Tensor) -> Any:
            self._outputs = self.subject.forward(network, observations)
            return self._outputs

        found = activations(self.network, self.batch["observations"], forward, self.layers)
        return {self.subject.layer_name(name): tensors for name, tensors in found.items()}

    @property
    def outputs(self) -> Any:
        """What the subject's `forward` gives for the batch, without gradients."""
        if self._outputs is None:
            with torch.no_grad():
                self._outputs = self.subject.forward(self.network, self.batch["observations"])
        return self._outputs

    @property
    def answering(self) -> Any:
        """The network, that gives for the batch what it gave before: for functions of it that take no gradient."""
        if self.subject.forward is not Subject.forward:  # it may be called in other ways, too
            return self.network
        return _Answering(self.network, self.batch["observations"], self.outputs)

    @cached_property
    def nonlinearities(self) -> dict[str, str]:
        """Each layer's by the name of tags: "relu", "tanh", ..., as `HiddenLayer.activation`."""
        return {self.subject.layer_name(layer.name): layer.activation for layer in self.layers}

    @cached_property
    def features(self) -> dict[str, Tensor]:
        """The last hidden layers' activations [samples, units]: those that no other hidden layer consumes."""
        names = [self.subject.layer_name(layer.name) for layer in last_layers(self.layers)]
        return {name: self.activations[name].post.flatten(1) for name in names if name in self.activations}

    def readouts(self, function: Literal["losses", "regression"]) -> list[Readout]:
        """Those that have this function, where it means something on the batch."""
        stale = [readout for readout in self.subject.readouts if readout.on_policy and self.reference]
        known = [readout for readout in self.subject.readouts if getattr(readout, function) is not None]
        return [readout for readout in known if readout not in stale]

    def parameter_name(self, parameter: str) -> str:
        """A parameter's name in tags: its layer's, and what it is of it."""
        layer, dot, part = parameter.rpartition(".")
        return f"{self.subject.layer_name(layer)}.{part}" if dot else parameter

    @property
    def vectorized(self) -> bool:
        """Whether per-example gradients are taken all at once: convolutions on a CPU run faster one by one."""
        convolutional = any(isinstance(module, nn.modules.conv._ConvNd) for module in self.network.modules())
        return not convolutional or next(self.network.parameters()).device.type != "cpu"

    def called(self, network: nn.Module | None = None) -> nn.Module:
        """`network` (the one that is measured) as a module that is called as the subject calls it."""
        return _Called(self.network if network is None else network, self.subject.forward)


class _Called(nn.Module):
    def __init__(self, network: nn.Module, forward: Callable[[nn.Module, Tensor], Any]) -> None:
        super().__init__()
        self.network, self._forward = network, forward

    def forward(self, observations: Tensor) -> Any:
        return self._forward(self.network, observations)


def clustered(cosines: Tensor) -> Tensor:
    """A matrix [examples, examples] of cosines as a picture: like ones side by side."""
    order = cluster_order(cosines)
    return cosines.cpu()[order][:, order]


@dataclass(frozen=True)
class Curve:
    """A place on the page of charts that a run lays out (TensorBoard's, say)."""

    title: str
    tag: str
    """As the probe gives it; of the layers' ones without the layer's name."""
    among: Literal["updates", "units", "last layers", "each alone"] = "updates"
    """Under which heading. "updates": weights and updates, on the batch drawn now. The others are on the reference
    batch, beside a fresh network (`Probe.beside_fresh`): "units" with its value for ``all`` layers and "last layers"
    with each layer's in one chart at the top; these two and "each alone" with every layer's in charts of their own
    below."""
    under_a_norm: str = ""
    """In place of the title where the hidden layers have a norm, which makes it another quantity; the norm is added."""


class Probe:
    """One measurement of plasticity. A subclass overrides `measure`, or `before_update` and `after_update`, or all.

    It leaves the network, its gradients and torch's random state alone, and raises `ValueError` where it cannot be
    taken: that is told once, and the run goes on.
    """

    name: ClassVar[str] = ""
    """Its file's, given to it when it is loaded."""
    cost: ClassVar[Literal["light", "heavy", "offline"]] = "light"
    """"light": taken each time, and among "default". "heavy" (a backward pass for each example): every so many-th time
    and at task boundaries, and among "all". "offline" (thousands of gradient steps): the same, but where it is named
    alone, and of saved checkpoints."""
    tags: ClassVar[tuple[str, ...]] = ()
    """What its tags begin with."""
    of_batch: ClassVar[bool] = True
    """False where it depends on no batch (weights, the optimizer): then it stands under ``probes/`` alone."""
    beside_fresh: ClassVar[bool] = False
    """Whether a freshly initialised network is measured too, as the line to compare with (``probes_fresh/``)."""
    needs: ClassVar[tuple[str, ...]] = ()
    """What the `Subject` must have beyond network and draw: "optimizer", "fresh", "behaviour". Where it has not, the
    probe is left out of "default" and "all", and refused by name."""
    curves: ClassVar[tuple[Curve, ...]] = ()
    """Its places on the page."""
    position: ClassVar[int] = 100
    """Among the other probes, in every list and on the page; of equal ones the name decides."""

    def measure(self, given: ProbeInput) -> Findings:
        """What there is to find in a network, on a batch."""
        raise NotImplementedError

    def before_update(self, given: ProbeInput) -> Any:
        """What `after_update` has to know of the network before the next update, on the reference batch."""
        raise NotImplementedError

    def after_update(self, given: ProbeInput, before: Any) -> Findings:
        """What that update, surgeries within it included, did; `before` is what `before_update` gave."""
        raise NotImplementedError

    @property
    def of_update(self) -> bool:
        """Whether it compares before and after an update."""
        return type(self).after_update is not Probe.after_update

    @property
    def of_network(self) -> bool:
        """Whether it measures a network as it is."""
        return type(self).measure is not Probe.measure

    def missing(self, subject: Subject) -> str:
        """The first of its `needs` that `subject` lacks, "" where it has all."""
        return next((name for name in self.needs if getattr(subject, name) is None), "")
