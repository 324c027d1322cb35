"""Trials on Ray, on this machine or on a cluster: each a task that reserves what it needs."""

import os
import secrets
import socket
import sys
from collections import Counter, deque
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nobody is told of a sweep

import ray
from ray.exceptions import OutOfMemoryError, RayError, RayTaskError, TaskCancelledError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from agents.config import require
from envs.cores import usable_cores
from experiments.config import from_dict, to_dict
from experiments.run_directory import COMMIT, git_commit
from experiments.signals import StopRequests
from experiments.sweep.board import Board, last_step
from experiments.sweep.disk import need_of
from experiments.sweep.plan import Plan, Trial
from experiments.sweep.trials import Outcome, make

ROOT = Path(__file__).parents[2]
NOT_SHIPPED = (".git", ".venv*", "runs", "docs", "tests", "benchmarks", "**/__pycache__", ".*_cache", "*.egg-info")
"""What no trial needs. The code is about a megabyte without."""
OBJECTS = 100 * 2**20
"""Bytes of Ray's store for objects on this machine; outcomes are all that goes through it."""
DEATHS = 3
"""Processes that a trial may lose without getting any further."""
ANSWERS = 10.0
"""Seconds in which a cluster has to."""
POLL, PATIENCE = 1.0, 120.0
"""Seconds between two looks, and in which a trial that is to stop has to save."""


def made_remotely(
    settings: dict[str, Any], command: list[str], lock_timeout: float, gone: Collection[str], seen: str
) -> dict[str, Any]:
    """`trials.make` in a process of Ray's, which has none of the sweep's objects. `command`: what is recorded as that
    which made the run; `seen`: a file that must be there."""
    sys.argv[:] = command
    if not os.path.exists(seen):
        return asdict(Outcome("failed", f"{socket.gethostname()} does not see {seen}: runs_dir must lie where all do"))
    return asdict(make(from_dict(settings), lock_timeout, gone))


def touched(path: str, answer: str) -> str:
    """Write `answer` beside the file `path`; what that holds."""
    Path(f"{path}.{answer}").write_text(answer)
    return Path(path).read_text()


class OnRay:
    """Makes trials on Ray. Starts it on this machine where `address` is empty.

    Raises ValueError where there is no such cluster, where a node does not see the plan's directory, or where a trial
    would fit on no node.
    """

    def __init__(self, plan: Plan, address: str, workers: int, lock_timeout: float) -> None:
        self.plan, self.workers, self.lock_timeout = plan, workers, lock_timeout
        packed = {"working_dir": str(ROOT), "excludes": list(NOT_SHIPPED)}
        packed["env_vars"] = {"OMP_WAIT_POLICY": "passive", COMMIT: git_commit()}
        here = {"num_cpus": usable_cores(), "object_store_memory": OBJECTS, "include_dashboard": False}
        where = {"address": address} if address else {"address": "local", **here}
        _require_listening(address)
        try:
            ray.init(runtime_env=packed, log_to_driver=False, logging_level="error", **where)
        except (ConnectionError, ValueError, RuntimeError) as error:
            words = " ".join(str(error).split())[:200]
            raise ValueError(f"ray_address = {address!r}: must be that of a Ray cluster: {words}") from None
        self._make = ray.remote(max_retries=0)(made_remotely)
        try:
            self._check_storage()
            self._check_fits(address)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Leave the cluster; of this machine alone, end it."""
        ray.shutdown()

    @property
    def _nodes(self) -> list[dict[str, Any]]:
        return [node for node in ray.nodes() if node["Alive"]]

    def _check_storage(self) -> None:
        """Have every node write to the plan's directory, and read there."""
        mine = self.plan.directory / f".seen-{secrets.token_hex(8)}"
        mine.write_text(mine.name)
        try:
            look = ray.remote(num_cpus=0, max_retries=0)(touched)
            asked = {}
            for node in self._nodes:
                there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                asked[node["NodeManagerHostname"], node["NodeID"]] = look.options(scheduling_strategy=there).remote(
                    str(mine), node["NodeID"]
                )
            for (host, node_id), answer in asked.items():
                written = Path(f"{mine}.{node_id}")
                try:
                    seen = ray.get(answer, timeout=PATIENCE) == mine.name and written.exists()
                    why = "what it writes there is not seen here"
                except (OSError, RayError) as error:
                    seen, why = False, str(error).strip().splitlines()[-1][:200]
                written.unlink(missing_ok=True)
                allowed = f"on storage that all machines see and write to: not seen from {host} ({why})"
                require(seen, "runs_dir", str(self.plan.directory), allowed)
        finally:
            mine.unlink(missing_ok=True)

    def _check_fits(self, address: str) -> None:
        nodes = [node["Resources"] for node in self._nodes]
        for needs in {tuple(self.reserved(trial).items()) for trial in [*self.plan.tuning, *self.plan.trials]}:
            if any(all(node.get(name, 0.0) >= value for name, value in needs) for node in nodes):
                continue
            most = {name: max(node.get(name, 0.0) for node in nodes) for name, _ in needs}
            words = ", ".join(f"{name} {most[name]:g} (asked for: {value:g})" for name, value in needs)
            sentence = f"a trial fits on no machine; the most that one has: {words}"
            if not address:
                raise ValueError(f"resources: {sentence}")
            self.plan.notes.append(f"{sentence}; such trials wait for one that the cluster may add")

    def reserved(self, trial: Trial) -> dict[str, float]:
        """What `trial` takes of a node, by Ray's names."""
        asked, cpus = self.plan.study.resources, trial.config.run.threads or 1
        memory = asked.memory or need_of(trial.config).memory
        found = {"CPU": float(cpus), "memory": float(memory)}
        return {**found, "GPU": asked.gpus} if asked.gpus else found

    def _room(self, trial: Trial) -> int:
        """How many trials go on together where all are like `trial`."""
        needs, nodes = self.reserved(trial), [node["Resources"] for node in self._nodes]
        slots = sum(int(min(node.get(name, 0.0) // value for name, value in needs.items())) for node in nodes)
        return self.workers or max(1, slots)

    def make(self, trials: Sequence[Trial], board: Board) -> bool:
        """Make all `trials`, telling `board` of each; False where a signal ended it before, after they were saved.

        A trial whose process or machine is lost goes on elsewhere from its newest checkpoint, up to `DEATHS` times
        without a step more. One that ran out of memory is tried again once.
        """
        waiting, running, tries = deque(trials), {}, _Tries()
        with StopRequests() as stop:
            while (waiting or running) and not stop.asked:
                while waiting and len(running) < self._room(waiting[0]):
                    trial = waiting.popleft()
                    running[self._begin(trial)] = trial
                    board.set(trial, "running")
                done, _ = ray.wait(list(running), timeout=POLL)
                for reference in done:
                    trial = running.pop(reference)
                    outcome, again = tries.judged(trial, _answer(reference))
                    if again:
                        board.set(trial, "waiting")
                        board.say(f"goes on: {trial.config.run.name}: {outcome.why}")
                        waiting.appendleft(trial)
                    else:
                        board.set(trial, outcome.state, outcome.why)
            self._stop(running, board)
        return not stop.asked

    def _begin(self, trial: Trial) -> Any:
        needs = self.reserved(trial)
        gone = {node["NodeManagerHostname"] for node in ray.nodes() if not node["Alive"]}
        gone -= {node["NodeManagerHostname"] for node in self._nodes}
        options = {"num_cpus": needs["CPU"], "num_gpus": needs.get("GPU", 0), "memory": int(needs["memory"])}
        begun = self._make.options(name=trial.config.run.name, **options)
        lock = str(self.plan.directory / "lock.json")
        return begun.remote(to_dict(trial.config), sys.argv, self.lock_timeout, sorted(gone), lock)

    def _stop(self, running: dict[Any, Trial], board: Board) -> None:
        """Have what is going on save, and leave."""
        for reference, trial in running.items():
            ray.cancel(reference)  # is Ctrl-C there, which a run hears
            board.set(trial, "left", "the sweep was asked to stop")
        if running:
            board.say(f"{len(running)} trials are asked to save, and leave")
            ray.wait(list(running), num_returns=len(running), timeout=PATIENCE)


class _Tries:
    """How often a trial has lost its process, and its memory."""

    def __init__(self) -> None:
        self.short: Counter[Path] = Counter()
        self.deaths: dict[Path, list[int]] = {}

    def judged(self, trial: Trial, outcome: Outcome) -> tuple[Outcome, bool]:
        """(what became of it, whether it is tried again)."""
        place = trial.directory
        if outcome.out_of_memory:
            self.short[place] += 1
            return outcome, self.short[place] == 1
        if outcome.state != "interrupted":
            return outcome, False
        step = last_step(place)[1]
        seen = self.deaths.setdefault(place, [])
        seen[:] = [step, *(other for other in seen if other >= step)]
        if len(seen) < DEATHS:
            return outcome, True
        return Outcome("failed", f"{DEATHS} times in a row without a step more: {outcome.why}"), False


def _answer(reference: Any) -> Outcome:
    """What a task returned, or what ended it, as an outcome; a lost process is one that was interrupted."""
    try:
        return Outcome(**ray.get(reference))
    except OutOfMemoryError as error:
        return Outcome("failed", f"its machine ran out of memory: {_first_line(error)}", True)
    except TaskCancelledError:
        return Outcome("interrupted", "it was cancelled")
    except RayTaskError as error:
        return Outcome("failed", _first_line(error.cause) if error.cause is not None else _first_line(error))
    except RayError as error:
        return Outcome("interrupted", f"its process was lost: {_first_line(error)}")


def _require_listening(address: str) -> None:
    """Raise ValueError where nobody listens at HOST:PORT; Ray would look for minutes."""
    host, colon, port = address.rpartition(":")
    if not colon:
        return
    try:
        socket.create_connection((host, int(port)), timeout=ANSWERS).close()
    except OSError as error:
        why = f"nobody answers there ({error.strerror or error})"
        require(False, "ray_address", address, f"that of a Ray cluster: {why}")


def _first_line(error: BaseException) -> str:
    with suppress(IndexError):
        return str(error).strip().splitlines()[0][:200]
    return type(error).__name__
