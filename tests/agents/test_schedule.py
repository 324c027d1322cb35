"""Schedules: their one spelling, their values by hand, and what they depend on."""

import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from agents import build_agent
from agents.config import LearningRate
from agents.ppo_config import PPOConfig
from agents.randomness import Generators
from agents.schedule import CONSTANT, RUN, TASK, Over, Schedule, in_steps, schedules_of
from agents.transitions import Spaces
from agents.value_config import DQNConfig, Epsilon

SPELLINGS = {
    "constant": ["constant", "Constant"],
    "run": ["run", "RUN", "1-of-run", "100%-of-run", "1.0 of run"],
    "task": ["task", "1-of-task"],
    "0.1-of-run": ["0.1-of-run", ".1-of-run", "10%-of-run", "10% of run", "0.10-of-run", "1e-1-of-run"],
    "0.25-of-task": ["0.25-of-task", "25% of task"],
    "250000": ["250000", "250_000", "2.5e5", "250000 steps", "250000-steps", 250_000],
    "8000-steps-of-task": ["8000-steps-of-task", "8e3 steps of task", "8_000-steps-of-task"],
}


@pytest.mark.parametrize("word", SPELLINGS)
def test_a_time_has_one_spelling(word: str) -> None:
    for written in SPELLINGS[word]:
        assert Over(written) == word and Over(written).in_steps(100, 10) == Over(word).in_steps(100, 10)
    for made in (copy.deepcopy(Over(word)), pickle.loads(pickle.dumps(Over(word)))):
        assert made == word and made.in_steps(100, 10) == Over(word).in_steps(100, 10)


@pytest.mark.parametrize(
    "word",
    [
        *("", "0", "-5", "1.5", "forever", "inf", "steps", "9" * 40, "1-of-week"),
        *("8000-steps-of-run", "0-steps-of-task", "1.5-steps-of-task"),
        *("0-of-run", "1.1-of-run", "101%-of-task", "nan-of-run", "x-of-run", "-of-run"),
    ],
)
def test_what_is_no_time_is_refused(word: str) -> None:
    with pytest.raises(ValueError, match=r"must be constant, run, task, a share of either \(0.1-of-run"):
        Over(word)


@pytest.mark.parametrize(
    ("word", "run", "task", "steps"),
    [
        ("constant", 1000, 0, "constant"),
        ("run", 1000, 0, "1000"),
        ("run", 1000, 100, "1000"),
        ("0.29-of-run", 100, 0, "29"),  # as a product of floats it would be 28.999...
        ("0.1-of-run", 5, 0, "1"),
        ("task", 1000, 200, "200-steps-of-task"),
        ("0.1-of-task", 1000, 255, "25-steps-of-task"),
        ("0.1-of-task", 1000, 0, "100-steps-of-task"),  # the run is one task
        ("70", 1000, 200, "70"),
        ("70-steps-of-task", 1000, 200, "70-steps-of-task"),
    ],
)
def test_a_time_in_steps(word: str, run: int, task: int, steps: str) -> None:
    assert Over(word).in_steps(run, task) == steps


def test_values_by_hand() -> None:
    falling = Schedule(1.0, 0.2, 40)
    assert [falling.value(since) for since in (-5, 0, 10, 30, 40, 99)] == pytest.approx([1, 1, 0.8, 0.4, 0.2, 0.2])
    assert falling.final == 0.2 and falling.moves and falling.once
    constant = Schedule(0.3, 0.1)
    assert (constant.value(0), constant.value(10**9), constant.final) == (0.3, 0.3, 0.3)
    assert not constant.moves and not constant.once
    level = Schedule(0.3, 0.3, 7)
    assert level.value(3) == 0.3 and not level.moves


VALUES = st.floats(-1e3, 1e3)


@given(VALUES, VALUES, st.integers(1, 10**7), st.integers(-(10**7), 3 * 10**7))
def test_it_is_the_line_between_its_ends(start: float, end: float, duration: int, step: int) -> None:
    value = Schedule(start, end, duration).value(step)
    if step <= 0:
        expected = start
    elif step >= duration:
        expected = end
    else:
        expected = (start * (duration - step) + end * step) / duration
    assert value == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert min(start, end) - 1e-9 <= value <= max(start, end) + 1e-9


@given(VALUES, VALUES, st.integers(0, 100))
def test_a_constant_one_is_its_start(start: float, end: float, step: int) -> None:
    assert Schedule(start, end).value(step) == start


def test_when_it_begins() -> None:
    once, anew = Schedule(1.0, 0.0, 40), Schedule(1.0, 0.0, "40-steps-of-task")
    assert once.since(500, 300) == 500 and anew.since(500, 300) == 200
    assert once.since(500, 0, 100) == 400 and anew.since(500, 0, 100) == 400  # learning_starts within the first task
    assert anew.since(500, 450, 100) == 50
    assert once.once and not anew.once and anew.moves


@pytest.mark.parametrize("over", [RUN, TASK, Over("0.1-of-run")])
def test_a_time_that_only_a_run_knows_has_no_value_before_it_is_counted(over: Over) -> None:
    config = DQNConfig(epsilon=Epsilon(over=over), buffer_size=100)
    with pytest.raises(ValueError, match="must be steps without a run"):
        build_agent(config, Spaces((3,), np.dtype(np.float32), "discrete", 2), 1, Generators(0), torch.device("cpu"))
    counted = in_steps(config, 1000, 100)
    assert counted.epsilon.value(10**6) == pytest.approx(0.01) and counted.learning_rate == LearningRate()


def test_what_depends_on_the_length_of_a_run() -> None:
    for over, without_tasks, with_tasks in (
        ("run", True, True),
        ("0.5-of-run", True, True),
        ("task", True, False),
        ("0.1-of-task", True, False),
        ("500", False, False),
        ("500-steps-of-task", False, False),
        ("constant", False, False),
    ):
        schedule = Schedule(1.0, 0.0, over)
        assert (schedule.stretched(0), schedule.stretched(100)) == (without_tasks, with_tasks), over
    assert not Schedule(0.1, 0.1, RUN).stretched(0)


def test_a_number_is_a_constant_learning_rate_and_schedules_are_found_by_name() -> None:
    assert PPOConfig(learning_rate=0.5).learning_rate == LearningRate(0.5, over=CONSTANT)
    assert set(schedules_of(DQNConfig())) == {"learning_rate", "epsilon"}
    assert set(schedules_of(PPOConfig())) == {"learning_rate"}
