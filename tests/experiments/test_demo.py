"""make demo in small: its arms are made, and made once; what it says can be typed."""

import re

import pytest

from experiments import demo
from experiments.cli import parse_train
from experiments.demo_runs import made
from experiments.reproduce import studies

TINY = demo.WORLD.replace(f"--steps {demo.STEPS}", "--steps 400").replace(f"period {demo.PERIOD}", "period 200")


@pytest.mark.long
def test_the_arms_are_runs_that_are_made_once(tmp_path, capfd):
    arms = dict(list(demo.ARMS.items())[:2])
    assert made(arms, TINY, 1, tmp_path) == 0
    told = capfd.readouterr().out
    for arm in arms:
        assert re.search(rf"{arm}, seed 1 +\d+ -> \d+", told), told
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/metrics.jsonl")}
    assert len(stamps) == 2
    assert made(arms, TINY, 1, tmp_path) == 0
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/metrics.jsonl")} == stamps


def test_every_arm_is_of_its_own_settings_and_the_full_study_is_there():
    names = {parse_train([*demo.WORLD.split(), *flags.split()]).run_name for flags in demo.ARMS.values()}
    assert len(names) == len(demo.ARMS) == 3 and demo.STEPS // demo.PERIOD >= 4
    assert demo.FULL.split()[-1] in studies()
