"""Every two interventions either refuse each other by name or work together: both effects hold, in either order."""

import itertools
import re

import pytest

from agents.interventions import NAMES
from agents.interventions.lifecycle import check_interventions
from tests.agents.interventions.effects import assert_effects
from tests.agents.interventions.effects.runs import AGENTS, KINDS
from tests.agents.interventions.effects.settings import NOT_INJECTED, REFUSED, combinations, fits, setting, together

PAIRS = combinations(2)


def on_kinds(pairs, shift=0):
    """Each with a kind of agent, in turn, so that every kind sees many."""
    for number, names in enumerate(pairs):
        kinds = [kind for kind in KINDS if fits(kind, names)]
        yield (kinds[(number + shift) % len(kinds)], *names)


# the other order of every second pair, on another kind
CASES = [*on_kinds(PAIRS), *on_kinds([pair[::-1] for pair in PAIRS[1::2]], shift=2)]


@pytest.mark.parametrize("names", itertools.combinations(NAMES, 2), ids="+".join)
def test_refused_by_both_names_or_accepted_in_either_order(names):
    kinds = [kind for kind in KINDS if fits(kind, names)]
    for kind, order in itertools.product(kinds, (names, names[::-1])):
        if frozenset(names) in REFUSED:
            with pytest.raises(ValueError, match=f"interventions: {order[0]} and {order[1]} cannot work together"):
                check_interventions([setting(name) for name in order], AGENTS[kind][0])
        else:
            check_interventions(together(order), AGENTS[kind][0])


@pytest.mark.parametrize("other", ["l2", "weight_decay"])
def test_refused_for_a_parameter(other):
    dohare = setting("shrink_perturb", form="dohare", when=None, shrink=None)
    for order in ((dohare, setting(other)), (setting(other), dohare)):
        with pytest.raises(ValueError, match=f"shrink_perturb.form = 'dohare'.*{re.escape(other)}"):
            check_interventions(order, AGENTS["dqn"][0])


@pytest.mark.parametrize("other", NOT_INJECTED)
def test_refused_among_the_injected_layers(other):
    for order in itertools.permutations([setting("plasticity_injection"), setting(other)]):
        with pytest.raises(
            ValueError, match=f"plasticity_injection and {other} cannot work together, but with last = 1"
        ):
            check_interventions(order, AGENTS["dqn"][0])


@pytest.mark.parametrize("case", CASES, ids=" ".join)
@pytest.mark.long
def test_both_effects(case):
    kind, *names = case
    assert_effects(kind, names)
