"""What happened to an agent's weights while it learned, hook by hook: each of several is held to its own deeds."""

import copy
import functools
from typing import NamedTuple

import numpy as np
import torch

from agents.interventions.base import Intervention
from agents.layers import SeededDropout
from tests.agents.interventions.effects.runs import AGENTS, CHECKED, SYNC
from tests.agents.interventions.effects.settings import same


class Snapshot(NamedTuple):
    """Everything, flat; tensor by tensor in the order of `History.shapes`."""

    weights: np.ndarray
    first: np.ndarray
    second: np.ndarray
    steps: np.ndarray
    """Adam's, by tensor."""
    buffers: np.ndarray
    target: np.ndarray
    """The target network's weights, or nothing."""
    trains: np.ndarray
    """bool, by tensor."""


class Edit(NamedTuple):
    """One call of a hook in which weights may be edited."""

    who: str
    hook: str
    gradient_step: int
    before: Snapshot
    after: Snapshot
    replaced: list[tuple[str, np.ndarray]]
    """(layer, mask) as everybody was told."""
    reset: list[str]
    """Names of the tensors."""
    seen: dict[str, np.ndarray]
    """What came out of the nonlinearities on the observations that were sampled, by layer."""


class Penalty(NamedTuple):
    gradient_step: int
    value: float
    start: np.ndarray
    """The initial weights, with what was replaced or reset since."""
    old: tuple[np.ndarray, np.ndarray]
    """Weights and buffers at the last target copy (update phase), with what was replaced or reset since."""
    observations: torch.Tensor | None
    captured: dict[str, tuple[torch.Tensor, torch.Tensor]]
    """These two are kept at the `CHECKED` gradient steps alone."""


class History:
    """Looks on from outside: the hooks of the members are wrapped, and Adam's own."""

    def __init__(self, agent, kind):
        self.agent, self.kind, self.config = agent, kind, AGENTS[kind][0]
        self.on_policy = kind.startswith("ppo")
        self.sync = SYNC["ppo" if self.on_policy else "value"]
        self.lifecycle, self.network, self.adam = (
            agent.learner.interventions,
            agent.network,
            agent.learner.optimization.adam,
        )
        self.members = {member.name: member for member in self.lifecycle.members}
        self.layers = {layer.name: layer for layer in self.lifecycle.layers}
        self._name_tensors()
        self.twin = copy.deepcopy(agent.network)  # a place to try other weights in
        self.first = self.take()
        self.start, self.old = self.first.weights.copy(), (self.first.weights.copy(), self.first.buffers.copy())
        self.edits, self.adam_steps, self.targets, self.given, self.compared = [], [], [], [], []
        self.losses, self.metrics = [], []
        self.penalties = {name: [] for name in self.members}
        self.masks = []  # of dropout while learning: (share dropped, kept as they should be)
        self._replaced, self._reset, self._seen, self._done = [], [], {}, None
        self._watch()

    def _name_tensors(self):
        named = dict(self.network.named_parameters())
        known = set(map(id, named.values()))
        heads = [p for group in self.adam.param_groups for p in group["params"] if id(p) not in known]
        named |= {f"auxiliary{n}": p for n, p in enumerate(heads)}
        self.tensors, self.shapes = named, {name: tuple(p.shape) for name, p in named.items()}
        self._names = {id(tensor): name for name, tensor in named.items()}
        self.sizes = np.array([p.numel() for p in named.values()])
        self.places = dict(zip(named, _slices(self.sizes), strict=True))
        self.own = {name: n for n, name in enumerate(named) if not name.startswith("auxiliary")}
        self._buffers = dict(self.network.named_buffers())
        sizes = [b.numel() for b in self._buffers.values()]
        self.buffer_places = dict(zip(self._buffers, _slices(sizes), strict=True))
        states, target = [self.adam.state[p] for p in named.values()], self.agent.learner.target
        self._zeros, self._target = list(map(torch.zeros_like, named.values())), target
        parts = (
            named.values(),
            *([state[kind] for state in states] for kind in ("exp_avg", "exp_avg_sq", "step")),
            self._buffers.values(),
            [] if target is None else target.parameters(),
        )
        self._all = [_flat(tensor) for part in parts for tensor in part]
        self._parts = _slices([sum(tensor.numel() for tensor in part) for part in map(list, parts[:-1])])
        self._parts.append(slice(self._parts[-1].stop, None))

    def take(self):
        together = _cat(self._all)
        trains = np.array([tensor.requires_grad for tensor in self.tensors.values()])
        return Snapshot(*(together[part] for part in self._parts), trains)

    def _watch(self):
        first = next(iter(self.members.values()))
        _wrap(first, "on_replaced", before=self._on_replaced)
        _wrap(first, "on_reset", before=self._on_reset)
        for name, member in self.members.items():
            for hook in ("every_step", "intervene"):
                if getattr(type(member), hook) is not getattr(Intervention, hook):
                    self._watch_edits(member, hook, name)
            _wrap(member, "penalty", after=functools.partial(self._on_penalty, name))
        head = self.agent.head
        _wrap(head, "meet", before=lambda targets, surgery: self.targets.append(targets.double().numpy()))
        if "popart" in self.members:
            self._watch_edits(head, "meet", "popart")
        _wrap(head, "loss", before=lambda *given: self.given.append(given))
        _wrap(head, "_loss", before=lambda *compared: self.compared.append(compared))
        _wrap(self.lifecycle, "on_target_sync", before=self._on_target_sync)
        _wrap(self.agent.learner.optimization, "backward", before=lambda loss: self.losses.append(float(loss.detach())))
        _wrap(self.agent, "update", after=lambda logged: self.metrics.append({k: float(v) for k, v in logged.items()}))
        _wrap(self.lifecycle.surgery, "activations", after=self._on_activations)
        steps = self.adam_steps
        _wrap(self.adam, "move", before=lambda: steps.append((self._gradients(), self.take())))
        _wrap(self.adam, "move", after=lambda _: steps.append((*steps.pop(), self.take())))
        for module in self.network.modules():
            if isinstance(module, SeededDropout):
                module.register_forward_hook(self._on_dropout)

    def _watch_edits(self, owner, hook, name):
        call = getattr(owner, hook)

        def watched(*args):
            before = self.take()
            self._replaced, self._reset, self._seen = [], [], {}
            call(*args)
            step = self.agent.clock.gradient_steps + (hook == "every_step")  # which is before it is counted
            told = (self._replaced, self._reset, self._seen)
            self.edits.append(Edit(name, hook, step, before, self.take(), *told))

        setattr(owner, hook, watched)

    def _gradients(self):
        """Flat, and whether there is one, by tensor."""
        found = [tensor.grad for tensor in self.tensors.values()]
        filled = [self._zeros[n] if gradient is None else gradient for n, gradient in enumerate(found)]
        return _cat(filled), np.array([gradient is not None for gradient in found])

    def _on_replaced(self, layer, units):
        mask = units.mask.numpy().copy()
        self._replaced.append((layer.name, mask))
        incoming, outgoing = self.owned(layer.name, mask)
        now, places = self.take(), np.concatenate([incoming, outgoing])
        self.start[places] = self.old[0][places] = now.weights[places]
        places = self.owned_buffers(layer.name, mask)
        self.old[1][places] = now.buffers[places]

    def _on_reset(self, parameters):
        names, now = list(map(self.name_of, parameters)), self.take()
        self._reset += names
        for place in map(self.places.__getitem__, names):
            self.start[place] = self.old[0][place] = now.weights[place]

    def _on_target_sync(self):
        now = self.take()
        self.old = now.weights.copy(), now.buffers.copy()
        if self._target is not None:  # whatever was built or wrapped, the copy is one of everything
            same(now.target, now.weights[: len(now.target)], "target network")
            same(_cat(list(self._target.buffers())), now.buffers, "target network")

    def _on_penalty(self, name, result, forward):
        if result is not None:
            step = self.agent.clock.gradient_steps + 1
            captured, observations = {}, None
            if step in CHECKED:  # minibatches lie in memory that the next ones are written into
                observations = forward.observations.clone()
                held = forward.captured.items()
                captured = {k: [values.detach() for values in both] for k, both in held}
            old = tuple(part.copy() for part in self.old)
            told = Penalty(step, float(result.detach()), self.start.copy(), old, observations, captured)
            self.penalties[name].append(told)

    def _on_activations(self, result, n):
        self._seen = {name: post.detach().double().numpy() for name, (_, post) in result.items()}

    def _on_dropout(self, module, given, out):
        if module.training:
            x, kept = given[0].detach(), out.detach() != 0
            alive = x != 0
            right = torch.where(kept, x / (1 - module.rate), 0.0)
            self.masks.append((int((alive & ~kept).sum()), int(alive.sum()), torch.allclose(out, right)))
        else:
            assert out is given[0]

    def owned(self, layer, mask):
        """Where in the weights the rows (with bias, gain and so on) and the columns of the units in `mask` lie."""
        layer = self.layers[layer]
        modules = [module for module in (layer.producer, layer.norm) if module is not None]
        rows = [self.where(tensor)[mask].ravel() for module in modules for tensor in module.parameters()]
        columns = []
        for consumer, owner in layer.consumers:
            owner = owner.numpy()
            columns.append(self.where(consumer.weight)[:, mask[np.maximum(owner, 0)] & (owner >= 0)].ravel())
        return np.concatenate(rows), np.concatenate(columns)

    def running(self, layer):
        """The names of running mean and variance of the layer's norm, where it has them."""
        own = {id(buffer) for buffer in layer.norm._buffers.values()} if layer.norm else ()
        return [n for n, b in self._buffers.items() if id(b) in own and n.endswith(("running_mean", "running_var"))]

    def owned_buffers(self, layer, mask):
        """Where in the buffers the running statistics of the units lie."""
        places = [self.buffer_places[name] for name in self.running(self.layers[layer])]
        return np.concatenate([np.zeros(0, int), *(np.arange(p.start, p.stop)[mask] for p in places)])

    def where(self, tensor):
        """The places of a parameter's elements, in its shape."""
        place = self.places[self.name_of(tensor)]
        return np.arange(place.start, place.stop).reshape(tensor.shape)

    def name_of(self, tensor):
        return self._names[id(tensor)]

    def get(self, flat, name):
        """One tensor out of flat weights or moments, in float64."""
        return flat[self.places[name]].reshape(self.shapes[name]).astype(np.float64)

    def buffer(self, flat, name):
        return flat[self.buffer_places[name]].reshape(self._buffers[name].shape).astype(np.float64)

    def spread(self, by_tensor):
        """A value for each tensor, as one for each element."""
        return np.repeat(by_tensor, self.sizes, axis=-1)

    def forget(self):
        """Let go of hundreds of snapshots at once, which agent and history would keep alive for each other."""
        for kept in (self.edits, self.adam_steps, self.penalties):
            kept.clear()

    def done(self):
        """The surgeon's counts."""
        if self._done is None:
            self._done = self.lifecycle.surgeries()
        return self._done

    def of(self, who, hooks=("every_step", "intervene")):
        return [edit for edit in self.edits if edit.who == who and edit.hook in hooks]

    def training(self, snapshot, name):
        """Whether the parameter trains."""
        return snapshot.trains[self.own[name]]

    def trained(self, snapshot):
        """The names of the network's parameters that train."""
        return [name for name in self.own if self.training(snapshot, name)]

    def where_are(self, names):
        """The places of these tensors, all in one."""
        return np.concatenate([np.arange(0), *(self.where(self.tensors[name]).ravel() for name in names)])

    def beside(self, *names):
        """Whether one of `names` took part as well."""
        return any(name in self.members for name in names)

    @torch.no_grad()
    def twin_with(self, weights, buffers):
        """The network with other weights and buffers, as it is outside learning."""
        for name, parameter in self.twin.named_parameters():
            parameter.copy_(torch.from_numpy(weights[self.places[name]]).view(parameter.shape))
        for name, buffer in self.twin.named_buffers():
            buffer.copy_(torch.from_numpy(buffers[self.buffer_places[name]]).view(buffer.shape))
        return self.twin.eval()


def _wrap(owner, name, before=None, after=None):
    call = getattr(owner, name)

    def wrapped(*args, **watched):
        if before is not None:
            before(*args)
        result = call(*args, **watched)
        if after is not None:
            after(result, *args)
        return result

    setattr(owner, name, wrapped)


def _flat(tensor):
    """A view of it where there is one (channels_last has none)."""
    tensor = tensor.detach()
    return tensor.view(-1) if tensor.is_contiguous() else tensor


def _cat(tensors):
    return torch.cat([t.reshape(-1) for t in tensors]).numpy() if tensors else np.zeros(0, np.float32)


def _slices(sizes):
    ends = np.cumsum(sizes)
    return [slice(int(end - size), int(end)) for end, size in zip(ends, sizes, strict=True)]
