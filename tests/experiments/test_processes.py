"""Processes that runs are made in."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]
WORKS = """
import time
from experiments.processes import of_one_thread
pool = of_one_thread(2)
pool.submit(time.sleep, 600), pool.submit(time.sleep, 0).result()
print(*pool._processes, flush=True)
time.sleep(600)
"""


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_they_end_with_the_process_that_made_them_busy_or_not(number):
    with subprocess.Popen([sys.executable, "-c", WORKS], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        workers = [psutil.Process(int(pid)) for pid in process.stdout.readline().split()]
        assert len(workers) == 2 and all(worker.is_running() for worker in workers)
        os.kill(process.pid, number)
        process.wait()
        end = time.monotonic() + 60
        while any(worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE for worker in workers):
            assert time.monotonic() < end
            time.sleep(0.1)
