"""The published protocols by name. A preset sets defaults; every flag beside it still counts."""

from collections.abc import Callable
from dataclasses import replace

from agents.config import AdamConfig, AgentConfig, NetworkConfig, RewardConfig, SupportConfig, require
from agents.kinds import C51Config, DQNConfig, PPOConfig, kind_of
from agents.spelling import did_you_mean
from envs.config import TaskConfig, WorldConfig
from experiments.config import TrainConfig

CLIP = RewardConfig("clip")


def _dopamine_world(env: str) -> WorldConfig:
    """Sticky actions .25 in place of random no-ops (Machado et al. 2018); Dopamine presses no fire button itself."""
    return WorldConfig(env=env, sticky_actions=0.25, noop_max=0, fire_reset=False)


def dqn_dopamine(env: str, steps: int) -> TrainConfig:
    """Dopamine's JaxDQN on Atari: Adam 6.25e-5 / 1.5e-4, squared error, target every 8,000 steps, epsilon .01, padded
    convolutions (7,744 inputs to the dense layer)."""
    agent = DQNConfig(
        learning_rate=6.25e-5,
        adam=AdamConfig(eps=1.5e-4),
        network=NetworkConfig(padding="same", initializer="xavier_uniform"),
        reward=CLIP,
        loss="mse",
    )
    return TrainConfig(agent=agent, world=_dopamine_world(env))


def c51_dopamine(env: str, steps: int) -> TrainConfig:
    """Dopamine's C51 on Atari: 51 atoms on [-10, 10], Adam 2.5e-4 / 3.125e-4, otherwise as its DQN."""
    agent = C51Config(
        learning_rate=2.5e-4,
        adam=AdamConfig(eps=0.01 / 32),
        network=NetworkConfig(padding="same", initializer="dopamine_c51"),
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
    time limits bootstrap and the statistics move once a rollout. The returns that rewards are scaled by begin at 0 in
    every episode here, and not in its NormalizeReward: agents/rewards.py.)"""
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
        action_scaling="off",
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
        action_scaling="off",
        time_limit="terminal",
    )
    ant = {"ant_observation": "padded-111", "contact_cost_weight": 0.0, "healthy_reward_on_termination": True}
    return TrainConfig(agent=agent, world=WorldConfig(env=env, **ant))


DOHARE24_PERIOD = 2_000_000


def ppo_dohare24_friction_ant(env: str, steps: int) -> TrainConfig:
    """Dohare24's slippery Ant: dohare24_ant with the friction drawn anew, log-uniform on [.02, 2], at the first episode
    end after every multiple of 2M steps (they ran 20M to 100M; their code counts 2M from the PREVIOUS change, and so
    drifts later by up to an episode a task)."""
    stationary = ppo_dohare24_ant(env, steps)
    return replace(stationary, world=replace(stationary.world, task=TaskConfig(period=DOHARE24_PERIOD)))


def ppo_dohare24_friction_ant_scaled_down(env: str, steps: int) -> TrainConfig:
    """NOT Dohare24's protocol but one after it for small machines: 300,000 steps a friction, 8 environments x 256, Adam
    3e-4, 8 minibatches, observations standardised, time limits bootstrapped; its loss of plasticity is not theirs."""
    full = ppo_dohare24_friction_ant(env, steps)
    agent = replace(
        full.agent,
        learning_rate=3e-4,
        rollout_steps=256,
        num_minibatches=8,
        normalize_observations=True,
        max_grad_norm=0.5,
        time_limit="bootstrap",
    )
    return TrainConfig(agent=agent, world=replace(full.world, num_envs=8, task=TaskConfig(period=300_000)))


def ppo_image(env: str, steps: int) -> TrainConfig:
    """ImageMDP-v0: MLP 512-512, 8 environments x 64 steps, constant rate. Ours, no published protocol."""
    agent = PPOConfig(
        network=NetworkConfig(width=512, depth=2, initializer="torch"), rollout_steps=64, clip_coef=0.2, ent_coef=0.01
    )
    return TrainConfig(agent=agent, world=WorldConfig(env=env, num_envs=8))


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


LYLE23_VALUE = {
    "network": NetworkConfig(width=512, depth=2, initializer="torch"),
    "buffer_size": 20_000,
    "batch_size": 32,
    "learning_starts": 1_000,
    "replay_ratio": 1.0,
    "target_period": 1_000,
    "end_e": 0.1,
    "exploration_steps": 0,
}
"""Lyle23's MLP of two layers of 512, gamma .99, epsilon-greedy, target copies every 1,000 gradient steps; they state
neither replay, batch nor rate, which are ours."""
IMAGE_SUPPORT = SupportConfig(v_min=-5.0, v_max=105.0, num_atoms=221)
"""The optimum is 1 / (1 - gamma) = 100 with gaps of 1 between actions: atoms half a unit apart, nothing clipped."""


def dqn_lyle23(env: str, steps: int) -> TrainConfig:
    """ImageMDP-v0 after Lyle23: MLP 512-512, squared error, epsilon .1."""
    agent = DQNConfig(learning_rate=3e-4, loss="mse", support=IMAGE_SUPPORT, **LYLE23_VALUE)
    return TrainConfig(agent=agent, world=WorldConfig(env=env))


def c51_lyle23(env: str, steps: int) -> TrainConfig:
    """ImageMDP-v0: as dqn's, 221 atoms on [-5, 105]."""
    return TrainConfig(
        agent=C51Config(learning_rate=3e-4, support=IMAGE_SUPPORT, **LYLE23_VALUE), world=WorldConfig(env=env)
    )


Preset = Callable[[str, int], TrainConfig]
PRESETS: dict[str, dict[str, Preset]] = {
    "dqn": {"dopamine": dqn_dopamine, "lyle23": dqn_lyle23, "classic": dqn_classic},
    "c51": {"dopamine": c51_dopamine, "lyle23": c51_lyle23, "classic": c51_classic},
    "ppo": {
        "cleanrl_atari": ppo_cleanrl_atari,
        "cleanrl_continuous": ppo_cleanrl_continuous,
        "dohare24_ant": ppo_dohare24_ant,
        "dohare24_friction_ant": ppo_dohare24_friction_ant,
        "dohare24_friction_ant_scaled_down": ppo_dohare24_friction_ant_scaled_down,
        "image": ppo_image,
        "classic": ppo_classic,
    },
}
FOR_FAMILY = {
    "dqn": {"atari": "dopamine", "image_mdp": "lyle23"},
    "c51": {"atari": "dopamine", "image_mdp": "lyle23"},
    "ppo": {
        "atari": "cleanrl_atari",
        "mujoco": "cleanrl_continuous",
        "image_mdp": "image",
        "friction_ant": "dohare24_friction_ant",
    },
}
"""What "auto" means by family of worlds; "classic" for the rest."""

NEEDS = {
    "dopamine": "atari",
    "cleanrl_atari": "atari",
    "lyle23": "image_mdp",
    "image": "image_mdp",
    "dohare24_ant": "Ant-v5",
    "dohare24_friction_ant": "friction_ant",
    "dohare24_friction_ant_scaled_down": "friction_ant",
}
"""The family of worlds, or the one world, that a preset is for."""


def usual_preset(algorithm: str, family: str, env: str) -> str:
    """What "auto" means for `env`."""
    return FOR_FAMILY[algorithm].get(family, "classic")


def preset_config(algorithm: str, name: str, family: str, env: str, steps: int, period: int = 0) -> TrainConfig:
    """The settings of preset `name`; "auto" takes the protocol usual for the world, whose name is kept. With tasks of
    `period` steps nothing is annealed over the run: rates are constant, and epsilon falls anew over the first tenth of
    each task. Raises ValueError for a preset that is not there, or not for this world."""
    known = [preset for preset in PRESETS[algorithm] if NEEDS.get(preset, family) in (family, env)]
    allowed = f"auto or one of {', '.join(known)} for {algorithm} in {env}{did_you_mean(name, known)}"
    require(name == "auto" or name in known, "preset", name, allowed)
    return unchecked(algorithm, usual_preset(algorithm, family, env) if name == "auto" else name, env, steps, period)


def unchecked(algorithm: str, name: str, env: str, steps: int, period: int = 0) -> TrainConfig:
    """`preset_config` in a world that the preset need not be for: a file's settings may be another world's."""
    config = PRESETS[algorithm][name](env, steps)
    agent = _steady(config.agent, period) if period > 0 else config.agent
    return replace(config, agent=agent, run=replace(config.run, steps=steps, preset=name))


def _steady(agent: AgentConfig, period: int) -> AgentConfig:
    if kind_of(agent).on_policy:
        return replace(agent, anneal_steps=0)
    if not agent.exploration_steps:
        return agent
    return replace(agent, anneal_per_task=True, exploration_steps=min(agent.exploration_steps, max(1, period // 10)))
