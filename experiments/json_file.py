"""Reading a JSON file that may be anything at all. Imports no torch."""

import json
import stat
from pathlib import Path
from typing import Any

from agents.config import shown

MOST_BYTES = 16 * 2**20
"""More than any file of ours; what is endless ends here."""
MOST_DIGITS = 300
"""Of a whole number; floats end at 10**308, and of thousands Python refuses to read them."""


class Digits:
    """A whole number too long to be one here: of no type that a setting can have, and shown as it stands."""

    def __init__(self, digits: str) -> None:
        self.digits = digits

    def __repr__(self) -> str:
        return self.digits


def read_json(field: str, path: Path) -> Any:
    """What the JSON file `path` holds; longer whole numbers than any setting are `Digits`.

    Raises ValueError, naming `field`, where it is no file, cannot be read, is too large or is no JSON.
    """
    content = read_text(field, path)
    try:
        return json.loads(content, parse_int=_whole, object_pairs_hook=_object)
    except RecursionError:
        reason = "is nested too deeply"
    except ValueError as error:
        reason = f"is not JSON ({error})"
    raise ValueError(f"{field} = {shown(str(path))}: {reason}")


def require_file(field: str, path: Path) -> None:
    """Raise ValueError, naming `field`, unless `path` is a regular file: what else there is may never end."""
    try:
        kind = path.stat().st_mode
    except OSError as error:
        raise ValueError(f"{field} = {shown(str(path))}: {error.strerror}") from None
    except ValueError:  # a NUL, half a surrogate pair
        raise ValueError(f"{field} = {shown(str(path))}: no such file") from None
    if not stat.S_ISREG(kind):
        what = "a directory" if stat.S_ISDIR(kind) else "a device or a pipe"
        raise ValueError(f"{field} = {shown(str(path))}: must be a file, not {what}")


def read_text(field: str, path: Path, most_bytes: int = MOST_BYTES) -> str:
    """The text (UTF-8) of the file `path`. Raises ValueError, naming `field`, where there is none."""
    require_file(field, path)
    try:
        with path.open("rb") as file:
            content = file.read(most_bytes + 1)
    except OSError as error:
        raise ValueError(f"{field} = {shown(str(path))}: {error.strerror}") from None
    if len(content) > most_bytes:
        raise ValueError(f"{field} = {shown(str(path))}: is larger than {most_bytes // 2**20} MiB")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{field} = {shown(str(path))}: is no text in UTF-8 (byte {error.start})") from None


def _whole(digits: str) -> int | Digits:
    return int(digits) if len(digits) <= MOST_DIGITS else Digits(digits)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{name!r} stands twice in one object")
        found[name] = value
    return found
