"""From a study's fields to settings: its cells, each an arm in a world. Torch comes with interventions alone."""

import functools
import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from agents.config import require, require_float32
from agents.kinds import KINDS
from experiments.cli import TrainLine, made, what_is_wrong
from experiments.config import TrainConfig
from experiments.flags import flags_of
from experiments.sweep.grid import Fields, laid_over
from experiments.sweep.study import Study


@dataclass(frozen=True)
class Cell:
    """An arm in a world: trials that differ in their seed alone."""

    arm: str
    world: str
    """Where the grid has several; else empty."""
    fields: Fields

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.arm} in {self.world}" if self.world else self.arm

    def but(self, fields: Fields, arm: str = "") -> "Cell":
        """The same with other fields; called `arm` where that is given."""
        return replace(self, arm=arm or self.arm, fields=laid_over(self.fields, fields))


def cells_of(study: Study) -> list[Cell]:
    """Every combination of the study's arms and its grid, in their order."""
    worlds = study.grid.get("env", ())
    found = []
    for (arm, own), *chosen in itertools.product(study.arms.items() or [("", {})], *study.grid.values()):
        fields = laid_over(_by_flag(study.base), _by_flag(own))
        for _, more in chosen:
            fields = laid_over(fields, _by_flag(more))
        labels = [label for axis, (label, _) in zip(study.grid, chosen, strict=True) if axis != "env"]
        world = fields["env"] if len(worlds) > 1 else ""
        found.append(Cell(" ".join(filter(None, [arm, *labels])) or fields.get("agent", "all"), world, fields))
    for name, times in Counter(cell.name for cell in found).items():
        require(times == 1, "arms", name, f"a name that one arm has; {times} have it")
    return found


def _by_flag(fields: Fields) -> Fields:
    return {_flags_by_path().get(name, name): word for name, word in fields.items()}


@functools.cache
def _flags_by_path() -> dict[str, str]:
    """By its place in config.json, hyphens for underscores, the flag of every setting."""
    kinds = (flags_of(TrainConfig(agent=kind.settings())) for kind in KINDS.values())
    return {".".join(flag.path).replace("_", "-"): flag.name.removeprefix("--") for flags in kinds for flag in flags}


def words_of(fields: Fields) -> list[str]:
    """The words after train.py that set `fields`."""
    agent = [fields["agent"]] if "agent" in fields else []
    return [*agent, *(f"--{name}={word}" for name, word in fields.items() if name != "agent")]


def settings_of(cells: list[Cell]) -> Iterator[tuple[Cell, TrainConfig]]:
    """Each of `cells` with its settings, of which the seed and the place are still train.py's.

    What can be seen without torch is looked at in all of them first. ValueError: names the arm, the field, its value
    and what is allowed.
    """
    known = []
    for cell in cells:
        config, line, own = _read(cell)
        known.append((cell, config, line, own))
    for cell, config, line, own in known:
        try:
            whole = replace(config, interventions=made(line.listed, own))
            require_float32(whole)
            yield cell, whole
        except ValueError as error:
            raise _of_cell(cell, error) from None


def _read(cell: Cell) -> tuple[TrainConfig, TrainLine, dict[tuple[str, str], Any]]:
    words = words_of(cell.fields)
    agent = words.pop(0) if "agent" in cell.fields else None
    try:
        known = agent in KINDS or (agent is None and "config" in cell.fields)
        require(known, "agent", agent, f"one of {', '.join(KINDS)}, in base, an arm or the grid")
        line = TrainLine(agent, words)
    except ValueError as error:
        raise _of_cell(cell, error) from None
    try:
        config, own, _ = line.without_interventions()
        require_float32(config)
    except ValueError as error:
        raise _of_cell(cell, ValueError(what_is_wrong(line.env, error))) from None
    return config, line, own


def _of_cell(cell: Cell, error: ValueError) -> ValueError:
    return ValueError(f"{cell.name}: {error}")
