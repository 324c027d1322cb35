"""The embedded images; the real downloader against a small file server that misbehaves; anyone's own .npz."""

import gzip
import hashlib
import io
import re
import tarfile
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from envs import datasets
from envs.datasets import SOURCES, dataset_size, load_dataset

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
GENERATOR = np.random.default_rng(0)
IMAGES = GENERATOR.integers(256, size=(40, 1, 28, 28), dtype=np.uint8)
LABELS = np.arange(40, dtype=np.uint8) % 10


def header_of(array, type_code=8):
    """What an IDX file begins with."""
    return bytes([0, 0, type_code, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)


def idx(array, type_code=8):
    """An IDX file, gzipped."""
    return gzip.compress(header_of(array, type_code) + array.tobytes(), mtime=0)


def mnist_files(images=None, labels=None):
    images = idx(IMAGES[:, 0]) if images is None else images
    return {
        "train-images-idx3-ubyte.gz": images,
        "train-labels-idx1-ubyte.gz": idx(LABELS) if labels is None else labels,
    }


def cifar_files(records, batches=5):
    """CIFAR-10's binary archive with `records` [N, 3073] dealt out to the batches."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        for i, part in enumerate(np.array_split(records, batches), start=1):
            member = tarfile.TarInfo(f"cifar-10-batches-bin/data_batch_{i}.bin")
            member.size = part.size
            archive.addfile(member, io.BytesIO(part.tobytes()))
        archive.addfile(tarfile.TarInfo("cifar-10-batches-bin/readme.html"))
    return {"cifar-10-binary.tar.gz": content.getvalue()}


class Server:
    """Serves `files` ("mnist/name" -> bytes) on this machine. `cut`: bytes after which a connection is closed;
    `ranges`: whether Range is honoured. `log` has (path, Range, status) of each request."""

    def __init__(self):
        self.files, self.cut, self.ranges, self.log = {}, None, True, []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                server.answer(self)

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.http.server_port}"
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    def answer(self, request):
        asked, data = request.headers.get("Range"), self.files.get(request.path[1:])
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and self.ranges else 0
        status = 404 if data is None else 416 if start >= len(data) else 206 if start else 200
        self.log.append((request.path[1:], asked, status))
        request.send_response(status)
        body = data[start:] if status in (200, 206) else b""
        request.send_header("Content-Length", str(len(body)))
        if status == 206:
            request.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        request.end_headers()
        request.wfile.write(body if self.cut is None else body[: self.cut])

    def close(self):
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()


@pytest.fixture
def server():
    server = Server()
    yield server
    server.close()


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.fixture(autouse=True)
def _no_waiting_and_no_settings(monkeypatch):
    monkeypatch.setattr(datasets, "PAUSE", 0.0)
    monkeypatch.delenv(datasets.MIRROR_VARIABLE, raising=False)
    monkeypatch.delenv(datasets.CACHE_VARIABLE, raising=False)


@pytest.fixture
def offer(server, monkeypatch):
    """Puts files on the server and their checksums in the table."""

    def put(name, files, **changes):
        server.files.update({f"{name}/{file}": data for file, data in files.items()})
        checksums = {file: hashlib.sha256(data).hexdigest() for file, data in files.items()}
        monkeypatch.setitem(SOURCES, name, replace(SOURCES[name], files=checksums, **changes))

    return put


def files_in(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def parts_of(cache):
    """Sizes of the unfinished parts, which lie beside the cache."""
    return [path.stat().st_size for path in cache.with_name("cache-partial").rglob("*.part")]


def refused(message, name, cache, mirror=None):
    """Loading fails with one sentence that names the set, and the cache holds no file afterwards."""
    with pytest.raises(ValueError, match=message) as caught:
        load_dataset(name, cache, mirror)
    assert str(caught.value).startswith(f"dataset = {name!r}: ") and "\n" not in str(caught.value)
    assert files_in(cache) == []


def test_embedded_images_are_fashion_mnists_test_set():
    images, labels, num_classes = load_dataset("fashion_mnist_test")
    assert images.shape == (10_000, 1, 28, 28) and images.dtype == np.uint8 and num_classes == 10
    assert labels.dtype == np.int64 and np.bincount(labels).tolist() == [1000] * 10
    # Of the pixels and labels in t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte.
    pixels = "c867c93ff95360594e8ec3287995350b824dd110b11595c0e13d5423f621867a"
    assert hashlib.sha256(images.tobytes()).hexdigest() == pixels
    numbers = "3d0e6c6ea990b53b6f8f500a41cac93881d981b315f84578b7d915342ade01e9"
    assert hashlib.sha256(labels.astype(np.uint8).tobytes()).hexdigest() == numbers
    assert labels[:10].tolist() == [9, 2, 1, 1, 6, 1, 4, 6, 5, 7]
    assert dataset_size("fashion_mnist_test") == (10_000, (1, 28, 28), 10)
    assert datasets._EMBEDDED_FILE.stat().st_size < 5_000_000
    assert "Copyright (c) 2017 Zalando SE" in datasets._EMBEDDED_FILE.with_name("LICENSE-fashion-mnist.txt").read_text()


def test_embedded_file_is_the_published_one():
    """MD5 of the unpacked IDX files, as published with Fashion-MNIST, from what is embedded."""
    images, labels, _ = load_dataset("fashion_mnist_test")
    unpacked = [header_of(array) + array.tobytes() for array in (images[:, 0], labels.astype(np.uint8))]
    found = [hashlib.md5(data).hexdigest() for data in unpacked]
    assert found == ["8181f5470baa50b63fa0f6fddb340f0a", "15d484375f8d13e6eb1aabb0c3f46965"]


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_idx_files_are_downloaded_once(name, server, offer, cache):
    offer(name, mnist_files())
    images, labels, num_classes = load_dataset(name, cache, server.address)
    assert np.array_equal(images, IMAGES) and labels.tolist() == LABELS.tolist() and num_classes == 10
    assert labels.dtype == np.int64 and dataset_size(name)[1:] == ((1, 28, 28), 10)
    assert files_in(cache) == list(mnist_files()) and parts_of(cache) == []
    server.files.clear()
    assert np.array_equal(load_dataset(name, cache, server.address).images, IMAGES) and len(server.log) == 2


def test_cifar_is_read_in_its_binary_version(server, offer, cache):
    records = GENERATOR.integers(256, size=(25, 3073), dtype=np.uint8)
    records[:, 0] %= 10
    offer("cifar10", cifar_files(records))
    images, labels, num_classes = load_dataset("cifar10", cache, server.address)
    assert images.shape == (25, 3, 32, 32) and num_classes == 10 and dataset_size("cifar10")[1:] == ((3, 32, 32), 10)
    assert labels.tolist() == records[:, 0].tolist()
    assert images[7, 2, 3, 4] == records[7, 1 + 2 * 1024 + 3 * 32 + 4]
    offer("cifar10", cifar_files(records, batches=4))
    with pytest.raises(ValueError, match=r"dataset = 'cifar10': .* has no whole data_batch_5.bin"):
        load_dataset("cifar10", cache.with_name("other"), server.address)


def test_settings_name_cache_and_mirror(server, offer, cache, monkeypatch):
    offer("mnist", mnist_files())
    monkeypatch.setenv(datasets.CACHE_VARIABLE, str(cache))
    monkeypatch.setenv(datasets.MIRROR_VARIABLE, server.address + "/")
    assert len(load_dataset("mnist").images) == 40 and len(files_in(cache)) == 2
    monkeypatch.setenv(datasets.MIRROR_VARIABLE, "somewhere")
    with pytest.raises(ValueError, match=r"PLASTICITY_SUITE_MIRROR = 'somewhere': .* must begin with http"):
        load_dataset("mnist")


def test_the_second_address_is_asked_when_the_first_fails(server, offer, cache):
    offer("mnist", mnist_files(), mirrors=(f"{server.address}/nothing/", f"{server.address}/mnist/"))
    assert len(load_dataset("mnist", cache).images) == 40
    assert [status for _, _, status in server.log] == [404, 200, 404, 200]


def test_a_cut_connection_is_taken_up_again_in_the_same_call(server, offer, cache):
    files = mnist_files()
    offer("mnist", files)
    server.cut = 10_000
    assert np.array_equal(load_dataset("mnist", cache, server.address).images, IMAGES)
    size = len(files["train-images-idx3-ubyte.gz"])
    assert 20_000 < size < 40_000
    asked = [(asked, status) for path, asked, status in server.log if "images" in path]
    expected = [(None, 200)] + [(f"bytes={n}-", 206) for n in range(10_000, size, 10_000)]
    assert asked == expected


def test_an_interrupted_download_goes_on_in_a_later_call(server, offer, cache, monkeypatch):
    offer("mnist", mnist_files())
    server.cut = 10_000
    monkeypatch.setattr(datasets, "TRIES", 2)
    refused(r"the connection ended after 20,000 of [\d,]+ bytes.* / run again to go on", "mnist", cache, server.address)
    assert parts_of(cache) == [20_000]
    server.cut, server.log[:] = None, []
    assert np.array_equal(load_dataset("mnist", cache, server.address).images, IMAGES)
    assert server.log[0][1:] == ("bytes=20000-", 206) and parts_of(cache) == []


def test_a_server_without_ranges_starts_anew(server, offer, cache):
    offer("mnist", mnist_files())
    server.cut, server.ranges = 10_000, False
    refused("the connection ended after 10,000 of", "mnist", cache, server.address)
    assert parts_of(cache) == [10_000]
    server.cut = None
    assert np.array_equal(load_dataset("mnist", cache, server.address).images, IMAGES)


def test_a_part_that_is_whole_already_is_only_checked(server, offer, cache):
    files = mnist_files()
    offer("mnist", files)
    part = cache.with_name("cache-partial") / "mnist" / "train-images-idx3-ubyte.gz.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(files["train-images-idx3-ubyte.gz"])
    assert np.array_equal(load_dataset("mnist", cache, server.address).images, IMAGES)
    assert server.log[0][2] == 416


def test_a_part_of_something_else_is_thrown_away(server, offer, cache):
    offer("mnist", mnist_files())
    part = cache.with_name("cache-partial") / "mnist" / "train-images-idx3-ubyte.gz.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"x" * 5000)
    assert np.array_equal(load_dataset("mnist", cache, server.address).images, IMAGES)
    assert [entry[1:] for entry in server.log[:2]] == [("bytes=5000-", 206), (None, 200)]


def test_a_damaged_file_in_the_cache_is_downloaded_again(server, offer, cache):
    offer("mnist", mnist_files())
    load_dataset("mnist", cache, server.address)
    damaged = cache / "mnist" / "train-images-idx3-ubyte.gz"
    damaged.write_bytes(b"damaged")
    assert np.array_equal(load_dataset("mnist", cache, server.address).images, IMAGES)
    damaged.write_bytes(b"damaged")
    server.files.clear()
    with pytest.raises(ValueError, match="Not Found"):
        load_dataset("mnist", cache, server.address)
    assert files_in(cache) == ["train-labels-idx1-ubyte.gz"]


def test_several_that_want_the_same_file_take_turns(server, offer, cache):
    offer("mnist", mnist_files())
    sizes = []
    callers = [
        threading.Thread(target=lambda: sizes.append(len(load_dataset("mnist", cache, server.address).images)))
        for _ in range(4)
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert sizes == [40] * 4 and len(server.log) == 2


def test_a_wrong_checksum_leaves_nothing(server, offer, cache):
    offer("mnist", mnist_files())
    server.files["mnist/train-images-idx3-ubyte.gz"] = idx(IMAGES[:, 0] + 1)
    refused(r"train-images-idx3-ubyte.gz cannot be downloaded \(.*: wrong checksum\)", "mnist", cache, server.address)
    assert parts_of(cache) == []


def test_missing_files_and_no_network_are_said_in_a_sentence(server, offer, cache):
    refused(r"cannot be downloaded \(.*mnist/train-images-idx3-ubyte.gz: Not Found\)", "mnist", cache, server.address)
    server.close()
    refused(r"\(http://127.*: \[Errno \d+\] Connection refused\)", "mnist", cache, server.address)
    assert parts_of(cache) == []


def test_an_unusable_cache_folder_is_said_in_a_sentence(server, offer, tmp_path):
    offer("mnist", mnist_files())
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(ValueError, match=r"dataset = 'mnist': cannot be kept in .* / set PLASTICITY_SUITE_CACHE"):
        load_dataset("mnist", blocked / "cache", server.address)


WHOLE = idx(IMAGES[:, 0])
MALFORMED = [
    (mnist_files(images=WHOLE[:-100]), "ended before the end-of-stream"),
    (mnist_files(images=gzip.compress(gzip.decompress(WHOLE)[:-100])), "bytes where its header says"),
    (mnist_files(images=gzip.compress(b"\0\0\x08")), "is no IDX file"),
    (mnist_files(images=idx(IMAGES[:, 0], type_code=9)), "is no IDX file"),
    (mnist_files(images=b"<html>"), "Not a gzipped file"),
    (mnist_files(images=idx(IMAGES[:, 0, :20])), r"images have shape \(1, 20, 28\) / must be \(1, 28, 28\)"),
    (mnist_files(labels=idx(LABELS[:39])), r"labels have shape \[39\] / must be one for each of 40"),
    (mnist_files(labels=idx(LABELS + 1)), r"labels lie in \[1, 10\] .* must lie in \[0, 9\]"),
]


@pytest.mark.parametrize(("files", "message"), MALFORMED)
def test_malformed_files_are_refused(files, message, server, offer, cache):
    """Files that are malformed although their checksum is right."""
    offer("mnist", files)
    with pytest.raises(ValueError, match=f"dataset = 'mnist': .*{message}"):
        load_dataset("mnist", cache, server.address)


@pytest.mark.skipif(not DEBIAN.exists(), reason="Debian's package dataset-fashion-mnist is not installed")
def test_the_real_fashion_mnist(server, offer, cache):
    files = {file: (DEBIAN / file).read_bytes() for file in SOURCES["fashion_mnist"].files}
    offer("fashion_mnist", files)
    images, labels, _ = load_dataset("fashion_mnist", cache, server.address)
    assert images.shape == (60_000, 1, 28, 28) and np.bincount(labels).tolist() == [6000] * 10


def save(path, images=None, labels=None, **arrays):
    arrays |= {} if images is None else {"images": images}
    arrays |= {} if labels is None else {"labels": labels}
    np.savez(path, **arrays)
    return str(path)


@pytest.mark.parametrize(
    ("shape", "axes"),
    [((5, 4), (0, 1, 2)), ((5, 4, 3), (0, 3, 1, 2)), ((3, 5, 4), (0, 1, 2, 3)), ((1, 5, 4), (0, 1, 2, 3))],
)
@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.int16])
def test_own_images_in_every_layout(shape, axes, dtype, tmp_path):
    images = GENERATOR.integers(256, size=(6, *shape), dtype=np.uint8)
    labels = np.array([2, 0, 1, 1, 2, 0], dtype=dtype)
    path = save(tmp_path / "own.npz", images, labels)
    expected = images.transpose(axes) if len(axes) == 4 else images[:, None]
    loaded = load_dataset(path)
    assert np.array_equal(loaded.images, expected) and loaded.images.flags.c_contiguous
    assert loaded.labels.tolist() == labels.tolist() and loaded.labels.dtype == np.int64 and loaded.num_classes == 3
    assert dataset_size(path)[1:] == (expected.shape[1:], 3)


SMALL = IMAGES[:6, 0]
OWN = [
    ({"images": SMALL}, "there is no array 'labels'"),
    ({"labels": np.zeros(6, dtype=int)}, "there is no array 'images'"),
    ({"images": SMALL / 255, "labels": np.arange(6)}, "images are float64 / must be an .npz with images, uint8"),
    ({"images": SMALL, "labels": np.arange(6.0)}, "labels are float64 / must be integers"),
    ({"images": SMALL, "labels": np.arange(6) > 2}, "labels are bool / must be integers"),
    ({"images": SMALL, "labels": np.arange(5)}, r"labels have shape \[5\] / must be one for each of 6 images"),
    ({"images": SMALL, "labels": np.eye(6, dtype=int)}, r"labels have shape \[6, 6\]"),
    ({"images": SMALL, "labels": np.arange(6) - 1}, r"labels lie in \[-1, 4\] with 6 different ones"),
    ({"images": SMALL, "labels": np.arange(6) + 1}, r"labels lie in \[1, 6\] with 6 different ones"),
    ({"images": SMALL, "labels": np.arange(6) * 2}, r"labels lie in \[0, 10\] with 6 .* number at least 2 classes"),
    ({"images": SMALL, "labels": np.zeros(6, dtype=int)}, r"labels lie in \[0, 0\] with 1"),
    ({"images": SMALL[:0], "labels": np.arange(0)}, r"images have shape \[0, 28, 28\]"),
    ({"images": SMALL[0, 0], "labels": np.arange(28)}, r"images have shape \[28\]"),
    ({"images": SMALL.reshape(6, 2, 14, 28), "labels": np.arange(6)}, r"images have shape \[6, 2, 14, 28\]"),
    ({"images": np.array([None] * 6), "labels": np.arange(6)}, "images are object"),
    ({"images": SMALL, "labels": np.array([None] * 6)}, "labels are object"),
]


@pytest.mark.parametrize(("arrays", "message"), OWN)
@pytest.mark.parametrize("use", [load_dataset, dataset_size])
def test_own_images_that_do_not_fit_are_refused(use, arrays, message, tmp_path):
    path = save(tmp_path / "own.npz", **arrays)
    with pytest.raises(ValueError, match=message) as caught:
        use(path)
    assert str(caught.value).startswith(f"dataset = {path!r}: ")


@pytest.mark.parametrize("use", [load_dataset, dataset_size])
def test_files_that_are_no_npz_are_refused(use, tmp_path):
    path = Path(save(tmp_path / "own.npz", SMALL, np.arange(6)))
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match=r"dataset = .*cannot be read \(File is not a zip file\)"):
        use(str(path))
    np.save(path.open("wb"), SMALL)
    with pytest.raises(ValueError, match="cannot be read"):
        use(str(path))
    with pytest.raises(ValueError, match=r"dataset = 'nowhere.npz': no such file"):
        use("nowhere.npz")


def test_a_flipped_bit_in_the_images_is_noticed(tmp_path):
    path = Path(save(tmp_path / "own.npz", SMALL, np.arange(6)))
    data = bytearray(path.read_bytes())
    data[data.index(SMALL[3].tobytes())] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"images cannot be read \(Bad CRC-32"):
        load_dataset(str(path))


@pytest.mark.parametrize("use", [load_dataset, dataset_size])
def test_unknown_names_are_answered_with_the_known_ones(use):
    with pytest.raises(
        ValueError, match=r"dataset = 'minst': unknown \(did you mean 'mnist'\?\) / must be one of fash"
    ):
        use("minst")
    with pytest.raises(ValueError, match=r"dataset = 'fashion-mnist': unknown \(did you mean 'fashion_mnist'\?\)"):
        use("fashion-mnist")
    with pytest.raises(ValueError, match=r"dataset = '': unknown / must be one of .*, or the path of an .npz"):
        use("")


def test_checksums_and_addresses_are_well_formed():
    for source in SOURCES.values():
        assert all(re.fullmatch("[0-9a-f]{64}", checksum) for checksum in source.files.values())
        assert all(re.fullmatch(r"https?://\S+/", mirror) for mirror in source.mirrors)
