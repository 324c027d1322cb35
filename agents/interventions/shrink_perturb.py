"""Shrink and perturb, in the three forms that were published under this name."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from agents.clock import Clock
from agents.interventions.base import Forward, Intervention
from agents.interventions.surgery import Surgery
from agents.randomness import Generators
from agents.when import When

NOW_AND_THEN, SOFTLY = When("at task changes"), When("every gradient step")
DEFAULTS = {
    ("ash", NOW_AND_THEN): {"shrink": 0.4, "perturb": 0.1, "noise": "fresh"},
    ("juliani", NOW_AND_THEN): {"shrink": 0.5, "perturb": 0.5, "noise": "fresh"},
    ("juliani", SOFTLY): {"shrink": 0.999999, "perturb": 1e-6, "noise": "fresh"},
    ("dohare", SOFTLY): {"perturb": 1e-5, "weight_decay": 1e-4, "noise": "gaussian"},
}
"""What each form's authors use, by form and time; the first time of a form is its default, and any time but every
gradient step counts as the first."""


@dataclass(eq=False)
class ShrinkAndPerturb(Intervention):
    """Weights are pulled towards zero and noise, drawn anew each time, is added; moments are kept.

    ash (Ash & Adams 2020, arXiv 1910.08475, section 4), at a task change: w <- shrink * w + p. In the equation p is
    N(0, sigma^2); the authors' code scales it by taking `perturb` times a freshly drawn network, "fresh", so that every
    tensor's noise has the scale of its own initialisation.

    juliani (Juliani24), at a task change, or softly after every gradient step:
    w <- shrink * w + perturb * (a freshly drawn network). (An orthogonal initializer makes each step slow.)

    dohare (Dohare24, Methods; lop/algos/rl/ppo.py): coupled L2, `weight_decay` of torch's Adam on every parameter, and
    N(0, perturb^2) added to every weight and bias, not to log_std, after every gradient step.

    In ash and juliani it is every trainable parameter, as in both authors' code: biases, log_std, and norms too. A
    fresh norm has gain 1 and bias 0, a fresh log_std its value at the start; under gaussian noise gains are shrunk
    towards 0 like the rest. The target network follows at its next copy.
    """

    name = "shrink_perturb"
    is_surgery = True
    form: Literal["ash", "juliani", "dohare"] = "ash"
    """Whose: Ash & Adams 2020, Juliani24 or Dohare24."""
    when: When | None = None
    """By default at task changes, in dohare every gradient step. ash is too strong for every gradient step and dohare
    made for it; juliani has both."""
    shrink: float | None = None
    """What is left of each weight, in [0, 1]; by default .4 in ash, .5 in juliani (.999999 at every step); dohare has
    none."""
    perturb: float | None = None
    """Size of the noise, >= 0: factor of the freshly drawn network, or the Gaussian's standard deviation. By default .1
    in ash, .5 in juliani (1e-6 at every step), 1e-5 in dohare; to be given with ash's gaussian noise."""
    noise: Literal["fresh", "gaussian"] | None = None
    """ash alone: fresh, a freshly drawn network (the authors' code), or gaussian, of one size for all parameters (the
    paper's equation); by default fresh."""
    weight_decay: float | None = None
    """dohare alone: the coupled L2 coefficient, >= 0; by default 1e-4."""

    def __post_init__(self) -> None:
        defaults = DEFAULTS.get((self.form, SOFTLY if self.timing == SOFTLY else NOW_AND_THEN))
        rare = "rarer than every gradient step" if self.form == "ash" else f"{SOFTLY!r}, or left out,"
        self.require(defaults is not None, "when", f"{rare} with form = {self.form!r}")
        for field in ("shrink", "weight_decay"):
            self.require(getattr(self, field) is None or field in defaults, field, f"left out with {self.form!r}")
        allowed = (None, "fresh", "gaussian") if self.form == "ash" else (None,)
        self.require(self.noise in allowed, "noise", "fresh or gaussian with 'ash', left out otherwise")
        gaussian = self.form == "ash" and self.noise == "gaussian"
        self.require(not gaussian or self.perturb is not None, "perturb", "given with gaussian noise")
        given = {field: getattr(self, field) for field in ("shrink", "perturb", "noise", "weight_decay")}
        self.used: dict[str, Any] = defaults | {field: value for field, value in given.items() if value is not None}
        self.require(0 <= self.used.get("shrink", 0) <= 1, "shrink", "in [0, 1]")
        self.require(0 <= self.used["perturb"] < math.inf, "perturb", ">= 0 and finite")
        self.require(0 <= self.used.get("weight_decay", 0) < math.inf, "weight_decay", ">= 0 and finite")

    @property
    def timing(self) -> When:
        """The time that was given, or the form's own."""
        return self.when or (SOFTLY if self.form == "dohare" else NOW_AND_THEN)

    def check_beside(self, others: Sequence[Intervention]) -> None:
        """Dohare's form brings its own decay of weights."""
        for other in others:
            if self.form == "dohare" and other.name in ("l2", "weight_decay"):
                raise ValueError(f"{self.name}.form = 'dohare': has a weight decay of its own beside {other.name}")

    def attach(self, networks: Mapping[str, nn.Module], generators: Generators) -> None:
        """ValueError: there is no trainable parameter in its part."""
        if not self._parameters(networks["online"]):
            raise ValueError(f"{self.name}: there is no parameter in only = {self.only!r}")
        self.network = networks["online"]

    def _parameters(self, network: nn.Module) -> list[nn.Parameter]:
        named = self.named_parameters(network)
        return [parameter for name, parameter in named if self.form != "dohare" or name.split(".")[-1] != "log_std"]

    def parameter_groups(self, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Dohare's L2, on log_std as well (torch's Adam over all of the policy's parameters)."""
        if self.form == "dohare":
            for group in groups:
                if "name" in group and self.within(group["name"]):
                    group |= {"weight_decay": self.used["weight_decay"], "decoupled_weight_decay": False}
        return groups

    def every_step(self, surgery: Surgery, forward: Forward, drawn: Mapping[str, Tensor]) -> None:
        """With the others' steps, where it is due at each of them."""
        if self.timing == SOFTLY:
            self._move(surgery)

    def intervene(self, surgery: Surgery, clock: Clock) -> None:
        if self.timing != SOFTLY:
            self._move(surgery)

    @torch.no_grad()
    def _move(self, surgery: Surgery) -> None:
        parameters = self._parameters(self.network)
        draw = surgery.fresh(parameters) if self.used["noise"] == "fresh" else self._normal(parameters, surgery)
        noise = dict(zip(parameters, draw, strict=True))
        shrink, perturb = self.used.get("shrink", 1.0), self.used["perturb"]
        surgery.project(parameters, lambda weight: torch.add(shrink * weight, noise[weight], alpha=perturb))

    @staticmethod
    def _normal(parameters: Sequence[nn.Parameter], surgery: Surgery) -> list[Tensor]:
        """Standard normal noise of the parameters' shapes, in one draw."""
        sizes, generator = [parameter.numel() for parameter in parameters], surgery.generator
        drawn = torch.randn(sum(sizes), dtype=torch.float32, generator=generator, device=generator.device)
        parts = zip(parameters, drawn.split(sizes), strict=True)
        return [part.view(parameter.shape).to(parameter) for parameter, part in parts]
