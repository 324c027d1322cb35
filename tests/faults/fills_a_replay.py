"""A process that fills a replay, saves it now and then, and goes on from what is there: to be killed at any moment.

python -m tests.faults.fills_a_replay DIRECTORY STEPS EVERY
"""

import hashlib
import sys
from pathlib import Path

import numpy as np
import torch

from agents.replay import Replay
from experiments.durable import PARTIAL
from experiments.replay_store import ReplayStore, bytes_on_disk, in_manifest, segments_of
from experiments.store import Store, Unsound, newest
from tests.agents.helpers import CPU, STACK, NoiseWorld

RING, SEGMENT = 150, 20
"""Slots of each of three environments."""
NAMES = (
    "observations",
    "actions",
    "rewards",
    "ages",
    "terminal",
    "ended",
    "final",
    "tasks",
    "written",
    "filled",
    "age",
)


def step(world: NoiseWorld, replay: Replay | None) -> None:
    """A step of the world, which depends on its seed alone; seen by `replay`, or repeated without it."""
    transitions = world.step(np.zeros(3, int))
    if replay is not None:
        replay.add(transitions, transitions.rewards, True)


def digest(replay: Replay) -> str:
    """Of everything in it; at the end no slot is older than the last resume."""
    found = hashlib.sha256()
    for name in NAMES:
        value = getattr(replay, name)
        found.update(value.numpy().tobytes() if isinstance(value, torch.Tensor) else value.tobytes())
    return found.hexdigest()


def main(directory: Path, steps: int, every: int) -> None:
    """Fill and save; print where it goes on from, and at the end a hash."""
    folder = directory / "checkpoints"
    folder.mkdir(exist_ok=True)
    replay = Replay(STACK, 3, 3 * RING, 2, 0.9, np.random.default_rng(0), CPU, CPU)
    replays = ReplayStore(directory, replay, SEGMENT * bytes_on_disk(replay, 0) // RING)
    told: list[str] = []
    try:
        resumed = newest(folder, told.append)
        replays.restore(resumed.load("replay"), segments_of(resumed))
    except Unsound:  # killed before the first save
        resumed = None
    if told:
        sys.exit(f"a checkpoint is not sound: {told}")
    store, first = Store(folder, 2, resumed), 0 if resumed is None else resumed.step
    replays.let_go(store.needed())
    if list(directory.rglob(f"*{PARTIAL}")):
        sys.exit("something partial is left")
    world = NoiseWorld(STACK, 3, seed=1)
    for _ in range(first):
        step(world, None)
    print("goes on from", first, flush=True)
    for number in range(first + 1, steps + 1):
        step(world, replay)
        replays.advance()
        if number % every == 0:
            parts = {"replay": replay.state_dict()}
            store.save(number, parts, {}, {}, **in_manifest(replays.seal()))
            replays.let_go(store.needed())
    replays.close()
    print("ended", digest(replay), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
