"""Every intervention alone does what it says, on every kind of agent."""

import pytest

from agents.interventions import NAMES
from tests.agents.interventions.effects import EFFECTS, assert_effects
from tests.agents.interventions.effects.runs import AGENTS
from tests.agents.interventions.effects.settings import SETTINGS, fits

CASES = [(kind, name) for name in NAMES for kind in AGENTS if fits(kind, [name])]


def test_every_intervention_has_settings_and_an_effect():
    assert set(SETTINGS) == set(EFFECTS) == set(NAMES)


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_its_effect(kind, name):
    assert_effects(kind, [name])
