"""How large a network is and what learning keeps of it, counted before anything is built. Imports no torch."""

import math
from typing import NamedTuple

from agents.checks import uses_convolutions
from agents.config import AgentConfig, NetworkConfig
from agents.kinds import kind_of
from agents.transitions import Spaces

NATURE_CNN = ((32, 8, 4), (64, 4, 2), (64, 3, 1))
"""Filters, kernel, stride of each convolution (Mnih et al. 2015)."""
SMALL_CNN = ((64, 5, 2), (64, 3, 2))
"""Lyle23's, section 3.2; the strides are ours."""
FLOAT = 4
"""Bytes."""
MOST_STACKED = 400_000
"""Parameters of a network on a CPU beyond which seeds are not stacked: products of large matrices take their time
all at once as well. (Eight seeds with 269 thousand each, 256-256 on 28x28 pixels, gain a fourth; with 669
thousand they gain less than runs of `python -m benchmarks.stacked_seeds` differ by.)"""
TOO_LARGE = f"networks of more than {MOST_STACKED:,} parameters learn no faster as one on a CPU"


class Size(NamedTuple):
    """Of a torso or a network, norms left out."""

    parameters: int
    """Weights and biases."""
    features: int
    """What comes out."""
    activations: int
    """Numbers that a forward pass makes of one observation, its input included."""
    products: int
    """Multiply-adds of that forward pass."""


def units_of(features: int, config: NetworkConfig) -> int:
    """The units of a hidden layer out of which, without doubling, `features` would come."""
    if config.doubled == "none":
        return features
    return features // 2 if config.match == "features" else max(1, round(features / math.sqrt(2)))


def columns_of(units: int, config: NetworkConfig) -> int:
    """How many features come out of a nonlinearity after `units` units."""
    return units if config.doubled == "none" else 2 * units


def torso_size(config: NetworkConfig, spaces: Spaces, width: int, depth: int) -> Size:
    """Of the torso that `config` names, with so many dense layers of that width."""
    inputs, parameters, products = math.prod(spaces.observation_shape), 0, 0
    activations = inputs
    convolutions = ()
    if uses_convolutions(config, spaces):
        convolutions = SMALL_CNN if config.torso == "small_cnn" else NATURE_CNN
        inputs, height, across = spaces.observation_shape
    for filters, kernel, stride in convolutions:
        units = units_of(filters, config)
        parameters += units * (inputs * kernel * kernel + 1)
        if config.padding == "same":
            height, across = -(-height // stride), -(-across // stride)
        else:
            height, across = (height - kernel) // stride + 1, (across - kernel) // stride + 1
        products += units * inputs * kernel * kernel * height * across
        inputs = columns_of(units, config)
        activations += inputs * height * across
    if convolutions:
        inputs *= height * across
    if depth:
        units = units_of(width, config)
        columns = columns_of(units, config)
        weights = units * inputs + (depth - 1) * units * columns
        parameters += weights + depth * units
        products += weights
        activations += depth * columns
        inputs = columns
    return Size(parameters, inputs, activations, products)


def network_size(agent: AgentConfig, spaces: Spaces, width: int, depth: int, num_atoms: int) -> Size:
    """Of the network that `agent` learns with, heads included; its features are all outputs. `num_atoms`: of a value,
    where it has more than one output."""
    torso = torso_size(agent.network, spaces, width, depth)
    kind = kind_of(agent)
    parts, atoms = kind.parts(agent), num_atoms if kind.atoms(agent) > 1 else 1
    torsos = 1 if "encoder" in parts else len(parts)
    outputs = spaces.action_size + atoms if "actor" in parts else spaces.action_size * atoms
    free = spaces.action_size if spaces.actions == "continuous" else 0
    parameters = torsos * torso.parameters + (torso.features + 1) * outputs + free
    products = torsos * torso.products + torso.features * outputs
    return Size(parameters, outputs, torsos * torso.activations + outputs, products)
