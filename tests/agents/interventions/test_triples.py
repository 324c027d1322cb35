"""Every three interventions of which no two refuse each other work together. A sample runs with the other tests, all of
them with `make exhaustive`."""

import itertools
import random

import pytest

from agents.interventions import NAMES
from tests.agents.interventions.effects import assert_effects
from tests.agents.interventions.effects.runs import KINDS
from tests.agents.interventions.effects.settings import combinations, fits

TRIPLES = combinations(3)
CASES = [(kind, *names) for names in TRIPLES for kind in KINDS if fits(kind, names)]


@pytest.mark.parametrize("case", random.Random(0).sample(CASES, 40), ids=" ".join)
@pytest.mark.long
def test_all_three_effects(case):
    kind, *names = case
    assert_effects(kind, random.Random(" ".join(case)).sample(names, 3))


@pytest.mark.exhaustive
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("first", [name for name in NAMES if any(triple[0] == name for triple in TRIPLES)])
def test_every_triple(first, kind):
    """In the order of the names; all that fail are told."""
    failed = {}
    for names in TRIPLES:
        if names[0] == first and fits(kind, names):
            try:
                assert_effects(kind, names)
            except Exception as error:
                failed["+".join(names)] = f"{type(error).__name__}: {error}"
    assert not failed, "\n".join(itertools.starmap("{}: {}".format, failed.items()))
