"""What compare.py is asked. Standard library alone, so that a bad flag is answered at once."""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal, NoReturn

from agents.config import AsFlag, require
from agents.spelling import did_you_mean
from experiments.flags import Flag, flags_of, read, value_of
from experiments.help import rendered, sections_of
from experiments.places import require_writable

HELP = Flag("--help", ("help",), bool, False)


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
    flags = [*flags_of(CompareConfig), HELP]
    words = ["--help" if word == "-h" else word for word in arguments]
    if "--help" in words:
        sections = sections_of([flag for flag in flags if flag is not HELP], {})
        introduction = " ".join((CompareConfig.__doc__ or "").split())
        titled = [replace(section, title="Flags.") for section in sections]
        print(rendered(["compare.py RUNS... [FLAGS]"], introduction, titled))
        raise SystemExit(0)

    def unknown(written: str) -> NoReturn:
        names = [flag.name for flag in flags if not flag.positional]
        raise ValueError(f"{written}: no such flag; there are {', '.join(names)}{did_you_mean(written, names)}")

    given = read(words, flags, unknown)
    values = {flag.path[0]: value_of(flag, given.words[flag.name]) for flag in flags if flag.name in given.words}
    settings = CompareConfig(tuple(word for word, _ in given.stray), **values)
    require_writable("out", settings.out)
    for note in given.notes:
        print(f"note: {note}", file=sys.stderr)
    return settings
