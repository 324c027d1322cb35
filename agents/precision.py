"""How exact float32 arithmetic is: one policy for the whole process."""

import sys

import torch

from agents.config import PRECISIONS, require


def set_precision(precision: str, device: torch.device) -> None:
    """Tell torch how to compute with float32 on `device` from now on, in the WHOLE process: its switches are global.

    "fp32": true float32, products of matrices and convolutions on CUDA included. (Torch's own default rounds the inputs
    of cuDNN's convolutions to TF32's 10 bits of mantissa.) "tf32": both may use TF32, where the GPU has it; a CPU has
    none and computes in float32. "bf16": what autocast leaves in float32 is true float32. Building an agent calls this;
    whoever sets torch's switches afterwards has the last word. ValueError for another name.
    """
    require(precision in PRECISIONS, "precision", precision, ", ".join(PRECISIONS))
    tf32 = precision == "tf32" and device.type == "cuda"
    backends = torch.backends
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    backends.cudnn.allow_tf32 = tf32
    # The newer switches, one a kind of operation. Set after the older ones they agree with them, so that either can be
    # read; the older ones alone leave what somebody else may have set through the newer.
    for part in (backends.cuda.matmul, _part("cudnn", "conv"), _part("cudnn", "rnn")):
        _set(part, "tf32" if tf32 else "ieee")
    for part in map(_part, ["mkldnn"] * 3, ("matmul", "conv", "rnn")):
        _set(part, "ieee")  # "high" alone would allow the CPU to round


class subnormal_flushed:  # read as a phrase, as torch.no_grad is
    """Within, this thread's CPU takes numbers below the smallest normal one (float32: 1.2e-38) for zero.

    Where a unit dies, its gradient is zero from then on, and Adam's first moments of its weights shrink by beta1 a step
    until they are subnormal, where rounding keeps them for good. A CPU computes with such numbers a hundred times more
    slowly: with a fifth of the moments there, an update of an MLP took twice its time. No weight can tell.

    Threads that are started within do so for good; outside, the process computes as everybody expects.
    """

    smallest = sys.float_info.min

    def __enter__(self) -> None:
        self.already = self.smallest / 2 == 0.0
        if not self.already:
            torch.set_flush_denormal(True)

    def __exit__(self, *error: object) -> None:
        if not self.already:
            torch.set_flush_denormal(False)


def _part(backend: str, name: str) -> object:
    return getattr(getattr(torch.backends, backend), name, None)


def _set(part: object, precision: str) -> None:
    if hasattr(part, "fp32_precision"):  # since torch 2.9
        part.fp32_precision = precision
