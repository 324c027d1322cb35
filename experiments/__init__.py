"""Runs: settings, seeds, loop, run directory, checkpoints, logging, evaluation."""
