"""The text of --help. Imports no torch."""

import re
import shutil
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from agents.described import texts_of
from experiments.flags import Flag, allowed, as_written, metavar, spelled

COLUMN = 28
"""Where the texts begin."""
WIDEST = 120
"""Columns beyond which a line is hard to read."""


@dataclass(frozen=True)
class Entry:
    """One flag of a help: what is written, and what it does."""

    left: str
    text: str


@dataclass(frozen=True)
class HelpSection:
    """Flags under one title."""

    title: str
    entries: Sequence[Entry]


def columns() -> int:
    """The width of the terminal, of COLUMNS, or of a usual terminal where the output is none."""
    return max(40, min(WIDEST, shutil.get_terminal_size((80, 24)).columns))


def wrapped(text: str, indent: int = 0) -> str:
    """`text` in lines that fit."""
    space = " " * indent
    return textwrap.fill(text, columns(), initial_indent=space, subsequent_indent=space, break_on_hyphens=False)


def rendered(usage: Sequence[str], introduction: str, sections: Iterable[HelpSection]) -> str:
    """A whole help."""
    parts = ["usage: " + "\n       ".join(usage), wrapped(introduction)]
    parts += [_section(section) for section in sections if section.entries]
    return "\n\n".join(parts)


def _section(section: HelpSection) -> str:
    lines = [wrapped(section.title)]
    for entry in section.entries:
        left, text = "  " + entry.left, wrapped(entry.text, COLUMN)
        fits = len(left) < COLUMN - 1 and text
        lines += [left + text[len(left) :]] if fits else [wrapped(entry.left, 2), *([text] if text else [])]
    return "\n".join(lines)


def entry_of(flag: Flag, text: str, choices: Sequence[str] = ()) -> Entry:
    """What a help says of `flag`; `choices` take the place of those that its type has."""
    if flag.core is bool:
        left = f"{flag.name}, {flag.negated}"
    else:
        left = f"{flag.name} {'{' + ','.join(choices) + '}' if choices else metavar(flag)}"
    if flag.positional:
        return Entry(flag.name.removeprefix("--").upper(), text)
    text += f" {metavar(flag)}: {allowed(flag)}." if spelled(flag.core) else ""
    return Entry(left, f"{text} (default: {as_written(flag.default)})".strip())


def sections_of(
    flags: Iterable[Flag], choices: Mapping[str, Sequence[str]], endings: Mapping[str, str] | None = None
) -> list[HelpSection]:
    """The flags of each dataclass under the first sentence of its docstring; `choices` by flag, where they are not its
    type's, and `endings` of the texts, where they list what there is."""
    by_owner: dict[type, list[Flag]] = {}
    for flag in flags:
        by_owner.setdefault(flag.owner, []).append(flag)
    sections = []
    for owner, own in by_owner.items():
        texts = texts_of(owner)
        said = {flag: f"{texts.get(flag.path[-1], '')} {(endings or {}).get(flag.name, '')}".strip() for flag in own}
        entries = [entry_of(flag, said[flag], choices.get(flag.name, ())) for flag in own]
        sections.append(HelpSection(first_sentence(owner.__doc__ or ""), entries))
    return sections


def first_sentence(text: str) -> str:
    """Up to the first full stop that a capital follows."""
    return re.split(r"(?<=\.)\s+(?=[A-Z])", " ".join(text.split()), maxsplit=1)[0]
