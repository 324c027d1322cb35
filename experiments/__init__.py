"""Runs: settings, seeds, loop, run directory, checkpoints, logging, evaluation."""

import os

# For every command, since all import this before torch, whose OpenMP reads it once: threads that spin while they wait
# slow a shared machine down many times over.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
