"""A world that is built again and put where another stood goes on as that one did, to the bit."""

import json

import numpy as np
import pytest

from envs import FrictionConfig, ImageConfig, TaskConfig, make_vec
from envs.snapshots import LAGGING

ROBOTS = ("Ant-v5", "HalfCheetah-v5", "Hopper-v5", "Humanoid-v5", "InvertedDoublePendulum-v5", "Pusher-v5")
ROBOTS = (*ROBOTS, "Reacher-v5", "Swimmer-v5", "Walker2d-v5", "InvertedPendulum-v5", "HumanoidStandup-v5")
GYM = {"backend": "gymnasium"}

WORLDS = {
    "breakout": ("ALE/Breakout-v5", {**GYM, "max_episode_steps": 60}),
    "sticky": ("ALE/Boxing-v5", {**GYM, "sticky_actions": 0.25, "full_action_space": True, "max_episode_steps": 40}),
    "lives": ("ALE/Asteroids-v5", {**GYM, "noop_max": 5}),
    **{name: (name, {**GYM, "max_episode_steps": 23}) for name in ROBOTS},
    "dohare": ("Ant-v5", {**GYM, "healthy_reward_on_termination": True, "ant_observation": "padded-111"}),
    "native": ("Ant-v5", {"max_episode_steps": 23}),
    "native, offsets": ("Ant-v5", {"ant_observation": "plain-27", "task": TaskConfig("rewards", 48, stages=3)}),
    "images": ("ImageMDP-v0", {"max_episode_steps": 9}),
    "sparse": ("ImageMDP-v0", {"image": ImageConfig(variant="sparse"), "task": TaskConfig(period=31)}),
    "labels": (
        "ImageMDP-v0",
        {"task": TaskConfig(period=40, at="now"), "image": ImageConfig("random_label", 200, 0.5)},
    ),
    "late labels": ("ImageMDP-v0", {"task": TaskConfig(period=35), "max_episode_steps": 50}),
    "pixels": ("ImageMDP-v0", {"task": TaskConfig(change="observations", period=44), "max_episode_steps": 13}),
    "friction": ("FrictionAnt-v0", {"task": TaskConfig(period=50), "max_episode_steps": 19}),
    "drift": ("FrictionAnt-v0", {"task": TaskConfig(period=90, stages=4), "friction": FrictionConfig(0.1, 1.0)}),
    "gym friction": ("FrictionAnt-v0", {**GYM, "task": TaskConfig(period=50), "max_episode_steps": 30}),
    "games": ("ALE/Pong-v5,ALE/Freeway-v5", {**GYM, "task": TaskConfig(period=64), "max_episode_steps": 21}),
    "modes": ("ALE/Freeway-v5", {**GYM, "task": TaskConfig("modes", 60, count=3), "max_episode_steps": 17}),
    "actions": ("Hopper-v5", {**GYM, "task": TaskConfig("actions", 33)}),
    "offsets": ("Hopper-v5", {**GYM, "task": TaskConfig("rewards", 48, stages=3), "max_episode_steps": 15}),
    "resets": ("ALE/Pong-v5", {**GYM, "task": TaskConfig("reset", 45), "sticky_actions": 0.1}),
}


def built(name, num_envs=3):
    env, options = WORLDS[name]
    return make_vec(env, num_envs, 7, **options)


def actions_of(world, random):
    if hasattr(world.single_action_space, "n"):
        return random.integers(world.single_action_space.n, size=world.num_envs)
    return random.uniform(-1, 1, (world.num_envs, *world.single_action_space.shape)).astype(np.float32)


def leaves(value, path=""):
    """Every array and number of nested dicts and lists, as bytes under its path."""
    if isinstance(value, dict):
        return {place: leaf for key, one in value.items() for place, leaf in leaves(one, f"{path}/{key}").items()}
    if isinstance(value, list | tuple):
        return {place: leaf for i, one in enumerate(value) for place, leaf in leaves(one, f"{path}/{i}").items()}
    if isinstance(value, np.ndarray):
        return {path: (value.dtype.str, value.shape, value.tobytes())}
    return {path: repr(value)}


def same(one, other):
    one, other = leaves(one), leaves(other)
    assert one.keys() == other.keys()
    for place in one:
        assert one[place] == other[place], place


def primitive(value):
    """`value` through JSON, arrays aside: an object of any class would not pass."""
    if isinstance(value, np.ndarray):
        assert value.dtype != object
        return value.copy()
    if isinstance(value, dict):
        assert all(type(key) is str for key in value)
        return {key: primitive(one) for key, one in value.items()}
    if isinstance(value, list):
        return [primitive(one) for one in value]
    assert type(value) in (int, float, str, bool, type(None)), type(value)
    return json.loads(json.dumps(value))


def check(build, ticks, more, seed, prepare=lambda world: None):
    """`ticks` steps, a snapshot, `more` steps; then the same `more` steps from the snapshot in a world built anew."""
    random = np.random.default_rng(seed)
    world = build()
    assert world.resumption.kind in ("exact", "replayed")
    prepare(world)
    given = world.reset()
    for _ in range(ticks):
        given = world.step(actions_of(world, random))
    state = primitive(world.state_dict())
    chosen = [actions_of(world, random) for _ in range(more)]
    expected = [world.step(actions) for actions in chosen]
    end = world.state_dict()
    world.close()

    other = build()
    resumed = other.load_state_dict(primitive(state))
    assert resumed.warning == ""
    same(resumed.observations, given[0])
    known = ("lives", "task_index", "task_stage", "task")
    same({key: resumed.infos.get(key) for key in known}, {key: given[-1].get(key) for key in known})
    same(other.state_dict(), state)
    for actions, step in zip(chosen, expected, strict=True):
        same(other.step(actions), step)
    same(other.state_dict(), end)
    other.close()


@pytest.mark.parametrize("name", WORLDS)
def test_a_world_goes_on_from_its_snapshot(name):
    random = np.random.default_rng(list(WORLDS).index(name))
    check(lambda: built(name), 0, 8, 1)  # right after the reset
    ticks = int(random.integers(1, 60))
    check(lambda: built(name), ticks, 40, ticks)


@pytest.mark.parametrize("name", ["friction", "games", "late labels", "pixels"])
def test_between_a_due_change_and_its_switch(name):
    random = np.random.default_rng(3)
    world = built(name)
    world.reset()
    ticks = 0
    while (world.schedule.positions == world.schedule.due).all():
        world.step(actions_of(world, random))
        ticks += 1
    world.close()
    check(lambda: built(name), ticks, 40, 3)


def test_every_lagging_array_is_needed_or_harmless():
    """The first step after a snapshot without them differs: what `LAGGING` says is no superstition."""
    world = make_vec("Ant-v5", 1, 0, "gymnasium")
    world.reset()
    random = np.random.default_rng(0)
    for _ in range(20):
        world.step(actions_of(world, random))
    state = world.state_dict()
    robot = state["pool"]["envs"][0]["layers"][-1]["robot"]
    action = actions_of(world, random)
    rewards = {}
    for kept in (True, False):
        other = make_vec("Ant-v5", 1, 0, "gymnasium")
        other.reset(seed=1)
        blank = {name: np.zeros_like(robot[name]) for name in LAGGING}
        other.load_state_dict(state if kept else _with(state, robot | blank))
        rewards[kept] = float(other.step(action)[1][0])
    assert rewards[True] == float(world.step(action)[1][0]) and abs(rewards[True] - rewards[False]) > 0.1


def _with(state, robot):
    env = state["pool"]["envs"][0]
    layers = [*env["layers"][:-1], env["layers"][-1] | {"robot": robot}]
    return state | {"pool": state["pool"] | {"envs": [{"layers": layers}]}}


def test_a_second_reset_and_sampled_actions_are_part_of_the_state():
    def build():
        return built("sticky")

    world = build()
    world.reset()
    world.action_space.seed(3)
    drawn = world.action_space.sample()
    world.step(drawn)
    world.reset()
    state = world.state_dict()
    other = build()
    other.load_state_dict(state)
    for _ in range(5):
        mine, theirs = world.action_space.sample(), other.action_space.sample()
        np.testing.assert_array_equal(mine, theirs)
        same(world.step(mine), other.step(theirs))


def test_a_state_of_another_kind_is_refused():
    world = built("images")
    world.reset()
    with pytest.raises(ValueError, match="state = 'replayed': must be 'exact'"):
        world.load_state_dict(world.state_dict() | {"kind": "replayed"})
