"""Resets of Adam's state: of all of it (Asadi23) or of its step alone (Adam-Rel)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn

from agents.clock import Clock
from agents.config import AgentConfig, require
from agents.interventions.base import Intervention
from agents.interventions.surgery import Surgery
from agents.kinds import kind_of
from agents.randomness import Generators
from agents.when import When


@dataclass(eq=False)
class OptimizerReset(Intervention):
    """Forgets Adam's state for the network's parameters in its part whenever the problem is a new one; weights stay.

    Asadi et al. 2023 (arXiv 2306.17833) set moments and step to zero at each copy into the target network. Adam-Rel
    (Ellis et al. 2024, arXiv 2412.17113) sets the step alone to zero and keeps the moments. Moments alone, under an old
    step, let a steady gradient move a weight by up to 6.57 learning rates (betas .9, .999). The state of auxiliary
    heads of other interventions stays.
    """

    name = "optimizer_reset"
    is_surgery = True

    when: When = When("at target syncs")
    """Of the resets (Asadi23: at each target copy; Adam-Rel's PPO: at the start of each update phase)."""
    what: Literal["all", "moments", "step"] = "all"
    """all: moments and step (Asadi23); moments: the step stays; step: the moments stay (Adam-Rel)."""

    def __post_init__(self) -> None:
        self.require(self.when != "every gradient step", "when", "rarer, or Adam would never have a state")

    def check(self, agent: AgentConfig, others: Sequence[Intervention]) -> None:
        """Refuse a target copy at every gradient step."""
        if self.when.moment == "target sync" and kind_of(agent).target_network:
            allowed = "> 1 beside optimizer_reset.when = at target syncs, or Adam would never have a state"
            require(agent.target_period > 1, "target_period", agent.target_period, allowed)

    def attach(self, networks: Mapping[str, nn.Module], generators: Generators) -> None:
        """Choose the parameters. ValueError: there are none."""
        named = networks["online"].named_parameters()
        self._parameters = [parameter for name, parameter in named if self.within(name)]  # what may learn later too
        if not any(parameter.requires_grad for parameter in self._parameters):
            raise ValueError(f"optimizer_reset: no parameter to act on with only = {self.only!r}")

    def intervene(self, surgery: Surgery, clock: Clock) -> None:
        if self.what in ("all", "moments"):
            surgery.zero_moments(self._parameters)
        if self.what in ("all", "step"):
            surgery.zero_step(self._parameters)
        surgery.note("forgotten", self.when.moment.replace(" ", "_"))
