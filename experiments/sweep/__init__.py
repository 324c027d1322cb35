"""Sweeps: the trials of a study, made on this machine or on a cluster. `study.py` says what a study is.

from pathlib import Path
from experiments.sweep.study import read_study, study_of

study = read_study(Path("study.yaml"))          # or study_of({"question": ..., "base": {...}, "seeds": 5}, "mine")
"""
