"""The settings of one supervised run. Imports no torch."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

from agents.config import AsFlag, require
from experiments.flags import flags_of, rebuilt, value_of
from experiments.sweep.grid import Fields

if TYPE_CHECKING:
    from agents.interventions.base import Intervention
else:
    Intervention = Any  # whose class would bring torch

SUPERVISED = "supervised"
"""What stands for an agent in config.json."""
SCORES = {
    "random_labels": "train/accuracy",
    "target_mean": "train/log10_error",
    "two_phases": "test/accuracy",
    "slow_regression": "train/error",
}
"""By problem, what a task comes to: the tag that compare.py's --metric should name, and that claims are about."""


@dataclass(frozen=True)
class SupervisedConfig:
    """One network, one problem, one seed."""

    problem: Literal["random_labels", "target_mean", "two_phases", "slow_regression"] = "random_labels"
    """random_labels: images get random labels, drawn anew in every task (Lyle et al. 2023); target_mean: regression on
    target_mean + noise, noise drawn anew in every task (Lyle et al. 2024); two_phases: a first task that differs from
    the second, which is what is tested; slow_regression: the slowly-changing one of Dohare et al. 2024, by SGD."""
    seed: int = 1
    """Of everything random."""
    tasks: int = 2
    """How many there are."""
    task_steps: int = 600
    """Gradient steps of each."""
    batch_size: int = 128
    """Examples in a gradient step."""
    learning_rate: float = 1e-3
    """Adam's; of slow_regression SGD's."""
    dataset: str = "fashion_mnist_test"
    """Images, as ImageMDP-v0 takes them."""
    images: int = 1000
    """The first so many of them are learned from."""
    test_images: int = 2000
    """The last so many are tested on, in two_phases."""
    torso: Literal["mlp", "small_cnn"] = "mlp"
    """The network's hidden layers."""
    width: int = 256
    """Units of a dense layer."""
    depth: int = 2
    """Dense layers."""
    moving: bool = True
    """random_labels: whether labels are drawn anew in every task; otherwise they stay."""
    walk: Literal["none", "brownian"] = "none"
    """brownian: in all tasks but the last, every step goes in a random direction instead, in each weight tensor as far
    as the optimizer would have gone (Lyle et al. 2023, section 4.2)."""
    anew: bool = False
    """Whether the last task is learned by a new network."""
    loss: Literal["mse", "hl_gauss"] = "mse"
    """target_mean: squared error, or HL-Gauss over 101 atoms on [-5, target_mean + 5]."""
    target_mean: float = 0.0
    """target_mean: what is added to targets of unit variance."""
    bias_at_mean: bool = False
    """target_mean: whether the output's bias begins at the mean."""
    start: Literal["clean", "half", "noisy", "blurred"] = "clean"
    """two_phases: what the first task has: all of the second one's images and labels; half of the images (warm start,
    Ash and Adams 2020); half of the labels drawn at random (Igl et al. 2021); blurred images (Achille et al. 2019)."""
    activation: Literal["relu", "tanh", "linear"] = "relu"
    """slow_regression: the learner's hidden units; linear: it has none."""
    l2: float = 0.0
    """slow_regression: weight of the squared weights in the loss."""
    interventions: Annotated[tuple[Intervention, ...], AsFlag.NONE] = field(default=())
    """In their order; slow_regression takes none."""

    def __post_init__(self) -> None:
        for name in ("tasks", "task_steps", "batch_size", "images", "width"):
            require(getattr(self, name) >= 1, name, getattr(self, name), ">= 1")
        require(0 <= self.seed < 2**31, "seed", self.seed, "in [0, 2**31)")
        require(0 < self.learning_rate < 1e3, "learning_rate", self.learning_rate, "in (0, 1000)")
        require(self.problem != "two_phases" or self.tasks == 2, "tasks", self.tasks, "2, the phases of two_phases")
        require(self.test_images >= 1, "test_images", self.test_images, ">= 1")
        require(self.l2 >= 0, "l2", self.l2, ">= 0")
        scalar = self.loss == "mse" or not self.bias_at_mean
        require(scalar, "bias_at_mean", self.bias_at_mean, "false with a categorical loss, which has no such bias")
        plain = self.problem != "slow_regression" or not self.interventions
        require(plain, "interventions", len(self.interventions), "none in slow_regression")

    @property
    def steps(self) -> int:
        """Gradient steps in all."""
        return self.tasks * self.task_steps

    @property
    def score(self) -> str:
        """The tag that says how well a task was learned."""
        return SCORES[self.problem]


def to_json(config: SupervisedConfig) -> dict[str, Any]:
    """What config.json holds."""
    plain = {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.name != "interventions"}
    listed = [{"name": one.name, **one.parameters()} for one in config.interventions]
    return {"algorithm": SUPERVISED, **plain, "interventions": listed}


def settings_from(raw: Mapping[str, Any]) -> dict[str, Any]:
    """What config.json says, by flag, as results read the settings of every run; interventions are the caller's.
    ValueError: it says something else."""
    known = {flag.path[0]: flag for flag in flags_of(SupervisedConfig)}
    plain = {name: value for name, value in raw.items() if name not in ("algorithm", "interventions")}
    for name, value in plain.items():
        require(name in known and isinstance(value, str | int | float), name, value, "a supervised run's setting")
    config = SupervisedConfig(**plain)
    found = {flag.name.removeprefix("--"): getattr(config, name) for name, flag in known.items()}
    found |= {"agent": SUPERVISED, "implementation": "this suite", "env": config.problem, "metric": config.score}
    return found | {"steps": config.steps, "task.period": config.task_steps, "task.first": 0, "level-share": 0.9}


def config_of(fields: Fields) -> SupervisedConfig:
    """The settings that a study's `fields` make. Torch comes with interventions alone. ValueError: names the field."""
    from experiments.cli import listed_interventions, made

    given = dict(fields)
    names, _ = listed_interventions(["--interventions", given.pop("interventions", "none")])
    flags = {flag.name.removeprefix("--"): flag for flag in flags_of(SupervisedConfig)}
    own, values = {}, {}
    for name, word in given.items():
        owner, dot, parameter = name.partition(".")
        if dot and owner.replace("-", "_") in (names or ()):
            own[owner.replace("-", "_"), parameter.replace("-", "_")] = word
            continue
        require(name in flags, name, word, f"a setting of a supervised run: {', '.join(flags)}")
        values[flags[name].path] = value_of(flags[name], [word])
    config = rebuilt(SupervisedConfig(), values)
    return dataclasses.replace(config, interventions=made(_parameters(names or []), _typed(own)))


def _parameters(names: list[str]) -> dict[str, dict[str, Any]]:
    from agents.interventions import expanded

    return {name: dict(parameters) for name, parameters in expanded(names).items()}


def _typed(own: Mapping[tuple[str, str], str]) -> dict[tuple[str, str], Any]:
    """Words as the parameters' types. ValueError: there is no such parameter."""
    from agents.interventions import parameters_of
    from experiments.flags import Flag

    found = {}
    for (name, parameter), word in own.items():
        known = {one.name: one for one in parameters_of(name)}
        require(parameter in known, f"{name}.{parameter}", word, f"a parameter: {', '.join(known)}")
        flag = Flag(f"--{name}.{parameter}", (name, parameter), known[parameter].hint, None)
        found[name, parameter] = value_of(flag, [word])
    return found
