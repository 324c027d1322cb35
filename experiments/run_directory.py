"""A run's directory: settings, manifest, checkpoints. Torch is imported where a checkpoint is written or read."""

import json
import os
import platform
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from agents.config import shown
from envs.cores import usable_cores
from experiments import store
from experiments.config import TrainConfig, from_dict, to_dict
from experiments.durable import write_whole, written_aside
from experiments.places import PlaceError, new_directory

if TYPE_CHECKING:
    import torch

PACKAGES = ("torch", "gymnasium", "ale-py", "mujoco", "envpool", "numpy", "tensorboard")
FORMAT = 1
COMMIT = "PLASTICITY_SUITE_COMMIT"
"""The variable that names a commit where the code lies outside git."""
ENDING = "ending.json"
"""Says how a run ended; there is none while it goes on."""


class RunDirectory:
    """Creates `runs_dir/run_name` and writes everything in it that is neither a log nor a checkpoint.

    `prefix` goes before the name. A made-up name that is taken gets -2, -3, ... appended, one that is too long for the
    file system is shortened; nothing is ever overwritten. `earlier`: the directory of a run that goes on, in place of a
    new one. Raises PlaceError where none can be made.
    """

    def __init__(self, config: TrainConfig, prefix: str = "", earlier: Path | None = None) -> None:
        self.config, self.is_new = config, earlier is None
        self.path = new_directory(config.run.runs_dir, prefix + config.run_name) if earlier is None else earlier
        try:
            (self.path / "checkpoints").mkdir(exist_ok=True)
            (self.path / ENDING).unlink(missing_ok=True)
            write_json(self.path / "config.json", to_dict(config))
        except OSError as error:
            raise self.without_room(error) from None

    def without_room(self, error: OSError) -> PlaceError:
        """What to raise where `error` kept the first files from being written; nothing of a new run is left."""
        self.remove()
        place, why = shown(str(self.config.run.runs_dir)), error.strerror or error
        return PlaceError(f"runs_dir = {place}: must be a place with room for a run: {why}")

    def remove(self) -> None:
        """Leave nothing of a run that could not begin; one that was to go on stays as it is."""
        if self.is_new:
            shutil.rmtree(self.path, ignore_errors=True)

    def write_manifest(self, device: "torch.device", placement: str, step: int = 0) -> dict[str, Any]:
        """Record what the settings do not say: command, versions, machine, threads, git commit; of a run that goes on
        from `step`, beside what was recorded before. `placement` says why this device and these threads. What a
        checkpoint is to be compared by."""
        made_by = made_on(device)
        manifest = {"command": [Path(sys.argv[0]).name, *sys.argv[1:]], **made_by}
        manifest |= {"placement": placement, "cpus": os.cpu_count(), "usable_cpus": usable_cores()}
        manifest["platform"] = platform.platform()
        if not self.is_new:
            first = self.manifest()
            manifest = first | {"gone_on": [*first.get("gone_on", []), {"step": step, **manifest}]}
        write_json(self.path / "manifest.json", manifest)
        return made_by

    def manifest(self) -> dict[str, Any]:
        """What is recorded; nothing where there is no such file, or another's."""
        with suppress(OSError, ValueError):
            found = json.loads((self.path / "manifest.json").read_text())
            return found if isinstance(found, dict) else {}
        return {}

    def note(self, name: str, value: str) -> None:
        """Record `value` in the manifest. Raises OSError."""
        write_json(self.path / "manifest.json", self.manifest() | {name: value})

    def write_ending(self, ending: str, why: str, step: int) -> None:
        """Record how the run ended, at which step; on a full disk nobody will know."""
        with suppress(OSError):
            write_json(self.path / ENDING, {"ending": ending, "step": step, "why": why})


def made_on(device: "torch.device") -> dict[str, Any]:
    """What numbers depend on beside the settings: commit, packages, processor, device, threads."""
    import torch

    return {
        "git_commit": git_commit(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "processor": f"{_processor()} ({torch.backends.cpu.get_cpu_capability()})",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "torch_device": str(device),
        "torch_threads": torch.get_num_threads(),
    }


def _processor() -> str:
    with suppress(OSError):
        named = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        if named:
            return named[1]
    return platform.processor() or platform.machine()


def write_tensors(path: Path, content: dict) -> None:
    """Write `content` as torch does: `path` is whole or as before. Raises OSError for want of room."""
    import torch

    with written_aside(path) as file:
        torch.save(content, file)


def write_json(path: Path, content: dict) -> None:
    """Write `content`, readable by people: `path` is whole or as before. Raises OSError for want of room."""
    write_whole(path, (json.dumps(content, indent=2) + "\n").encode())


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def git_commit() -> str:
    """The commit of this code, with "+changes" where the tree differs from it; outside git what `COMMIT` says of a copy
    that was shipped, or "unknown"."""
    folder = Path(__file__).parent
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=True
        ).stdout.strip()
        dirty = subprocess.run(["git", "status", "--porcelain"], cwd=folder, capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get(COMMIT, "unknown")
    return commit + ("+changes" if dirty.strip() else "")


def find_checkpoint(place: Path) -> Path:
    """The checkpoint that `place` names: itself, or a run directory's newest one; a crashed run's weights where there
    is nothing else.

    Raises ValueError, naming what was looked for, where there is none.
    """
    place = Path(place)
    if os.path.isfile(place):  # pathlib's raise for a name that is too long
        return place.parent if place.suffix and store.is_one(place.parent) else place
    if store.is_one(place):
        return place

    def refuse(why: str) -> NoReturn:
        raise ValueError(f"run = {shown(str(place))}: {why}")

    folder = place / "checkpoints"
    try:
        if not stat.S_ISDIR(_mode(place)):
            refuse("must be a run directory or a checkpoint, not a device or a pipe")
        found = _in_order(folder) or store.listed(folder, "crashed")
    except PermissionError as error:
        refuse(f"may not be looked into ({error.strerror})")
    except OSError:
        refuse("holds no checkpoints (yet)" if os.path.isdir(place) else "no such run directory or checkpoint")
    if not found:
        refuse("holds no checkpoints (yet)")
    return found[-1]


def _in_order(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, of either format, oldest first. Raises OSError."""
    periodic = sorted(name for name in os.listdir(folder) if re.fullmatch(r"step_\d+\.pt", name))
    last = ["final.pt"] if os.path.exists(folder / "final.pt") else []
    return [*(folder / name for name in (*periodic, *last)), *store.listed(folder)]


def _mode(path: Path) -> int:
    """That of what is at `path`. Raises OSError, for what no path can hold too."""
    try:
        return os.stat(path).st_mode
    except ValueError as error:  # a NUL, half a surrogate pair
        raise FileNotFoundError(str(error)) from None


def all_checkpoints(place: Path) -> list[Path]:
    """Every checkpoint of the run directory `place`, oldest first; a checkpoint stands for itself.

    Raises ValueError, naming what was looked for, where there is none.
    """
    last = find_checkpoint(place)
    inside = os.path.isdir(place) and last.parent == Path(place) / "checkpoints"
    return _in_order(last.parent) or [last] if inside else [last]


@contextmanager
def fitting(path: Path) -> Iterator[None]:
    """Within, weights of the checkpoint `path` are taken over. ValueError where they are not those of its settings."""
    try:
        yield
    except (RuntimeError, KeyError, TypeError, AttributeError, IndexError) as error:
        words = " ".join(str(error).split())
        why = words if len(words) <= 200 else words[:200] + "..."
        allowed = "must hold the weights of the network that its settings make"
        raise ValueError(f"checkpoint = {shown(str(path))}: {allowed} ({why})") from error


def not_ours(path: Path, why: str) -> ValueError:
    """The sentence for a file that is no checkpoint of this suite."""
    reason = why.strip().splitlines()[0][:300]
    return ValueError(f"checkpoint = {shown(str(path))}: is no checkpoint of this suite ({reason})")


def as_before(checkpoint: store.Checkpoint, agent: object) -> dict:
    """What a file of format 1 would hold in place of `checkpoint`."""
    return {"format": FORMAT, "config": checkpoint.config, "step": checkpoint.step, "agent": agent}


def checked_content(path: Path, content: object) -> tuple[TrainConfig, int, dict]:
    """(settings, step, the agent's state) of what the checkpoint `path` holds. ValueError: it holds other things."""
    if not isinstance(content, dict) or not set(content) >= {"format", "config", "step", "agent"}:
        raise not_ours(path, "it holds other things")
    if content["format"] != FORMAT:
        raise not_ours(path, f"format {content['format']!r}, not {FORMAT}")
    step, agent = content["step"], content["agent"]
    if not isinstance(agent, dict) or "network" not in agent or type(step) is not int or step < 0:
        raise not_ours(path, "it holds no weights, or no step")
    try:
        return from_dict(content["config"]), step, agent
    except (ValueError, RecursionError) as error:
        raise not_ours(path, str(error)) from error


def load_checkpoint(path: Path) -> tuple[TrainConfig, int, dict]:
    """(settings, step, the agent's state on the CPU) of a checkpoint, by torch's safe loader alone.

    Raises ValueError where the file is not such a checkpoint, or where its network (weights and running statistics) is
    not finite.
    """
    import torch

    from agents.guard import names_in_words, not_finite

    try:
        if store.is_one(path):
            checkpoint = store.read(path)
            content = as_before(checkpoint, checkpoint.load("agent"))
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except store.Unsound as error:
        raise not_ours(path, error.why) from error
    except Exception as error:  # torch raises many types for a damaged file; all of them mean the same to the user
        raise not_ours(path, str(error) or type(error).__name__) from error
    config, step, agent = checked_content(path, content)
    try:
        names = not_finite(agent["network"])
    except Exception as error:  # whatever was put there in place of tensors
        raise not_ours(path, str(error) or type(error).__name__) from error
    if names:
        raise ValueError(f"checkpoint = {str(path)!r}: its network is not finite: {names_in_words(names)}")
    return config, step, agent
