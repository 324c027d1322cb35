"""Checkpoints of format 1, which are read still: one file each."""

import shutil
from pathlib import Path

import torch

from experiments.run_directory import as_before
from experiments.store import listed, read


def as_one_file(run: Path) -> Path:
    """The last checkpoint of `run` as the version before wrote it, and nothing beside it; `run` itself."""
    folder = run / "checkpoints"
    last = read(listed(folder)[-1])
    content = as_before(last, last.load("agent"))
    shutil.rmtree(folder)
    folder.mkdir()
    torch.save(content, folder / "final.pt")
    return run
