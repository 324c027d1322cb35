"""Groups of parameters in an optimizer that Stable-Baselines3 has made."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn


class Groups:
    """Gives an optimizer's parameters options of their own, and back the one group it was made with.

    While they are put in, `optimizer.state_dict()` and `load_state_dict` speak of that one group all the same.
    """

    def __init__(self, optimizer: torch.optim.Adam, groups: Sequence[dict[str, Any]]) -> None:
        self.optimizer, self.wanted = optimizer, groups
        self.parameters: list[nn.Parameter] = list(optimizer.param_groups[0]["params"])
        network = set(map(id, self.parameters))
        self.auxiliary = [p for group in groups for p in group["params"] if id(p) not in network]
        self._away: dict[nn.Parameter, dict[str, Any]] = {}  # Adam's state of those, while they are not in it
        self._plain: dict[str, Any] = {}
        self._are_in = False
        self._hooks: list[Any] = []

    def put_in(self) -> None:
        """Regroup."""
        groups = self.optimizer.param_groups
        self._plain = {name: option for name, option in groups[0].items() if name != "params"}
        self._are_in = True
        groups[:] = [{**self._plain, **group, "params": list(group["params"])} for group in self.wanted]
        self.optimizer.state.update(self._away)
        self._hooks = [
            self.optimizer.register_state_dict_post_hook(self._saved),
            self.optimizer.register_load_state_dict_pre_hook(self._loaded),
        ]

    def take_out(self) -> None:
        """As it was made, with the learning rate that it has now; nothing where they are not in."""
        if not self._are_in:
            return
        self._are_in = False
        for hook in self._hooks:
            hook.remove()
        groups = self.optimizer.param_groups
        groups[:] = [{**self._options(), "params": list(self.parameters)}]
        self._away = {p: self.optimizer.state.pop(p) for p in self.auxiliary if p in self.optimizer.state}

    def _options(self) -> dict[str, Any]:
        return {**self._plain, "lr": self.optimizer.param_groups[0]["lr"]}

    def _places(self) -> dict[int, int]:
        """The number that a parameter, by id, has in the state dict as torch makes it."""
        grouped = [p for group in self.optimizer.param_groups for p in group["params"]]
        return {id(parameter): number for number, parameter in enumerate(grouped)}

    def _saved(self, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        places = self._places()
        numbers = {places[id(parameter)]: number for number, parameter in enumerate(self.parameters)}
        moments = {numbers[place]: value for place, value in state["state"].items() if place in numbers}
        group = {**self._options(), "params": list(range(len(self.parameters)))}
        return {**state, "state": dict(sorted(moments.items())), "param_groups": [group]}

    def _loaded(self, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        places, one = self._places(), state["param_groups"][0]
        if len(state["param_groups"]) != 1 or len(one["params"]) != len(self.parameters):
            raise ValueError("optimizer's state: must be of one group with the parameters of this policy")
        moments = {places[id(p)]: optimizer.state[p] for p in self.auxiliary if p in optimizer.state}
        for number, parameter in zip(one["params"], self.parameters, strict=True):
            if number in state["state"]:
                moments[places[id(parameter)]] = state["state"][number]
        groups = [
            {**group, "lr": one["lr"], "params": [places[id(p)] for p in group["params"]]}
            for group in optimizer.param_groups
        ]
        return {**state, "state": moments, "param_groups": groups}

    def auxiliary_state(self) -> list[dict[str, Any]]:
        """Adam's state of the auxiliary parameters."""
        return [dict(self._away.get(p) or self.optimizer.state.get(p, {})) for p in self.auxiliary]

    def load_auxiliary_state(self, state: Sequence[dict[str, Any]]) -> None:
        """Take over what `auxiliary_state` gave; while they are put in."""
        for parameter, own in zip(self.auxiliary, state, strict=True):
            for name, value in own.items():
                self.optimizer.state[parameter][name].copy_(value)
