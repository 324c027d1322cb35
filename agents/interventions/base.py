"""What an intervention is: a set of hooks that the agents call, all of which do nothing unless overridden.

The order of the calls (lifecycle.py makes them):

    check                nothing is built yet: refuse settings of the agent that make no sense beside it
    configure, value_head   before a torso, a value head is built
    build                a network of the agent's shape has been built (the one to train, a probe's fresh one)
    attach               the networks exist, the optimizer does not
    parameter_groups     the optimizer is about to be built; then the surgeon is (see surgery.py)
    every gradient step  forward pass, loss + penalty(...), backward, optimizer step, every_step
    when `timing` says   intervene: after a gradient step; after a target copy (PPO: as an update phase begins); once
                         every environment has entered a new task
    on_replaced, on_reset  within every_step and intervene, after somebody's edit is complete

Interventions are called in the order in which they were given: after a gradient step each one's every_step, and then
each one's intervene, where it is due. `penalty` alone runs with autograd.

What happens at every gradient step is `every_step`: on the device, with static shapes, nothing counted in Python and no
value read back, so that it can be captured in a graph; what it draws comes as an argument, see `draws`. What the host
decides is `intervene`, which may do anything.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, Literal, NamedTuple, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn

from agents.clock import Clock
from agents.config import AgentConfig, NetworkConfig, require
from agents.heads import ValueHead
from agents.interventions.slices import UnitSet
from agents.interventions.surgery import Surgery
from agents.layers import Captured
from agents.randomness import Generators
from agents.when import When
from plasticity_probes.units import NORMS, HiddenLayer

Part = Literal["all", "encoder", "actor", "critic"]
Role = Literal["weight", "bias", "norm", "log_std"]


def roles(network: nn.Module) -> dict[str, Role]:
    """The role of each parameter of `network`, by name."""
    found: dict[str, Role] = {}
    for prefix, module in network.named_modules():
        for name, _ in module.named_parameters(recurse=False):
            role = "norm" if isinstance(module, NORMS) else "bias" if name == "bias" else "weight"
            found[f"{prefix}.{name}".removeprefix(".")] = "log_std" if name == "log_std" else role
    return found


class Forward(NamedTuple):
    """The update's own forward pass on the observations of s_t."""

    network: nn.Module
    """The network being trained."""
    observations: Tensor
    """[batch, ...] as the network takes them."""
    captured: Captured
    """By layer name: the values before and after the nonlinearity, [batch, units, ...], part of the autograd graph;
    those after it alone where only "hidden" is asked for. Empty unless an intervention's `captures` asks for them.
    CReLU and Fourier features: twice the units after it."""
    again: Callable[[nn.Module], Captured] | None = None
    """What `captured` would be in another network of the same structure, a frozen copy say, for these observations."""


@functools.cache
def _parameters_of(kind: type) -> dict[str, Any]:
    """The types of an intervention's parameters, by name."""
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


@dataclass(eq=False)
class Intervention:
    """Something pluggable that is meant to keep plasticity.

    A subclass is a dataclass: its fields are its parameters (and so its flags), each with a docstring. They are fixed
    once made; a `When` and the choice of a `Literal` are checked as they are set. Whatever else it remembers (ages,
    copies) is made in `attach` and goes through `state_dict`. What it may touch is `self.layers` and
    `self.named_parameters(network)`, which obey `only`.

        @dataclass(eq=False)
        class Decay(Intervention):
            name = "decay"
            rate: float = 1e-3
            \"\"\"Share of every weight taken away at each gradient step, in [0, 1).\"\"\"

            def __post_init__(self):
                self.require(0 <= self.rate < 1, "rate", "in [0, 1)")

            def every_step(self, surgery, forward, drawn):
                weights = [weight for _, weight in self.named_parameters(forward.network)]
                surgery.project(weights, lambda weight: weight * (1 - self.rate))
    """

    _: KW_ONLY
    only: Part = "all"
    """Limits it to a part of the network: encoder (what policy and value share; the torso of DQN and C51), actor,
    critic (DQN and C51: the head)."""

    name: ClassVar[str] = ""
    """As it is written after --interventions and before the dot of its flags."""
    captures: ClassVar[frozenset[str]] = frozenset()
    """What the update's forward must return: any of "hidden" (after the nonlinearity), "preactivations"."""
    conflicts: ClassVar[frozenset[str]] = frozenset()
    """Names of interventions beside which it is refused, said by one of the two. What depends on parameters is
    refused in `check`."""
    needs_hidden_layers: ClassVar[bool] = False
    """Whether it acts on hidden layers, and so makes no sense in a part that has none (the critic of DQN, its head)."""
    is_surgery: ClassVar[bool] = False
    """Whether it edits weights or Adam's state now and then, so that a run in which it never did should say so."""
    layers: ClassVar[tuple[HiddenLayer, ...]] = ()
    """The hidden layers of the online network in its part, in the order of their use, the ones whose units cannot be
    replaced one by one included (`separable` says). Known from `attach` on."""
    part_of: ClassVar[Callable[[str], str]] = staticmethod(lambda name: "encoder")
    """The part that a parameter or module belongs to, by its name in the network. Known from `attach` on."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        unknown = cls.captures - {"hidden", "preactivations"}
        require(not unknown, f"{cls.__name__}.captures", sorted(cls.captures), "of hidden, preactivations")

    def __setattr__(self, attribute: str, value: Any) -> None:
        if attribute[0] != "_" and attribute in _parameters_of(type(self)):
            name, hint = f"{self.name}.{attribute}", _parameters_of(type(self))[attribute]
            if attribute in self.__dict__:
                raise AttributeError(f"{name}: a parameter is fixed once made; dataclasses.replace makes another one")
            if hint is When or (When in get_args(hint) and value is not None):
                with contextlib.suppress(ValueError):
                    value = When(value)
                require(isinstance(value, When), name, value, When.allowed)
            if get_origin(hint) is Literal:
                *others, last = get_args(hint)
                require(value in get_args(hint), name, value, f"{', '.join(others)} or {last}")
        super().__setattr__(attribute, value)

    def __eq__(self, other: object) -> bool:
        """Equal settings; what either remembers does not count."""
        return type(other) is type(self) and other.parameters() == self.parameters()

    def __hash__(self) -> int:
        return hash((type(self), tuple(self.parameters().items())))

    def require(self, condition: bool, field: str, allowed: str) -> None:
        """Raise `ValueError` naming the parameter as its flag does, its value and what is `allowed`, unless
        `condition` holds. For `__post_init__`."""
        require(condition, f"{self.name}.{field}", getattr(self, field), allowed)

    def parameters(self) -> dict[str, Any]:
        """The parameters by name, as they stand in a run's configuration."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @property
    def timing(self) -> When | None:
        """When `intervene` is called: as the parameter (or class variable) `when` says, where there is one."""
        return getattr(self, "when", None)

    @property
    def stacks(self) -> bool:
        """Whether the gradient steps of several networks can be computed as one beside it (agents/stacking.py)."""
        reads = self.captures and type(self).penalty is not Intervention.penalty
        return not reads and type(self).value_head is Intervention.value_head

    @property
    def waits_for_a_task_change(self) -> bool:
        """Whether, with its parameters, it does nothing in a world that never changes."""
        return self.timing is not None and self.timing.moment == "task change"

    def within(self, name: str) -> bool:
        """Whether the parameter or module called `name` in the network is in the part it is limited to."""
        return self.only in ("all", self.part_of(name))

    def named_parameters(self, network: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
        """The parameters of `network` that train and that it may touch."""
        return (item for item in network.named_parameters() if item[1].requires_grad and self.within(item[0]))

    def check(self, agent: AgentConfig, others: Sequence[Intervention]) -> None:
        """Raise `ValueError`, naming the parameter, where it makes no sense with these settings or these others. Beside
        no agent of ours (Stable-Baselines3) it is not called."""

    def check_beside(self, others: Sequence[Intervention]) -> None:
        """Raise `ValueError`, naming both, where it makes no sense beside these others, in whatever agent. What never
        works together in any setting is in `conflicts`."""

    def configure(self, network: NetworkConfig) -> NetworkConfig:
        """The architecture to build instead of `network`; called for each torso in its part."""
        return network

    def value_head(self, head: ValueHead) -> ValueHead:
        """What the value's outputs are to mean instead of `head`."""
        return head

    def build(self, network: nn.Module, generator: torch.Generator) -> None:
        """Wrap or add modules in a freshly initialised `network` of the agent's shape: the one to train (its target is
        a copy of it), a probe's fresh one. Nothing is remembered here."""

    def attach(self, networks: Mapping[str, nn.Module], generators: Generators) -> None:
        """Prepare for `networks` ("online", and "target" where there is one), before the optimizer exists: remember
        initial weights, make frozen copies and auxiliary heads. The networks' structure is as it will stay. What it
        draws, now or inside a module, it draws from streams of the run's `generators`, and keeps none of its own."""

    def parameter_groups(self, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The groups the optimizer will be built from. Each has "params" (a list), "name" of the one parameter of the
        network in it (the groups of auxiliary heads have none), its "role" (weight, bias, norm, log_std), and what
        torch's Adam takes. Set options, append groups. What stays equal is merged afterwards."""
        return groups

    def penalty(self, forward: Forward) -> Tensor | None:
        """A scalar that is added to the loss; None adds nothing."""
        return None

    def draws(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of what `every_step` is to be given drawn; asked once, after `attach`."""
        return {}

    def every_step(self, surgery: Surgery, forward: Forward, drawn: Mapping[str, Tensor]) -> None:
        """After every optimizer step; `forward` was taken before it. `drawn`: by the names of `draws`, float64 on the
        network's device, uniform in [0, 1), for this step, from a stream of the run's for this intervention alone."""

    def intervene(self, surgery: Surgery, clock: Clock) -> None:
        """It is time, by `timing`."""

    def on_replaced(self, layer: HiddenLayer, units: UnitSet) -> None:
        """Somebody, perhaps this intervention, replaced `units` of `layer`; incoming and outgoing weights of every
        layer of that edit are already as they will be. Refresh ages, initial weights, norms and copies."""

    def on_reset(self, parameters: Sequence[nn.Parameter]) -> None:
        """Somebody redrew these whole tensors of the online network. `on_replaced` follows for the hidden layers among
        them, with all their units."""

    def state_dict(self) -> dict[str, Any]:
        """What the intervention remembers, as tensors and primitives."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
