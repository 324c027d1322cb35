"""Gymnasium's and Stable-Baselines3's own checkers, wrappers and agents on every world that is registered."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium.envs.registration import registry
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from gymnasium.wrappers.vector import DictInfoToList
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.env_checker import check_env as check_env_for_sb3

from envs.registration import register
from envs.single import PeriodicReset
from envs.vector import World

ROOT = Path(__file__).parents[2]
WORLDS = {
    "ants": ("FrictionAnt-v0", {"task": {"period": 40}}),
    "images": ("ImageMDP-v0", {"task": {"period": 40}}),
    "games": ("GameCycle-v0", {"games": "ALE/Pong-v5,ALE/Breakout-v5", "task": {"period": 40}, "noop_max": 4}),
    "poles": ("PeriodicReset-v0", {"env_id": "CartPole-v1", "period": 40}),
    "pongs": ("PeriodicReset-v0", {"env_id": "ALE/Pong-v5", "period": 40, "noop_max": 4}),
}
SHORT = {"ants": 15, "images": 15, "games": 15, "poles": 500, "pongs": 15}

# What the checkers remark on and we leave as it is, by world.
UNBOUNDED = "A Box observation space (minimum|maximum) value is -?infinity"
EXPECTED_REMARKS = {
    "ants": UNBOUNDED,  # velocities have no bounds; gymnasium's own Ant and CartPole say the same
    "poles": UNBOUNDED,
    "wrapped poles": UNBOUNDED + "|is different from the unwrapped version",  # a wrapper is what is checked
    "images": "The minimal resolution for an image is 36x36",  # 28x28 is the data's; our small CNN and MLPs take it
}

register()


@pytest.fixture(autouse=True)
def _rendering_without_a_screen(monkeypatch):
    # pygame (CartPole) would open and close an EGL display of its own, and MuJoCo's with it.
    for name, value in (("MUJOCO_GL", "egl"), ("SDL_VIDEODRIVER", "dummy")):
        if name not in os.environ:
            monkeypatch.setenv(name, value)


def make(name, **options):
    env_id, arguments = WORLDS[name]
    return gymnasium.make(env_id, **{**arguments, **options})


def make_vec(name, num_envs=2, **options):
    env_id, arguments = WORLDS[name]
    return gymnasium.make_vec(env_id, num_envs=num_envs, **{**arguments, **options})


def quietly(name, check, *arguments, **options):
    """Run a checker; every warning that is not among the expected ones fails the test."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if name in EXPECTED_REMARKS:
            # Gymnasium colours its warnings, so the sentence is not at the beginning.
            warnings.filterwarnings("ignore", f"(?s).*({EXPECTED_REMARKS[name]})")
        check(*arguments, **options)


@pytest.mark.parametrize("name", WORLDS)
def test_gymnasiums_checker(name):
    env = make(name)
    quietly(name, check_env, env.unwrapped)
    env.close()


@pytest.mark.parametrize("name", WORLDS)
def test_stable_baselines_checker(name):
    env = make(name, render_mode="rgb_array")
    quietly(name, check_env_for_sb3, env, skip_render_check=False)


def test_both_checkers_on_the_wrapper():
    env = PeriodicReset(gymnasium.make("CartPole-v1", render_mode="rgb_array"), period=40)
    quietly("wrapped poles", check_env, env)
    quietly("wrapped poles", check_env_for_sb3, env, skip_render_check=False)
    pong = PeriodicReset(gymnasium.make(*WORLDS["games"][:1], **WORLDS["games"][1]), period=40)
    quietly("wrapped poles", check_env_for_sb3, pong)


@pytest.mark.parametrize("name", WORLDS)
def test_rendering(name):
    env = make(name, render_mode="rgb_array")
    env.reset(seed=1)
    fps = {"ants": 20, "images": 4, "games": 15, "poles": 50, "pongs": 15}[name]
    assert env.metadata == {"render_modes": ["rgb_array"], "render_fps": fps}
    frames = [env.render()]
    for _ in range(8):
        env.step(env.action_space.sample())
        frames.append(env.render())
    assert all(frame.shape == frames[0].shape and frame.shape[2] == 3 and frame.dtype == np.uint8 for frame in frames)
    assert all(len(np.unique(frame)) > 1 for frame in frames), "not one flat colour"
    assert any(not np.array_equal(frame, frames[0]) for frame in frames)
    env.close()


# gymnasium 1.4.0 has no checker of vector environments; what follows is what its own tests assert of them.


@pytest.mark.parametrize("name", WORLDS)
def test_the_conventions_of_vector_environments(name):
    world = make_vec(name, max_episode_steps=SHORT[name])
    assert isinstance(world, World) and world.num_envs == 2
    assert world.spec.id == WORLDS[name][0]
    assert world.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    assert world.observation_space == batch_space(world.single_observation_space, 2)
    assert world.action_space == batch_space(world.single_action_space, 2)
    single = make(name)
    assert single.observation_space == world.single_observation_space
    assert single.action_space == world.single_action_space
    single.close()
    observations, infos = world.reset(seed=7)
    assert isinstance(infos, dict)
    world.action_space.seed(0)
    seen_final = False
    for _ in range(40):
        assert observations in world.observation_space
        assert observations.dtype == world.observation_space.dtype
        actions = world.action_space.sample()
        observations, rewards, terminated, truncated, infos = world.step(actions)
        for column in (rewards, terminated, truncated):
            assert isinstance(column, np.ndarray) and column.shape == (2,)
        assert np.issubdtype(rewards.dtype, np.floating)
        assert terminated.dtype == truncated.dtype == np.bool_
        done = terminated | truncated
        assert ("final_obs" in infos) == ("_final_obs" in infos) == done.any()
        if done.any():
            seen_final = True
            assert np.array_equal(infos["_final_obs"], done)
            assert all(infos["final_obs"][i] in world.single_observation_space for i in np.flatnonzero(done))
        for column in (infos["task_index"], *infos["task"].values()):
            assert isinstance(column, np.ndarray) and column.shape == (2,)
    assert seen_final and infos["task_index"].max() >= 1
    first, _ = world.reset(seed=7)
    again, _ = world.reset(seed=7)
    assert np.array_equal(first, again)
    world.close()
    assert world.closed
    world.close()


@pytest.mark.parametrize("name", ["ants", "games"])
def test_other_ways_of_making_many(name):
    sync = make_vec(name, vectorization_mode="sync", vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP})
    native = make_vec(name, vectorization_mode="vector_entry_point")
    assert sync.single_observation_space == native.single_observation_space
    for world in (sync, native):
        _, infos = world.reset(seed=1)
        for _ in range(16):
            *_, infos = world.step(world.action_space.sample())
        assert infos["task_index"].shape == (2,)
        world.close()
    listed = DictInfoToList(make_vec(name))
    _, infos = listed.reset(seed=1)
    assert [info["task_index"] for info in infos] == [0, 0]
    listed.close()


def test_gymnasiums_wrappers():
    env = make("ants", max_episode_steps=12)
    env = gymnasium.wrappers.RecordEpisodeStatistics(env)
    env = gymnasium.wrappers.NormalizeObservation(gymnasium.wrappers.ClipAction(env))
    env.reset(seed=1)
    over = False
    while not over:
        *_, terminated, truncated, info = env.step(env.action_space.sample())
        over = terminated or truncated
    assert info["episode"]["l"] == 12 and "task_index" in info
    assert env.unwrapped.model.geom_friction.shape == (14, 3)
    env.close()


@pytest.mark.parametrize(
    ("name", "algorithm", "settings"),
    [
        ("ants", PPO, {"policy": "MlpPolicy", "n_steps": 128, "batch_size": 64, "n_epochs": 2}),
        ("images", PPO, {"policy": "MlpPolicy", "n_steps": 128, "batch_size": 64, "n_epochs": 2}),
        ("images", DQN, {"policy": "MlpPolicy", "learning_starts": 64, "buffer_size": 500}),
        ("games", DQN, {"policy": "CnnPolicy", "learning_starts": 60, "buffer_size": 300, "train_freq": 30}),
        ("poles", DQN, {"policy": "MlpPolicy", "learning_starts": 64, "buffer_size": 500}),
    ],
)
def test_stable_baselines_trains_on_them(name, algorithm, settings):
    agent = algorithm(env=make(name, **({} if name == "poles" else {"max_episode_steps": 25})), seed=1, **settings)
    tasks, lengths = [], []

    def note(local, _):
        tasks.append(local["infos"][0]["task_index"])
        lengths.extend([local["infos"][0]["episode"]["l"]] if "episode" in local["infos"][0] else [])
        return True

    before = {key: value.clone() for key, value in agent.policy.state_dict().items()}
    agent.learn(total_timesteps=256, callback=note)
    assert tasks == sorted(tasks) and tasks[0] == 0 and tasks[-1] >= 5, "tasks go on from episode to episode"
    assert len(lengths) >= 5 and all(length <= 40 for length in lengths)
    assert any(not before[key].equal(value) for key, value in agent.policy.state_dict().items())
    agent.env.close()


def test_registering_twice_changes_nothing():
    before = dict(registry)
    register()
    assert dict(registry) == before


@pytest.mark.parametrize(
    "code",
    [
        "import gymnasium as g; g.make('envs.registration:PeriodicReset-v0', env_id='CartPole-v1', period=9).reset()",
        "import gymnasium as g; g.make_vec('envs.registration:ImageMDP-v0', num_envs=2).reset()",
        "import gymnasium as g; g.make('envs:GameCycle-v0', games='ALE/Pong-v5,ALE/Breakout-v5').reset()",
        "import gymnasium, envs; gymnasium.make('ImageMDP-v0').reset()",
        "import envs, gymnasium; envs.register(); gymnasium.make('ImageMDP-v0').reset()",
        "import sys, envs; assert 'gymnasium' not in sys.modules",
        "import sys, envs.registration; assert not {'torch', 'mujoco', 'envpool'} & set(sys.modules)",
    ],
)
def test_a_fresh_process_finds_the_worlds(code):
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
