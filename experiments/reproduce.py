"""Check the studies' claims: `python -m experiments.reproduce [CLAIM ...|all-cpu] [--quick]`.

A claim is called as its study, a file of experiments/studies. Its runs are made, or what is left of them, as sweep.py
makes them; then every claim is held against the margin that stood in the file before. --quick makes tiny runs of few
seeds, which show that everything works and decide nothing.
"""

import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from agents.config import AsFlag, require
from agents.spelling import did_you_mean
from experiments.cli import fail
from experiments.command import as_command
from experiments.durable import write_whole
from experiments.places import quoted, require_writable
from experiments.simple_command import parsed

STUDIES = Path(__file__).parent / "studies"
EVERYTHING = "all-cpu"
CLAIM, QUICK = "claim", "quick"
"""Sizes of a study. One without the first is no part of all-cpu."""


@dataclass(frozen=True)
class ReproduceConfig:
    """Make the runs of the studies that are named, and check what was claimed of them: reproduced, not reproduced or
    undecided, with figures. What is finished is not made again."""

    claims: Annotated[tuple[str, ...], AsFlag.POSITIONAL] = (EVERYTHING,)
    """Studies by their names, or all-cpu: every one that has a claim size."""
    quick: bool = False
    """Tiny runs, which decide nothing."""
    check: bool = False
    """Make no runs: check what is there."""
    workers: int = 0
    """Trials at the same time, as sweep.py takes it."""
    runs_dir: Path = Path("runs/claims")
    """Where the runs go."""
    out: Path | None = None
    """The document to write, in which other studies stay; docs/results/claims.md, with --quick beside the runs."""

    @property
    def size(self) -> str:
        """Of the studies."""
        return QUICK if self.quick else CLAIM

    @property
    def document(self) -> Path:
        """Where the claims are written down."""
        return self.out or (self.runs_dir / "quick.md" if self.quick else Path("docs/results/claims.md"))


def parse_reproduce(arguments: Sequence[str]) -> ReproduceConfig:
    """The settings of the command. ValueError: what is wrong with them, in a sentence."""
    known = studies()
    usage = f"python -m experiments.reproduce [{'|'.join([*known, EVERYTHING])}] [FLAGS]"
    values, places = parsed(ReproduceConfig, arguments, usage)
    for place in places:
        allowed = f"{EVERYTHING} or one of {', '.join(known)}{did_you_mean(place, known)}"
        require(place == EVERYTHING or place in known, "claim", place, allowed)
    settings = ReproduceConfig(tuple(places) or (EVERYTHING,), **values)
    require(0 <= settings.workers <= 10_000, "workers", settings.workers, "in [0, 10000]")
    require_writable("runs_dir", settings.runs_dir)
    require_writable("out", settings.document.parent)
    return settings


def studies() -> dict[str, Path]:
    """The files by the studies' names."""
    return {path.stem: path for path in sorted(STUDIES.glob("*.yaml"))}


def chosen(settings: ReproduceConfig) -> list:
    """The studies that are asked for, at their size. ValueError: one is not there, or has no such size."""
    from experiments.sweep.study import read_study

    found = []
    for name, path in studies().items():
        sizes = read_study(path).sizes
        if name in settings.claims or (EVERYTHING in settings.claims and CLAIM in sizes):
            found.append(read_study(path, settings.size))
    return found


def main() -> int:
    """Make what is left to make, check, print, write down."""
    from experiments.verdicts import checks_of, in_a_document, made, on_screen

    try:
        settings = parse_reproduce(sys.argv[1:])
        console, command = None, f"python -m experiments.reproduce {shlex.join(sys.argv[1:])}".strip()
        if not settings.check:
            from experiments.progress import RunConsole

            console = RunConsole()
        found = []
        for study in chosen(settings):
            print(f"\n{study.name}: {study.question}\nit is said to take {study.takes or 'nobody knows how long'}")
            trials, code = made(study, settings.runs_dir, settings.workers, console)
            checks = checks_of(study, trials)
            found.append((study, checks))
            print("\n".join(on_screen(checks)))
            if code == 75:
                print(f"go on:     {command}")
                return code
        before = settings.document.read_text() if settings.document.is_file() else ""
        write_whole(settings.document, in_a_document(found, command, before).encode())
        print(f"\nwritten:   {quoted(settings.document)}")
    except (ValueError, OSError) as error:
        fail(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(as_command(main))
