"""Resets of the last layers or of everything (Nikishin et al. 2022, The Primacy Bias, arXiv 2205.07802)."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from agents.clock import Clock
from agents.interventions.base import Intervention
from agents.interventions.surgery import Surgery
from agents.randomness import Generators
from agents.when import When
from plasticity_probes.units import CONVOLUTIONS, NORMS

LAYERS = (nn.Linear, *CONVOLUTIONS)


@dataclass(eq=False)
class Reset(Intervention):
    """The last layers are redrawn by their own laws every so often; their moments and step restart, the buffer is kept
    (Nikishin22, section 4).

    PPO learns on from its rollout, whose log-probabilities are those of the policy before the reset, until the update
    phase ends. What is frozen stays.
    """

    name = "reset"
    is_surgery = True
    last: int = 1
    """How many layers, counted back from the outputs: 1 for the heads, 2 for the layers too that only heads read, ...;
    0 for everything, log_std included (Nikishin22: 1 for SPR, everything for SAC)."""
    when: When = When("every 20000 steps")
    """Of the resets (Nikishin22: every 20,000 STEPS for SPR, 200,000 for DrQ and SAC)."""
    target: bool = True
    """Give the target network, where there is one, the same new values."""

    def __post_init__(self) -> None:
        self.require(self.last >= 0, "last", ">= 0")

    def attach(self, networks: Mapping[str, nn.Module], generators: Generators) -> None:
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

    def intervene(self, surgery: Surgery, clock: Clock) -> None:
        with_target = self.target and "target" in surgery.networks
        surgery.reset(self._tensors(), ("online", "target") if with_target else ("online",))
