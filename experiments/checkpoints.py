"""A run's checkpoints, its replay with them: what is saved of it, and what it goes on from."""

from pathlib import Path
from typing import Any

import torch

from agents.guard import NonFiniteError, names_in_words, not_finite
from experiments.config import Keep
from experiments.replay_store import ReplayStore, bytes_on_disk, in_manifest, remove_segments, segments_of
from experiments.run import Run
from experiments.run_directory import fitting
from experiments.store import Checkpoint, Store, read, step_of


class Checkpoints:
    """Saves `run`, between two ticks, to `directory`, which is there and locked.

    Args:
        config, made_by: what the manifest is to say, see `Checkpoint`.
        keep: how many are kept, at least 2; 0: all (and the replay of the newest two).
        replay: whether what a replay stores is saved.
        resumed: the checkpoint that the run goes on from: `run` takes its state over, here. Its settings are the run's.

    Raises OSError, and ValueError where `resumed` is not of such a run or `directory` has checkpoints without it.
    """

    def __init__(
        self,
        directory: Path,
        run: Run,
        config: dict[str, Any],
        made_by: dict[str, Any],
        keep: int,
        replay: Keep = "until-finished",
        resumed: Checkpoint | None = None,
    ) -> None:
        self.directory, self.run, self.config, self.made_by, self.policy = directory, run, config, made_by, replay
        self.folder = directory / "checkpoints"
        self.folder.mkdir(exist_ok=True)
        self.store = Store(self.folder, keep, resumed)
        self.leftovers = self.store.leftovers
        """Names of what interrupted writes had left; they are gone."""
        memory = getattr(run.agent, "replay", None)
        self.replays = None if memory is None else ReplayStore(directory, memory)
        self.inexact = ""
        """Why the run does not go on exactly, world or replay; empty: it does."""
        if resumed is not None:
            self.inexact = self._restore(resumed)
        if self.replays is not None:
            self.leftovers = [*self.leftovers, *self.replays.leftovers]
            self.replays.let_go(self.store.needed())
            if replay == "off":
                self.close()

    def _restore(self, checkpoint: Checkpoint) -> str:
        """Why the run does not go on exactly."""
        state = {**checkpoint.load("run"), "agent": checkpoint.load("agent")}
        watching, device = state["watchers"], self.run.agent.device
        state["watchers"] = {name: on_device(watching[name], device) for name in watching}
        with fitting(checkpoint.path):
            reasons = [self.run.load_state_dict(state)]
        if self.replays is not None and "replay" in checkpoint.extra:
            self.replays.restore(checkpoint.load("replay"), segments_of(checkpoint))
        elif self.replays is not None:
            reasons.append("its replay was not saved (checkpoint.replay is off), and begins empty")
        return "; ".join(filter(None, reasons))

    @property
    def newest(self) -> tuple[Path, int] | None:
        """The newest checkpoint that a run can go on from or that is its end, and its step."""
        return (self.store.sound[-1], step_of(self.store.sound[-1])) if self.store.sound else None

    @property
    def lets_go(self) -> bool:
        """Whether there is a replay that goes when the run is finished."""
        return self.replays is not None and self.policy == "until-finished"

    @property
    def disk_use(self) -> str:
        """What the replay will take, in words; empty where none is saved."""
        if self.replays is None:
            return ""
        most, packed = bytes_on_disk(self.replays.replay), "; images are packed, and take far less"
        return f"the replay takes up to {most / 1e9:.2g} GB in {self.replays.folder}{packed * self.replays.packed}"

    def tick(self) -> None:
        """After every tick: what the replay has filled goes to the disk meanwhile. Raises OSError, later, where it does
        not."""
        if self.replays is not None:
            self.replays.advance()

    def save(self, finished: bool = False) -> Path:
        """Write a checkpoint; where the run is `finished`, its replay goes unless it is always kept.

        Raises `NonFiniteError` or OSError, and removes nothing, where it is not finite or cannot be written.
        """
        state = self.run.state_dict()
        parts = {"agent": _finite(state.pop("agent")), "run": state}
        kept: dict[str, Any] = {}
        leaves = finished and self.lets_go
        if leaves:
            kept = {
                "not_resumable": "the run is finished, and its replay was let go (checkpoint.replay always keeps it)"
            }
        elif self.replays is not None:
            kept, parts["replay"] = in_manifest(self.replays.seal()), self.replays.replay.state_dict()
        path = self.store.save(self.run.clock.steps, parts, self.config, self.made_by, **kept)
        if leaves:
            read(path).verify()
            self.close()
            remove_segments(self.directory)
        elif self.replays is not None:
            self.replays.let_go(self.store.needed())
        return path

    def save_crashed(self, why: str) -> Path:
        """Write what a run that was broken off inside a tick has come to, for evaluate.py alone.

        Raises `NonFiniteError` or OSError.
        """
        parts = {"agent": _finite(self.run.agent.state_dict())}
        told = {"not_resumable": f"weights of a run that was broken off: {why}", "crashed": True}
        return self.store.save(self.run.clock.steps, parts, self.config, self.made_by, **told)

    def close(self) -> None:
        """No more is saved of the replay."""
        if self.replays is not None:
            self.replays.close()
            self.replays = None


def on_device(node: Any, device: torch.device) -> Any:
    """A nest of dicts and lists, its tensors on `device`."""
    if isinstance(node, dict):
        return {key: on_device(value, device) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return type(node)(on_device(value, device) for value in node)
    return node.to(device) if isinstance(node, torch.Tensor) else node


def _finite(agent: dict[str, Any]) -> dict[str, Any]:
    if names := not_finite(agent):
        raise NonFiniteError(f"not finite: {names_in_words(names)}; nothing was saved")
    return agent
