"""What is meant to keep plasticity: base.py says what an intervention is, surgery.py edits weights for them."""

from agents.interventions.base import Forward, Intervention, Owned, Slices, Slots, Units
from agents.interventions.surgery import Surgery, initialise_adam

__all__ = ["Forward", "Intervention", "Owned", "Slices", "Slots", "Surgery", "Units", "initialise_adam"]
