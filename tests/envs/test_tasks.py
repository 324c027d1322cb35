"""The task schedule against a naive restatement of its contract, and the laws against what they are said to be."""

import itertools
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs import TaskConfig, TaskSchedule, WorldConfig
from envs.task_laws import ListLaw, PermutationLaw, ResetLaw, RewardLaw
from envs.tasks import fingerprint


class Naive:
    """The contract, told in lists: slow and obvious.

    The k-th change (with stages: the k-th part of one) is due at the first tick with total steps >= k * period (/
    stages); each environment switches at its own next episode end, or all at once with at = "now".
    """

    def __init__(self, variants, period, num_envs, at="episode_end", stages=1, first=0):
        # Every place of the way in order: (index, variant, stage). The last task has no stages after it.
        self.way = [(i, v, s) for i, v in enumerate(variants) for s in range(stages)]
        del self.way[len(self.way) - stages + 1 :]
        self.way = self.way[first * stages :]
        self.period, self.num_envs, self.at, self.stages = period, num_envs, at, stages
        self.restart()

    def restart(self):
        self.total, self.due, self.places = 0, 0, [0] * self.num_envs

    def tick(self, ended):
        """One step of every environment, of which those in `ended` end their episode with it. True: one became due."""
        self.total += self.num_envs
        before = self.due
        while self.period and Fraction((self.due + 1) * self.period, self.stages) <= self.total:
            if self.due + 1 == len(self.way):
                break
            self.due += 1
        for i in range(self.num_envs):
            if i in ended or (self.at == "now" and self.due != before):
                self.places[i] = self.due
        return self.due != before

    def reset(self):
        self.places = [self.due] * self.num_envs

    def rows(self):
        return [self.way[place] for place in self.places]


def variants_of(order, count, length):
    """The tasks of an order, written out."""
    if order == "sequence":
        return list(range(count))
    if order == "cycle":
        return [i % count for i in range(length)]
    return [*range(count), 0]


def drive(schedule, ended):
    """What a world does with its schedule in one step."""
    changed = schedule.advance()
    ids = np.arange(schedule.num_envs) if changed and schedule.at == "now" else np.array(sorted(ended), dtype=int)
    waiting = schedule.pending(ids)
    if waiting.size:
        schedule.enter(waiting)
    return changed


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_the_schedule_equals_its_contract(data):
    draw = data.draw
    period, num_envs = draw(st.integers(0, 25)), draw(st.integers(1, 5))
    order, count = draw(st.sampled_from(["sequence", "cycle", "A-B-A"])), draw(st.integers(2, 4))
    stages, at = draw(st.integers(1, max(1, min(period, 4)))), draw(st.sampled_from(["episode_end", "now"]))
    variants = variants_of(order, count, 800)
    first = draw(st.integers(0, min(len(variants) - 1, 5)))
    naive = Naive(variants, period, num_envs, at, stages, first)
    schedule = TaskSchedule(
        RewardLaw(10.0),
        period=period,
        num_envs=num_envs,
        at=at,
        count=count,
        order=order,
        stages=stages,
        first=first,
    )
    events = st.one_of(st.sets(st.integers(0, num_envs - 1)), st.sampled_from(["reset()", "reset(seed)"]))
    handed_out = []
    for event in draw(st.lists(events, max_size=60)):
        if event == "reset(seed)":
            schedule.restart()
            naive.restart()
        elif event == "reset()":
            schedule.enter(schedule.pending(np.arange(num_envs)))
            naive.reset()
        else:
            assert drive(schedule, event) == naive.tick(event)
        infos = schedule.infos()
        assert infos["task_index"].tolist() == [index for index, _, _ in naive.rows()]
        offsets = [
            10.0 * v + Fraction(s, stages) * 10 * (variants[min(i + 1, len(variants) - 1)] - v)
            for i, v, s in naive.rows()
        ]
        assert infos["task"]["reward_offset"] == pytest.approx([float(offset) for offset in offsets])
        handed_out += [(infos[key], infos[key].copy()) for key in ("task_index",)]
        handed_out.append((infos["task"]["reward_offset"], infos["task"]["reward_offset"].copy()))
    assert all(np.array_equal(array, copy) for array, copy in handed_out)


def test_by_hand_two_environments_and_a_period_of_ten():
    schedule = TaskSchedule(RewardLaw(1.0), period=10, num_envs=2)
    seen = []
    for ended in [set(), {0}, set(), set(), {0}, set(), {1}, set(), set(), set(), set(), {0, 1}]:
        drive(schedule, ended)
        seen.append(schedule.task_index.tolist())
    # 10 steps are reached at tick 5, at which environment 0 ends its episode; environment 1 follows at tick 7. Both
    # play through tick 10 and meet their next end at tick 12.
    assert seen == [[0, 0]] * 4 + [[1, 0]] * 2 + [[1, 1]] * 5 + [[2, 2]]


def test_an_episode_that_outlasts_a_task_enters_the_one_that_is_due():
    schedule = TaskSchedule(RewardLaw(1.0), period=3)
    for _ in range(7):
        drive(schedule, set())
    drive(schedule, {0})
    assert schedule.task_index.tolist() == [2]
    assert schedule.current.content == 2.0


@pytest.mark.parametrize("order", ["sequence", "cycle", "A-B-A"])
@pytest.mark.parametrize("count", [2, 3])
def test_orders(order, count):
    schedule = TaskSchedule(RewardLaw(1.0), period=1, order=order, count=count)
    expected = variants_of(order, count, 20)
    assert [schedule.variant(i) for i in range(len(expected))] == expected
    assert schedule.last == (2**62 if order == "cycle" else len(expected) - 1)
    beyond = schedule.task(len(expected) + 5)
    assert beyond.variant == (expected + variants_of(order, count, 40)[len(expected) :])[-1] or order == "cycle"
    assert order == "cycle" or beyond.index == len(expected) - 1
    for index, variant in enumerate(expected):
        assert schedule.task(index).variant == variant
        drive(schedule, {0})
        assert schedule.current.index == min(index + 1, schedule.last)


def test_what_auto_means():
    games = ListLaw(("a", "b", "c"), ("game",))
    assert TaskSchedule(games, period=1).order == "cycle" and TaskSchedule(games, period=1).count == 3
    assert TaskSchedule(RewardLaw(1.0), period=1).order == "sequence"
    assert TaskSchedule(RewardLaw(1.0), period=1).last == 2**62, "without a count changes never end"
    assert [TaskSchedule(RewardLaw(1.0), period=1, order="A-B-A").variant(i) for i in range(4)] == [0, 1, 0, 0]
    assert [TaskSchedule(games, period=1, order="A-B-A").variant(i) for i in range(5)] == [0, 1, 2, 0, 0]


def test_the_last_task_stays_and_first_begins_elsewhere():
    schedule = TaskSchedule(RewardLaw(1.0), period=2, count=3, first=1)
    seen = []
    for _ in range(9):
        drive(schedule, {0})
        seen.append(int(schedule.task_index[0]))
    assert seen == [1, 2, 2, 2, 2, 2, 2, 2, 2]
    alone = TaskSchedule(RewardLaw(1.0), period=0, first=7)
    assert not any(drive(alone, {0}) for _ in range(50))
    assert alone.current.content == 7.0


def test_a_drift_goes_in_equal_parts():
    schedule = TaskSchedule(RewardLaw(1.0), period=6, stages=3, at="now", count=2)
    offsets = []
    for _ in range(10):
        drive(schedule, set())
        offsets.append((int(schedule.task_index[0]), schedule.current.content))
    third = pytest.approx(1 / 3)
    expected = [(0, 0)] + [(0, third)] * 2 + [(0, pytest.approx(2 / 3))] * 2 + [(1, 1)] * 5
    assert offsets == expected


@given(size=st.integers(2, 12), seed=st.integers(0, 2**62), variants=st.lists(st.integers(0, 12), min_size=1))
def test_permutations_are_valid_never_repeat_the_one_before_and_do_not_depend_on_the_asking(size, seed, variants):
    in_order = PermutationLaw(size)
    expected = [in_order.draw(seed, k) for k in range(13)]
    assert expected[0].tolist() == list(range(size)), "task 0 is the plain world"
    for before, order in itertools.pairwise(expected):
        assert sorted(order.tolist()) == list(range(size))
        assert not np.array_equal(before, order)
    asked = PermutationLaw(size)
    for variant in variants:
        asked.draw(seed + 1, variant)
        assert np.array_equal(asked.draw(seed, variant), expected[variant])
        assert np.array_equal(PermutationLaw(size).draw(seed, variant), expected[variant])


def test_permutations_are_uniform_over_those_that_change_something():
    draws = 3000
    first = Counter(tuple(PermutationLaw(3).draw(seed, 1).tolist()) for seed in range(draws))
    # After two rearrangements out of five, each of the six orders: the identity by 5 ways of 25, others by 4.
    second = Counter(tuple(PermutationLaw(3).draw(seed, 2).tolist()) for seed in range(draws))
    assert (0, 1, 2) not in first and len(first) == 5 and len(second) == 6
    deviation = sum((n - draws / 5) ** 2 / (draws / 5) for n in first.values())
    shares = {order: draws * (5 if order == (0, 1, 2) else 4) / 25 for order in second}
    assert deviation < 18.5, "chi square of 4 degrees of freedom: 18.5 is passed once in 1,000"
    assert sum((second[order] - share) ** 2 / share for order, share in shares.items()) < 20.5


def test_other_seeds_give_other_tasks_and_the_fingerprint_tells_them_apart():
    law = PermutationLaw(18)
    drawn = [law.draw(seed, variant) for seed in range(20) for variant in (1, 2, 3)]
    names = {law.describe(order)["permutation"] for order in drawn}
    assert len({tuple(order.tolist()) for order in drawn}) == len(names) == 60
    assert all(len(name) == 8 and int(name, 16) >= 0 for name in names)
    assert fingerprint(np.arange(4)) == fingerprint(np.arange(8)[::2] // 2)


def test_rewards_seeds_and_lists():
    rewards = RewardLaw(2.5)
    assert [rewards.draw(99, k) for k in range(4)] == [0.0, 2.5, 5.0, 7.5]
    assert rewards.between(2.5, 5.0, 0.2) == pytest.approx(3.0)
    assert rewards.describe(5.0) == {"reward_offset": 5.0}

    seeds = ResetLaw()
    assert seeds.draw(4, 0) is None and seeds.describe(None) == {"reset_seed": -1}
    drawn = [seeds.draw(4, k) for k in range(1, 200)]
    assert all(0 <= seed < 2**30 for seed in drawn) and len(set(drawn)) == 199
    assert drawn == [ResetLaw().draw(4, k) for k in range(199, 0, -1)][::-1]
    assert drawn != [seeds.draw(5, k) for k in range(1, 200)]
    assert seeds.describe(drawn[0]) == {"reset_seed": drawn[0]}

    modes = ListLaw(((0, 1), (2, 3)), ("mode", "difficulty"))
    assert modes.distinct == 2 and modes.listed
    assert modes.draw(7, 1) == (2, 3) and modes.describe((2, 3)) == {"mode": 2, "difficulty": 3}
    assert ListLaw(("x",), ("game",)).describe("x") == {"game": "x"}


def test_the_schedules_seed_decides_its_tasks_whatever_was_played():
    schedules = [TaskSchedule(PermutationLaw(6), period=4, num_envs=2, seed=seed) for seed in (3, 3, 4)]
    rng = np.random.default_rng(0)
    seen = [{}, {}, {}]
    for _ in range(60):
        for schedule, contents in zip(schedules, seen, strict=True):
            drive(schedule, set(np.flatnonzero(rng.random(2) < 0.4)))
            contents[schedule.current.index] = schedule.current.parameters["permutation"]
    assert seen[0] == seen[1] != seen[2]
    assert all(schedules[0].task(index).parameters["permutation"] == name for index, name in seen[0].items())


@pytest.mark.parametrize(
    ("law", "options", "sentence"),
    [
        (RewardLaw(1.0), {"period": -1}, r"task.period = -1: must be at least 0 \(0: the world never changes\)"),
        (RewardLaw(1.0), {"num_envs": 0}, "task.num_envs = 0: must be at least 1"),
        (RewardLaw(1.0), {"at": "later"}, "task.at = 'later': must be episode_end or now"),
        (RewardLaw(1.0), {"order": "random"}, "task.order = 'random': must be auto, sequence, cycle or A-B-A"),
        (RewardLaw(1.0), {"count": -2}, "task.count = -2: must be at least 1, or 0 for as many as there are"),
        (ListLaw(("a", "b"), ("game",)), {"count": 3}, "task.count = 3: must be at most 2, the tasks that there are"),
        (RewardLaw(1.0), {"order": "cycle"}, "task.count = 0: must be given with order = 'cycle'"),
        (RewardLaw(1.0), {"order": "A-B-A", "count": 1}, "task.count = 1: must be at least 2 with order = 'A-B-A'"),
        (RewardLaw(1.0), {"stages": 0}, "task.stages = 0: must be at least 1"),
        (ResetLaw(), {"stages": 2}, "task.stages = 2: must be 1: this change is a jump by nature"),
        (RewardLaw(1.0), {"period": 3, "stages": 4}, "task.stages = 4: must be at most task.period = 3"),
        (RewardLaw(1.0), {"first": -1}, r"task.first = -1: must be in \[0, 4611686018427387904\]"),
        (RewardLaw(1.0), {"count": 2, "first": 2}, r"task.first = 2: must be in \[0, 1\]"),
        (RewardLaw(1.0), {"order": "A-B-A", "first": 3}, r"task.first = 3: must be in \[0, 2\]"),
    ],
)
def test_what_a_schedule_refuses(law, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        TaskSchedule(law, **{"period": 10, **options})


def test_what_laws_refuse():
    with pytest.raises(ValueError, match="task.change: 1 thing cannot be permuted"):
        PermutationLaw(1)
    with pytest.raises(NotImplementedError, match="jump"):
        ResetLaw().between(1, 2, 0.5)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"change": "weather"}, "task.change = 'weather': must be one of auto, games, modes, friction"),
        ({"period": -1}, "task.period = -1: must be at least 0"),
        ({"count": -1}, "task.count = -1: must be at least 0"),
        ({"stages": 0}, "task.stages = 0: must be at least 1"),
        ({"first": -1}, "task.first = -1: must be at least 0"),
        ({"at": "noon"}, "task.at = 'noon': must be one of episode_end, now"),
        ({"order": "B-A"}, "task.order = 'B-A': must be one of auto, sequence, cycle, A-B-A"),
        ({"reward_step": float("nan")}, "task.reward_step = nan: must be a finite number"),
        ({"seed": -1}, "task.seed = -1: must be in"),
    ],
)
def test_what_the_task_settings_refuse(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        TaskConfig(**options)


@pytest.mark.parametrize(
    ("env", "options", "task", "sentence"),
    [
        ("FrictionAnt-v0", {}, {"change": "labels"}, "task.change = 'labels': must be friction"),
        ("Ant-v5", {}, {"change": "friction"}, "task.change = 'friction': must be one of actions, observations"),
        ("CartPole-v1", {}, {"period": 5}, "task.change = 'auto': name what changes in 'CartPole-v1'"),
        ("ALE/Pong-v5,ALE/Breakout-v5", {}, {"change": "actions"}, "task.change = 'actions': must be games"),
        ("ALE/Pong-v5,CartPole-v1", {}, {}, "several worlds in turn must all be ALE/<Game>-v5"),
        ("ALE/Pong-v5", {"backend": "ale"}, {"change": "modes"}, "backend = 'ale': must be auto, envpool or gymnasium"),
    ],
)
def test_what_a_worlds_settings_refuse(env, options, task, sentence):
    with pytest.raises(ValueError, match=sentence):
        WorldConfig(env=env, task=TaskConfig(**task), **options)
