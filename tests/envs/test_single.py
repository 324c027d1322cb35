"""`SingleWorld` is a `World` of one environment in gymnasium's clothes; `PeriodicReset` is its change 'reset'."""

import gymnasium
import numpy as np
import pytest
from gymnasium.error import ResetNeeded

from envs import FrictionConfig, TaskConfig, make_vec
from envs.single import GameCycle, PeriodicReset, PeriodicResetWorld, SingleWorld

WORLDS = [
    ("CartPole-v1", {"change": "actions", "period": 15}),
    ("CartPole-v1", {"change": "observations", "period": 15, "at": "now"}),
    ("CartPole-v1", {"change": "reset", "period": 15}),
    ("ALE/Breakout-v5", {"change": "rewards", "period": 15, "at": "now"}),
    ("Ant-v5", {"change": "actions", "period": 15}),
    ("FrictionAnt-v0", {"period": 15}),
    ("ImageMDP-v0", {"period": 15}),
    ("ALE/Pong-v5,ALE/Breakout-v5", {"period": 15}),
]
STATE = ("lives", "life_lost")


def short(env):
    return {"max_episode_steps": 0 if env == "CartPole-v1" else 11}


@pytest.mark.parametrize(("env", "task"), WORLDS)
def test_it_is_a_world_of_one_environment(env, task):
    backend = "native" if env == "ImageMDP-v0" else "gymnasium"
    single = SingleWorld(env, task=task, task_seed=4, **short(env))
    world = make_vec(env, 1, 9, backend, task=TaskConfig(**task, seed=4), **short(env))
    assert single.observation_space == world.single_observation_space
    assert single.action_space == world.single_action_space
    observations, infos = world.reset()
    observation, info = single.reset(seed=9)
    world.action_space.seed(2)
    ends = 0
    for _ in range(45):
        assert np.array_equal(observation, observations[0])
        assert (info["task_index"], info["task"]) == (
            infos["task_index"][0],
            {k: v[0] for k, v in infos["task"].items()},
        )
        assert all(type(info[name]) is type(infos[name][0].item()) for name in STATE if name in infos)
        tasks = info["task_index"], info["task"]
        actions = world.action_space.sample()
        observations, rewards, terminated, truncated, infos = world.step(actions)
        observation, reward, *over, info = single.step(actions[0])
        assert (reward, *over) == (rewards[0], terminated[0], truncated[0])
        assert (type(reward), *map(type, over)) == (float, bool, bool)
        assert (info["task_index"], info["task"]) == tasks, "the task in which the step was made"
        assert ("lives" in info) == ("lives" in infos)
        terms = [name for name in infos if name.startswith("reward_")]
        assert [info[name] for name in terms] == [infos[name][0] for name in terms]
        assert ("episode_statistics" in info) == any(over)
        if any(over):
            ends += 1
            assert np.array_equal(observation, infos["final_obs"][0])
            statistics = {name: column[0] for name, column in infos["episode"].items()}
            assert info["episode_statistics"] == statistics and statistics["task_index"] == tasks[0]
            observation, info = single.reset()
        else:
            info = {**info, "task_index": infos["task_index"][0].item(), "task": info["task"]}
            info["task"] = {name: column[0].item() for name, column in infos["task"].items()}
    assert ends >= 2 and infos["task_index"][0] >= 2
    single.close()
    single.close()
    world.close()


def test_the_plain_environment_is_what_gymnasium_makes():
    single, plain = SingleWorld("CartPole-v1"), gymnasium.make("CartPole-v1")
    observation, info = single.reset(seed=5)
    expected, _ = plain.reset(seed=5)
    for _ in range(60):
        assert np.array_equal(observation, expected)
        observation, *rest, info = single.step(1)
        expected, *plain_rest, _ = plain.step(1)
        assert rest == plain_rest and "task" not in info
        if rest[1]:
            assert np.array_equal(observation, expected)
            observation, expected = single.reset()[0], plain.reset()[0]


def test_resets():
    env = SingleWorld("CartPole-v1", task={"change": "actions", "period": 4})
    with pytest.raises(ResetNeeded, match="before the first reset"):
        env.step(0)
    first, info = env.reset(seed=3)
    assert info == {"task_index": 0, "task_stage": 0, "task": info["task"]}
    for _ in range(5):
        env.step(0)
    middle, info = env.reset()
    assert info["task_index"] == 1, "in mid-episode, reset() is an episode's end"
    assert not np.array_equal(first, middle)
    again, info = env.reset(seed=3)
    assert np.array_equal(first, again) and info["task_index"] == 0
    while not env.step(1)[2]:
        pass
    with pytest.raises(ResetNeeded, match="after an episode's end"):
        env.step(0)
    handed_out, _ = env.reset()
    another, _ = env.reset()
    assert not np.array_equal(handed_out, another)
    assert np.array_equal(env.reset(seed=2**32 - 1)[0], env.reset(seed=2**32 - 1)[0]), "seeds as large as SB3 draws"
    with pytest.raises(ValueError, match="options = {'x': 1}: this world has none"):
        env.reset(options={"x": 1})


def test_without_a_seed_worlds_differ_and_their_tasks_do_not():
    one, two = (SingleWorld("CartPole-v1", task={"change": "actions", "period": 1}) for _ in range(2))
    assert not np.array_equal(one.reset()[0], two.reset()[0])
    for env in (one, two):
        env.step(0)
    assert one.reset()[1] == two.reset()[1]


def test_lives_at_the_end_are_those_of_the_ended_game():
    env = SingleWorld("ALE/Breakout-v5")
    assert env.reset(seed=1)[1]["lives"] == 5
    lives, over = [5], False
    while not over:
        _, _, over, _, info = env.step(1)
        assert info["life_lost"] == (info["lives"] < lives[-1] and not over)
        lives.append(info["lives"])
    assert set(lives) == {5, 4, 3, 2, 1, 0}
    assert env.reset()[1]["lives"] == 5


def test_the_backends_environment_is_within_reach():
    ant = SingleWorld("FrictionAnt-v0", task={"period": 5}, friction={"low": 0.5, "high": 0.5}, max_episode_steps=5)
    ant.reset(seed=1)
    assert ant.unwrapped.model.geom_friction[:, 0].tolist() == [0.5] * 14
    assert ant.data.qpos.shape == (15,)
    atari = SingleWorld("ALE/Pong-v5")
    atari.reset(seed=1)
    assert atari.unwrapped.ale.getScreenRGB().shape == (210, 160, 3)
    assert atari.get_action_meanings()[0] == "NOOP"
    with pytest.raises(AttributeError):
        atari.model  # noqa: B018
    with pytest.raises(AttributeError):
        SingleWorld("ImageMDP-v0").model  # noqa: B018


def test_rendering_shows_the_last_moment():
    env = SingleWorld("CartPole-v1", render_mode="rgb_array", task={"change": "reset", "period": 12})
    plain = gymnasium.make("CartPole-v1", render_mode="rgb_array")
    env.reset(seed=3)
    plain.reset(seed=3)
    for _ in range(12):
        assert np.array_equal(env.render(), plain.render())
        if env.step(1)[2] | plain.step(1)[2]:
            break
    assert np.array_equal(env.render(), plain.render())
    env.reset()
    plain.reset()
    assert np.array_equal(env.render(), plain.render())
    assert SingleWorld("CartPole-v1").render() is None


def test_rendering_shows_the_last_moment_of_the_game_that_ended():
    options = {"render_mode": "rgb_array", "max_episode_steps": 6, "noop_max": 4}
    cycle = GameCycle("ALE/Pong-v5,ALE/Breakout-v5", task={"period": 6}, **options)
    plain = SingleWorld("ALE/Pong-v5", full_action_space=True, **options)
    for env in (cycle, plain):
        env.reset(seed=2)
        for _ in range(6):
            *_, truncated, _ = env.step(3)
        assert truncated
    assert np.array_equal(cycle.render(), plain.render())
    assert cycle.reset()[1]["task"] == {"game": "ALE/Breakout-v5"}
    assert not np.array_equal(cycle.render(), plain.render())


def test_options_as_dicts_and_as_dataclasses():
    by_dict = SingleWorld("FrictionAnt-v0", task={"period": 7}, friction={"low": 0.1, "high": 0.2})
    by_class = SingleWorld("FrictionAnt-v0", task=TaskConfig(period=7), friction=FrictionConfig(low=0.1, high=0.2))
    assert by_dict.reset(seed=0)[1] == by_class.reset(seed=0)[1]
    assert 0.1 <= by_dict.reset()[1]["task"]["friction"] <= 0.2
    assert SingleWorld("FrictionAnt-v0", task_seed=1).reset(seed=0)[1] != by_dict.reset(seed=0)[1]
    own_seed = SingleWorld("FrictionAnt-v0", task={"seed": 1}).reset(seed=0)[1]
    assert own_seed == SingleWorld("FrictionAnt-v0", task_seed=1).reset(seed=0)[1]
    assert GameCycle(["ALE/Pong-v5", "ALE/Breakout-v5"]).reset(seed=0)[1]["task"] == {"game": "ALE/Pong-v5"}


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: SingleWorld("CartPole-v1", num_envs=2), "num_envs = 2: not an option of CartPole-v1"),
        (lambda: SingleWorld("CartPole-v1", speed=2), "speed = 2: not an option of CartPole-v1, which are ant_obs"),
        (lambda: SingleWorld("Ant-v5", task={"often": 2}), "task = {'often': 2}: must be a TaskConfig or a dict with"),
        (lambda: SingleWorld("Ant-v5", task=5), "task = 5: must be a TaskConfig or a dict"),
        (lambda: SingleWorld("Ant-v5", task={"period": 2}), "name what changes in 'Ant-v5'"),
        (lambda: SingleWorld("CartPole-v1", task={"seed": 1}, task_seed=2), "task_seed = 2: must be left out where"),
        (lambda: SingleWorld("CartPole-v1", render_mode="human"), "render_mode = 'human': must be None or 'rgb_array'"),
        (lambda: SingleWorld("Cartpole-v1"), "did you mean 'CartPole-v1'"),
        (lambda: GameCycle(["ALE/Pong-v5"]), "games = .*: must be two or more ids"),
        (lambda: GameCycle("ALE/Pong-v5,CartPole-v1"), "must all be ALE/<Game>-v5"),
        (lambda: PeriodicResetWorld("CartPole-v1", -1), "task.period = -1"),
        (lambda: PeriodicReset(gymnasium.make("CartPole-v1"), -1), "task.period = -1"),
    ],
)
def test_what_is_refused(build, sentence):
    with pytest.raises(ValueError, match=sentence):
        build()


@pytest.mark.parametrize("env", ["CartPole-v1", "Ant-v5"])
def test_the_wrapper_and_the_worlds_begin_anew_alike(env):
    limit = {} if env == "CartPole-v1" else {"max_episode_steps": 30}
    wrapped = PeriodicReset(gymnasium.make(env, **limit), period=25, seed=6)
    single = PeriodicResetWorld(env, period=25, task_seed=6, **limit)
    observation, info = wrapped.reset(seed=1)
    expected, single_info = single.reset(seed=1)
    wrapped.action_space.seed(0)
    seeds = set()
    for step in range(1, 120):
        assert np.array_equal(observation.astype(np.float32), expected)
        assert (info["task_index"], info["task"]) == (single_info["task_index"], single_info["task"])
        seeds.add(info["task"]["reset_seed"])
        action = wrapped.action_space.sample()
        observation, reward, terminated, truncated, info = wrapped.step(action)
        expected, *rest, single_info = single.step(action)
        assert rest == [reward, terminated, truncated]
        if step % 25 == 0:
            assert truncated or terminated
            with pytest.raises(ResetNeeded):
                wrapped.step(action)
        if terminated or truncated:
            (observation, info), (expected, single_info) = wrapped.reset(), single.reset()
    assert len(seeds) == 5
    assert wrapped.reset(seed=1)[1]["task_index"] == 0


def test_the_wrapper_can_be_built_again_from_its_spec():
    env = PeriodicReset(gymnasium.make("CartPole-v1"), period=25, seed=6)
    assert env.spec.additional_wrappers[-1].kwargs == {"period": 25, "seed": 6}
    twin = gymnasium.make(env.spec)
    assert isinstance(twin, PeriodicReset)
    for each in (env, twin):
        each.reset(seed=0)
    assert all(np.array_equal(a, b) for a, b in zip(env.step(1), twin.step(1), strict=True) if not isinstance(a, dict))
