"""Runs beside each other on this machine, where each is of one thread. Imports no torch."""

import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context


def of_one_thread(count: int) -> ProcessPoolExecutor:
    """So many processes, which share nothing with this one."""
    return ProcessPoolExecutor(count, get_context("spawn"), _alone)


def _alone() -> None:
    import torch

    os.environ["OMP_WAIT_POLICY"] = "passive"
    torch.set_num_threads(1)
