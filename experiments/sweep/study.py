"""A study: the question, the runs that answer it, and what was fixed before any of them was seen. Imports no torch.

It is written in YAML, as `EXAMPLE` below, which `sweep.py --help` shows. Every value is read as the word that it is, as
on the command line of train.py: 3e-4, none, off, every 1000 gradient steps. By section:

question    In words. It must be there.
base        The fields that all trials share: `agent`, `env`, `steps` and every flag of train.py without its dashes
            (learning_rate or learning-rate; adam.eps or adam: {eps: ...}), or by its path in config.json
            (agent.network.width). `config: FILE` begins from a run's config.json, `preset: NAME` from a preset.
arms        NAME: {FIELD: VALUE, ...}. Named sets of fields.
grid        FIELD: [VALUE, ...]. All combinations, with each other and with the arms. A value may be a mapping that has
            FIELD and more fields. Of `interventions` a value is a name, a list of names, or mappings
            {NAME: {PARAMETER: VALUE or [VALUE, ...]}}, where several values make several arms. `env` is a world, not a
            part of an arm.
seeds       10 (1 to 10), 1-10, or a list: those that are reported.
tune        values: {FIELD: [VALUE, ...]}: for each arm and world the best of these is chosen, by the mean of what
            compare.py scores, over seeds of its own (`seeds`, none of which is reported) on the first `share` of a
            lifetime; the smaller one where the interval of their difference cannot decide. A parameter of an
            intervention is tuned in the arms that have it.
control     Some of `random` (nothing is learned), `fresh` (of every arm, an agent for each task after the first, alone
            and as long as a task), `fork` (of every arm, its last task begun with every choice of weights, optimizer
            and replay kept, the rest new; tasks have to change where the steps of a task end).
claims      What is expected, each {says, arm, than, measure, by}: reproduced where the 95 % interval of arm - than
            lies above the margin `by`, not reproduced where it lies below. `arm` and `than` are arms' names (without
            `than`, what the arm itself comes to counts); `measure` is overall (the mean over tasks of their last
            tenth), first or last (that of the first or last task), lost (first - last) or a tag of the log (its last
            value). `experiments.reproduce` checks them.
resources   cpus (1; torch's and the world's threads are as many), gpus (0: on the CPU; may be a share of one), memory
            (such as 2GB; estimated where left out) that a trial reserves. seeds (auto): so many seeds of an arm at most
            are made side by side in one process where their gradient steps are computed as one (train.py's
            --num-seeds), which reserves that once, and memory for each; each is the run that it would be alone but for
            the last digits. 1: never.
sizes       NAME: {takes: WORDS, SECTION: ...}. Other sizes of the same study: base, arms, grid and tune are laid over
            those above, entry by entry (an arm or a grid's field that is `none` is left out); the rest takes their
            place. Without --size the first is taken.

An arm is called by its name in `arms`, then the values of the grid in order: "hl_gauss layer_norm+weight_decay.rate=1".
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from agents.config import require
from agents.spelling import did_you_mean, whole_number
from experiments.places import require_name
from experiments.sweep.grid import Fields, axis_of, fields_of
from experiments.sweep.words import (
    field_name,
    is_none,
    listed,
    mapping_of,
    number_of,
    refuse_unknown,
    seeds_of,
    text_of,
    word_of,
)

EXAMPLE = """\
question: Does a categorical loss keep plasticity where squared error loses it?
base:
  agent: dqn
  env: ImageMDP-v0
  steps: 120000
  image: {variant: random_label, num_images: 100}
  task.period: 10000
  replay.on_task_change: clear
  buffer_size: 20000
  learning_starts: 500
  target_period: 100
  replay_ratio: 0.5
  probes: none
arms:
  mse: {loss: mse}
  hl_gauss: {loss: hl_gauss, v_min: -5, v_max: 105}
grid:
  interventions:
    - none
    - layer_norm
    - redo: {tau: [0.025, 0.1], when: every 1000 gradient steps}
    - [layer_norm, {weight_decay: {rate: 1}}]
seeds: 1-10
tune:
  values: {learning_rate: [1e-4, 3e-4, 1e-3]}
  seeds: 101-103
  share: 0.25
control: [random, fresh]
claims:
  - says: HL-Gauss with LN and WD keeps what squared error alone loses.
    arm: hl_gauss layer_norm+weight_decay.rate=1
    than: mse none
    measure: last
    by: 5
resources: {cpus: 1, memory: 1GB}
sizes:
  claim:
    takes: 25 core-minutes
    base: {steps: 40000}
    grid: {interventions: [none, [layer_norm, {weight_decay: {rate: 1}}]]}
  record:
    takes: 40 core-hours
"""

LAID_OVER = ("base", "arms", "grid", "tune")
SECTIONS = ("question", *LAID_OVER[:3], "seeds", "tune", "control", "claims", "resources")
CONTROLS = ("random", "fresh", "fork")
MEASURES = ("overall", "first", "last", "lost")
UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "MIB": 2**20, "GIB": 2**30}


@dataclass(frozen=True)
class Tuning:
    """What is chosen before anything is reported."""

    values: dict[str, tuple[str, ...]]
    """By field, what is tried, the smaller first."""
    seeds: tuple[int, ...]
    share: float
    """Of the steps of a lifetime, from its beginning."""


@dataclass(frozen=True)
class Claim:
    """What is expected, with its margin."""

    says: str
    arm: str
    than: str = ""
    """Empty: the arm's own value is what `by` is the margin of."""
    measure: str = "overall"
    by: float = 0.0


@dataclass(frozen=True)
class Resources:
    """What one trial reserves."""

    cpus: int = 1
    gpus: float = 0.0
    memory: int = 0
    """Bytes; 0: estimated."""
    seeds: int = 0
    """So many trials of an arm at most are made side by side in one process; 0: as many as pay."""


@dataclass(frozen=True)
class Study:
    """A study at one size. `study_of` makes it of what YAML, JSON or Python's own dicts hold."""

    name: str
    question: str
    base: Fields
    arms: dict[str, Fields]
    grid: dict[str, tuple[tuple[str, Fields], ...]]
    """By field, its values: (what an arm is called by it, the fields that it sets)."""
    seeds: tuple[int, ...]
    tune: Tuning | None = None
    control: tuple[str, ...] = ()
    claims: tuple[Claim, ...] = ()
    resources: Resources = Resources()
    size: str = ""
    """Empty where the study has one size."""
    takes: str = ""
    """How long it is said to take."""
    sizes: tuple[str, ...] = field(default=(), compare=False)


def study_of(content: Any, name: str, size: str = "") -> Study:
    """The study called `name` that `content` describes, at `size` (the first where left out).

    Raises ValueError, naming the field, its value and what is allowed.
    """
    require(isinstance(content, Mapping), "study", content, "a mapping of question, base, seeds and more")
    require_name("study", name)
    top = {text_of("study", key): value for key, value in content.items()}
    refuse_unknown("", top, (*SECTIONS, "sizes"))
    sizes = {text_of("sizes", key): value for key, value in mapping_of("sizes", top.pop("sizes", {})).items()}
    for other in sizes:
        require_name("sizes", other)
    wanted = size or next(iter(sizes), "")
    known = f"one of {', '.join(sizes)}" if sizes else "left out: this study has one size"
    require(not wanted or wanted in sizes, "size", size, f"{known}{did_you_mean(size, sizes)}")
    found = {"": _study(top, name)} if not sizes else {}
    for other, sections in sizes.items():  # all of them: a slip in one should not wait until it is asked for
        own = dict(mapping_of(f"sizes.{other}", sections))
        takes = text_of(f"sizes.{other}.takes", own.pop("takes", ""))
        refuse_unknown(f"sizes.{other}.", own, SECTIONS)
        found[other] = replace(_study(_laid_over(top, own), name), size=other, takes=takes, sizes=tuple(sizes))
    return found[wanted]


def _laid_over(below: dict[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Sections `below` with those `above` in their places, or, of `LAID_OVER`, their entries."""
    found = dict(below)
    for section, value in above.items():
        if section in LAID_OVER and isinstance(value, Mapping) and isinstance(below.get(section), Mapping):
            value = {**below[section], **value}
        found[section] = value
    return found


def _study(top: dict[str, Any], name: str) -> Study:
    question = text_of("question", top.get("question", ""))
    require(bool(question.strip()), "question", question, "what the study is to answer, in words")
    base = fields_of("base", top.get("base", {}))
    arms = {
        text_of("arms", arm): fields_of(f"arms.{arm}", value)
        for arm, value in mapping_of("arms", top.get("arms", {})).items()
        if not is_none(value)
    }
    grid = {
        (axis := field_name(f"grid.{written}", written)): axis_of(axis, f"grid.{written}", values)
        for written, values in mapping_of("grid", top.get("grid", {})).items()
        if not is_none(values)
    }
    require("seeds" in top, "seeds", None, "how many, or which: 10, 1-10 or a list")
    seeds = seeds_of("seeds", top["seeds"])
    control = tuple(text_of("control", one) for one in listed(top.get("control", [])) if not is_none(one))
    for one in control:
        require(one in CONTROLS, "control", one, f"some of {', '.join(CONTROLS)}{did_you_mean(one, CONTROLS)}")
    tune = None if is_none(top.get("tune", "none")) else _tuning(top["tune"], seeds)
    claims = tuple(_claim(f"claims[{place}]", one) for place, one in enumerate(listed(top.get("claims", []))))
    resources = _resources(mapping_of("resources", top.get("resources", {})))
    return Study(name, question, base, arms, grid, seeds, tune, control, claims, resources)


def _tuning(value: Any, reported: Iterable[int]) -> Tuning:
    given = mapping_of("tune", value)
    refuse_unknown("tune.", given, ("values", "seeds", "share"))
    values = {}
    for written, words in mapping_of("tune.values", given.get("values", {})).items():
        where = f"tune.values.{written}"
        found = [word_of(where, word) for word in listed(words)]
        require(
            len(found) > 1 and len(set(found)) == len(found), where, words, "a list of two or more values, each once"
        )
        numbers = [number_of(where, word) for word in found]
        values[field_name(where, written)] = tuple(word for _, word in sorted(zip(numbers, found, strict=True)))
    require(bool(values), "tune.values", given.get("values"), "FIELD: [VALUE, ...] for one field or more")
    require("seeds" in given, "tune.seeds", None, "seeds that are not reported, such as 1001-1003")
    seeds = seeds_of("tune.seeds", given["seeds"])
    both = sorted(set(seeds) & set(reported))
    require(not both, "tune.seeds", given["seeds"], f"none of those that are reported; {both[:5]} are")
    share = number_of("tune.share", given.get("share", "1"))
    require(0 < share <= 1, "tune.share", given.get("share"), "in (0, 1], a share of the lifetime's steps")
    return Tuning(values, seeds, share)


def _claim(where: str, value: Any) -> Claim:
    given = {text_of(where, key): part for key, part in mapping_of(where, value).items()}
    refuse_unknown(f"{where}.", given, ("says", "arm", "than", "measure", "by"))
    words = {name: text_of(f"{where}.{name}", given.get(name, "")) for name in ("says", "arm", "than")}
    for name in ("says", "arm"):
        require(bool(words[name]), f"{where}.{name}", words[name], "words" if name == "says" else "the name of an arm")
    measure = text_of(f"{where}.measure", given.get("measure", "overall"))
    ours = measure in MEASURES or "/" in measure
    require(ours, f"{where}.measure", measure, f"one of {', '.join(MEASURES)}, or a tag of the log")
    return Claim(**words, measure=measure, by=number_of(f"{where}.by", given.get("by", "0")))


def _resources(given: Mapping[str, Any]) -> Resources:
    refuse_unknown("resources.", given, ("cpus", "gpus", "memory", "seeds"))
    found = {}
    for name, usual in (("cpus", "1"), ("seeds", "auto")):
        word = str(given.get(name, usual))
        found[name] = 0 if word == usual == "auto" else whole_number(word)
        within = found[name] is not None and (word == usual or 1 <= found[name] <= 1024)
        allowed = f"{'auto, or ' * (usual == 'auto')}a whole number in [1, 1024]"
        require(within, f"resources.{name}", given.get(name), allowed)
    gpus = number_of("resources.gpus", given.get("gpus", "0"))
    whole = 0 <= gpus <= 1 or (gpus <= 64 and gpus == int(gpus))
    require(whole, "resources.gpus", given.get("gpus"), "a share in [0, 1], or a whole number up to 64")
    said = re.fullmatch(r"([0-9.]+)([KMGT]?I?B?)", str(given.get("memory", "0")).upper().replace(" ", ""))
    known = said is not None and said[2] in UNITS
    require(known, "resources.memory", given.get("memory"), "a number of bytes, or such as 500MB or 2GB")
    memory = int(number_of("resources.memory", said[1]) * UNITS[said[2]])
    return Resources(found["cpus"], gpus, memory, found["seeds"])


def read_study(path: Path, size: str = "") -> Study:
    """The study in the file `path`, called as that is. ValueError: a sentence about what is wrong."""
    from experiments.sweep.yaml_file import read_yaml

    return study_of(read_yaml("study", path), path.stem, size)
