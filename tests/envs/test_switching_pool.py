"""`SwitchingPool` against environments that are told one by one, over pools that do nothing but count."""

import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.pools import Outcome, Pool
from envs.task_laws import ListLaw
from envs.task_pools import SwitchingPool
from envs.tasks import TaskSchedule
from envs.vector import World
from tests.envs.test_tasks import Naive, variants_of


class Counters(Pool):
    """Environment i shows (what its task is, i, its steps since the last restart, a random number that came with it);
    action 1 ends its game."""

    single_observation_space = Box(0, 2**40, (4,), np.int64)
    single_action_space = Discrete(3)

    def __init__(self, task, num_envs, opened):
        self.name, self.num_envs, self.closed = task.content, num_envs, False
        self.steps, self.luck = np.full(num_envs, 777), np.zeros(num_envs, dtype=np.int64)
        opened.append(self)

    def show(self, ids):
        return np.stack([np.full(len(ids), self.name), ids, self.steps[ids], self.luck[ids]], axis=1)

    def start(self, seed):
        self.random = self.random if seed is None else np.random.default_rng(seed)
        return self.restart(np.arange(self.num_envs))

    def restart(self, ids):
        assert not self.closed
        self.steps[ids] = 0
        self.luck[ids] = self.random.integers(2**40, size=len(ids))
        return self.show(ids), 10 * self.name + ids

    def advance(self, actions, ids=None):
        assert not self.closed
        ids = np.arange(self.num_envs) if ids is None else ids
        assert len(actions) == len(ids) and (np.diff(ids) > 0).all()
        self.steps[ids] += 1
        ended = np.asarray(actions) == 1
        names = {"task": np.full(len(ids), self.name)}
        return Outcome(self.show(ids), 1.0 * np.asarray(actions), ended, ~ended & False, 10 * self.name + ids, names)

    def close(self):
        assert not self.closed, "closed twice"
        self.closed = True


def build(count, num_envs, opened, **options):
    schedule = TaskSchedule(ListLaw(tuple(range(count)), ("number",)), num_envs=num_envs, **options)
    pool = SwitchingPool(lambda task, _: Counters(task, num_envs, opened), num_envs, schedule.current, seed=5)
    return World(pool, 5, np.asarray, Counters.single_observation_space, schedule=schedule)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_every_environment_plays_its_own_task(data):
    num_envs, count, period = data.draw(st.integers(1, 4)), data.draw(st.integers(2, 6)), data.draw(st.integers(1, 20))
    at = data.draw(st.sampled_from(["episode_end", "now"]))
    opened = []
    world = build(count, num_envs, opened, period=period, at=at)
    naive = Naive(variants_of("cycle", count, 400), period, num_envs, at)
    world.reset()
    steps = np.zeros(num_envs, dtype=int)
    row = st.lists(st.sampled_from([0, 0, 1, 2]), min_size=num_envs, max_size=num_envs)
    for event in data.draw(st.lists(st.one_of(row, st.sampled_from(["reset()", "reset(seed)"])), max_size=40)):
        if isinstance(event, str):
            observations, infos = world.reset(seed=None if event == "reset()" else 5)
            naive.reset() if event == "reset()" else naive.restart()
            steps[:] = 0
        else:
            before = [variant for _, variant, _ in naive.rows()]
            changed = naive.tick({i for i, action in enumerate(event) if action == 1})
            observations, rewards, terminated, truncated, infos = world.step(np.array(event))
            steps += 1
            assert rewards.tolist() == event and terminated.tolist() == [action == 1 for action in event]
            assert (terminated | truncated).tolist() == [action == 1 or (changed and at == "now") for action in event]
            for i in np.flatnonzero(terminated | truncated):
                assert infos["final_obs"][i, :3].tolist() == [before[i], i, steps[i]]
                steps[i] = 0
        variants = [variant for _, variant, _ in naive.rows()]
        assert observations[:, :3].tolist() == [[variants[i], i, steps[i]] for i in range(num_envs)]
        assert infos["lives"].tolist() == [10 * variants[i] + i for i in range(num_envs)]
        assert sum(not counters.closed for counters in opened) <= len(set(variants)) + 3, "few are kept open"
    world.close()
    assert all(counters.closed for counters in opened)


@pytest.mark.parametrize("count", [2, 6])
def test_a_seed_gives_the_same_games_whatever_was_played_before(count):
    def record(world, seed):
        actions = np.random.default_rng(0).integers(3, size=(60, 2))
        return [world.reset(seed=seed)[0], *(world.step(action)[0] for action in actions)]

    world = build(count, 2, [], period=16)
    first = record(world, 3)
    record(world, None)
    assert np.array_equal(first, record(world, 3))
    assert np.array_equal(first, record(build(count, 2, [], period=16), 3))
    assert not np.array_equal(first, record(world, 4))
