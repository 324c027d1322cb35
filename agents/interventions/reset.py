"""Resets of the last layers or of everything (Nikishin et al. 2022, The Primacy Bias, arXiv 2205.07802)."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from agents.interventions.base import Forward, Intervention
from agents.interventions.surgery import Surgery
from plasticity_probes.units import CONVOLUTIONS, NORMS

LAYERS = (nn.Linear, *CONVOLUTIONS)


@dataclass(eq=False)
class Reset(Intervention):
    """The last layers are redrawn by their own laws every so often; their moments and step restart, the buffer is kept
    (Nikishin22, section 4).

    At most one of `every_gradient_steps`, `every_steps` and `at_task_change`. PPO learns on from its rollout, whose
    log-probabilities are those of the policy before the reset, until the update phase ends. What is frozen stays.
    """

    name = "reset"
    is_surgery = True
    last: int = 1
    """How many layers, counted back from the outputs: 1 for the heads, 2 for the layers too that only heads read, ...;
    0 for everything, log_std included (Nikishin22: 1 for SPR, everything for SAC)."""
    every_gradient_steps: int | None = None
    """Gradient steps between resets."""
    every_steps: int | None = None
    """Steps between resets, at the first gradient step at or beyond each multiple; 20,000 where no other time is given
    (Nikishin22: 20,000 for SPR, 200,000 for DrQ and SAC)."""
    at_task_change: bool = False
    """Reset when every environment has entered a new task."""
    target: bool = True
    """Give the target network, where there is one, the same new values."""

    def __post_init__(self) -> None:
        given = (self.every_gradient_steps is not None) + (self.every_steps is not None) + self.at_task_change
        self.require(self.last >= 0, "last", ">= 0")
        for field in ("every_gradient_steps", "every_steps"):
            value = getattr(self, field)
            self.require(value is None or value >= 1, field, ">= 1")
            self.require(value is None or given == 1, field, "left out where another time is given")
        self.period = self.every_gradient_steps or self.every_steps or (0 if self.at_task_change else 20_000)
        self.multiples: int | None = None  # of the period that are behind us; None before the first gradient step

    @property
    def waits_for_a_task_change(self) -> bool:
        """Whether the time that was chosen is a task change."""
        return self.at_task_change

    def attach(self, networks: Mapping[str, nn.Module], generator: torch.Generator) -> None:
        """Find the layers. ValueError: there are none in its part, or one's law is not known."""
        self.network = networks["online"]
        if self.last == 0:
            self.modules = [module for name, module in self.network.named_modules() if self.within(name)]
            self._require_laws()
        else:
            self.modules = self._last_layers()
        if not any(isinstance(tensor, nn.Parameter) for tensor in self._tensors()):
            raise ValueError(f"{self.name}: there is nothing to reset in only = {self.only!r} with last = {self.last}")

    def _last_layers(self) -> list[nn.Module]:
        """By walking the graph of layers back; a reader outside its part counts as a head."""
        inside = {module for name, module in self.network.named_modules() if self.within(name)}
        hidden = {layer.producer: {consumer for consumer, _ in layer.consumers} for layer in self.layers}
        heads = [module for module in inside if isinstance(module, LAYERS) and module not in hidden]
        chosen = set(heads)
        for _ in range(self.last - 1):
            waiting = set(hidden) - chosen
            chosen |= {layer for layer in waiting if not hidden[layer] & (waiting - {layer})}
        for layer in self.layers:
            if layer.producer in chosen and not isinstance(layer.producer, LAYERS):
                raise ValueError(f"{self.name}: the law of '{layer.name}' is not known")
        chosen |= {layer.norm for layer in self.layers if layer.producer in chosen and layer.norm is not None}
        return [module for module in self.network.modules() if module in chosen]

    def _require_laws(self) -> None:
        for name, module in self.network.named_modules():
            for own, parameter in module.named_parameters(name, recurse=False):
                if self.within(own) and parameter.ndim > 1 and not isinstance(module, (*LAYERS, *NORMS)):
                    raise ValueError(f"{self.name}: the law of '{own}' ({type(module).__name__}) is not known")

    def _tensors(self) -> Iterator[Tensor]:
        """What to redraw now: all that trains, and what the norms among it remember."""
        for module in self.modules:
            own = [parameter for parameter in module.parameters(recurse=False) if parameter.requires_grad]
            yield from own
            if isinstance(module, NORMS) and (own or not list(module.parameters(recurse=False))):
                yield from (buffer for buffer in module.buffers(recurse=False))

    def after_step(self, surgery: Surgery, forward: Forward, gradient_step: int) -> None:
        """Reset where the next multiple of the period has been reached: once, however many were passed."""
        if self.period:
            now = gradient_step if self.every_gradient_steps else surgery.clock.steps
            if self.multiples is None:  # what passed before there was anything to learn from is no reason for a reset
                self.multiples = (now - 1) // self.period
            multiples = now // self.period
            if multiples > self.multiples:
                self.multiples = multiples
                self._reset(surgery)

    def on_task_change(self, surgery: Surgery) -> None:
        """Reset where that is the time for it."""
        if self.at_task_change:
            self._reset(surgery)

    def _reset(self, surgery: Surgery) -> None:
        with_target = self.target and "target" in surgery.networks
        surgery.reset(self._tensors(), ("online", "target") if with_target else ("online",))

    def state_dict(self) -> dict[str, Any]:
        """How many multiples of the period are behind us."""
        return {"multiples": self.multiples}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self.multiples = state["multiples"]
