"""Words of a study: what stands in one place of it, checked, with a sentence that names the place. Imports no torch."""

from collections.abc import Mapping, Sequence
from typing import Any

from agents.config import require
from agents.spelling import did_you_mean, whole_number

OF_THE_SWEEP = ("seed", "name", "runs-dir", "num-seeds", "resume", "help")
"""Fields that a sweep sets itself."""
MOST = 1_000_000
"""Seeds, and values of a field; a slip of the pen is caught before memory is full of trials."""


def field_name(where: str, written: Any) -> str:
    """A field's name with hyphens, as its flag has it."""
    name = text_of(where, written).removeprefix("--").replace("_", "-")
    require(name not in OF_THE_SWEEP, where, written, f"left out: a sweep sets {', '.join(OF_THE_SWEEP[:4])} itself")
    return "agent" if name == "algorithm" else name


def word_of(where: str, value: Any) -> str:
    """A value as it stands on a command line."""
    if is_list(value):
        return ",".join(word_of(where, part) for part in value) or "none"
    require(not isinstance(value, Mapping), where, value, "a value, or a list of some")
    if isinstance(value, bool):
        return str(value).lower()
    return "none" if value is None or value == "" else str(value)


def number_of(where: str, value: Any) -> float:
    """A number that is finite."""
    try:
        number = float(str(value))
    except ValueError:
        number = float("nan")
    require(abs(number) < float("inf"), where, value, "a number")
    return number


def text_of(where: str, value: Any) -> str:
    """Words."""
    require(isinstance(value, str | int | float) and not isinstance(value, bool), where, value, "words")
    return str(value)


def mapping_of(where: str, value: Any) -> Mapping[str, Any]:
    """A mapping; nothing at all is an empty one."""
    value = {} if value is None or value == "" else value
    require(isinstance(value, Mapping), where, value, "a mapping (NAME: VALUE)")
    return value


def listed(value: Any) -> Sequence[Any]:
    """A list; anything else is its only member, and nothing at all none."""
    return value if is_list(value) else [] if value is None or value == "" else [value]


def is_list(value: Any) -> bool:
    """Whether `value` is a list."""
    return isinstance(value, Sequence) and not isinstance(value, str)


def is_none(value: Any) -> bool:
    """Whether `value` says that there is nothing."""
    return value is None or (isinstance(value, str) and value.lower() in ("none", ""))


def refuse_unknown(where: str, given: Mapping[str, Any], known: Sequence[str]) -> None:
    """Raise ValueError for a name in `given` that is not `known`; `where` goes before it."""
    for name in given:
        allowed = f"a known section; known: {', '.join(known)}{did_you_mean(name, known)}"
        require(name in known, f"{where}{name}", given[name], allowed)


def seeds_of(where: str, value: Any) -> tuple[int, ...]:
    """Seeds written as how many (from 1 on), as a range, or as a list of both."""
    many = is_list(value)
    parts = [str(part) for part in value] if many else str(value).replace(",", " ").split()
    if not many and len(parts) == 1 and "-" not in parts[0]:
        require(parts[0] != "0", where, value, "at least one seed")
        parts = [f"1-{parts[0]}"]
    found: list[int] = []
    for part in parts:
        first, dash, last = part.partition("-")
        low, high = whole_number(first.strip()), whole_number((last if dash else first).strip())
        allowed = "how many there are, a range as 1-10, or a list of seeds in [0, 2**31)"
        require(low is not None and high is not None and 0 <= low <= high < 2**31, where, value, allowed)
        require(high - low < MOST, where, part, f"at most {MOST:,} seeds")
        found += range(low, high + 1)
    require(bool(found) and len(found) == len(set(found)), where, value, "one or more seeds, each once")
    return tuple(found)
