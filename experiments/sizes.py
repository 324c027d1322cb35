"""Settings that no machine like this one can hold, refused by name before anything is allocated. Imports no torch."""

import math
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace

from agents.config import require
from agents.kinds import kind_of
from agents.sizes import FLOAT, network_size
from agents.transitions import Spaces
from envs.memory import available_memory
from experiments.config import TrainConfig

WHOLE = 2**53
"""Counts below it are exact in JSON and as floats."""
OF_A_LAYER = 2**13
"""Bytes of Python's own for a layer, at least."""
USUAL = {"width": 512, "depth": 2, "num_atoms": 51, "num_envs": 8, "rollout_steps": 2048, "batch_size": 256}
"""What a setting is held against when several together are too large; others against 256."""

Sizes = dict[str, int]


def check_whole_numbers(config: object, prefix: str = "") -> None:
    """Raise ValueError for a count, anywhere in the settings, that is beyond `WHOLE`."""
    for name, value in numbers(config, prefix):
        require(abs(value) < WHOLE or name == "task.seed", name, value, "a whole number below 2**53")


def numbers(config: object, prefix: str = "") -> Iterator[tuple[str, int]]:
    """(flag, value) of every whole number in the settings."""
    for field in fields(config):
        value = getattr(config, field.name)
        if isinstance(value, int) and not isinstance(value, bool):
            yield prefix + field.name, value
        elif field.name == "interventions":
            for one in value:
                yield from numbers(one, f"{one.name}.")
        elif is_dataclass(value):
            flat = field.name in ("agent", "world", "run", "network", "support", "reward")
            yield from numbers(value, prefix if flat else f"{field.name}.")


def check_sizes(
    config: TrainConfig,
    spaces: Spaces,
    on_gpu: bool,
    available: int | None = None,
    where: str = "of main memory are available",
) -> None:
    """Raise ValueError, naming the setting that is out of proportion, where what a run allocates at its start would
    not fit into memory. The replay is looked at by itself.

    `on_gpu`: network and batches lie on a GPU, and main memory holds the weights alone. `available`: bytes, of main
    memory where left out; `where` says so.
    """
    network = config.agent.network
    for one in config.interventions:  # which may halve the units of a layer
        network = one.configure(network)
    config = replace(config, agent=replace(config.agent, network=network))

    def needed(sizes: Sizes) -> int:
        return needed_bytes(config, spaces, sizes, on_gpu)

    sizes = sizes_of(config)
    available = available_memory() if available is None else available
    least = needed(dict.fromkeys(sizes, 1))
    smaller = f"one of fewer observed numbers or actions: the smallest network for it takes {least / 1e9:,.1f} GB"
    require(least <= available, "env", config.world.env, f"{smaller} and {available / 1e9:.1f} GB {where}")
    refuse_too_large(sizes, needed, available, where)


def refuse_too_large(
    sizes: Sizes, needed: Callable[[Sizes], int], available: int, where: str = "of main memory are available"
) -> None:
    """Raise ValueError naming the one of `sizes` that alone makes `needed` exceed what is `available`: of several the
    one that is largest for its kind; with the most that it could be."""
    total = needed(sizes)
    if total <= available:
        return
    enough = [name for name in sizes if needed(sizes | {name: 1}) <= available]
    name = max(enough or sizes, key=lambda name: sizes[name] / USUAL.get(name, 256))
    low, high = 1, sizes[name]  # `needed` grows with each
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if needed(sizes | {name: middle}) <= available else (low, middle)
    most = f"at most {low:,}" if enough else "far smaller"
    gigabytes = f"{total / 1e9:,.1f}" if total < 1e18 else "more than a billion"
    why = f"the run would take {gigabytes} GB and {available / 1e9:.1f} GB {where}"
    require(False, name, sizes[name], f"{most}: {why}")


def sizes_of(config: TrainConfig) -> Sizes:
    """By flag, the settings that memory grows with."""
    agent, kind = config.agent, kind_of(config.agent)
    learned_from = "rollout_steps" if kind.on_policy else "batch_size"
    found = {
        "width": agent.network.width,
        "depth": max(1, agent.network.depth),
        kind.atoms_setting: kind.atoms(agent),
        "num_envs": config.world.num_envs,
        learned_from: getattr(agent, learned_from),
    }
    if config.run.probes not in ((), ("none",)):
        found |= {"probe.samples": config.probe.samples, "probe.heavy_samples": config.probe.heavy_samples}
    for one in config.interventions:
        found |= {f"{one.name}.{name}": getattr(one, name) for name in ("samples", "heads") if hasattr(one, name)}
    return found


def products_of_a_batch(config: TrainConfig, spaces: Spaces) -> int:
    """Multiply-adds of the forward pass of one gradient step, interventions left out: what threads, or a GPU, share."""
    agent, kind = config.agent, kind_of(config.agent)
    network = network_size(agent, spaces, agent.network.width, agent.network.depth, kind.atoms(agent))
    rows = agent.rollout_steps * config.world.num_envs // agent.num_minibatches if kind.on_policy else agent.batch_size
    return rows * network.products


def needed_bytes(config: TrainConfig, spaces: Spaces, sizes: Sizes, on_gpu: bool) -> int:
    """Bytes that a run with these sizes takes at least, soon after its start, without its replay."""
    agent, kind = config.agent, kind_of(config.agent)
    depth = sizes["depth"] if agent.network.depth else 0
    network = network_size(agent, spaces, sizes["width"], depth, sizes[kind.atoms_setting])
    observation = math.prod(spaces.observation_shape) * (1 if spaces.is_image else FLOAT)
    copies = 1 if on_gpu else 4 + kind.target_network  # weights, gradients and Adam's two moments; a target network
    total = copies * network.parameters * FLOAT + depth * OF_A_LAYER
    total += sizes["num_envs"] * (config.world.family.bytes_each + 2 * observation)
    if on_gpu:
        return total
    if kind.on_policy:
        rows = sizes["rollout_steps"] * sizes["num_envs"]
        total += rows * (observation + 18 + 8)
        batch = rows // agent.num_minibatches
    else:
        batch = sizes["batch_size"]
        total += batch * 2 * observation
    total += batch * network.activations * FLOAT
    total += sizes.get("probe.samples", 0) * observation + sizes.get("probe.heavy_samples", 0) ** 2 * FLOAT
    for name, value in sizes.items():
        if name.endswith(".samples") and name != "probe.samples":
            total += value * (observation + network.activations * FLOAT)
        elif name.endswith(".heads"):
            total += value * (sizes["width"] if depth else 1) * FLOAT * (copies - 1)
    return total
