"""The published protocols by name. A preset sets defaults; every flag beside it still counts."""

from collections.abc import Callable
from dataclasses import replace

from agents.config import (
    AdamConfig,
    C51Config,
    DQNConfig,
    NetworkConfig,
    PPOConfig,
    RewardConfig,
    SupportConfig,
    require,
)
from envs.config import WorldConfig
from experiments.config import TrainConfig

CLIP = RewardConfig("clip")


def _dopamine_world(env: str) -> WorldConfig:
    """Sticky actions .25 in place of random no-ops (Machado et al. 2018); Dopamine presses no fire button itself."""
    return WorldConfig(env=env, sticky_actions=0.25, noop_max=0, fire_reset=False)


def dqn_dopamine(env: str, steps: int) -> TrainConfig:
    """Dopamine's JaxDQN on Atari: Adam 6.25e-5 / 1.5e-4, squared error, target every 8,000 steps, epsilon .01."""
    agent = DQNConfig(
        learning_rate=6.25e-5,
        adam=AdamConfig(eps=1.5e-4),
        network=NetworkConfig(initializer="xavier_uniform"),
        reward=CLIP,
        loss="mse",
    )
    return TrainConfig(agent=agent, world=_dopamine_world(env))


def c51_dopamine(env: str, steps: int) -> TrainConfig:
    """Dopamine's C51 on Atari: 51 atoms on [-10, 10], Adam 2.5e-4 / 3.125e-4, otherwise as its DQN."""
    agent = C51Config(
        learning_rate=2.5e-4,
        adam=AdamConfig(eps=0.01 / 32),
        network=NetworkConfig(initializer="dopamine_c51"),
        reward=CLIP,
    )
    return TrainConfig(agent=agent, world=_dopamine_world(env))


def ppo_cleanrl_atari(env: str, steps: int) -> TrainConfig:
    """CleanRL's ppo_atari_envpool: 8 environments x 128 steps, 4 epochs x 4 minibatches, rate annealed over the run, a
    lost life ends the future. (CleanRL also takes time limits as ends; here they bootstrap.)"""
    agent = PPOConfig(anneal_steps=steps, reward=CLIP, clip_vloss=True, vf_coef=0.25, life_loss_discount=True)
    return TrainConfig(agent=agent, world=WorldConfig(env=env, num_envs=8))


def ppo_cleanrl_continuous(env: str, steps: int) -> TrainConfig:
    """CleanRL's ppo_continuous_action: 1 environment x 2,048 steps, 10 epochs x 32 minibatches, tanh 64-64 apart,
    rewards scaled. (CleanRL also takes time limits as ends and moves its observation statistics at every step; here
    time limits bootstrap and the statistics move once a rollout.)"""
    agent = PPOConfig(
        learning_rate=3e-4,
        anneal_steps=steps,
        network=NetworkConfig(width=64, depth=2, activation="tanh", initializer="orthogonal"),
        reward=RewardConfig("scale"),
        shared_torso=False,
        normalize_observations=True,
        rollout_steps=2048,
        num_minibatches=32,
        update_epochs=10,
        clip_coef=0.2,
        clip_vloss=True,
        vf_coef=0.25,
        ent_coef=0.0,
    )
    return TrainConfig(agent=agent, world=WorldConfig(env=env))


def ppo_dohare24_ant(env: str, steps: int) -> TrainConfig:
    """Dohare24's standard PPO on Ant: 256-256 ReLU apart, LeCun uniform, constant Adam 1e-4, nothing clipped or
    normalised but advantages (once a rollout), time limits terminal, 111 inputs of which 84 are 0."""
    agent = PPOConfig(
        learning_rate=1e-4,
        adam=AdamConfig(betas=(0.9, 0.999), eps=1e-8),
        network=NetworkConfig(width=256, depth=2, activation="relu", initializer="lecun_uniform"),
        shared_torso=False,
        rollout_steps=2048,
        num_minibatches=16,
        update_epochs=10,
        clip_coef=0.2,
        norm_adv="rollout",
        vf_coef=1.0,
        ent_coef=0.0,
        max_grad_norm=0.0,
        clip_actions=False,
        time_limit="terminal",
    )
    ant = {"ant_observation": "padded-111", "contact_cost_weight": 0.0, "healthy_reward_on_termination": True}
    return TrainConfig(agent=agent, world=WorldConfig(env=env, **ant))


def ppo_classic(env: str, steps: int) -> TrainConfig:
    """Small worlds such as CartPole-v1: 8 environments x 32 steps, 20 epochs of one minibatch, tanh 64-64 apart (close
    to what RL Baselines3 Zoo tuned for CartPole)."""
    agent = PPOConfig(
        learning_rate=1e-3,
        anneal_steps=steps,
        network=NetworkConfig(width=64, depth=2, activation="tanh", initializer="orthogonal"),
        shared_torso=False,
        rollout_steps=32,
        num_minibatches=1,
        update_epochs=20,
        gamma=0.98,
        gae_lambda=0.8,
        clip_coef=0.2,
        ent_coef=0.0,
    )
    return TrainConfig(agent=agent, world=WorldConfig(env=env, num_envs=8))


CLASSIC_VALUE = {
    "network": NetworkConfig(width=128, depth=2, initializer="torch"),
    "buffer_size": 50_000,
    "batch_size": 64,
    "learning_starts": 1_000,
    "replay_ratio": 0.5,
    "target_period": 100,
    "n_step": 3,
    "end_e": 0.05,
    "exploration_steps": 8_000,
}


def dqn_classic(env: str, steps: int) -> TrainConfig:
    """Small worlds such as CartPole-v1: MLP 128-128, double Q-learning, 3-step returns, batch 64."""
    return TrainConfig(agent=DQNConfig(learning_rate=1e-3, double=True, **CLASSIC_VALUE), world=WorldConfig(env=env))


def c51_classic(env: str, steps: int) -> TrainConfig:
    """Small worlds such as CartPole-v1: as dqn's but not double, 51 atoms on [0, 100] (its values at gamma .99)."""
    agent = C51Config(learning_rate=1e-3, support=SupportConfig(v_min=0.0, v_max=100.0), **CLASSIC_VALUE)
    return TrainConfig(agent=agent, world=WorldConfig(env=env))


Preset = Callable[[str, int], TrainConfig]
PRESETS: dict[str, dict[str, Preset]] = {
    "dqn": {"dopamine": dqn_dopamine, "classic": dqn_classic},
    "c51": {"dopamine": c51_dopamine, "classic": c51_classic},
    "ppo": {
        "cleanrl_atari": ppo_cleanrl_atari,
        "cleanrl_continuous": ppo_cleanrl_continuous,
        "dohare24_ant": ppo_dohare24_ant,
        "classic": ppo_classic,
    },
}
FOR_FAMILY = {
    "dqn": {"atari": "dopamine"},
    "c51": {"atari": "dopamine"},
    "ppo": {"atari": "cleanrl_atari", "mujoco": "cleanrl_continuous"},
}

NEEDS = {"dopamine": "atari", "cleanrl_atari": "atari", "dohare24_ant": "Ant-v5"}  # a family of worlds, or one world


def preset_config(algorithm: str, name: str, family: str, env: str, steps: int) -> TrainConfig:
    """The settings of preset `name`; "auto" takes the protocol usual for the world's family (atari, mujoco, other)."""
    known = [preset for preset in PRESETS[algorithm] if NEEDS.get(preset, family) in (family, env)]
    allowed = f"auto or one of {', '.join(known)} for {algorithm} in {env}"
    require(name == "auto" or name in known, "preset", name, allowed)
    chosen = FOR_FAMILY[algorithm].get(family, "classic") if name == "auto" else name
    config = PRESETS[algorithm][chosen](env, steps)
    return replace(config, run=replace(config.run, steps=steps))
