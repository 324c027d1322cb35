"""A run that is built anew from its state between two ticks goes on as if nothing had happened, to the bit.

A world that can be read is built anew, too; another is handed over as it is.
"""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agents.guard import Watch
from envs.resumption import Resumed
from envs.vector import World
from experiments.checkpoints import Checkpoints
from experiments.cli import parse_train
from experiments.config import TrainConfig, to_dict
from experiments.run import Event, Run, Tick
from experiments.run_directory import RunDirectory
from experiments.setup import build
from experiments.store import newest
from experiments.watchers import Watchers
from tests.experiments.test_run import one_thread  # noqa: F401

VALUE = "--steps 420 --width 16 --learning-starts 60 --batch-size 16 --buffer-size 300 --target-period 20"
POLICY = "ppo --steps 480 --width 16 --num-envs 2 --rollout-steps 40 --num-minibatches 2 --update-epochs 2"
CHANGES = "--env CartPole-v1 --task.change rewards --task.period 130"
IMAGES = "--env ImageMDP-v0 --image.num-images 30 --max-episode-steps 25 --task.period 130"
PROBES = "--probes all --probe.every 70 --probe.samples 32 --probe.heavy-samples 6"
REDO = "--redo.tau 0.4 --redo.when every-15-gradient-steps --redo.samples 16"

RUNS = {
    "dqn": f"dqn {VALUE} {CHANGES} {PROBES} --num-envs 3 --n-step 3 --reward-transform scale",
    "dqn, surgeries": f"dqn {VALUE} {CHANGES} {PROBES} --interventions redo reset l2_init optimizer_reset {REDO} "
    "--reset.when every-150-steps --surgery.moments local",
    "dqn, cbp and popart": f"dqn {VALUE} {IMAGES} {PROBES} --no-double --interventions cbp popart "
    "--cbp.replacement-rate 0.05 --cbp.maturity 20",
    "dqn, batch norm and dropout": f"dqn {VALUE} {IMAGES} {PROBES} --interventions batch_norm dropout "
    "--replay.on-task-change clear",
    "dqn, penalties": f"dqn {VALUE} {CHANGES} --interventions infer parseval pfo shrink_perturb",
    "dqn, injection": f"dqn {VALUE} {CHANGES} --interventions plasticity_injection"
    " --plasticity-injection.when at-step-200",
    "c51": f"c51 {VALUE} {IMAGES} {PROBES} --num-envs 4 --interventions layer_norm redo nap {REDO}",
    "ppo": f"{POLICY} {CHANGES} {PROBES} --reward-transform scale --interventions redo reset {REDO} "
    "--reset.when at-task-changes",
    "ppo, continuous": f"{POLICY} --env Pendulum-v1 {PROBES} --normalize-observations --interventions cbp weight_clip "
    "--cbp.replacement-rate 0.05 --cbp.maturity 5 --surgery.moments local",
    "ppo, popart": f"{POLICY} {IMAGES} {PROBES} --no-clip-vloss --interventions popart batch_norm dropout",
    "dqn, ALE": "dqn --env ALE/Breakout-v5 --backend gymnasium --num-envs 2 --steps 160 --width 16 "
    f"--learning-starts 60 --batch-size 16 --buffer-size 300 --replay-ratio 0.3 --interventions redo "
    f"--redo.when every-5-gradient-steps {PROBES}",
    "ppo, FrictionAnt": f"{POLICY} --env FrictionAnt-v0 --backend gymnasium --task.period 150 --max-episode-steps 40",
    "ppo, drift": f"{POLICY} {CHANGES} --task.stages 4 --learning-rate.end 0 --learning-rate.over 100-steps-of-task",
}
CLOCKS = ("charts/SPS",)


class Recorder:
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def notice(self, event: Event) -> None:
        self.events.append(f"{type(event).__name__} {event[:2] if isinstance(event, Tick) else event.step}")

    def state_dict(self) -> dict[str, Any]:
        return {"events": self.events}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.events = state["events"]


class HandedOver:
    """A live world that cannot say where it stands, and needs no telling."""

    def __init__(self, world: World) -> None:
        self.world = world

    def __getattr__(self, name: str) -> Any:
        return getattr(self.world, name)

    def load_state_dict(self, state: dict[str, Any]) -> Resumed:
        return Resumed(self.world._observations, self.world._infos_of_the_state())


class Made:
    """A run with everybody who watches, as train.py makes it, but for its directory's name."""

    def __init__(self, config: TrainConfig, folder: Path, world: World | HandedOver | None = None) -> None:
        built, agent = build(config)
        folder.mkdir(exist_ok=True)
        directory = RunDirectory.__new__(RunDirectory)
        directory.path = folder
        watch = Watch(agent.learner.optimization, agent.state_dict)
        self.said: list[str] = []
        self.watchers = Watchers(config, agent, directory, watch, self.said.append)
        watchers = self.watchers.all | {"events": Recorder()}
        self.run = Run(agent, world or built, config.run.steps, watchers)
        self.saving: Checkpoints | None = None

    def again(self, config: TrainConfig, folder: Path) -> "Made":
        """The same run built anew from a checkpoint of it."""
        self.saving = self.saving or Checkpoints(folder, self.run, to_dict(config), {}, 2)
        path = self.saving.save()
        self.saving.close()
        resumed = newest(folder / "checkpoints", pytest.fail)
        assert resumed.path == path
        other = Made(config, folder, HandedOver(self.run.world) if self.run.world.resumption.kind == "reset" else None)
        other.saving = Checkpoints(folder, other.run, to_dict(config), {}, 2, resumed=resumed)
        return other

    def finish(self) -> dict[str, Any]:
        """To the end: its last state."""
        while not self.run.over:
            self.run.advance()
        self.watchers.last(self.run.clock.steps)
        state = self.run.state_dict()
        self.watchers.close(self.run.clock.steps, finished=True)
        return state


def lines(path: Path) -> list[dict[str, Any]]:
    """A file's records, without what tells the time of day."""
    records = map(json.loads, path.read_text().splitlines())
    return [{name: value for name, value in record.items() if name not in CLOCKS} for record in records]


def left(made: Made, folder: Path) -> dict[str, Any]:
    """All that the run leaves when it has been finished."""
    state = made.finish()
    del state["world"]["spaces"]  # of a random policy, seeded by the system
    del state["watchers"]["log"]["seconds"], state["watchers"]["log"]["sizes"]
    files = [name for name in ("metrics.jsonl", "episodes.jsonl", "tasks.jsonl") if (folder / name).exists()]
    return state | {name: lines(folder / name) for name in files}


def ticks_to_try(config: TrainConfig, folder: Path) -> list[int]:
    """Ticks at which the run is built anew: three at random, one right before a task change or drift is heard of."""
    made, changes, ticks = Made(config, folder), [], 0
    while not made.run.over:
        made.run.advance()
        ticks += 1
        if made.run.change is not None and not made.run.over:
            changes.append(ticks)
    made.watchers.close(made.run.clock.steps, finished=True)
    source = random.Random(str(config))
    return sorted({*source.sample(range(1, ticks), 3), *source.sample(changes, min(1, len(changes)))})


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.long if "ALE" in name else ()) for name in RUNS])
def test_a_run_built_anew_between_two_ticks_ends_as_the_other_does(name: str, tmp_path: Path) -> None:
    config = parse_train([*RUNS[name].split(), "--threads", "1", "--log-every", "50"])
    expected = left(Made(config, tmp_path / "whole"), tmp_path / "whole")
    assert len(expected["metrics.jsonl"]) >= 5 and expected["agent"]["clock"]["gradient_steps"] > 20
    chosen = ticks_to_try(config, tmp_path / "tried")

    made, folder = Made(config, tmp_path / "parts"), tmp_path / "parts"
    for tick in range(1, max(chosen) + 1):
        made.run.advance()
        if tick in chosen:
            made = made.again(config, folder)
    found = left(made, folder)
    assert differing(expected, found) == []


def test_where_a_world_begins_anew_what_was_left_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = parse_train([*RUNS["dqn"].split(), "--threads", "1"])
    made = Made(config, tmp_path)
    for _ in range(80):
        made.run.advance()
    state, left = made.run.state_dict(), made.run.observations
    other = Made(config, tmp_path)
    anew = Resumed(*other.run.world.reset(), "a test says so")
    monkeypatch.setattr(other.run.world, "load_state_dict", lambda state: anew)
    assert other.run.load_state_dict(state) == "a test says so"
    told: list[Any] = []
    monkeypatch.setattr(other.run.agent, "cut", told.append)
    assert other.run.observations is anew.observations
    for _ in range(3):
        other.run.advance()
    assert len(told) == 1 and np.array_equal(told[0], left)


def differing(one: object, other: object, path: str = "") -> list[str]:
    """Where two nests of tensors and primitives differ in any bit."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return [place for key in one for place in differing(one[key], other[key], f"{path}/{key}")]
    if isinstance(one, (list, tuple)) and type(one) is type(other) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return [place for index, (a, b) in pairs for place in differing(a, b, f"{path}/{index}")]
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor) and one.dtype == other.dtype:
        same = one.shape == other.shape and one.numpy(force=True).tobytes() == other.numpy(force=True).tobytes()
    else:
        same = type(one) is type(other) and repr(one) == repr(other)
    return [] if same else [path]
