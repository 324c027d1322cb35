"""All settings of one run, and their way to and from JSON. Imports no torch."""

import dataclasses
import functools
import os
import types
import typing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Generic, Literal, TypeVar

from agents.config import AgentConfig, AsFlag, Execution, First, Flat, Hidden, Precision, SurgeryConfig, require
from agents.kinds import KINDS, kind_of
from agents.schedule import schedules_of
from agents.spelling import Spelled, did_you_mean
from envs.config import WorldConfig
from experiments.json_file import Digits, read_json
from experiments.machine import Device, check_device
from experiments.older import translated
from experiments.places import require_name, require_text

if TYPE_CHECKING:
    from agents.interventions.base import Intervention
else:
    Intervention = Any  # whose class would bring torch

AgentT = TypeVar("AgentT", bound=AgentConfig)
NOT_IN_THE_NAME = (
    "seed",
    "num_seeds",
    "runs_dir",
    "name",
    "log_every",
    "checkpoint_every",
    "keep_checkpoints",
    "world_timeout",
    "level_share",
    "probes",
    "wandb",
    "wandb_project",
    "preset",
)
"""Settings of the run that do not shape its result (or stand in the name anyway)."""
Keep = Literal["until-finished", "always", "off"]
KEPT = ("weights", "optimizer", "replay")
SHORTEST_TIMEOUT, DAY = 0.1, 86_400
TIMEOUTS = f"0 (off) or in [{SHORTEST_TIMEOUT}, {DAY}] seconds"
MOST_SEEDS = 1024
"""More than any machine's memory holds."""
MOST_THREADS = 1024
"""More than any machine's cores, and few enough to be started."""


@dataclass(frozen=True)
class RunConfig:
    """How long, how, where."""

    steps: int = 1_000_000
    """Steps to train for, over all environments (an Atari step is 4 frames)."""
    seed: int = 1
    """Seed of everything random in the run."""
    num_seeds: int = 1
    """Runs to train side by side in one process, of the seeds from `seed` on, each in a directory of its own; MLPs'
    gradient steps are computed as one, which is faster (where they are not, the start says why)."""
    device: Device = Device("auto")
    """Where the networks live; cuda:N is GPU number N; auto: CNNs on a GPU where there is one, MLPs on the CPU."""
    precision: Precision = "fp32"
    """fp32: true float32, on a GPU too; tf32: a GPU's matrix products and convolutions round their inputs to TF32's 10
    bits of mantissa (torch's own default for convolutions); bf16: matrix products in bfloat16, weights and losses in
    float32. tf32 and bf16 change numerics and are faster."""
    execution: Execution = "auto"
    """How updates and acting run. eager: operation by operation; compile: an update's forward pass and loss go through
    torch.compile, at the first one (a minute, and a C++ compiler, on a CPU); graph: both are replayed from CUDA graphs,
    captured after a few were eager; auto: graph on a GPU, else eager. Where something is missing for it, a line says so
    and the run is eager. Numbers agree but for the last digits."""
    threads: int = 0
    """Threads for torch and, each, for the world; 0: of torch one for an MLP, up to 4 of the usable cores for a CNN; of
    the world its own choice."""
    runs_dir: Path = Path("runs")
    """Where run directories go."""
    name: str = ""
    """Name of the run directory; empty: agent, world, what differs from the preset, seed, and a hash of every setting
    that shapes the result but the seed."""
    preset: Annotated[str, *Hidden] = ""
    """The preset that the defaults came from; empty in files that do not say."""
    log_every: int = 0
    """Steps between lines of the log; 0: a 500th of the run, at least 100 steps."""
    checkpoint_every: int = 0
    """Steps between checkpoints; 0: a tenth of the run. There is one at step 0, where a task ends and at the end, too
    (where tasks are shorter than a hundredth of this, not of each)."""
    keep_checkpoints: int = 2
    """How many of them are kept, at least 2 (a crash while writing the newest must leave one that loads); 0: all."""
    world_timeout: float = 0.0
    """Seconds in which the world has to answer a step or a reset; one that does not ends the run, which can go on from
    its newest checkpoint. 0: it is waited for without end."""
    level_share: float = 0.9
    """Where the world changes: share of what the first task gained that counts as having learned a task, in (0, 1]
    (the log's tasks/steps_to_level)."""
    probes: tuple[str, ...] = ("default",)
    """What is measured, by name or by what it costs:"""
    wandb: bool = False
    """Also send the TensorBoard scalars to Weights & Biases (`pip install wandb` first)."""
    wandb_project: str = "plasticity"
    """Project there."""

    def __post_init__(self) -> None:
        require(1 <= self.steps < 10**12, "steps", self.steps, "in [1, 10**12)")
        require(0 <= self.seed < 2**31, "seed", self.seed, "in [0, 2**31)")
        most = min(MOST_SEEDS, 2**31 - self.seed)
        require(1 <= self.num_seeds <= most, "num_seeds", self.num_seeds, f"in [1, {most}]")
        require(self.num_seeds == 1 or not self.wandb, "wandb", True, "off with several seeds in one process")
        check_device(self.device)
        cpu = self.device == "cpu" and self.execution == "graph"
        require(not cpu, "execution", "graph", "auto, eager or compile with device = 'cpu': graphs are a GPU's")
        require(0 <= self.threads <= MOST_THREADS, "threads", self.threads, f"in [0, {MOST_THREADS}]")
        require(self.log_every >= 0, "log_every", self.log_every, ">= 0")
        keep = self.keep_checkpoints
        require(keep == 0 or keep >= 2, "keep_checkpoints", keep, "0 (all) or >= 2")
        require(self.checkpoint_every >= 0, "checkpoint_every", self.checkpoint_every, ">= 0")
        timeout = self.world_timeout
        require(timeout == 0 or SHORTEST_TIMEOUT <= timeout <= DAY, "world_timeout", timeout, TIMEOUTS)
        require(0 < self.level_share <= 1, "level_share", self.level_share, "in (0, 1]")
        require_text("runs_dir", str(self.runs_dir))
        if self.name:
            require_name("name", self.name)


@dataclass(frozen=True)
class ProbeConfig:
    """When plasticity is measured, and on how much. A run with probes is the run without, to the bit."""

    every: int = 0
    """Steps between two probes; 0: a hundredth of the run, but at least 10,000 steps or a twentieth of the run,
    whichever is less. At task boundaries too; a probe that is due waits until something was learned since the last."""
    heavy_factor: int = 10
    """The heavy ones (gradients, ntk) at every so many-th probe, and at task boundaries."""
    samples: int = 512
    """Examples in a batch; the ranks of a wider layer cannot show with fewer examples than units."""
    heavy_samples: int = 256
    """Examples for the heavy ones."""

    def __post_init__(self) -> None:
        require(self.every >= 0, "probe.every", self.every, ">= 0")
        for field in ("heavy_factor", "samples", "heavy_samples"):
            require(getattr(self, field) >= 1, f"probe.{field}", getattr(self, field), ">= 1")


@dataclass(frozen=True)
class CheckpointConfig:
    """What checkpoints hold beside the agent, the world and the log."""

    replay: Keep = "until-finished"
    """Whether what the replay stores is saved (each step once; --resume begins with an empty one without): as long as
    the run is not finished, afterwards too (so that more --steps can be asked for), or not at all."""


@dataclass(frozen=True)
class ForkConfig:
    """Begin where another run stands at a task change, to see which of its parts cannot learn the next task."""

    run: str = ""
    """The run directory that is forked (its newest checkpoint, which must be one of a task change), or such a
    checkpoint of it. Its settings are the defaults; step and task go on where it stands."""
    keep: tuple[str, ...] = KEPT
    """What is kept of it: some of weights, optimizer, replay, or none; the rest is new, as at step 0. A rollout counts
    as replay, and what interventions and normalisation remember as weights."""

    def __post_init__(self) -> None:
        known = ("none",) if "none" in self.keep else KEPT
        good = bool(self.keep) and all(part in known for part in self.keep) and len(set(self.keep)) == len(self.keep)
        require(good, "fork.keep", " ".join(self.keep), f"some of {', '.join(KEPT)}, or none alone")
        ordered = tuple(part for part in (*KEPT, "none") if part in self.keep)
        object.__setattr__(self, "keep", ordered)  # one spelling for one thing: names and comparisons see it
        require(bool(self.run) or ordered == KEPT, "fork.keep", " ".join(ordered), "left out without --fork")


@dataclass(frozen=True)
class TrainConfig(Generic[AgentT]):
    """One run: world, agent, and how it is run."""

    agent: Annotated[AgentT, Flat]
    world: Annotated[WorldConfig, Flat] = WorldConfig()
    run: Annotated[RunConfig, Flat] = RunConfig()
    probe: ProbeConfig = ProbeConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    fork: Annotated[ForkConfig, First] = ForkConfig()
    surgery: SurgeryConfig = SurgeryConfig()
    interventions: Annotated[tuple[Intervention, ...], AsFlag.NONE] = ()
    """In the order in which they are called; made from --interventions and their own flags (see cli.py)."""

    @property
    def agent_name(self) -> str:
        """dqn, c51, ppo: its kind's."""
        return kind_of(self.agent).name

    @property
    def log_every(self) -> int:
        """Steps between lines of the log."""
        return self.run.log_every or max(100, self.run.steps // 500)

    @property
    def probe_every(self) -> int:
        """Steps between probes."""
        at_least = min(10_000, self.run.steps // 20)  # short runs get curves, too
        return self.probe.every or max(1, at_least, self.run.steps // 100)

    @property
    def checkpoint_every(self) -> int:
        """Steps between checkpoints."""
        return self.run.checkpoint_every or max(1, self.run.steps // 10)

    @property
    def settled(self) -> "TrainConfig":
        """The same as it is recorded: every cadence as a number, which more --steps do not change."""
        run = replace(self.run, log_every=self.log_every, checkpoint_every=self.checkpoint_every)
        world, probe = self.world.family.settled(self.world, ()), replace(self.probe, every=self.probe_every)
        return replace(self, world=world, run=run, probe=probe)

    @property
    def stretched(self) -> tuple[str, ...]:
        """The schedules that depend on --steps: with more steps, the first ones of such a run would be others."""
        schedules, task = schedules_of(self.agent), self.world.task.period
        return tuple(name for name, schedule in schedules.items() if schedule.stretched(task))

    @property
    def run_name(self) -> str:
        """The given name, or one that says what differs from the preset (see `naming.py`)."""
        if self.run.name:
            return self.run.name
        from experiments.naming import made_up_name

        return made_up_name(self.settled)


def to_dict(config: TrainConfig) -> dict:
    """`config` as plain JSON types, the agent's name first."""
    return {"algorithm": config.agent_name, **_plain(config)}


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value):
        name = {"name": value.name} if isinstance(getattr(type(value), "name", None), str) else {}
        return name | {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, (Path, Spelled)):
        return str(value)
    return [_plain(item) for item in value] if isinstance(value, (tuple, list)) else value


def from_dict(settings: dict) -> TrainConfig:
    """The inverse of `to_dict`, of earlier versions too. Unknown or missing parts raise ValueError naming the field."""
    require(isinstance(settings, dict), "settings", settings, "a JSON object")
    settings = translated(settings)
    algorithm = settings.get("algorithm")
    require(isinstance(algorithm, str) and algorithm in KINDS, "algorithm", algorithm, "one of " + ", ".join(KINDS))
    parts = {"agent": {}} | {name: value for name, value in settings.items() if name != "algorithm"}
    return _build(TrainConfig, parts, "", {"agent": KINDS[algorithm].settings, "interventions": _interventions})


def _interventions(listed: object) -> tuple[Intervention, ...]:
    """The interventions of a JSON list of {"name": ..., parameter: ...}; torch is imported only if there are any."""
    require(isinstance(listed, list), "interventions", listed, "a list")
    found = []
    for settings in listed:
        named = isinstance(settings, dict) and isinstance(settings.get("name"), str)
        require(named, "interventions", settings, "objects with a name")
        from agents.interventions import intervention_class

        name, parameters = settings["name"], {key: value for key, value in settings.items() if key != "name"}
        found.append(_build(intervention_class(name), parameters, f"{name}."))
    return tuple(found)


def _build(kind: type, settings: object, path: str, kinds: dict[str, type] = types.MappingProxyType({})) -> object:
    """An object of the dataclass `kind`; absent fields keep their defaults, so that older files still load."""
    require(isinstance(settings, dict), path.rstrip(".") or "settings", settings, "a JSON object")
    hints, values = _hints(kind), {}
    for name, value in settings.items():
        allowed = f"a known setting; known: {', '.join(hints)}{did_you_mean(name, hints)}"
        require(name in hints, f"{path}{name}", value, allowed)
        hint = kinds.get(name, hints[name])
        if hint is _interventions:
            value = _interventions(value)
        elif dataclasses.is_dataclass(hint):
            value = _build(hint, value, f"{path}{name}.")
        else:
            value = _checked(hint, value, f"{path}{name}")
        values[name] = value
    return kind(**values)


@functools.cache
def _hints(kind: type) -> dict[str, object]:
    """The fields of a dataclass and their types."""
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _checked(hint: object, value: object, field: str) -> object:
    """`value` as the field's type; a JSON file can hold anything, so what the command line would refuse is refused."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):  # X | None
        present = next(kind for kind in typing.get_args(hint) if kind is not type(None))
        return None if value is None else _checked(present, value, field)
    if typing.get_origin(hint) is Literal:
        require(value in typing.get_args(hint), field, value, f"one of {', '.join(map(str, typing.get_args(hint)))}")
    elif typing.get_origin(hint) is tuple:
        kinds = typing.get_args(hint)
        if kinds[-1] is Ellipsis:
            require(isinstance(value, list), field, value, "a list")
            kinds = kinds[:1] * len(value)
        require(isinstance(value, list) and len(value) == len(kinds), field, value, f"a list of {len(kinds)}")
        return tuple(_checked(kind, item, field) for kind, item in zip(kinds, value, strict=True))
    elif isinstance(hint, type) and issubclass(hint, Spelled):
        try:
            return hint(value if isinstance(value, str) else "")
        except ValueError:
            require(False, field, value, hint.allowed)
    elif hint is Device:
        require(isinstance(value, str), field, value, "the name of a device")
        check_device(value, field)
    elif hint is Path:
        require(isinstance(value, str) and bool(value.strip()), field, value, "a path")
        return Path(value)
    else:
        number = hint is float and isinstance(value, int | float) and not isinstance(value, bool)
        kind = "a number of fewer digits" if isinstance(value, Digits) else f"of type {hint.__name__}"
        require(number or type(value) is hint, field, value, kind)
    return value


def load_config(path: Path) -> TrainConfig:
    """Read a config.json, or the one in the run directory `path`. A missing or malformed file raises ValueError saying
    which."""
    path = Path(path)
    if os.path.isdir(path):  # pathlib's raises for a name that is too long
        path = path / "config.json"
    try:
        return from_dict(read_json("config", path))
    except RecursionError:  # nested just so deeply that it is read and cannot be shown
        raise ValueError(f"config = {str(path)!r}: is nested too deeply") from None
