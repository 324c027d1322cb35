"""Which world a run acts in, as typed fields. Standard library alone, so that a bad flag is answered at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Family = Literal["atari", "mujoco", "gymnasium"]

# Observation size, action size and time limit in steps of the MuJoCo worlds that both backends know.
MUJOCO_WORLDS: dict[str, tuple[int, int, int]] = {
    "Ant-v5": (105, 8, 1000),
    "HalfCheetah-v5": (17, 6, 1000),
    "Hopper-v5": (11, 3, 1000),
    "Humanoid-v5": (348, 17, 1000),
    "HumanoidStandup-v5": (348, 17, 1000),
    "InvertedDoublePendulum-v5": (9, 1, 1000),
    "InvertedPendulum-v5": (4, 1, 1000),
    "Pusher-v5": (23, 7, 100),
    "Reacher-v5": (10, 2, 50),
    "Swimmer-v5": (8, 2, 1000),
    "Walker2d-v5": (17, 6, 1000),
}
ATARI_STEP_LIMIT = 27_000
"""108,000 emulator frames, 30 minutes of play (Machado et al. 2018, arXiv 1709.06009)."""

ATARI_PREFIX = "ALE/"
_BACKENDS = {
    "atari": ("auto", "envpool", "ale", "gymnasium"),
    "mujoco": ("auto", "envpool", "gymnasium"),
    "gymnasium": ("auto", "gymnasium"),
}
_ATARI_ONLY = ("sticky_actions", "full_action_space", "noop_max", "fire_reset")
_ANT_ONLY = ("ant_observation", "contact_cost_weight", "healthy_reward_on_termination")


def family_of(env: str) -> Family:
    """The family an environment id belongs to by its name: ``"atari"``, ``"mujoco"`` or ``"gymnasium"`` (any other)."""
    if env.startswith(ATARI_PREFIX):
        return "atari"
    return "mujoco" if env in MUJOCO_WORLDS else "gymnasium"


@dataclass(frozen=True)
class WorldConfig:
    """One world and how it is run. Every field is a command-line flag.

    Raises:
        ValueError: a field is out of its range, or does not apply to `env`; the sentence names the field.
    """

    env: str = "ALE/Breakout-v5"
    """Gymnasium id of the world, such as ALE/Pong-v5, Ant-v5 or CartPole-v1."""
    num_envs: int = 1
    """Number of environments E that step together."""
    backend: Literal["auto", "envpool", "ale", "gymnasium"] = "auto"
    """Which implementation steps the world; auto is envpool for Atari and MuJoCo, gymnasium for everything else."""
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

    def __post_init__(self) -> None:
        family = family_of(self.env)
        _require(bool(self.env.strip()), "env", self.env, "must be a Gymnasium id such as 'ALE/Breakout-v5'")
        _require(self.num_envs >= 1, "num_envs", self.num_envs, "must be at least 1")
        _require(0.0 <= self.sticky_actions <= 1.0, "sticky_actions", self.sticky_actions, _PROBABILITY)
        _require(0 <= self.noop_max <= 1000, "noop_max", self.noop_max, "must be between 0 and 1000")
        limit = self.max_episode_steps
        _require(limit >= 0, "max_episode_steps", limit, "must be 0 (the world's own limit) or a positive count")
        weight = self.contact_cost_weight
        _require(0.0 <= weight < float("inf"), "contact_cost_weight", weight, "must be a finite number of at least 0")
        _require(self.ant_observation in _ANT_OBSERVATIONS, "ant_observation", self.ant_observation, _ANT_CHOICE)
        known = _BACKENDS["atari"]
        _require(self.backend in known, "backend", self.backend, f"must be one of {', '.join(known)}")
        allowed = _BACKENDS[family]
        _require(
            self.backend in allowed,
            "backend",
            self.backend,
            f"must be one of {', '.join(allowed)} for env = {self.env!r}",
        )
        self._refuse_foreign_options(_ATARI_ONLY, family == "atari", "Atari (ALE/...) worlds")
        self._refuse_foreign_options(_ANT_ONLY, self.env == "Ant-v5", "Ant-v5")

    def _refuse_foreign_options(self, names: tuple[str, ...], applies: bool, where: str) -> None:
        for name in () if applies else names:
            value, default = getattr(self, name), type(self).__dataclass_fields__[name].default
            message = f"applies to {where} alone and must stay {default!r} for env = {self.env!r}"
            _require(value == default, name, value, message)

    @property
    def family(self) -> Family:
        """``"atari"``, ``"mujoco"`` or ``"gymnasium"``, from the id alone."""
        return family_of(self.env)

    @property
    def resolved_backend(self) -> Literal["envpool", "ale", "gymnasium"]:
        """The backend with ``"auto"`` decided."""
        if self.backend != "auto":
            return self.backend
        return "gymnasium" if self.family == "gymnasium" else "envpool"


_ANT_OBSERVATIONS = {"default-105": 105, "plain-27": 27, "padded-111": 111}
_ANT_CHOICE = f"must be one of {', '.join(_ANT_OBSERVATIONS)}"
_PROBABILITY = "must be a probability in [0, 1]"


def ant_observation_size(variant: str) -> int:
    """Number of inputs of an Ant observation variant."""
    return _ANT_OBSERVATIONS[variant]


def _require(condition: bool, field: str, value: object, allowed: str) -> None:
    if not condition:
        raise ValueError(f"{field} = {value!r}: {allowed}")
