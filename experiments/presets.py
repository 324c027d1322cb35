"""The published protocols by name, as data. A preset sets defaults; every flag beside it still counts."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from agents.config import AdamConfig, AgentConfig, LearningRate, NetworkConfig, RewardConfig, SupportConfig, require
from agents.ppo_config import PPOConfig
from agents.schedule import CONSTANT, RUN, Over
from agents.spelling import did_you_mean
from agents.value_config import C51Config, DQNConfig, Epsilon
from envs.config import TaskConfig, WorldConfig
from experiments.config import TrainConfig


@dataclass(frozen=True)
class Preset:
    """One protocol: an agent's settings and its world's, but for the id."""

    agent: AgentConfig
    world: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the world that are not `WorldConfig`'s defaults."""
    worlds: str = ""
    """The family of worlds, or the one world, that it is for; empty: any."""
    usual: str = ""
    """The family of worlds in which it is what "auto" means."""


CLIP = RewardConfig("clip")
DOPAMINE_WORLD = {"sticky_actions": 0.25, "noop_max": 0, "fire_reset": False}
"""Sticky actions .25 in place of random no-ops (Machado et al. 2018); Dopamine presses no fire button itself."""

DQN_DOPAMINE = DQNConfig(
    learning_rate=LearningRate(6.25e-5),
    adam=AdamConfig(eps=1.5e-4),
    network=NetworkConfig(padding="same", initializer="xavier_uniform"),
    reward=CLIP,
    loss="mse",
)
"""Dopamine's JaxDQN on Atari: Adam 6.25e-5 / 1.5e-4, squared error, target every 8,000 steps, epsilon .01, padded
convolutions (7,744 inputs to the dense layer)."""

C51_DOPAMINE = C51Config(
    learning_rate=LearningRate(2.5e-4),
    adam=AdamConfig(eps=0.01 / 32),
    network=NetworkConfig(padding="same", initializer="dopamine_c51"),
    reward=CLIP,
)
"""Dopamine's C51 on Atari: 51 atoms on [-10, 10], Adam 2.5e-4 / 3.125e-4, otherwise as its DQN."""

PPO_CLEANRL_ATARI = PPOConfig(
    learning_rate=LearningRate(2.5e-4, over=RUN), reward=CLIP, clip_vloss=True, vf_coef=0.25, life_loss_discount=True
)
"""CleanRL's ppo_atari_envpool: 8 environments x 128 steps, 4 epochs x 4 minibatches, rate annealed over the run, a
lost life ends the future. (CleanRL also takes time limits as ends; here they bootstrap.)"""

PPO_CLEANRL_CONTINUOUS = PPOConfig(
    learning_rate=LearningRate(3e-4, over=RUN),
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
"""CleanRL's ppo_continuous_action: 1 environment x 2,048 steps, 10 epochs x 32 minibatches, tanh 64-64 apart, rewards
scaled. (CleanRL also takes time limits as ends and moves its observation statistics at every step; here time limits
bootstrap and the statistics move once a rollout. The returns that rewards are scaled by begin at 0 in every episode
here, and not in its NormalizeReward: agents/rewards.py.)"""

PPO_DOHARE24 = PPOConfig(
    learning_rate=LearningRate(1e-4),
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
"""Dohare24's standard PPO on Ant: 256-256 ReLU apart, LeCun uniform, constant Adam 1e-4, nothing clipped or normalised
but advantages (once a rollout), time limits terminal, 111 inputs of which 84 are 0."""
DOHARE24_ANT = {"ant_observation": "padded-111", "contact_cost_weight": 0.0, "healthy_reward_on_termination": True}
DOHARE24_FRICTION = {**DOHARE24_ANT, "task": TaskConfig(period=2_000_000)}
"""Their slippery Ant: the friction drawn anew, log-uniform on [.02, 2], at the first episode end after every multiple
of 2M steps (they ran 20M to 100M; their code counts 2M from the PREVIOUS change, and so drifts later by up to an
episode a task)."""

SCALED_DOWN = replace(
    PPO_DOHARE24,
    learning_rate=LearningRate(3e-4),
    rollout_steps=256,
    num_minibatches=8,
    normalize_observations=True,
    max_grad_norm=0.5,
    time_limit="bootstrap",
)
"""NOT Dohare24's protocol but one after it for small machines: 300,000 steps a friction, 8 environments x 256, Adam
3e-4, 8 minibatches, observations standardised, time limits bootstrapped; its loss of plasticity is not theirs."""

PPO_IMAGE = PPOConfig(
    network=NetworkConfig(width=512, depth=2, initializer="torch"), rollout_steps=64, clip_coef=0.2, ent_coef=0.01
)
"""ImageMDP-v0: MLP 512-512, 8 environments x 64 steps, constant rate. Ours, no published protocol."""

PPO_CLASSIC = PPOConfig(
    learning_rate=LearningRate(1e-3, over=RUN),
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
"""Small worlds such as CartPole-v1: 8 environments x 32 steps, 20 epochs of one minibatch, tanh 64-64 apart (close to
what RL Baselines3 Zoo tuned for CartPole)."""

CLASSIC_VALUE = {
    "learning_rate": LearningRate(1e-3),
    "network": NetworkConfig(width=128, depth=2, initializer="torch"),
    "buffer_size": 50_000,
    "batch_size": 64,
    "learning_starts": 1_000,
    "replay_ratio": 0.5,
    "target_period": 100,
    "n_step": 3,
    "epsilon": Epsilon(end=0.05, over=Over(8_000)),
}
"""Small worlds such as CartPole-v1: MLP 128-128, 3-step returns, batch 64; DQN double, C51 with 51 atoms on [0, 100]
(its values at gamma .99)."""

LYLE23_VALUE = {
    "learning_rate": LearningRate(3e-4),
    "network": NetworkConfig(width=512, depth=2, initializer="torch"),
    "support": SupportConfig(v_min=-5.0, v_max=105.0, num_atoms=221),
    "buffer_size": 20_000,
    "batch_size": 32,
    "learning_starts": 1_000,
    "replay_ratio": 1.0,
    "target_period": 1_000,
    "epsilon": Epsilon(0.1, 0.1, CONSTANT),
}
"""ImageMDP-v0 after Lyle23: two layers of 512, gamma .99, epsilon .1, target copies every 1,000 gradient steps; they
state neither replay, batch nor rate, which are ours. The optimum is 1 / (1 - gamma) = 100 with gaps of 1 between
actions: atoms half a unit apart, nothing clipped."""

EIGHT = {"num_envs": 8}
PRESETS: dict[str, dict[str, Preset]] = {
    "dqn": {
        "dopamine": Preset(DQN_DOPAMINE, DOPAMINE_WORLD, "atari", "atari"),
        "lyle23": Preset(DQNConfig(loss="mse", **LYLE23_VALUE), {}, "image_mdp", "image_mdp"),
        "classic": Preset(DQNConfig(double=True, **CLASSIC_VALUE)),
    },
    "c51": {
        "dopamine": Preset(C51_DOPAMINE, DOPAMINE_WORLD, "atari", "atari"),
        "lyle23": Preset(C51Config(**LYLE23_VALUE), {}, "image_mdp", "image_mdp"),
        "classic": Preset(C51Config(support=SupportConfig(v_min=0.0, v_max=100.0), **CLASSIC_VALUE)),
    },
    "ppo": {
        "cleanrl_atari": Preset(PPO_CLEANRL_ATARI, EIGHT, "atari", "atari"),
        "cleanrl_continuous": Preset(PPO_CLEANRL_CONTINUOUS, usual="mujoco"),
        "dohare24_ant": Preset(PPO_DOHARE24, DOHARE24_ANT, "Ant-v5"),
        "dohare24_friction_ant": Preset(PPO_DOHARE24, DOHARE24_FRICTION, "friction_ant", "friction_ant"),
        "dohare24_friction_ant_scaled_down": Preset(
            SCALED_DOWN, {**DOHARE24_ANT, **EIGHT, "task": TaskConfig(period=300_000)}, "friction_ant"
        ),
        "image": Preset(PPO_IMAGE, EIGHT, "image_mdp", "image_mdp"),
        "classic": Preset(PPO_CLASSIC, EIGHT),
    },
}
"""By agent and name."""


def usual_preset(algorithm: str, family: str, env: str) -> str:
    """What "auto" means for `env`: the protocol of that world, or else of its family; "classic" for the rest."""
    usual = {preset.usual: name for name, preset in PRESETS[algorithm].items() if preset.usual}
    return usual.get(env) or usual.get(family, "classic")


def preset_config(algorithm: str, name: str, family: str, env: str) -> TrainConfig:
    """The settings of preset `name`; "auto" takes the protocol usual for the world, whose name is kept. Raises
    ValueError for a preset that is not there, or not for this world."""
    known = [other for other, preset in PRESETS[algorithm].items() if preset.worlds in ("", family, env)]
    allowed = f"auto or one of {', '.join(known)} for {algorithm} in {env}{did_you_mean(name, known)}"
    require(name == "auto" or name in known, "preset", name, allowed)
    return unchecked(algorithm, usual_preset(algorithm, family, env) if name == "auto" else name, env)


def unchecked(algorithm: str, name: str, env: str) -> TrainConfig:
    """`preset_config` in a world that the preset need not be for: a file's settings may be another world's."""
    preset = PRESETS[algorithm][name]
    config = TrainConfig(preset.agent, WorldConfig(env=env, **preset.world))
    return replace(config, run=replace(config.run, preset=name))


def steady(config: TrainConfig) -> TrainConfig:
    """`config` with the schedules that its preset has where the world changes: nothing moves once over the run. Rates
    are constant, and epsilon falls anew over the first tenth of each task, or over its steps where these are fewer. A
    task alone (task.first, task.change) is learned as it would be among others."""
    agent, task = config.agent, config.world.task
    alone = config.run.steps if task.first or task.change != "auto" else 0
    length = task.period or alone
    if not length:
        return config
    changes: dict[str, Any] = {"learning_rate": replace(agent.learning_rate, over=CONSTANT)}
    epsilon = getattr(agent, "epsilon", None)
    if epsilon is not None and epsilon.once:
        few = 0 < epsilon.over.steps < length // 10
        over = f"{epsilon.over.steps}-steps-of-task" if few else "0.1-of-task"
        changes["epsilon"] = replace(epsilon, over=Over(over))
    return replace(config, agent=replace(agent, **changes))
