"""Checkpoints on the disk: written aside, verified by hash, at least two kept. Imports torch only to write and to load.

A checkpoint is a directory, `checkpoints/step_000000012000` of a run (`-2` after it where that step was saved before;
nothing is ever overwritten). It holds NAME.pt files of tensors and primitives, as `torch.save` writes them and
`torch.load(weights_only=True)` reads them, and `checkpoint.json`: schema, step, settings and their hash, what made it
(commit, packages, device, threads), SHA-256 and size of every file, those in the run's folder `replay` included that
several checkpoints share, and its own hash. `crashed_000000012345` holds weights to evaluate, not a run to go on with.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agents.config import require, shown
from experiments.durable import (
    HashedFile,
    Recorded,
    clear_away,
    clear_partial,
    partial_name,
    recorded,
    stage,
    sync_directory,
)

SCHEMA = 2
"""1 was one file, step_N.pt or final.pt, with the agent's state and the settings: still read, never written."""
MANIFEST = "checkpoint.json"
NAME = re.compile(r"(step|crashed)_(\d{12,})(?:-([1-9]\d*))?")
PLAIN = re.compile(r"[A-Za-z0-9_]+\.pt")
SHARED = re.compile(r"replay/segment_\d{8,}\.bin")
EXACT = 2
"""How many of the newest checkpoints keep the replay they need."""


class Unsound(ValueError):
    """A checkpoint that is not as it was written, or not one at all; `why` leaves out which."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(f"{shown(str(path))}: {why}")
        self.why = why


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint's manifest says; its own bytes are verified, the other files' are not yet."""

    path: Path
    step: int
    config: dict[str, Any]
    """The run's settings, as `to_dict` makes them."""
    made_by: dict[str, Any]
    """Git commit, packages' versions, device, threads: whatever a resumed run is compared with."""
    files: dict[str, Recorded]
    """By name, in the checkpoint's directory."""
    shared: dict[str, Recorded] = field(default_factory=dict)
    """By path from the run's directory: segments of the replay."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Primitives that a reader wants without torch: the replay's segments, why the run ended."""
    not_resumable: str = ""
    """Why no run can go on from it; empty: it can."""

    def verify(self, files: Iterable[str] | None = None) -> None:
        """Read `files` (all, the shared ones too, where not given) and compare. Raises Unsound, naming the first that
        is not as it was written."""
        if files is None:
            for name, expected in self.shared.items():
                _compare(self.path, name, self.path.parent.parent / name, expected)
        for name in self.files if files is None else files:
            _compare(self.path, name, self.path / name, self.files.get(name))

    def load(self, name: str) -> Any:
        """What `save` was given as `name`, on the CPU, by torch's safe loader alone, verified before it is looked at.

        Raises Unsound.
        """
        import torch

        file = f"{name}.pt"
        self.verify([file])
        try:
            return torch.load(self.path / file, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises many types
            raise Unsound(self.path, f"{file}: {_first_line(error)}") from error


def _compare(checkpoint: Path, name: str, path: Path, expected: Recorded | None) -> None:
    try:
        found = None if expected is None else recorded(path)
    except OSError as error:
        raise Unsound(checkpoint, f"{name}: {error.strerror or error}") from None
    if found is None:
        raise Unsound(checkpoint, f"holds no {name}")
    if found.bytes != expected.bytes:
        raise Unsound(checkpoint, f"{name} has {found.bytes:,} bytes, not {expected.bytes:,}")
    if found != expected:
        raise Unsound(checkpoint, f"{name} is not as it was written: its hash differs")


def read(path: Path) -> Checkpoint:
    """The checkpoint in the directory `path`. Raises Unsound, in a sentence, where its manifest is damaged, missing or
    of a schema that this code does not read."""

    def refuse(why: str) -> Unsound:
        return Unsound(path, why)

    try:
        text = (path / MANIFEST).read_bytes()
        content = json.loads(text)
        body = content.pop("body")
        whole = content == {"sha256": hashlib.sha256(_json(body)).hexdigest()} and _manifest(body) == text
    except OSError as error:
        raise refuse(f"{MANIFEST}: {error.strerror or error}") from None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        whole = False
    if not whole:
        raise refuse(f"{MANIFEST} is not as it was written")
    if body.get("schema") != SCHEMA:
        raise refuse(f"is of schema {body.get('schema')!r}; this code reads {SCHEMA}: use the version that wrote it")
    try:
        return _checkpoint(path, body)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise refuse(f"{MANIFEST} holds other things ({_first_line(error)})") from None


def _checkpoint(path: Path, body: dict) -> Checkpoint:
    files = {name: Recorded(*found) for name, found in body["files"].items()}
    shared = {name: Recorded(*found) for name, found in body["shared"].items()}
    if not all(map(PLAIN.fullmatch, files)) or not all(map(SHARED.fullmatch, shared)):
        raise ValueError("names of files that are no checkpoint's")
    if type(body["step"]) is not int or body["step"] < 0 or not isinstance(body["config"], dict):
        raise ValueError("no step, or no settings")
    rest = (body["made_by"], files, shared, body["extra"], body["not_resumable"])
    return Checkpoint(path, body["step"], body["config"], *rest)


def _json(content: object) -> bytes:
    return json.dumps(content, indent=2, allow_nan=False).encode()


def _manifest(body: dict) -> bytes:
    return _json({"body": body, "sha256": hashlib.sha256(_json(body)).hexdigest()}) + b"\n"


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


def is_one(path: Path) -> bool:
    """Whether there is a directory at `path` that is meant to be a checkpoint, sound or not."""
    return os.path.isdir(path) and (bool(NAME.fullmatch(path.absolute().name)) or os.path.isfile(path / MANIFEST))


def config_hash(config: Mapping[str, Any]) -> str:
    """SHA-256 of the settings, whatever the order of their names."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def listed(folder: Path, kind: str = "step") -> list[Path]:
    """The checkpoints in `folder` by name, oldest first, sound or not. Raises OSError."""
    found = [(NAME.fullmatch(name), name) for name in os.listdir(folder)]
    numbered = [(int(match[2]), int(match[3] or 1), name) for match, name in found if match and match[1] == kind]
    return [folder / name for *_, name in sorted(numbered)]


def newest(folder: Path, tell: Callable[[str], None]) -> Checkpoint:
    """The newest checkpoint in `folder` that a run can go on from, every byte of it verified; `tell` hears of each
    newer one that was passed over, and why. Raises Unsound where there is none."""
    try:
        paths = listed(folder)
    except OSError as error:
        raise Unsound(folder, error.strerror or str(error)) from None
    for path in reversed(paths):
        try:
            checkpoint = read(path)
            if not checkpoint.not_resumable:
                checkpoint.verify()
                return checkpoint
            why = f"{shown(str(path))}: {checkpoint.not_resumable}"
        except Unsound as error:
            why = str(error)
        tell(f"not resumed from {why}")
    if not paths and any(folder.glob("*.pt")):
        why = "holds the agent but neither world nor replay: evaluate.py plays them, and no run can go on from them"
        raise Unsound(folder, f"its checkpoints are of the older format that {why}")
    raise Unsound(folder, "holds no checkpoint that a run can go on from")


def checkpoint_of(field: str, place: str) -> Path:
    """The checkpoint that `place`, a setting called `field`, names: itself, or the newest one of a run directory, by
    its absolute path. ValueError: there is none."""
    path = Path(os.path.abspath(place))
    allowed = "a run directory with checkpoints, or one of its checkpoints"
    if is_one(path):
        return path
    require(os.path.isdir(path / "checkpoints"), field, place, allowed)
    found = listed(path / "checkpoints")
    require(bool(found), field, place, allowed)
    return found[-1]


def at_step(folder: Path, step: int) -> Checkpoint:
    """The checkpoint of `step` in `folder` that a run can go on from, every byte of it verified. Raises Unsound."""
    paths = [path for path in listed(folder) if step_of(path) == step]
    if not paths:
        raise Unsound(folder, f"holds no checkpoint of step {step:,}")
    checkpoint = read(paths[-1])
    if checkpoint.not_resumable:
        raise Unsound(checkpoint.path, checkpoint.not_resumable)
    checkpoint.verify()
    return checkpoint


def differences(before: Mapping[str, Any], now: Mapping[str, Any], path: str = "") -> list[str]:
    """What differs between two nests of settings, each as "name: before, now after"."""
    found = []
    for name in dict.fromkeys([*before, *now]):
        first, second = before.get(name, "absent"), now.get(name, "absent")
        if isinstance(first, Mapping) and isinstance(second, Mapping):
            found += differences(first, second, f"{path}{name}.")
        elif first != second:
            found.append(f"{path}{name}: {first}, now {second}")
    return found


class Store:
    """Writes checkpoints to `folder`, which is there, and keeps the newest `keep` (0: all) of those that are sound.

    `resumed`: the checkpoint that the run goes on from; those that are newer than it are not sound, and go at the next
    save. Leftovers of interrupted writes are removed at once; `leftovers` names them. Raises OSError, and ValueError
    where `folder` has checkpoints and none is `resumed`: they would go.
    """

    def __init__(self, folder: Path, keep: int, resumed: Checkpoint | None = None) -> None:
        if keep == 1 or keep < 0:
            raise ValueError(f"keep = {keep}: must be 0 (all) or >= 2: a crash while writing must leave one that loads")
        self.folder, self.keep = folder, keep
        paths = listed(folder)
        if resumed is None and paths:
            raise ValueError(f"{shown(str(folder))}: holds {paths[-1].name} already: must be resumed from, or empty")
        self.leftovers = clear_partial(folder)
        self.sound = [] if resumed is None else paths[: paths.index(folder / resumed.path.name) + 1]
        """Oldest first; those before `resumed` as far as is known."""

    def save(
        self,
        step: int,
        parts: Mapping[str, Any],
        config: dict[str, Any],
        made_by: dict[str, Any],
        shared: Mapping[str, Recorded] | None = None,
        extra: dict[str, Any] | None = None,
        not_resumable: str = "",
        crashed: bool = False,
    ) -> Path:
        """Write a checkpoint: `parts` are {name: tensors and primitives}, each its own file NAME.pt; "agent" is what
        evaluate.py plays. The rest is the manifest's, see `Checkpoint`. Returns its directory.

        Raises OSError, and leaves what was there, where it cannot be written; nothing is removed before it is whole.
        """
        path = self._free("crashed" if crashed else "step", step)
        partial = partial_name(path)
        body = {"schema": SCHEMA, "step": step, "not_resumable": not_resumable, "extra": extra or {}}
        body |= {"made_by": made_by, "config_sha256": config_hash(config), "config": config}
        try:
            partial.mkdir()
            body["files"] = {f"{name}.pt": write_tensors(partial / f"{name}.pt", part) for name, part in parts.items()}
            body["shared"] = {name: tuple(found) for name, found in (shared or {}).items()}
            with HashedFile(partial / MANIFEST) as file:
                file.write(_manifest(json.loads(_json(body))))
                file.finish()
            sync_directory(partial)
            stage("rename", path)
            os.rename(partial, path)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        sync_directory(self.folder)
        stage("renamed", path)
        if not crashed:
            self.sound.append(path)
            self._prune()
        return path

    def _free(self, kind: str, step: int) -> Path:
        taken = [int(NAME.fullmatch(path.name)[3] or 1) for path in listed(self.folder, kind) if step_of(path) == step]
        suffix = f"-{max(taken) + 1}" if taken else ""
        return self.folder / f"{kind}_{step:012d}{suffix}"

    def _prune(self) -> None:
        """Remove what is neither sound nor among the newest."""
        self.sound = self.sound[-self.keep :]  # -0: all
        for path in listed(self.folder):
            if path not in self.sound:
                clear_away(path)

    def needed(self) -> set[str]:
        """The shared files that the newest two checkpoints need, by path from the run's directory. Raises Unsound."""
        return {name for path in self.sound[-EXACT:] for name in read(path).shared}


def step_of(path: Path) -> int:
    """The step in a checkpoint's name."""
    return int(NAME.fullmatch(path.name)[2])


def write_tensors(path: Path, content: Any) -> Recorded:
    """Write `content` to the new file `path` as torch does, synced. Raises OSError where it cannot be written."""
    import torch

    with HashedFile(path) as file:
        torch.save(content, file)
        return file.finish()
