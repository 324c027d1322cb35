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

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from plasticity_probes.catalogue import (
    HEAVIEST,
    HEAVY,
    LIGHT,
    OF_THE_NETWORK,
    PROBES,
    WITHOUT_BATCH,
    Findings,
    ProbeInput,
)
from plasticity_probes.churn import greedy_action_churn, policy_churn, value_churn
from plasticity_probes.norms import snapshot
from plasticity_probes.subject import Subject
from plasticity_probes.units import hidden_layers

GROUPS = {"default": LIGHT, "all": LIGHT + HEAVY, "none": ()}
"""What the short names mean. "sharpness" and "trainability" cost most and run where they are named, as heavy ones."""


@dataclass
class Prober:
    """Measures a subject every so many steps.

    Args:
        subject: what is measured.
        probes: names of `PROBES`, or "default", "all", "none".
        every: steps between two probes.
        heavy_factor: heavy probes (per-example gradients, eNTK, sharpness, trainability) run at every so many-th probe,
            and at task boundaries.
        samples: examples in a batch, at least as many as the widest layer has units for its rank to show.
        heavy_samples: examples for the heavy probes.
        tell: told once for each probe that fails, and why; and where there are fewer examples than it takes.

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
    reference: dict[str, Tensor] | None = field(default=None, init=False)
    """The frozen batch."""
    current: dict[str, Tensor] | None = field(default=None, init=False)
    """The latest other one."""

    def __post_init__(self) -> None:
        self.names = chosen(self.probes)
        for name in ("every", "heavy_factor", "samples", "heavy_samples"):
            setattr(self, name, whole(name, getattr(self, name)))
        self._initial = snapshot(self.subject.network)
        self._previous = self._initial
        self._layers: list | None = None
        self._measured = 0
        self._last_step: int | None = None
        self._failed: set[str] = set()
        self._before: tuple[Any, Tensor | None] | None = None
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
                self._measure_fresh(findings)
            names = [name for name in self.names if heavy or name not in (*HEAVY, *HEAVIEST)]
            names = [name for name in names if name not in WITHOUT_BATCH] if again else names
            network = self.subject.network
            self._run(findings, "probes", self._input(network, batch, heavy), names)
            on_batches = [name for name in names if name not in WITHOUT_BATCH]
            on_reference = self._input(network, self.reference, heavy, reference=True)
            self._run(findings, "probes_reference", on_reference, on_batches)
            churn = "churn" in self.names and not boundary
            self._before = self._behaviour(on_reference.outputs) if churn else None
        self._previous = self._previous if again else snapshot(self.subject.network)
        return findings

    def _note(self, batch: Mapping[str, Tensor]) -> None:
        given = len(batch["observations"])
        if given < self.samples and "samples" not in self._failed:
            self._failed.add("samples")
            self.tell(f"probes asked for {self.samples} examples and got {given}, all that there are at a time")

    def after_update(self) -> Findings | None:
        """What the first update after a probe changed on the reference batch (churn), surgeries within the update
        included; None where none is awaited."""
        if self._before is None:
            return None
        (before, value_before), self._before = self._before, None
        findings = Findings()
        with undisturbed(self.subject.network):
            after, value_after = self._behaviour()
        if value_before is not None:
            findings.scalars["probes/churn/value/critic"] = value_churn(value_before, value_after)
        kind = self.subject.behaviour_kind
        if kind == "values":
            findings.scalars["probes/churn/value"] = value_churn(before, after)
            findings.scalars["probes/churn/greedy_action"] = greedy_action_churn(before, after)
        else:
            findings.scalars["probes/churn/policy_kl"] = policy_churn(before, after, kind)
        return findings

    def fresh_line(self) -> dict[str, Tensor]:
        """The fresh network's values again, so that a chart shows a line from the first probe to the last."""
        return dict(self._fresh or {})

    def _behaviour(self, outputs: Any = None) -> tuple[Any, Tensor | None] | None:
        """Behaviour and critic's values on the reference batch, from the network's `outputs` there where they are known
        already."""
        subject = self.subject
        if subject.behaviour is None or self.reference is None:
            return None
        with torch.no_grad():
            if outputs is None:
                outputs = subject.forward(subject.network, self.reference["observations"])
            given = subject.behaviour(outputs)
            values = None if subject.critic is None else subject.critic(outputs).clone()
        return (tuple(part.clone() for part in given) if isinstance(given, tuple) else given.clone()), values

    def _measure_fresh(self, findings: Findings) -> None:
        if self.subject.fresh is None:
            return
        fresh = self.subject.fresh().eval()
        names = [name for name in self.names if name in OF_THE_NETWORK]
        found = Findings()
        self._run(found, "probes_fresh", self._input(fresh, self.reference, heavy=False), names)
        self._fresh = found.scalars
        findings.scalars.update(found.scalars)

    def _input(
        self, network: nn.Module, batch: Mapping[str, Tensor], heavy: bool, reference: bool = False
    ) -> ProbeInput:
        if self._layers is None or network is not self.subject.network:
            layers = hidden_layers(network, batch["observations"][:2], self.subject.forward)
            if network is self.subject.network:
                self._layers = layers
        else:
            layers = self._layers
        return ProbeInput(
            self.subject,
            network,
            batch,
            layers,
            self.heavy_samples,
            self._initial,
            self._previous,
            pictures=heavy,
            reference=reference,
            tell=self._tell_once,
        )

    def _tell_once(self, sentence: str) -> None:
        if sentence not in self._failed:
            self._failed.add(sentence)
            self.tell(sentence)

    def _run(self, findings: Findings, group: str, given: ProbeInput, names: list[str]) -> None:
        """A probe that fails says why once, and the rest goes on."""
        for name in names:
            if name not in PROBES:
                continue  # churn waits for the next update
            try:
                findings.merge(group, PROBES[name](given))
            except (ValueError, RuntimeError, torch.linalg.LinAlgError, NotImplementedError) as error:
                if name not in self._failed:
                    self._failed.add(name)
                    self.tell(f"probe {name} failed and is left out where it does: {error}")


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


def chosen(names: Sequence[str] | str) -> tuple[str, ...]:
    """The probes that `names` stand for, in the order of the catalogue. ValueError for an unknown one."""
    known = (*PROBES, "churn")
    allowed = f"default, all, none or some of {', '.join(known)}"
    given = (names,) if isinstance(names, str) else names
    if not isinstance(given, Iterable) or isinstance(given, (bytes, Mapping)):
        raise ValueError(f"probes = {names!r}: must be a list of names, or one: {allowed}")
    wanted: set[str] = set()
    for name in given:
        if not isinstance(name, str) or (name not in GROUPS and name not in known):
            raise ValueError(f"probes = {name!r}: must be {allowed}")
        wanted.update(GROUPS.get(name, (name,)))
    return tuple(name for name in known if name in wanted)


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
