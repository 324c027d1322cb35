"""What went wrong in a world, in one sentence that names the world, the environment and the step."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

_OURS = Path(__file__).parent
_LONGEST = 300


class WorldError(RuntimeError):
    """A world raised something, or broke gymnasium's API, while it was played.

    The message is one sentence that names the world, the environment and the step; what the world itself raised, if it
    did, is the cause. Errors of this suite are never of this type.
    """


class NoAnswer(BaseException):
    """Raised inside a world that has not answered in time, past whatever it catches itself; `failed` puts it in words.

    The message says how long was waited: ``"within 60 s"``.
    """


def failed(env: str, environment: int | None, moment: str, error: BaseException) -> WorldError:
    """What to raise ``from error``, which came out of `env`'s own code at `moment` ("at step 3"); no `environment`
    where a backend steps all of them together."""
    who = "its backend" if environment is None else f"environment {environment}"
    if isinstance(error, NoAnswer):
        return WorldError(f"env = {env!r}: {who} did not answer {error}{_place(error)} {moment}")
    return WorldError(f"env = {env!r}: {who} raised {in_words(error)} {moment}{_hint(error)}")


def in_words(error: BaseException) -> str:
    """Type, message and place of `error` on one line: ``RuntimeError: connection lost (simulator.py, line 88)``."""
    text = in_short(message_of(error))
    return f"{type(error).__name__}{': ' if text else ''}{text}{_place(error)}"


def _place(error: BaseException) -> str:
    """Where in the world's code `error` came up; nothing where no such line is known."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not _is_passing(frame.filename)]
    # The world's own line says more than one of a library that it called.
    own = [frame for frame in frames if "site-packages" not in frame.filename] or frames
    return f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""


def _is_passing(filename: str) -> bool:
    """Whether a frame only passes calls on: ours, gymnasium's wrappers, or Python's import."""
    path = Path(filename)
    return (
        path.parent in (_OURS, _OURS / "families")
        or "gymnasium" in path.parts
        or "importlib" in path.parts
        or filename.startswith("<")
    )


def message_of(error: BaseException) -> str:
    """The message of `error`, whose class may be the world's own, mistakes and all."""
    try:
        return str(error)
    except Exception as another:
        return f"(its message raises {type(another).__name__})"


def in_short(text: str, longest: int = _LONGEST) -> str:
    """`text` on one line, cut where it is too long for a sentence; what a terminal would obey is escaped."""
    text = " ".join(text.split())
    text = "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text[: longest + 1])
    return text if len(text) <= longest else text[: longest - 3] + "..."


def found(value: Any) -> str:
    """What `value` is, for "found ...": ``an array of shape (1,) (float32)``, ``None``, ``a list of 3``."""
    import numpy as np  # commands import this module before they know whether there is anything to do

    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape} ({value.dtype})"
    if isinstance(value, bool | int | float | complex | np.generic):
        return f"the single value {in_short(str(value), 40)} ({type(value).__name__})"
    if value is None or isinstance(value, str | bytes):
        return in_short(repr(value), 60)
    if isinstance(value, tuple | list | dict):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"


def _hint(error: BaseException) -> str:
    """What a well-known mistake in a world means."""
    text = message_of(error)
    if isinstance(error, ValueError) and "values to unpack (expected 5" in text:
        return (
            ": step() must return (observation, reward, terminated, truncated, info); the old Gym API had four values"
        )
    if isinstance(error, TypeError) and "reset()" in text and "keyword argument" in text:
        return ": reset() must take seed and options, which the old Gym API had not"
    return ""
