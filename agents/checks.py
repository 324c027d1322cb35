"""Whether an agent can learn in a world at all. Imports no torch, so that it is answered before anything is built."""

from agents.config import NetworkConfig, PPOConfig, ValueAgentConfig, require, require_float32
from agents.transitions import Spaces


def fits_nature_cnn(spaces: Spaces) -> bool:
    """Whether observations are uint8 images [channels, >= 36, >= 36], the least that NatureCNN's kernels cover."""
    shape = spaces.observation_shape
    return spaces.is_image and len(shape) == 3 and min(shape[1:]) >= 36


def fits_small_cnn(spaces: Spaces) -> bool:
    """Whether observations are uint8 images [channels, >= 9, >= 9], the least that SmallCNN's kernels cover."""
    shape = spaces.observation_shape
    return spaces.is_image and len(shape) == 3 and min(shape[1:]) >= 9


def uses_nature_cnn(config: NetworkConfig, spaces: Spaces) -> bool:
    """Whether `config.torso` means NatureCNN in this world."""
    return config.torso == "nature_cnn" or (config.torso == "auto" and fits_nature_cnn(spaces))


def uses_convolutions(config: NetworkConfig, spaces: Spaces) -> bool:
    """Whether the torso has convolutions in this world."""
    return config.torso == "small_cnn" or uses_nature_cnn(config, spaces)


def check_network(config: NetworkConfig, spaces: Spaces) -> None:
    """Raise ValueError where the torso cannot take the world's observations."""
    fits = config.torso != "nature_cnn" or fits_nature_cnn(spaces)
    fits &= config.torso != "small_cnn" or fits_small_cnn(spaces)
    require(fits, "torso", config.torso, f"auto or mlp for observations of shape {spaces.observation_shape}")


def check_value_agent(config: ValueAgentConfig, spaces: Spaces, num_envs: int) -> None:
    """Raise ValueError where DQN or C51 cannot run with these spaces and environments."""
    require_float32(config)
    allowed = "ppo for a world with continuous actions (dqn and c51 need discrete ones)"
    require(spaces.actions == "discrete", "algorithm", type(config).__name__.removesuffix("Config").lower(), allowed)
    check_network(config.network, spaces)
    slots = max((spaces.frame_stack or 1) + config.n_step + 1, config.batch_size // num_envs + 1)
    allowed = f">= {num_envs * slots} for {num_envs} environments"
    require(config.buffer_size >= num_envs * slots, "buffer_size", config.buffer_size, allowed)


def check_ppo(config: PPOConfig, spaces: Spaces, num_envs: int) -> None:
    """Raise ValueError where PPO cannot run with these spaces and environments."""
    require_float32(config)
    check_network(config.network, spaces)
    batch = config.rollout_steps * num_envs
    divides = f"a divisor of rollout_steps * num_envs = {batch}"
    require(batch % config.num_minibatches == 0, "num_minibatches", config.num_minibatches, divides)
    smallest = {"minibatch": batch // config.num_minibatches, "rollout": batch, "off": 2}[config.norm_adv]
    require(smallest > 1, "norm_adv", config.norm_adv, "off where there is one sample to standardise")
    vectors = len(spaces.observation_shape) == 1 and not spaces.is_image
    require(vectors or not config.normalize_observations, "normalize_observations", True, "off but for vectors")
