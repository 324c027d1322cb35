"""A command whose flags are the fields of one dataclass. Standard library alone."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NoReturn

from agents.spelling import did_you_mean
from experiments.flags import Flag, flags_of, read, value_of
from experiments.help import rendered, sections_of

HELP = Flag("--help", ("help",), bool, False)


def parsed(kind: type, arguments: Sequence[str], usage: str, more: str = "") -> tuple[dict[str, Any], list[str]]:
    """(the fields of the dataclass `kind` that `arguments` give, the words that belong to no flag).

    ValueError: what is wrong, in a sentence. --help prints `usage`, the docstring of `kind`, its flags and `more`, and
    leaves with code 0. What should be said although it is allowed is said on standard error.
    """
    flags = [*flags_of(kind), HELP]
    words = ["--help" if word == "-h" else word for word in arguments]
    if "--help" in words:
        sections = sections_of([flag for flag in flags if flag is not HELP], {})
        introduction = " ".join((kind.__doc__ or "").split())
        titled = [replace(section, title="Flags.") for section in sections]
        print(rendered([usage], introduction, titled) + (f"\n\n{more}" if more else ""))
        raise SystemExit(0)

    def unknown(written: str) -> NoReturn:
        names = [flag.name for flag in flags if not flag.positional]
        raise ValueError(f"{written}: no such flag; there are {', '.join(names)}{did_you_mean(written, names)}")

    given = read(words, flags, unknown)
    for note in given.notes:
        print(f"note: {note}", file=sys.stderr)
    values = {flag.path[0]: value_of(flag, given.words[flag.name]) for flag in flags if flag.name in given.words}
    return values, [word for word, _ in given.stray]
