"""One trial, in whichever process: begun, gone on with, or found finished."""

import gc
import socket
import time
import traceback
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from experiments.config import TrainConfig
from experiments.durable import write_whole
from experiments.earlier import EarlierRun, earlier_run
from experiments.lock import FILE, Locked, holder
from experiments.setup import build, check
from experiments.train import train

BETWEEN_TRIES = 1.0
"""Seconds between two looks at a lock."""
NO_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory", "bad allocation", "bad_alloc")
"""What torch and NumPy say, in part as RuntimeErrors."""


@dataclass(frozen=True)
class Outcome:
    """What became of a trial."""

    state: Literal["finished", "interrupted", "failed"]
    why: str = ""
    out_of_memory: bool = False


def make(config: TrainConfig, lock_timeout: float = 0.0, gone: Collection[str] = ()) -> Outcome:
    """Make the run that `config` names, from where it was; whatever keeps it from its end is the outcome's `why`.

    A directory that another process holds is waited for `lock_timeout` seconds, and taken over from a machine that is
    known to be `gone`.
    """
    try:
        earlier = _taken_up(config, time.monotonic() + lock_timeout, gone)
        if earlier is not None and earlier.lock is None:
            return Outcome("finished")
        return _made(config if earlier is None else earlier.config, earlier)
    except ValueError as error:
        return Outcome("failed", str(error))
    except Exception as error:
        words = traceback.format_exception_only(error)[-1].strip().partition("\n")[0]
        with suppress(OSError):
            write_whole(config.run.runs_dir / config.run.name / "traceback.txt", traceback.format_exc().encode())
        short = isinstance(error, MemoryError) or any(part in str(error).lower() for part in NO_MEMORY)
        return Outcome("failed", words[:300], short)
    finally:
        gc.collect()  # what hangs together in circles would stay while the next one is built


def _taken_up(config: TrainConfig, until: float, gone: Collection[str]) -> EarlierRun | None:
    """The run that was begun before, locked; without a lock where it is finished. Raises ValueError, Locked too."""
    while True:
        earlier = earlier_run(config)
        if earlier is None or earlier.finished:
            return earlier
        try:
            earlier.take_up(_nobody)
            return earlier
        except Locked:
            who = holder(earlier.directory)
            if who is not None and who.host in gone and who.host != socket.gethostname():
                (earlier.directory / FILE).unlink(missing_ok=True)
            elif time.monotonic() >= until:
                raise
            else:
                time.sleep(BETWEEN_TRIES)


def _nobody(sentence: str) -> None:
    """Nobody watches."""


def _made(config: TrainConfig, earlier: EarlierRun | None) -> Outcome:
    try:
        check(config, anew=earlier is None)
        world, agent = build(config, earlier.threads if earlier else 0)
    except BaseException:
        if earlier is not None:
            earlier.lock.release()
        raise
    result = train(config, world, agent, earlier=earlier)
    if result.ending == "finished":
        return Outcome("finished")
    if result.ending == "interrupted" and result.exact:
        return Outcome("interrupted", result.why)
    return Outcome("failed", f"{result.ending} at step {result.step:,}: {result.why}")


Make = Callable[[TrainConfig], Outcome]
