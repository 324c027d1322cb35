"""Settings of an evaluation. Imports no torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from agents.config import require


@dataclass(frozen=True)
class EvaluateConfig:
    """Play whole, unclipped games with the weights of a checkpoint and report their returns."""

    checkpoint: tyro.conf.Positional[Path]
    """A run directory (its final or else newest checkpoint) or a checkpoint file."""
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
    backend: Literal["same", "envpool", "ale", "gymnasium"] = "same"
    """The world's backend; same: the one trained on (gymnasium where a video is made)."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the network plays."""
    threads: int = 0
    """Threads for torch and, each, for the world; 0: their own choice."""
    video: Path | None = None
    """Write the first game as an MP4 to this file."""
    json: bool = False
    """Print one JSON object instead of a table."""

    def __post_init__(self) -> None:
        require(self.episodes >= 1, "episodes", self.episodes, ">= 1")
        require(0 <= self.seed < 2**31, "seed", self.seed, "in [0, 2**31)")
        require(self.num_envs >= 1, "num_envs", self.num_envs, ">= 1")
        require(self.task is None or self.task >= 0, "task", self.task, ">= 0")
        require(self.threads >= 0, "threads", self.threads, ">= 0")
        if self.video is not None:
            require(self.video.suffix == ".mp4", "video", str(self.video), "a file name ending in .mp4")
            require(self.video.parent.is_dir(), "video", str(self.video), "in a directory that exists")
            allowed = "same or gymnasium beside video: the others cannot draw"
            require(self.backend in ("same", "gymnasium"), "backend", self.backend, allowed)
