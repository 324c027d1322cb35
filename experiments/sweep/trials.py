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
from experiments.train import Seed, train_seeds
from experiments.training import Result

BETWEEN_TRIES = 1.0
"""Seconds between two looks at a lock."""
NO_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory", "bad allocation", "bad_alloc")
"""What torch and NumPy say, in part as RuntimeErrors."""


def make(config: TrainConfig, lock_timeout: float = 0.0, gone: Collection[str] = ()) -> Outcome:
    """`make_together` for one run."""
    return make_together([config], lock_timeout, gone)[0]


def make_together(
    configs: Sequence[TrainConfig], lock_timeout: float = 0.0, gone: Collection[str] = ()
) -> list[Outcome]:
    """Make the runs that `configs` name, side by side, from where they were: what became of each. Whatever keeps one
    from its end is its outcome's `why`.

    A directory that another process holds is waited for `lock_timeout` seconds, and taken over from a machine that is
    known to be `gone`.
    """
    found: dict[Path, Outcome] = {}
    try:
        runs = _taken_up(configs, time.monotonic() + lock_timeout, gone)
        for result in _made(runs) if runs else ():
            found[result.directory] = _outcome(result)
        failed = Outcome("finished")  # what is not found had been before
    except ValueError as error:
        failed = Outcome("failed", str(error))
    except Exception as error:
        words = traceback.format_exception_only(error)[-1].strip().partition("\n")[0]
        for config in configs:
            with suppress(OSError):
                write_whole(_place(config) / "traceback.txt", traceback.format_exc().encode())
        short = isinstance(error, MemoryError) or any(part in str(error).lower() for part in NO_MEMORY)
        failed = Outcome("failed", words[:300], short)
    finally:
        gc.collect()  # what hangs together in circles would stay while the next one is built
    return [found.get(_place(config), failed) for config in configs]


def _place(config: TrainConfig) -> Path:
    return config.run.runs_dir / config.run.name


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


def _made(runs: Sequence[Asked]) -> list[Result]:
    seeds: list[Seed] = []
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
    return train_seeds(seeds)


def _outcome(result: Result) -> Outcome:
    if result.ending == "finished":
        return Outcome("finished")
    if result.ending == "interrupted" and result.exact:
        return Outcome("interrupted", result.why)
    return Outcome("failed", f"{result.ending} at step {result.step:,}: {result.why}")
