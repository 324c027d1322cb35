"""How settings are written, and what a mistyped word was probably meant to be. Standard library alone."""

import difflib
from collections.abc import Iterable
from decimal import Decimal, InvalidOperation
from typing import ClassVar, NoReturn

LONGEST = 40
"""Digits of a whole number that can be meant."""


class Spelled(str):
    """A setting of a kind of its own that is written as one word, in flags and in files alike.

    A subclass makes the one usual spelling of what it is given and refuses what it cannot be with `refuse`.
    """

    metavar: ClassVar[str]
    """What stands for it in a help."""
    allowed: ClassVar[str]
    """What it may be, in words."""

    @classmethod
    def refuse(cls, text: object) -> NoReturn:
        """Raise ValueError."""
        raise ValueError(f"{text!r}: must be {cls.allowed}")


def whole_number(text: str) -> int | None:
    """The whole number that `text` is, as 1000000, 1_000_000 or 1e6; None where it is none."""
    try:
        number = Decimal(text)
    except InvalidOperation:
        return None
    if not number.is_finite() or number.adjusted() > LONGEST or number != number.to_integral_value():
        return None
    return int(number)


def folded(word: str) -> str:
    """`word` without what people vary: capitals, hyphens, underscores, dots, blanks, slashes."""
    return "".join(letter for letter in word.lower() if letter not in "-_. /")


def nearest(word: str, known: Iterable[str], most: int = 3, cutoff: float = 0.65) -> list[str]:
    """At most `most` of `known` that `word` may have been meant for, the best first: the same but for capitals, hyphens
    and underscores; else those that begin with it (from three letters on), and those spelled alike."""
    by_folded: dict[str, list[str]] = {}
    for name in known:
        by_folded.setdefault(folded(name), []).append(name)
    wanted = folded(word)
    if wanted in by_folded:
        return by_folded[wanted][:most]
    begun = [name for name in by_folded if len(wanted) >= 3 and name.startswith(wanted)]
    alike = difflib.get_close_matches(wanted, by_folded, n=most, cutoff=cutoff)
    return [name for found in dict.fromkeys([*alike, *begun]) for name in by_folded[found]][:most]


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """ "; did you mean 'a' or 'b'?" for the end of a sentence, or nothing where no known word is near."""
    found = nearest(word, known) if isinstance(word, str) and word else []
    return f"; did you mean {' or '.join(map(repr, found))}?" if found else ""
