"""Runs beside each other on this machine, where each is of one thread. Imports no torch."""

import os
import signal
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context, parent_process
from threading import Thread

PATIENCE = 15.0
"""Seconds in which a run that is asked to stop has saved."""


def of_one_thread(count: int) -> ProcessPoolExecutor:
    """So many processes, which share nothing with this one, and end when it does."""
    return ProcessPoolExecutor(count, get_context("spawn"), _alone)


def _alone() -> None:
    Thread(target=_end_with_parent, daemon=True).start()
    import torch

    os.environ["OMP_WAIT_POLICY"] = "passive"
    torch.set_num_threads(1)


def _end_with_parent() -> None:
    """Whoever gives out work may be killed, and nobody else would ever tell that none is left."""
    parent_process().join()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(PATIENCE)
    os._exit(1)
