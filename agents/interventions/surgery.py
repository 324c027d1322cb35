"""The surgeon: the only place that edits weights together with the optimizer state that belongs to them.

    layers = hidden_layers(network, observations)
    surgery = Surgery({"online": network}, adam, layers, generator)
    surgery.replace({"dense1": dead})                      # bool mask [units]
    surgery.replace({"dense1": Slots(index, valid)})       # at most k units, work proportional to k

Shapes are static and no value is read back from the device, so `replace` may run eagerly, compiled or in a CUDA graph;
where a generator cannot go along, draw outside with `draw` and pass the draws in. Where the optimizer's `found_inf` is
set (see agents/guard.py) every edit leaves everything as it is.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor, nn

from agents.deeds import Deeds, Done
from agents.interventions.slices import Reinitializer, Slices, Slots, TensorSlices, UnitSet
from agents.layers import Captured
from agents.moments import MOMENTS, AdamState, initialise_adam
from plasticity_probes.units import HiddenLayer

__all__ = ["MOMENTS", "Moments", "Surgery", "initialise_adam"]

Moments = Literal["zero", "keep", "mean", "local"]


class Listener(Protocol):
    """Who hears of edits: an intervention (base.py says what its hooks mean)."""

    def on_replaced(self, layer: HiddenLayer, units: UnitSet) -> None: ...

    def on_reset(self, parameters: Sequence[nn.Parameter]) -> None: ...


class Surgery:
    """Edits the network "online" and, where asked, the same slices of the other `networks` with the same values.

    `networks` have equal structure; `layers` are the online network's; `generator` draws new weights (on the layers'
    device where nothing is to wait for a copy); `sample(n)` gives n observations; `interventions` hear of edits;
    `capture(network, observations)` runs a network and gives what its layers hold; `moments` other than "own" (zero,
    keep, mean or local) takes the place of what a replacement asks for.
    ValueError: the optimizer is not Adam or lacks a trainable parameter of a separable layer; the networks differ;
    `moments` is not known, or "local" beside amsgrad.
    """

    def __init__(
        self,
        networks: Mapping[str, nn.Module],
        optimizer: torch.optim.Adam,
        layers: Sequence[HiddenLayer],
        generator: torch.Generator,
        sample: Callable[[int], Tensor] | None = None,
        interventions: Sequence[Listener] = (),
        capture: Callable[[nn.Module, Tensor], Captured] | None = None,
        moments: str = "own",
    ) -> None:
        if not isinstance(optimizer, torch.optim.Adam):
            raise ValueError(f"optimizer = {type(optimizer).__name__}: must be Adam (or AdamW)")
        self.networks, self.optimizer, self.generator = dict(networks), optimizer, generator
        self.layers = {layer.name: layer for layer in layers}
        self.interventions = tuple(interventions)
        self._sample, self._capture, self.moments = sample, capture, moments
        self.acting = ""  # the intervention whose hook is being called
        self.slices = {layer.name: Slices(layer) for layer in layers if layer.separable}
        self.replaced = {
            name: torch.zeros((), dtype=torch.int64, device=slices.layer.producer.weight.device)
            for name, slices in self.slices.items()
        }  # units replaced so far, by layer, on the device
        online = self._tensors("online")
        self._names = {tensor: name for name, tensor in online.items()}
        self._twins = {name: self._tensors(name) for name in self.networks}
        self._reinitializer = Reinitializer(self.networks["online"], self._names)
        self._adam = AdamState(optimizer, self._names)
        self._once = 1 if self.may_look else torch.ones((), dtype=torch.int64, device=optimizer.found_inf.device)
        self.deeds = Deeds(replayed=not self.may_look)
        self._check(online)

    def _tensors(self, network: str) -> dict[str, Tensor]:
        module = self.networks[network]
        return {**dict(module.named_parameters()), **dict(module.named_buffers())}

    def _check(self, online: dict[str, Tensor]) -> None:
        if self.moments != "own":
            self._require_moments(self.moments)
        for name, tensors in self._twins.items():
            if {key: t.shape for key, t in tensors.items()} != {key: t.shape for key, t in online.items()}:
                raise ValueError(f"networks[{name!r}]: its parameters are not those of networks['online']")
        for slices in self.slices.values():
            for tensor in (owned.tensor for owned in (*slices.incoming, *slices.outgoing)):
                if tensor not in self._names:
                    raise ValueError(f"layers: a parameter of '{slices.layer.name}' is not in networks['online']")
                if tensor.requires_grad and not self._adam.of(tensor):
                    raise ValueError(f"optimizer: lacks '{self._names[tensor]}', which would never train again")

    def of(self, layer: HiddenLayer | str) -> Slices:
        """What the units of a layer own. ValueError naming the layer and the reason where units are not separable."""
        name = layer if isinstance(layer, str) else layer.name
        if name not in self.layers:
            raise ValueError(f"layer '{name}': must be one of {', '.join(self.layers)}")
        if name not in self.slices:
            raise ValueError(f"layer '{name}': its units cannot be replaced one by one: {self.layers[name].reason}")
        return self.slices[name]

    def draw(self, layer: HiddenLayer | str, rows: int) -> tuple[Tensor, Tensor]:
        """Incoming weights [rows, ...] and biases [rows] for new units, by the layer's own law (torch's default for a
        layer without `initializer`), on the producer's device."""
        slices = self.of(layer)
        weight = slices.layer.producer.weight
        drawn = slices.initializer.weight_rows(rows, tuple(weight.shape[1:]), self.generator)
        return drawn.to(weight), slices.initializer.bias_rows(rows, self.generator).to(weight)

    def require_absorb(self, layer: HiddenLayer | str) -> None:
        """ValueError if a consumer of the layer has no bias that could take up a removed unit's mean contribution."""
        for module, _ in self.of(layer).layer.consumers:
            if module.bias is None:
                name = self._names[module.weight].removesuffix(".weight")
                raise ValueError(f"absorb: '{name}' reads '{self.of(layer).layer.name}' but has no bias to absorb it")

    @torch.no_grad()
    def replace(
        self,
        units: Mapping[HiddenLayer | str, Tensor | Slots],
        moments: Moments = "zero",
        absorb: Mapping[HiddenLayer | str, Tensor] | None = None,
        networks: Sequence[str] = ("online",),
        draws: Mapping[HiddenLayer | str, tuple[Tensor, Tensor]] | None = None,
    ) -> dict[str, Tensor]:
        """Replace units: ALL their incoming weights anew, then ALL their outgoing ones to zero, then `on_replaced`.

        Incoming: row and bias by the layer's own law, the norm's gain 1 and bias 0. Outgoing: the columns that the
        unit owns in EVERY consumer. So a weight between two units that are replaced together is 0 (in Dohare24's code,
        which goes layer by layer, it stays random). `units`: by layer, a bool mask [units] or `Slots`. `draws`: by
        layer, what `draw(layer, k or units)` gave, in place of drawing now. Returns how many units were replaced, by
        layer name (0-d int64 on the device).

        `moments`, on exactly those slices: "zero"; "keep"; "mean": first moment 0, second the mean over the surviving
        units' slices of that tensor, so that the first steps are not overlong. The tensor's shared step stays, and with
        it the age that a slice may have of its own. "local": 0, and the elements count their steps from now, each with
        Adam's own bias correction (`AdamState.correct` says how and at what cost; Dohare24's AdamGnT is not this, see
        agents/moments.py). ValueError for "local" beside amsgrad. Biases' moments are treated as weights' are
        (Dopamine's ReDo leaves them alone).

        `absorb`: by layer, the mean over samples of what comes out of the nonlinearity, [units, *positions] (CReLU:
        twice the units). Before anything else, column by column, w_out * mean is added to the consumers' biases, whose
        moments stay. Exact on the mean input for a Linear consumer, also after a flatten. For a convolution it is the
        channel's mean times the sum over the kernel: exact where the channel's mean is the same everywhere, except at
        padded borders.

        `networks`: "online" first; the others get the same new values (they absorb their own w_out), and a removed
        unit's columns become zero there too.
        """
        moments = moments if self.moments == "own" else self.moments
        self._require_moments(moments)
        self._require_networks(networks)
        edits = {self.of(key).layer.name: given for key, given in units.items()}
        absorb = {self.of(key).layer.name: means for key, means in (absorb or {}).items()}
        draws = {self.of(key).layer.name: drawn for key, drawn in (draws or {}).items()}
        if not set(absorb) <= set(edits):
            raise ValueError(f"absorb: {', '.join(sorted(set(absorb) - set(edits)))} must be among the replaced layers")
        allowed = self._adam.allowed()
        chosen = [(self.slices[k], UnitSet.of(given, self.layers[k].units, k, allowed)) for k, given in edits.items()]
        means = [self._column_means(slices, absorb.get(slices.layer.name)) for slices, _ in chosen]
        for (slices, which), columns in zip(chosen, means, strict=True):
            if columns:
                self._absorb(slices, which, columns, networks)
        for slices, which in chosen:
            name = slices.layer.name
            drawn = draws[name] if name in draws else self.draw(name, len(which.index))
            new = dict(zip(("weight", "bias"), drawn, strict=True))
            for owned in slices.incoming:
                values = owned.start if isinstance(owned.start, float) else which.spread(new[owned.start])
                self._edit(owned, which, values, moments, networks)
        for slices, which in chosen:
            for owned in slices.outgoing:
                self._edit(owned, which, 0.0, moments, networks)
        return {slices.layer.name: self._tell(slices, which) for slices, which in chosen}

    def _require_moments(self, moments: str) -> None:
        if moments not in get_args(Moments):
            raise ValueError(f"moments = {moments!r}: must be {', '.join(get_args(Moments))}")
        if moments == "local":
            self._adam.require_local()

    def _require_networks(self, networks: Sequence[str]) -> None:
        if tuple(networks)[:1] != ("online",) or not set(networks) <= set(self.networks):
            allowed = ", ".join(self.networks)
            raise ValueError(f"networks = {tuple(networks)!r}: must be 'online', then any of {allowed}")

    def _twin(self, network: str, tensor: Tensor) -> Tensor:
        """What `tensor` of the online network is in `network`."""
        return self._twins[network][self._names[tensor]]

    def _column_means(self, slices: Slices, post: Tensor | None) -> list[Tensor]:
        """Means by column of each consumer, checked before anything is edited; none where nothing is absorbed."""
        if post is None:
            return []
        self.require_absorb(slices.layer)
        return [slices.consumer_means(post, consumer) for consumer in range(len(slices.outgoing))]

    def _absorb(self, slices: Slices, units: UnitSet, means: list[Tensor], networks: Sequence[str]) -> None:
        once = units.edited & (units.source == torch.arange(len(units.index), device=units.index.device))
        for owned, (module, _), mean in zip(slices.outgoing, slices.layer.consumers, means, strict=True):
            columns = torch.where(once[:, None], mean[units.index], 0).flatten()
            for name in networks:
                weight = owned.read(self._twin(name, owned.tensor), units)
                weight = weight.flatten(2).sum(2) if weight.ndim > 2 else weight
                self._twin(name, module.bias).add_(weight @ columns.to(weight))

    def _edit(
        self, owned: TensorSlices, units: UnitSet, values: Tensor | float, moments: Moments, networks: Sequence[str]
    ) -> None:
        """Write the values into the slices in every one of `networks`, and what belongs there into the moments."""
        pairs = [(self._twin(name, owned.tensor), values) for name in networks]
        state = self._adam.of(owned.tensor) if moments != "keep" else {}
        for name in MOMENTS:
            if name in state:
                mean = moments == "mean" and name != "exp_avg"
                pairs.append((state[name], owned.survivors_mean(state[name], units) if mean else 0.0))
        owned.write(units, *pairs)
        if moments == "local":
            self._adam.born(owned.tensor, owned.dim, owned.owned_by(units))

    def _tell(self, slices: Slices, units: UnitSet) -> Tensor:
        count = units.mask.sum()
        self.note("replaced", slices.layer.name, count)
        self.replaced[slices.layer.name] += count
        for intervention in self.interventions:
            intervention.on_replaced(slices.layer, units)
        return count

    @torch.no_grad()
    def project(self, parameters: Iterable[nn.Parameter], function: Callable[[nn.Parameter], Tensor]) -> None:
        """Move each parameter to function(parameter), in place; moments and step stay as they are."""
        for parameter in parameters:
            self._adam.assign(parameter, function(parameter))
            self.note("projected", self._names[parameter], self._once)

    @torch.no_grad()
    def reset(
        self, what: Iterable[nn.Module | nn.Parameter], networks: Sequence[str] = ("online",)
    ) -> list[nn.Parameter]:
        """Redraw whole tensors of the online network by their own law; their moments and steps start at zero.

        `what`: modules (all their parameters, and the running statistics of norms) and single parameters. A Linear or
        convolution follows its `initializer` or torch's default, a norm gets gain 1 and bias 0, any other vector or
        scalar the value it had when the surgeon was made. `networks` as in `replace`. Returns the parameters.

        ValueError, before anything is edited: a tensor is not the online network's, or its law is not known.
        """
        self._require_networks(networks)
        plan = self._reinitializer.plan(what)
        for module, name, tensor in plan:
            fresh = self._reinitializer.draw(module, name, tensor, self.generator)
            for network in networks:
                self._adam.assign(self._twin(network, tensor), fresh)
        parameters = [tensor for *_, tensor in plan if isinstance(tensor, nn.Parameter)]
        for parameter in parameters:
            self.note("reset", self._names[parameter])
        self.zero_moments(parameters)
        self.zero_step(parameters)
        for intervention in self.interventions:
            intervention.on_reset(parameters)
        redrawn, allowed = set(map(id, parameters)), self._adam.allowed()
        for slices in self.slices.values():
            layer, weight = slices.layer, slices.layer.producer.weight
            if id(weight) in redrawn:
                everything = torch.ones(layer.units, dtype=torch.bool, device=weight.device)
                self._tell(slices, UnitSet.of(everything, layer.units, layer.name, allowed))
        return parameters

    @torch.no_grad()
    def zero_moments(self, parameters: Iterable[nn.Parameter]) -> None:
        """Forget Adam's moments of whole tensors; the step stays, and the age that elements have of their own."""
        self._adam.zero_moments(parameters)

    @torch.no_grad()
    def zero_step(self, parameters: Iterable[nn.Parameter]) -> None:
        """Restart the bias correction of whole tensors; the moments stay."""
        self._adam.zero_step(parameters)

    @torch.no_grad()
    def activations(self, n: int) -> Captured:
        """What the online network's layers hold for n sampled observations, by layer name: (before, after the
        nonlinearity). RuntimeError where the surgeon was given no way to see them."""
        if self._capture is None:
            raise RuntimeError("activations: this surgeon was made without `capture`")
        return self._capture(self.networks["online"], self.sample(n))

    def note(self, what: str, where: str, amount: Tensor | int = 1) -> None:
        """Add to the count of what was done since `take_done` was last called: (who acts, `what`, `where`). In an
        `every_step`, which may be replayed from a graph, `amount` must be a tensor."""
        self.deeds.add((self.acting, what, where), amount)

    def take_done(self) -> Done:
        """What was done since the last call, see agents/deeds.py; tensors are 0-d and on the device."""
        return self.deeds.take()

    @property
    def may_look(self) -> bool:
        """Whether values may be read back: where the guard does it, too."""
        return self._adam.allowed() is None

    def structure(self) -> Hashable:
        """What the course of edits in an `every_step` depends on beside shapes and what learns."""
        return self._adam.with_births()

    def fresh(self, parameters: Iterable[nn.Parameter]) -> list[Tensor]:
        """New values for whole tensors of the online network, each drawn by its own law (see `reset`), in their order;
        nothing is edited."""
        parameters = list(parameters)
        plan = self._reinitializer.plan(parameters)
        drawn = {
            id(tensor): self._reinitializer.draw(owner, name, tensor, self.generator) for owner, name, tensor in plan
        }
        return [v if isinstance(v := drawn[id(p)], Tensor) else torch.full_like(p, v) for p in parameters]

    @torch.no_grad()
    def follow(self, copies: Sequence[Tensor], tensors: Sequence[Tensor]) -> None:
        """Make each of `copies` equal to its tensor, in place, where edits may take place."""
        allowed = self._adam.allowed()
        if allowed is not None:
            tensors = [torch.where(allowed, new, old) for new, old in zip(tensors, copies, strict=True)]
        torch._foreach_copy_(copies, tensors)

    def after_optimizer_step(self) -> None:
        """Called right after every optimizer step, before anything else: elements that moments = "local" gave an age of
        their own get the step that belongs to it."""
        if self._adam.has_births:
            self._adam.correct()

    def sample(self, n: int) -> Tensor:
        """n observations from replay or rollout. RuntimeError where the surgeon was given no way to draw them."""
        if self._sample is None:
            raise RuntimeError("sample: this surgeon was made without `sample`")
        return self._sample(n)

    def state_dict(self) -> dict[str, Any]:
        """The counts of replaced units and the ages that moments = "local" keeps. (The generator's state is its maker's
        to keep.)"""
        replaced = {name: count.clone() for name, count in self.replaced.items()}
        return {"replaced": replaced, "births": self._adam.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        for name, count in self.replaced.items():
            count.copy_(state["replaced"][name])
        self._adam.load_state_dict(state.get("births", {}))
