"""Typed settings as command-line flags: which there are, and what the words after them mean. Imports no torch.

Every field of a dataclass is a flag: `learning_rate` is --learning-rate, `eps` of the part `adam` is --adam.eps, and
the fields of a part marked `Flat` stand without its name; the first field of one marked `First` is --its-name. Hyphens
and underscores are the same. A truth value takes no word (--double, --no-double) or one (--double false).
"""

import contextlib
import dataclasses
import functools
import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

from agents.config import AsFlag, shown
from agents.spelling import Spelled, did_you_mean, whole_number
from experiments.foreign_flags import about_value
from experiments.machine import DEVICES, Device, check_device

WHOLE = "a whole number, such as 1000000, 1_000_000 or 1e6"
TRUE, FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")
DASHES = ("\N{EN DASH}", "\N{EM DASH}", "\N{MINUS SIGN}")
"""What word processors make of a hyphen."""


@dataclass(frozen=True)
class Flag:
    """One field as a flag."""

    name: str
    """As it is written: --adam.eps."""
    path: tuple[str, ...]
    """Where its value lies: ("agent", "adam", "eps")."""
    hint: Any
    """Its type."""
    default: Any
    owner: type | None = None
    """The dataclass that it is a field of."""
    positional: bool = False

    @property
    def core(self) -> Any:
        """The type of a value that is there: X of X | None."""
        parts = [part for part in typing.get_args(self.hint) if part is not type(None)]
        return parts[0] if typing.get_origin(self.hint) in (types.UnionType, typing.Union) else self.hint

    @property
    def optional(self) -> bool:
        """Whether it may be none."""
        return self.core is not self.hint

    @property
    def several(self) -> bool:
        """Whether it takes more than one word."""
        return typing.get_origin(self.core) is tuple

    @property
    def count(self) -> int | None:
        """How many words it takes; None: any number."""
        parts = typing.get_args(self.core)
        return 1 if not self.several else None if parts[-1] is Ellipsis else len(parts)

    @property
    def negated(self) -> str:
        """The flag that says no: --no-double, --cbp.no-bias-correction."""
        part, dot, last = self.name.removeprefix("--").rpartition(".")
        return f"--{part}{dot}no-{last}"


def flags_of(settings: Any, path: tuple[str, ...] = (), prefix: str = "") -> list[Flag]:
    """A flag for every field of the dataclass object `settings`, whose values are their defaults. A class does where
    each field has a default."""
    kind = settings if isinstance(settings, type) else type(settings)
    hints, found = _hints(kind), []
    for field in dataclasses.fields(kind):
        hint, marks = hints[field.name], ()
        if typing.get_origin(hint) is Annotated:
            hint, *marks = typing.get_args(hint)
        if AsFlag.NONE in marks:
            continue
        value = getattr(settings, field.name, dataclasses.MISSING)
        here, name = (*path, field.name), prefix + field.name.replace("_", "-")
        if dataclasses.is_dataclass(value):
            own = flags_of(value, here, prefix if AsFlag.FLAT in marks else f"{name}.")
            found += [replace(own[0], name=f"--{name}"), *own[1:]] if AsFlag.FIRST in marks else own
        else:
            found.append(Flag(f"--{name}", here, hint, value, kind, AsFlag.POSITIONAL in marks))
    return found


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    """The fields of a dataclass and their types, marks included."""
    return typing.get_type_hints(kind, include_extras=True)


def rebuilt(settings: Any, values: Mapping[tuple[str, ...], Any]) -> Any:
    """The dataclass object `settings` with other values at some paths, each part made once."""
    changes: dict[str, Any] = {}
    for name in dict.fromkeys(path[0] for path in values):
        below = {path[1:]: value for path, value in values.items() if path[0] == name}
        changes[name] = below[()] if () in below else rebuilt(getattr(settings, name), below)
    return replace(settings, **changes) if changes else settings


@dataclass
class Given:
    """What a command line says."""

    words: dict[str, list[str]]
    """By flag, as it is written."""
    stray: list[tuple[str, str]]
    """Words that belong to no flag, each with the flag before it ("" where there is none)."""
    notes: list[str]
    """What should be said although it is allowed."""


Unknown = Callable[[str], NoReturn]


def is_flag(word: str) -> bool:
    """Whether `word` is a flag and not a value; a negative number is a value."""
    if len(word) < 2 or word[0] not in ("-", *DASHES):
        return False
    try:
        float(word)
    except ValueError:
        return True
    return False


def read(words: Sequence[str], flags: Iterable[Flag], unknown: Unknown) -> Given:
    """Which words stand after which flag. Of a flag that is given twice the last one counts, and a note says so.

    `unknown` is told a flag that there is not, as it was written, and raises. ValueError: too few or too many words.
    """
    by_name = {flag.name: (flag, ()) for flag in flags if not flag.positional}
    by_name |= {flag.negated: (flag, ("false",)) for flag, _ in list(by_name.values()) if flag.core is bool}
    given, at, last = Given({}, [], []), 0, ""
    while at < len(words):
        word, at = words[at], at + 1
        if not is_flag(word):
            given.stray.append((word, last))
            continue
        written, equals, value = word.partition("=")
        name = written.replace("_", "-")
        if name not in by_name:
            unknown(written)
        (flag, said), last = by_name[name], written
        if flag.core in (str, Path) and words[at:] and is_flag(words[at]) and not equals and words[at][1] != "-":
            raise ValueError(f"{written}: a value that begins with - is written {written}={words[at]}")
        end = at
        while end < len(words) and not is_flag(words[end]):
            end += 1
        taken, at = _taken(flag, written, list(said), [value] if equals else None, words[at:end], at)
        before = given.words.setdefault(flag.name, taken)
        if before != taken:
            given.notes.append(f"{flag.name} is given twice; the last one counts: {' '.join(taken)}")
            given.words[flag.name] = taken
    return given


def _taken(
    flag: Flag, written: str, said: list[str], after_equals: list[str] | None, following: Sequence[str], at: int
) -> tuple[list[str], int]:
    """(the words that belong to `flag`, where the next one stands)."""
    if said:
        if after_equals is not None:
            raise ValueError(f"{written}: takes no value; it says no already")
        return said, at
    if after_equals is not None:
        return _split(flag, after_equals), at
    if flag.core is bool:
        if following and following[0].lower() in ("true", "false"):
            return [following[0]], at + 1
        return ["true"], at
    if spelled(flag.core) and following:
        return _phrase(flag.core, following, at)
    count = len(following) if flag.count is None else flag.count
    if flag.several and len(following) >= 1 and "," in following[0]:
        count = len(following) if flag.count is None else 1
    taken = list(following[:count])
    if not taken:
        raise ValueError(f"{written}: must be followed by {allowed(flag)}")
    return _split(flag, taken), at + len(taken)


def _phrase(kind: type[Spelled], following: Sequence[str], at: int) -> tuple[list[str], int]:
    """As many of the words as together are a `kind`, which need no quotes (every 1000 gradient steps), or else all."""
    for count in range(len(following), 0, -1):
        with contextlib.suppress(ValueError):
            kind(said := " ".join(following[:count]))
            return [said], at + count
    return [" ".join(following)], at + len(following)


def _split(flag: Flag, words: list[str]) -> list[str]:
    """Words with commas between them are several."""
    return [part for word in words for part in word.split(",") if part] if flag.several else words


def value_of(flag: Flag, words: Sequence[str]) -> Any:
    """What `words` mean as the value of `flag`. ValueError: the flag, what stood there and what may, in a sentence."""
    if flag.optional and [word.lower() for word in words] == ["none"]:
        return None
    if not flag.several:
        return _converted(flag, flag.core, words[0])
    kinds = typing.get_args(flag.core)
    if flag.count is not None and len(words) != flag.count:
        raise ValueError(f"{flag.name} = {shown(' '.join(words))}: must be {allowed(flag)}")
    if flag.count is None:
        words = [] if [word.lower() for word in words] == ["none"] and kinds[0] is not str else words
        kinds = kinds[:1] * len(words)
    return tuple(_converted(flag, kind, word) for kind, word in zip(kinds, words, strict=True))


def _converted(flag: Flag, kind: Any, word: str) -> Any:
    def refuse(hint: str = "") -> NoReturn:
        raise ValueError(f"{flag.name} = {shown(word)}: must be {allowed(flag)}{hint}") from None

    if typing.get_origin(kind) is Literal:
        choices = typing.get_args(kind)
        return word if word in choices else refuse(about_value(flag.name, word) or did_you_mean(word, choices))
    if kind is Device:
        return check_device(word, flag.name)
    if spelled(kind):
        try:
            return kind(word)
        except ValueError:
            refuse()
    if kind is bool:
        return True if word.lower() in TRUE else False if word.lower() in FALSE else refuse()
    if kind is int:
        number = whole_number(word)
        return refuse() if number is None else number
    if kind is float:
        try:
            return float(word)
        except ValueError:
            refuse()
    if kind is Path:
        return Path(word) if word else refuse()
    return word


def spelled(kind: Any) -> bool:
    """Whether the type `kind` has a spelling of its own."""
    return isinstance(kind, type) and issubclass(kind, Spelled)


def allowed(flag: Flag) -> str:
    """What the value of `flag` may be, in words."""
    kind = typing.get_args(flag.core)[0] if flag.several else flag.core
    if spelled(kind):
        words = kind.allowed
    elif kind is Device:
        words = "one of " + ", ".join(DEVICES)
    elif typing.get_origin(kind) is Literal:
        words = ("some of " if flag.several else "one of ") + ", ".join(typing.get_args(kind))
    elif flag.several:
        many = "" if flag.count is None else f"{flag.count} "
        words = many + {int: "whole numbers", float: "numbers"}.get(kind, "names")
    else:
        words = {int: WHOLE, float: "a number", bool: "true or false", Path: "a path"}.get(kind, "a word")
    return words + (", or none" if flag.optional or (flag.count is None and kind is not str) else "")


def metavar(flag: Flag) -> str:
    """What stands after the flag in a help: FLOAT, {huber,mse}, FLOAT FLOAT."""
    kind = typing.get_args(flag.core)[0] if flag.several else flag.core
    if typing.get_origin(kind) is Literal:
        word = "{" + ",".join(typing.get_args(kind)) + "}"
    elif spelled(kind):
        word = kind.metavar
    elif kind is Device:
        word = "{" + ",".join(DEVICES) + "}"
    else:
        word = {int: "INT", float: "FLOAT", Path: "PATH", bool: ""}.get(kind, "NAME" if flag.several else "WORD")
    return word if not flag.several else f"{word} ..." if flag.count is None else " ".join([word] * flag.count)


def as_written(value: Any) -> str:
    """A value as one would write it after its flag."""
    if value is None or value == ():
        return "none"
    if isinstance(value, tuple):
        return " ".join(map(as_written, value))
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return repr(str(value)) if str(value) == "" else str(value)
