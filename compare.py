"""From runs to a conclusion: `python compare.py runs/` groups them, tests the groups, draws, and writes a report."""

import shlex
import sys

from experiments.command import as_command
from experiments.results.settings import parse_compare


def main() -> int:
    """Parse, compare, write, say what came of it."""
    try:
        settings = parse_compare(sys.argv[1:])
        from experiments.results.written import compared

        lines = compared(settings, f"python compare.py {shlex.join(sys.argv[1:])}")
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(as_command(main))
