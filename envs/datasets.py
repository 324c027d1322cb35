"""Labelled images for the image MDP: a set inside this package, sets that are downloaded once, anyone's own .npz.

A download goes on where it was interrupted, in this call or in a later one, and a file takes its place in the cache
only after its SHA256 was found right. The unfinished parts therefore lie beside the cache, in a folder of their own
(``NAME-partial``): whatever interrupts a download, the cache itself holds whole files and nothing else.
"""

from __future__ import annotations

import difflib
import fcntl
import gzip
import os
import shutil
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np

from envs import npz
from envs.npz import refusal as _refusal

EMBEDDED = "fashion_mnist_test"
"""The 10,000 test images of Fashion-MNIST (Xiao et al. 2017, arXiv 1708.07747), part of this package."""
CACHE_VARIABLE, MIRROR_VARIABLE = "PLASTICITY_SUITE_CACHE", "PLASTICITY_SUITE_MIRROR"

TRIES = 5
"""How often one address is asked to go on, as long as every try brings some bytes."""
PAUSE = 1.0
"""Seconds between two tries."""
TIMEOUT = 30.0
"""Seconds without a byte after which a connection counts as lost."""

_EMBEDDED_FILE = Path(__file__).parent / "data" / f"{EMBEDDED}.npz"
_INSTEAD = "run again to go on where it stopped, or give the path of an .npz"


class Dataset(NamedTuple):
    """Images and the class of each."""

    images: np.ndarray  # uint8 [N, C, H, W], C 1 (grey) or 3 (RGB)
    labels: np.ndarray  # int64 [N], each in [0, num_classes)
    num_classes: int


@dataclass(frozen=True)
class Source:
    """A named set that is downloaded."""

    mirrors: tuple[str, ...]
    """Addresses of folders that hold the files, tried in turn."""
    files: dict[str, str]
    """SHA256 by file name."""
    shape: tuple[int, int, int]
    """C, H, W."""
    num_classes: int
    count: int
    """N."""
    read: Callable[[list[Path]], tuple[np.ndarray, np.ndarray]]
    """Images uint8 [N, C, H, W] and labels [N] from the files, in the order of `files`."""


def load_dataset(name: str, cache: Path | None = None, mirror: str | None = None) -> Dataset:
    """The labelled images called `name`.

    Args:
        name: ``fashion_mnist_test`` (10,000 images, part of this package); ``mnist``, ``fashion_mnist`` (60,000
            training images) or ``cifar10`` (50,000), downloaded at first use; or the path of an ``.npz`` with the
            arrays ``images``, uint8, and ``labels``, integers [N] that number the classes 0..K-1 without a gap. Images
            are [N, H, W] (grey), or have 1 or 3 channels on axis 1, [N, C, H, W], or else on axis 3, [N, H, W, C].
        cache: folder of the downloaded files; None: $PLASTICITY_SUITE_CACHE, or a folder in the user's cache. Each
            file is held against its SHA256 every time it is used.
        mirror: address of a folder to download from instead, which has a folder `name` in it; None:
            $PLASTICITY_SUITE_MIRROR, or the addresses in `SOURCES`.

    Raises:
        ValueError: `name` is unknown; a file cannot be had, is damaged, or does not hold labelled images.
    """
    if name == EMBEDDED:
        return _load_npz(_EMBEDDED_FILE, name)
    if name.endswith(".npz"):
        return _load_npz(Path(name), name)
    source = _source(name)
    mirrors = _own_mirror(name, mirror) or source.mirrors
    cache = (cache or _default_cache()).expanduser().resolve()
    paths = [_fetch(name, file, checksum, mirrors, cache) for file, checksum in source.files.items()]
    try:
        images, labels = source.read(paths)
    except npz.UNREADABLE as error:
        raise _refusal(name, f"{paths[0].parent} holds no readable images and labels ({error})", _INSTEAD) from None
    if images.shape[1:] != source.shape:
        raise _refusal(name, f"images have shape {images.shape[1:]}", f"must be {source.shape}")
    return Dataset(images, npz.checked_labels(name, labels, len(images), source.num_classes), source.num_classes)


def dataset_size(name: str) -> tuple[int, tuple[int, int, int], int]:
    """Number of images, shape of one, (C, H, W), and number of classes of the set that `load_dataset` gives.

    Downloads nothing; of an ``.npz`` the labels are read and of the images the header.

    Raises:
        ValueError: as `load_dataset`, as far as that much tells.
    """
    if name == EMBEDDED:
        return 10_000, (1, 28, 28), 10
    if name.endswith(".npz"):
        shape, labels = npz.inspect(Path(name), name)
        return shape[0], npz.image_shape(name, shape), int(labels.max()) + 1
    source = _source(name)
    return source.count, source.shape, source.num_classes


def require_content(name: str, sha256: str) -> None:
    """Raise ValueError, naming both, unless the file `name` (an ``.npz``) has this SHA-256; "" is any."""
    found = npz.sha256_of(Path(name), name) if sha256 and name.endswith(".npz") else sha256
    if found != sha256:
        allowed = "must be the file that the run began with, or be named again by --dataset to be taken as it is"
        raise _refusal(name, f"has changed: its SHA-256 is {found}, not {sha256}", allowed)


def _source(name: str) -> Source:
    if name not in SOURCES:
        known = [EMBEDDED, *SOURCES]
        close = difflib.get_close_matches(name, known, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise _refusal(name, f"unknown{hint}", f"must be one of {', '.join(known)}, or the path of an .npz")
    return SOURCES[name]


def _default_cache() -> Path:
    import pooch

    return Path(os.environ.get(CACHE_VARIABLE) or pooch.os_cache("plasticity-suite"))


def _own_mirror(name: str, mirror: str | None) -> tuple[str, ...]:
    mirror = mirror or os.environ.get(MIRROR_VARIABLE)
    if mirror and not mirror.startswith(("http://", "https://")):
        raise ValueError(f"{MIRROR_VARIABLE} = {mirror!r}: is no address / must begin with http:// or https://")
    return (f"{mirror.rstrip('/')}/{name}/",) if mirror else ()


def _fetch(name: str, file: str, checksum: str, mirrors: tuple[str, ...], cache: Path) -> Path:
    """The path of `file` in the cache, downloaded if need be; processes that want the same file take turns."""
    target, partial = cache / name / file, cache.with_name(f"{cache.name}-partial") / name
    try:
        if _is_whole(target, checksum):
            return target
        partial.mkdir(parents=True, exist_ok=True)
        with _alone(partial / f"{file}.lock"):
            if not _is_whole(target, checksum):
                target.unlink(missing_ok=True)  # damaged since it was put there
                done = _download(name, file, checksum, mirrors, partial)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.move(done, target)
    except OSError as error:
        raise _refusal(name, f"cannot be kept in {cache} ({error})", f"set {CACHE_VARIABLE} to a folder") from None
    return target


def _is_whole(path: Path, checksum: str) -> bool:
    import pooch

    return path.is_file() and pooch.file_hash(str(path)) == checksum


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _download(name: str, file: str, checksum: str, mirrors: tuple[str, ...], partial: Path) -> str:
    """The path of `file` in the folder `partial`, its checksum found right. A part with a wrong one is removed; if it
    was begun by an earlier call, the same address gets a second chance."""
    import pooch

    part, failures = partial / f"{file}.part", []
    addresses = [base + file for base in mirrors]
    while addresses:
        url, begun_earlier = addresses.pop(0), part.exists()
        try:
            return pooch.retrieve(url, f"sha256:{checksum}", file, partial, downloader=_Resuming(part))
        except (OSError, HTTPException) as error:
            failures.append(f"{url}: {getattr(error, 'reason', None) or error}")
        except ValueError:  # pooch's word for a wrong checksum
            failures.append(f"{url}: wrong checksum")
            if begun_earlier:
                addresses.insert(0, url)
    raise _refusal(name, f"{file} cannot be downloaded ({'; '.join(failures)})", _INSTEAD)


class _Resuming:
    """A downloader for pooch that collects the file in `part` and goes on with what is already there."""

    def __init__(self, part: Path) -> None:
        self.part = part

    def __call__(self, url: str, output_file: str, pooch: object) -> None:
        for tries_left in reversed(range(TRIES)):
            before = self._size()
            try:
                self._go_on(url)
                break
            except (OSError, HTTPException):
                if not tries_left or self._size() == before:
                    raise
                time.sleep(PAUSE)
        os.replace(self.part, output_file)

    def _size(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def _go_on(self, url: str) -> None:
        have = self._size()
        headers = {"Accept-Encoding": "identity", "User-Agent": "plasticity-suite"}
        if have:
            headers["Range"] = f"bytes={have}-"
        try:
            response = urlopen(Request(url, headers=headers), timeout=TIMEOUT)
        except HTTPError as error:
            if have and error.code == 416:  # nothing follows: the part is whole, or the checksum will say otherwise
                return
            raise
        with response:
            begin = have if response.headers.get("Content-Range", "").startswith(f"bytes {have}-") else 0
            with self.part.open("ab" if begin else "wb") as file:
                shutil.copyfileobj(response, file)
        promised = response.headers.get("Content-Length")
        if promised and self._size() < begin + int(promised):
            raise ConnectionError(f"the connection ended after {self._size():,} of {begin + int(promised):,} bytes")


def _read_idx(path: Path) -> np.ndarray:
    """The uint8 array in a gzipped IDX file: two zeros, type 8, number of axes, their big-endian lengths, the bytes."""
    with gzip.open(path) as file:
        data = file.read()
    axes = data[3] if data[:3] == b"\0\0\x08" and len(data) > 3 else 0
    start = 4 + 4 * axes
    if not axes or len(data) < start:
        raise ValueError(f"{path.name} is no IDX file of bytes")
    shape = tuple(np.frombuffer(data, ">u4", axes, 4).tolist())
    if len(data) - start != np.prod(shape):
        raise ValueError(f"{path.name} has {len(data) - start} bytes where its header says {shape}")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def _read_idx_pair(paths: list[Path]) -> tuple[np.ndarray, np.ndarray]:
    images, labels = (_read_idx(path) for path in paths)
    return images[:, None], labels


def _read_cifar10(paths: list[Path]) -> tuple[np.ndarray, np.ndarray]:
    """The five training files of CIFAR-10's binary version: records of a label and 3 x 32 x 32 bytes."""
    batches = {}
    with tarfile.open(paths[0], "r:gz") as archive:
        for member in archive:
            if member.isfile():
                batches[Path(member.name).name] = archive.extractfile(member).read()
    wanted = [f"data_batch_{i}.bin" for i in range(1, 6)]
    missing = [file for file in wanted if len(batches.get(file, b".")) % 3073]
    if missing:
        raise ValueError(f"{paths[0].name} has no whole {missing[0]}")
    records = np.concatenate([np.frombuffer(batches[file], np.uint8).reshape(-1, 3073) for file in wanted])
    return np.ascontiguousarray(records[:, 1:]).reshape(-1, 3, 32, 32), records[:, 0]


def _load_npz(path: Path, name: str) -> Dataset:
    shape, labels = npz.inspect(path, name)
    return Dataset(npz.load_images(path, name, npz.image_shape(name, shape)), labels, int(labels.max()) + 1)


SOURCES: dict[str, Source] = {
    "mnist": Source(
        ("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/"),
        {
            "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        },
        (1, 28, 28),
        10,
        60_000,
        _read_idx_pair,
    ),
    "fashion_mnist": Source(
        (
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        ),
        {
            "train-images-idx3-ubyte.gz": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            "train-labels-idx1-ubyte.gz": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        },
        (1, 28, 28),
        10,
        60_000,
        _read_idx_pair,
    ),
    "cifar10": Source(
        ("https://www.cs.toronto.edu/~kriz/",),
        {"cifar-10-binary.tar.gz": "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"},
        (3, 32, 32),
        10,
        50_000,
        _read_cifar10,
    ),
}
"""The sets that are downloaded. The checksums are those that TensorFlow Datasets publishes."""
