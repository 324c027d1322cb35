"""Every intervention alone does what it says, on every kind of agent."""

import pytest

from agents.interventions import NAMES
from tests.agents.interventions.effects import EFFECTS, assert_effects
from tests.agents.interventions.effects.runs import AGENTS
from tests.agents.interventions.effects.settings import SETTINGS, fits

LATER = {"c51 on images": pytest.mark.long}
"""Its layers are those of DQN on images, its head that of C51."""
CASES = [pytest.param(kind, name, marks=LATER.get(kind, ())) for name in NAMES for kind in AGENTS if fits(kind, [name])]


def test_every_intervention_has_settings_and_an_effect():
    assert set(SETTINGS) == set(EFFECTS) == set(NAMES)


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_its_effect(kind, name):
    assert_effects(kind, [name])
