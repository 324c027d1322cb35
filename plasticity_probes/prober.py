"""When which probe runs, on which batch, without disturbing the run.

A `Subject` says what is measured; a `Prober` measures it. Each probe is taken on a current batch (tags ``probes/...``)
and on a reference batch that is frozen at the first probe (``probes_reference/...``); a freshly initialised network's
values on the reference batch (``probes_fresh/...``) are the line to compare with. What depends on no batch (weights,
optimizer, churn) is under ``probes/`` alone.

The run is left as it was: batches come from a generator of their own, networks are measured in evaluation mode with
buffers and mode put back and the random state forked, and no gradient and no hook stays behind. Results stay on the
device until `Findings.scalars` is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from plasticity_probes.norms import snapshot
from plasticity_probes.probe import Findings, Probe, ProbeInput, RefitSettings
from plasticity_probes.probes import chosen, probes
from plasticity_probes.subject import Subject
from plasticity_probes.units import hidden_layers

CURRENT, REFERENCE, FRESH = "probes", "probes_reference", "probes_fresh"
"""What tags begin with: on a batch drawn now, on the frozen one, and a fresh network on that."""


KEPT = ("reference", "current", "_initial", "_previous", "_measured", "_last_step", "_fresh")
"""What of a prober its state holds as it is."""


@dataclass
class Prober:
    """Measures a subject every so many steps.

    Args:
        subject: what is measured.
        probes: names of the files in probes/, or "default", "all", "none".
        every: steps between two probes.
        heavy_factor: heavy probes (per-example gradients, eNTK, sharpness, trainability) run at every so many-th probe,
            and at task boundaries.
        samples: examples in a batch, at least as many as the widest layer has units for its rank to show.
        heavy_samples: examples for the heavy probes.
        tell: told once for each probe that fails, and why; and where there are fewer examples than it takes.
        refits: how long those of "trainability" are.
        initial: the weights from which changes are counted, by name; those of now unless given.
        starting: starting(probe, group), told before each.

    Raises:
        ValueError: an unknown probe, or a number below 1.
    """

    subject: Subject
    probes: tuple[str, ...] = ("default",)
    every: int = 10_000
    heavy_factor: int = 10
    samples: int = 512
    heavy_samples: int = 256
    tell: Callable[[str], None] = lambda sentence: None
    refits: RefitSettings = RefitSettings()
    initial: Mapping[str, Tensor] | None = None
    starting: Callable[[Probe, str], None] = lambda probe, group: None
    reference: dict[str, Tensor] | None = field(default=None, init=False)
    """The frozen batch."""
    current: dict[str, Tensor] | None = field(default=None, init=False)
    """The latest other one."""

    def __post_init__(self) -> None:
        names, known = chosen(self.probes), probes()
        self.names = tuple(name for name in names if name in self.probes or not known[name].missing(self.subject))
        for name in ("every", "heavy_factor", "samples", "heavy_samples"):
            setattr(self, name, whole(name, getattr(self, name)))
        self._initial = snapshot(self.subject.network) if self.initial is None else self.initial
        self._previous = self._initial
        self._layers: list | None = None
        self._measured = 0
        self._last_step: int | None = None
        self._told: set[str] = set()
        self._before: dict[str, Any] = {}
        self._fresh: dict[str, Tensor] | None = None

    def due(self, step: int) -> bool:
        """Whether `every` steps have passed since the last probe."""
        return bool(self.names) and step >= self.every + (self._last_step or 0)

    def measure(self, step: int, boundary: bool = False) -> Findings | None:
        """Measure now; None as long as there is no batch. At a `boundary` (a task's end) heavy probes run too, and
        pictures are made, also where the others have been taken at this very step.

        The churn of the update that follows is not taken at a boundary: what happens to a network between two tasks
        (a reset, say) is no update.
        """
        again = step == self._last_step
        if not self.names or (again and not boundary):
            return None
        batch = self.current if again else self.subject.draw(self.samples)
        if batch is None:
            return None
        if not again:
            self._note(batch)
            self._measured += 1
        heavy = boundary or (self._measured - 1) % self.heavy_factor == 0
        self.current, self._last_step = batch, step
        findings = Findings()
        with undisturbed(self.subject.network):
            if self.reference is None:
                self.reference = {name: tensor.clone() for name, tensor in batch.items()}
                fresh = self._of_a_fresh_network(self.reference, FRESH)
                self._fresh = fresh.scalars
                findings.scalars.update(fresh.scalars)
            due = [probe for probe in self._probes() if heavy or probe.cost == "light"]
            due = [probe for probe in due if probe.of_batch or not again]
            batches = {CURRENT: batch, REFERENCE: self.reference}
            on_reference = self._take(findings, batches, due, heavy)[REFERENCE]
            watching = [probe for probe in due if probe.of_update and not boundary]
            before = {probe: self._try(probe, lambda probe: probe.before_update(on_reference)) for probe in watching}
            self._before = {probe: found for probe, found in before.items() if found is not None}
        self._previous = self._previous if again else snapshot(self.subject.network)
        return findings

    @property
    def awaits_update(self) -> bool:
        """Whether `after_update` has something to find after the next update."""
        return bool(self._before)

    def after_update(self) -> Findings | None:
        """What the first update after a probe changed on the reference batch (churn), surgeries within the update
        included; None where none is awaited."""
        if not self._before:
            return None
        watching, self._before = self._before, {}
        findings = Findings()
        with undisturbed(self.subject.network):
            given = self._input(self.subject.network, self.reference, heavy=False, reference=True)
            for probe, before in watching.items():
                self._keep(findings, CURRENT, probe, lambda probe, before=before: probe.after_update(given, before))
        return findings

    def measure_on(self, batches: Mapping[str, Mapping[str, Tensor]], previous: Mapping[str, Tensor]) -> Findings:
        """The network as it is, on batches by group (`CURRENT`, `REFERENCE`), all its probes at once and no pictures;
        `previous`: the weights that count as the last probe's."""
        findings, self._previous = Findings(), previous
        with undisturbed(self.subject.network):
            self._take(findings, batches, self._probes(), heavy=False)
        return findings

    def measure_fresh(self, batch: Mapping[str, Tensor], group: str = FRESH) -> Findings:
        """A freshly initialised network on `batch`, its tags under `group`; nothing where the subject has none."""
        with undisturbed(self.subject.network):
            return self._of_a_fresh_network(batch, group)

    def fresh_line(self) -> dict[str, Tensor]:
        """The fresh network's values again, so that a chart shows a line from the first probe to the last."""
        return dict(self._fresh or {})

    def state_dict(self) -> dict[str, Any]:
        """What it remembers from one probe to the next, as tensors and primitives."""
        recent = self.subject.recent
        return {
            **{name: getattr(self, name) for name in KEPT},
            "told": sorted(self._told),
            "before": {probe.name: before for probe, before in self._before.items()},
            "recent": None if recent is None else recent.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave, on the network's device."""
        for name in KEPT:
            setattr(self, name, state[name])
        self._told = set(state["told"])
        self._before = {probes()[name]: before for name, before in state["before"].items()}
        if self.subject.recent is not None:
            self.subject.recent.load_state_dict(state["recent"])

    def _probes(self) -> list[Probe]:
        return [probes()[name] for name in self.names]

    def _note(self, batch: Mapping[str, Tensor]) -> None:
        given = len(batch["observations"])
        if given < self.samples:
            sentence = f"probes asked for {self.samples} examples and got {given}, all that there are at a time"
            self._tell_once(sentence, "samples")

    def _of_a_fresh_network(self, batch: Mapping[str, Tensor], group: str) -> Findings:
        found = Findings()
        if self.subject.fresh is not None:
            given = self._input(self.subject.fresh().eval(), batch, heavy=False)
            for probe in self._probes():
                if probe.beside_fresh:
                    self._keep(found, group, probe, lambda probe: probe.measure(given), "fresh network")
        return found

    def _take(
        self, findings: Findings, batches: Mapping[str, Mapping[str, Tensor]], due: Iterable[Probe], heavy: bool
    ) -> dict[str, ProbeInput]:
        """Take what is due on each of the batches, and what depends on none once; what they were given, by group."""
        inputs = {}
        for group, batch in batches.items():
            given = self._input(self.subject.network, batch, heavy, reference=group == REFERENCE)
            inputs[group] = given
            for probe in due:
                if probe.of_network and (probe.of_batch or group == CURRENT or CURRENT not in batches):
                    self._keep(findings, group, probe, lambda probe, given=given: probe.measure(given))
        return inputs

    def _keep(
        self, findings: Findings, group: str, probe: Probe, find: Callable[[Probe], Findings], of: str = ""
    ) -> None:
        """Take over what is found, under tags that are the probe's own."""
        self.starting(probe, of or group)
        found = self._try(probe, lambda probe: _with_its_tags(probe, find(probe)))
        if found is not None:
            findings.merge(found, group)

    def _try(self, probe: Probe, find: Callable[[Probe], Any]) -> Any:
        """A probe that fails says why once, and the rest goes on."""
        try:
            if lacking := probe.missing(self.subject):
                raise ValueError(f"{lacking} = None: must be given")
            return find(probe)
        except (ValueError, RuntimeError, torch.linalg.LinAlgError, NotImplementedError) as error:
            self._tell_once(f"probe {probe.name} failed and is left out where it does: {error}", probe.name)
            return None

    def _input(
        self, network: nn.Module, batch: Mapping[str, Tensor], heavy: bool, reference: bool = False
    ) -> ProbeInput:
        own = network is self.subject.network
        layers = self._layers if own else None
        if layers is None:
            layers = hidden_layers(network, batch["observations"][:2], self.subject.forward)
            self._layers = layers if own else self._layers
        return ProbeInput(
            self.subject,
            network,
            batch,
            layers,
            self.heavy_samples,
            self._initial,
            self._previous,
            pictures=heavy,
            refits=self.refits,
            reference=reference,
            tell=self._tell_once,
        )

    def _tell_once(self, sentence: str, about: str = "") -> None:
        if (about or sentence) not in self._told:
            self._told.add(about or sentence)
            self.tell(sentence)


def _with_its_tags(probe: Probe, found: Findings) -> Findings:
    """`found`; ValueError where a tag might be another probe's."""
    for tag in found.tags:
        if not any(tag == start or tag.startswith(f"{start}/") for start in probe.tags):
            raise ValueError(f"tag = {tag!r}: must begin with one of its tags, {', '.join(probe.tags)}")
    return found


def whole(name: str, number: object, least: int = 1) -> int:
    """`number` as an integer, 1e4 included. ValueError, naming it, unless it is a whole number of at least `least`."""
    try:
        found = None if isinstance(number, (bool, str, bytes)) else int(number)
    except (TypeError, ValueError, OverflowError):  # no number, nan, inf
        found = None
    if found is None or found != number:
        raise ValueError(f"{name} = {number!r}: must be a whole number")
    if found < least:
        raise ValueError(f"{name} = {number!r}: must be at least {least}")
    return found


@contextmanager
def undisturbed(network: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; on leaving, modes, buffers, gradients and random state are as they were."""
    modes = [(module, module.training) for module in network.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in network.buffers()]
    devices = {parameter.device for parameter in network.parameters() if parameter.device.type == "cuda"}
    with torch.random.fork_rng(devices=list(devices)):
        try:
            network.eval()
            yield
        finally:
            for module, training in modes:
                module.training = training
            with torch.no_grad():
                for buffer, value in buffers:
                    buffer.copy_(value)
