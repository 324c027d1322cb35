"""An .npz that is not what it says, or says what cannot be: refused by its headers, in no time and no memory."""

import io
import os
import resource
import struct
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from envs import npz
from envs.datasets import dataset_size, load_dataset, require_content

IMAGES = np.arange(4 * 5 * 6, dtype=np.uint8).reshape(4, 5, 6)
LABELS = np.array([0, 1, 0, 1])


def array(values: np.ndarray) -> bytes:
    """The bytes of an .npy."""
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


def declared(shape: tuple, dtype: str, content: bytes = b"", text: str | None = None) -> bytes:
    """An .npy whose header says what it likes."""
    header = text or repr({"descr": dtype, "fortran_order": False, "shape": shape})
    header += " " * (-(10 + len(header) + 1) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + content


def archive(path: Path, images: bytes, labels: bytes, method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as file:
        file.writestr("images.npy", images)
        file.writestr("labels.npy", labels)
    return path


GOOD_IMAGES, GOOD_LABELS = array(IMAGES), array(LABELS)
LYING = {
    "2**40 labels": (GOOD_IMAGES, declared((2**40,), "<i8"), r"labels have shape \[1099511627776\]"),
    "2**40 images and labels": (declared((2**40, 28, 28), "|u1"), declared((2**40,), "<i8"), "images hold 0 bytes"),
    "134 GiB of images": (declared((183_500_800, 28, 28), "|u1"), declared((183_500_800,), "|u1"), "143,864,627,200"),
    "one image of 2**62 pixels": (declared((1, 2**31, 2**31), "|u1"), array(LABELS[:1]), "images hold 0 bytes"),
    "numbers of 200 digits": (declared((10**200, 28, 28), "|u1"), declared((10**200,), "<i8"), "images hold"),
    "fewer images than declared": (declared((4, 5, 6), "|u1", bytes(100)), GOOD_LABELS, "images hold 100 bytes"),
    "more images than declared": (declared((4, 5, 6), "|u1", bytes(121)), GOOD_LABELS, "images hold 121 bytes"),
    "a negative size": (declared((-4, 5, 6), "|u1"), GOOD_LABELS, "images have shape"),
    "no size": (declared((), "|u1", b"1"), GOOD_LABELS, "images have shape"),
    "a size that is no number": (
        declared((), "", text="{'shape': ('a',), 'fortran_order': 0, 'descr': 'u1'}"),
        GOOD_LABELS,
        "cannot be read",
    ),
    "an unknown type": (declared((4, 5, 6), "zz"), GOOD_LABELS, "cannot be read"),
    "an open bracket": (declared((), "", text="{'shape': ("), GOOD_LABELS, "cannot be read"),
    "brackets without end": (declared((), "", text="(" * 9000), GOOD_LABELS, "cannot be read"),
    "a header of 60,000 letters": (declared((), "", text="'" + "x" * 60_000 + "'"), GOOD_LABELS, "cannot be read"),
    "no array at all": (b"hello", GOOD_LABELS, "cannot be read"),
    "nothing": (b"", GOOD_LABELS, "cannot be read"),
    "objects for images": (declared((4,), "|O"), GOOD_LABELS, "images are object"),
    "objects for labels": (GOOD_IMAGES, declared((4,), "|O", b"cos\nsystem\n"), "labels are object"),
    "fractions": (array(IMAGES / 255), GOOD_LABELS, "images are float64"),
    "wide whole numbers": (array(IMAGES.astype(np.int64)), GOOD_LABELS, "images are int64"),
    "labels that are fractions": (GOOD_IMAGES, array(LABELS / 1), "labels are float64"),
    "labels that are words": (GOOD_IMAGES, array(np.array(["a", "b", "a", "b"])), "labels are <U1"),
    "labels that are true or false": (GOOD_IMAGES, array(LABELS > 0), "labels are bool"),
    "labels as columns": (GOOD_IMAGES, array(np.eye(2, dtype=int)[LABELS]), r"labels have shape \[4, 2\]"),
    "a label too few": (GOOD_IMAGES, array(LABELS[:3]), "one for each of 4 images"),
    "a negative label": (GOOD_IMAGES, array(LABELS - 1), r"labels lie in \[-1, 0\]"),
    "a gap": (GOOD_IMAGES, array(LABELS * 2), r"labels lie in \[0, 2\]"),
    "labels of 2**64 - 1": (GOOD_IMAGES, array(np.array([0, 1, 2, 2**64 - 1], np.uint64)), "labels lie in"),
    "one class": (GOOD_IMAGES, array(LABELS * 0), "at least 2 classes"),
    "no images": (declared((0, 5, 6), "|u1"), declared((0,), "<i8"), r"images have shape \[0, 5, 6\]"),
    "images of no size": (declared((4, 0, 6), "|u1"), GOOD_LABELS, r"images have shape \[4, 0, 6\]"),
    "two channels": (array(np.zeros((4, 2, 5, 6), np.uint8)), GOOD_LABELS, r"images have shape \[4, 2, 5, 6\]"),
    "five axes": (array(np.zeros((4, 1, 1, 5, 6), np.uint8)), GOOD_LABELS, "images have shape"),
}


@pytest.mark.parametrize("case", LYING)
def test_arrays_that_are_no_labelled_images_are_refused(case: str, tmp_path: Path) -> None:
    images, labels, told = LYING[case]
    path, started = archive(tmp_path / "own.npz", images, labels), time.process_time()
    for answer in (dataset_size, load_dataset):
        with pytest.raises(ValueError, match=told) as refusal:
            answer(str(path))
        assert str(refusal.value).startswith("dataset = ")
        assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 800
    assert time.process_time() - started < 2.0


def test_what_would_not_fit_into_memory_is_refused_before_it_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 100_000  # 78 MB of zeros, of which the file holds 80 kB
    images = declared((count, 28, 28), "|u1", bytes(count * 784))
    path = archive(tmp_path / "own.npz", images, array(np.arange(count) % 2), zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 2**20
    monkeypatch.setattr(npz, "available_memory", lambda: 50_000_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=r"take 0\.1 GB / must fit into the 0\.1 GB"):
        dataset_size(str(path))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000  # kB
    monkeypatch.undo()
    assert dataset_size(str(path))[1:] == ((1, 28, 28), 2)


def damaged(folder: Path) -> str:
    path = archive(folder / "own.npz", GOOD_IMAGES, GOOD_LABELS)
    content = bytearray(path.read_bytes())
    content[content.index(bytes(range(50, 60)))] ^= 1
    path.write_bytes(content)
    return str(path)


def torn(folder: Path) -> str:
    path = archive(folder / "own.npz", GOOD_IMAGES, GOOD_LABELS)
    path.write_bytes(path.read_bytes()[:-30])
    return str(path)


def encrypted(folder: Path) -> str:
    path = archive(folder / "own.npz", GOOD_IMAGES, GOOD_LABELS)
    content = path.read_bytes().replace(b"PK\x03\x04\x14\x00\x00", b"PK\x03\x04\x14\x00\x01")
    path.write_bytes(content.replace(b"PK\x01\x02\x14\x03\x14\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01"))
    return str(path)


def written(content: bytes):
    def make(folder: Path) -> str:
        (folder / "own.npz").write_bytes(content)
        return str(folder / "own.npz")

    return make


def fifo(folder: Path) -> str:
    os.mkfifo(folder / "own.npz")
    return str(folder / "own.npz")


def folder(folder: Path) -> str:
    (folder / "own.npz").mkdir()
    return str(folder / "own.npz")


def endless(folder: Path) -> str:
    (folder / "own.npz").symlink_to("/dev/zero")
    return str(folder / "own.npz")


def loop(folder: Path) -> str:
    (folder / "own.npz").symlink_to(folder / "own.npz")
    return str(folder / "own.npz")


def without_labels(folder: Path) -> str:
    np.savez(folder / "own.npz", images=IMAGES)
    return str(folder / "own.npz")


FILES = {
    "damaged": damaged,
    "torn": torn,
    "encrypted": encrypted,
    "empty": written(b""),
    "text": written(b"hello"),
    "an .npy": written(GOOD_IMAGES),
    "an empty archive": written(b"PK\x05\x06" + bytes(18)),
    "without labels": without_labels,
    "a pipe": fifo,
    "a directory": folder,
    "endless": endless,
    "a loop of links": loop,
    "missing": lambda folder: str(folder / "own.npz"),
    "below a file": lambda folder: written(b"")(folder) + "/own.npz",
    "a long name": lambda folder: str(folder / ("x" * 300 + ".npz")),
    "NUL": lambda folder: str(folder / "a\0.npz"),
    "half a surrogate pair": lambda folder: str(folder / "\ud800.npz"),
}


@pytest.mark.parametrize("case", FILES)
def test_files_that_are_no_archives_of_images_are_refused(case: str, tmp_path: Path) -> None:
    name, started = FILES[case](tmp_path), time.process_time()
    with pytest.raises(ValueError, match="^dataset = ") as refusal:
        load_dataset(name)
    assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 1000
    with pytest.raises(ValueError, match="^dataset = "):
        require_content(name, "0" * 64)
    assert time.process_time() - started < 2.0


def test_a_file_is_held_against_its_checksum(tmp_path: Path) -> None:
    path = written(b"hello")(tmp_path)
    right = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"  # sha256sum's answer
    require_content(path, right)
    require_content(path, "")
    with pytest.raises(ValueError, match=f"SHA-256 is {right}, not 0000"):
        require_content(path, "0" * 64)
