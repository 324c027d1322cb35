"""Worlds that other people might have made, most of them against gymnasium's API. Importing this module registers them
as NAME-v0; each docstring says what a user expects."""

import os

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, Graph, MultiBinary, MultiDiscrete, Sequence, Text, Tuple


class Plain(gym.Env):
    """Its constructor takes no argument at all. It trains."""

    observation_space, action_space, length = Box(-1.0, 1.0, (3,), np.float32), Discrete(2), 10

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.observe(), self.first_info()

    def step(self, action):
        self.t += 1
        return self.observe(), self.reward(action), self.ended(), self.t >= self.length, self.info()

    def observe(self):
        return np.full(self.observation_space.shape, min(self.t, 1), self.observation_space.dtype)

    def reward(self, action):
        return 1.0

    def ended(self):
        return False

    def info(self):
        return {}

    def first_info(self):
        return {}


KINDS: dict[str, type] = {}


def register(kind: type, name: str = "") -> type:
    """Make `kind` known as NAME-v0."""
    name = name or kind.__name__
    KINDS[name] = kind
    if f"{name}-v0" not in gym.registry:
        gym.register(f"{name}-v0", entry_point=kind)
    return kind


def variant(name: str, **members) -> type:
    """`Plain` with other members, registered."""
    return register(type(name, (Plain,), members))


register(Plain)

# Infos: all of these train.
variant("LivesLater", info=lambda self: {"lives": 3})
variant("LivesLost", info=lambda self: {"lives": 3 - self.t // 4}, first_info=lambda self: {"lives": 3})
variant("LivesSometimes", info=lambda self: {"lives": 3 - self.t // 4} if self.t % 4 == 0 else {})
for key, value in {
    "Word": "three",
    "Nothing": None,
    "Array": np.arange(3),
    "Truth": True,
    "Fraction": 2.5,
    "Huge": 2**80,
    "Negative": -3,
}.items():
    variant(f"Lives{key}", info=lambda self, value=value: {"lives": value})
variant("SometimesTold", info=lambda self: {"reward_ctrl": 1.0} if self.t % 2 else {})
variant(
    "ToldWords", info=lambda self: {"reward_ctrl": "much", "x_velocity": np.ones(3), "reward_forward": float("nan")}
)
variant("ArrayInfo", info=lambda self: np.ones(3))
variant("NoInfo", info=lambda self: None, first_info=lambda self: None)
variant("ListInfo", info=lambda self: ["lives"], first_info=lambda self: 3)
variant(
    "OurNames",
    info=lambda self: dict.fromkeys(
        ("episode", "_episode", "final_obs", "_final_obs", "task_index", "task_stage", "task", "life_lost"), "theirs"
    ),
)

# Observations that are taken as arrays.
variant("NoDimension", observation_space=Box(-1.0, 100.0, (), np.float32), observe=lambda self: np.float32(self.t))
variant("ChannelsLast", observation_space=Box(0, 255, (84, 84, 3), np.uint8))
variant("NoChannels", observation_space=Box(0, 255, (84, 84), np.uint8))
variant("Matrix", observation_space=Box(-1.0, 1.0, (2, 3), np.float64))
variant("Integers", observation_space=Box(-5, 5, (4,), np.int64))
variant("Lists", observe=lambda self: [0.0, 0.5, 1.0])
variant("Doubles", observe=lambda self: np.zeros(3, np.float64))
variant("Counted", observation_space=Discrete(5, start=2), observe=lambda self: 2 + self.t % 5)
variant("Bits", observation_space=MultiBinary(4), observe=lambda self: np.ones(4, np.int8))
variant("Counts", observation_space=MultiDiscrete([3, 2]), observe=lambda self: np.array([self.t % 3, self.t % 2]))
variant("Pair", observation_space=Tuple((Discrete(3), Box(0, 9, (2,)))), observe=lambda self: (self.t % 3, [1, 2]))
variant(
    "Goals",
    observation_space=Dict(place=Box(-9, 9, (2,), np.float64), goal=Box(-9, 9, (2,), np.float32)),
    observe=lambda self: {"place": np.array([1.0, 2.0]), "goal": np.array([3.0, 4.0])},
)


class Reuses(Plain):
    """It writes into the array that it gave before. What agents keep stays."""

    buffer = None

    def observe(self):
        if self.buffer is None:
            self.buffer = np.zeros(3, np.float32)
        self.buffer[:] = self.t / 10
        return self.buffer


register(Reuses)

# Observations that no agent takes.
variant("Words", observation_space=Text(5))
variant("Chain", observation_space=Sequence(Discrete(3)))
variant("Web", observation_space=Graph(Box(0, 1, (2,)), None))
variant("PictureAndMore", observation_space=Dict(image=Box(0, 255, (64, 64, 3), np.uint8), speed=Box(0, 1, (1,))))
variant("Empty", observation_space=Box(0, 1, (0,)))
variant("Endless", observation_space=Discrete(10**9))
variant("NoParts", observation_space=Dict())
variant("ActsHuge", action_space=Discrete(10**9))
variant("NoSpace", observation_space="Box(3,)")

# Promises broken at the first reset.
variant("ScalarObservation", observe=lambda self: np.float32(self.t))
variant("Longer", observe=lambda self: np.zeros(4, np.float32))
variant("Turned", observe=lambda self: np.zeros((3, 1), np.float32))
variant("NoObservation", observe=lambda self: None)
variant("Name", observe=lambda self: "cart")
variant("DictObservation", observe=lambda self: {"x": 1.0})
variant("Ragged", observe=lambda self: [0.0, [1.0], 2.0])
variant("Objects", observe=lambda self: np.array([None, 1.0, "x"], dtype=object))
variant("FloatImage", observation_space=Box(0, 255, (8,), np.uint8), observe=lambda self: np.zeros(8, np.float32))
variant("WrappedBytes", observation_space=Box(0, 255, (8,), np.uint8), observe=lambda self: np.full(8, 300))
variant("BeyondCount", observation_space=Discrete(3), observe=lambda self: 3)
variant("MissingGoal", observation_space=Dict(place=Box(-9, 9, (2,))), observe=lambda self: {})


class OldReset(Plain):
    """reset() gives an observation alone."""

    def reset(self, seed=None, options=None):
        return super().reset(seed, options)[0]


class SeedlessReset(Plain):
    """reset() takes no seed."""

    def reset(self):
        return super().reset()


register(OldReset)
register(SeedlessReset)

# Promises broken at a step.
variant("ArrayReward", reward=lambda self, action: np.array([1.0], np.float32))
variant("NoReward", reward=lambda self, action: None)
variant("WordReward", reward=lambda self, action: "1.0")
variant("ComplexReward", reward=lambda self, action: 1j)
variant("EndlessReward", reward=lambda self, action: 10**400)
variant("NoEnd", ended=lambda self: None)
variant("ArrayEnd", ended=lambda self: np.array([False]))
variant("Grows", observe=lambda self: np.zeros(3 if self.t < 5 else 4, np.float32))
variant("OldStep", step=lambda self, action: (self.observe(), 1.0, False, {}))
variant("NothingStep", step=lambda self, action: None)

# Numbers that are fine.
variant("IntReward", reward=lambda self, action: 1)
variant("NumpyReward", reward=lambda self, action: np.float32(1.0))
variant("SingleReward", reward=lambda self, action: np.array(1.0))
variant("IntEnd", ended=lambda self: 0)
variant("NumpyEnd", ended=lambda self: np.bool_(False))

# Beyond its bounds, which is said once.
variant("Outside", observe=lambda self: np.full(3, 7.0 if self.t == 4 else 0.0, np.float32))


class RewardsWhatItWasGiven(Plain):
    """The reward is the sum of what the world was given, once it lies within its space and has its type."""

    length = 1

    def reward(self, action):
        assert self.action_space.contains(action), (action, type(action))
        return float(np.sum(action))


for name, space in {
    "FromFive": Discrete(3, start=5),
    "Far": Box(100.0, 200.0, (1,), np.float32),
    "Whole": Box(0, 10, (2,), np.int64),
    "Bytes": Box(0, 255, (1,), np.uint8),
    "Square": Box(-1.0, 1.0, (2, 2), np.float64),
    "Number": Box(-0.1, 0.1, (), np.float64),
    "Fixed": Box(np.float32([2.0, -1.0]), np.float32([2.0, 1.0])),
    "Unbounded": Box(-np.inf, np.inf, (2,), np.float32),
}.items():
    register(type(name, (RewardsWhatItWasGiven,), {"action_space": space}), f"Acts{name}")
for name, space in {
    "ManyCounts": MultiDiscrete([2, 3]),
    "ManyBits": MultiBinary(3),
    "Both": Tuple((Discrete(2), Box(0, 1, (1,)))),
    "Empty": Box(0.0, 1.0, (0,)),
    "None": None,
}.items():
    variant(f"Acts{name}", action_space=space)


class FarActions(Plain):
    """Actions in [100, 200], best at 150. PPO gets there."""

    action_space, length = Box(100.0, 200.0, (1,), np.float32), 1

    def reward(self, action):
        return 1.0 - abs(float(action[0]) - 150.0) / 50.0


register(FarActions)


class WritesIntoActions(Plain):
    """It changes the action that it was given."""

    action_space = Box(-1.0, 1.0, (2,), np.float32)

    def reward(self, action):
        action[:] = 99.0
        return 1.0


register(WritesIntoActions)


class Alike(Plain):
    """Every other environment has another space."""

    built = 0

    def __init__(self):
        Alike.built += 1
        if Alike.built % 2 == 0:
            self.observation_space = Box(-1.0, 1.0, (4,), np.float32)


register(Alike, "Unlike")


class Panic(BaseException):
    """What a library of another language may raise."""


def _raises(error):
    def method(self, *_):
        raise error

    return method


def _raises_at(step, error):
    def method(self, action):
        if self.t == step:
            raise error
        return 1.0

    return method


variant("RaisesAtReset", observe=_raises(KeyError("no such level")))
variant("RaisesAtStep", reward=_raises_at(7, RuntimeError("simulator\nlost [connection]")))


class Mute(Exception):
    """Its message is a mistake of its own."""

    def __str__(self):
        raise LookupError("no text")


variant("RaisesMute", reward=_raises_at(7, Mute()))
variant("RaisesColours", reward=_raises_at(7, RuntimeError("\x1b[31mred\x00\nnext")))
variant("Exits", reward=_raises_at(7, SystemExit(3)))
variant("Panics", reward=_raises_at(7, Panic("thread panicked")))
variant("RaisesAtClose", close=_raises(OSError("port is gone")))
variant("RaisesAtBirth", __init__=_raises(ZeroDivisionError("division by zero")))
variant("Needs", __init__=lambda self, size: None)
variant("NeedsRenderMode", __init__=lambda self, render_mode: setattr(self, "render_mode", render_mode))
variant("RaisesForSpace", observation_space=property(_raises(AttributeError("not yet known"))))


def _wanders(self, *_):
    os.chdir("/")
    return 1.0


variant("WandersAtReset", first_info=lambda self: {"at": _wanders(self)})
variant("WandersAtStep", reward=_wanders)
variant("WandersAtBirth", __init__=lambda self: os.chdir("/"))


class Drawn(Plain):
    """It can be drawn, at first."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": None}  # noqa: RUF012
    drawn = 0

    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def render(self):
        self.drawn += 1
        if self.drawn > 5:
            raise RuntimeError("window lost")
        return np.zeros((16, 16, 3), np.uint8)


register(Drawn)
