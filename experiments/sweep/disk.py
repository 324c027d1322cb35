"""What trials take of a disk, counted before the first begins. Imports no torch."""

import os
import shutil
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from typing import NamedTuple

from agents.config import require
from agents.kinds import kind_of
from agents.sizes import FLOAT, network_size
from agents.transitions import Spaces
from envs import describe
from envs.config import WorldConfig
from experiments.config import TrainConfig
from experiments.places import from_here, nearest_folder
from experiments.setup import spaces_from
from experiments.sizes import needed_bytes, sizes_of

OF_A_CHECKPOINT = 500_000
"""Bytes beside the networks: manifests, generators, a world's state, what the log holds back."""
OF_A_LINE = 6_000
"""Of the log at most, in both its files."""
OF_A_STEP = 8
"""Of episodes: a game of the shortest worlds lasts some ten steps."""
PACKED = 8
"""Images shrink on the disk at least so many times."""
OF_A_PROCESS = 700_000_000
"""Main memory that Python and its packages take before a network is built."""


class Need(NamedTuple):
    """Bytes of one trial."""

    kept: int
    """On the disk when it is finished."""
    besides: int
    """There as long as it goes on."""
    memory: int


def need_of(config: TrainConfig) -> Need:
    """An estimate, on the large side."""
    return _need_of(replace(config, run=replace(config.run, seed=0, name="")))


@cache
def _need_of(config: TrainConfig) -> Need:
    network, run, kind = config.agent.network, config.run, kind_of(config.agent)
    for one in config.interventions:
        network = one.configure(network)
    agent = replace(config.agent, network=network)
    spaces = _spaces(config.world)
    parameters = network_size(agent, spaces, network.width, network.depth, max(1, kind.atoms(agent))).parameters
    copies = 4 + kind.target_network + len(config.interventions)  # weights, two moments, what interventions keep
    tasks = config.run.steps // config.world.task.period if config.world.task.period else 0
    ever = 2 + run.steps // config.checkpoint_every + tasks
    count = min(ever, run.keep_checkpoints) if run.keep_checkpoints else ever
    kept = count * (copies * parameters * FLOAT + OF_A_CHECKPOINT)
    kept += run.steps // config.log_every * OF_A_LINE + run.steps * OF_A_STEP
    memory = OF_A_PROCESS + needed_bytes(config, spaces, sizes_of(config), False)
    replay = 0
    if not kind.on_policy:
        memory += spaces.replay_bytes(agent.buffer_size)
        replay = spaces.replay_bytes(min(agent.buffer_size, run.steps)) // (PACKED if spaces.is_image else 1)
    saved = {"off": (0, 0), "until-finished": (0, replay), "always": (replay, 0)}[config.checkpoint.replay]
    return Need(kept + saved[0], saved[1], memory)


@cache
def _spaces(world: WorldConfig) -> Spaces:
    return spaces_from(describe(world))


def require_disk(configs: Iterable[TrainConfig], at_once: int) -> str:
    """That trials with these settings fit on the disk, `at_once` of them going on together; in words.

    Raises ValueError where they do not.
    """
    configs = list(configs)
    if not configs:
        return "nothing more goes to the disk"
    needs = [need_of(config) for config in configs]
    total = sum(need.kept for need in needs) + sum(sorted(need.besides for need in needs)[-at_once:])
    place = configs[0].run.runs_dir
    free = shutil.disk_usage(os.fspath(nearest_folder("runs_dir", place))).free
    trials = f"{len(needs):,} trials take" if len(needs) > 1 else "1 trial takes"
    words = f"{trials} up to {_in_words(total)} of the {_in_words(free)} that are free"
    require(
        total <= free, "runs_dir", str(place), f"where there is room: {words} (keep_checkpoints, checkpoint.replay)"
    )
    return f"{words} in {from_here(place)}"


def _in_words(size: float) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"
