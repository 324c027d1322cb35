"""What cannot work is refused by name before anything is built, and without torch."""

import subprocess
import sys

import pytest

from agents.checks import fits_nature_cnn, fits_small_cnn
from agents.config import AdamConfig, LearningRate, NetworkConfig, SupportConfig
from agents.kinds import check_agent
from agents.ppo_config import PPOConfig
from agents.value_config import C51Config, DQNConfig, Epsilon
from tests.agents.helpers import ATARI, CONTINUOUS, SMALL_IMAGE, STACK, VECTOR, NoiseWorld, build, drive

CNN = NetworkConfig(torso="nature_cnn")


def test_checking_needs_no_torch():
    code = "import sys, agents, agents.checks, agents.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_nature_cnn_fits_images_from_36_pixels_on():
    # 36 -> 8 -> 3 -> 1; 35 -> 7 -> 2 -> none
    assert fits_nature_cnn(ATARI) and fits_nature_cnn(SMALL_IMAGE)
    assert not fits_nature_cnn(SMALL_IMAGE._replace(observation_shape=(4, 35, 36)))
    assert not fits_nature_cnn(SMALL_IMAGE._replace(observation_shape=(36, 36)))
    assert not fits_nature_cnn(STACK) and not fits_nature_cnn(VECTOR)


def test_small_cnn_fits_images_from_9_pixels_on():
    small = SMALL_IMAGE._replace(observation_shape=(1, 9, 9))
    assert fits_small_cnn(small) and not fits_small_cnn(small._replace(observation_shape=(1, 8, 9)))
    config = DQNConfig(network=NetworkConfig(torso="small_cnn"))
    check_agent(config, small, 1)
    with pytest.raises(ValueError, match="torso = 'small_cnn': must be auto or mlp"):
        check_agent(config, VECTOR, 1)


@pytest.mark.parametrize("config", [DQNConfig(), C51Config()])
def test_value_agents_refuse_continuous_actions(config):
    with pytest.raises(ValueError, match="algorithm = '(dqn|c51)'.*discrete"):
        check_agent(config, CONTINUOUS, 1)


def test_a_cnn_on_vectors_is_refused():
    with pytest.raises(ValueError, match="torso = 'nature_cnn'"):
        check_agent(DQNConfig(network=CNN), VECTOR, 1)
    with pytest.raises(ValueError, match="torso = 'nature_cnn'"):
        check_agent(PPOConfig(network=CNN), STACK, 1)


def test_a_buffer_too_small_for_its_environments_is_refused():
    config = DQNConfig(buffer_size=100, batch_size=8, n_step=3)
    check_agent(config, ATARI, 10)  # ten rings of 10 slots
    with pytest.raises(ValueError, match="buffer_size = 100"):
        check_agent(config, ATARI, 13)  # 13 * (4 + 3 + 1) = 104


@pytest.mark.parametrize("num_envs", [1, 3, 8])
def test_the_smallest_buffer_that_is_allowed_lets_the_agent_learn(num_envs):
    sizes = range(1, 200)
    config = next(filter(None, (allowed(size, num_envs) for size in sizes)))
    agent = drive(build(config, VECTOR, num_envs), NoiseWorld(VECTOR, num_envs), 100)
    assert agent.clock.gradient_steps > 0


def allowed(size, num_envs):
    try:
        config = DQNConfig(buffer_size=size, batch_size=32, learning_starts=0, network=NetworkConfig(width=4))
        check_agent(config, VECTOR, num_envs)
    except ValueError:
        return None
    return config


def test_minibatches_must_divide_the_rollout():
    check_agent(PPOConfig(rollout_steps=6, num_minibatches=4), VECTOR, 2)
    with pytest.raises(ValueError, match="num_minibatches = 4"):
        check_agent(PPOConfig(rollout_steps=7, num_minibatches=4), VECTOR, 2)


@pytest.mark.parametrize(("norm_adv", "minibatches"), [("minibatch", 8), ("rollout", 1)])
def test_a_single_advantage_cannot_be_standardised(norm_adv, minibatches):
    config = PPOConfig(rollout_steps=minibatches, num_minibatches=minibatches, norm_adv=norm_adv)
    with pytest.raises(ValueError, match="norm_adv"):
        check_agent(config, VECTOR, 1)


def test_a_single_advantage_is_fine_where_it_is_not_standardised():
    check_agent(PPOConfig(rollout_steps=8, num_minibatches=8, norm_adv="rollout"), VECTOR, 1)
    check_agent(PPOConfig(rollout_steps=1, num_minibatches=1, norm_adv="off"), VECTOR, 1)


def test_normalising_images_is_refused():
    with pytest.raises(ValueError, match="normalize_observations"):
        check_agent(PPOConfig(normalize_observations=True), ATARI, 8)


BAD = {
    "learning_rate": (DQNConfig, 0.0),
    "gamma": (PPOConfig, 1.5),
    "batch_size": (C51Config, 0),
    "n_step": (DQNConfig, 0),
    "replay_ratio": (DQNConfig, 0.0),
    "target_period": (DQNConfig, 0),
    "tau": (DQNConfig, 0.0),
    "epsilon.start": (Epsilon, -0.1),
    "epsilon.end": (Epsilon, 1.1),
    "learning_rate.end": (LearningRate, -1e-4),
    "learning_starts": (DQNConfig, -1),
    "gae_lambda": (PPOConfig, -0.1),
    "clip_coef": (PPOConfig, 0.0),
    "update_epochs": (PPOConfig, 0),
    "rollout_steps": (PPOConfig, 0),
    "max_grad_norm": (PPOConfig, -1.0),
    "width": (NetworkConfig, 0),
    "depth": (NetworkConfig, -1),
    "num_atoms": (SupportConfig, 1),
    "v_max": (SupportConfig, -10.0),
    "hl_gauss_sigma": (SupportConfig, 0.0),
    "betas": (AdamConfig, (0.9, 1.0)),
    "eps": (AdamConfig, 0.0),
}


@pytest.mark.parametrize("field", BAD)
def test_a_bad_value_is_refused_by_name(field):
    kind, value = BAD[field]
    with pytest.raises(ValueError, match=rf"{field} = .*must be"):
        kind(**{field.rpartition(".")[2]: value})


@pytest.mark.parametrize("value", [float("nan"), -1.0])
@pytest.mark.parametrize("kind", [DQNConfig, PPOConfig])
def test_a_learning_rate_that_is_not_positive_is_refused(kind, value):
    with pytest.raises(ValueError, match="learning_rate"):
        kind(learning_rate=value)


def test_value_clipping_with_a_categorical_value_is_refused():
    with pytest.raises(ValueError, match="clip_vloss"):
        PPOConfig(clip_vloss=True, value_loss="hl_gauss")
