"""What interventions did to the weights, in numbers and in words."""

import dataclasses
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from agents.interventions.base import Intervention
from agents.probing import layer_name
from experiments.config import TrainConfig

Done = Mapping[tuple[str, str, str], Tensor | int]
UNCOUNTED = frozenset({"projected"})
"""Said without naming every tensor: it happens to all of them, often at each gradient step."""


class SurgeryReport:
    """Adds up what was done since the last line of the log, and over the run.

    `take()` gives what was done since it was last called, as `Lifecycle.surgeries`.
    """

    def __init__(self, take: Callable[[], Done]) -> None:
        self.take = take
        self.total: dict[tuple[str, str, str], int] = {}

    def flush(self) -> dict[tuple[str, str, str], int]:
        """What was done since the last flush, in one transfer from the device, without what never happened."""
        done = self.take()
        on_device = {key: amount for key, amount in done.items() if isinstance(amount, Tensor)}
        counts = {key: amount for key, amount in done.items() if not isinstance(amount, Tensor)}
        if on_device:
            read = torch.stack([amount.double() for amount in on_device.values()]).tolist()
            counts |= {key: int(amount) for key, amount in zip(on_device, read, strict=True)}
        found: dict[tuple[str, str, str], int] = {}
        for (who, what, where), amount in counts.items():
            key = (who, what, "" if what in UNCOUNTED else layer_name(where))
            found[key] = found.get(key, 0) + amount
        found = {key: amount for key, amount in found.items() if amount}
        for key, amount in found.items():
            self.total[key] = self.total.get(key, 0) + amount
        return found


def scalars(done: Mapping[tuple[str, str, str], int]) -> dict[str, int]:
    """As tags: surgery/redo/replaced/conv1."""
    return {"surgery/" + "/".join(filter(None, key)): amount for key, amount in done.items()}


def sentences(done: Mapping[tuple[str, str, str], int]) -> list[str]:
    """One for each intervention and deed: "redo replaced 12 units: conv1 3, dense1 9"."""
    deeds: dict[tuple[str, str], dict[str, int]] = {}
    for (who, what, where), amount in done.items():
        deeds.setdefault((who, what), {})[where] = amount
    return [_sentence(who, what, places) for (who, what), places in deeds.items()]


def idle(config: TrainConfig, done: Mapping[tuple[str, str, str], int]) -> list[str]:
    """A sentence for each intervention that edits weights now and then and never did."""
    active = {who for who, *_ in done}
    return [f"{one.name} never acted" for one in config.interventions if one.operates and one.name not in active]


def in_short(intervention: Intervention) -> str:
    """Its name and what differs from its defaults: redo (tau 0.025)."""
    own = {entry.name: entry.default for entry in dataclasses.fields(intervention)}
    changed = {name: value for name, value in intervention.parameters().items() if value != own[name]}
    inside = ", ".join(f"{name} {value}" for name, value in changed.items())
    return intervention.name + (f" ({inside})" if changed else "")


def _sentence(who: str, what: str, places: dict[str, int]) -> str:
    total, listed = sum(places.values()), ", ".join(f"{where} {amount:,}" for where, amount in places.items() if where)
    if what == "replaced":
        return f"{who} replaced {total:,} unit{'s' * (total != 1)}: {listed}"
    if what in UNCOUNTED:
        return f"{who} moved weights {total:,} times (once a tensor)"
    if what == "reset":
        times = ", ".join(f"{where} {amount:,}" for where, amount in places.items())
        return f"{who} drew tensors anew, so many times: {times}"
    return f"{who}: {what}" + (f" ({listed})" if listed else "")
