"""Stable-Baselines3's PPO and DQN with the settings of one of our runs, on the same world from the same seed.

`python -m experiments.sb3_baseline ppo --env Ant-v5 --steps 1000000` takes the flags of train.py.

What differs however the settings are chosen. PPO's clipped value loss (`clip_vloss`): the clipped one alone there, the
larger of clipped and unclipped here. Observation statistics: they move at every step there, once a rollout here. PPO's
last rollout is finished there. DQN copies its target every so many steps counted from 0 there, from the first gradient
step here, and explores in all environments at once or in none there.
"""

import math
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import stable_baselines3
import torch
from rich.console import Console
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import VecEnv, VecNormalize
from torch import nn

from agents.initializers import initialize
from agents.kinds import kind_of
from agents.precision import set_precision
from agents.randomness import Generators
from agents.transitions import Spaces
from envs import describe, make_vec_from_config
from experiments.cli import fail, parse_train
from experiments.command import as_command
from experiments.config import TrainConfig
from experiments.logger import Logger
from experiments.machine import place, placement_in_words
from experiments.places import PlaceError, quoted
from experiments.progress import ProgressLine
from experiments.run import Episode, Tick
from experiments.run_directory import RunDirectory, write_json
from experiments.sb3_settings import OFF, dqn_settings, following, ppo_settings
from experiments.sb3_world import SB3World
from experiments.setup import check, spaces_from, spaces_of, world_settings
from experiments.sizes import products_of_a_batch


def _redraw(model: PPO | DQN, initializer: str, generator: torch.Generator) -> None:
    """Draw every weight by our law, heads with our gains."""
    policy = model.policy
    if isinstance(model, PPO):
        network, gains = policy, {policy.action_net: 0.01, policy.value_net: 1.0}
    else:
        network, gains = policy.q_net, {policy.q_net.q_net[-1]: 1.0}
    for layer in network.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            initialize(layer, initializer, generator, gains.get(layer, math.sqrt(2.0)))
    if isinstance(model, DQN):
        policy.q_net_target.load_state_dict(policy.q_net.state_dict())


def _sb3_world(config: TrainConfig, generators: Generators) -> tuple[VecEnv, Spaces]:
    """The world of `config` as Stable-Baselines3 takes it, rewards and observations transformed as ours would be."""
    agent = config.agent
    seed = generators.integer("world") // 2
    uncut = replace(world_settings(config, generators), world_segment=0)  # nothing resumes it
    world = make_vec_from_config(uncut, seed, threads=config.run.threads)
    transform, ppo = agent.reward.reward_transform, kind_of(agent).on_policy
    ends = ppo and agent.time_limit == "terminal"
    adapted: VecEnv = SB3World(world, clip_rewards=transform == "clip", time_limits_end=ends)
    normalize = ppo and agent.normalize_observations
    if normalize or (ppo and transform == "scale"):
        clip = {"clip_obs": 10.0, "clip_reward": OFF}
        scale = transform == "scale"
        adapted = VecNormalize(adapted, norm_obs=normalize, norm_reward=scale, gamma=agent.gamma, **clip)
    return adapted, spaces_of(world)


def make_sb3(config: TrainConfig) -> PPO | DQN:
    """Stable-Baselines3's agent in the world of `config` (`.env`), settings and initial law of the weights as ours.

    Raises ValueError naming the setting that it cannot follow.
    """
    generators = Generators(config.run.seed)
    # Stable-Baselines3 draws from the global generators; the world keeps its own seed, the one that ours has.
    set_random_seed(generators.integer("sb3"))
    env, spaces = _sb3_world(config, generators)
    try:
        device = place(config.run.device, config.run.threads, products_of_a_batch(config, spaces)).device
        set_precision(config.run.precision, device)
        if kind_of(config.agent).on_policy:
            model: PPO | DQN = PPO(env=env, device=device, **ppo_settings(config, spaces))
        else:
            model = DQN(env=env, device=device, **dqn_settings(config, spaces))
            # before learning_starts all actions are random anyway
            model.exploration_schedule = following(config, "epsilon", begins=config.agent.learning_starts)
    except ValueError:
        env.close()
        raise
    model.action_space.seed(generators.integer("exploration"))
    _redraw(model, config.agent.network.initializer, generators.torch("init"))
    return model


class _Watch(BaseCallback):
    """Hands Stable-Baselines3's episodes to our logger and progress line."""

    def __init__(self, log: Logger, progress: ProgressLine) -> None:
        super().__init__()
        self.log, self.progress = log, progress

    def _on_step(self) -> bool:
        ended = [(i, info["episode"]) for i, info in enumerate(self.locals["infos"]) if "episode" in info]
        episodes = tuple(Episode(i, episode["r"], episode["l"]) for i, episode in ended)
        self.log.notice(Tick(self.num_timesteps, episodes))
        self.progress.tick(self.num_timesteps)
        return True


def train_sb3(config: TrainConfig, directory: Path, console: Console | None = None) -> PPO | DQN:
    """Train Stable-Baselines3's PPO or DQN as `config` says and return it, its world closed.

    Writes into `directory` (made if missing) metrics.jsonl and TensorBoard events with our tags, and sb3.json, which
    says whose run it is. Raises ValueError, before anything is written, naming a setting that it cannot follow.
    """
    model = make_sb3(config)
    _learn(model, config, directory, console)
    return model


def _learn(model: PPO | DQN, config: TrainConfig, directory: Path, console: Console | None = None) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    whose = {"implementation": "stable-baselines3", "version": stable_baselines3.__version__}
    write_json(directory / "sb3.json", whose)
    optimizer = model.policy.optimizer
    scalars = {"charts/learning_rate": lambda: optimizer.param_groups[0]["lr"]}
    if isinstance(model, DQN):
        scalars["charts/epsilon"] = lambda: model.exploration_rate
    log = Logger(
        directory,
        config.log_every,
        None,
        lambda: {name: value() for name, value in scalars.items()},
    )
    try:
        with ProgressLine(config.run.steps, [log], console) as progress:
            model.learn(config.run.steps, callback=_Watch(log, progress))
        log.flush(model.num_timesteps)
    finally:
        log.close()
        model.env.close()


def main(arguments: list[str]) -> int:
    """Parse train.py's flags, train, keep the weights as checkpoints/sb3.zip of a run directory named sb3_..."""
    config = parse_train(arguments, "python -m experiments.sb3_baseline")
    try:
        config = replace(config, run=replace(config.run, name=config.run.name and f"sb3_{config.run.name}"))
        check(config)
        model = make_sb3(config)
    except ValueError as error:
        fail(str(error))
    try:
        directory = RunDirectory(config, prefix="" if config.run.name else "sb3_")
    except PlaceError as error:
        fail(str(error))
    products = products_of_a_batch(config, spaces_from(describe(config.world)))
    placement = placement_in_words(config.run.device, config.run.threads, products, model.device)
    directory.write_manifest(model.device, placement)
    print(f"on {placement}")
    _learn(model, config, directory.path)
    model.save(directory.checkpoints / "sb3.zip")
    print(f"curves:    tensorboard --logdir {quoted(directory.path.parent)}")
    return 0


if __name__ == "__main__":
    sys.exit(as_command(partial(main, sys.argv[1:])))
