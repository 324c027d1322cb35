"""A question's runs in one command: `python sweep.py STUDY.yaml` makes them, or what is left of them."""

import os
import shlex
import sys

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # spinning threads slow a shared machine down many times over

from experiments.cli import fail
from experiments.command import as_command
from experiments.sweep.settings import parse_sweep


def main() -> int:
    """Parse, plan, and list, print or make the trials; sum up."""
    try:
        settings = parse_sweep(sys.argv[1:])
        from experiments.sweep.study import read_study
        from experiments.sweep.tuning import planned_as_tuned

        study = read_study(settings.study, settings.size)
        plan = planned_as_tuned(study, settings.runs_dir)
        if settings.dry_run or settings.print:
            from experiments.sweep.here import limits_here
            from experiments.sweep.listed import commands, overview
            from experiments.sweep.sweeping import at_once

            here = limits_here(plan, at_once(settings.workers))
            print("\n".join(commands(plan) if settings.print else overview(plan, here)))
            return 0
        from experiments.progress import RunConsole
        from experiments.sweep.sweeping import summed_up, sweep

        where = settings.workers, settings.ray_address, settings.lock_timeout
        swept = sweep(study, settings.runs_dir, *where, RunConsole(), plan)
    except ValueError as error:
        fail(str(error))
    print("\n".join(summed_up(swept, f"python sweep.py {shlex.join(sys.argv[1:])}")))
    return swept.exit_code


if __name__ == "__main__":
    sys.exit(as_command(main))
