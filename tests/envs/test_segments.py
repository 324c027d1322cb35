"""Worlds whose state cannot be read: built again at the end of a segment, and put anywhere by replaying actions."""

import re

import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete

from envs import TaskConfig, WorldConfig, make_vec
from envs.errors import WorldError
from envs.journal import Journal, entries
from envs.pools import Outcome, Pool
from envs.task_laws import ListLaw
from envs.tasks import TaskSchedule, derived
from envs.vector import World
from tests.envs.test_snapshots import actions_of, check, primitive, same

WORLDS = {
    "envpool": ("ALE/Breakout-v5", {"backend": "envpool", "sticky_actions": 0.25}),
    "ale": ("ALE/Breakout-v5", {"backend": "ale", "max_episode_steps": 25}),
    "ant": ("Ant-v5", {"backend": "envpool", "max_episode_steps": 40, "ant_observation": "plain-27"}),
    "foreign": ("CartPole-v1", {}),
    "foreign robot": ("Hopper-v4", {"task": TaskConfig("rewards", 50)}),
    "games": ("ALE/Pong-v5,ALE/Freeway-v5", {"task": TaskConfig(period=61), "max_episode_steps": 17}),
    "games in ale": ("ALE/Pong-v5,ALE/Boxing-v5", {"backend": "ale", "task": TaskConfig(period=50, at="now")}),
    "modes": ("ALE/Freeway-v5", {"task": TaskConfig("modes", 60), "max_episode_steps": 15}),
    "actions": ("CartPole-v1", {"task": TaskConfig("actions", 40)}),
    "observations": ("CartPole-v1", {"task": TaskConfig("observations", 40, at="now")}),
    "resets": ("ALE/Pong-v5", {"task": TaskConfig("reset", 45), "sticky_actions": 0.1}),
}


@pytest.mark.parametrize("name", WORLDS)
def test_a_world_is_put_there_by_its_actions(name):
    """With segments of 30 ticks: at the beginning of the first or the second, and within one."""
    env, options = WORLDS[name]

    def build():
        return make_vec(env, 3, 7, threads=1, world_segment=90, **options)

    place = list(WORLDS).index(name)
    check(build, (0, 30)[place % 2], 12, place)
    check(build, 3 + 13 * (1 + place % 5), 35, place)


def test_a_reset_in_mid_segment_is_replayed():
    def build():
        return make_vec("CartPole-v1", 2, 7, world_segment=400)

    check(build, 11, 20, 5, prepare=lambda world: (world.reset(seed=3), world.step([0, 1]), world.reset()))


class Ladder(Pool):
    """Environment i shows (its pool's seed, i, its steps since its game began), and has 5 lives, one a step; action 1
    ends its game."""

    single_observation_space = Box(-1, 2**40, (3,), np.int64)
    single_action_space = Discrete(3)

    def __init__(self, seed, num_envs=2):
        self.seed, self.num_envs, self.closed = seed, num_envs, False
        self.height = np.full(num_envs, -1)

    def show(self, ids):
        return np.stack([np.full(len(ids), self.seed), ids, self.height[ids]], axis=1)

    def start(self, seed):
        self.seed = self.seed if seed is None else seed
        return self.restart(np.arange(self.num_envs))

    def restart(self, ids):
        self.height[ids] = 0
        return self.show(ids), 5 - self.height[ids]

    def advance(self, actions, ids=None):
        self.height += 1
        everyone = np.arange(self.num_envs)
        over = np.asarray(actions) == 1
        return Outcome(self.show(everyone), 10.0 * everyone + 1, over, None, 5 - self.height, {})

    def close(self):
        self.closed = True


def ladder(segment, limit=2**30, schedule=None, num_envs=2):
    pools = []

    def build(seed):
        pools.append(Ladder(seed, num_envs))
        return pools[-1]

    space = Ladder.single_observation_space
    world = World(build(50), 50, np.asarray, space, limit, schedule=schedule, rebuild=build, segment=segment)
    return world, pools


def test_the_end_of_a_segment_by_hand():
    """Two environments, segments of 6 steps = 3 ticks. In the third tick environment 0's game ends by itself and
    environment 1's, two steps old by then and worth 11 each, is cut."""
    world, pools = ladder(6)
    observations, infos = world.reset()
    assert observations.tolist() == [[50, 0, 0], [50, 1, 0]] and "cut" not in infos
    world.step([0, 1])  # environment 1's first game: one step, return 11
    observations, _, _, truncated, infos = world.step([0, 0])
    assert not truncated.any() and "cut" not in infos and "final_obs" not in infos
    observations, rewards, terminated, truncated, infos = world.step([1, 0])
    assert rewards.tolist() == [1, 11]
    assert terminated.tolist() == [True, False] and truncated.tolist() == [False, True]
    assert infos["cut"].tolist() == [False, True]
    assert infos["final_obs"].tolist() == [[50, 0, 3], [50, 1, 2]] and infos["_final_obs"].tolist() == [True, True]
    assert infos["_episode"].tolist() == [True, False]
    assert infos["episode"]["r"].tolist() == [3, 0] and infos["episode"]["l"].tolist() == [3, 0]
    seed = derived(50, 1) % (2**31 - 2)
    assert observations.tolist() == [[seed, 0, 0], [seed, 1, 0]]
    assert infos["lives"].tolist() == [5, 5] and infos["life_lost"].tolist() == [False, True]
    assert [pool.closed for pool in pools] == [True, False]
    # Nothing of the game that was cut is counted in the one that follows.
    _, _, terminated, _, infos = world.step([0, 1])
    assert terminated.tolist() == [False, True]
    assert infos["episode"]["r"].tolist() == [0, 11] and infos["episode"]["l"].tolist() == [0, 1]


def test_a_cut_that_ends_no_game_by_itself_tells_of_no_episode():
    world, _ = ladder(4)
    world.reset()
    world.step([0, 0])
    _, _, terminated, truncated, infos = world.step([0, 0])
    assert truncated.all() and infos["cut"].all() and not terminated.any()
    assert "episode" not in infos and "_episode" not in infos


def test_a_time_limit_on_the_last_step_of_a_segment_is_a_time_limit():
    world, _ = ladder(4, limit=2)
    world.reset()
    world.step([0, 1])
    _, _, _, truncated, infos = world.step([0, 0])
    assert truncated.tolist() == [True, True] and infos["cut"].tolist() == [False, True]
    assert infos["_episode"].tolist() == [True, False] and infos["episode"]["l"].tolist() == [2, 0]


def test_the_end_of_a_segment_is_an_episodes_end_for_the_schedule():
    """A change is due after 4 steps and waits for the games' ends; the segment of 8 steps ends them all."""
    schedule = TaskSchedule(ListLaw((0, 1, 2), ("number",)), num_envs=2, period=4, order="sequence")
    world, pools = ladder(8, schedule=schedule)
    entered = []
    Ladder.enter = lambda self, ids, task: entered.append((pools.index(self), ids.tolist(), task.content))
    try:
        tasks = [world.reset()[1]["task_index"].tolist()]
        tasks += [world.step([0, 0])[-1]["task_index"].tolist() for _ in range(4)]
    finally:
        del Ladder.enter
    assert tasks == [[0, 0], [0, 0], [0, 0], [0, 0], [2, 2]]
    assert entered == [(0, [0, 1], 0), (1, [0, 1], 2)]


def test_no_segment_ends_where_there_are_none():
    world, pools = ladder(0)
    world.reset()
    assert not any("cut" in world.step([0, 0])[-1] for _ in range(50)) and len(pools) == 1
    assert world.resumption.kind == "reset" and "world_segment = 0" in world.resumption.reason


def test_without_segments_a_world_goes_on_from_a_reset_and_says_so():
    world, _ = ladder(0)
    world.reset()
    world.step([0, 0])
    other, _ = ladder(0)
    resumed = other.load_state_dict(primitive(world.state_dict()))
    assert resumed.warning.endswith("all games begin anew") and "world_segment = 0" in resumed.warning
    assert resumed.observations.tolist() == [[derived(50, 1) % (2**31 - 2), i, 0] for i in (0, 1)]
    assert world.step([0, 0])[0].tolist() != other.step([0, 0])[0].tolist()


class Forgetful(Ladder):
    """What it shows depends on how often any such pool was built."""

    built = 0

    def __init__(self, seed, num_envs=2):
        super().__init__(seed, num_envs)
        type(self).built += 1
        self.luck = type(self).built

    def show(self, ids):
        return super().show(ids) + self.luck


class Failing(Ladder):
    """The second one that is built raises at its third step."""

    built = 0

    def __init__(self, seed, num_envs=2):
        super().__init__(seed, num_envs)
        type(self).built += 1
        self.last = type(self).built == 2

    def advance(self, actions, ids=None):
        if self.last and self.height.max() == 2:
            raise WorldError("env = 'Ladder': lost")
        return super().advance(actions, ids)


@pytest.mark.parametrize(
    ("kind", "why"),
    [(Forgetful, "did not lead to the same observations"), (Failing, r"failed \(env = 'Ladder': lost\)")],
)
def test_a_world_whose_replay_does_not_reproduce_is_found_out_and_begins_anew(kind, why):
    kind.built = 0
    schedule = [TaskSchedule(ListLaw((0, 1, 2), ("number",)), num_envs=2, period=6, order="sequence") for _ in "12"]
    kind.enter = lambda self, ids, task: None

    def build(schedule):
        space = Ladder.single_observation_space
        return World(kind(50), 50, np.asarray, space, schedule=schedule, rebuild=kind, segment=1000)

    world = build(schedule[0])
    world.reset()
    for _ in range(5):
        world.step([0, 0])
    other = build(schedule[1])
    resumed = other.load_state_dict(primitive(world.state_dict()))
    assert re.search(why, resumed.warning) and resumed.warning.endswith(": all games begin anew")
    assert resumed.observations[:, 2].tolist() == ([0, 0] if kind is Failing else [other.pool.luck] * 2)
    assert schedule[1].steps == 10 and resumed.infos["task_index"].tolist() == [1, 1]  # the tasks go on
    other.step([0, 0])
    assert other.resumption.kind == "replayed"


def test_a_state_before_the_first_reset():
    world, other = make_vec("CartPole-v1", 2, 7), make_vec("CartPole-v1", 2, 9)
    assert other.load_state_dict(primitive(world.state_dict())) is None
    same(other.reset(), world.reset())


def test_actions_are_kept_compactly_and_exactly():
    random = np.random.default_rng(0)
    few, many = Journal(4, Discrete(18)), Journal(4, Discrete(1000))
    floats = Journal(4, Box(-1, 1, (3,), np.float32))
    moves = random.integers(18, size=(3000, 4))
    drawn = random.uniform(-1, 1, (3000, 4, 3)).astype(np.float32)
    for own, other in zip(moves, drawn, strict=True):
        few.add(own)
        many.add(own * 55)
        floats.add(other)
    floats.add(random.uniform(size=(4, 3)))  # of another type: nothing that was kept changes
    assert few.state_dict()["actions"].nbytes == 12_000 and many.state_dict()["actions"].dtype == np.int16
    np.testing.assert_array_equal(few.state_dict()["actions"], moves)
    np.testing.assert_array_equal(many.state_dict()["actions"], moves * 55)
    np.testing.assert_array_equal(floats.state_dict()["actions"][:3000], drawn)
    few.resets = [0, 2, 2, 3000]
    found = list(entries(few.state_dict()))
    assert [i for i, one in enumerate(found) if one is None] == [0, 3, 4, 3003] and len(found) == 3004
    assert found[1].dtype == np.int64


@pytest.mark.parametrize(
    ("env", "backend", "segment", "found"),
    [
        ("ALE/Pong-v5", "auto", None, 45 * 2200),
        ("ALE/Pong-v5", "ale", None, 45 * 2400),
        ("Ant-v5", "envpool", None, 45 * 4400),
        ("CartPole-v1", "auto", None, 45 * 2000),
        ("CartPole-v1", "auto", 500, 500),
        ("Ant-v5", "envpool", 0, 0),
        ("ALE/Pong-v5", "gymnasium", None, 0),
        ("FrictionAnt-v0", "auto", None, 0),
        ("Ant-v5", "auto", None, 0),
        ("Hopper-v5", "auto", None, 45 * 4400),
        ("ImageMDP-v0", "auto", 0, 0),
    ],
)
def test_how_long_a_segment_is(env, backend, segment, found):
    assert WorldConfig(env=env, backend=backend, world_segment=segment).segment == found


@pytest.mark.parametrize(
    ("env", "envs", "options", "after"),
    [
        ("ALE/Pong-v5", 8, {"backend": "envpool", "world_segment": 1000}, 125),
        ("ALE/Pong-v5", 3, {"backend": "envpool", "world_segment": 1000}, 334),  # the tick that reaches 1,000
        ("ALE/Pong-v5", 2, {"backend": "envpool", "world_segment": 1000, "max_episode_steps": 500}, None),
        ("ALE/Pong-v5", 2, {"backend": "gymnasium"}, None),
        ("CartPole-v1", 2, {"world_segment": 0}, None),
    ],
)
def test_how_long_a_game_can_last(env, envs, options, after):
    world = make_vec(env, envs, 1, **options)
    assert world.cut_after == after
    world.close()


@pytest.mark.parametrize(
    ("env", "backend", "segment", "message"),
    [
        ("CartPole-v1", "auto", -1, "world_segment = -1: must be at least 0"),
        ("Ant-v5", "gymnasium", 900, "world_segment = 900: must be none for backend = 'gymnasium'"),
        ("Ant-v5", "auto", 900, "world_segment = 900: must be none for backend = 'native'"),
        ("FrictionAnt-v0", "auto", 900, "world_segment = 900: must be none for backend = 'native'"),
    ],
)
def test_segments_that_are_refused(env, backend, segment, message):
    with pytest.raises(ValueError, match=message):
        WorldConfig(env=env, backend=backend, world_segment=segment)


def test_an_episode_is_the_same_until_the_first_cut():
    """Segments change nothing before the first one ends."""
    short, none = (make_vec("CartPole-v1", 2, 3, world_segment=segment) for segment in (60, 0))
    random = np.random.default_rng(1)
    same(short.reset(), none.reset())
    for _ in range(29):
        actions = actions_of(short, random)
        same(short.step(actions), none.step(actions))
    assert "cut" in short.step([0, 0])[-1]
