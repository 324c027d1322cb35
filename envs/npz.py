"""Labelled images in anybody's .npz, judged by the headers of its arrays before anything large is read."""

from __future__ import annotations

import hashlib
import math
import os
import stat
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from envs.memory import available_memory

UNREADABLE = (OSError, EOFError, ValueError, zlib.error, tarfile.TarError, zipfile.BadZipFile)
"""What reading a damaged file raises."""
ALLOWED = (
    "must be an .npz with images, uint8 [N, H, W], [N, C, H, W] or [N, H, W, C] (C 1 or 3), and labels, integers [N]"
)


class Header(NamedTuple):
    """What an array says of itself."""

    shape: tuple[int, ...]
    dtype: np.dtype
    held: int
    """Bytes that follow the header, by the archive's table."""


def refusal(name: str, wrong: str, allowed: str = ALLOWED) -> ValueError:
    """The sentence for the data set `name`; what is `wrong` is cut where it is long."""
    shown = repr(name) if len(name) <= 300 else f"{name[:120]!r}..."
    wrong = " ".join(wrong.split())
    return ValueError(f"dataset = {shown}: {wrong if len(wrong) <= 300 else wrong[:300] + '...'} / {allowed}")


def require_readable(path: Path, name: str) -> None:
    """Raise ValueError unless `path` is a regular file that may be read: a pipe or a device may never end."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise refusal(name, "is no file but a directory, a device or a pipe")
        if not os.access(path, os.R_OK):
            raise refusal(name, "may not be read")
    except FileNotFoundError:
        raise refusal(name, "no such file") from None
    except OSError as error:
        raise refusal(name, f"cannot be read ({error.strerror})") from None
    except UnicodeEncodeError:  # half a surrogate pair
        raise refusal(name, "no such file") from None
    except ValueError as error:
        if "null byte" in str(error):
            raise refusal(name, "no such file") from None
        raise


def inspect(path: Path, name: str) -> tuple[tuple[int, ...], np.ndarray]:
    """(shape of the images, by their header; the labels int64 [N]), both checked.

    Raises ValueError where the arrays are no labelled images, hold less than they declare, or do not fit into memory.
    """
    require_readable(path, name)
    try:
        with zipfile.ZipFile(path) as archive:
            headers = {array: _header(archive, array) for array in ("images", "labels")}
    except Exception as error:  # NumPy reads a header as Python source, and a member may be encrypted: many types
        raise refusal(name, f"cannot be read ({error or type(error).__name__})") from None
    _check_headers(headers["images"], headers["labels"], name)
    try:
        with np.load(path, allow_pickle=False) as arrays:
            labels = arrays["labels"]
    except Exception as error:
        raise refusal(name, f"labels cannot be read ({error or type(error).__name__})") from None
    shape = headers["images"].shape
    return shape, checked_labels(name, labels, shape[0], None)


def load_images(path: Path, name: str, image_shape: tuple[int, int, int]) -> np.ndarray:
    """The images, uint8 [N, *image_shape], of a file that `inspect` has seen."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            images = arrays["images"]
    except Exception as error:
        raise refusal(name, f"images cannot be read ({error or type(error).__name__})") from None
    if images.ndim == 4 and images.shape[1:] != image_shape:
        images = np.moveaxis(images, 3, 1)
    return np.ascontiguousarray(images.reshape(-1, *image_shape))


def image_shape(name: str, shape: tuple[int, ...]) -> tuple[int, int, int]:
    """(C, H, W) of images whose array has `shape`."""
    if len(shape) == 3 and min(shape) > 0:
        return (1, *shape[1:])
    if len(shape) == 4 and min(shape) > 0 and shape[1] in (1, 3):
        return shape[1:]
    if len(shape) == 4 and min(shape) > 0 and shape[3] in (1, 3):
        return shape[3], *shape[1:3]
    raise refusal(name, f"images have shape {list(shape)}")


def checked_labels(name: str, labels: np.ndarray, count: int, num_classes: int | None) -> np.ndarray:
    """`labels` as int64 [count]; each below `num_classes`, or without a gap from 0 where that is None."""
    if labels.shape != (count,) or not count:
        raise refusal(name, f"labels have shape {list(labels.shape)}", f"must be one for each of {count} images")
    if labels.dtype.kind not in "iu":
        raise refusal(name, f"labels are {labels.dtype}", "must be integers that number the classes 0..K-1")
    present = np.unique(labels)
    most = num_classes or len(present)
    if present[0] < 0 or present[-1] >= most or most < 2:
        wrong = f"labels lie in [{present[0]}, {present[-1]}] with {len(present)} different ones"
        allowed = f"must lie in [0, {num_classes - 1}]" if num_classes else "must number at least 2 classes 0..K-1"
        raise refusal(name, wrong, allowed)
    return labels.astype(np.int64)


def sha256_of(path: Path, name: str) -> str:
    """SHA-256 of the file, in hexadecimal digits. Raises ValueError where it cannot be read."""
    require_readable(path, name)
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise refusal(name, f"cannot be read ({error.strerror})") from None


def _header(archive: zipfile.ZipFile, array: str) -> Header:
    if f"{array}.npy" not in archive.namelist():
        raise ValueError(f"there is no array {array!r}")
    member = archive.getinfo(f"{array}.npy")
    with archive.open(member) as file:
        first = np.lib.format.read_magic(file)[0] == 1
        read = np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
        return Header(shape, dtype, member.file_size - file.tell())


def _check_headers(images: Header, labels: Header, name: str) -> None:
    if images.dtype != np.uint8:
        raise refusal(name, f"images are {images.dtype}")
    image_shape(name, images.shape)
    if labels.shape != images.shape[:1]:
        wrong = f"labels have shape {list(labels.shape)}"
        raise refusal(name, wrong, f"must be one for each of {images.shape[0]} images")
    if labels.dtype.kind not in "iu":
        raise refusal(name, f"labels are {labels.dtype}", "must be integers that number the classes 0..K-1")
    needed = 0
    for array, header in (("images", images), ("labels", labels)):
        declared = math.prod(header.shape) * header.dtype.itemsize
        needed += declared
        if declared != header.held:
            allowed = f"must hold the {declared:,} that their shape {list(header.shape)} takes"
            raise refusal(name, f"{array} hold {header.held:,} bytes", allowed)
    available = available_memory()
    if needed > available:
        allowed = f"must fit into the {available / 1e9:.1f} GB of main memory that are available"
        raise refusal(name, f"images {list(images.shape)} and labels take {needed / 1e9:.1f} GB", allowed)
