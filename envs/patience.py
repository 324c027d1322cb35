"""How long a world is waited for, and what becomes of one that does not answer."""

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn

import psutil

from envs.errors import NoAnswer, WorldError

INTERRUPTS = signal.SIGURG
"""What the thread that waits is woken by: ignored by whoever does not expect it, and used by nobody else here."""
GRACE = 5.0
"""Seconds in which a world that is interrupted has to let go; then the process ends without it."""
LAST_WORDS = 10.0
"""Seconds in which a run has then to write what there is of it."""
EXIT_CODE = 1
"""Then, as of any world that fails."""


class Patience:
    """Watches calls of the world, or of several in turn, from `with` to its end, in the main thread.

    A call that takes longer than `seconds` is interrupted: `NoAnswer` is raised where it hangs (a loop, a sleep, a
    pipe, a lock), and becomes a `WorldError` with that traceback. Native code cannot be interrupted: after `GRACE`
    seconds more `give_up` is called in the watching thread while the main one still hangs, with an error that has its
    stack as a note, and the process ends with `EXIT_CODE` and all its children. Only code that never lets go of
    Python's interpreter is waited for without end, since nothing else runs meanwhile. Time in which the process itself
    is stopped (Ctrl-Z) does not count.

    With 0 seconds, and outside the main thread, where nothing can be interrupted, nothing is watched.

        with Patience(60, "CartPole-v1") as patience:
            patience.watch(world, give_up)
    """

    def __init__(self, seconds: float, env: str) -> None:
        self.seconds, self.env = seconds, env
        self._nap = min(max(seconds / 20, 0.01), 0.5)
        self._calls, self._inside, self._late = 0, False, 0  # how many there were; the one that is interrupted
        self._given_up = False
        self._give_up: Callable[[WorldError], object] | None = None  # of the world that is called
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self._before: Any = None

    def watch(self, world: Any, give_up: Callable[[WorldError], object]) -> None:
        """Have the step, reset and close of `world` answered in time."""
        if not self.seconds or threading.current_thread() is not threading.main_thread():
            return
        for name in ("step", "reset", "close"):
            setattr(world, name, self._timed(getattr(world, name), give_up))
        if self._thread is None:
            self._before = signal.signal(INTERRUPTS, self._interrupt)
            self._main = threading.get_ident()
            self._thread = threading.Thread(target=self._look, name="patience", daemon=True)
            self._thread.start()

    def __enter__(self) -> "Patience":
        return self

    def __exit__(self, *error: object) -> None:
        if self._thread is not None:
            self._over.set()
            self._thread.join()
            signal.signal(INTERRUPTS, self._before)

    def _timed(self, call: Callable[..., Any], give_up: Callable[[WorldError], object]) -> Callable[..., Any]:
        def timed(*arguments: Any, **named: Any) -> Any:
            self._give_up = give_up
            self._calls += 1
            self._inside = True
            try:
                try:
                    answer = call(*arguments, **named)
                finally:
                    self._inside = False
                    while self._given_up:  # it came back while its run is being ended
                        self._over.wait(0.05)
            except NoAnswer as error:  # of a backend that puts no errors in words
                self._inside = False
                raise self._overdue() from error
            if self._late == self._calls:  # it caught what was to end it
                raise self._overdue()
            return answer

        return timed

    def _overdue(self) -> WorldError:
        return WorldError(f"env = {self.env!r}: did not answer {self._limit}")

    @property
    def _limit(self) -> str:
        return f"within {self.seconds:g} s"

    def _interrupt(self, number: int, frame: object) -> None:
        if self._inside and self._late == self._calls:
            raise NoAnswer(self._limit)

    def _look(self) -> None:
        call, waited = 0, 0.0
        while not self._over.wait(self._nap):
            if not self._inside or call != self._calls:
                call, waited = self._calls, 0.0
                continue
            waited += self._nap  # not by a clock: it goes on where a process is stopped
            if waited >= self.seconds and self._late != call:
                self._late = call
                signal.pthread_kill(self._main, INTERRUPTS)
            elif waited >= self.seconds + GRACE:
                self._given_up = True  # from here on it cannot come back
                if self._inside and call == self._calls:
                    self._leave(self._give_up)
                self._given_up = False

    def _leave(self, give_up: Callable[[WorldError], object]) -> NoReturn:
        hurry = threading.Timer(LAST_WORDS, os._exit, [EXIT_CODE])
        hurry.daemon = True
        hurry.start()
        error = self._overdue()
        stack = "".join(traceback.format_stack(sys._current_frames()[self._main]))
        error.add_note(f"It hangs here (most recent call last):\n{stack}")
        try:
            with suppress(Exception):
                give_up(error)
            with suppress(Exception):  # nobody may read it any more
                sys.stdout.flush()
            end_children()
        finally:
            os._exit(EXIT_CODE)


def end_children() -> None:
    """End every process that this one has begun and that is still there: a world that has failed ends its own no
    more."""
    with suppress(psutil.Error):
        children = psutil.Process().children(recursive=True)
        for child in children:
            with suppress(psutil.Error):
                child.kill()
        psutil.wait_procs(children, timeout=2)
