"""Bad configurations are refused with a sentence; known worlds are described without being built."""

import subprocess
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest

from envs import FrictionConfig, ImageConfig, TaskConfig, WorldConfig, describe, make_vec
from envs.families.mujoco import ROBOTS

ROOT = Path(__file__).parents[2]

REFUSED = [
    ({"sticky_actions": 1.5}, "sticky_actions = 1.5: must be a probability"),
    ({"sticky_actions": float("nan")}, "sticky_actions = nan"),
    ({"num_envs": 0}, "num_envs = 0: must be at least 1"),
    ({"noop_max": -1}, "noop_max = -1"),
    ({"max_episode_steps": -5}, "max_episode_steps = -5"),
    ({"backend": "gym"}, "backend = 'gym': must be one of auto, envpool, ale, gymnasium"),
    ({"env": ""}, "env = ''"),
    ({"env": "Ant-v5", "backend": "ale"}, "backend = 'ale': .*Ant-v5"),
    ({"env": "CartPole-v1", "backend": "envpool"}, "backend = 'envpool': .*CartPole"),
    ({"env": "Ant-v5", "contact_cost_weight": -1.0}, "contact_cost_weight = -1.0"),
    ({"env": "Ant-v5", "ant_observation": "29"}, "ant_observation = '29': must be one of default-105"),
    (
        {"env": "ALE/Pong-v5", "ant_observation": "plain-27"},
        "ant_observation = 'plain-27': applies to Ant-v5 and FrictionAnt-v0 alone",
    ),
    (
        {"env": "Hopper-v5", "contact_cost_weight": 0.0},
        "contact_cost_weight = 0.0: applies to Ant-v5 and FrictionAnt-v0 alone",
    ),
    ({"env": "Ant-v5", "friction": FrictionConfig(low=0.1)}, "friction = .*: applies to FrictionAnt-v0 alone"),
    ({"env": "Ant-v5", "dataset": "mnist"}, "dataset = 'mnist': applies to ImageMDP-v0 alone"),
    ({"env": "ImageMDP-v0", "backend": "gymnasium"}, "backend = 'gymnasium': must be one of auto, native"),
    ({"env": "FrictionAnt-v0", "backend": "envpool"}, "backend = 'envpool': must be one of auto, native, gymnasium"),
    ({"env": "Ant-v5", "task": TaskConfig(period=5)}, "task.change = 'auto': name what changes in 'Ant-v5'"),
    ({"env": "Ant-v5", "task": TaskConfig(change="modes")}, "task.change = 'modes': must be one of actions"),
    ({"env": "FrictionAnt-v0", "task": TaskConfig(change="actions")}, "task.change = 'actions': must be friction"),
    ({"env": "ALE/Pong-v5,CartPole-v1"}, "env = .*: several worlds in turn must all be ALE"),
    ({"env": "ALE/Pong-v5", "backend": "ale", "task": TaskConfig(change="modes")}, "backend = 'ale': .*modes"),
    ({"env": "ALE/Pong-v5", "healthy_reward_on_termination": True}, "healthy_reward_on_termination = True: applies"),
    ({"env": "CartPole-v1", "sticky_actions": 0.25}, "sticky_actions = 0.25: applies to Atari"),
    ({"env": "Ant-v5", "noop_max": 0}, "noop_max = 0: applies to Atari"),
    ({"env": "Ant-v5", "full_action_space": True}, "full_action_space = True: applies to Atari"),
    ({"env": "Ant-v5", "fire_reset": False}, "fire_reset = False: applies to Atari"),
]


@pytest.mark.parametrize(("fields", "message"), REFUSED)
def test_bad_fields_are_refused_by_name(fields, message):
    with pytest.raises(ValueError, match=message):
        WorldConfig(**fields)


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        (TaskConfig, {"period": -1}, "task.period = -1: must be at least 0"),
        (TaskConfig, {"stages": 0}, "task.stages = 0: must be at least 1"),
        (TaskConfig, {"at": "later"}, "task.at = 'later': must be one of episode_end, now"),
        (TaskConfig, {"order": "random"}, "task.order = 'random': must be one of auto"),
        (
            TaskConfig,
            {"change": "gravity"},
            "task.change = 'gravity': must be one of auto, games, modes, friction",
        ),
        (TaskConfig, {"reward_step": float("nan")}, "task.reward_step = nan: must be a finite number"),
        (TaskConfig, {"seed": -3}, "task.seed = -3"),
        (FrictionConfig, {"low": 0.0}, "friction.low = 0.0: must be > 0"),
        (FrictionConfig, {"low": 0.5, "high": 0.1}, "friction.high = 0.1: must be at least friction.low = 0.5"),
        (FrictionConfig, {"law": "normal"}, "friction.law = 'normal': must be log_uniform or uniform"),
        (ImageConfig, {"variant": "dense"}, "image.variant = 'dense': must be one of true_label"),
        (ImageConfig, {"redraw": 0.0}, r"image.redraw = 0.0: must be in \(0, 1\]"),
        (ImageConfig, {"num_images": -1}, "image.num_images = -1: must be at least 0"),
    ],
)
def test_bad_tasks_frictions_and_images_are_refused_by_name(kind, fields, message):
    with pytest.raises(ValueError, match=message):
        kind(**fields)


UNKNOWN = [
    ("ALE/Brekout-v5", "env = 'ALE/Brekout-v5': unknown world; did you mean 'ALE/Breakout-v5'"),
    ("BreakoutNoFrameskip-v4", "did you mean 'ALE/Breakout-v5'"),
    ("ALE/Warlords-v5", "unknown world"),
    ("Ant-v6", r"did you mean 'Ant-v5' or 'Ant-v4'\?$"),  # not v3, which would be refused
    ("CartPoll-v1", "did you mean 'CartPole-v1'"),
    ("ant", "env = 'ant': unknown world; did you mean 'Ant-v5'"),
    ("breakout", "env = 'breakout': unknown world; did you mean 'ALE/Breakout-v5'"),
    ("space_invaders", "did you mean 'ALE/SpaceInvaders-v5'"),
    ("ale/pong-V5", "did you mean 'ALE/Pong-v5'"),
    ("cartpole-v1", "did you mean 'CartPole-v1'"),
    # Where nothing is close, how a world of one's own is named.
    ("qqqqqqqq", r"env = 'qqqqqqqq': unknown world \(one that a module of yours registers is MODULE:ID\)$"),
]


@pytest.mark.parametrize(("env", "message"), UNKNOWN)
def test_unknown_worlds_are_refused_with_the_closest_ids(env, message):
    with pytest.raises(ValueError, match=message):
        describe(WorldConfig(env=env))
    with pytest.raises(ValueError, match=message):
        make_vec(env, 1, 0)


@pytest.mark.parametrize(("env", "size"), [("Blackjack-v1", 32 + 11 + 2), ("FrozenLake-v1", 16)])
def test_counts_are_observed_one_hot(env, size):
    """They were refused while observations had to be arrays; gymnasium's FlattenObservation makes them so."""
    assert describe(WorldConfig(env=env)).observation_shape == (size,)
    observations, _ = make_vec(env, 3, 0).reset()
    assert observations.dtype == np.float32 and (observations.sum(1) == (3 if env == "Blackjack-v1" else 1)).all()


@pytest.mark.parametrize(
    "config",
    [
        WorldConfig(env="ALE/Pong-v5"),
        WorldConfig(env="ALE/Freeway-v5", full_action_space=True),
        WorldConfig(env="Ant-v5", ant_observation="padded-111"),
        WorldConfig(env="CartPole-v1"),
        WorldConfig(env="Pendulum-v1"),
    ],
)
def test_the_description_is_what_is_built(config):
    info = describe(config)
    world = make_vec(config.env, 1, 0, **_options(config))
    assert (info.family, info.backend) == (config.family.name, config.resolved_backend)
    assert info.observation_shape == world.single_observation_space.shape == world.reset()[0].shape[1:]
    assert np.dtype(info.observation_dtype) == world.single_observation_space.dtype
    assert info.frame_stack == world.frame_stack
    if info.actions == "discrete":
        assert info.num_actions == world.single_action_space.n and info.action_dim is None
    else:
        assert (info.action_dim,) == world.single_action_space.shape and info.num_actions is None
    world.close()


def _options(config):
    names = ("full_action_space", "ant_observation")
    return {name: getattr(config, name) for name in names if getattr(config, name) != getattr(WorldConfig, name)}


@pytest.mark.parametrize("env", ROBOTS)
def test_the_table_of_robots_is_gymnasiums(env):
    with gymnasium.make(env, disable_env_checker=True) as plain:
        limit = plain.spec.max_episode_steps
        assert (*plain.observation_space.shape, *plain.action_space.shape, limit) == ROBOTS[env]


def test_every_atari_game_is_known_to_envpool_by_its_rom():
    import envpool

    from envs.families.atari import roms

    tasks = set(envpool.list_all_envs())
    missing = [env for env, rom in roms().items() if "".join(map(str.capitalize, rom.split("_"))) + "-v5" not in tasks]
    assert missing == []
    assert "ALE/SpaceInvaders-v5" in roms() and len(roms()) > 90


def test_imports_stay_light():
    heavy = "{'torch', 'envpool', 'gymnasium', 'numpy', 'ale_py'}"
    light = f"import sys, envs, envs.config; assert not {heavy} & set(sys.modules), {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", light], check=True, cwd=ROOT)
    registry = (
        "import sys; from envs import describe, WorldConfig\n"
        "describe(WorldConfig()); describe(WorldConfig(env='Ant-v5')); describe(WorldConfig(env='CartPole-v1'))\n"
        "assert not {'torch', 'envpool'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", registry], check=True, cwd=ROOT)
