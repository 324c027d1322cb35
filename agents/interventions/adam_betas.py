"""Other betas for Adam (Dohare24's tuned Adam)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from agents.interventions.base import Intervention


@dataclass(eq=False)
class AdamBetas(Intervention):
    """Sets Adam's betas for all parameters in its part, in place of the agent's `adam.betas`.

    Dohare24's tuned Adam has .99 twice. With unequal betas a gradient that grows k-fold after a long quiet phase moves
    a parameter further than the learning rate: for k to infinity by 6.57 learning rates at the twelfth step of
    (.9, .999), by 2.13 at the thirteenth of (.9, .99), and never by more than 1 where the betas are equal (from Adam's
    update rule).
    """

    name = "adam_betas"

    betas: tuple[float, float] = (0.99, 0.99)
    """Decay of the first and of the second moment per gradient step, each in [0, 1)."""

    def __post_init__(self) -> None:
        proper = len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas)
        self.require(proper, "betas", "two numbers in [0, 1)")

    def parameter_groups(self, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Set the betas; those of auxiliary heads too where nothing limits it to a part."""
        for group in groups:
            if self.only == "all" or ("name" in group and self.within(group["name"])):
                group["betas"] = tuple(self.betas)
        return groups
