"""Stable-Baselines3's DQN and PPO networks, as interventions see networks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.dqn.policies import QNetwork
from torch import Tensor, nn
from torch.nn import functional as F

from agents.initializers import initializer_for
from agents.layers import Capture, Captured
from plasticity_probes.sb3.networks import PolicyView, QView, View
from plasticity_probes.units import HiddenLayer, LayerActivations, activations, hidden_layers

NONLINEARITIES: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda x: x,
    "crelu": lambda x: torch.cat([x.relu(), (-x).relu()], 1),
}
"""Those that torch has no function for; the others are called as theirs."""


class Capturing(View):
    """A view that runs as our agents' networks do, drawing nothing, and giving (outputs, captured) where it is asked to
    `capture`."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network)
        self.points: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {}
        """By layer: the module whose output is the value before the nonlinearity, and the nonlinearity."""
        self.unseen: dict[str, str] = {}
        """Layers whose values no such hook can tell, and what their nonlinearity seems to be."""
        self.copies = False
        """Whether values are overwritten after they have been handed over."""

    def forward(self, observations: Tensor, capture: Capture | None = None) -> Any:
        if capture is None:
            return self.run(observations)
        self.require_seen()
        watch = CaptureHooks(self, capture)
        try:
            return self.run(observations), watch.captured
        finally:
            watch.stop()

    def require_seen(self) -> None:
        """ValueError naming a layer whose values cannot be captured."""
        for name, activation in self.unseen.items():
            raise ValueError(f"layer '{name}': its values are not those of {activation}, and cannot be captured")

    def like(self, other: Capturing) -> Capturing:
        """Captures as the `other` one of the same structure."""
        self.points, self.unseen, self.copies = other.points, other.unseen, other.copies
        return self

    @torch.no_grad()
    def find_points(self, example: Tensor) -> None:
        """Where to capture each hidden layer, held against what `activations` finds out operation by operation."""
        layers, names = hidden_layers(self, example), {module: name for name, module in self.named_modules()}
        self.copies = any(getattr(module, "inplace", False) for module in self.modules())
        before = {layer.name: layer.producer if layer.norm is None else layer.norm for layer in layers}
        self.points = {name: (names[module], NONLINEARITIES["identity"]) for name, module in before.items()}
        found = self(example, "preactivations")[1]
        known = activations(self, example, layers=layers)
        for layer in layers:
            function = _nonlinearity(layer)
            pre = found.get(layer.name, (None,))[0]
            if pre is not None and layer.name in known and _same(pre, function, known[layer.name]):
                self.points[layer.name] = (names[before[layer.name]], function)
            else:
                del self.points[layer.name]
                self.unseen[layer.name] = layer.activation


class CapturingQ(Capturing, QView):
    """DQN's `q_net`."""

    parts = ("features_extractor", "q_net")


class CapturingPolicy(Capturing, PolicyView):
    """PPO's policy."""

    parts = ("log_std", "features_extractor", "vf_features_extractor", "mlp_extractor", "action_net", "value_net")


class CaptureHooks:
    """Remembers what goes into a view's modules, and what it is asked to `capture`, until it is stopped."""

    def __init__(self, view: Capturing, capture: Capture | None) -> None:
        self.observations: Tensor | None = None
        self.captured: Captured = {}
        self._both, self._copies = capture == "preactivations", view.copies
        self._hooks = [view.features_extractor.register_forward_pre_hook(self._enter)]
        modules = dict(view.named_modules()) if capture is not None else {}
        for name, (before, function) in view.points.items() if modules else ():
            hook = self._capturing(name, function)
            self._hooks.append(modules[before].register_forward_hook(hook))

    def _enter(self, module: nn.Module, args: tuple[Tensor]) -> None:
        self.observations = args[0]

    def _capturing(self, layer: str, function: Callable[[Tensor], Tensor]) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            pre = output.clone() if self._copies else output
            self.captured[layer] = (pre, function(pre)) if self._both else (function(pre),)

        return hook

    def stop(self) -> None:
        """Take the hooks off."""
        for hook in self._hooks:
            hook.remove()


class WithPenalty(torch.autograd.Function):
    """The outputs as they are; their backward pass is that of the penalty as well."""

    @staticmethod
    def forward(context: Any, outputs: Tensor, penalty: Tensor) -> Tensor:
        context.ones = torch.ones_like(penalty)
        return outputs.view_as(outputs)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        return gradient, context.ones


def require_supported(model: BaseAlgorithm) -> None:
    """ValueError, naming what is not supported, unless the networks and the optimizer of `model` are."""
    if not isinstance(model, (DQN, PPO)):
        raise ValueError(f"model = {type(model).__name__}: must be DQN or PPO of Stable-Baselines3")
    policy, optimizer = model.policy, model.policy.optimizer
    if model.observation_space.shape is None:
        raise ValueError(f"observation space = {type(model.observation_space).__name__}: must not be of several parts")
    if getattr(model, "use_sde", False):
        raise ValueError("use_sde = True: must be False, for its noise reads the last hidden layer's units")
    if isinstance(model, DQN) and type(policy.q_net).forward is not QNetwork.forward:
        raise ValueError(f"q_net = {type(policy.q_net).__name__}: must run as SB3's QNetwork does")
    if isinstance(model, PPO) and not isinstance(policy, ActorCriticPolicy):
        raise ValueError(f"policy = {type(policy).__name__}: must be an ActorCriticPolicy")
    if not isinstance(optimizer, torch.optim.Adam):
        allowed = "torch.optim.Adam or AdamW"
        raise ValueError(f"policy_kwargs['optimizer_class'] = {type(optimizer).__name__}: must be {allowed}")
    if len(optimizer.param_groups) != 1:
        raise ValueError(f"optimizer: has {len(optimizer.param_groups)} groups of parameters, must have one")


def networks_of(model: BaseAlgorithm) -> tuple[Capturing, dict[str, Capturing]]:
    """The network that trains, and all that there are by name. ValueError: the policy has other parameters too."""
    if isinstance(model, DQN):
        networks = {"online": CapturingQ(model.q_net), "target": CapturingQ(model.q_net_target)}
    else:
        networks = {"online": CapturingPolicy(model.policy)}
    view = networks["online"]
    known = {id(parameter) for name, parameter in view.named_parameters() if name.split(".")[0] in view.parts}
    names = {id(parameter): name for name, parameter in model.policy.named_parameters()}
    for parameter in model.policy.optimizer.param_groups[0]["params"]:
        if id(parameter) not in known:
            raise ValueError(f"policy: '{names.get(id(parameter))}' is in no part that SB3's own policies have")
    return view, networks


@contextmanager
def laws(model: BaseAlgorithm) -> Iterator[None]:
    """Within, PPO's layers know what SB3 initialised them with; torch's default, DQN's, is the one that is assumed."""
    policy, capturing = model.policy, []
    try:
        if getattr(policy, "ortho_init", False):
            root = 2**0.5
            gains = {policy.pi_features_extractor: root, policy.vf_features_extractor: root, policy.mlp_extractor: root}
            for part, gain in {**gains, policy.action_net: 0.01, policy.value_net: 1.0}.items():
                for module in part.modules():
                    if isinstance(module, (nn.Linear, nn.Conv2d)) and not hasattr(module, "initializer"):
                        capturing.append(module)
                        module.initializer = initializer_for("orthogonal", module, gain)
        yield
    finally:
        for module in capturing:
            vars(module).pop("initializer", None)


def _nonlinearity(layer: HiddenLayer) -> Callable[[Tensor], Tensor] | None:
    name = layer.activation
    return NONLINEARITIES.get(name) or getattr(F, name, None) or getattr(torch, name, None)


def _same(pre: Tensor, function: Callable[[Tensor], Tensor] | None, known: LayerActivations) -> bool:
    """Whether these are the values of a layer."""
    if function is None or pre.shape != known.pre.shape:
        return False
    try:
        post = function(pre)
    except TypeError:  # it takes more than one argument
        return False
    return post.shape == known.post.shape and torch.allclose(pre, known.pre) and torch.allclose(post, known.post)


@contextmanager
def quiet(view: nn.Module) -> Iterator[None]:
    """Within, the network is in eval mode, as an intervention expects it."""
    training = [module for module in view.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
