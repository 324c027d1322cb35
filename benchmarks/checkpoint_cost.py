"""The share of training time that checkpoints take with a full replay, and what they take on the disk.

DQN on Breakout. The replay is filled as training fills it, with frames of the game recorded under random actions and
repeated (zlib looks back over five frames, so that they pack as new ones would), or with noise, which does not pack at
all. Then, for a run whose checkpoints come every ``--every`` steps:

- the first save of a full replay of which nothing is on the disk yet: what a run waits that could not write while it
  went on, as one that turns checkpoints on late;
- saves as they come: ``waits`` is all that training waits for in ``--every`` steps (a copy at each full segment, then
  the save itself), ``thread`` the processor time that the writing thread takes meanwhile, which one with a core to
  spare does not wait for. The shares are of the time of ``--every`` steps at the speed measured here, learning;
- reading it all back, verified.

    OMP_NUM_THREADS=1 python -m benchmarks.checkpoint_cost [--slots N] [--every N] [--folder PLACE]
"""

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from agents.replay import Replay
from agents.transitions import Transitions
from experiments.config import RunConfig, TrainConfig, to_dict
from experiments.presets import preset_config
from experiments.replay_store import ReplayStore, bytes_on_disk, in_manifest, segments_of
from experiments.run import Run
from experiments.setup import build
from experiments.store import Store, newest

RECORDED = 4_096
"""Frames: a gigabyte of stacks is not needed."""
SAVES = 3


def settings(slots: int) -> TrainConfig:
    """DQN on Breakout, learning from the start."""
    preset = preset_config("dqn", "auto", "atari", "ALE/Breakout-v5", 1_000_000)
    agent = replace(preset.agent, buffer_size=slots, learning_starts=1_000)
    run = RunConfig(seed=1, threads=1, device="cpu", steps=1_000_000)
    return replace(preset, agent=agent, run=run)


def seconds_a_step(run: Run, steps: int) -> float:
    """Of training, learning, after a while of it."""
    while run.clock.gradient_steps < 20:
        run.advance()
    began, first = time.perf_counter(), run.clock.steps
    while run.clock.steps < first + steps:
        run.advance()
    return (time.perf_counter() - began) / (run.clock.steps - first)


def recorded(run: Run) -> np.ndarray:
    """[frames, 84, 84] of the run's world under random actions."""
    rng, frames = np.random.default_rng(0), []
    for _ in range(RECORDED):
        observations, *_ = run.world.step(rng.integers(run.world.single_action_space.n, size=run.world.num_envs))
        frames.append(observations[0, -1].copy())
    return np.stack(frames)


class Filling:
    """Adds steps of one environment, a game every 500 of them, `frames` in turn or noise."""

    def __init__(self, replay: Replay, frames: np.ndarray | None) -> None:
        self.replay, self.frames, self.step = replay, frames, 0
        self.rng, self.stack = np.random.default_rng(1), np.zeros((1, 4, 84, 84), np.uint8)
        self.no, self.yes = np.zeros(1, bool), np.ones(1, bool)

    def add(self) -> None:
        """A step."""
        self.step += 1
        noise = self.frames is None
        frame = self.rng.integers(256, size=(84, 84), dtype=np.uint8) if noise else self.frames[self.step % RECORDED]
        self.stack[0, -1] = frame
        ends = self.yes if self.step % 500 == 0 else self.no
        actions, rewards = self.rng.integers(4, size=1), self.rng.random(1).astype(np.float32)
        transition = Transitions(self.stack, actions, rewards, ends, self.no, self.no, self.stack, self.stack)
        self.replay.add(transition, rewards, True)


def size_of(folder: Path) -> int:
    """Bytes of the files in it."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


class Saving:
    """A run directory in which checkpoints of `run`, with its replay, are saved."""

    def __init__(self, directory: Path, run: Run, config: TrainConfig) -> None:
        self.run, self.config, self.directory = run, to_dict(config), directory
        (directory / "checkpoints").mkdir(parents=True)
        self.store = Store(directory / "checkpoints", 2)
        self.replays = ReplayStore(directory, run.agent.replay)

    def save(self, step: int) -> float:
        """Save; seconds of it."""
        began = time.perf_counter()
        state, replay = self.run.state_dict(), self.run.agent.replay.state_dict()
        parts = {"agent": state.pop("agent"), "rest": state, "replay": replay}
        self.store.save(step, parts, self.config, {}, **in_manifest(self.replays.seal()))
        self.replays.let_go(self.store.needed())
        return time.perf_counter() - began

    def fill(self, filling: Filling, steps: int) -> tuple[float, float]:
        """Make so many steps: seconds that training waits for, processor seconds of the thread. Training is so much
        slower than this that the thread is never late; here it is waited for."""
        waits = thread = 0.0
        for _ in range(steps):
            filling.add()
            began = time.perf_counter()
            self.replays.advance()
            waits += time.perf_counter() - began
            if self.replays.busy:
                worked = time.process_time()
                while self.replays.busy:
                    time.sleep(0.01)
                thread += time.process_time() - worked
        return waits, thread


def measure(name: str, run: Run, config: TrainConfig, frames: np.ndarray | None, a_step: float, arguments) -> None:
    """Print the rows of one kind of frames."""
    filling, replay = Filling(run.agent.replay, frames), run.agent.replay
    while len(replay) < replay.num_envs * replay.slots or filling.step < replay.slots:
        filling.add()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as place:
        saving = Saving(Path(place) / "run", run, config)
        first = saving.save(1)
        stored, weights = (size_of(saving.directory / part) for part in ("replay", "checkpoints"))
        print(f"{name}: first save {first:6.1f} s, replay {stored / 1e9:.2f} GB, the rest {weights / 1e6:.0f} MB")
        for number in range(2, 2 + SAVES):
            waits, thread = saving.fill(filling, arguments.every)
            waits += (last := saving.save(number))
            span = arguments.every * a_step
            shares = (
                f"waits {waits:5.2f} s = {waits / (span + waits):.2%}, thread {thread:5.2f} s = {thread / span:.2%}"
            )
            print(f"{name}: after {arguments.every:,} steps {shares}; the save itself {last:.2f} s")
        stored = size_of(saving.directory)
        began = time.perf_counter()
        checkpoint = newest(saving.store.folder, print)
        verified = time.perf_counter() - began
        saving.replays.restore(checkpoint.load("replay"), segments_of(checkpoint))
        read = time.perf_counter() - began - verified
        saving.replays.close()
        print(f"{name}: {stored / 1e9:.2f} GB in all; verified in {verified:.1f} s, read back in {read:.1f} s")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slots", type=int, default=1_000_000, help="of the replay (7 kB of memory each)")
    parser.add_argument("--every", type=int, default=100_000, help="steps between two checkpoints")
    parser.add_argument("--folder", type=Path, default=None, help="where to write; the system's place for such things")
    parser.add_argument("--only", choices=("breakout", "noise"), default=None)
    arguments = parser.parse_args()
    config = settings(arguments.slots)
    world, agent = build(config)
    run = Run(agent, world, config.run.steps)
    a_step = seconds_a_step(run, 400)
    most = bytes_on_disk(agent.replay)
    print(f"DQN on Breakout: {1 / a_step:.0f} steps/s; at most {most / 1e9:.2f} GB of replay on the disk")
    frames = recorded(run)
    for name, given in (("breakout", frames), ("noise", None)):
        if arguments.only in (None, name):
            measure(name, run, config, given, a_step, arguments)
    world.close()


if __name__ == "__main__":
    main()
