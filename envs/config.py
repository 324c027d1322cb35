"""Which world a run acts in, as typed fields. Standard library alone, so that a bad flag is answered at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from envs.ids import ANTS, FRICTION_ANT, IMAGE_MDP, MOST_CHARACTERS, Family, canonical, family_of, well_formed

Change = Literal["friction", "labels", "games", "modes", "actions", "observations", "rewards", "reset"]

ATARI_STEP_LIMIT = 27_000
"""108,000 emulator frames, 30 minutes of play (Machado et al. 2018, arXiv 1709.06009)."""

IMAGE_MDP_STEP_LIMIT = 100
"""The image MDP never ends by itself; cut here (and bootstrapped), a return is the percentage of right actions (but in
the sparse variant, where only the last class pays)."""

MOST_TASKS = 100_000
"""Largest index of a task that one may begin with: the labels of a task are drawn after those of all before it."""

_BACKENDS = {
    "atari": ("auto", "envpool", "ale", "gymnasium"),
    "mujoco": ("auto", "envpool", "gymnasium"),
    "image": ("auto", "native"),
    FRICTION_ANT: ("auto", "native", "gymnasium"),
    "gymnasium": ("auto", "gymnasium"),
}
_ATARI_ONLY = ("sticky_actions", "full_action_space", "noop_max", "fire_reset")
_ANT_ONLY = ("ant_observation", "contact_cost_weight", "healthy_reward_on_termination")
_ANT_OBSERVATIONS = {"default-105": 105, "plain-27": 27, "padded-111": 111}
_ANT_CHOICE = f"must be one of {', '.join(_ANT_OBSERVATIONS)}"
_PROBABILITY = "must be a probability in [0, 1]"
_ORDERS = ("auto", "sequence", "cycle", "A-B-A")
_ANYWHERE = ("actions", "observations", "rewards", "reset")


def _one_of(allowed: tuple[str, ...]) -> str:
    return f"must be {allowed[0]}" if len(allowed) == 1 else f"must be one of {', '.join(allowed)}"


def _finite(value: float) -> bool:
    return abs(value) < float("inf")


def _require(condition: bool, field: str, value: object, allowed: str) -> None:
    if not condition:
        text = repr(value)
        short = text if len(text) <= 200 else f"{text[:120]}...{text[-60:]}"
        raise ValueError(f"{field} = {short}: {allowed}")


def backends_of(env: str) -> tuple[str, ...]:
    """The backends that can step `env`, "auto" first."""
    return _BACKENDS.get(env, _BACKENDS[family_of(env)])


def changes_of(env: str) -> tuple[Change, ...]:
    """What can change in `env` from task to task."""
    if env == FRICTION_ANT:
        return ("friction",)
    if env == IMAGE_MDP:
        return ("labels", *_ANYWHERE)
    if "," in env:
        return ("games",)
    return ("modes", *_ANYWHERE) if family_of(env) == "atari" else _ANYWHERE


def foreign_fields(env: str) -> frozenset[str]:
    """The fields of `WorldConfig` that apply to other worlds alone; of a part that does as a whole, its name."""
    return frozenset(
        field
        for fields, applies in (
            (_ATARI_ONLY, family_of(env) == "atari"),
            (_ANT_ONLY, env in ANTS),
            (("friction",), env == FRICTION_ANT),
            (("dataset", "dataset_sha256", "image"), env == IMAGE_MDP),
        )
        for field in fields
        if not applies
    )


@dataclass(frozen=True)
class TaskConfig:
    """When and how the world changes. Every method meets the same tasks: they depend on the seed here alone."""

    change: Literal["auto", Change] = "auto"
    """What changes: friction (FrictionAnt-v0), labels (ImageMDP-v0), games (several ids in --env), modes (one Atari
    game's modes and difficulties), actions or observations (their meaning or order permuted), rewards (an offset),
    reset (all episodes cut, begun anew from a fresh seed); auto: what the world is made for."""
    period: int = 0
    """Steps of a task over all environments; 0: the world never changes."""
    at: Literal["episode_end", "now"] = "episode_end"
    """When a due change happens: at each environment's next episode end, or at once in all (what cannot change under a
    running episode cuts it, as truncation)."""
    count: int = 0
    """Number of different tasks; 0: all there are, or without end."""
    order: Literal["auto", "sequence", "cycle", "A-B-A"] = "auto"
    """sequence: one after the other, the last one stays; cycle: over and over; A-B-A: each once, then the first one
    again for good; auto: cycle for games and modes, else sequence."""
    stages: int = 1
    """1: jumps; more: a gradual drift to the next task in so many equal parts (friction and rewards)."""
    first: int = 0
    """Index of the task to begin with (with period 0: the only one)."""
    reward_step: float = 1.0
    """Change 'rewards': task k adds k times this to every reward."""
    seed: int | None = None
    """Seed of the tasks; without one it is derived from the run's seed."""

    def __post_init__(self) -> None:
        for field, least in (("period", 0), ("count", 0), ("stages", 1), ("first", 0)):
            value = getattr(self, field)
            _require(value >= least, f"task.{field}", value, f"must be at least {least}")
        _require(self.first <= MOST_TASKS, "task.first", self.first, f"must be at most {MOST_TASKS:,}")
        choices = (("change", ("auto", *Change.__args__)), ("at", ("episode_end", "now")), ("order", _ORDERS))
        for field, allowed in choices:
            _require(getattr(self, field) in allowed, f"task.{field}", getattr(self, field), _one_of(allowed))
        _require(_finite(self.reward_step), "task.reward_step", self.reward_step, "must be a finite number")
        _require(self.seed is None or 0 <= self.seed < 2**63, "task.seed", self.seed, "must be in [0, 2**63)")


@dataclass(frozen=True)
class FrictionConfig:
    """FrictionAnt-v0: the law of the sliding friction, drawn once a task (Dohare et al. 2024: log-uniform [.02, 2])."""

    low: float = 0.02
    """Least friction; > 0."""
    high: float = 2.0
    """Greatest friction; >= low."""
    law: Literal["log_uniform", "uniform"] = "log_uniform"
    """log_uniform: every factor alike (10 ** uniform); uniform: every difference alike."""

    def __post_init__(self) -> None:
        _require(0.0 < self.low < float("inf"), "friction.low", self.low, "must be > 0 and finite")
        allowed = f"must be at least friction.low = {self.low} and finite"
        _require(self.low <= self.high < float("inf"), "friction.high", self.high, allowed)
        _require(self.law in ("log_uniform", "uniform"), "friction.law", self.law, "must be log_uniform or uniform")


@dataclass(frozen=True)
class ImageConfig:
    """ImageMDP-v0 (Lyle et al. 2023, section 3.2): states are classes, seen as images; an action names a class."""

    variant: Literal["true_label", "random_label", "sparse", "bandit"] = "true_label"
    """true_label: reward 1 for the right class, next state random; random_label: the same with random labels; sparse:
    reward in the last class alone, a right action leads to the next class; bandit: images drawn independently."""
    num_images: int = 0
    """Use only so many images, as many of each class as there can be; 0: all."""
    redraw: float = 1.0
    """Change 'labels': share of the images whose labels are drawn anew at a task change, in (0, 1]."""

    def __post_init__(self) -> None:
        variants = ("true_label", "random_label", "sparse", "bandit")
        _require(self.variant in variants, "image.variant", self.variant, _one_of(variants))
        _require(self.num_images >= 0, "image.num_images", self.num_images, "must be at least 0 (0: all)")
        _require(0.0 < self.redraw <= 1.0, "image.redraw", self.redraw, "must be in (0, 1]")


@dataclass(frozen=True)
class WorldConfig:
    """One world and how it is run. Every field is a command-line flag.

    Raises:
        ValueError: a field is out of its range, or does not apply to `env`; the sentence names the field.
    """

    env: str = "ALE/Breakout-v5"
    """Gymnasium id of the world, such as ALE/Pong-v5, Ant-v5, FrictionAnt-v0, ImageMDP-v0 or CartPole-v1; MODULE:ID for
    a world that the module registers; several Atari games with commas between them are played in turn."""
    num_envs: int = 1
    """Number of environments E that step together."""
    backend: Literal["auto", "envpool", "ale", "gymnasium", "native"] = "auto"
    """Which implementation steps the world; auto is envpool for Atari and MuJoCo, native (our own) for FrictionAnt-v0
    and ImageMDP-v0, gymnasium for everything else."""
    sticky_actions: float = 0.0
    """Atari: probability that a frame repeats the last action instead of the new one; Machado et al. 2018 use 0.25."""
    full_action_space: bool = False
    """Atari: all 18 joystick actions instead of the game's own minimal set."""
    noop_max: int = 30
    """Atari: each game begins with a random number of idle frames, at most this many; 0 for none."""
    fire_reset: bool = True
    """Atari: press FIRE for one frame at the beginning of each game that has the button."""
    max_episode_steps: int = 0
    """Time limit in steps; 0 for the world's own (Atari 27,000 steps = 108,000 frames, Ant 1,000)."""
    ant_observation: Literal["default-105", "plain-27", "padded-111"] = "default-105"
    """Ant: Ant-v5's own 105 numbers; the 27 of positions and velocities; or these and 84 zeros (Dohare et al. 2024)."""
    contact_cost_weight: float = 5e-4
    """Ant: weight of the squared, clipped contact forces in the reward; Dohare et al. 2024's Ant amounts to 0."""
    healthy_reward_on_termination: bool = False
    """Ant: pay the +1 healthy reward on the step that ends the episode too, as Ant-v3 did and Ant-v5 does not."""
    dataset: str = "fashion_mnist_test"
    """ImageMDP-v0: fashion_mnist_test (10,000 images, part of this package); mnist, fashion_mnist or cifar10 (training
    images, downloaded once); or the path of an .npz with arrays images and labels."""
    dataset_sha256: str = ""
    """ImageMDP-v0 with an .npz: its SHA-256, recorded when a run begins; one that has changed since is refused, unless
    --dataset names it again."""
    task: TaskConfig = TaskConfig()
    """When and how the world changes."""
    friction: FrictionConfig = FrictionConfig()
    """FrictionAnt-v0's frictions."""
    image: ImageConfig = ImageConfig()
    """ImageMDP-v0's rules."""

    def __post_init__(self) -> None:
        longest = max(len(part) for part in self.env.split(","))
        a_line = longest <= MOST_CHARACTERS and self.env.isprintable()
        _require(a_line, "env", self.env, f"must be a Gymnasium id: at most {MOST_CHARACTERS} characters on one line")
        # A frozen field, but one name for one world: files, names of runs and comparisons see this one.
        object.__setattr__(self, "env", canonical(self.env))
        _require(
            all(map(well_formed, self.games)),
            "env",
            self.env,
            "must be a Gymnasium id such as 'ALE/Breakout-v5', or MODULE:ID for one that a module registers",
        )
        family = family_of(self.env)
        digits = len(self.dataset_sha256) in (0, 64) and not self.dataset_sha256.strip("0123456789abcdef")
        _require(digits, "dataset_sha256", self.dataset_sha256, "must be 64 hexadecimal digits, or empty")
        _require(self.num_envs >= 1, "num_envs", self.num_envs, "must be at least 1")
        _require(0.0 <= self.sticky_actions <= 1.0, "sticky_actions", self.sticky_actions, _PROBABILITY)
        _require(0 <= self.noop_max <= 1000, "noop_max", self.noop_max, "must be between 0 and 1000")
        limit = self.max_episode_steps
        _require(limit >= 0, "max_episode_steps", limit, "must be 0 (the world's own limit) or a positive count")
        weight = self.contact_cost_weight
        _require(0.0 <= weight < float("inf"), "contact_cost_weight", weight, "must be a finite number of at least 0")
        _require(self.ant_observation in _ANT_OBSERVATIONS, "ant_observation", self.ant_observation, _ANT_CHOICE)
        known = ("auto", "envpool", "ale", "gymnasium", "native")
        _require(self.backend in known, "backend", self.backend, _one_of(known))
        allowed = backends_of(self.env)
        _require(
            self.backend in allowed,
            "backend",
            self.backend,
            f"must be one of {', '.join(allowed)} for env = {self.env!r}",
        )
        self._refuse_foreign_options(_ATARI_ONLY, family == "atari", "Atari (ALE/...) worlds")
        self._refuse_foreign_options(_ANT_ONLY, self.env in ANTS, " and ".join(ANTS))
        self._refuse_foreign_options(("friction",), self.env == FRICTION_ANT, FRICTION_ANT)
        self._refuse_foreign_options(("dataset", "dataset_sha256", "image"), self.env == IMAGE_MDP, IMAGE_MDP)
        self._check_tasks()

    def _check_tasks(self) -> None:
        task, change = self.task, self.task.change
        allowed = changes_of(self.env)
        _require(change in ("auto", *allowed), "task.change", change, f"{_one_of(allowed)} for env = {self.env!r}")
        foreign = self.change is None and task != TaskConfig(seed=task.seed)
        _require(not foreign, "task.change", change, f"name what changes in {self.env!r}: {_one_of(allowed)}")
        for game in self.games if len(self.games) > 1 else ():
            _require(family_of(game) == "atari", "env", self.env, "several worlds in turn must all be ALE/<Game>-v5")
        modes_in_ale = self.change == "modes" and self.backend == "ale"
        _require(not modes_in_ale, "backend", self.backend, "must be auto, envpool or gymnasium with change = 'modes'")

    @property
    def games(self) -> tuple[str, ...]:
        """The ids in `env`: one, or the games that are played in turn."""
        return tuple(part.strip() for part in self.env.split(","))

    @property
    def change(self) -> Change | None:
        """What changes in this world, "auto" decided; None: nothing, it is an ordinary world."""
        if self.task.change != "auto":
            return self.task.change
        if len(self.games) > 1:
            return "games"
        return {FRICTION_ANT: "friction", IMAGE_MDP: "labels"}.get(self.env)

    def _refuse_foreign_options(self, names: tuple[str, ...], applies: bool, where: str) -> None:
        for name in () if applies else names:
            value, default = getattr(self, name), type(self).__dataclass_fields__[name].default
            message = f"applies to {where} alone and must stay {default!r} for env = {self.env!r}"
            _require(value == default, name, value, message)

    @property
    def family(self) -> Family:
        """``"atari"``, ``"mujoco"``, ``"image"`` or ``"gymnasium"``, from the id alone."""
        return family_of(self.env)

    @property
    def resolved_backend(self) -> Literal["envpool", "ale", "gymnasium", "native"]:
        """The backend with ``"auto"`` decided."""
        if self.backend != "auto":
            return self.backend
        return backends_of(self.env)[1]


def ant_observation_size(variant: str) -> int:
    """Number of inputs of an Ant observation variant."""
    return _ANT_OBSERVATIONS[variant]
