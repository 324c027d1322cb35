"""Things that are timed side by side: they take turns in one run, so that a busy machine slows all alike."""

import os
import platform
import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch

FEWEST = 5
"""Turns that a median is taken of."""


class Spent(NamedTuple):
    """Seconds a step."""

    wall: float
    cpu: float
    """By all threads of the process."""


def timed(work: Callable[[], int]) -> Spent:
    """Time a step of `work`, which returns the steps that it made."""
    wall, cpu = time.perf_counter(), time.process_time()
    steps = work()
    return Spent((time.perf_counter() - wall) / steps, (time.process_time() - cpu) / steps)


Found = dict[str, list[Spent]]


def take_turns(
    windows: Mapping[str, Callable[[], Spent]], turns: int, told: Callable[[str], None] | None = None
) -> Found:
    """By name, what each of `windows` found in each turn. Who goes first changes, so that none always follows the same.
    `told` gets a line a turn."""
    found: Found = {name: [] for name in windows}
    names = list(windows)
    for turn in range(turns):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            found[name].append(windows[name]())
        if told is not None:
            speeds = ", ".join(f"{name} {1 / spent[-1].wall:,.0f}" for name, spent in found.items())
            told(f"turn {turn + 1}/{turns}: {speeds}")
    return found


def speed(spent: list[Spent]) -> float:
    """Steps a second: the median over the turns, by wall clock."""
    return median(1 / each.wall for each in spent)


def ratio(of: list[Spent], by: list[Spent], clock: str = "cpu") -> float:
    """How many times as fast the one is as the other: the median over turns of the ratio within a turn. By processor
    time, steadier where others use the machine too, or by the wall clock."""
    return median(getattr(there, clock) / getattr(here, clock) for here, there in zip(of, by, strict=True))


def machine(*packages: str) -> str:
    """What figures depend on beside the code."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "numpy", *packages))
    threads = f"{torch.get_num_threads()} torch thread{'s' * (torch.get_num_threads() > 1)}"
    cpus = f"{processor()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {threads}"
    return f"{cpus}\nPython {platform.python_version()}, {versions}"


def processor() -> str:
    """The kind of processor, and what of it counts for matrix products."""
    with suppress(OSError):
        text = Path("/proc/cpuinfo").read_text()
        named, flags = (re.search(rf"^{key}\s*:\s*(.+)$", text, re.MULTILINE) for key in ("model name", "flags"))
        if named:
            known = {"amx_bf16": "AMX bf16", "avx512_bf16": "AVX-512 bf16", "avx512f": "AVX-512", "avx2": "AVX2"}
            has = flags[1].split() if flags else []
            return f"{named[1]} ({next((words for flag, words in known.items() if flag in has), 'no AVX2')})"
    return platform.processor() or platform.machine()
