"""Settings of an evaluation. Imports no torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from agents.config import AsFlag, require
from envs.config import MOST_TASKS
from experiments.config import DAY, MOST_THREADS, SHORTEST_TIMEOUT, TIMEOUTS
from experiments.machine import Device, check_device


@dataclass(frozen=True)
class EvaluateConfig:
    """Play whole, unclipped games with the weights of a checkpoint and report their returns; or, with --probe, measure
    the weights' plasticity instead."""

    run: Annotated[Path, AsFlag.POSITIONAL]
    """A run directory (its newest checkpoint) or a checkpoint; beside --list a directory of runs."""
    list: bool = False
    """Say of each run in a directory how it stands (running, finished, interrupted, crashed and why), its step and last
    return, and whether it can go on."""
    probe: tuple[str, ...] = ()
    """Probes to take in place of games, on the run's saved batches: all (sharpness and trainability too), default, or
    a list as of train.py's --probes."""
    checkpoint: Literal["last", "each"] = "last"
    """Beside --probe: every saved checkpoint (train.py --keep-checkpoints 0 keeps them all), or the last one."""
    refit_targets: int = 10
    """Beside --probe trainability: regressions to fit (Lyle23: 10)."""
    refit_steps: int = 2_000
    """Beside --probe trainability: gradient steps of each refit (Lyle23: 2,000)."""
    episodes: int = 10
    """Games to play."""
    seed: int = 0
    """Seed of the worlds and of sampled actions; nothing of training's."""
    policy: Literal["greedy", "sampled"] = "sampled"
    """sampled: a draw from PPO's policy, training's final epsilon for DQN and C51; greedy: the mode or the best action
    (a greedy Atari player can wait for ever: its games may end at the time limit)."""
    task: int | None = None
    """Worlds that change: index of the task to play; without it the one in force when the checkpoint was saved."""
    num_envs: int = 8
    """Games played at a time, at most."""
    backend: Literal["same", "envpool", "ale", "gymnasium", "native"] = "same"
    """The world's backend; same: the one trained on (gymnasium where a video is made)."""
    device: Device = Device("auto")
    """Where the network plays; cuda:N is GPU number N; auto: CNNs on a GPU where there is one, MLPs on the CPU."""
    threads: int = 0
    """Threads for torch and, each, for the world; 0: of torch one for an MLP, up to 4 of the usable cores for a CNN; of
    the world its own choice."""
    world_timeout: float = 0.0
    """Seconds in which the world has to answer a step or a reset; one that does not ends the playing. 0: it is waited
    for without end."""
    video: Path | None = None
    """Write the first game as an MP4 to this file; its directory is made where there is none."""
    dataset: str | None = None
    """ImageMDP-v0 with an .npz of one's own: where that lies now. It is taken as it is, changed or not."""
    json: bool = False
    """Print one JSON object instead of a table."""

    def __post_init__(self) -> None:
        require(1 <= self.episodes <= 1_000_000, "episodes", self.episodes, "in [1, 1,000,000]")
        require(0 <= self.seed < 2**31, "seed", self.seed, "in [0, 2**31)")
        require(1 <= self.num_envs <= 1_000_000, "num_envs", self.num_envs, "in [1, 1,000,000]")
        for name, most in (("refit_targets", 10_000), ("refit_steps", 10**9)):
            require(1 <= getattr(self, name) <= most, name, getattr(self, name), f"in [1, {most:,}]")
        allowed = "last unless --probe says what to measure"
        require(self.checkpoint == "last" or bool(self.probe), "checkpoint", self.checkpoint, allowed)
        require(self.task is None or 0 <= self.task <= MOST_TASKS, "task", self.task, f"in [0, {MOST_TASKS:,}]")
        check_device(self.device)
        require(0 <= self.threads <= MOST_THREADS, "threads", self.threads, f"in [0, {MOST_THREADS}]")
        timeout = self.world_timeout
        require(timeout == 0 or SHORTEST_TIMEOUT <= timeout <= DAY, "world_timeout", timeout, TIMEOUTS)
        if self.video is not None:
            require(self.video.suffix == ".mp4", "video", str(self.video), "a file name ending in .mp4")
            allowed = "same or gymnasium beside video: the others cannot draw"
            require(self.backend in ("same", "gymnasium"), "backend", self.backend, allowed)
