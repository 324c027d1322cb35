"""Make the runs of a study of supervised problems: `python -m experiments.supervised STUDY.yaml [--size SIZE]`."""

import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from agents.config import AsFlag, require
from experiments.cli import fail
from experiments.command import as_command
from experiments.places import quoted
from experiments.simple_command import parsed


@dataclass(frozen=True)
class SupervisedSweep:
    """Make the runs of a study whose base names a problem; what is finished is not made again."""

    study: Annotated[Path, AsFlag.POSITIONAL]
    """A YAML file, such as experiments/studies/*.yaml; sweep.py --help says what is in one."""
    size: str = ""
    """Which of the study's sizes; the first where left out."""
    workers: int = 0
    """Runs at the same time, each in a process of one thread; 0: as many as there are cores."""
    runs_dir: Path = Path("runs")
    """Where the runs go, in a directory that is called as the study."""
    dry_run: bool = False
    """List the runs, and write nothing."""


def main() -> int:
    """Parse, plan, make, say what came of it."""
    try:
        values, places = parsed(SupervisedSweep, sys.argv[1:], "python -m experiments.supervised STUDY.yaml [FLAGS]")
        require(len(places) == 1, "study", " ".join(places), "one YAML file")
        settings = SupervisedSweep(Path(places[0]), **values)
        require(0 <= settings.workers <= 1_000, "workers", settings.workers, "in [0, 1000]")
        from experiments.supervised.sweeping import is_supervised, made, planned, tuners
        from experiments.sweep.study import read_study

        study = read_study(settings.study, settings.size)
        require(is_supervised(study), "study", str(settings.study), "one whose base names a problem; sweep.py makes it")
        trials = planned(study, settings.runs_dir)
        if settings.dry_run:
            for one in [*tuners(study, settings.runs_dir), *trials]:
                place = one.directory.relative_to(one.directory.parents[1])
                print(f"{'finished' if one.finished else 'new':9} {place}")
            return 0
        command = [Path(sys.argv[0]).name, *sys.argv[1:]]
        trials, failed = made(study, settings.runs_dir, settings.workers, command, lambda line: print(line, flush=True))
    except (ValueError, OSError) as error:
        fail(str(error))
    except KeyboardInterrupt:
        print(f"stopped; go on: python -m experiments.supervised {shlex.join(sys.argv[1:])}", file=sys.stderr)
        return 130
    place = quoted(trials[0].directory.parent)
    print(f"compare:   python compare.py {place} --metric {trials[0].config.score}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(as_command(main))
