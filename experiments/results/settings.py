"""What compare.py is asked. Standard library alone, so that a bad flag is answered at once."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from agents.config import AsFlag, require
from experiments.places import require_writable
from experiments.simple_command import parsed


@dataclass(frozen=True)
class CompareConfig:
    """Compare runs: group them by what differs in their settings (the seed never), test each group against the
    plainest, and write table, figures and a report."""

    runs: Annotated[tuple[str, ...], AsFlag.POSITIONAL] = ()
    """Run directories, folders that hold some, or patterns."""
    by: tuple[str, ...] = ()
    """What makes an arm, such as agent, loss, interventions, learning-rate; without it everything that differs but
    length, seed and world."""
    where: tuple[str, ...] = ()
    """Only runs with these settings, each as FIELD=VALUE: loss=mse, interventions=layer_norm+redo, seed=3."""
    metric: str = "charts/episodic_return"
    """What is compared: a tag of metrics.jsonl; returns are those of all games in episodes.jsonl."""
    baseline: str = ""
    """The arm that others are tested against; without it the one with the fewest interventions."""
    collapsed_below: float = 0.5
    """A task counts as collapsed where its last tenth is below this share of the way from random to that of the first
    task."""
    unfinished: Literal["leave-out", "cut"] = "leave-out"
    """Runs that have not reached their end: leave-out; or cut all runs to the length of the shortest."""
    out: Path = Path("runs/comparison")
    """Where table, figures and report go; what is there is overwritten."""

    def __post_init__(self) -> None:
        require(bool(self.runs), "runs", "", "run directories, or folders that hold some, as compare.py runs/")
        require(0 < self.collapsed_below < 1, "collapsed_below", self.collapsed_below, "in (0, 1)")


def parse_compare(arguments: list[str]) -> CompareConfig:
    """The settings of `compare.py arguments`. ValueError: what is wrong with them, in a sentence; --help is printed and
    leaves with code 0."""
    values, places = parsed(CompareConfig, arguments, "compare.py RUNS... [FLAGS]")
    settings = CompareConfig(tuple(places), **values)
    require_writable("out", settings.out)
    return settings
