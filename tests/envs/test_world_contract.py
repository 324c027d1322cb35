"""What `World` promises, on every backend, against environments that are stepped naively beside it."""

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from envs import make_vec

ATARI = [("ALE/Breakout-v5", backend) for backend in ("envpool", "ale", "gymnasium")]
ANT = [("Ant-v5", backend) for backend in ("native", "envpool", "gymnasium")]
WORLDS = [*ATARI, *ANT, ("CartPole-v1", "gymnasium")]
E = 2


def build(env, backend, seed=7, num_envs=E, **options):
    # Short games: many ends in few steps.
    limit = {"ALE/Breakout-v5": 20, "Ant-v5": 20, "CartPole-v1": 15}[env]
    return make_vec(env, num_envs, seed, backend, threads=1, **{"max_episode_steps": limit, **options})


def actions_for(world, steps, seed=0):
    world.action_space.seed(seed)
    return [world.action_space.sample() for _ in range(steps)]


def play(world, actions, seed=None):
    """Every array that `reset` and `step` gave, copied at once, as a list of (name, array)."""
    observations, infos = world.reset(seed=seed)
    record = [observations.copy()]
    for action in actions:
        observations, rewards, terminated, truncated, infos = world.step(action)
        record += [observations.copy(), rewards.copy(), terminated.copy(), truncated.copy()]
        record += [infos[key].copy() for key in ("final_obs", "lives", "life_lost") if key in infos]
    return record


def same(first, second):
    return len(first) == len(second) and all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(("env", "backend"), WORLDS)
def test_shapes_types_and_masks(env, backend):
    world = build(env, backend)
    assert world.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    assert world.num_envs == E
    atari = env.startswith("ALE")
    assert world.frame_stack == (4 if atari else None)
    observations, infos = world.reset()
    for action in actions_for(world, 45):
        assert observations in world.observation_space
        assert observations.dtype == (np.uint8 if atari else np.float32)
        observations, rewards, terminated, truncated, infos = world.step(action)
        assert rewards.shape == (E,) and rewards.dtype in (np.float32, np.float64)
        assert terminated.shape == truncated.shape == (E,)
        assert terminated.dtype == truncated.dtype == bool
        assert not (terminated & truncated).any()
        done = terminated | truncated
        assert ("final_obs" in infos) == ("episode" in infos) == done.any()
        if done.any():
            assert np.array_equal(infos["_final_obs"], done) and np.array_equal(infos["_episode"], done)
            assert infos["final_obs"].shape == observations.shape
            assert np.array_equal(infos["final_obs"][~done], observations[~done])
        assert ("lives" in infos) == ("life_lost" in infos) == atari
        if atari:
            assert infos["lives"].shape == (E,) and np.issubdtype(infos["lives"].dtype, np.integer)
            assert infos["life_lost"].dtype == bool
    world.close()
    world.close()


@pytest.mark.parametrize(("env", "backend"), WORLDS)
def test_the_seed_decides_the_trajectory(env, backend):
    world, other = build(env, backend), build(env, backend, seed=8)
    actions = actions_for(world, 25)
    record = play(world, actions)
    assert not same(record, play(other, actions))
    assert same(record, play(other, actions, seed=7)), "reset(seed) restarts from that seed"
    assert same(record, play(world, actions, seed=7)), "reset(seed) with the constructor's own seed restarts as well"
    assert not same(record, play(world, actions)), "reset() goes on drawing"
    for each in (world, other):
        each.close()


@pytest.mark.parametrize(("env", "backend"), WORLDS)
def test_returned_arrays_are_never_written_again(env, backend):
    world = build(env, backend)
    observations, _ = world.reset()
    kept = [(observations, observations.copy())]
    for action in actions_for(world, 40):
        observations, rewards, *_, infos = world.step(action)
        arrays = [observations, rewards, *(infos[key] for key in ("final_obs", "lives", "reward_ctrl") if key in infos)]
        kept += [(array, array.copy()) for array in arrays]
        # A caller that writes into what it was given changes nothing that follows.
        scratch = world.step(action)[0]
        scratch[...] = 0
    assert all(np.array_equal(array, copy) for array, copy in kept)
    world.close()


@pytest.mark.parametrize(("env", "backend"), WORLDS)
def test_episode_statistics_are_the_naive_sums(env, backend):
    world = build(env, backend, max_episode_steps=0 if env == "CartPole-v1" else 40)
    world.reset()
    returns, lengths, ended = np.zeros(E), np.zeros(E, dtype=int), 0
    for action in actions_for(world, 90):
        _, rewards, terminated, truncated, infos = world.step(action)
        returns += rewards
        lengths += 1
        for i in np.flatnonzero(terminated | truncated):
            ended += 1
            assert infos["episode"]["r"][i] == pytest.approx(returns[i], rel=1e-12)
            assert infos["episode"]["l"][i] == lengths[i]
            returns[i] = lengths[i] = 0
    assert ended >= 2
    world.close()


@pytest.mark.parametrize(("env", "backend"), WORLDS)
def test_the_time_limit_truncates(env, backend):
    world = build(env, backend, max_episode_steps=5)
    world.reset()
    idle = np.zeros(world.action_space.shape, dtype=world.action_space.dtype)
    for step in range(1, 21):
        _, _, terminated, truncated, infos = world.step(idle)
        assert not terminated.any()
        assert truncated.all() == truncated.any() == (step % 5 == 0)
        if truncated.all():
            assert infos["episode"]["l"].tolist() == [5, 5]
    world.close()


def test_a_game_that_ends_on_the_step_of_the_limit_is_terminated_only():
    free = make_vec("CartPole-v1", 1, 3)
    free.reset()
    length = next(step for step in range(1, 100) if free.step(np.array([1]))[2][0])
    limited = make_vec("CartPole-v1", 1, 3, max_episode_steps=length)
    limited.reset()
    outcomes = [limited.step(np.array([1])) for _ in range(length)]
    assert outcomes[-1][2][0] and not outcomes[-1][3][0]


@pytest.mark.parametrize(("env", "backend"), ATARI)
def test_lives_and_lost_lives(env, backend):
    world = build(env, backend, num_envs=1, max_episode_steps=0)
    lives = world.reset()[1]["lives"]
    assert lives.tolist() == [5]
    lost, over = 0, False
    while not over:
        _, _, terminated, _, infos = world.step(world.action_space.sample())
        over = terminated[0]
        assert infos["life_lost"].tolist() == [bool(infos["lives"] < lives and not over)]
        lives = infos["lives"]
        lost += infos["life_lost"][0]
    assert lives.tolist() == [5], "the row shows the next game"
    assert lost == 4, "Breakout: four lives lost on the way, the fifth ends the game"
    world.close()


@pytest.mark.parametrize(("env", "backend"), ATARI)
def test_the_first_frame_fills_the_stack(env, backend):
    world = build(env, backend, max_episode_steps=3)
    observations, _ = world.reset()
    age = 0
    for action in actions_for(world, 12):
        for frame in range(3 - age):
            assert np.array_equal(observations[:, frame], observations[:, 3 - age])
        assert observations[:, 0].any()
        observations, *_, infos = world.step(action)
        age = (age + 1) % 3
        if age == 0:
            assert infos["final_obs"][:, 0].any(), "the first frame has just reached the end of the stack"
    world.close()


def test_step_before_reset_and_unknown_options_are_refused():
    world = build("CartPole-v1", "gymnasium")
    with pytest.raises(gymnasium.error.ResetNeeded):
        world.step(np.array([0, 0]))
    with pytest.raises(ValueError, match="options"):
        world.reset(options={"reset_mask": np.array([True, False])})
    with pytest.raises(ValueError, match="seed = -1"):
        world.reset(seed=-1)
    with pytest.raises(ValueError, match="seed"):
        make_vec("CartPole-v1", 2, 2**31 - 1)
    with pytest.raises(ValueError, match="threads = -1"):
        make_vec("CartPole-v1", 2, 0, threads=-1)


@pytest.mark.parametrize("env", ["ALE/Breakout-v5", "Ant-v5"])
def test_the_number_of_threads_changes_nothing(env):
    one, two = (make_vec(env, 2, 5, "envpool", threads=threads) for threads in (1, 2))
    actions = actions_for(one, 30)
    assert same(play(one, actions), play(two, actions))


def test_rendering_gives_one_image_an_environment():
    world = make_vec("ALE/Pong-v5", 2, 0, render_mode="rgb_array")
    world.reset()
    frames = world.render()
    assert len(frames) == 2 and frames[0].shape == (210, 160, 3) and frames[0].dtype == np.uint8
    assert np.array_equal(frames[0], world.envs[0].unwrapped.ale.getScreenRGB())
    with pytest.raises(ValueError, match="render_mode"):
        make_vec("ALE/Pong-v5", 2, 0, "envpool", render_mode="rgb_array")
    silent = make_vec("Ant-v5", 1, 0)
    with pytest.raises(RuntimeError, match="render_mode = None"):
        silent.render()
    with pytest.raises(AttributeError, match="gymnasium"):
        silent.envs  # noqa: B018
