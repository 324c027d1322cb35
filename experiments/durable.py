"""Files that are on the disk or are not there: hashed as they are written, synced, renamed. Imports no torch."""

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

PARTIAL = ".partial"
"""What ends the name of everything that is not finished."""
BLOCK = 1 << 20


def stage(name: str, path: Path) -> None:
    """Called at each stage of a save, `name`: "write" (half of a file is there), "sync" (all of it, not synced),
    "rename" (synced, under its partial name), "renamed", "prune" (what is stale is half removed). Does nothing; a test
    puts a failure here."""


class Recorded(NamedTuple):
    """A file as it was written."""

    sha256: str
    bytes: int

    @classmethod
    def of(cls, content: bytes) -> "Recorded":
        """What a file with this content would have."""
        return cls(hashlib.sha256(content).hexdigest(), len(content))


class HashedFile:
    """A new file at `path` that knows its hash. An error of the disk waits for `finish`, since torch's writer would
    turn it into words of its library. Closes at the end of its `with`."""

    def __init__(self, path: Path) -> None:
        self.path, self.size, self.error = path, 0, None
        self.recorded: Recorded | None = None
        """Known once it is finished."""
        self._hash = hashlib.sha256()
        self._file = open(path, "wb", buffering=0)  # noqa: SIM115

    def write(self, content: bytes | memoryview) -> int:
        """Append `content`, however large."""
        content = memoryview(content).cast("B")
        if self.error is None:
            try:
                self._append(content)
            except OSError as error:
                self.error = error
        return len(content)

    def _append(self, content: memoryview) -> None:
        for start in range(0, len(content), BLOCK):
            block = content[start : start + BLOCK]
            self._hash.update(block)
            done = 0
            while done < len(block):
                done += self._file.write(block[done:])
            self.size += done
        stage("write", self.path)

    def flush(self) -> None:
        """Nothing waits here."""

    def finish(self) -> Recorded:
        """Bring it to the disk. Raises OSError where it could not be written."""
        if self.error is not None:
            raise self.error
        stage("sync", self.path)
        os.fsync(self._file.fileno())
        self.recorded = Recorded(self._hash.hexdigest(), self.size)
        return self.recorded

    def __enter__(self) -> "HashedFile":
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()


def partial_name(path: Path) -> Path:
    """Where what is to be at `path` is made."""
    return path.with_name(path.name + PARTIAL)


@contextmanager
def written_aside(path: Path) -> Iterator[HashedFile]:
    """A file to write: at its end whole at `path`, or, after an error, as if nothing had been. Raises OSError."""
    partial = partial_name(path)
    try:
        with HashedFile(partial) as file:
            yield file
            file.finish()
        stage("rename", path)
        os.replace(partial, path)
    except BaseException:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)
    stage("renamed", path)


def write_whole(path: Path, content: bytes) -> None:
    """`content` at `path`, or what was there before. Raises OSError."""
    with written_aside(path) as file:
        file.write(content)


def sync_directory(path: Path) -> None:
    """Bring the names in `path` to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems that know no such thing
            raise
    finally:
        os.close(descriptor)


def recorded(path: Path) -> Recorded:
    """The hash and the size of the file at `path`. Raises OSError."""
    with open(path, "rb") as file:
        return Recorded(hashlib.file_digest(file, "sha256").hexdigest(), file.tell())


def clear_away(path: Path) -> None:
    """Remove a directory and what is in it; nobody meets a half of it under its name. Raises OSError."""
    partial = partial_name(path)
    if partial.exists():
        shutil.rmtree(partial)
    os.rename(path, partial)
    stage("prune", path)
    shutil.rmtree(partial)


def clear_partial(folder: Path) -> list[str]:
    """Remove what interrupted writes left in `folder`; their names."""
    leftovers = sorted(folder.glob(f"*{PARTIAL}")) if folder.is_dir() else []
    for path in leftovers:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    return [path.name for path in leftovers]
