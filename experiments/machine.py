"""What a run uses of the machine: its device and its threads, chosen by the size of its updates where they are not
given.

A small update costs less than handing it to a GPU, or to a second thread. How small was measured: `python -m
benchmarks.scaling --only threads`, and docs/performance.md for GPUs. A run keeps the threads that it began with, for
sums depend on them. Importing this module brings no torch.
"""

import contextlib
import ctypes
import mmap
import os
import re
from argparse import ArgumentTypeError
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, NewType

from agents.config import require
from agents.spelling import folded
from envs.cores import usable_cores

if TYPE_CHECKING:
    import torch

Device = NewType("Device", str)
"""auto, cpu, cuda (the current one) or cuda:N."""
DEVICES = ("auto", "cpu", "cuda", "cuda:N")
A_THREAD_EACH = 90_000_000
"""Multiply-adds in the forward pass of a batch that keep a thread busy."""
A_FEW_THREADS = 4
"""More are seldom worth their cores."""
GPU_FROM = 50_000_000
"""Multiply-adds of a batch whose update takes a CPU thread longer than launching it takes a GPU (about 5 ms)."""
CUDA_ELSEWHERE = ("gpu", "gpus", "nvidia", "rocm", "hip", "amd", "cuda0", "gpu0")
"""What others write for cuda."""


class Placement(NamedTuple):
    """Where a network runs."""

    device: "torch.device"
    words: str
    """Device and threads, each with the reason, for the line that a run begins with."""


class Threads(NamedTuple):
    """How many threads torch computes with."""

    number: int
    reason: str


def check_device(name: str, field: str = "device") -> str:
    """`name`, if it has the form of a device's name; ValueError otherwise. Whether there is one is asked later."""
    hint = "; did you mean 'cuda'?" if folded(name) in CUDA_ELSEWHERE else ""
    allowed = f"auto, cpu, cuda or cuda:N (GPU number N, from 0){hint}"
    require(re.fullmatch(r"auto|cpu|cuda(:[0-9]{1,4})?", name) is not None, field, name, allowed)
    return name


def device_argument(name: str) -> str:
    """`check_device` for an argparse parser."""
    try:
        return check_device(name)
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from None


def has_gpu_driver() -> bool:
    """Whether a driver for torch's "cuda" devices (NVIDIA's, or AMD's for ROCm builds) is installed. Torch itself is
    asked later: importing it takes longer than an answer to a wrong flag should."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return Path("/dev/kfd").exists()
    return True


def may_be_a_gpu(name: str, products: int) -> bool:
    """Whether device `name` can turn out to be a GPU for such batches, as far as can be known without torch."""
    return name.startswith("cuda") or (name == "auto" and products >= GPU_FROM and has_gpu_driver())


def choose_device(name: str, products: int = GPU_FROM) -> "torch.device":
    """The torch device that `name` means here: auto is a GPU where there is one and a batch has `products` enough.

    A GPU with a number becomes torch's current one. ValueError: there is no such device.
    """
    import torch

    check_device(name)
    if name == "cpu" or (name == "auto" and not (products >= GPU_FROM and torch.cuda.is_available())):
        return torch.device("cpu")
    require(name == "auto" or torch.cuda.is_available(), "device", name, "cpu or auto: torch sees no CUDA device here")
    device = torch.device("cuda" if name == "auto" else name)
    if device.index is not None:
        count = torch.cuda.device_count()
        known = (
            "cuda:0, the only GPU here" if count == 1 else f"one of cuda:0 to cuda:{count - 1}: {count} GPUs are here"
        )
        require(device.index < count, "device", name, known)
        torch.cuda.set_device(device)
    return device


def choose_threads(asked: int, products: int, before: int = 0) -> "Threads":
    """Torch's threads, and why: those `asked` for; those that the run had `before`, where it goes on; else one for
    every `A_THREAD_EACH` of a batch's `products`, within `A_FEW_THREADS`, the usable cores and OMP_NUM_THREADS."""
    if asked:
        return Threads(asked, "as asked")
    cores = usable_cores()
    if before:
        return Threads(before, "as before" + (f", on {cores} usable core{'s' * (cores > 1)}" if cores < before else ""))
    wanted = min(A_FEW_THREADS, max(1, products // A_THREAD_EACH))
    if wanted == 1:
        return Threads(1, f"a batch of {_counted(products)} multiply-adds is slower with more")
    reason = f"a batch of {_counted(products)} multiply-adds, {cores} usable core{'s' * (cores > 1)}"
    number, limit = min(wanted, cores), os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    if limit.isdecimal() and 0 < int(limit) < number:
        return Threads(int(limit), f"{reason}, OMP_NUM_THREADS {limit}")
    return Threads(number, reason)


def _counted(products: int) -> str:
    return f"{products / 1e6:,.1f}M" if products < 10e6 else f"{products / 1e6:,.0f}M"


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
LARGE, KEPT = 2**25, 2**28


def keep_memory() -> None:
    """Let the C library keep up to 256 MB that tensors have freed for the next ones. Left alone it hands memory back to
    the system and takes it again, a page at a time: with PPO on images a tenth of a run's time. Nothing where that
    library is not glibc."""
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_MMAP_THRESHOLD, LARGE)
        libc.mallopt(M_TRIM_THRESHOLD, KEPT)
        _use_large_pages()


@cache
def _use_large_pages() -> None:
    """Ask for pages of 2 MB where the C library takes its next memory from. A processor that goes through weights,
    gradients and moments at every step knows the places of a thousand or two pages at a time, and small ones are many
    more. None of that memory is used yet: a page is once it is written to."""
    libc = ctypes.CDLL("libc.so.6")
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    size = LARGE - mmap.PAGESIZE  # more is not taken from there
    blocks = [block for _ in range(KEPT // LARGE - 1) if (block := libc.malloc(size))]  # of all, some would go back
    if blocks and max(blocks) - min(blocks) < KEPT:  # they lie side by side
        begin = -(-min(blocks) // mmap.PAGESIZE) * mmap.PAGESIZE
        libc.madvise(begin, max(blocks) + size - begin, mmap.MADV_HUGEPAGE)
    for block in blocks:
        libc.free(block)


FOR_A_THREAD = 2**16
"""Numbers that torch hands to a thread of its own."""


def place(name: str, threads: int, products: int, before: int = 0) -> Placement:
    """Choose device and threads (0: by the network) and tell torch. `before`: the threads of the run that goes on.
    ValueError: there is no such device."""
    import torch

    from agents.precision import subnormal_flushed

    keep_memory()
    device = choose_device(name, products)
    number = choose_threads(threads, products, before).number
    torch.set_num_threads(number)
    with subnormal_flushed():  # so that torch's other threads are, which start with what is large enough for all
        torch.zeros(number * FOR_A_THREAD).add_(1.0)
    return Placement(device, placement_in_words(name, threads, products, device, before))


def placement_in_words(name: str, threads: int, products: int, device: "torch.device", before: int = 0) -> str:
    """Device and threads, each with the reason: "cpu (as asked), 2 torch threads (as asked)"."""
    if name != "auto":
        why = "as asked"
    elif products < GPU_FROM:
        why = f"auto: a batch of {_counted(products)} multiply-adds is slower on a GPU"
    else:
        sees = f"a batch of {_counted(products)} multiply-adds" if device.type == "cuda" else "torch sees no GPU here"
        why = f"auto: {sees}"
    chosen = choose_threads(threads, products, before)
    return f"{device} ({why}), {chosen.number} torch thread{'s' * (chosen.number > 1)} ({chosen.reason})"
