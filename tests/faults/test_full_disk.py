"""A disk that is full, read only or over its quota: an OSError in the system's words, and what is there stays."""

import errno
import os
import resource
import subprocess
import sys
from contextlib import contextmanager

import pytest
import torch

from experiments import durable, store
from experiments.store import Store, listed, newest, read
from tests.faults.test_store import CONFIG, MADE_BY, ROOT, parts, value_of

LARGE = {"agent": {"network": {"weight": torch.zeros(1_000_000)}}}


@pytest.fixture
def saved(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    made = Store(tmp_path / "checkpoints", 2)
    for step in (100, 200):
        made.save(step, parts(step), CONFIG, MADE_BY)
    return made


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def unharmed(made, before):
    assert contents(made.folder) == before
    assert value_of(newest(made.folder, pytest.fail)) == 200
    read(made.folder / "step_000000000100").verify()
    made.save(300, parts(300), CONFIG, MADE_BY)  # there is room again
    assert [value_of(read(path)) for path in listed(made.folder)] == [200, 300]


class Failing:
    """The n-th call raises `error`."""

    def __init__(self, real, nth, error):
        self.real, self.left, self.error = real, nth, error

    def __call__(self, *arguments, **named):
        self.left -= 1
        if self.left == 0:
            raise OSError(self.error, os.strerror(self.error))
        return self.real(*arguments, **named)


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG])
@pytest.mark.parametrize(("call", "nth"), [("fsync", 1), ("fsync", 3), ("fsync", 4), ("rename", 1), ("mkdir", 1)])
def test_a_call_that_fails_leaves_everything_as_it_was(call, nth, error, saved, monkeypatch, count):
    before = contents(saved.folder)
    monkeypatch.setattr(os, call, Failing(getattr(os, call), nth, error))
    with pytest.raises(OSError, match=os.strerror(error)):
        saved.save(300, LARGE if call == "fsync" and nth == 1 else parts(300), CONFIG, MADE_BY)
    monkeypatch.undo()
    unharmed(saved, before)
    count(f"{call} fails", "told, older ones intact")


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("nth", [1, 2, 10, 30])
def test_a_write_that_fails_leaves_everything_as_it_was(nth, error, saved, monkeypatch, count):
    before = contents(saved.folder)
    seen = 0

    def stage(name, path):
        nonlocal seen
        seen += name == "write"
        if seen == nth:
            raise OSError(error, os.strerror(error))

    monkeypatch.setattr(durable, "stage", stage)
    with pytest.raises(OSError, match=os.strerror(error)):
        saved.save(300, parts(300), CONFIG, MADE_BY)
    monkeypatch.undo()
    unharmed(saved, before)
    count("write fails", "told, older ones intact")


def test_a_full_directory_after_the_rename_prunes_nothing(saved, monkeypatch):
    real = durable.sync_directory

    def fails_for_the_parent(path):
        if path == saved.folder:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(path)

    monkeypatch.setattr(store, "sync_directory", fails_for_the_parent)
    with pytest.raises(OSError, match="Input/output"):
        saved.save(300, parts(300), CONFIG, MADE_BY)
    assert [read(path).step for path in listed(saved.folder)] == [100, 200, 300]


LIMITED = """
import resource, signal, sys
from pathlib import Path
from experiments.store import Store, newest
from tests.faults.test_full_disk import CONFIG, LARGE, MADE_BY
folder = Path(sys.argv[1])
made = Store(folder, 2, newest(folder, print))
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    made.save(300, LARGE, CONFIG, MADE_BY)
except OSError as error:
    print("told:", error.strerror)
"""


def test_a_limit_on_the_size_of_files(saved, count):
    before = contents(saved.folder)
    command = [sys.executable, "-c", LIMITED, str(saved.folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "told: File too large\n"), done.stderr
    unharmed(saved, before)
    count("RLIMIT_FSIZE", "told, older ones intact")


@contextmanager
def mounted(place, options):
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("needs the right to mount")
    try:
        yield
    finally:
        subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("options", ["size=256k", "nr_inodes=12"])
def test_a_file_system_that_is_full(options, tmp_path, count):
    place = tmp_path / "small"
    with mounted(place, options):
        made = Store(place, 2)
        for step in (100, 200):
            made.save(step, parts(step), CONFIG, MADE_BY)
        before = contents(place)
        with pytest.raises(OSError, match="No space left on device"):
            made.save(300, LARGE if "size" in options else parts(300), CONFIG, MADE_BY)
        if "size" in options:
            unharmed(made, before)
        assert newest(place, pytest.fail).step >= 200
    count("a full tmpfs", "told, older ones intact")


def test_a_file_system_that_may_only_be_read(tmp_path, count):
    place = tmp_path / "fixed"
    with mounted(place, "size=1m"):
        made = Store(place, 2)
        made.save(100, parts(100), CONFIG, MADE_BY)
        before = contents(place)
        subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
        with pytest.raises(OSError, match="Read-only file system"):
            made.save(200, parts(200), CONFIG, MADE_BY)
        assert contents(place) == before and value_of(newest(place, pytest.fail)) == 100
    count("a read-only tmpfs", "told, older ones intact")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_that_may_only_be_read(saved):
    before = contents(saved.folder)
    saved.folder.chmod(0o500)
    try:
        with pytest.raises(PermissionError):
            saved.save(300, parts(300), CONFIG, MADE_BY)
    finally:
        saved.folder.chmod(0o700)
    unharmed(saved, before)


def test_a_process_may_write_no_byte(tmp_path):
    """The limit is one of this process, so a file of no bytes can still be made."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    made = Store(tmp_path, 2)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            made.save(1, parts(1), CONFIG, MADE_BY)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())
