"""From a study to its trials: which runs there will be, where each lies, and how it is begun by hand."""

import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import combinations, product
from pathlib import Path
from typing import Literal

from agents.config import require
from agents.interventions import COMBINATIONS, NAMES
from agents.spelling import did_you_mean
from experiments.config import KEPT, ForkConfig, TrainConfig
from experiments.naming import digest, safe
from experiments.places import fitting_name
from experiments.setup import check
from experiments.sweep.cells import Cell, cells_of, settings_of, words_of
from experiments.sweep.controls import fork_sources, fresh_controls, random_controls
from experiments.sweep.grid import Fields
from experiments.sweep.study import Study

Kind = Literal["arm", "tuning", "random", "fresh", "source", "fork"]
TUNING, TRIALS, SOURCES, FORKS = "tuning", "trials", "sources", "forks"
"""Folders of a study's directory."""


@dataclass(frozen=True)
class Trial:
    """One run of a study, in a directory of its own."""

    kind: Kind
    arm: str
    world: str
    """Where the study has several; else empty."""
    tuned: Fields
    """What is tried for, or was chosen by, tuning."""
    config: TrainConfig
    """With seed, name and place."""
    fields: Fields

    @property
    def seed(self) -> int:
        """Of everything random in it."""
        return self.config.run.seed

    @property
    def label(self) -> str:
        """What it is called, but for its seed."""
        tuned = [f"{name}={word}" for name, word in self.tuned.items()]
        task = [f"task {self.config.world.task.first}"] if self.kind == "fresh" else []
        return " ".join([self.arm, *task, *([f"in {self.world}"] if self.world else []), *tuned])

    @property
    def directory(self) -> Path:
        """Where it lies, or will."""
        return self.config.run.runs_dir / self.config.run.name

    @property
    def command(self) -> str:
        """That begins it, or goes on with it, by hand."""
        run = self.config.run
        own = {"seed": str(run.seed), "runs-dir": str(run.runs_dir), "name": run.name}
        return shlex.join(["python", "train.py", *words_of({**self.fields, **own})])


Bundle = tuple[Trial, ...]
"""Trials that one process makes: seeds of one arm."""


@dataclass
class Plan:
    """What a study comes to. `trials` are all but those that tune and the forks; of an arm whose values are not chosen
    yet they have the smallest."""

    study: Study
    directory: Path
    """Absolute; `tuning`, `trials` and `forks` lie in its folders of that name, what is forked in `sources`."""
    tuning: list[Trial] = field(default_factory=list)
    trials: list[Trial] = field(default_factory=list)
    forks: list[Trial] = field(default_factory=list)
    """Made when the trials are finished."""
    notes: list[str] = field(default_factory=list)


def planned(study: Study, runs_dir: Path, chosen: Mapping[str, Fields] | None = None) -> Plan:
    """The plan of `study` in `runs_dir`; `chosen`: by cell (see `Cell.name`) what tuning has chosen.

    Every setting is checked as train.py would; nothing is written. ValueError: names the arm, the field, its value and
    what is allowed.
    """
    ours = "one without a problem in its base: python -m experiments.supervised makes its runs"
    require("problem" not in study.base, "study", study.name, ours)
    # not Path.resolve: a link to storage that all nodes see has its own name there
    found = Plan(study, Path.cwd() / runs_dir / study.name / study.size)
    cells = cells_of(study)
    settled = [cell.but({**_resources(study, cell), **_smallest(study, cell, chosen)}) for cell in cells]
    arms = list(settings_of(settled))
    _refuse_twins(arms)
    check_claims(study, cells)
    controls: list[tuple[Kind, Iterable[Cell]]] = []
    if "random" in study.control:
        controls.append(("random", random_controls(arms)))
    if "fresh" in study.control:
        fresh = list(fresh_controls(arms))
        if not fresh:
            found.notes.append("no fresh agents are trained: no world has two whole tasks (task.period)")
        controls.append(("fresh", fresh))
    found.trials = list(_trials(found, TRIALS, "arm", arms))
    for kind, own in controls:
        found.trials += _trials(found, TRIALS, kind, settings_of(list(own)))
    if "fork" in study.control:
        sources = list(_trials(found, SOURCES, "source", settings_of(list(fork_sources(arms)))))
        found.forks = list(_forks(found, sources))
        found.trials += sources
        found.notes += [] if sources else ["nothing is forked: no world has two whole tasks (task.period)"]
    if study.tune is not None:
        candidates = [one for cell, config in arms for one in _candidates(study, cell, config)]
        found.tuning = list(_trials(found, TUNING, "tuning", settings_of(candidates)))
    return found


def _resources(study: Study, cell: Cell) -> Fields:
    """A trial's threads are the cores that it reserves, and it is on a GPU where it reserves one."""
    given = {"threads": str(study.resources.cpus), "device": "auto" if study.resources.gpus else "cpu"}
    return {name: word for name, word in given.items() if name not in cell.fields}


def values_of(study: Study, cell: Cell) -> dict[str, tuple[str, ...]]:
    """By field, what is tried for `cell`: parameters of interventions where it has these."""
    listed = cell.fields.get("interventions", "none").split(",")
    values = study.tune.values if study.tune is not None else {}
    return {
        name: words
        for name, words in values.items()
        if (owner := name.partition(".")[0].replace("-", "_")) not in NAMES or owner in _expanded(listed)
    }


def _expanded(listed: list[str]) -> set[str]:
    return {part for name in listed for part in COMBINATIONS.get(name, {name: {}})}


def _smallest(study: Study, cell: Cell, chosen: Mapping[str, Fields] | None) -> Fields:
    if chosen and cell.name in chosen:
        return dict(chosen[cell.name])
    return {name: words[0] for name, words in values_of(study, cell).items()}


def _candidates(study: Study, cell: Cell, config: TrainConfig) -> Iterator[Cell]:
    steps = max(1, round(config.run.steps * study.tune.share))
    if study.tune.share < 1:
        over = " and ".join(config.stretched)
        require(not over, "tune.share", study.tune.share, f"1 for {cell.name}: {over} depends on --steps (.over run)")
    values = values_of(study, cell)
    for words in product(*values.values()) if values else ():
        yield cell.but({**dict(zip(values, words, strict=True)), "steps": str(steps)})


def _trials(plan: Plan, folder: str, kind: Kind, cells: Iterable[tuple[Cell, TrainConfig]]) -> Iterator[Trial]:
    study, place = plan.study, plan.directory / folder
    seeds = study.tune.seeds if kind == "tuning" else study.seeds
    for cell, config in cells:
        here = replace(config, run=replace(config.run, runs_dir=place))
        try:
            check(here)
        except ValueError as error:
            raise ValueError(f"{cell.name}: {error}") from None
        tuned = {name: cell.fields[name] for name in values_of(study, cell) if kind != "random"}
        trial, hashed = Trial(kind, cell.arm, cell.world, tuned, here, cell.fields), digest(here)
        for seed in seeds:
            name = fitting_name(safe("_".join([*trial.label.split(), f"s{seed}", hashed])))
            yield replace(trial, config=replace(here, run=replace(here.run, seed=seed, name=name)))


def _forks(plan: Plan, sources: Iterable[Trial]) -> Iterator[Trial]:
    """Of each source, the run that goes on from its end with some of weights, optimizer and replay kept: every choice
    but all three, which is the arm itself."""
    whole = {(trial.arm, trial.world, trial.seed): trial for trial in plan.trials if trial.kind == "arm"}
    for source in sources:
        trial = whole[source.arm, source.world, source.seed]
        environments = trial.config.world.num_envs
        end = -(-source.config.run.steps // environments) * environments
        begins = str(source.directory / "checkpoints" / f"step_{end:012d}")
        for keep in (keep for count in range(len(KEPT)) for keep in combinations(KEPT, count)):
            fork = ForkConfig(begins, keep or ("none",))
            fields = {
                name: word for name, word in trial.fields.items() if name != "preset"
            }  # the source's settings say it
            fields |= {
                "fork": begins,
                "fork.keep": ",".join(fork.keep),
                "checkpoint.replay": trial.config.checkpoint.replay,
            }
            arm = f"{trial.arm} keep={'+'.join(fork.keep)}"
            config = replace(trial.config, fork=fork)
            name = fitting_name(safe("_".join([*arm.split(), f"s{trial.seed}", digest(config)])))
            config = replace(config, run=replace(config.run, runs_dir=plan.directory / FORKS, name=name))
            yield replace(trial, kind="fork", arm=arm, config=config, fields=fields)


def check_claims(study: Study, cells: list[Cell]) -> None:
    """Raise ValueError for a claim about an arm that the study has not."""
    arms = list(dict.fromkeys(cell.arm for cell in cells))
    for place, claim in enumerate(study.claims):
        for name in filter(None, (claim.arm, claim.than)):
            allowed = f"an arm; there are {', '.join(map(repr, arms))}{did_you_mean(name, arms)}"
            require(name in arms, f"claims[{place}]", name, allowed)


def _refuse_twins(arms: list[tuple[Cell, TrainConfig]]) -> None:
    """Raise ValueError where two arms are the same run under two names."""
    named: dict[str, str] = {}
    for cell, config in arms:
        other = named.setdefault(digest(config), cell.name)
        require(other == cell.name, "arms", cell.name, f"settings of their own; {other} has the same")
