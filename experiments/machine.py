"""What a run uses of the machine: its device and its threads, chosen by its network where they are not given.

A network of dense layers learns in updates so small that handing them to a GPU, or to a second thread, costs more than
it saves; convolutions gain from both. Importing this module brings no torch.
"""

import ctypes
import os
import re
from argparse import ArgumentTypeError
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
A_FEW_THREADS = 4
"""Of a CNN; more are seldom worth their cores in updates of this size."""
CUDA_ELSEWHERE = ("gpu", "gpus", "nvidia", "rocm", "hip", "amd", "cuda0", "gpu0")
"""What others write for cuda."""


class Placement(NamedTuple):
    """Where a network runs."""

    device: "torch.device"
    words: str
    """Device and threads, each with the reason, for the line that a run begins with."""


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


def may_be_a_gpu(name: str, convolutional: bool) -> bool:
    """Whether device `name` can turn out to be a GPU for such a network, as far as can be known without torch."""
    return name.startswith("cuda") or (name == "auto" and convolutional and has_gpu_driver())


def choose_device(name: str, convolutional: bool) -> "torch.device":
    """The torch device that `name` means here: auto is a GPU where there is one and the network is `convolutional`.

    A GPU with a number becomes torch's current one. ValueError: there is no such device.
    """
    import torch

    check_device(name)
    if name == "cpu" or (name == "auto" and not (convolutional and torch.cuda.is_available())):
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


def choose_threads(asked: int, convolutional: bool) -> int:
    """Torch's threads: those `asked` for; else 1 for dense layers alone, and up to 4 of the usable cores for
    convolutions, within OMP_NUM_THREADS where that is set."""
    if asked:
        return asked
    if not convolutional:
        return 1
    limit = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    few = min(A_FEW_THREADS, usable_cores())
    return min(few, int(limit)) if limit.isdecimal() and int(limit) else few


def place(name: str, threads: int, convolutional: bool) -> Placement:
    """Choose device and threads (0: by the network) and tell torch. ValueError: there is no such device."""
    import torch

    device, number = choose_device(name, convolutional), choose_threads(threads, convolutional)
    torch.set_num_threads(number)
    return Placement(device, placement_in_words(name, threads, convolutional, device))


def placement_in_words(name: str, threads: int, convolutional: bool, device: "torch.device") -> str:
    """Device and threads, each with the reason: "cpu (auto: an MLP), 1 thread (an MLP is slower with more)"."""
    if name != "auto":
        why = "as asked"
    elif not convolutional:
        why = "auto: an MLP's small updates are slower on a GPU"
    else:
        why = "auto: a CNN" if device.type == "cuda" else "auto: torch sees no GPU here"
    number = choose_threads(threads, convolutional)
    if threads:
        reason = "as asked"
    elif not convolutional:
        reason = "an MLP is slower with more"
    else:
        reason = f"a CNN, {usable_cores()} usable cores"
        if number < min(A_FEW_THREADS, usable_cores()):
            reason += f", OMP_NUM_THREADS {os.environ['OMP_NUM_THREADS']}"
    return f"{device} ({why}), {number} torch thread{'s' * (number > 1)} ({reason})"
