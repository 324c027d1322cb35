"""Playing with saved weights."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
from gymnasium.vector import VectorEnv
from scipy.stats import trim_mean

from agents.checks import uses_convolutions
from agents.config import PPOConfig, require
from envs.config import TaskConfig, WorldConfig
from experiments.config import TrainConfig
from experiments.evaluate_config import EvaluateConfig
from experiments.loop import finished_episodes
from experiments.run_directory import find_checkpoint, load_checkpoint


def quotas(episodes: int, num_envs: int) -> np.ndarray:
    """How many games each of `num_envs` environments plays, so that short games are not counted more often."""
    return episodes // num_envs + (np.arange(num_envs) < episodes % num_envs)


def play(player, world: VectorEnv, episodes: int, frames: "VideoFrames | None" = None) -> tuple[list[float], list[int]]:
    """(returns, lengths in steps) of `episodes` whole games, environment by environment. Raises `NonFiniteError` where
    an observation or an action is not finite."""
    from agents.guard import as_float32, require_finite

    (observations, _), step = world.reset(), 0
    left = quotas(episodes, world.num_envs)
    games: list[list] = [[] for _ in left]
    if frames:
        frames.add(world)
    while left.any():
        require_finite(step, observation=as_float32(observations))
        observations, _, _, _, infos = world.step(player(observations))
        step += 1
        for episode in finished_episodes(infos):
            if left[episode.environment]:
                left[episode.environment] -= 1
                games[episode.environment].append(episode)
        if frames and not games[0]:  # after a game's end the world already shows the next one
            frames.add(world)
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


def steps_per_second(world: VectorEnv, family: str) -> int:
    """The speed at which the game is meant to be seen: Atari's 60 frames in fours, an image long enough to be looked
    at, else what the world itself says."""
    given = {"atari": 15, "image": 4}
    return given.get(family) or int(world.envs[0].metadata.get("render_fps", 30))


@contextmanager
def video_frames(path: Path | None, world: VectorEnv, family: str) -> Iterator[VideoFrames | None]:
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
        hint = "; without a screen, try MUJOCO_GL=egl or osmesa" if family == "mujoco" else ""
        raise ValueError(f"video = {str(path)!r}: this world cannot be drawn here ({error}){hint}") from error
    fps = steps_per_second(world, family)
    writer = imageio.get_writer(path, fps=fps, codec="libx264", macro_block_size=2, quality=8)
    try:
        yield VideoFrames(writer, scale=2 if family == "atari" else 1)
    finally:
        writer.close()


def evaluate(settings: EvaluateConfig) -> dict:
    """Play and summarise: {"checkpoint", "step", "policy", "returns", "lengths", "mean", "iqm", "std", ...}.

    iqm is the mean of the middle half of the returns. Raises ValueError where the checkpoint cannot be played.
    """
    from agents.guard import NonFiniteError
    from agents.randomness import Generators
    from envs import make_vec_from_config
    from experiments.machine import place
    from experiments.setup import agent_of, spaces_of

    if sys.platform == "linux" and not os.environ.get("DISPLAY"):
        os.environ.setdefault("MUJOCO_GL", "egl")  # MuJoCo's own default wants a screen
    path = find_checkpoint(settings.run)
    config, step, state = load_checkpoint(path)
    generators = Generators(settings.seed)
    world_settings, render_mode = playing_world(config, settings)
    world = make_vec_from_config(
        world_settings, generators.integer("evaluation world") // 2, settings.threads, render_mode
    )
    choose_task(world, config.world, settings.task, step)
    playing = replace(config, agent=small_memory(config, world.num_envs))
    spaces = spaces_of(world)
    placement = place(settings.device, settings.threads, uses_convolutions(config.agent.network, spaces))
    agent = agent_of(playing, spaces, world.num_envs, generators, placement.device)
    agent.network.load_state_dict(state["network"])
    greedy = settings.policy == "greedy"
    try:
        with video_frames(settings.video, world, world_settings.family) as frames:
            returns, lengths = play(agent.player(greedy, generators), world, settings.episodes, frames)
    except NonFiniteError as error:
        raise ValueError(f"checkpoint = {str(path)!r}: {str(error).partition(';')[0]} of playing") from None
    finally:
        world.close()
    return {
        "checkpoint": str(path),
        "step": step,
        "env": config.world.env,
        "task": None if world.schedule is None else world.schedule.current.index,
        "task_parameters": {} if world.schedule is None else world.schedule.current.parameters,
        "placement": placement.words,
        "policy": "greedy" if greedy else "sampled",
        "seed": settings.seed,
        "episodes": len(returns),
        "mean": float(np.mean(returns)),
        "iqm": float(trim_mean(returns, 0.25)),
        "std": float(np.std(returns, ddof=1)) if len(returns) > 1 else 0.0,
        "returns": returns,
        "lengths": lengths,
    }


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


def playing_world(config: TrainConfig, settings: EvaluateConfig) -> tuple[WorldConfig, str | None]:
    """(the world's settings for playing, render mode): the one trained in, with as many environments as needed."""
    from experiments.setup import world_config

    world = replace(world_config(config), num_envs=min(settings.num_envs, settings.episodes))
    if world.change == "reset":
        world = replace(world, task=TaskConfig())
    if settings.video is not None:
        backend = "auto" if world.family == "image" else "gymnasium"
        return replace(world, num_envs=1, backend=backend), "rgb_array"
    return world if settings.backend == "same" else replace(world, backend=settings.backend), None


def small_memory(config: TrainConfig, num_envs: int):
    """The agent's settings with the least memory that they allow: nothing is remembered while playing."""
    agent = config.agent
    if isinstance(agent, PPOConfig):
        return replace(agent, rollout_steps=agent.num_minibatches * 2)
    slots = agent.batch_size + agent.n_step + 8
    return replace(agent, buffer_size=num_envs * slots, replay_device="host")
