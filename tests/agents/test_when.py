"""The times at which something is done now and then: how they are written, and when they are due."""

import copy
import pickle
import re
import subprocess
import sys

import numpy as np
import pytest

from agents.clock import Clock
from agents.interventions import ReDo
from agents.when import When

SPELLINGS = {
    "every 1000 gradient steps": [
        "every-1000-gradient-steps",
        "every 1e3 gradient steps",
        "every_1_000_gradient_steps",
    ],
    "every 20000 steps": ["every-20_000-steps", " Every 2e4  steps ", "every 20000 step"],
    "every step": ["every 1 steps", "every-1-step", "every steps"],
    "every gradient step": ["every-gradient-step", "every 1 gradient steps", "every_gradient_step"],
    "at step 100000": ["at-step-1e5", "at step 100_000", "at_step_100000"],
    "at gradient step 7": ["at-gradient-step-7", "at_gradient_step_7.0"],
    "at task changes": ["at-task-changes", "at a task change", "at_task_change", "AT TASK CHANGES"],
    "at target syncs": ["at-target-syncs", "at target sync", "at_a_target_sync"],
}


@pytest.mark.parametrize("written", SPELLINGS)
def test_all_spellings_of_a_time_are_one(written):
    for spelling in (written, *SPELLINGS[written]):
        assert When(spelling) == written and str(When(spelling)) == written and hash(When(spelling)) == hash(written)
        assert vars(When(spelling)) == vars(When(written))


def test_what_is_written_is_what_is_read():
    rng = np.random.default_rng(0)
    for _ in range(2000):
        gradient, repeats = rng.random(2) < 0.5
        number = int(10 ** rng.uniform(0, 11.99))
        unit = "gradient step" if gradient else "step"
        said = f"every {number} {unit}s" if repeats else f"at {unit} {number}"
        spelled = said.replace(" ", rng.choice([" ", "-", "_"]))
        when = When(spelled.replace(str(number), f"{number:_}") if rng.random() < 0.5 else spelled)
        assert (when.moment, when.number, when.repeats) == ("gradient step", number, repeats)
        assert when.counts == f"{unit}s"
        for other in (When(when), When(str(when)), copy.deepcopy(when), pickle.loads(pickle.dumps(when))):
            assert other == when and type(other) is When and vars(other) == vars(when)


@pytest.mark.parametrize(
    "written",
    [
        *("", "never", "1000", "every", "every 1000", "1000 gradient steps", "every ten steps", "every 1.5 steps"),
        *(
            "every 0 steps",
            "every -5 steps",
            "every--5-steps",
            "every 1e12 steps",
            "every 1e-3 steps",
            "every nan steps",
        ),
        *(
            "at steps 5",
            "at step",
            "at gradient step 0",
            "at every task change",
            "at 5 task changes",
            "at target syncs 3",
        ),
        *("every gradient steps 5", "every 10 frames", "every 5 steps or so", "every 5 task changes"),
        *(None, 1000, 5.0, True, ("every step",), "every 10 steps\n5"),
    ],
)
def test_what_is_no_time_is_refused_in_one_sentence(written):
    with pytest.raises(ValueError, match=f"^{re.escape(repr(written))}: must be every N gradient steps, every N steps"):
        When(written)
    with pytest.raises(ValueError, match=r"^redo\.when = .*: must be every N gradient steps, every N steps, at step N"):
        ReDo(when=written)


def due(written, times):
    """At which of the (gradient step, steps), each a gradient step, it is time."""
    when, before, found = When(written), None, []
    for gradient_step, steps in times:
        if when.due(Clock(steps, gradient_step), before):
            found.append((gradient_step, steps))
        before = steps
    return found


JUMPING = [(1, 8), (2, 8), (3, 16), (4, 16), (5, 24), (6, 45), (7, 45), (8, 50), (9, 50)]
"""PPO: many gradient steps at one count of steps; 8 environments: steps jump over multiples, even over two."""


def test_steps_are_due_once_at_the_first_gradient_step_at_or_beyond_each_multiple():
    assert due("every 10 steps", JUMPING) == [(3, 16), (5, 24), (6, 45), (8, 50)]
    assert due("every 16 steps", JUMPING) == [(3, 16), (6, 45), (8, 50)]
    assert due("every step", JUMPING) == [(1, 8), (3, 16), (5, 24), (6, 45), (8, 50)]
    times = [(1, 19_999), (2, 20_000), (3, 20_001), (4, 40_000)]
    assert due("every 20000 steps", times) == [(2, 20_000), (4, 40_000)]


def test_gradient_steps_are_due_one_by_one():
    assert due("every 4 gradient steps", JUMPING) == [(4, 16), (8, 50)]
    assert due("every gradient step", JUMPING) == JUMPING
    assert due("at gradient step 7", JUMPING) == [(7, 45)]


def test_what_passed_before_learning_began_is_no_multiple_to_make_up_for():
    assert due("every 20 steps", [(1, 42), (2, 59), (3, 60)]) == [(3, 60)]
    assert due("every 20 steps", [(1, 60), (2, 61), (3, 80)]) == [(1, 60), (3, 80)]
    assert due("every 20000 steps", [(1, 20_004), (2, 40_000)]) == [(2, 40_000)]


def test_at_a_step_is_once_at_or_beyond_it():
    assert due("at step 16", JUMPING) == [(3, 16)]
    assert due("at step 25", JUMPING) == [(6, 45)]
    assert due("at step 5", JUMPING) == [(1, 8)]  # before learning began: at the first gradient step
    assert due("at step 51", JUMPING) == []
    assert due("at step 50", [(1, 50), (2, 50), (3, 100)]) == [(1, 50)]


def test_with_several_environments_each_multiple_is_hit_once():
    for environments in (1, 3, 8, 64):
        times = [(tick, tick * environments) for tick in range(1, 2000)]
        found = [steps for _, steps in due("every 100 steps", times)]
        multiples = range(100, times[-1][1] + 1, 100)
        slow = sorted({-(-multiple // environments) * environments for multiple in multiples})
        assert found == [steps for steps in slow if steps <= times[-1][1]]


def test_events_are_never_due_after_a_gradient_step():
    for written in ("at task changes", "at target syncs"):
        assert due(written, JUMPING) == [] and When(written).moment == written.removeprefix("at ").removesuffix("s")


def test_it_is_torch_free():
    code = "import sys, agents.when; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
