"""From settings to a world and an agent, with everything that can be refused early refused early."""

import os
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from agents.checks import check_network
from agents.config import require, require_float32
from agents.kinds import check_agent, kind_of
from agents.schedule import in_steps, schedules_of
from agents.transitions import Spaces
from agents.value_config import ValueAgentConfig
from envs import WorldInfo, describe
from envs.config import WorldConfig
from envs.foresight import check_tasks
from envs.memory import available_memory
from experiments.config import TrainConfig
from experiments.foreign_flags import about_probe
from experiments.machine import has_gpu_driver, may_be_a_gpu, place
from experiments.places import check_runs_dir, require_here
from experiments.probe_names import probe_costs
from experiments.sizes import check_sizes, check_whole_numbers, products_of_a_batch
from experiments.wandb_log import wandb_is_installed

if TYPE_CHECKING:
    import torch
    from gymnasium.vector import VectorEnv

    from agents.agent import Agent
    from agents.randomness import Generators


def check(config: TrainConfig, anew: bool = True, seeds: int = 1) -> None:
    """Raise ValueError, with a sentence naming the field, where the settings cannot make a run, `anew` or one that goes
    on, beside others in its process: so many `seeds` in all. Imports no torch and builds nothing but, for its shapes, a
    world that is neither Atari nor MuJoCo."""
    require_float32(config)
    check_annealing(config)
    check_probes(config.run.probes)
    check_lives(config)
    if config.interventions:
        from agents.interventions.lifecycle import check_interventions

        check_interventions(config.interventions, config.agent)
    check_in_this_run(config)
    check_whole_numbers(config)
    check_tasks(config.world)
    spaces = spaces_from(describe(config.world))
    check_network(config.agent.network, spaces)
    on_gpu = may_be_a_gpu(config.run.device, products_of_a_batch(config, spaces)) and has_gpu_driver()
    check_sizes(config, spaces, on_gpu)
    check_agent(config.agent, spaces, config.world.num_envs)
    if not kind_of(config.agent).on_policy:
        check_memory(config.agent, spaces, on_gpu, seeds)
    if config.run.wandb:
        require(wandb_is_installed(), "wandb", True, "off unless wandb is installed (pip install wandb)")
    asked = config.run.device
    require(not asked.startswith("cuda") or has_gpu_driver(), "device", asked, "cpu or auto: no GPU driver is here")
    check_precision(config.run.precision, on_gpu)
    if anew:
        if config.run.name:
            directory = config.run.runs_dir / config.run.name
            require(not os.path.lexists(directory), "name", config.run.name, f"new: {directory} exists already")
        check_runs_dir(config.run.runs_dir, config.run_name)
    require_here()


def check_precision(precision: str, gpu: bool) -> None:
    """Raise ValueError where there is no `gpu` and a run would be named after a format that only GPUs have."""
    require(precision != "tf32" or gpu, "precision", precision, "fp32 or bf16 on a CPU: TF32 is a GPU's format")


def never_learns(config: TrainConfig, steps: int) -> str | None:
    """Why a run of `steps` steps ends before the first gradient step; None where it does not."""
    agent, environments = config.agent, config.world.num_envs
    ticks = -(-steps // environments)
    if kind_of(agent).on_policy:
        whole = f"{environments} x {agent.rollout_steps:,} = {environments * agent.rollout_steps:,} steps"
        rollouts = f"{config.agent_name} learns from whole rollouts of {whole} (--num-envs, --rollout-steps)"
        return f"{rollouts}, and the run has {steps:,}" if ticks < agent.rollout_steps else None
    if int((ticks * environments - agent.learning_starts) * agent.replay_ratio) < 1:
        begins = f"step {agent.learning_starts:,} (--learning-starts)"
        ratio = f", {agent.replay_ratio:g} gradient steps a step (--replay-ratio)"
        return f"learning begins after {begins}{ratio}, and the run has {steps:,}"
    few = f"the first batch waits for more than {agent.batch_size:,} steps (--batch-size), and the run has {steps:,}"
    return few if ticks * environments <= agent.batch_size else None


def spaces_from(info: WorldInfo) -> Spaces:
    """The shapes of a world that is described and not built: without the bounds of continuous actions."""
    return Spaces(
        tuple(info.observation_shape),
        np.dtype(info.observation_dtype),
        info.actions,
        info.num_actions if info.actions == "discrete" else info.action_dim,
        frame_stack=info.frame_stack,
    )


def check_in_this_run(config: TrainConfig) -> None:
    """Raise ValueError for an intervention that could never act in this run, and for moments that nobody would obey."""
    for one in config.interventions:
        if one.waits_for_a_task_change and config.world.change is None:
            raise ValueError(f"{one.name}: waits for a task change, and this world has none (--task.period)")
    chosen = config.surgery.moments
    if chosen != "own":
        obeyed = any("moments" in one.parameters() for one in config.interventions)
        require(obeyed, "surgery.moments", chosen, "own where no intervention that is listed replaces units")


def check_probes(names: tuple[str, ...], flag: str = "probes") -> None:
    """Raise ValueError for a probe that there is not; torch is not imported for that."""
    alone = "none" not in names or len(names) == 1
    require(alone, flag, " ".join(names), "none alone, or others without it")
    known = ["default", "all", "none", *probe_costs()]
    for name in names:
        if name not in known:
            raise ValueError(f"{flag} = {name!r}: must be some of {', '.join(known)}{about_probe(name, known)}")


def check_lives(config: TrainConfig) -> None:
    """Raise ValueError where lost lives should count in a world in which none can be lost."""
    asked = config.agent.life_loss_discount
    allowed = f"off: there are no lives in {config.world.env}"
    require(config.world.family.lives or not asked, "life_loss_discount", asked, allowed)


def check_annealing(config: TrainConfig) -> None:
    """Raise ValueError where a learning rate or an epsilon would fall once while the world changes: later tasks would
    be learned more slowly for that reason alone."""
    period = config.world.task.period
    why = f"where the world changes (task.period = {period}): falling once, it slows later tasks"
    for name, schedule in schedules_of(config.agent).items():
        allowed = f"constant, or anew in every task (task, 0.1-of-task, 8000-steps-of-task), {why}"
        require(not (period and schedule.once), f"{name}.over", str(schedule.over), allowed)


def world_settings(config: TrainConfig, generators: "Generators") -> WorldConfig:
    """The world of a run with these generators, its tasks' seed derived from the run's alone: every method meets the
    same tasks."""
    task = config.world.task
    if task.seed is not None or config.world.change is None:
        return config.world
    return replace(config.world, task=replace(task, seed=generators.integer("tasks")))


def check_memory(config: ValueAgentConfig, spaces: Spaces, on_gpu: bool, seeds: int = 1) -> None:
    """Raise ValueError where full replays, of so many `seeds`, would not fit into memory. `on_gpu`: the training device
    may be one."""
    if config.replay_device != "host" and on_gpu:
        return  # asked of the device when it is known, see require_device_memory
    of_each = f"of main memory are available for each of {seeds} seeds" if seeds > 1 else "of main memory are available"
    _require_fits(config, spaces, available_memory() // seeds, of_each)


def _require_fits(config: ValueAgentConfig, spaces: Spaces, available: int, where: str) -> None:
    needed = spaces.replay_bytes(config.buffer_size)
    largest = int(config.buffer_size * 0.9 * available / needed)
    sentence = (
        f"at most {largest:,}: {config.buffer_size:,} observations take {needed / 1e9:.1f} GB when full and only "
        f"{available / 1e9:.1f} GB {where}"
    )
    require(config.buffer_size <= largest, "buffer_size", config.buffer_size, sentence)


def require_device_memory(config: TrainConfig, spaces: Spaces, device: object) -> None:
    """Raise ValueError where the network and what is learned from, or a replay on the training device, would not fit
    there."""
    import torch

    from agents.replay import storage_device

    def free(on: torch.device) -> tuple[int, str]:
        if on.type == "cuda":
            return torch.cuda.mem_get_info(on)[0], "of the GPU's memory are free"
        return available_memory(), "of main memory are available"

    agent = config.agent
    if device.type == "cuda":
        check_sizes(config, spaces, False, *free(device))
    if not kind_of(agent).on_policy:
        stored_on = storage_device(agent.replay_device, device, spaces.replay_bytes(agent.buffer_size))
        _require_fits(agent, spaces, *free(stored_on))


def spaces_of(world: "VectorEnv") -> Spaces:
    """The shapes of a built world."""
    observation, action = world.single_observation_space, world.single_action_space
    discrete = hasattr(action, "n")
    return Spaces(
        observation.shape,
        observation.dtype,
        "discrete" if discrete else "continuous",
        int(action.n) if discrete else int(np.prod(action.shape)),
        None if discrete else action.low,
        None if discrete else action.high,
        world.frame_stack,
    )


def build(config: TrainConfig, threads: int = 0) -> "tuple[VectorEnv, Agent]":
    """The world and the agent of `config`, every random stream derived from its seed. `threads`: those of torch that a
    run which goes on had before."""
    from agents.randomness import Generators
    from envs import make_vec_from_config

    generators = Generators(config.run.seed)
    settings, seed = world_settings(config, generators), generators.integer("world") // 2
    world = make_vec_from_config(settings, seed, threads=config.run.threads)
    spaces = spaces_of(world)
    try:
        device = place(config.run.device, config.run.threads, products_of_a_batch(config, spaces), threads).device
        check_precision(config.run.precision, device.type == "cuda")
        require_device_memory(config, spaces, device)
    except ValueError:
        world.close()
        raise
    return world, agent_of(config, spaces, world.num_envs, generators, device)


def agent_of(
    config: TrainConfig,
    spaces: Spaces,
    num_envs: int,
    generators: "Generators",
    device: "torch.device",
) -> "Agent":
    """The agent of `config`, its interventions included."""
    from agents import build_agent

    chosen = {"interventions": config.interventions, "moments": config.surgery.moments}
    chosen["execution"] = config.run.execution
    agent = in_steps(config.agent, config.run.steps, config.world.task.period)
    return build_agent(agent, spaces, num_envs, generators, device, config.run.precision, **chosen)
