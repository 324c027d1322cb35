"""A question's runs in one command: `python sweep.py STUDY.yaml` makes them, or what is left of them."""

import os
import sys

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from experiments.command import as_command
from experiments.sweep.settings import parse_sweep


def main() -> int:
    """Parse, plan, and list, print or make the trials."""
    try:
        settings = parse_sweep(sys.argv[1:])
        from experiments.sweep.plan import planned
        from experiments.sweep.study import read_study

        plan = planned(read_study(settings.study, settings.size), settings.runs_dir)
        from experiments.sweep.listed import commands, overview

        print("\n".join(commands(plan) if settings.print else overview(plan)))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(as_command(main))
