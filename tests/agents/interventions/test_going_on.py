"""An agent that takes over from a checkpoint makes the same next gradient steps, bit for bit: beside every intervention
alone, and beside two."""

import random

import pytest

from agents.interventions import NAMES
from tests.agents.helpers import same_tree
from tests.agents.interventions.effects.runs import KINDS, begin, learn, take_over
from tests.agents.interventions.effects.settings import BIRTH, combinations, fits, together

ALONE = [
    (kind, name)
    for number, name in enumerate(NAMES)
    for kind in (("dqn", "ppo") if number % 2 else ("c51", "ppo with two torsos"))
    if fits(kind, [name])
]
PAIRS = [(kind, *names) for names in combinations(2) for kind in KINDS if fits(kind, names)]


@pytest.mark.parametrize("case", [*ALONE, *random.Random(0).sample(PAIRS, 60)], ids=" ".join)
def test_goes_on(case):
    kind, *names = case
    at, on = (20, 30) if kind.startswith("ppo") else (BIRTH, 25)  # before an injection's birth, and just after
    members = together(names, cbp={"maturity": 28})  # so that utilities count that were measured before
    first = begin(kind, members)
    learn(*first, at)
    second = take_over(kind, members, first)
    for agent, world in (first, second):
        learn(agent, world, on)
    assert same_tree(first[0].state_dict(), second[0].state_dict())
    assert first[0].clock.gradient_steps == at + on
