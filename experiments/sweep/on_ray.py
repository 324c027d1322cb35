"""Trials on Ray, on this machine or on a cluster: each a task that reserves what it needs."""

import os
import secrets
import socket
import sys
from collections import deque
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
from experiments.sweep.board import Board
from experiments.sweep.plan import Bundle, Plan, Trial
from experiments.sweep.stacks import Limits, bundles, memory_of
from experiments.sweep.trials import make_together
from experiments.sweep.tries import Outcome, Tries

ROOT = Path(__file__).parents[2]
NOT_SHIPPED = (".git", ".venv*", "runs", "docs", "tests", "benchmarks", "**/__pycache__", ".*_cache", "*.egg-info")
"""What no trial needs. The code is about a megabyte without."""
OBJECTS = 100 * 2**20
"""Bytes of Ray's store for objects on this machine; outcomes are all that goes through it."""
ANSWERS = 10.0
"""Seconds in which a cluster has to."""
POLL, PATIENCE = 1.0, 120.0
"""Seconds between two looks, and in which a trial that is to stop has to save."""


def made_remotely(
    settings: list[dict[str, Any]], command: list[str], lock_timeout: float, gone: Collection[str], seen: str
) -> list[dict[str, Any]]:
    """`make_together` in a process of Ray's, which has none of the sweep's objects. `command`: what is recorded as that
    which made the run; `seen`: a file that must be there."""
    sys.argv[:] = command
    if os.path.exists(seen):
        outcomes = make_together([from_dict(one) for one in settings], lock_timeout, gone)
    else:
        blind = f"{socket.gethostname()} does not see {seen}: runs_dir must lie where all do"
        outcomes = [Outcome("failed", blind)] * len(settings)
    return [asdict(outcome) for outcome in outcomes]


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
        for needs in {tuple(self.reserved(trial, 1).items()) for trial in [*self.plan.tuning, *self.plan.trials]}:
            if any(all(node.get(name, 0.0) >= value for name, value in needs) for node in nodes):
                continue
            most = {name: max(node.get(name, 0.0) for node in nodes) for name, _ in needs}
            words = ", ".join(f"{name} {most[name]:g} (asked for: {value:g})" for name, value in needs)
            sentence = f"a trial fits on no machine; the most that one has: {words}"
            if not address:
                raise ValueError(f"resources: {sentence}")
            self.plan.notes.append(f"{sentence}; such trials wait for one that the cluster may add")

    def reserved(self, trial: Trial, seeds: int) -> dict[str, float]:
        """What a process that makes so many `seeds` of `trial` takes of a node, by Ray's names."""
        asked = self.plan.study.resources
        found = {"CPU": float(trial.config.run.threads or 1), "memory": float(memory_of(trial, seeds, asked.memory))}
        return {**found, "GPU": asked.gpus} if asked.gpus else found

    def _room(self, trial: Trial, seeds: int) -> int:
        """For how many processes, each with so many `seeds` of `trial`, there is room at the same time."""
        needs, nodes = self.reserved(trial, seeds), [node["Resources"] for node in self._nodes]
        return sum(int(min(node.get(name, 0.0) // value for name, value in needs.items())) for node in nodes)

    def _at_once(self, trial: Trial, seeds: int = 1) -> int:
        return self.workers or max(1, self._room(trial, seeds))

    def make(self, trials: Sequence[Trial], board: Board) -> bool:
        """Make all `trials`, telling `board` of each; False where a signal ended it before, after they were saved.

        A trial whose process or machine is lost goes on elsewhere from its newest checkpoint, see `Tries`.
        """
        limits = Limits(self.plan.study.resources.seeds, self._at_once(trials[0]), self._room)
        waiting, running, tries = deque(bundles(trials, limits)), {}, Tries(board)
        with StopRequests() as stop:
            while (waiting or running) and not stop.asked:
                while waiting and len(running) < self._at_once(waiting[0][0], len(waiting[0])):
                    bundle = waiting.popleft()
                    running[self._begin(bundle)] = bundle
                    for trial in bundle:
                        board.set(trial, "running")
                done, _ = ray.wait(list(running), timeout=POLL)
                for reference in done:
                    bundle = running.pop(reference)
                    waiting.extendleft(tries.judged(bundle, _answer(reference, bundle)))
            self._stop(running, board)
        return not stop.asked

    def _begin(self, bundle: Bundle) -> Any:
        needs = self.reserved(bundle[0], len(bundle))
        gone = {node["NodeManagerHostname"] for node in ray.nodes() if not node["Alive"]}
        gone -= {node["NodeManagerHostname"] for node in self._nodes}
        options = {"num_cpus": needs["CPU"], "num_gpus": needs.get("GPU", 0), "memory": int(needs["memory"])}
        begun = self._make.options(name=bundle[0].config.run.name, **options)
        lock = str(self.plan.directory / "lock.json")
        settings = [to_dict(trial.config) for trial in bundle]
        return begun.remote(settings, sys.argv, self.lock_timeout, sorted(gone), lock)

    def _stop(self, running: dict[Any, Bundle], board: Board) -> None:
        """Have what is going on save, and leave."""
        for reference, bundle in running.items():
            ray.cancel(reference)  # is Ctrl-C there, which a run hears
            for trial in bundle:
                board.set(trial, "left", "the sweep was asked to stop")
        if running:
            board.say(f"{sum(map(len, running.values()))} trials are asked to save, and leave")
            ray.wait(list(running), num_returns=len(running), timeout=PATIENCE)


def _answer(reference: Any, bundle: Bundle) -> list[Outcome]:
    """What a task returned, or what ended it, by trial; a lost process is one that was interrupted."""
    try:
        return [Outcome(**outcome) for outcome in ray.get(reference)]
    except OutOfMemoryError as error:
        ended = Outcome("failed", f"its machine ran out of memory: {_first_line(error)}", True)
    except TaskCancelledError:
        ended = Outcome("interrupted", "it was cancelled")
    except RayTaskError as error:
        ended = Outcome("failed", _first_line(error.cause) if error.cause is not None else _first_line(error))
    except RayError as error:
        ended = Outcome("interrupted", f"its process was lost: {_first_line(error)}")
    return [ended] * len(bundle)


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
