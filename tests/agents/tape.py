"""A stand-in for CUDA graphs on a CPU: every operation is recorded once, with the very tensors it read and wrote, and
replayed into them.

What a CUDA graph cannot hold raises while it is recorded: reading a value back, shapes that depend on values, tensors
made from the host's numbers. After every run what was made in between is spoilt, as it is where graphs share memory.
"""

from contextlib import contextmanager
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
READS_BACK = (aten._local_scalar_dense, aten.is_nonzero, aten.equal)
SHAPED_BY_VALUES = (aten.nonzero, aten.masked_select, aten._unique2, aten.unique_dim)
FROM_THE_HOST = (aten.lift_fresh, aten.lift_fresh_copy)


def refuse(*args, **kwargs):
    raise RuntimeError("a value is read back while a graph is captured")


class Recorder(TorchDispatchMode):
    """Runs what it sees and keeps it: (operation, its arguments, the tensors it made)."""

    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs, packet = kwargs or {}, operation.overloadpacket
        if packet in READS_BACK:
            refuse()
        if packet in SHAPED_BY_VALUES or (packet is aten.index and any(_is_mask(one) for one in args[1])):
            raise RuntimeError(f"{operation}: a shape depends on values while a graph is captured")
        if packet in FROM_THE_HOST:
            raise RuntimeError(f"{operation}: a tensor is made from the host's numbers while a graph is captured")
        found = operation(*args, **kwargs)
        given = {one.untyped_storage()._cdata for one in tensors_in((args, kwargs))}
        made = [one if one.untyped_storage()._cdata not in given else None for one in tensors_in(found)]
        writes = any(one.alias_info and one.alias_info.is_write for one in operation._schema.arguments)
        if writes or any(one is not None for one in made):
            self.operations.append((operation, args, kwargs, made))
        return found


def tensors_in(nest):
    return [one for one in tree_leaves(nest) if isinstance(one, torch.Tensor)]


def _is_mask(index):
    return isinstance(index, torch.Tensor) and index.dtype in (torch.bool, torch.uint8)


class Tape:
    """See `agents.execution.Capturer`."""

    def __init__(self, warm_ups):
        self.warm_ups, self.captured, self.replayed = warm_ups, 0, 0

    def warm_up(self, function):
        return function()

    def capture(self, function, generators):
        recorder = Recorder()
        names = ("item", "tolist", "numpy", "cpu", "__bool__", "__float__", "__int__")
        with recorder, patch.multiple(torch.Tensor, **dict.fromkeys(names, refuse)):
            found = function()
        self.captured += 1
        kept = {one.untyped_storage()._cdata for one in tensors_in(found)}
        between = [
            one
            for *_, made in recorder.operations
            for one in made
            if one is not None and one.is_floating_point() and one.untyped_storage()._cdata not in kept
        ]
        for operation, _, kwargs, _ in recorder.operations:
            drawn = kwargs.get("generator")  # in another wrapper
            known = drawn is None or any(torch.equal(drawn.get_state(), one.get_state()) for one in generators)
            assert known, f"{operation}: draws from a generator that was not registered"

        def replay():
            self.replayed += 1
            with torch.inference_mode(), torch.autograd._force_original_view_tracking(False):
                for operation, args, kwargs, made in recorder.operations:
                    for place, value in zip(made, tensors_in(operation(*args, **kwargs)), strict=True):
                        if place is not None:
                            place.copy_(value)
            spoil(between)

        spoil(between)
        return found, replay


def spoil(tensors):
    with torch.inference_mode():
        for tensor in tensors:
            tensor.fill_(float("nan"))


@contextmanager
def recorded(warm_ups=2):
    """Within, graphs can be captured on a CPU."""
    tape = Tape(warm_ups)
    with patch("agents.execution.capturer_for", lambda device: tape):
        yield tape
