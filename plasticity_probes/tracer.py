"""One forward pass of a model, with its modules as they read and make units."""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils._pytree import tree_map

from plasticity_probes.rules import RULES, normalize
from plasticity_probes.tracing import (
    Follower,
    Layer,
    NotFollowed,
    Path,
    Recorder,
    Tag,
    Use,
    along,
    lose,
    stepped,
    tensors,
)

ForwardFunction = Callable[[nn.Module, Any], Any]

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, _NormBase)
TABLES = (nn.Embedding, nn.EmbeddingBag)  # what they give is input like any other


def run(model: nn.Module, example_input: Any, forward: ForwardFunction | None, mode: Recorder) -> Any:
    """The model's output on a copy of the input under `mode`, everything else left as it is."""
    with _undisturbed(model, example_input):
        inputs = tree_map(lambda leaf: leaf.detach().clone() if isinstance(leaf, Tensor) else leaf, example_input)
        with mode:
            return model(inputs) if forward is None else forward(model, inputs)


@contextmanager
def _undisturbed(model: nn.Module, example_input: Any) -> Iterator[None]:
    """Whatever the model does inside to its buffers, its attributes and the random state is undone."""
    everything = (*model.parameters(), *model.buffers(), *tensors(example_input))
    devices = {tensor.device for tensor in everything if tensor.device.type == "cuda"}
    modules = [module for module in model.modules() if not isinstance(module, torch.jit.ScriptModule)]
    kept = [(module, dict(vars(module)), dict(module._buffers)) for module in modules]
    fast_attention = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.random.fork_rng(devices=list(devices)))
        if "torch._dynamo" in sys.modules:  # compiled parts run as they were written
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        try:
            torch.backends.mha.set_fastpath_enabled(False)  # it reads the weights of modules without calling them
            copies = {id(buffer): buffer.detach().clone() for buffer in model.buffers()}
            for module, _, buffers in kept:
                module._buffers.update({name: copies.get(id(buffer)) for name, buffer in buffers.items()})
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast_attention)
            for module, attributes, buffers in kept:
                _put_back(vars(module), attributes)
                _put_back(module._buffers, buffers)


def _put_back(now: dict[str, Any], before: dict[str, Any]) -> None:
    for name in [name for name in now if name not in before]:
        del now[name]
    for name, value in before.items():
        if name not in now or now[name] is not value:
            now[name] = value


def module_kind(module: nn.Module) -> str:
    """layer, norm, scale, opaque (weights used in a way that is not known here), or "": followed operation by
    operation."""
    if isinstance(module, (torch.jit.ScriptModule, *TABLES)):
        return ""
    declared = getattr(type(module), "traced_as", "")
    if declared == "scale" or (declared == "norm" and isinstance(module, NORMS)):
        return declared
    own_forward = getattr(type(module).forward, "__module__", None) or ""  # None where a class was made by exec or fx
    if "forward" not in vars(module) and own_forward.startswith("torch.nn."):
        if isinstance(module, (nn.Linear, *CONVOLUTIONS)):
            return "layer"
        if isinstance(module, NORMS):
            return "norm"
    leaf = all(name == "parametrizations" for name, _ in module.named_children())
    matrix = any(parameter.ndim > 1 for parameter in module.parameters())
    return "opaque" if isinstance(module, nn.MultiheadAttention) or (leaf and matrix) else ""


def _why_opaque(module: nn.Module) -> str:
    if isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
        return "is recurrent"
    if isinstance(module, nn.MultiheadAttention):
        return "is attention"
    return "is not a plain Linear or convolution"


def count_units(module: nn.Module) -> int:
    for name in ("out_features", "out_channels", "hidden_size", "embed_dim"):
        if isinstance(getattr(module, name, None), int):
            return getattr(module, name)
    return next(parameter for parameter in module.parameters() if parameter.ndim > 1).shape[0]


class Tracer(Follower):
    """Collects `layers` while the model runs under it, between `attach` and `detach`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model.parameters(), RULES)
        self.calls: dict[nn.Module, int] = {}
        self._names = {module: name for name, module in model.named_modules()}
        self._numbers: dict[nn.Module, int] = {}
        self._read: list[tuple[Tensor, Tag]] = []
        self._handles: list[Any] = []

    def attach(self) -> None:
        """Put temporary hooks on the modules that are taken as a whole.

        Last before and first after the module, so that hooks of other people are followed like any other code.
        """
        for module in self._names:
            if module_kind(module):
                self._handles.append(module.register_forward_pre_hook(self._enter, with_kwargs=True))
                self._handles.append(module.register_forward_hook(self._leave, prepend=True))

    def detach(self) -> None:
        """Take the hooks off again."""
        for handle in self._handles:
            handle.remove()

    def finish(self, output: Any) -> None:
        """Note which layers `output` holds."""
        for tensor in tensors(output):
            tag = self.tag(tensor) or Tag()
            for number in (*tag.paths, *tag.lost):
                self.layers[number].in_output = True

    def name(self, module: nn.Module) -> str:
        """With its type, for messages."""
        return f"'{self._names.get(module, '')}' ({type(module).__name__})"

    def _enter(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        if self.inside == 0:
            found = [(tensor, self.tag(tensor)) for tensor in tensors((args, kwargs))]
            self._read = [(tensor, tag) for tensor, tag in found if tag is not None and (tag.paths or tag.lost)]
        self.inside += 1

    def _leave(self, module: nn.Module, args: tuple, output: Any) -> None:
        self.inside -= 1
        if self.inside:
            return
        self.calls[module] = self.calls.get(module, 0) + 1
        self.paused = True
        try:
            if module_kind(module) == "norm":
                self._normed(module, output)
            elif module_kind(module) == "scale":
                self._scaled(output)
            else:
                for tensor, tag in self._read:
                    self._consumed(module, tensor, tag)
                self._produced(module, output)
        finally:
            self.paused = False

    def _normed(self, norm: nn.Module, output: Tensor) -> None:
        for _, tag in self._read:
            shape = None if hasattr(norm, "traced_as") else getattr(norm, "normalized_shape", None)
            try:
                tag = normalize(self, tag, output, -len(shape) if shape else 1, norm, self.name(norm))
            except NotFollowed as why:
                tag = Tag(lost=lose([tag], str(why)))
            self.set(output, tag)

    def _scaled(self, output: Tensor) -> None:
        """Every element stays where it was, and does not show in the expression."""
        for _, tag in self._read:
            if tag.ids is not None and tag.ids.shape == output.shape:
                paths = {n: stepped(self, n, path, output, tag.ids, path.expression) for n, path in tag.paths.items()}
                self.set(output, replace(tag, paths=paths))
            else:
                self.set(output, Tag(lost=lose([tag], "a module that scales gives another shape")))

    def _consumed(self, module: nn.Module, tensor: Tensor, tag: Tag) -> None:
        """Note whose units the columns of `module`'s input are."""
        dim = -1 - len(module.kernel_size) if isinstance(module, CONVOLUTIONS) else -1
        columns = along(tag.ids, dim) if tag.paths else None
        reason = "" if columns is not None else f"a column that {self.name(module)} reads belongs to no single unit"
        if module_kind(module) == "opaque":
            columns, reason = None, f"feeds {self.name(module)}, which {_why_opaque(module)}"
        elif getattr(module, "groups", 1) > 1:
            reason = f"feeds {self.name(module)}, a grouped convolution, whose weight has no column for each channel"
        reasons = {n: (path, reason) for n, path in tag.paths.items()}
        for number, (path, why) in (*reasons.items(), *tag.lost.items()):
            layer = self.layers[number]
            owner = torch.full((tensor.shape[dim],), -1, device=tensor.device)
            if columns is not None and number in tag.paths:
                owner = torch.where(layer.mine(columns), columns.long() - layer.first, -1)
            layer.uses.append(Use(module, owner, path, why))

    def _produced(self, module: nn.Module, output: Any) -> None:
        """Give `module`'s output a fresh tag: its columns are its own units."""
        number = self._numbers.setdefault(module, len(self.layers))
        opaque = f"{type(module).__name__} {_why_opaque(module)}" if module_kind(module) == "opaque" else ""
        if number == len(self.layers):
            first = sum(layer.units for layer in self.layers)
            self.layers.append(Layer(self._names.get(module, ""), module, first, count_units(module), opaque))
        layer = self.layers[number]
        for tensor in tensors(output):
            ids = torch.full(tensor.shape, -1.0, dtype=torch.float32, device=tensor.device)
            if not opaque:
                after = len(module.kernel_size) if isinstance(module, CONVOLUTIONS) else 0
                own = torch.arange(layer.first, layer.first + layer.units, device=tensor.device).float()
                ids = own.view(-1, *[1] * after).expand(tensor.shape)
            place = self.place(tensor, ids)
            path = Path("x", None, place, place)
            self.set(tensor, Tag(lost={number: (path, opaque)}) if opaque else Tag(ids, {number: path}))
