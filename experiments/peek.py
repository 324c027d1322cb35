"""What a checkpoint holds beside its tensors, read without torch and without running anything that it says."""

import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

from experiments import store
from experiments.run_directory import as_before, not_ours


class Stored(NamedTuple):
    """In place of a tensor: its shape."""

    shape: tuple[int, ...]


def peek(path: Path) -> Any:
    """What the checkpoint `path` holds, a directory's as if it were of format 1, with a `Stored` for every tensor.
    ValueError where there is something else in it than containers, primitives and tensors."""
    if not store.is_one(path):
        return _peek(path)
    try:
        return as_before(store.read(path), _peek(path / "agent.pt"))
    except store.Unsound as error:
        raise not_ours(path, error.why) from error


def _peek(path: Path) -> Any:
    try:
        with zipfile.ZipFile(path) as archive:
            name = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
            with archive.open(name) as file:
                return _Reader(file).load()
    except Exception as error:  # a pickle is a program; a wrong one fails in any way
        raise not_ours(path, str(error) or type(error).__name__) from error


class _Reader(pickle.Unpickler):
    """Knows the three names that a checkpoint of ours needs, and gives none of torch's own objects for them."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _stored
        if module == "torch" and name.endswith("Storage"):
            return name
        raise pickle.UnpicklingError(f"it holds {module}.{name}, no tensor and no primitive")

    def persistent_load(self, reference: Any) -> None:
        """Where a tensor's numbers lie: not looked at."""


def _stored(storage: None, offset: int, shape: tuple[int, ...], *rest: Any) -> Stored:
    return Stored(tuple(shape))
