"""One writer a run directory. Imports no torch.

The kernel holds the lock as long as the process lives, so one that was killed blocks nobody; what stands in the file is
for people, and for file systems that hold no locks.
"""

import errno
import fcntl
import json
import os
import socket
import time
import weakref
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn

import psutil

from agents.config import shown

FILE = "lock.json"
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL)
"""What file systems answer that cannot hold a lock."""


class Locked(ValueError):
    """Somebody else writes to the run directory."""


@dataclass(frozen=True)
class Holder:
    """A process that writes, or wrote, to a run directory."""

    host: str
    boot: str
    """The kernel's id of this start of the machine; "" where it has none."""
    pid: int
    started: float
    """The process's start in seconds since 1970; a process id alone may have been given anew."""
    since: str
    """When it took the lock, to be read."""

    @classmethod
    def own(cls) -> "Holder":
        """This process."""
        started = psutil.Process().create_time()
        return cls(socket.gethostname(), _boot(), os.getpid(), started, time.strftime("%Y-%m-%d %H:%M:%S"))

    def here(self) -> bool:
        """Whether it ran on this machine."""
        return self.host == socket.gethostname()

    def lives(self) -> bool:
        """Whether it runs, on this machine since its last start."""
        if not self.here() or self.boot != _boot():
            return False
        try:
            return abs(psutil.Process(self.pid).create_time() - self.started) < 1
        except psutil.Error:
            return False

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"


def _boot() -> str:
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


class RunLock:
    """Held from construction to `release`, or to the end of a `with`; not by a process that is forked meanwhile.

    `remark` is a sentence for the person who watches where what was found cannot be judged from here; else empty.
    Raises Locked, saying who holds it, and OSError where no file can be made in `directory`.
    """

    def __init__(self, directory: Path) -> None:
        self.directory, self.remark = directory, ""
        self._file: int | None = os.open(directory / FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            before, enforced = _content(self._file), self._take()
            if before is not None and not enforced:
                self._judge(before)
            elif before is not None and not before.here():
                self.remark = (
                    f"the run directory was written to by {before}, which did not release it; it was taken over, since "
                    "this file system says that nobody holds it: make sure that the other machine is done with it"
                )
            self._write(json.dumps(asdict(Holder.own())))
        except BaseException:
            self._close()
            raise
        _HELD.add(self)

    def _take(self) -> bool:
        """Have the kernel hold it; False where the file system holds no locks."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in NO_LOCKS:
                return False
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
            self._refuse(_content(self._file))
        return True

    def _judge(self, before: Holder) -> None:
        """Where nothing but the file tells: a process of this machine can be looked up, another's cannot."""
        if before.lives():
            self._refuse(before)
        if not before.here():
            file = shown(str(self.directory / FILE))
            self._refuse(before, f"; this file system holds no locks: if that process is gone, remove {file}")

    def _refuse(self, holder: Holder | None, more: str = "") -> NoReturn:
        who = holder or "another process"
        raise Locked(f"run = {shown(str(self.directory))}: is being written to by {who}{more}")

    def _write(self, text: str) -> None:
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, text.encode(), 0)
        os.fsync(self._file)

    def release(self) -> None:
        """Let others write. The file stays, empty: one that is removed could be locked twice."""
        if self._file is not None:
            with suppress(OSError):
                self._write("")
            self._close()

    def _close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None
        _HELD.discard(self)

    def __enter__(self) -> "RunLock":
        return self

    def __exit__(self, *error: object) -> None:
        self.release()


_HELD: "weakref.WeakSet[RunLock]" = weakref.WeakSet()


def _forked() -> None:
    """A child's copy of the file would keep the lock after its parent's death."""
    for lock in list(_HELD):
        lock._close()


os.register_at_fork(after_in_child=_forked)


def _content(file: int) -> Holder | None:
    try:
        return Holder(**json.loads(os.pread(file, 4096, 0)))
    except (OSError, ValueError, TypeError):  # empty: released; torn: the machine lost power
        return None


def holder(directory: Path) -> Holder | None:
    """Who writes to `directory` now; None: nobody, as far as can be told from here."""
    try:
        file = os.open(directory / FILE, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        found = _content(file)
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        taken = error.errno in (errno.EWOULDBLOCK, errno.EACCES)
        return found if taken or (found is not None and found.lives()) else None
    finally:
        os.close(file)
    return None


def was_killed(directory: Path) -> bool:
    """Whether a process of this machine wrote to `directory` last, and has ended without a word."""
    try:
        last = Holder(**json.loads((directory / FILE).read_text()))
    except (OSError, ValueError, TypeError):
        return False
    return last.here() and holder(directory) is None
