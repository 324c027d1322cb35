"""The one seam where a function of tensors of fixed shapes is run: as it stands, compiled, or from a captured graph.

What an agent does on the device (a gradient step, acting) is such a function: nothing is counted, drawn or decided by
the host in it, and no value is read back. So the algorithm is written once, and how it runs is decided here.
"""

import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from agents.config import Execution
from agents.precision import subnormal_flushed
from agents.randomness import Generators

Function = Callable[[Any], Any]
"""Of a nest of tuples and dicts of tensors, to a nest of them."""
MOST_GRAPHS = 32
"""Of one executor: each holds memory of its own. What comes in more shapes is run as it stands."""


NESTS = (dict, tuple, list)


def leaves(nest: Any) -> list[Any]:
    """The values in a nest of tuples, lists and dicts, in their order."""
    if not isinstance(nest, NESTS):
        return [nest]
    found: list[Any] = []
    for value in nest.values() if isinstance(nest, dict) else nest:
        if isinstance(value, NESTS):
            found += leaves(value)
        else:
            found.append(value)
    return found


def rebuilt(nest: Any, values: Iterable[Any]) -> Any:
    """A nest like `nest` with these in place of its leaves."""
    return _built(nest, iter(values))


def _built(nest: Any, remaining: Iterator[Any]) -> Any:
    if isinstance(nest, dict):
        return {
            key: _built(value, remaining) if isinstance(value, NESTS) else next(remaining)
            for key, value in nest.items()
        }
    if isinstance(nest, NESTS):
        made = [_built(value, remaining) if isinstance(value, NESTS) else next(remaining) for value in nest]
        return type(nest)(*made) if hasattr(nest, "_fields") else type(nest)(made)
    return next(remaining)


class Capturer(Protocol):
    """What captures graphs: CUDA's, or what stands in for it in tests."""

    warm_ups: int
    """How often a function is run before it can be captured."""

    def warm_up(self, function: Callable[[], Any]) -> Any:
        """Run it so that it can be captured later."""

    def capture(self, function: Callable[[], Any], generators: Sequence[torch.Generator]) -> tuple[Any, Callable]:
        """What `function` gives, into the same places at each replay, and what replays it. By then it has run once.
        `generators`: what it draws from."""


class CUDACapturer:
    """`torch.cuda.CUDAGraph`s that share a memory pool and the stream that they are captured on."""

    warm_ups = 3

    def __init__(self, device: torch.device) -> None:
        self.stream, self.pool = torch.cuda.Stream(device), torch.cuda.graph_pool_handle()

    def warm_up(self, function: Callable[[], Any]) -> Any:
        # on the stream of the captures, where autograd then expects to be, too
        current = torch.cuda.current_stream()
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            found = function()
        current.wait_stream(self.stream)
        return found

    def capture(self, function: Callable[[], Any], generators: Sequence[torch.Generator]) -> tuple[Any, Callable]:
        graph = torch.cuda.CUDAGraph()
        for generator in generators:
            graph.register_generator_state(generator)
        current = torch.cuda.current_stream()
        try:
            # another thread, that saves a replay say, may use the device meanwhile
            with torch.cuda.graph(graph, self.pool, self.stream, capture_error_mode="thread_local"):
                found = function()
        finally:
            torch.cuda.set_stream(current)  # a capture that fails leaves its own behind
        graph.replay()
        return found, graph.replay


def capturer_for(device: torch.device) -> Capturer | None:
    """What captures graphs on `device`; None where nothing does."""
    return CUDACapturer(device) if device.type == "cuda" else None


class _Graph(NamedTuple):
    given: Any
    """The inputs' places."""
    found: Any
    """The outputs' places."""
    numbers: Tensor | None
    """All outputs in one, where each is a number."""
    replay: Callable[[], None]


class Executor:
    """Runs functions of tensors of fixed shapes as `mode` says.

    "eager": as they stand. "compile": what is given to `compiled` goes through torch.compile. "graph": what is given to
    `run` is captured once for each function, each set of shapes and each `structure`, after some runs as it stands, and
    replayed from then on. "auto": graph on a GPU, else eager, with gradient steps followed where that pays
    (agents/followed_step.py). Where something is missing, `say` is told so in a line, and functions are run as they
    stand.

    `generators`: of the run; those that a function draws from go on in a graph as they would outside.
    """

    def __init__(
        self,
        mode: Execution = "auto",
        device: torch.device = torch.device("cpu"),
        generators: Generators | None = None,
        say: Callable[[str], None] = print,
    ) -> None:
        self.say, self.generators, self.device = say, generators, device
        self.preparing = 0.0
        """Seconds that compiling and capturing took so far."""
        self._capturer = capturer_for(device) if mode in ("auto", "graph") else None
        if mode == "graph" and self._capturer is None:
            say("execution: graphs are captured on a GPU; without one everything runs eagerly")
        self.mode = {"compile": "compile"}.get(mode, "graph" if self._capturer else "eager")
        self.follows = mode == "auto" and device.type == "cpu"
        """Whether gradient steps may be followed."""
        self._graphs: dict[Hashable, _Graph | int] = {}  # a graph, or how often its function ran until now
        self._moved: dict[Hashable, set[torch.Generator]] = {}
        self._full = False
        self._kept: dict[Hashable, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Of a copy, whose tensors lie in other places."""
        return {**vars(self), "_graphs": {}, "_moved": {}, "_kept": {}}

    @property
    def captures(self) -> bool:
        """Whether functions are to be written for graphs: what they read and write stays in its place, and no value is
        read back."""
        return self._capturer is not None

    def forget(self) -> None:
        """What was captured no longer holds: tensors have gone to other places."""
        self._graphs.clear()
        self._kept.clear()

    def kept(self, name: Hashable, make: Callable[[], Any]) -> Any:
        """What `make` gave at the first call with this `name`, until tensors go to other places."""
        if name not in self._kept:
            self._kept[name] = make()
        return self._kept[name]

    def run(self, function: Function, given: Any, structure: Hashable = ()) -> Any:
        """function(given). `structure`: whatever else its course depends on.

        From a graph, outputs that are all numbers are the caller's; others may be overwritten by the next run, of
        whatever function: graphs share memory.
        """
        if self._capturer is None:
            with subnormal_flushed():
                return function(given)
        tensors = leaves(given)
        key = (function, structure, *((tensor.shape, tensor.dtype) for tensor in tensors))
        graph = self._graphs.get(key, 0)
        if isinstance(graph, _Graph):
            for place, tensor in zip(leaves(graph.given), tensors, strict=True):
                if place is not tensor:
                    place.copy_(tensor, non_blocking=True)
            graph.replay()
            return self._taken(graph)
        if not graph and len(self._graphs) >= MOST_GRAPHS:
            if not self._full:
                self.say(f"execution: tensors come in more than {MOST_GRAPHS} shapes, of which the rest run eagerly")
            self._full = True
            return self._capturer.warm_up(lambda: function(given))
        if graph < self._capturer.warm_ups:
            self._graphs[key] = graph + 1
            return self._warm_up(function, given, key)
        return self._captured(function, given, key)

    @staticmethod
    def _taken(graph: _Graph) -> Any:
        if graph.numbers is None:
            return graph.found
        return rebuilt(graph.found, graph.numbers.clone().unbind())

    def _streams(self) -> dict[torch.Generator, Tensor]:
        """Where the generators stand that a function may draw from."""
        made = () if self.generators is None else self.generators.on(self.device)
        return {generator: generator.get_state() for generator in made}

    def _warm_up(self, function: Function, given: Any, key: Hashable) -> Any:
        before = self._streams()
        found = self._capturer.warm_up(lambda: function(given))
        drawn = {one for one, state in before.items() if not torch.equal(state, one.get_state())}
        self._moved[key] = self._moved.get(key, set()) | drawn
        return found

    def _captured(self, function: Function, given: Any, key: Hashable) -> Any:
        began, streams = time.perf_counter(), self._streams()
        places = rebuilt(given, [tensor.clone() for tensor in leaves(given)])

        def whole() -> tuple[Any, Tensor | None]:
            found = function(places)
            outputs = leaves(found)
            numbers = all(isinstance(one, Tensor) and one.ndim == 0 for one in outputs)
            return found, torch.stack([one.float() for one in outputs]) if numbers and outputs else None

        try:
            (found, numbers), replay = self._capturer.capture(whole, sorted(self._moved.pop(key), key=id))
        except RuntimeError as error:
            self._capturer, self.mode = None, "eager"
            self._graphs.clear()
            for generator, state in streams.items():
                generator.set_state(state)
            reason = str(error).strip().partition("\n")[0]
            self.say(f"execution: a graph could not be captured, so everything runs eagerly: {reason}")
            return function(given)
        graph = self._graphs[key] = _Graph(places, found, numbers, replay)
        self.preparing += time.perf_counter() - began
        return self._taken(graph)

    def compiled(self, function: Callable) -> Callable:
        """`function`, compiled if that was asked for."""
        return _Compiled(function, self) if self.mode == "compile" else function


class _Compiled:
    """A function that is compiled at its first call, or, where that fails, stays as it is."""

    def __init__(self, function: Callable, executor: Executor) -> None:
        self.function, self.executor = function, executor
        self.compiled: Callable | None = None
        self._known = 0

    def __call__(self, *given: Any) -> Any:
        if self.compiled is None:
            return self._first(*given)
        return self.compiled(*given)

    def _first(self, *given: Any) -> Any:
        began = time.perf_counter()
        self.compiled = torch.compile(self.function, dynamic=False)
        self.executor.say("execution: compiling, which takes a while, once")
        try:
            found = self.compiled(*given)
            self.executor.say(f"execution: compiled in {time.perf_counter() - began:.1f} s")
        except Exception as error:  # whatever a missing or broken compiler raises
            self.compiled = self.function
            reason = str(error).strip().partition("\n")[0]
            self.executor.say(f"execution: nothing could be compiled, so everything runs eagerly: {reason}")
            found = self.function(*given)
        self.executor.preparing += time.perf_counter() - began
        return found
