"""The replay on the disk, in segments: each written once, shared by the checkpoints that need it, never changed.

A segment, `replay/segment_00000012.bin` of a run, holds the slots that every environment filled between two moments:
raw arrays in the order of `WRITTEN_ONCE`, one environment after the other, packed by zlib where they are images. Where
it belongs (`start` and `stop` of each environment, counted from the first slot ever written), its hash and its size
stand in the manifests of the checkpoints. Full segments are written by a thread while training goes on.
"""

import zlib
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from agents.replay import Replay
from experiments.durable import Recorded, clear_partial, stage, written_aside
from experiments.store import Checkpoint, Unsound

SEGMENT_BYTES = 64 << 20
"""Of a full segment before it is packed: what is copied at once, and the most that a checkpoint writes again."""
LEVEL = 1
"""zlib's. Atari's frames shrink to a 30th or less at 300 MB/s and more; higher levels take longer for little."""


class Segment(NamedTuple):
    """A file, and the slots it holds."""

    name: str
    """From the run's directory."""
    start: tuple[int, ...]
    stop: tuple[int, ...]
    recorded: Recorded


def in_manifest(segments: Iterable[Segment]) -> dict[str, Any]:
    """What `Store.save` is to be told of `segments`: its `shared` and `extra`."""
    segments = list(segments)
    places = [{"name": segment.name, "start": segment.start, "stop": segment.stop} for segment in segments]
    return {"shared": {segment.name: segment.recorded for segment in segments}, "extra": {"replay": places}}


def segments_of(checkpoint: Checkpoint) -> list[Segment]:
    """Those that `checkpoint` needs, oldest first."""
    return [
        Segment(place["name"], tuple(place["start"]), tuple(place["stop"]), checkpoint.shared[place["name"]])
        for place in checkpoint.extra["replay"]
    ]


def bytes_on_disk(replay: Replay, segment_bytes: int = SEGMENT_BYTES) -> int:
    """The most that a full `replay` takes there, with what two checkpoints keep of overwritten slots; images take a
    small part of it, packed."""
    return replay.num_envs * replay.slots * _slot_bytes(replay) + 2 * segment_bytes


def _slot_bytes(replay: Replay) -> int:
    return sum(array.itemsize * int(np.prod(array.shape[1:])) for array in _empty(replay).values())


def _empty(replay: Replay) -> dict[str, np.ndarray]:
    """A part with no slots, for its types and shapes."""
    nowhere = np.zeros(replay.num_envs, np.int64)
    return replay.part(nowhere, nowhere)


class ReplayStore:
    """Brings `replay` to the disk as it fills, and back. One a run, whose directory is `directory` and locked.

    Raises OSError where there is no room.
    """

    def __init__(self, directory: Path, replay: Replay, segment_bytes: int = SEGMENT_BYTES) -> None:
        self.replay, self.directory, self.folder = replay, directory, directory / "replay"
        self.packed = replay.observations.dtype == torch.uint8
        self.slots = max(1, segment_bytes // _slot_bytes(replay) // replay.num_envs)
        """Of each environment in a segment, at most."""
        self.folder.mkdir(exist_ok=True)
        self.leftovers = clear_partial(self.folder)
        """What interrupted writes had left; it is gone."""
        self._serial = max((int(path.stem.partition("_")[2]) for path in self._files()), default=0)
        self._sealed: list[Segment] = []
        self._reached = np.zeros(replay.num_envs, np.int64)  # what comes before is sealed, or not needed any more
        self._thread = ThreadPoolExecutor(1, "replay")
        self._writing: Future[Segment] | None = None

    def _files(self) -> list[Path]:
        return list(self.folder.glob("segment_*.bin"))

    @property
    def busy(self) -> bool:
        """Whether the thread is writing."""
        return self._writing is not None and not self._writing.done()

    def advance(self) -> None:
        """Once a tick: give a segment that is full to the thread. Raises what the one before failed at."""
        if self.busy:
            return
        self._collect()
        if (self.replay.written - self._reached).min() >= self.slots:
            self._writing = self._thread.submit(self._write, *self._next())

    def seal(self) -> list[Segment]:
        """Bring the rest to the disk. The segments that hold all that sampling can see now, oldest first.

        A rest of less than half a segment is written anew, with what came after it, the next time.
        """
        self._collect()
        rest: list[Segment] = []
        while not rest and (np.maximum(self._reached, self.replay.oldest) < self.replay.written).any():
            segment = self._write(*self._next())
            small = 2 * (sum(segment.stop) - sum(segment.start)) < self.slots * self.replay.num_envs
            if small and (segment.stop == self.replay.written).all():
                rest.append(segment)
            else:
                self._seal(segment)
        oldest = self.replay.oldest
        self._sealed = [segment for segment in self._sealed if (np.array(segment.stop) > oldest).any()]
        return [*self._sealed, *rest]

    def _next(self) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        start = np.maximum(self._reached, self.replay.oldest)
        stop = np.minimum(self.replay.written, start + self.slots)
        return start, stop, self.replay.part(start, stop)

    def _collect(self) -> None:
        if self._writing is not None:
            writing, self._writing = self._writing, None
            self._seal(writing.result())

    def _seal(self, segment: Segment) -> None:
        self._sealed.append(segment)
        self._reached = np.array(segment.stop)

    def _write(self, start: np.ndarray, stop: np.ndarray, part: dict[str, np.ndarray]) -> Segment:
        self._serial += 1
        name = f"replay/segment_{self._serial:08d}.bin"
        with written_aside(self.directory / name) as file:
            pack = zlib.compressobj(LEVEL)
            for array in part.values():
                plain = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
                file.write(pack.compress(plain) if self.packed else plain)
            if self.packed:
                file.write(pack.flush())
        return Segment(name, tuple(start.tolist()), tuple(stop.tolist()), file.recorded)

    def restore(self, state: dict[str, torch.Tensor], segments: Sequence[Segment]) -> None:
        """Make the replay what it was when `replay.state_dict()` gave `state` and `seal` gave `segments`.

        Raises Unsound where a segment is not as it was written, ValueError where they are of another replay.
        """
        _put_back(self.replay, self.directory, state, segments)
        self._sealed, self._reached = list(segments), self.replay.written.copy()

    def let_go(self, needed: Iterable[str]) -> None:
        """Remove the segments that no checkpoint needs (`needed`: `Store.needed()`) and none to come will."""
        self._collect()
        kept = {*needed, *(segment.name for segment in self._sealed)}
        for path in self._files():
            if f"replay/{path.name}" not in kept:
                path.unlink()
                stage("prune", path)

    def close(self) -> None:
        """Wait for the thread. What kept its last segment from being written is not told: nothing needs that one."""
        self._thread.shutdown()


def bring_back(replay: Replay, directory: Path, checkpoint: Checkpoint) -> None:
    """Make `replay`, another run's, what that of the run in `directory` was at `checkpoint`; nothing is written there.
    Raises as `ReplayStore.restore` does."""
    _put_back(replay, directory, checkpoint.load("replay"), segments_of(checkpoint))


def _put_back(replay: Replay, directory: Path, state: dict[str, torch.Tensor], segments: Sequence[Segment]) -> None:
    replay.load_state_dict(state)
    for segment in segments:
        start, stop = np.array(segment.start), np.array(segment.stop)
        replay.put_back(start, stop, _read(replay, directory, segment, int((stop - start).sum())))


def _read(replay: Replay, directory: Path, segment: Segment, slots: int) -> dict[str, np.ndarray]:
    """The `slots` slots in a segment's file, by the name of what they hold."""
    path = directory / segment.name
    try:
        content = path.read_bytes()
    except OSError as error:
        raise Unsound(path, error.strerror or str(error)) from None
    if Recorded.of(content) != segment.recorded:
        raise Unsound(path, "is not as it was written")
    packed = replay.observations.dtype == torch.uint8
    content = memoryview(bytearray(zlib.decompress(content) if packed else content))
    part, place = {}, 0
    for name, like in _empty(replay).items():
        size = slots * like.itemsize * int(np.prod(like.shape[1:]))
        part[name] = np.frombuffer(content[place : place + size], like.dtype).reshape(slots, *like.shape[1:])
        place += size
    if place != len(content):
        raise ValueError(f"{path}: holds {len(content):,} bytes, not the {place:,} of {slots:,} slots of this replay")
    return part


def remove_segments(directory: Path) -> None:
    """Remove those of a run that is finished: its last checkpoint is sound and does without. Raises OSError."""
    folder = directory / "replay"
    for path in folder.glob("segment_*.bin*"):
        path.unlink()
    folder.rmdir()
