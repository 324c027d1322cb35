"""Calls the interventions of an agent in their order; agents know them through this alone.

With no interventions every method is a plain pass-through: nothing is traced, drawn, added or kept.
"""

import dataclasses
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence, Set
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from agents.clock import Clock
from agents.config import AgentConfig, NetworkConfig, require_float32
from agents.heads import ValueHead
from agents.interventions import expanded, intervention_class
from agents.interventions.base import Forward, Intervention, Part, roles
from agents.interventions.surgery import Surgery
from agents.kinds import kind_of
from agents.layers import MODED, Capture, Captured
from agents.layout import lay_out
from agents.randomness import Generators
from plasticity_probes.units import HiddenLayer, hidden_layers


def as_interventions(given: object) -> tuple[Intervention, ...]:
    """The interventions that the list `given` holds; the name of one, or of a combination, stands for its defaults.

    ValueError: it is no list, or something in it is neither.
    """
    allowed = "a list of interventions or their names, such as [ReDo(tau=0.025), 'l2_init']"
    if not isinstance(given, Iterable) or isinstance(given, (str, bytes, type, Mapping, Set)):
        raise ValueError(f"interventions = {given!r}: must be {allowed}")
    found: list[Intervention] = []
    for one in given:
        if isinstance(one, str):
            found += [intervention_class(name)(**parameters) for name, parameters in expanded([one]).items()]
        elif isinstance(one, type) and issubclass(one, Intervention):
            raise ValueError(f"interventions: {one.__name__} is a class: must be an object, such as {one.__name__}()")
        elif isinstance(one, Intervention):
            found.append(one)
        else:
            raise ValueError(
                f"interventions: {one!r} is neither an intervention nor the name of one; must be {allowed}"
            )
    return tuple(found)


def check_together(members: Sequence[Intervention]) -> None:
    """Raise `ValueError` where one is given twice or one refuses another, naming both, or a parameter is not what it
    says in float32."""
    names = [member.name for member in members]
    for member in members:
        require_float32(member, f"{member.name}.")
    for index, member in enumerate(members):
        if member.name in names[:index]:
            raise ValueError(f"interventions: {member.name} is given twice")
        for other in members[:index]:
            if other.name in member.conflicts or member.name in other.conflicts:
                limited = {member.only, other.only} != {"all"}
                why = ", whatever parts they are limited to" if limited else ""
                raise ValueError(f"interventions: {other.name} and {member.name} cannot work together{why}")
    for member in members:
        member.check_beside([other for other in members if other is not member])


def value_head(head: ValueHead, chosen: Sequence[Intervention | str]) -> ValueHead:
    """The value head that these interventions make of `head`."""
    for member in as_interventions(chosen):
        head = member.value_head(head)
    return head


def check_interventions(chosen: Sequence[Intervention | str], agent: AgentConfig) -> None:
    """Raise `ValueError`, before anything is built, where these cannot work together or beside the agent's settings."""
    members = as_interventions(chosen)
    check_together(members)
    parts = kind_of(agent).parts(agent)
    torsos = [part for part in parts if part == "encoder"] or list(parts)
    for member in members:
        if member.only not in ("all", *parts):
            why = "" if "encoder" in parts else ": actor and critic have torsos of their own"
            raise ValueError(f"{member.name}.only = {member.only!r}: must be all, {' or '.join(parts)}{why}")
        if member.needs_hidden_layers and member.only not in ("all", *torsos):
            raise ValueError(
                f"{member.name}.only = {member.only!r}: must be a part with hidden layers: all or {torsos[0]}"
            )
        member.check(agent, [other for other in members if other is not member])
    for torso in torsos:
        network = agent.network
        for member in members:
            network = member.configure(network) if member.only in ("all", torso) else network


def merged(groups: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The groups with equal options as one each, in the order in which the options first occur."""
    found: list[dict[str, Any]] = []
    for group in groups:
        if "lr" in group:
            raise ValueError("parameter_groups: lr is the agent's, which anneals it, and cannot be a group's own")
        options = {key: value for key, value in group.items() if key not in ("params", "name", "role")}
        same = (other for other in found if {k: v for k, v in other.items() if k != "params"} == options)
        other = next(same, None)
        if other is None:
            found.append({"params": list(group["params"]), **options})
        else:
            other["params"] += group["params"]
    return found


Configure = Callable[[NetworkConfig, Part], NetworkConfig]
"""(settings of a torso, the part of the network it is) -> what the interventions make of them."""


class Lifecycle:
    """The interventions `chosen` for one agent, as `as_interventions` takes them. Copies of them are kept in `members`:
    each remembers its network."""

    def __init__(
        self,
        chosen: Sequence[Intervention | str] = (),
        context: Callable[[], AbstractContextManager] = nullcontext,
        clock: Clock | None = None,
    ) -> None:
        self.members = tuple(dataclasses.replace(member) for member in as_interventions(chosen))
        check_together(self.members)
        self.context = context  # what the agent's forward passes run in (autocast)
        self.clock = clock or Clock()
        self.networks: dict[str, nn.Module] = {}
        self.network: nn.Module | None = None
        self.layers: list[HiddenLayer] = []
        self.surgery: Surgery | None = None
        asked = frozenset().union(*(member.captures for member in self.members))
        self.wanted: Capture | None = next((kind for kind in ("preactivations", "hidden") if kind in asked), None)
        """What the update's forward pass is to return beside the outputs."""
        # what is called at every gradient step is called on nobody for nothing
        self._penalizing, self.stepping = map(self._who, ("penalty", "every_step"))
        self._timed = [(member, member.timing) for member in self.members if member.timing is not None]
        self._drawn: dict[str, tuple[torch.Generator, dict[str, Tensor]]] = {}  # where each step's draws go
        self._before: int | None = None  # steps when the last gradient step was made

    def _who(self, hook: str) -> list[Intervention]:
        """The members that do something there."""
        return [member for member in self.members if getattr(type(member), hook) is not getattr(Intervention, hook)]

    def configure(self, network: NetworkConfig, part: Part) -> NetworkConfig:
        """The settings of the torso that is `part` of the network."""
        for member in self.members:
            if member.only in ("all", part):
                network = member.configure(network)
        return network

    def build(self, network: nn.Module, generator: torch.Generator) -> nn.Module:
        """`network`, freshly initialised, as the interventions wrap it."""
        for member in self.members:
            if self.network is None:  # the one to train; another that is built later names its parts alike
                member.part_of = network.part_of
            member.build(network, generator)
        return network

    def fresh(
        self, build: Callable[[Configure, torch.Generator], nn.Module], generator: torch.Generator, device: torch.device
    ) -> nn.Module:
        """A network that `build` initialises, as the interventions make it, on `device` and in eval mode."""
        return lay_out(self.build(build(self.configure, generator), generator).to(device).eval())

    def attach(
        self, networks: Mapping[str, nn.Module], example: Tensor, generators: Generators
    ) -> list[dict[str, Any]]:
        """Prepare for `networks`; returns the groups to build the optimizer from. `example`: two observations.
        `generators`: where the members have their streams from."""
        self.networks, self.network = dict(networks), networks["online"]
        if not self.members:
            return [{"params": list(self.network.parameters())}]
        self.layers = hidden_layers(self.network, example)
        for member in self.members:
            member.part_of = self.network.part_of
            member.layers = tuple(layer for layer in self.layers if member.within(layer.name))
            member.attach(networks, generators)
            if shapes := member.draws():
                options = {"dtype": torch.float64, "device": example.device}
                drawn = {name: torch.empty(shape, **options) for name, shape in shapes.items()}
                self._drawn[member.name] = generators.torch(f"{member.name}'s draws", example.device), drawn
        role = roles(self.network)
        groups = [{"params": [p], "name": n, "role": role[n]} for n, p in self.network.named_parameters()]
        for member in self.members:
            groups = member.parameter_groups(groups)
        return merged(groups)

    def make_surgeon(
        self,
        optimizer: torch.optim.Adam,
        generator: torch.Generator,
        sample: Callable[[int], Tensor],
        moments: str = "own",
    ) -> None:
        """The optimizer exists: make the surgeon. `generator` draws new weights, `sample(n)` gives n observations;
        `moments` other than "own" takes the place of every intervention's own choice."""
        if self.members:
            self.surgery = Surgery(
                self.networks, optimizer, self.layers, generator, sample, self.members, self.capture, moments
            )

    def capture(self, network: nn.Module, observations: Tensor) -> Captured:
        """What the hidden layers of `network`, of the trained one's structure, hold for `observations`: before and
        after the nonlinearity."""
        with self.context():
            return network(observations, "preactivations")[1]

    def unsettled(self) -> list[Tensor]:
        """What an update moves before its gradient is known: running statistics in the forward pass."""
        norms = (module for module in self.network.modules() if type(module) in MODED)
        return [buffer for norm in norms for buffer in norm.buffers(recurse=False)]

    def forward(self, observations: Tensor, captured: Captured) -> Forward | None:
        """The update's forward pass, as the interventions see it."""
        if not self.members:
            return None
        return Forward(self.network, observations, captured, lambda network: self.capture(network, observations))

    @property
    def penalizes(self) -> bool:
        """Whether anything may be added to the loss."""
        return bool(self._penalizing)

    def penalties(self, forward: Forward | None) -> dict[str, Tensor]:
        """The scalars to add to the loss, by the intervention's name."""
        found: dict[str, Tensor] = {}
        for member in self._penalizing:
            penalty = member.penalty(forward)
            if isinstance(penalty, Tensor):
                found[member.name] = penalty
            elif penalty is not None:
                raise TypeError(
                    f"{member.name}: its penalty is {penalty!r}: must be a tensor, or None where there is none"
                )
        return found

    def draw(self) -> None:
        """Draw what `every_step` is given at the gradient step to come: outside of what may be captured in a graph."""
        for generator, drawn in self._drawn.values():
            for tensor in drawn.values():
                tensor.uniform_(generator=generator)

    def structure(self) -> Hashable:
        """What the course of `every_step` depends on beside the shapes of tensors and what learns."""
        return () if self.surgery is None else self.surgery.structure()

    def every_step(self, forward: Forward | None) -> None:
        """The optimizer has made a step: what happens on the device at every one."""
        if self.surgery is not None:
            self.surgery.after_optimizer_step()
        for member in self.stepping:
            self.surgery.acting = member.name
            member.every_step(self.surgery, forward, self._drawn[member.name][1] if member.name in self._drawn else {})

    def intervene(self) -> None:
        """The clock has counted the step: what the host decides."""
        for member, timing in self._timed:
            if timing.due(self.clock, self._before):
                self.surgery.acting = member.name
                member.intervene(self.surgery, self.clock)
        self._before = self.clock.steps

    def on_target_sync(self) -> None:
        """The target network has just been copied; an update phase begins."""
        self._at("target sync")

    def on_task_change(self) -> None:
        """Every environment has entered the new task."""
        self._at("task change")

    def _at(self, moment: str) -> None:
        for member, timing in self._timed:
            if timing.moment == moment:
                self.surgery.acting = member.name
                member.intervene(self.surgery, self.clock)

    def surgeries(self) -> dict[tuple[str, str, str], Tensor | int]:
        """How much was done since the last call, by (intervention, what, where), see agents/deeds.py."""
        return {} if self.surgery is None else self.surgery.take_done()

    def state_dict(self) -> dict[str, Any]:
        """What the members and the surgeon remember; where generators stand, their registry knows."""
        if not self.members:
            return {}
        members = {member.name: member.state_dict() for member in self.members}
        return {"members": members, "surgery": self.surgery.state_dict(), "before": self._before}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        for member in self.members:
            member.load_state_dict(state["members"][member.name])
        if self.members:
            self.surgery.load_state_dict(state["surgery"])
            self._before = state["before"]
