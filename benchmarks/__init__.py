"""What things cost, measured; each module is a command: `python -m benchmarks.NAME`."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch, as in every command
