"""Which torso a world's observations get, and whether it can take them. Imports no torch."""

from agents.config import NetworkConfig, require
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
