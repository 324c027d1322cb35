"""What sweep.py is asked. Imports no torch."""

import re
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from agents.config import AsFlag, require
from experiments.places import require_writable
from experiments.simple_command import parsed
from experiments.sweep.study import EXAMPLE


@dataclass(frozen=True)
class SweepConfig:
    """Make the trials of a study: those that are finished are not made again, those that were broken off go on."""

    study: Annotated[Path, AsFlag.POSITIONAL]
    """A YAML file, as the example below."""
    size: str = ""
    """Which of the study's sizes; the first where left out."""
    workers: int = 0
    """Trials at the same time, on all machines together; 1: one after the other in this process, without Ray; 0: as
    many as there are cores, GPUs and memory for, or 1 where Ray is not installed."""
    ray_address: str = ""
    """A Ray cluster to run on, of which this machine is one (auto, or HOST:PORT); without it Ray is started here."""
    runs_dir: Path = Path("runs")
    """Trials lie in a directory there that is called as the study; all machines have to see it."""
    lock_timeout: float = 60.0
    """Seconds that a trial waits for a run directory which another process holds, or may still hold on a machine that
    is not known to be gone."""
    dry_run: bool = False
    """List the trials, and write nothing."""
    print: bool = False
    """Print a command for each trial that is not finished, such as for a Slurm array, and write nothing."""

    def __post_init__(self) -> None:
        require(0 <= self.workers <= 10_000, "workers", self.workers, "in [0, 10000]")
        require(0 <= self.lock_timeout <= 86_400, "lock_timeout", self.lock_timeout, "in [0, 86400] seconds")
        known = re.fullmatch(r"(auto|[^:/\s]+:[0-9]{1,5})?", self.ray_address) is not None
        require(known, "ray_address", self.ray_address, "auto, or HOST:PORT")
        alone = not (self.ray_address and self.workers == 1)
        require(alone, "ray_address", self.ray_address, "left out beside --workers 1, which runs without Ray")


def parse_sweep(arguments: list[str]) -> SweepConfig:
    """The settings of `sweep.py arguments`. ValueError: what is wrong with them, in a sentence; --help is printed and
    leaves with code 0."""
    from experiments.sweep import study

    said = (study.__doc__ or "").partition("By section:")[2].strip("\n")
    example = f"A study\n\n{textwrap.indent(EXAMPLE, '    ')}\nIts sections\n\n{textwrap.indent(said, '    ')}".rstrip()
    values, places = parsed(SweepConfig, arguments, "sweep.py STUDY.yaml [FLAGS]", example)
    require(len(places) == 1, "study", " ".join(places), "one YAML file, as sweep.py STUDY.yaml; --help shows one")
    settings = SweepConfig(Path(places[0]), **values)
    require_writable("runs_dir", settings.runs_dir)
    return settings
