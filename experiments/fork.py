"""A run that begins where another one stands at a task change, some of what that one had kept and the rest new.

Which of weights, optimizer and replay lost plasticity? Fork a run at a task change with some of them kept, and see who
learns the next task. World, clock, exploration and every random stream go on as they were: with all three kept the
fork is the run itself, to the bit where a resumed one is.
"""

import copy
from collections.abc import Mapping
from typing import Any

from agents.config import require
from experiments.config import KEPT, ForkConfig
from experiments.replay_store import bring_back
from experiments.run import Run, TaskChange
from experiments.run_directory import fitting
from experiments.store import Checkpoint, Unsound, checkpoint_of, read

PARTS = {
    "network": "weights",
    "target_network": "weights",
    "interventions": "weights",
    "transform": "weights",
    "optimization": "optimizer",
    "rollout": "replay",
}
"""Of an agent's state, what belongs to what is kept or new. What interventions remember is of these weights; so are the
statistics that observations and rewards are normalised by. Whatever is not named here goes on."""


def take_over(run: Run, fork: ForkConfig) -> str:
    """Let `run`, which has not begun, begin where the run stands that it is forked from. Why the world does not go on
    exactly; empty where it does.

    Raises ValueError where there is nothing to begin from, or it is another agent's; Unsound where it is damaged.
    """
    checkpoint = read(checkpoint_of("fork", fork.run))
    state, agent = checkpoint.load("run"), checkpoint.load("agent")
    change = state["loop"]["change"]
    boundary = bool(change) and change[0] == TaskChange.__name__ and change[1] > 0
    require(boundary, "fork", str(checkpoint.path), f"saved at a task change; step {checkpoint.step:,} is none")
    more = f"more than {checkpoint.step:,}, which the run that it is forked from has made"
    require(run.steps > checkpoint.step, "steps", run.steps, more)
    seed = checkpoint.config["run"]["seed"]
    here = run.generators.seed
    require(here == seed, "seed", here, f"{seed}, as in the run that is forked: its random streams go on")
    kept = [part for part in KEPT if part in fork.keep]
    with fitting(checkpoint.path):
        new = copy.deepcopy(run.agent.state_dict())
        if hasattr(run.agent, "appraise"):  # on-policy: a rollout that is kept is appraised by the network that acted
            run.agent.load_state_dict(agent)
            run.agent.appraise()
            agent = copy.deepcopy(run.agent.state_dict())
        mixed = {name: new[name] if _is_new(name, kept) else part for name, part in agent.items()}
        warning = run.begin_from({**state, "agent": mixed})
    _take_replay(run, checkpoint, kept)
    return warning


def _is_new(name: str, kept: list[str]) -> bool:
    return name in PARTS and PARTS[name] not in kept


def _take_replay(run: Run, checkpoint: Checkpoint, kept: list[str]) -> None:
    memory = getattr(run.agent, "replay", None)
    if memory is None or "replay" not in kept:
        return
    saved: Mapping[str, Any] = checkpoint.extra
    why = "without replay where none was saved (--checkpoint.replay always, in the run that is forked, keeps it)"
    require("replay" in saved, "fork.keep", " ".join(kept), why)
    directory = checkpoint.path.parent.parent
    try:
        bring_back(memory, directory, checkpoint)
    except Unsound as error:
        require(False, "fork.keep", " ".join(kept), f"without replay: {error} (the newest two checkpoints keep theirs)")
