"""Several learners of equal settings, seeds of one run, whose gradient steps are computed as one.

    with Stack(learners) as stack:
        stack.together({learner: agent.update, ...})

Each learner keeps all that is its own: network, target, optimizer, guard, interventions, surgeon. Its parameters and
buffers become slices of stacked tensors [seeds, ...], so that whatever edits them in place (a surgery, a target's sync)
goes on as before. What happens on the device in a gradient step (`learn`, see `Learner.update`) is followed once over
all slices, by `vmap` with `grad` inside it, and written down as a flat list of operations on stacked tensors; from then
on only these are done, with neither autograd nor vmap. Adam moves all slices in one call, each with a step count of its
own.

`together` runs each call in a greenlet of its own until it asks for a gradient step, and goes on when all have. One
runs at a time, in the order of the learners, all in one thread: to change over costs next to nothing so, and between
threads it took a large part of a small network's step. torch's modes (`no_grad` and the like) are the thread's: a step
is asked for where none is on that was not on before the call.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NoReturn

import torch
from greenlet import getcurrent, greenlet
from torch import nn

from agents.execution import Executor, leaves, rebuilt
from agents.guard import Gradient, NonFiniteError
from agents.layers import MODED
from agents.learner import Learner
from agents.sizes import MOST_STACKED, TOO_LARGE
from agents.stacked_step import Found, Pull, Slices, of_each, traced_step


def why_in_turns(learners: Sequence[Learner]) -> str:
    """Why the gradient steps of these cannot be computed as one, or are no faster so; empty where they can."""
    first = learners[0]
    modules = list(first.network.modules())
    if any(isinstance(module, nn.Conv2d) for module in modules):
        return "convolutions are not stacked"
    if moded := {type(module).__name__ for module in modules if type(module) in MODED}:
        return f"{' and '.join(sorted(moded))} draws or moves something in the forward pass"
    if first.optimization.guard.holds:
        return "something moves in each network before its gradient is known"
    if first.executor.mode == "compile":
        return "execution is compile"
    for member in first.interventions.members:
        if not member.stacks:
            return f"the penalty of {member.name} reads the forward pass"
    if not set(first.network.parameters()).issuperset(first.optimization.parameters):
        return "an intervention trains parameters outside of the network"
    return ""


def why_no_faster(learners: Sequence[Learner]) -> str:
    """Why computing the gradient steps of these as one saves nothing; empty where it does."""
    parameters = sum(parameter.numel() for parameter in learners[0].network.parameters())
    if learners[0].device.type == "cpu" and parameters > MOST_STACKED:
        return TOO_LARGE
    return ""


class Stack:
    """Computes the gradient steps of `learners` as one, within `together`. Their states are loaded before, not later.

    One alone goes on by itself. ValueError where `why_in_turns` says why several cannot.
    """

    def __init__(self, learners: Sequence[Learner]) -> None:
        why = why_in_turns(learners) if len(learners) > 1 else ""
        if why:
            raise ValueError(f"learners: must be such as can be stacked: {why}")
        self._seats = {learner: _Seat(learner) for learner in learners}
        self.keep(learners)

    def keep(self, learners: Sequence[Learner]) -> None:
        """Only these go on together; one alone goes on by itself."""
        self.learners = list(learners)
        for learner in self._seats.keys() - set(self.learners):
            self._seats.pop(learner).leave()
        self._slices = Slices(self.learners) if len(self.learners) > 1 else None
        self._executor = _executor_of(self.learners) if self.learners else None
        for learner in self.learners:
            learner.executor.forget()  # its tensors have gone to other places
        self._traced: dict[Any, Callable[[Any, Pull], Found]] = {}
        self._functions: dict[Any, Callable[[Any], Any]] = {}
        self._refused: dict[Learner, NonFiniteError] = {}

    def __enter__(self) -> "Stack":
        return self

    def __exit__(self, *error: object) -> None:
        self.keep(())

    def together(self, calls: Mapping[Learner, Callable[[], object]]) -> None:
        """Run all `calls`, by the learner whose gradient steps each asks for. Raises what the first of them raises,
        when all are over."""
        seats = [self._seats[learner] for learner in self.learners if learner in calls]
        as_one = len(self.learners) > 1 and not any(learner.hooked(learning=True) for learner in self.learners)
        for seat in seats:
            seat.begin(calls[seat.learner])
        while asking := [seat for seat in seats if seat.asked is not None]:
            if as_one and len(asking) == len(self.learners):
                try:
                    self._step(asking)
                except Exception as error:  # memory is short, say: each has it from its own step
                    for seat in asking:
                        seat.answer = partial(_raise, error)
            for seat in asking:
                seat.go_on()
        for seat in seats:
            if seat.error is not None:
                raise seat.error

    def _step(self, seats: Sequence["_Seat"]) -> None:
        """One gradient step of each."""
        (learn, *_), batches, structures = zip(*(seat.asked for seat in seats), strict=True)
        columns = zip(*map(leaves, batches), strict=True)
        stacked = rebuilt(batches[0], [torch.stack(column) for column in columns])
        function = self._functions.setdefault(learn.__func__, partial(self._learn, learn))
        found = self._executor.run(function, stacked, structures)
        if self._executor.captures:  # a graph gives it in the same place each time
            found = rebuilt(found, [leaf.clone() for leaf in leaves(found)])
        for seat, learned in zip(seats, of_each(found, len(seats)), strict=True):
            error = self._refused.pop(seat.learner, None)
            seat.answer = partial(_raise, error) if error else partial(_same, learned)

    def _learn(self, learn: Callable[[Any], Any], batch: Any) -> Any:
        """What happens on the device: all of the gradient steps; what `learn` gives, stacked."""
        slices, learning = self._slices, self._slices.learning
        trained, pull = learning.trained, slices.pull(learning.trained)
        shapes = tuple((leaf.shape, leaf.dtype) for leaf in leaves(batch))
        key = learn.__func__, shapes, tuple(trained), tuple(pull.penalties)
        if key not in self._traced:
            self._traced[key] = traced_step(self.learners[0], learn, slices, trained, batch, pull)
        found = self._traced[key](batch, pull)
        self._check(found, trained)
        may = [learner not in self._refused for learner in self.learners]
        slices.move(found.gradients, found.norm, learning, may)
        if not self.learners[0].interventions.members:
            return found.learned
        for learner, seen in zip(self.learners, of_each(found.seen, len(self.learners)), strict=True):
            if learner not in self._refused:
                learner.interventions.every_step(learner.interventions.forward(*(seen or (None, {}))))
        return found.learned

    def _check(self, found: Found, trained: Sequence[str]) -> None:
        """Have each guard look at its loss and gradient."""
        if self.learners[0].optimization.guard.immediate:
            watched = torch.stack([found.norm, *found.watched.values()])
            if math.isfinite(watched.sum().item()):
                return
        scalars = of_each(found.watched, len(self.learners))
        rows = zip(self.learners, found.norms.unbind(), found.norm.unbind(), scalars, strict=True)
        for place, (learner, norms, norm, watched) in enumerate(rows):
            places = {id(parameter): index for index, parameter in enumerate(learner.optimization.parameters)}
            owners = [places[id(self._slices.own[place][name])] for name in trained]
            try:
                learner.optimization.guard.check(Gradient(owners, norms, norm), **watched)
            except NonFiniteError as error:
                self._refused[learner] = error


class _Everyone:
    """The random generators of several runs."""

    def __init__(self, learners: Sequence[Learner]) -> None:
        self.registries = [learner.executor.generators for learner in learners]

    def on(self, device: torch.device) -> list[torch.Generator]:
        """Those on `device`."""
        return [made for registry in self.registries if registry is not None for made in registry.on(device)]


def _executor_of(learners: Sequence[Learner]) -> Executor:
    """Runs what all of them do, as the first one's own would."""
    first = learners[0].executor
    return Executor(first.mode, first.device, _Everyone(learners), first.say)


def _raise(error: Exception) -> NoReturn:
    raise error


def _same(value: Any) -> Any:
    return value


class _Seat:
    """Where a learner asks for gradient steps from: a greenlet that runs one call at a time and waits where it asks."""

    def __init__(self, learner: Learner) -> None:
        self.learner, self._alone = learner, learner.run_step
        self.asked: tuple | None = None
        """(What it is to do on the device, with what, its structure), while it waits."""
        self.answer: Callable[[], Any] | None = None
        """Gives what came of it; None: it is to do it alone."""
        self.error: BaseException | None = None
        self._running: greenlet | None = None
        learner.run_step = self._ask

    def leave(self) -> None:
        """The learner goes on by itself."""
        self.learner.run_step = self._alone

    def begin(self, call: Callable[[], object]) -> None:
        """Run `call`, to its end or until it asks."""
        self.error, self._running = None, greenlet(self._run)
        self.go_on(call)

    def go_on(self, *call: Callable[[], object]) -> None:
        """Run it on, to its end or until it asks again."""
        self.asked = None
        self._running.switch(*call)

    def _run(self, call: Callable[[], object]) -> None:
        try:
            call()
        except BaseException as error:
            self.error = error

    def _ask(self, *step: Any) -> Any:
        if getcurrent() is not self._running:
            return self._alone(*step)
        self.asked, self.answer = step, None
        self._running.parent.switch()
        return self._alone(*step) if self.answer is None else self.answer()
