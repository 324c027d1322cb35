"""What a run says of its world: how it is taken, at the start, and what went wrong in it."""

import math
import sys
import traceback
from pathlib import Path

from gymnasium.vector import VectorEnv

from agents.agent import Agent
from agents.checks import uses_convolutions
from envs.errors import WorldError

TRACEBACK = "traceback.txt"
LONGEST_USUAL_GAME = 27_000
"""Steps; Atari's limit. Of a world without a limit that is known nobody says that games are cut later than this."""


def remarks(world: VectorEnv, agent: Agent, steps: int) -> list[str]:
    """Sentences on how observations, actions and games of `world` are taken in a run of `steps` steps, where that is
    not as they come."""
    shape, network = agent.spaces.observation_shape, agent.config.network
    said = list(world.notes)
    foreign = hasattr(getattr(world, "pool", None), "observation_form")
    flattened = not uses_convolutions(network, agent.spaces)
    if foreign and agent.spaces.is_image and len(shape) == 3 and flattened:
        why = "" if network.torso == "mlp" else ", too small for NatureCNN (--torso small_cnn takes them from 9 x 9 on)"
        said.append(f"images {' x '.join(map(str, shape))}{why}: an MLP sees {math.prod(shape):,} numbers")
    action_map = getattr(agent.policy, "action_map", None)
    if action_map is not None and action_map.remark():
        said.append(action_map.remark())
    cut = world.cut_after
    if cut is not None and cut < LONGEST_USUAL_GAME and steps > cut * world.num_envs:
        said.append(
            f"games of more than {cut:,} steps are cut and counted nowhere: the world is built anew after"
            f" {cut:,} steps in each of {world.num_envs} environments, to be able to go on exactly"
            " (--world-segment; 0: never)"
        )
    return said


def world_failure(error: WorldError, folder: Path, name: str = TRACEBACK) -> str:
    """The sentence of `error`, and where in `folder` its traceback stands: in the file `name`, after earlier ones."""
    path = folder / name
    try:
        with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.writelines(traceback.format_exception(error))
    except OSError:  # a full disk or a folder that is read alone: the sentence counts
        return str(error)
    return f"{error} (traceback: {path})"


def unwritten(error: OSError, folder: Path, step: int) -> str:
    """The sentence for a run that could not write one of its files in `folder`."""
    return f"at step {step:,}: {error.filename or folder} could not be written: {error.strerror or error}"


def close(world: VectorEnv, folder: Path, name: str = TRACEBACK) -> str:
    """Close `world`; the sentence of what it raised, or nothing."""
    try:
        world.close()
    except WorldError as error:
        return world_failure(error, folder, name)
    return ""


def note(sentences: tuple[str, ...]) -> None:
    """Say `sentences` beside a command's output."""
    for sentence in sentences:
        print(f"note: {sentence}", file=sys.stderr)
