"""Supervised problems that show plasticity lost without a world, as runs that compare.py reads.

A study whose `base` names a `problem` is made of them: `python -m experiments.supervised STUDY.yaml` makes its runs, or
what is left of them.
"""
