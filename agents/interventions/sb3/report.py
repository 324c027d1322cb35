"""What interventions do, in the logger of Stable-Baselines3."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from stable_baselines3.common.logger import KVWriter, Logger
from torch import Tensor

from agents.deeds import Done

PRINTED = ("stdout", "log")


class Report(KVWriter):
    """Stands first among the logger's outputs, and so adds to each of its dumps what came to pass since the last one.

    `take()` gives what was done, as `Lifecycle.surgeries`. Values are read from the device at a dump alone.
    """

    def __init__(self, take: Callable[[], Done]) -> None:
        self.take = take
        self._penalties: dict[str, list[Tensor]] = {}
        self._logger: Logger | None = None
        self.acted: set[str] = set()
        """Which interventions have done something, as far as it has been logged."""

    def attach(self, logger: Logger) -> None:
        """Write to `logger` from now on."""
        self._logger = logger
        logger.output_formats.insert(0, self)

    def detach(self) -> None:
        """Leave it."""
        if self in self._logger.output_formats:
            self._logger.output_formats.remove(self)

    def penalized(self, penalties: Mapping[str, Tensor]) -> None:
        """These were added to a loss."""
        for name, penalty in penalties.items():
            self._penalties.setdefault(name, []).append(penalty.detach())

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Called by the logger."""
        if key_values is self._logger.name_to_value:  # other callbacks may have loggers with the same outputs
            for tag, (value, excluded) in self.taken().items():
                key_values[tag], key_excluded[tag] = value, excluded

    def taken(self) -> dict[str, tuple[float, tuple[str, ...]]]:
        """By tag: what was done since the last call, and which outputs leave it out. surgery/NAME/WHAT is over all
        places; the single ones have names too long for the screen. train/penalty/NAME is a mean over gradient steps."""
        done, penalties = self.take(), self._penalties
        self._penalties = {}
        means = {name: torch.stack(values).mean() for name, values in penalties.items()}
        amounts = [torch.as_tensor(amount).double() for amount in (*done.values(), *means.values())]
        device = max((amount.device for amount in amounts), key=lambda device: device.type != "cpu", default=None)
        numbers = torch.stack([amount.to(device) for amount in amounts]).tolist() if amounts else []
        found: dict[str, tuple[float, tuple[str, ...]]] = {}
        for (who, what, where), amount in zip(done, numbers, strict=False):
            if amount:
                self.acted.add(who)
                tag = f"surgery/{who}/{what}"
                found[tag] = found.get(tag, (0,))[0] + int(amount), ("",)
                if where:
                    found[f"{tag}/{where}"] = int(amount), PRINTED
        for name, amount in zip(means, numbers[len(done) :], strict=True):
            found[f"train/penalty/{name}"] = amount, ("",)
        return found

    def close(self) -> None:
        """The logger closes; nothing is open here."""
