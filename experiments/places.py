"""Where files go: names that a file system takes, places that can be written to. Imports no torch.

What cannot be is said in a sentence that names the field, before anything is built.
"""

import hashlib
import os
import secrets
import shlex
import sys
import unicodedata
from collections.abc import Iterable
from contextlib import suppress
from itertools import count
from pathlib import Path

from agents.config import require, shown

NAME_BYTES = 255
"""Longest name of a file in the file systems of Linux and macOS."""
PATH_BYTES = 4096
"""Longest path that Linux takes, its end mark included."""
INSIDE = 160
"""Bytes kept for what a run directory holds; the names of event files contain that of the machine."""
HASH_DIGITS, TAIL = 8, 24
UNSEEN = ("Cc", "Cs", "Zl", "Zp")
"""Unicode's categories of control characters, halves of surrogate pairs (bytes that are no text here), line ends."""


class PlaceError(ValueError):
    """A place that passed the check took no files when it came to it."""


def refuse_empty_paths(arguments: list[str], flags: Iterable[str]) -> None:
    """Raise ValueError for one of `flags` with nothing after it: as a path that would be the current directory."""
    for argument, following in zip(arguments, [*arguments, None][1:], strict=True):
        flag, equals, value = argument.partition("=")
        flag = flag.replace("_", "-")
        word = value if equals else "-" if following is None else following
        if flag in flags and not word.strip():
            raise ValueError(
                f"{flag.removeprefix('--').replace('-', '_')} = '': must be a path; the current directory is ."
            )


def fitting_name(name: str, limit: int = NAME_BYTES) -> str:
    """`name` itself where its bytes are at most `limit` (>= 64); else its beginning, eight digits of the whole name's
    SHA-256 and its last characters, where a made-up name has its seed and hash."""
    if len(os.fsencode(name)) <= limit:
        return name
    digest = hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:HASH_DIGITS]
    tail = name[-TAIL:]
    while len(os.fsencode(tail)) > TAIL:
        tail = tail[1:]
    head = name[:limit]
    while len(os.fsencode(head)) > limit - HASH_DIGITS - 2 - len(os.fsencode(tail)):
        head = head[:-1]
    return f"{head}_{digest}_{tail}"


def require_text(field: str, text: str) -> None:
    """Raise ValueError where `text` holds what can be neither seen nor typed, or what this locale cannot write."""
    unseen = [character for character in text if unicodedata.category(character) in UNSEEN]
    here = sys.getfilesystemencoding()
    also = "" if here == "utf-8" else f" in this locale's {here} (PYTHONUTF8=1 makes it UTF-8)"
    require(not unseen, field, text, f"text without line ends, control characters and bytes that are none{also}")
    try:
        os.fsencode(text)
    except UnicodeEncodeError as error:
        allowed = f"text that this locale ({error.encoding}) can write, or set PYTHONUTF8=1"
        raise ValueError(f"{field} = {shown(text)}: must be {allowed}") from None


def require_name(field: str, name: str) -> None:
    """Raise ValueError unless `name` can be given to a new file: no path, nothing unseen, of a length that fits."""
    plain = "/" not in name and name not in (".", "..") and not name.startswith("-") and name == name.strip()
    require(plain, field, name, "a plain name: no '/', no '-' at its beginning, no blank at its ends")
    require_text(field, name)
    size = len(os.fsencode(name))
    require(size <= NAME_BYTES, field, name, f"at most {NAME_BYTES} bytes long, not {size}")


def nearest_folder(field: str, place: Path) -> Path:
    """`place`, or the closest of its parents that is there; that one is a directory.

    Raises ValueError, naming what stands in the way, where nothing can be made at `place`.
    """
    require_text(field, str(place))
    for path in (place, *place.parents):
        try:
            os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            target = os.readlink(path) if os.path.islink(path) else None
            allowed = (
                f"a directory, or where one can be made: {path} is a symbolic link to {target}, which is not there"
            )
            require(target is None, field, str(place), allowed)
            continue
        except OSError as error:  # a loop of links, a name too long, a folder that may not be looked into
            raise _refusal(field, place, error) from None
        require(path.is_dir(), field, str(place), f"a directory, or where one can be made: {path} is a file")
        return path
    raise ValueError(f"{field} = {shown(str(place))}: must be where files can be made: the current directory is gone")


def require_writable(field: str, place: Path) -> None:
    """Raise ValueError, naming why, unless files can be made in the directory `place`, or in it once it is made.

    A small one is made and removed: neither rights nor free space tell of a file system that is read only, full or,
    as /proc, made up.
    """
    parent = nearest_folder(field, place)
    trial = parent / f".trial-{secrets.token_hex(8)}"
    try:
        trial.mkdir()
        try:
            (trial / "file").write_bytes(bytes(4096))
        finally:
            with suppress(OSError):
                (trial / "file").unlink()
            trial.rmdir()
    except OSError as error:
        raise _refusal(field, place, error, parent) from None


def require_here() -> None:
    """Raise ValueError where the current directory was removed: libraries that torch loads do not start there."""
    try:
        os.getcwd()
    except FileNotFoundError:
        raise ValueError("the current directory is gone: change to one that is there") from None


def own_file(path: Path) -> bool:
    """Whether a file can be written at `path`, in a directory that takes files: nothing is there, or such a file."""
    return not os.path.lexists(path) or (os.path.isfile(path) and os.access(path, os.W_OK))


def check_runs_dir(runs_dir: Path, name: str) -> None:
    """Raise ValueError unless a run directory called `name` can be made in `runs_dir`."""
    size = len(os.fsencode(runs_dir / fitting_name(name)))
    most = PATH_BYTES - INSIDE
    require(size <= most, "runs_dir", str(runs_dir), f"so short that a run's path has at most {most} bytes, not {size}")
    require_writable("runs_dir", runs_dir)


def new_directory(parent: Path, name: str) -> Path:
    """Make `parent/name` and return it; where that is taken, with -2, -3, ... after it. A name that is too long is
    shortened, see `fitting_name`.

    Raises PlaceError, naming runs_dir, where none can be made.
    """
    try:
        parent.mkdir(parents=True, exist_ok=True)
        for number in count(1):
            suffix = f"-{number}" if number > 1 else ""
            path = parent / (fitting_name(name, NAME_BYTES - len(suffix)) + suffix)
            with suppress(FileExistsError):  # `parent` is a directory, so the name itself is taken
                path.mkdir()
                return path
    except OSError as error:
        raise _refusal("runs_dir", parent, error) from None


def from_here(path: Path) -> Path:
    """`path` as it is shortest to read: without the working directory where that is its beginning."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def quoted(path: Path | str) -> str:
    """`path` as a shell takes it for one argument that is no flag."""
    return shlex.quote(f"./{path}" if str(path).startswith("-") else str(path))


def _refusal(field: str, place: Path, error: OSError, at: Path | None = None) -> PlaceError:
    where = "" if at in (None, place) else f" in {at}"
    reason = "the current directory is gone" if _adrift(place) else f"{error.strerror or error}{where}"
    return PlaceError(f"{field} = {shown(str(place))}: must be a place where files can be made: {reason}")


def _adrift(place: Path) -> bool:
    """Whether `place` is relative to a current directory that was removed."""
    try:
        os.getcwd()
    except FileNotFoundError:
        return not place.is_absolute()
    return False
