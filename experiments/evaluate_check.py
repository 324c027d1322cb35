"""What an evaluation would fail at, told before torch is imported and anything is built.

Where a checkpoint lies in a run's directory, that directory's config.json says what was trained; of a checkpoint, its
table of contents is read without the weights (see `peek.py`).
"""

import zipfile
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import NoReturn

from agents.checks import check_network
from agents.config import AgentConfig, require
from agents.kinds import kind_of
from envs import describe
from envs.config import TaskConfig, WorldConfig
from envs.datasets import require_content
from envs.foresight import tasks_of
from envs.memory import available_memory
from experiments import store
from experiments.config import TrainConfig, load_config
from experiments.evaluate_config import EvaluateConfig
from experiments.json_file import require_file
from experiments.machine import has_gpu_driver, may_be_a_gpu
from experiments.peek import peek
from experiments.places import NAME_BYTES, own_file, require_here, require_text, require_writable
from experiments.run_directory import all_checkpoints, checked_content, find_checkpoint, not_ours
from experiments.setup import spaces_from
from experiments.sizes import check_sizes, products_of_a_batch

BATCHES = ("reference.pt", "current.pt")
"""In the folder probes of a run: what its probes measured on."""


def check_evaluation(settings: EvaluateConfig) -> None:
    """Raise ValueError, naming the flag or the file, where nothing can come of an evaluation. Imports no torch."""
    paths = all_checkpoints(settings.run) if settings.checkpoint == "each" else [find_checkpoint(settings.run)]
    for path in paths:
        require_whole(path)
    if settings.video is not None:
        check_video(settings.video)
    require_here()
    asked = settings.device
    require(not asked.startswith("cuda") or has_gpu_driver(), "device", asked, "cpu or auto: no GPU driver is here")
    if settings.probe:
        check_batches(paths[-1])
    beside = settings_beside(paths[-1], settings.run)
    of_each = (checked_content(path, peek(path))[0] for path in paths)
    checked: list[TrainConfig] = []
    for config in chain([] if beside is None else [beside], of_each):
        if config not in checked:  # to know a world that somebody else made, one must be built
            check_playing(config, settings)
            checked.append(config)


def check_playing(config: TrainConfig, settings: EvaluateConfig) -> None:
    """Raise ValueError where the world of `config` cannot be played as `settings` say, or its network cannot be."""
    played, _ = playing_world(config.world, settings)
    if settings.dataset is None:
        require_content(played.dataset, played.dataset_sha256)
    spaces = spaces_from(describe(played))
    check_task(config.world, settings.task)
    small = replace(config, world=played, agent=small_memory(config.agent, played.num_envs), interventions=())
    silent = replace(small, run=replace(small.run, probes=("none",)))
    check_network(config.agent.network, spaces)
    on_gpu = may_be_a_gpu(settings.device, products_of_a_batch(config, spaces)) and has_gpu_driver()
    check_sizes(silent, spaces, on_gpu)


def check_task(world: WorldConfig, asked: int | None) -> None:
    """Raise ValueError where there is no task `asked` in `world`."""
    if asked is None or world.change == "reset":  # whose tasks differ in their seeds alone, and playing has its own
        return
    schedule = tasks_of(world)
    require(schedule is not None, "task", asked, f"left out: {world.env!r} does not change in this run")
    schedule.stay_in(asked)


def settings_beside(path: Path, asked: Path) -> TrainConfig | None:
    """The config.json of the run that the checkpoint `path` lies in, None where there is none. One that cannot be read
    is refused where the run was `asked` for, and left alone where the checkpoint itself was: it holds them too."""
    file = path.parent.parent / "config.json"
    if path.parent.name != "checkpoints" or not file.exists():
        return None
    try:
        return load_config(file)
    except ValueError as error:
        if Path(asked) == path:
            return None
        raise ValueError(f"{error} (in {file}; {path} itself has the settings too, and can be named)") from None


def require_whole(path: Path) -> None:
    """Raise ValueError unless the agent in the checkpoint `path` is as it was written and fits into memory."""
    if store.is_one(path):
        try:
            checkpoint = store.read(path)
            size = sum(found.bytes for found in checkpoint.files.values())
            _require_memory(path, size)
            checkpoint.verify(["agent.pt"])
        except store.Unsound as error:
            raise not_ours(path, error.why) from None
    else:
        _require_whole_archive(path)


def _require_memory(path: Path, size: int) -> None:
    available = available_memory()
    if size > available:
        raise not_ours(path, f"it unpacks to {size / 1e9:.1f} GB and {available / 1e9:.1f} GB of memory are available")


def _require_whole_archive(path: Path) -> None:
    """The same of a file of format 1: an archive as torch writes them, no byte changed."""

    def refuse(why: str) -> NoReturn:
        raise not_ours(path, why)

    require_file("checkpoint", path)
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            ours = any(member.filename.endswith("/data.pkl") for member in members)
            total = sum(member.file_size for member in members)
            damaged = archive.testzip() if ours and total <= available_memory() else None
    except OSError as error:
        refuse(error.strerror or str(error))
    except zipfile.BadZipFile:
        refuse("empty" if not path.stat().st_size else "torn, or another kind of file")
    except Exception as error:  # an encrypted or oddly packed member; whatever it is, torch did not write it
        refuse(" ".join(str(error).split()) or type(error).__name__)
    if not ours:
        refuse("an archive of something else")
    _require_memory(path, total)
    if damaged is not None:
        refuse(f"damaged: {damaged} is not as it was written")


def check_video(video: Path) -> None:
    """Raise ValueError unless a file can be written at `video`; its directory is made if need be."""
    require_text("video", str(video))
    size = len(video.name.encode())
    require(size <= NAME_BYTES, "video", str(video), f"a name of at most {NAME_BYTES} bytes, not {size}")
    require_writable("video", video.parent)
    require(own_file(video), "video", str(video), "a file that can be written: something else is there")


def check_batches(path: Path) -> None:
    """Raise ValueError where the run of the checkpoint `path` saved nothing to measure on."""
    folder = path.parent.parent / "probes"
    allowed = "one that was trained with probes: this one saved no batch to measure on"
    require(any((folder / name).is_file() for name in BATCHES), "run", str(folder.parent), allowed)


def playing_world(trained: WorldConfig, settings: EvaluateConfig) -> tuple[WorldConfig, str | None]:
    """(the world's settings for playing, render mode): the one trained in, with as many environments as needed."""
    # Without segments: a game that is cut would not count.
    world = replace(trained, num_envs=min(settings.num_envs, settings.episodes), world_segment=0)
    if world.change == "reset":
        world = replace(world, task=TaskConfig())
    if settings.dataset is not None:
        world = replace(world, dataset=settings.dataset, dataset_sha256="")
    if settings.video is not None:
        return replace(world, num_envs=1, backend=world.family.drawn_by), "rgb_array"
    return world if settings.backend == "same" else replace(world, backend=settings.backend), None


def small_memory(agent: AgentConfig, num_envs: int) -> AgentConfig:
    """The agent's settings with the least memory that they allow: nothing is remembered while playing."""
    if kind_of(agent).on_policy:
        return replace(agent, rollout_steps=agent.num_minibatches * 2)
    slots = agent.batch_size + agent.n_step + 8
    return replace(agent, buffer_size=num_envs * slots, replay_device="host")
