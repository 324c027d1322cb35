"""Who asks a run to stop: the first time it saves and leaves, the second time it leaves. Imports no torch."""

import os
import signal
import sys
import threading
import time
import weakref
from contextlib import suppress

EXIT_SAVED = 75
"""A command's exit code where a run was asked to stop, and saved all of its state before it did: to be started again
(sysexits.h's EX_TEMPFAIL). One that was asked twice leaves with the shell's 128 + the signal's number."""
HEARD = {
    signal.SIGINT: "Ctrl-C",
    signal.SIGTERM: "SIGTERM",
    signal.SIGHUP: "SIGHUP (its terminal was closed)",
    signal.SIGUSR1: "SIGUSR1",
}
"""What is heard. SIGUSR1 is what Slurm sends ahead of a time limit or a preemption, with --signal=USR1@60."""
SAME = 0.5
"""Seconds in which a second signal is the first one's echo: of a closed terminal both the kernel and the shell tell,
and a wrapper passes on the Ctrl-C that reached the run by itself."""


class StopRequests:
    """Hears signals from `with` to its end; the loop in it looks at `asked` between two ticks.

    What the run was started deaf to it stays deaf to (nohup, a shell's job in the background). A thread does the
    hearing, so that a second signal ends the process even while the first waits for a world that hangs. Outside the
    main thread, where Python takes no signals, nothing is heard.

        with StopRequests() as stop:
            while not run.over and not stop.asked:
                run.advance()
    """

    def __init__(self) -> None:
        self.asked = ""
        """Who asked, in words; empty: nobody."""
        self._since = 0.0
        self._before: dict[signal.Signals, object] = {}

    def ask(self, who: str) -> None:
        """Have the run stop, without a signal; where it is asked already, nothing changes."""
        if not self.asked:
            self._since, self.asked = time.monotonic(), who

    def __enter__(self) -> "StopRequests":
        if threading.current_thread() is not threading.main_thread():
            return self
        heard = [number for number in HEARD if signal.getsignal(number) is not signal.SIG_IGN]
        self._reads, self._writes = os.pipe()
        os.set_blocking(self._writes, False)
        self._woken = signal.set_wakeup_fd(self._writes, warn_on_full_buffer=False)
        self._before = {number: signal.signal(number, _nothing) for number in heard}
        self._listener = threading.Thread(target=self._listen, name="signals", daemon=True)
        self._listener.start()
        _HEARING.add(self)
        return self

    def __exit__(self, *error: object) -> None:
        if self in _HEARING:
            self._deaf()
            os.close(self._writes)
            self._listener.join()
            os.close(self._reads)

    def _deaf(self) -> None:
        """Be as before, in a process that was forked meanwhile too: what ends that one is no request to this."""
        _HEARING.discard(self)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._woken)

    def _listen(self) -> None:
        while numbers := os.read(self._reads, 1):  # empty: the other end was closed
            if numbers[0] in HEARD:
                self._hear(signal.Signals(numbers[0]))

    def _hear(self, number: signal.Signals) -> None:
        if not self.asked:
            self.ask(HEARD[number])
            _say(f"{HEARD[number]}: saving, then leaving; once more leaves at once\n")
        elif time.monotonic() - self._since > SAME:
            _say("leaving at once\n")
            os._exit(128 + number)


_HEARING: "weakref.WeakSet[StopRequests]" = weakref.WeakSet()


def _forked() -> None:
    for requests in list(_HEARING):
        requests._deaf()


os.register_at_fork(after_in_child=_forked)


def _nothing(number: int, frame: object) -> None:
    """Called in the main thread when it comes to it; the listener has heard before."""


def _say(words: str) -> None:
    """Past whatever is in the middle of a line; a terminal's cursor, hidden by a progress bar, comes back."""
    cursor = "\x1b[?25h" if sys.stderr is not None and sys.stderr.isatty() else ""
    with suppress(OSError, ValueError):  # the terminal has gone
        os.write(2, f"{cursor}{words}".encode())
