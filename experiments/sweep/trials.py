"""Trials of one arm in whichever process: begun, gone on with, or found finished."""

import gc
import socket
import time
import traceback
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path

from experiments.config import TrainConfig
from experiments.durable import write_whole
from experiments.earlier import earlier_run
from experiments.lock import FILE, Locked, holder
from experiments.seeds import Asked, take_up
from experiments.setup import build, check
from experiments.sweep.tries import Outcome
from experiments.train import Seed, side_by_side
from experiments.training import Result

BETWEEN_TRIES = 1.0
"""Seconds between two looks at a lock."""
NO_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory", "bad allocation", "bad_alloc")
"""What torch and NumPy say, in part as RuntimeErrors."""


def make(config: TrainConfig, lock_timeout: float = 0.0, gone: Collection[str] = ()) -> Outcome:
    """Make the run that `config` names, from where it was: what became of it. Whatever keeps it from its end is the
    outcome's `why`.

    A directory that another process holds is waited for `lock_timeout` seconds, and taken over from a machine that is
    known to be `gone`.
    """
    try:
        results = _made([config], time.monotonic() + lock_timeout, gone)
        return _outcome(results[0]) if results else Outcome("finished")  # it had been before
    except ValueError as error:
        return Outcome("failed", str(error))
    except Exception as error:
        return _crashed(config.run.runs_dir / config.run.name, error)
    finally:
        gc.collect()  # what hangs together in circles would stay while the next one is built


def make_together(
    configs: Sequence[TrainConfig], lock_timeout: float = 0.0, gone: Collection[str] = ()
) -> list[Outcome]:
    """`make` for several side by side. One that cannot begin beside the others is made alone, after them."""
    found: dict[Path, Outcome] = {}
    if len(configs) > 1:
        with suppress(Exception):  # of one of them, which says it when it is made alone
            until = time.monotonic() + lock_timeout
            found = {result.directory: _outcome(result) for result in _made(configs, until, gone)}
        gc.collect()
    places = [config.run.runs_dir / config.run.name for config in configs]
    for place, config in zip(places, configs, strict=True):
        if place not in found:
            stopped = [outcome for outcome in found.values() if outcome.state == "interrupted"]
            found[place] = stopped[0] if stopped else make(config, lock_timeout, gone)
    return [found[place] for place in places]


def _taken_up(configs: Sequence[TrainConfig], until: float, gone: Collection[str]) -> list[Asked]:
    """Those that are not finished, with the runs that were begun before, locked. Raises ValueError, Locked too."""
    while True:
        asked = [(config, earlier_run(config)) for config in configs]
        runs = [
            (earlier.config if earlier else config, earlier)
            for config, earlier in asked
            if not (earlier and earlier.finished)
        ]
        try:
            return take_up(runs, _nobody) if runs else []
        except Locked:
            _release(runs)
            for _, earlier in runs:
                who = holder(earlier.directory) if earlier is not None else None
                if who is not None and who.host in gone and who.host != socket.gethostname():
                    (earlier.directory / FILE).unlink(missing_ok=True)
                    break
            else:
                if time.monotonic() >= until:
                    raise
                time.sleep(BETWEEN_TRIES)
        except BaseException:
            _release(runs)
            raise


def _nobody(sentence: str) -> None:
    """Nobody watches."""


def _release(runs: Sequence[Asked]) -> None:
    for _, earlier in runs:
        if earlier is not None and earlier.lock is not None:
            earlier.lock.release()


def _made(configs: Sequence[TrainConfig], until: float, gone: Collection[str]) -> list[Result]:
    """How those that are not finished ended. Raises where one of them cannot begin."""
    runs, seeds = _taken_up(configs, until, gone), []
    try:
        for config, earlier in runs:
            check(config, anew=earlier is None, seeds=len(runs))
        for config, earlier in runs:
            seeds.append(Seed(config, *build(config, earlier.threads if earlier else 0), earlier))
    except BaseException:
        for seed in seeds:
            seed.leave()
        _release(runs)
        raise
    return side_by_side(seeds) if seeds else []


def _outcome(result: Result) -> Outcome:
    if result.ending == "finished":
        return Outcome("finished")
    if result.ending == "interrupted" and result.exact:
        return Outcome("interrupted", result.why)
    if result.raised is not None:
        return _crashed(result.directory, result.raised)
    return Outcome("failed", f"{result.ending} at step {result.step:,}: {result.why}")


def _crashed(place: Path, error: Exception) -> Outcome:
    """Its traceback is written beside what there is of the run."""
    with suppress(OSError):
        write_whole(place / "traceback.txt", "".join(traceback.format_exception(error)).encode())
    words = traceback.format_exception_only(error)[-1].strip().partition("\n")[0]
    short = isinstance(error, MemoryError) or any(part in str(error).lower() for part in NO_MEMORY)
    return Outcome("failed", words[:300], short)
