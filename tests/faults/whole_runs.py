"""Whole runs of train.py as processes that can be killed at any moment, and what they come to, as one hash."""

import hashlib
import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from experiments.checkpoints import Checkpoints
from experiments.config import from_dict, to_dict
from experiments.logger import CLOCKS
from experiments.run import Run
from experiments.setup import build
from experiments.store import Checkpoint, listed, read

ROOT = Path(__file__).parents[2]
SMALL = "--width 16 --steps 1200 --log-every 60 --checkpoint-every 150 --threads 1 --probe.every 200 --probe.samples 32"
VALUE = "--learning-starts 60 --batch-size 16 --buffer-size 300 --target-period 20 --checkpoint.replay always"
CHANGES = "--env CartPole-v1 --task.change rewards --task.period 350"
RUNS = {
    "dqn": f"dqn {CHANGES} {SMALL} {VALUE} --num-envs 2 --interventions redo --redo.tau 0.4 "
    "--redo.when every-20-gradient-steps",
    "c51": f"c51 --env ImageMDP-v0 --image.num-images 30 --max-episode-steps 25 --task.period 350 {SMALL} {VALUE}",
    "ppo": f"ppo {CHANGES} {SMALL} --num-envs 2 --rollout-steps 40 --num-minibatches 2 --normalize-observations",
}
SEEDS = {
    "dqn, 3 seeds": f"{RUNS['dqn']} --num-seeds 3 --checkpoint.replay until-finished",
    "ppo, 3 seeds": f"{RUNS['ppo']} --num-seeds 3",
}
"""Side by side in one process."""
COMPILED = {f"{name}, compiled": f"{words} --execution compile" for name, words in RUNS.items()}
PROBED = "--log-every 100 --probe.samples 32 --probe.heavy-samples 8 --threads 1 --checkpoint-every"
FRAMES = f"--num-envs 2 --width 32 --learning-starts 100 --buffer-size 2000 --checkpoint.replay always {PROBED} 300"
WORLDS = {
    "Ant, native": f"ppo --env Ant-v5 --steps 4000 --num-envs 2 --rollout-steps 256 {PROBED} 700",
    "Ant, envpool": f"ppo --env Ant-v5 --backend envpool --steps 6000 --num-envs 2 --rollout-steps 256 {PROBED} 1000",
    "Ant, gymnasium": f"ppo --env Ant-v5 --backend gymnasium --steps 3000 --rollout-steps 256 {PROBED} 500",
    "FrictionAnt": f"ppo --env FrictionAnt-v0 --steps 4000 --task.period 1500 --rollout-steps 128 {PROBED} 300",
    "Breakout, envpool": f"dqn --env ALE/Breakout-v5 --steps 1600 {FRAMES} --sticky-actions 0.25",
    "Breakout, envpool in segments": f"dqn --env ALE/Breakout-v5 --steps 1600 {FRAMES} --world-segment 500",
    "Breakout, gymnasium": f"c51 --env ALE/Breakout-v5 --backend gymnasium --steps 1500 {FRAMES}",
    "Pong, ALE": f"ppo --env ALE/Pong-v5 --backend ale --steps 1600 --num-envs 2 --rollout-steps 64 {PROBED} 300",
    "Pong, Breakout in turn": f"dqn --env ALE/Pong-v5,ALE/Breakout-v5 --task.period 500 --steps 1600 {FRAMES}",
    "modes": f"dqn --env ALE/Breakout-v5 --task.change modes --task.period 500 --steps 1600 {FRAMES}",
    "CartPole, drifting rewards": f"dqn {CHANGES} --task.stages 4 {SMALL} {VALUE} --num-envs 3",
    "CartPole, actions": f"dqn --env CartPole-v1 --task.change actions --task.period 350 {SMALL} {VALUE}",
    "CartPole, observations": f"ppo --env CartPole-v1 --task.change observations --task.period 350 {SMALL} "
    "--rollout-steps 40 --num-minibatches 2",
}
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["experiments.train", "experiments.setup", "experiments.earlier", "gymnasium"])
OF_TIME = ("seconds", "sizes", "spaces")
"""What a state holds of the clock on the wall, of files with its digits in them, and of what the system seeds."""


def _train(words: list[str], said: str, stage: tuple[str, int] | None) -> None:
    """In a process of its own: train.py with `words`; killed by itself at the n-th passing of a `stage` of saving."""
    with open(said, "a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    if stage is not None:
        _die_at(*stage)
    sys.path.insert(0, str(ROOT))
    import train
    from experiments.command import as_command

    sys.argv = ["train.py", *words]
    code = as_command(train.main)
    sys.stdout.flush()
    os._exit(code)


def _die_at(name: str, nth: int) -> None:
    from experiments import durable, replay_store, store

    left = nth

    def stage(passed: str, path: Path) -> None:
        nonlocal left
        left -= passed == name
        if passed == name and left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    for module in (durable, replay_store, store):
        module.stage = stage


class WholeRun:
    """A run of train.py in a directory of its own, `runs/run` (or several seeds, in `runs/run-s1` and so on); each
    start is the same command."""

    def __init__(self, name: str, runs: Path, *flags: str) -> None:
        self.words = [
            *(RUNS | SEEDS | COMPILED | WORLDS)[name].split(),
            "--runs-dir",
            str(runs),
            "--name",
            "run",
            *flags,
        ]
        self.directories = [runs / f"run-s{seed}" for seed in (1, 2, 3)] if name in SEEDS else [runs / "run"]
        self.directory, self.said = self.directories[-1], runs.parent / f"{runs.name}.txt"

    def start(self, stage: tuple[str, int] | None = None) -> Any:
        """Its process."""
        process = CONTEXT.Process(target=_train, args=(self.words, str(self.said), stage))
        process.start()
        return process

    def killed_after(self, seconds: float) -> int:
        """Its exit code, killed so many seconds after its start where it has not ended by then."""
        process = self.start()
        process.join(seconds)
        if process.is_alive():
            process.kill()
        process.join()
        return process.exitcode

    def finish(self, stage: tuple[str, int] | None = None) -> int:
        """Its exit code at its end, wherever that is."""
        process = self.start(stage)
        process.join()
        return process.exitcode

    def seconds(self) -> float:
        """How long it takes from its start to its end, where everything is imported."""
        first = CONTEXT.Process(target=int)
        first.start()
        first.join()
        began = time.monotonic()
        assert self.finish() == 0, self.said.read_text()
        return time.monotonic() - began

    def parts(self) -> dict[str, str]:
        """What it has come to: a hash of each part of each seed."""
        return {f"{path.name} {name}": part for path in self.directories for name, part in parts_of(path).items()}


def parts_of(directory: Path) -> dict[str, str]:
    """What the run in `directory` has come to: a hash of each part."""
    *_, last = (read(path) for path in listed(directory / "checkpoints"))
    parts = {**last.load("run"), "agent": last.load("agent"), "replay": _replay(last)}
    for name in ("metrics", "episodes", "tasks"):
        path = directory / f"{name}.jsonl"
        parts[name] = [_timeless(line) for line in path.read_text().splitlines()] if path.exists() else []
    return {name: _hash(part) for name, part in parts.items()}


def _timeless(line: str) -> list[Any]:
    return [pair for pair in json.loads(line).items() if pair[0] not in CLOCKS]


def _replay(checkpoint: Checkpoint) -> Any:
    """What sampling can see of the replay, put together from its segments."""
    if "replay" not in checkpoint.extra:
        return None
    config = from_dict(checkpoint.config)
    world, agent = build(config)
    directory = checkpoint.path.parent.parent
    watched = checkpoint.load("run")["watchers"]
    run = Run(agent, world, config.run.steps, {name: _Deaf() for name in watched})
    if config.run.probes != ("none",):
        from agents.probing import subject_of

        subject_of(agent, agent.generators)  # whose random streams are in the state
    Checkpoints(directory, run, to_dict(config), {}, 0, "always", checkpoint).close()
    world.close()
    names = ("observations", "actions", "rewards", "ages", "terminal", "ended", "final", "tasks")
    names += ("written", "filled", "age")
    return {name: torch.as_tensor(getattr(agent.replay, name)) for name in names}


class _Deaf:
    def notice(self, event: Any) -> None:
        pass

    def load_state_dict(self, state: Any) -> None:
        pass


def _hash(part: Any) -> str:
    found = hashlib.sha256()
    for leaf in _leaves(part):
        found.update(leaf)
    return found.hexdigest()[:16]


def _leaves(node: Any, path: str = "") -> Iterator[bytes]:
    if isinstance(node, dict):
        for key, value in node.items():
            if key not in OF_TIME:
                yield from _leaves(value, f"{path}/{key}")
    elif isinstance(node, list | tuple):
        for index, value in enumerate(node):
            yield from _leaves(value, f"{path}/{index}")
    elif isinstance(node, torch.Tensor):
        yield f"{path} {node.dtype} {tuple(node.shape)} ".encode() + node.contiguous().numpy().tobytes()
    else:
        yield f"{path} {node!r} ".encode()
