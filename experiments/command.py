"""What train.py and evaluate.py owe to the shell that they are called from. Imports no torch."""

import os
import sys
from collections.abc import Callable


def as_command(main: Callable[[], int]) -> int:
    """The exit code of `main`, a command: Ctrl-C is answered with a word and code 130, and a reader who has left (as
    in `train.py --help | head`) with nothing; a Python traceback helps nobody there."""
    print_anything()
    try:
        try:
            return main()
        finally:
            sys.stdout.flush()  # here, where a reader who has left can be told of
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        nobody_reads()
        return 0


def print_anything() -> None:
    """Let what this locale cannot write come out as escapes, instead of ending a run: names hold what they like."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def nobody_reads() -> None:
    """Drop what is still to be printed: whoever read it has left."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
