"""Our settings in Stable-Baselines3's words, and a refusal by name where it has none."""

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import torch
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, create_mlp
from torch import nn

from agents.actions import scaled_dimensions
from agents.checks import uses_convolutions, uses_nature_cnn
from agents.config import require
from agents.kinds import kind_of
from agents.networks import ACTIVATIONS
from agents.schedule import in_steps
from agents.transitions import Spaces
from experiments.config import TrainConfig
from experiments.setup import available_memory

OFF = float("inf")  # a gradient norm or a reward that is never reached


class DenseTorso(BaseFeaturesExtractor):
    """Dense layers that policy and value share; Stable-Baselines3's own networks split before the first one."""

    def __init__(self, observation_space: Any, width: int, depth: int, activation: type[nn.Module]) -> None:
        inputs = math.prod(observation_space.shape)
        super().__init__(observation_space, width if depth else inputs)
        self.layers = nn.Sequential(nn.Flatten(), *create_mlp(inputs, 0, [width] * depth, activation))

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        return self.layers(observations)


def _refuse_common(config: TrainConfig, spaces: Spaces) -> None:
    network = config.agent.network
    name, allowed = config.agent_name, "ppo or dqn, which Stable-Baselines3 has too"
    require(name in ("ppo", "dqn"), "algorithm", name, allowed)
    allowed = "none for this baseline; agents.interventions.sb3.InterventionCallback takes them to its models"
    require(not config.interventions, "interventions", [one.name for one in config.interventions], allowed)
    require(config.run.precision == "fp32", "precision", config.run.precision, "fp32 for Stable-Baselines3")
    require(not config.run.wandb, "wandb", True, "off for Stable-Baselines3")
    if uses_nature_cnn(network, spaces):
        require(network.activation == "relu", "activation", network.activation, "relu in Stable-Baselines3's NatureCNN")
        require(network.padding == "valid", "padding", network.padding, "valid in Stable-Baselines3's NatureCNN")
        require(network.depth >= 1, "depth", network.depth, ">= 1 in Stable-Baselines3's NatureCNN")
    elif spaces.is_image:
        allowed = "nature_cnn, or an mlp on images of 1, 3 or 4 channels, for uint8 observations in Stable-Baselines3"
        flat = not uses_convolutions(network, spaces) and spaces.observation_shape[0] in (1, 3, 4)
        require(flat, "torso", network.torso, allowed)


def _policy_settings(config: TrainConfig, spaces: Spaces) -> tuple[str, dict[str, Any]]:
    """(policy's name, policy_kwargs) for a torso as ours; Adam's constants included."""
    agent, network = config.agent, config.agent.network
    ppo, cnn = kind_of(agent).on_policy, uses_nature_cnn(network, spaces)
    own_layers = [network.width] * (network.depth - 1 if cnn else network.depth)
    settings = {
        "activation_fn": ACTIVATIONS[network.activation],
        "optimizer_kwargs": {"betas": agent.adam.betas, "eps": agent.adam.eps},
        "net_arch": {"pi": own_layers, "vf": own_layers} if ppo else own_layers,
    }
    if cnn:
        settings["features_extractor_kwargs"] = {"features_dim": network.width}
    if ppo:
        settings["ortho_init"] = False  # `_redraw` follows
        settings["share_features_extractor"] = agent.shared_torso or not cnn
        if agent.shared_torso and not cnn:
            torso = {"width": network.width, "depth": network.depth, "activation": ACTIVATIONS[network.activation]}
            settings |= {"features_extractor_class": DenseTorso, "features_extractor_kwargs": torso, "net_arch": []}
    return "CnnPolicy" if cnn else "MlpPolicy", settings


def following(config: TrainConfig, name: str, ago: int = 0, begins: int = 0) -> Callable[[float], float]:
    """The schedule `name` of our agent, as it was `ago` steps before, as a function of the share of steps left: what
    Stable-Baselines3 tells, of PPO AFTER a rollout, where ours goes by its beginning."""
    run, period = config.run.steps, config.world.task.period
    schedule = getattr(in_steps(config.agent, run, period), name)

    def value(remaining: float) -> float:
        steps = round((1.0 - remaining) * run)
        began = steps // period * period if period else 0
        return schedule.value(schedule.since(steps - ago, began, begins))

    return value


def _refuse_ppo(config: TrainConfig, spaces: Spaces) -> None:
    agent = config.agent
    _refuse_common(config, spaces)
    require(agent.norm_adv != "rollout", "norm_adv", agent.norm_adv, "minibatch or off for Stable-Baselines3")
    allowed = "off for Stable-Baselines3 in this world (it has no zero discount within an episode)"
    require(not agent.life_loss_discount, "life_loss_discount", True, allowed)
    require(agent.value_loss == "mse", "value_loss", agent.value_loss, "mse for Stable-Baselines3")
    discrete = spaces.actions == "discrete"
    require(agent.clip_actions or discrete, "clip_actions", False, "on: Stable-Baselines3 always clips")
    if not discrete:
        scaled = scaled_dimensions(spaces.action_low, spaces.action_high, agent.action_scaling).any()
        require(not scaled, "action_scaling", agent.action_scaling, "off: Stable-Baselines3 draws in the world's units")
    transform = agent.reward.reward_transform
    require(transform != "center", "reward_transform", transform, "none, clip or scale for Stable-Baselines3")
    split = not (uses_nature_cnn(agent.network, spaces) and agent.shared_torso)
    allowed = "1 with a shared torso: Stable-Baselines3 splits policy and value after NatureCNN's one dense layer"
    require(split or agent.network.depth == 1, "depth", agent.network.depth, allowed)


def ppo_settings(config: TrainConfig, spaces: Spaces) -> dict[str, Any]:
    """Arguments of `stable_baselines3.PPO` for a PPO run of ours. ValueError names what it cannot do."""
    _refuse_ppo(config, spaces)
    agent = config.agent
    batch = agent.rollout_steps * config.world.num_envs

    policy, policy_kwargs = _policy_settings(config, spaces)
    return {
        "policy": policy,
        "policy_kwargs": policy_kwargs,
        "learning_rate": following(config, "learning_rate", batch),
        "n_steps": agent.rollout_steps,
        "batch_size": batch // agent.num_minibatches,
        "n_epochs": agent.update_epochs,
        "gamma": agent.gamma,
        "gae_lambda": agent.gae_lambda,
        "clip_range": agent.clip_coef,
        "clip_range_vf": agent.clip_coef if agent.clip_vloss else None,
        "normalize_advantage": agent.norm_adv == "minibatch",
        "ent_coef": agent.ent_coef,
        "vf_coef": agent.vf_coef,  # neither has a factor 1/2 in the squared error
        "max_grad_norm": agent.max_grad_norm or OFF,
    }


def _refuse_dqn(config: TrainConfig, spaces: Spaces) -> None:
    agent = config.agent
    _refuse_common(config, spaces)
    require(agent.loss == "huber", "loss", agent.loss, "huber for Stable-Baselines3")
    require(not agent.double, "double", True, "off: Stable-Baselines3's DQN has no double Q-learning")
    require(not agent.life_loss_discount, "life_loss_discount", True, "off for Stable-Baselines3")
    transform = agent.reward.reward_transform
    require(transform in ("none", "clip"), "reward_transform", transform, "none or clip for Stable-Baselines3")


def _buffer_size(config: TrainConfig, spaces: Spaces) -> int:
    """Our buffer, cut to the run's steps, which changes nothing but the memory asked for."""
    num_envs = config.world.num_envs
    size = min(config.agent.buffer_size, math.ceil(config.run.steps / num_envs) * num_envs)
    itemsize = 1 if spaces.is_image else 4
    needed, available = 2 * size * math.prod(spaces.observation_shape) * itemsize, available_memory()
    sentence = f"smaller: Stable-Baselines3 keeps {needed / 1e9:.1f} GB and {available / 1e9:.1f} GB are available"
    require(needed < available, "buffer_size", size, sentence)
    return size


def dqn_settings(config: TrainConfig, spaces: Spaces) -> dict[str, Any]:
    """Arguments of `stable_baselines3.DQN` for a DQN run of ours. ValueError names what it cannot do."""
    _refuse_dqn(config, spaces)
    agent, num_envs = config.agent, config.world.num_envs
    ratio = Fraction(agent.replay_ratio).limit_denominator(10_000)
    per_tick = ratio * num_envs  # gradient steps per step of all environments together
    interval = agent.target_period / ratio
    whole = interval.denominator == 1 and interval % num_envs == 0
    allowed = f"a whole number of ticks of {num_envs} environments between copies, not {float(interval):g} steps"
    require(whole, "target_period", agent.target_period, allowed)
    policy, policy_kwargs = _policy_settings(config, spaces)
    return {
        "policy": policy,
        "policy_kwargs": policy_kwargs,
        "learning_rate": following(config, "learning_rate"),
        "buffer_size": _buffer_size(config, spaces),
        "learning_starts": agent.learning_starts,
        "batch_size": agent.batch_size,
        "tau": agent.tau,
        "gamma": agent.gamma,
        "n_steps": agent.n_step,
        "train_freq": per_tick.denominator,
        "gradient_steps": per_tick.numerator,
        "target_update_interval": int(interval),
        "max_grad_norm": agent.max_grad_norm or OFF,
    }
