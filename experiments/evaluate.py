"""Playing with saved weights."""

import os
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from gymnasium.vector import VectorEnv
from scipy.stats import trim_mean

from agents.config import require, shown
from envs.config import WorldConfig
from envs.errors import WorldError
from envs.family import Family
from envs.patience import Patience, end_children
from experiments.config import TrainConfig
from experiments.evaluate_check import check_playing, playing_world
from experiments.evaluate_config import EvaluateConfig
from experiments.progress import GamesShown
from experiments.run import finished_episodes
from experiments.run_directory import find_checkpoint, fitting, load_checkpoint
from experiments.sizes import products_of_a_batch

if TYPE_CHECKING:
    from agents.policies import Player
    from agents.randomness import Generators

TRACEBACK = "traceback_evaluate.txt"


def quotas(episodes: int, num_envs: int) -> np.ndarray:
    """How many games each of `num_envs` environments plays, so that short games are not counted more often."""
    return episodes // num_envs + (np.arange(num_envs) < episodes % num_envs)


def play(
    player: "Player",
    world: VectorEnv,
    episodes: int,
    frames: "VideoFrames | None" = None,
    progress: Callable[[int, int], None] = lambda games, steps: None,
) -> tuple[list[float], list[int]]:
    """(returns, lengths in steps) of `episodes` whole games, environment by environment. After every step `progress`
    hears how many have ended, and of how many steps of each environment. Raises `NonFiniteError` where an
    observation or an action is not finite."""
    from agents.guard import as_float32, require_finite

    observations, _ = world.reset()
    left = quotas(episodes, world.num_envs)
    games: list[list] = [[] for _ in left]
    if frames:
        frames.add(world)
    for steps in count(1):
        if not left.any():
            break
        require_finite(steps - 1, observation=as_float32(observations))
        observations, _, _, _, infos = world.step(player(observations))
        for episode in finished_episodes(infos):
            if left[episode.environment]:
                left[episode.environment] -= 1
                games[episode.environment].append(episode)
        if frames and not games[0]:  # after a game's end the world already shows the next one
            frames.add(world)
        progress(episodes - int(left.sum()), steps)
    flat = [episode for column in games for episode in column]
    return [episode.episodic_return for episode in flat], [episode.length for episode in flat]


class VideoFrames:
    """Writes what the world's first environment shows, one frame a step, small screens doubled."""

    def __init__(self, writer, scale: int) -> None:
        self.writer, self.scale = writer, scale

    def add(self, world: VectorEnv) -> None:
        """Append the present picture."""
        frame = np.asarray(world.render()[0])
        frame = frame.repeat(self.scale, axis=0).repeat(self.scale, axis=1)
        even = frame[: frame.shape[0] // 2 * 2, : frame.shape[1] // 2 * 2]  # the codec halves the colour planes
        self.writer.append_data(np.ascontiguousarray(even))


def steps_per_second(world: VectorEnv, family: Family) -> int:
    """The speed at which the game is meant to be seen: its family's, else what the world itself says."""
    if family.pictures_a_second:
        return family.pictures_a_second
    metadata = getattr(world.envs[0], "metadata", None)
    says = metadata.get("render_fps") if isinstance(metadata, dict) else None
    return int(says) if isinstance(says, int | float) and 1 <= says <= 1000 else 30


@contextmanager
def video_frames(path: Path | None, world: VectorEnv, family: Family) -> Iterator[VideoFrames | None]:
    """Frames that end up in an MP4 at `path`, at the speed of the game; None without a path.

    Raises ValueError where the world cannot be drawn on this machine.
    """
    if path is None:
        yield None
        return
    import imageio.v2 as imageio

    try:
        world.reset()
        world.render()
    except Exception as error:  # every renderer has failures of its own
        words = f"this world cannot be drawn here ({error}){family.drawing_hint}"
        raise ValueError(f"video = {str(path)!r}: {words}") from error
    fps = steps_per_second(world, family)
    path.parent.mkdir(parents=True, exist_ok=True)
    # absolute, or ffmpeg takes -x.mp4 for a flag and a:b.mp4 for a protocol
    writer = imageio.get_writer(path.absolute(), fps=fps, codec="libx264", macro_block_size=2, quality=8)
    try:
        yield VideoFrames(writer, scale=family.enlarged)
    except OSError as error:  # ffmpeg has gone
        raise _unwritten(path) from error
    finally:
        writer.close()
    if not is_whole(path):  # ffmpeg keeps it to itself
        raise _unwritten(path)


def _unwritten(path: Path) -> ValueError:
    path.unlink(missing_ok=True)
    return ValueError(f"video = {shown(str(path))}: must be where there is room for it: ffmpeg could not write it")


def is_whole(path: Path) -> bool:
    """Whether the MP4 at `path` has its index ("moov"), which is written last, and all the bytes that it declares."""
    boxes, place, size = set(), 0, path.stat().st_size
    with path.open("rb") as file:
        while place < size:
            file.seek(place)
            length, kind = struct.unpack(">I4s", file.read(8).ljust(8, b"\0"))
            if length == 1:  # the true one follows
                length = int.from_bytes(file.read(8))
            place += length or size
            boxes.add(kind)
    return b"moov" in boxes and place == size


def evaluate(settings: EvaluateConfig) -> dict:
    """Play and summarise: {"checkpoint", "step", "policy", "returns", "lengths", "mean", "iqm", "std", ...}.

    iqm is the mean of the middle half of the returns. "unclosed" is there where the world failed after the last game.
    Raises ValueError where the checkpoint cannot be played, `WorldError` where the world fails while it is.
    """
    from agents.guard import NonFiniteError
    from agents.randomness import Generators
    from experiments.remarks import close, note, world_failure

    path = find_checkpoint(settings.run)
    config, step, state = load_checkpoint(path)
    check_playing(config, settings)
    generators = Generators(settings.seed)
    world = _world(config, settings, step, generators)

    def say(error: WorldError) -> None:
        print(f"error: {world_failure(error, folder_of(path), TRACEBACK)}", file=sys.stderr, flush=True)

    failed = False
    try:
        player, placement = _player(config, settings, world, path, state["network"], generators)
        note(world.notes)
        with (
            _watched(settings.world_timeout, config.world.env, world, say),
            video_frames(settings.video, world, config.world.family) as frames,
            GamesShown(settings.episodes) as shown,
        ):
            returns, lengths = play(player, world, settings.episodes, frames, shown.tick)
    except NonFiniteError as error:
        raise ValueError(f"checkpoint = {str(path)!r}: {str(error).partition(';')[0]} of playing") from None
    except WorldError as error:
        failed = True
        raise WorldError(world_failure(error, folder_of(path), TRACEBACK)) from error
    finally:
        unclosed = close(world, folder_of(path), TRACEBACK)
        if failed:
            end_children()  # whom a world that has failed ends no more
    return {
        **({"unclosed": unclosed} if unclosed else {}),
        "checkpoint": str(path),
        "step": step,
        "env": config.world.env,
        "task": None if world.schedule is None else world.schedule.current.index,
        "task_parameters": {} if world.schedule is None else world.schedule.current.parameters,
        "placement": placement,
        "policy": settings.policy,
        "seed": settings.seed,
        "episodes": len(returns),
        "mean": float(np.mean(returns)),
        "iqm": float(trim_mean(returns, 0.25)),
        "std": float(np.std(returns, ddof=1)) if len(returns) > 1 else 0.0,
        "returns": returns,
        "lengths": lengths,
    }


@contextmanager
def _watched(seconds: float, env: str, world: VectorEnv, give_up: Callable[[WorldError], object]) -> Iterator[None]:
    """Within it `world` has to answer in time."""
    with Patience(seconds, env) as patience:
        patience.watch(world, give_up)
        yield


def _world(config: TrainConfig, settings: EvaluateConfig, step: int, generators: "Generators") -> VectorEnv:
    """The world to play in, in the task to play."""
    from agents.randomness import Generators
    from envs import make_vec_from_config
    from experiments.setup import world_settings

    if sys.platform == "linux" and not os.environ.get("DISPLAY"):
        os.environ.setdefault("MUJOCO_GL", "egl")  # MuJoCo's own default wants a screen
    trained_in = world_settings(config, Generators(config.run.seed))
    world, render_mode = playing_world(trained_in, settings)
    made = make_vec_from_config(world, generators.integer("evaluation world") // 2, settings.threads, render_mode)
    choose_task(made, config.world, settings.task, step)
    return made


def _player(
    config: TrainConfig, settings: EvaluateConfig, world: VectorEnv, path: Path, weights: dict, generators: "Generators"
) -> "tuple[Player, str]":
    """What plays with the `weights` of the checkpoint `path`, and where it does, in words."""
    from agents import build_player
    from experiments.machine import place
    from experiments.setup import spaces_of

    spaces = spaces_of(world)
    placement = place(settings.device, settings.threads, products_of_a_batch(config, spaces))
    greedy, how = settings.policy == "greedy", (placement.device, config.run.precision, config.interventions)
    with fitting(path):
        return build_player(config.agent, spaces, weights, greedy, generators, *how), placement.words


def result_in_words(result: dict, video: Path | None) -> list[str]:
    """What `evaluate` found, line by line."""
    head = f"{result['env']}  {result['checkpoint']} (step {result['step']:,}), {result['policy']} actions"
    lines = [head, f"on {result['placement']}"]
    if result["task"] is not None:
        words = ", ".join(f"{name} {value}" for name, value in result["task_parameters"].items())
        lines.append(f"task {result['task']}: {words}")
    for number, (value, length) in enumerate(zip(result["returns"], result["lengths"], strict=True), start=1):
        lines.append(f"  game {number:3d}: return {value:10.2f}  {length:6d} steps")
    spread = f"mean {result['mean']:.2f}  iqm {result['iqm']:.2f}  std {result['std']:.2f}"
    lines.append(f"{spread}  over {result['episodes']} games")
    return [*lines, f"video: {video}"] if video else lines


def folder_of(checkpoint: Path) -> Path:
    """The run's directory, or that of a checkpoint that lies elsewhere."""
    return checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint.parent


def choose_task(world: VectorEnv, config: WorldConfig, asked: int | None, step: int) -> None:
    """Keep `world` in the task asked for, or in the one that was due at `step` of training.

    Raises ValueError where there is no such task.
    """
    if world.schedule is None:
        same = config.change == "reset"  # whose tasks differ in their seeds alone, and playing has seeds of its own
        require(asked is None or same, "task", asked, f"left out: {config.env!r} does not change in this run")
    elif asked is None:
        world.schedule.stay_in(*world.schedule.in_force(step))
    else:
        world.schedule.stay_in(asked)
