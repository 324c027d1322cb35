"""Several seeds in one process: which runs they are, the record of who ran together, and from where they go on. Imports
no torch."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from agents.checks import uses_convolutions
from agents.config import require
from agents.kinds import kind_of
from agents.sizes import MOST_STACKED, TOO_LARGE, network_size
from envs import describe
from experiments.config import TrainConfig
from experiments.earlier import EarlierRun, earlier_run
from experiments.json_file import read_json
from experiments.machine import may_be_a_gpu
from experiments.naming import made_up_name
from experiments.places import fitting_name
from experiments.run_directory import ENDING
from experiments.setup import spaces_from
from experiments.sizes import products_of_a_batch
from experiments.store import Checkpoint, Unsound, at_step, listed, read, step_of

SUFFIX = ".seeds.json"
BY_ITSELF = ("not finite", "world failed", "not written", "crashed")
"""How a run ends that the others went on without."""
Asked = tuple[TrainConfig, EarlierRun | None]
"""The settings of a run, and the earlier one that goes on."""


def runs_in(record: Path) -> dict[str, int]:
    """The runs that were side by side: seed by directory, in the order of the seeds. Raises ValueError where `record`
    is no record of any."""
    content = read_json("resume", record)
    runs = content.get("runs") if isinstance(content, dict) else None
    whole = isinstance(runs, dict) and runs and all(type(seed) is int for seed in runs.values())
    allowed = f"a run directory, or the record NAME{SUFFIX} of runs that were side by side"
    require(bool(whole), "resume", str(record), allowed)
    return runs


def seeds_of(config: TrainConfig) -> list[TrainConfig]:
    """The settings of each run that `config` asks for: itself, or `num_seeds` of them, which are called NAME-s1,
    NAME-s2, ... where a name is given. Raises ValueError where that is the name of other seeds."""
    first, count, name = config.run.seed, config.run.num_seeds, config.run.name
    if count == 1:
        return [config]
    seeds, names = range(first, first + count), [""] * count
    if name:
        record = record_of(config)
        runs = runs_in(record) if record.exists() else {f"{name}-s{seed}": seed for seed in seeds}
        before, now = list(runs.values()), list(seeds)
        require(before == now, "seeds", now, f"{before}, as in {record}; others need another --name")
        names = list(runs)
    one = replace(config.run, num_seeds=1)
    runs = [replace(one, seed=seed, name=named) for seed, named in zip(seeds, names, strict=True)]
    return [replace(config, run=run) for run in runs]


def record_of(config: TrainConfig) -> Path:
    """Where the record of the runs of `config` is, or goes: NAME.seeds.json, or a name that is made up and free."""
    run = config.run
    name, tried = run.name, 1
    if not name:
        first, last = run.seed, run.seed + run.num_seeds - 1
        name = fitting_name(made_up_name(config).replace(f"_s{first}_", f"_s{first}-{last}_"), 200)
        while (run.runs_dir / f"{name}{f'-{tried}' * (tried > 1)}{SUFFIX}").exists():
            tried += 1
    return run.runs_dir / f"{name}{f'-{tried}' * (tried > 1)}{SUFFIX}"


def why_in_turns(config: TrainConfig) -> str:
    """Why gradient steps of several seeds of `config` are not computed as one, as far as its settings tell; empty where
    they are: then it pays to train them in one process. `agents.stacking` says it of learners. Imports
    torch where there are interventions alone."""
    network, spaces = config.agent.network, spaces_from(describe(config.world))
    for member in config.interventions:
        network = member.configure(network)
    if uses_convolutions(network, spaces):
        return "convolutions are not stacked"
    if network.norm == "batch" or network.dropout > 0:
        return "something is drawn or moved in the forward pass"
    if config.run.execution == "compile":
        return "execution is compile"
    alone = [member.name for member in config.interventions if not member.stacks]
    if alone:
        return f"{' and '.join(alone)} cannot be stacked"
    agent = replace(config.agent, network=network)
    parameters = network_size(agent, spaces, network.width, network.depth, kind_of(agent).atoms(agent)).parameters
    on_cpu = not may_be_a_gpu(config.run.device, products_of_a_batch(config, spaces))
    return TOO_LARGE if on_cpu and parameters > MOST_STACKED else ""


def company(directory: Path) -> tuple[int, ...] | None:
    """The seeds beside which a run goes on as if it had not been stopped: those that it was stacked with, its own too;
    none where it was alone, or ended by itself. None where it has not begun, and may be beside any."""
    checkpoints = listed(directory / "checkpoints") if (directory / "checkpoints").is_dir() else []
    for path in reversed(checkpoints):
        with suppress(Unsound):
            newest = read(path)
            return () if _ended_by_itself(directory) else tuple(newest.made_by.get("stacked_seeds", ()))
    return None


def asked_for(config: TrainConfig, say: Callable[[str], None]) -> list[Asked]:
    """The runs that `config` asks for and that are not finished; `say` is told of those that are. Raises ValueError
    where one of them is another run."""
    found: list[Asked] = []
    for one in seeds_of(config):
        earlier = earlier_run(one)
        if earlier is not None and earlier.finished:
            say(earlier.finished)
        else:
            found.append((one if earlier is None else earlier.config, earlier))
    return found


def take_up(runs: Sequence[Asked], say: Callable[[str], None]) -> list[Asked]:
    """Take up the earlier ones of `runs`: one from its newest checkpoint, several from the newest that they have in
    common, so that they go on side by side. Those that ended by themselves, with the others going on, take part where
    they have that one too; else they are left, and `say` is told. Returns those that take part.

    Raises as `EarlierRun.take_up`, and Unsound where they have none in common.
    """
    going = [one for one in runs if one[1] is None or not _ended_by_itself(one[1].directory)] or runs
    common = _common([earlier for _, earlier in going], say) if len(runs) > 1 else {}
    found: list[Asked] = []
    for config, earlier in runs:
        if earlier is None:
            pass
        elif len(runs) == 1:
            earlier.take_up(say)
        elif (config, earlier) in going:
            earlier.take_up(say, common.get(earlier))
        else:
            step = max((checkpoint.step for checkpoint in common.values()), default=0)
            try:
                earlier.take_up(say, at_step(earlier.directory / "checkpoints", step))
            except Unsound:
                alone = f"the others are at step {step:,}; alone it goes on with --resume {earlier.directory}"
                say(f"{earlier.directory}: ended by itself, and is left: {alone}")
                continue
        found.append((config, earlier))
    return found


def _ended_by_itself(directory: Path) -> bool:
    with suppress(ValueError):
        ending: Any = read_json("ending", directory / ENDING)
        return isinstance(ending, dict) and ending.get("ending") in BY_ITSELF
    return False


def _common(runs: Sequence[EarlierRun | None], say: Callable[[str], None]) -> Mapping[EarlierRun, Checkpoint]:
    """Of each its checkpoint of the newest step that all have a sound one of. Nothing where none has begun."""
    folders = {run: run.directory / "checkpoints" for run in runs if run is not None}
    steps = {run: {step_of(path) for path in listed(folder)} for run, folder in folders.items() if folder.is_dir()}
    if not any(steps.values()):
        return {}
    begun = {run: folders[run] for run, found in steps.items() if found}
    shared = set.intersection(*(steps[run] for run in begun))
    if len(begun) < len(runs):
        shared &= {0}  # where one has not begun, the others have not learned
    for step in sorted(shared, reverse=True):
        try:
            return {run: at_step(folder, step) for run, folder in begun.items()}
        except Unsound as error:
            say(f"not resumed from {error}")
    where = next(iter(begun.values()))
    raise Unsound(where, "has no sound checkpoint of a step that the other seeds have one of; alone each may go on")
