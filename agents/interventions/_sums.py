"""Sums of |x| over rows: what continual backprop asks of hidden values and weights at every gradient step.

Right after an update has emptied a CPU's caches, torch's operations for small layers take ten times as long as the
additions in them; in large ones |x| is written and read again before it is summed. So the sums are one call, compiled
from _sums.c by a C compiler where there is one (CC of the environment, else cc, gcc or clang), once in a process, in a
third of a second. Torch does the same without it, and sums then differ in their last bits. An empty CC leaves the
compiler out.
"""

import ctypes
import functools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

MANY = 2**21
"""Numbers that are left to torch where it has several threads for them."""
PIECE = 2**18
"""Numbers of which torch takes |x| at a time on a CPU, so that they stay in the cache until they are summed."""


class RowSums:
    """|x| summed over the rows of matrices [height, columns], one for each of `heights`, on `device`.

    The last `weights` of them change in place: where they stay in their memory they need not be looked at again.
    """

    def __init__(self, heights: Sequence[int], columns: int, device: torch.device, weights: int = 0) -> None:
        self._made_of = (heights, columns, device, weights)
        self._compiled, self._on_host = _compiled_for(sum(heights) * columns, device), device.type == "cpu"
        self._heights, self._columns = (ctypes.c_ssize_t * len(heights))(*heights), columns
        self._fresh = len(heights) - weights
        numbers = [height * columns for height in heights]
        self._numbers_fresh, self._numbers_of_weights = numbers[: self._fresh], numbers[self._fresh :]
        self._seen: list[int] = []  # addresses of weights that are as expected
        self._addresses = (ctypes.c_void_p * len(heights))()

    def __reduce__(self) -> tuple:
        return RowSums, self._made_of  # a copy: neither addresses nor functions can be

    def __call__(self, matrices: Sequence[Tensor], sums: Tensor) -> None:
        """Put the sums of `matrices`, of whatever precision, into `sums` [matrices, columns], contiguous float32."""
        if self._compiled and all(map(_as_expected, matrices, self._numbers_fresh)):
            self._addresses[:] = addresses = [matrix.data_ptr() for matrix in matrices]
            if addresses[self._fresh :] != self._seen:
                self._seen = []
                if all(map(_as_expected, matrices[self._fresh :], self._numbers_of_weights)):
                    self._seen = addresses[self._fresh :]
            if len(self._seen) == len(self._numbers_of_weights) and all(addresses):
                self._compiled(len(matrices), self._addresses, self._heights, self._columns, sums.data_ptr())
                return
        with torch.no_grad():
            self._by_torch(matrices, sums)

    def _by_torch(self, matrices: Sequence[Tensor], sums: Tensor) -> None:
        if self._on_host:
            found = [_over_rows(matrix) for matrix in matrices]
        else:  # in few operations
            found = [sizes.sum(0, dtype=torch.float32) for sizes in torch._foreach_abs(matrices)]
        sums.copy_(torch.stack(found))


def _as_expected(matrix: Tensor, numbers: int) -> bool:
    """Whether that many float32 lie one after another in a CPU's memory, as the C function takes for granted (where
    there is none, of a fake tensor say, the address is 0)."""
    return matrix.dtype is torch.float32 and matrix.is_cpu and matrix.is_contiguous() and matrix.numel() == numbers


@torch.no_grad()
def absolute_sums(values: Tensor, by_position: bool = False) -> Tensor:
    """[batch, channels, positions...]: |values| summed over the batch, [channels, positions], or over positions as
    well, [channels, 1]; float32. Sums along memory: other orders take up to ten times as long on a CPU."""
    channels, last = values.shape[1], values.movedim(1, -1)
    if last.is_contiguous():  # a matrix, or channels_last
        return _over_rows(last.flatten(1) if by_position else last.flatten(0, -2)).view(-1, channels).t()
    found = _over_rows(values.flatten(1)).view(channels, -1)
    return found if by_position else found.sum(1, keepdim=True)


def _over_rows(matrix: Tensor) -> Tensor:
    """|matrix| [rows, columns] summed over its rows, float32 [columns]."""
    function = _compiled_for(matrix.numel(), matrix.device)
    if function and _as_expected(matrix, matrix.numel()) and matrix.data_ptr():
        rows, columns = matrix.shape
        sums = matrix.new_empty(columns)
        address, height = ctypes.c_void_p(matrix.data_ptr()), ctypes.c_ssize_t(rows)
        function(1, ctypes.byref(address), ctypes.byref(height), columns, sums.data_ptr())
        return sums
    if matrix.numel() <= PIECE or matrix.device.type != "cpu":
        return matrix.abs().sum(0, dtype=torch.float32)
    pieces = matrix.split(max(1, PIECE // matrix.shape[1]))  # a large temporary's fresh memory would cost the most
    return torch.stack([piece.abs().sum(0, dtype=torch.float32) for piece in pieces]).sum(0)


def _compiled_for(numbers: int, device: torch.device) -> Callable[..., None] | None:
    if device.type != "cpu" or (numbers > MANY and torch.get_num_threads() > 1):
        return None
    return compiled()


@functools.cache
def compiled() -> Callable[..., None] | None:
    """The function in _sums.c; None where it cannot be compiled and loaded."""
    source, named = Path(__file__).with_suffix(".c"), os.environ.get("CC")
    for compiler in [["cc"], ["gcc"], ["clang"]] if named is None else [named.split()]:
        if not compiler or shutil.which(compiler[0]) is None:
            continue
        try:
            with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
                library = Path(folder) / "sums.so"
                command = [*compiler, "-O3", "-march=native", "-shared", "-fPIC", "-o", str(library), str(source)]
                subprocess.run(command, check=True, capture_output=True, timeout=60)
                function = ctypes.CDLL(str(library)).row_sums
        except (OSError, subprocess.SubprocessError, AttributeError):  # the last: no such function in the library
            continue
        function.restype = None
        pointer = ctypes.c_void_p
        function.argtypes = [ctypes.c_int, pointer, pointer, ctypes.c_ssize_t, pointer]
        return function
    return None
