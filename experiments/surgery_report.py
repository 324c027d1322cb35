"""What interventions did to the weights, in numbers and in words."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from agents.deeds import Done
from agents.interventions.base import Intervention
from agents.probing import layer_name
from agents.when import When
from experiments.config import TrainConfig

USUAL = frozenset({"projected"})
"""What happens at each gradient step, and so is told once and at the end, not in every line of the log."""


class SurgeryReport:
    """Adds up what was done since the last line of the log, and over the run.

    `take()` gives what was done since it was last called, as `Lifecycle.surgeries`.
    """

    def __init__(self, take: Callable[[], Done]) -> None:
        self.take = take
        self.waiting: dict[tuple[str, str, str], Tensor | int] = {}  # taken, and in no line yet
        self.total: dict[tuple[str, str, str], int] = {}
        self.looked: set[str] = set()
        """Who has looked for something to do, found or not."""

    def flush(self) -> dict[tuple[str, str, str], int]:
        """What was done since the last flush, in one transfer from the device, without what never happened."""
        done, self.waiting = self._taken(), {}
        on_device = {key: amount for key, amount in done.items() if isinstance(amount, Tensor)}
        counts = {key: amount for key, amount in done.items() if not isinstance(amount, Tensor)}
        if on_device:
            read = torch.stack([amount.double() for amount in on_device.values()]).tolist()
            counts |= {key: int(amount) for key, amount in zip(on_device, read, strict=True)}
        found: dict[tuple[str, str, str], int] = {}
        for (who, what, where), amount in counts.items():
            place = where.rpartition(".")[0] or where if what in USUAL else where  # the layer's, not each tensor's
            key = (who, what, layer_name(place))
            found[key] = found.get(key, 0) + amount
        found = {key: amount for key, amount in found.items() if amount}
        for key, amount in found.items():
            self.total[key] = self.total.get(key, 0) + amount
        return found

    def _taken(self) -> dict[tuple[str, str, str], Tensor | int]:
        """All that is in no line yet."""
        for key, amount in self.take().items():
            self.looked.add(key[0])
            self.waiting[key] = self.waiting[key] + amount if key in self.waiting else amount
        return self.waiting

    def state_dict(self) -> dict[str, Any]:
        """Counts, those in no line yet among them."""
        return {"waiting": dict(self._taken()), "total": dict(self.total), "looked": sorted(self.looked)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self.waiting, self.total, self.looked = dict(state["waiting"]), dict(state["total"]), set(state["looked"])


def scalars(done: Mapping[tuple[str, str, str], int]) -> dict[str, int]:
    """As tags: surgery/redo/replaced/conv1."""
    return {"surgery/" + "/".join(filter(None, key)): amount for key, amount in done.items()}


def sentences(done: Mapping[tuple[str, str, str], int]) -> list[str]:
    """One for each intervention and deed: "redo replaced 12 units: conv1 3, dense1 9"."""
    deeds: dict[tuple[str, str], dict[str, int]] = {}
    for (who, what, where), amount in done.items():
        deeds.setdefault((who, what), {})[where] = amount
    return [_sentence(who, what, places) for (who, what), places in deeds.items()]


def idle(config: TrainConfig, report: SurgeryReport) -> list[str]:
    """A sentence for each intervention that edits weights now and then and never did."""
    active = {who for who, *_ in report.total}
    never = [one.name for one in config.interventions if one.is_surgery and one.name not in active]
    why = {name: "looked and found nothing to do" if name in report.looked else "never acted" for name in never}
    return [f"{name} {what}" for name, what in why.items()]


def surgery_in_short(intervention: Intervention) -> str:
    """Its name and what differs from its defaults: redo (tau 0.025, every 100 gradient steps)."""
    own = {entry.name: entry.default for entry in dataclasses.fields(intervention)}
    changed = {name: value for name, value in intervention.parameters().items() if value != own[name]}
    inside = ", ".join(value if isinstance(value, When) else f"{name} {value}" for name, value in changed.items())
    return intervention.name + (f" ({inside})" if changed else "")


def _sentence(who: str, what: str, places: dict[str, int]) -> str:
    total, listed = sum(places.values()), ", ".join(f"{where} {amount:,}" for where, amount in places.items() if where)
    if what == "replaced":
        return f"{who} replaced {total:,} unit{'s' * (total != 1)}: {listed}"
    if what == "projected":
        return f"{who} moved tensors {total:,} times: {listed}"
    if what == "reset":
        return f"{who} drew tensors anew, so many times: {listed}"
    return f"{who}: {what}" + (f" ({listed})" if listed else "")
