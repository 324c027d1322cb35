"""Plasticity injection (Nikishin et al. 2023, arXiv 2305.15555): a new head learns what the old one no longer can."""

import copy
import string
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from agents.clock import Clock
from agents.config import AgentConfig
from agents.initializers import Initializer, initializer_for
from agents.interventions.base import Intervention
from agents.interventions.surgery import Surgery
from agents.kinds import kind_of
from agents.layers import FROM_SCRATCH, MODED, Capture, Captured, SpectralScale
from agents.networks import ConvolutionalTorso, QNetwork, through
from agents.randomness import Generators
from agents.when import When
from plasticity_probes.units import CONVOLUTIONS

BIRTHS = "at step N, at gradient step N or at task changes"


class Injection(nn.Module):
    """Three of the same structure: `live`, which learns until the birth, `a`, which learns from then on, and `b`, which
    never does. a and b start as equal fresh draws, so that live + (a - b) is live until a learns."""

    def __init__(self, live: nn.Module, generator: torch.Generator, encoder: nn.Module | None = None) -> None:
        super().__init__()
        if encoder is not None:  # first, so that what trains keeps its order and a gradient's norm its last digit
            self.encoder = encoder
        self.live, self.a = live, copy.deepcopy(live)
        for layer in self.a.modules():
            if isinstance(layer, (nn.Linear, *CONVOLUTIONS)):
                law: Initializer = getattr(layer, "initializer", None) or initializer_for("torch", layer)
                law.fill(layer, generator)
        for scale in (module for module in self.a.modules() if isinstance(module, SpectralScale)):
            scale.iterate(FROM_SCRATCH)
        self.b = copy.deepcopy(self.a)
        self.set_born(False)

    def set_born(self, born: bool) -> None:
        """Freeze what does not learn now; without a gradient Adam passes it by."""
        self.born = born
        for part, learns in ((self.live, not born), (self.a, born), (self.b, False)):
            for parameter in part.parameters():
                parameter.requires_grad_(learns)
                parameter.grad = parameter.grad if learns else None

    def difference(self) -> AbstractContextManager:
        """What a and b are run in: until the birth their gradients cancel, and are left out."""
        return nullcontext() if self.born else torch.no_grad()


class InjectedTorso(Injection):
    """A torso in two: the encoder, and the dense layers after it three times over. Gives the features of all three."""

    def forward(
        self, observations: Tensor, prefix: str = "", capture: Capture | None = None
    ) -> tuple[tuple[Tensor, Tensor, Tensor], Captured]:
        x, captured = self.encoder(observations, f"{prefix}encoder.", capture)
        live, by_live = through(self.live, x, f"{prefix}live.", capture)
        with self.difference():
            a, by_a = through(self.a, x, f"{prefix}a.", capture)
            b, by_b = through(self.b, x, f"{prefix}b.", capture)
        return (live, a, b), captured | by_live | by_a | by_b


class InjectedHead(Injection):
    """A head three times over: live + (a - b), on features that all three share or on those of each."""

    def forward(self, features: Tensor | tuple[Tensor, Tensor, Tensor]) -> Tensor:
        live, a, b = features if isinstance(features, tuple) else (features, features, features)
        with self.difference():
            change = self.a(a) - self.b(b)
        return self.live(live) + change


@dataclass(eq=False)
class PlasticityInjection(Intervention):
    """At one moment of the run, the birth, the last layers h are frozen, and a new draw of them learns in their place:
    h(x) + (a(x) - b(x)), where b is a frozen copy of the newborn a (Nikishin23, section 3).

    The outputs are the same before and after the birth, and as many parameters train. Gradients still reach the encoder
    through h and b. All three exist from the start, a and b frozen, so that the optimizer's structure never changes; a
    starts with fresh moments and step zero. The target network gets the same structure and its weights at its copies.
    Memory and time of these layers are threefold from the start. The birth changes what needs a gradient: a compiled
    or captured update has to be compiled or captured anew.
    """

    name = "plasticity_injection"
    is_surgery = True
    # popart rescales one head to keep its outputs; here the outputs are a sum over three, of which two are frozen
    conflicts: ClassVar[frozenset[str]] = frozenset({"popart"})

    last: int | None = None
    """How many Linear layers, counted back from the output, are injected; by default all after the convolutions (the
    paper's choice), 2 of an MLP (ours)."""
    when: When | None = None
    """Of the birth, to be given: at step N (the paper's Atari runs: 12,500,000, 50 million frames), at gradient step N
    or at task changes (the first one)."""

    def __post_init__(self) -> None:
        self.require(self.last is None or self.last >= 1, "last", ">= 1")
        once = self.when is None or not self.when.repeats or self.when.moment == "task change"
        self.require(once, "when", f"{BIRTHS}: the birth is once a run")
        self.born = False

    def check(self, agent: AgentConfig, others: Sequence[Intervention]) -> None:
        """The birth needs a time. A torso that two heads share, or that is the encoder, is injected with its heads."""
        self._require_a_time()
        separate = "encoder" not in kind_of(agent).parts(agent)
        allowed = "all" + (", actor or critic" if separate else ": the torso is injected with every head that reads it")
        self.require(self.only == "all" or (separate and self.only != "encoder"), "only", allowed)

    def check_beside(self, others: Sequence[Intervention]) -> None:
        """a - b would be noise, and a frozen layer would not stay as it is; the heads alone have neither."""
        for other in others:
            if other.name in ("batch_norm", "dropout") and self.last != 1:
                raise ValueError(f"interventions: {self.name} and {other.name} cannot work together, but with last = 1")

    def _require_a_time(self) -> None:
        self.require(self.when is not None, "when", f"given, the time of the birth: {BIRTHS}")

    def build(self, network: nn.Module, generator: torch.Generator) -> None:
        """Put the last layers of each torso, and the heads that read it, into injections."""
        for torso, heads in _branches(network):
            if self.within(heads[0]):
                self._inject(network, torso, heads, generator)

    def _inject(self, network: nn.Module, torso_name: str, heads: list[str], generator: torch.Generator) -> None:
        torso = getattr(network, torso_name)
        convolutional = isinstance(torso, ConvolutionalTorso)
        where = "dense" if convolutional else "layers"
        dense = dict(getattr(torso, where).named_children())
        numbers = [name.lstrip(string.ascii_letters) for name in dense]  # what goes with a hidden layer has its number
        starts = [numbers.index(number) for number in dict.fromkeys(numbers)]
        last = self.last or (len(starts) + 1 if convolutional else min(2, len(starts) + 1))
        self.require(last <= len(starts) + 1, "last", f"<= {len(starts) + 1}, the Linear layers there are")
        cut = [*starts, len(dense)][len(starts) + 1 - last]
        before, after = (_sequence(list(dense.items())[part]) for part in (slice(cut), slice(cut, None)))
        for name, layer in after.named_modules():
            if type(layer) in MODED:  # a - b would be noise, and a frozen layer would not stay as it is
                raise ValueError(f"{self.name}: '{name}' ({type(layer).__name__}) does something else while learning")
        if len(after):
            setattr(torso, where, before)
            setattr(network, torso_name, InjectedTorso(after, generator, torso))
        for head in heads:
            setattr(network, head, InjectedHead(getattr(network, head), generator))

    def attach(self, networks: Mapping[str, nn.Module], generators: Generators) -> None:
        """Find the injections. ValueError: `build` was not called for this network, or no time was given."""
        self._require_a_time()
        self.network = networks["online"]
        if not any(True for _ in self._injections()):
            raise ValueError(f"{self.name}: nothing was injected: the network must be built with it")

    def _injections(self) -> Iterator[tuple[str, Injection]]:
        named = self.network.named_modules()
        return ((name, module) for name, module in named if isinstance(module, Injection))

    def intervene(self, surgery: Surgery, clock: Clock) -> None:
        """The birth, the first time."""
        if self.born:
            return
        self._set_born(True)
        for name, injection in self._injections():
            surgery.zero_moments(injection.a.parameters())
            surgery.zero_step(injection.a.parameters())
            surgery.note("born", name)

    def _set_born(self, born: bool) -> None:
        self.born = born
        for _, injection in self._injections():
            injection.set_born(born)

    def state_dict(self) -> dict[str, Any]:
        """Whether the birth is behind us."""
        return {"born": self.born}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave, and freeze accordingly."""
        self._set_born(state["born"])


def _branches(network: nn.Module) -> list[tuple[str, list[str]]]:
    """The name of each torso, with those of the heads that read it."""
    if isinstance(network, QNetwork):
        return [("torso", ["head"])]
    if network.critic_torso is None:
        return [("actor_torso", ["policy_head", "value_head"])]
    return [("actor_torso", ["policy_head"]), ("critic_torso", ["value_head"])]


def _sequence(layers: Sequence[tuple[str, nn.Module]]) -> nn.Sequential:
    sequence = nn.Sequential()
    for name, layer in layers:
        sequence.add_module(name, layer)
    return sequence
