"""Stable-Baselines3 on our worlds: the adapter against the world itself, the settings against ours."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from stable_baselines3 import DQN, PPO

from agents.config import AdamConfig, LearningRate, NetworkConfig, RewardConfig
from agents.ppo_config import PPOConfig
from agents.schedule import Over
from agents.value_config import C51Config, DQNConfig, Epsilon
from envs import WorldConfig, make_vec
from experiments.config import RunConfig, TrainConfig
from experiments.logger import read_metrics
from experiments.sb3_baseline import make_sb3, train_sb3
from experiments.sb3_world import SB3World
from experiments.setup import build

WORLDS = {"ALE/Breakout-v5": 40, "Ant-v5": 30, "CartPole-v1": 15, "InvertedDoublePendulum-v5": 6}  # and time limits
SMALL = NetworkConfig(width=16, depth=2, activation="tanh", initializer="orthogonal")


def world_of(env, seed=3, num_envs=3):
    return make_vec(env, num_envs, seed, threads=1, max_episode_steps=WORLDS[env])


def actions_for(world, steps):
    world.action_space.seed(0)
    return [world.action_space.sample() for _ in range(steps)]


def config_of(agent, env="CartPole-v1", num_envs=2, steps=400, **world):
    run = RunConfig(steps=steps, threads=1, device="cpu", seed=4)
    return TrainConfig(agent=agent, world=WorldConfig(env=env, num_envs=num_envs, **world), run=run)


def small_ppo(**fields):
    return PPOConfig(**{"network": SMALL, "rollout_steps": 20, "num_minibatches": 4, "update_epochs": 2, **fields})


def small_dqn(**fields):
    small = {"network": SMALL, "buffer_size": 500, "batch_size": 8, "learning_starts": 40, "target_period": 10}
    return DQNConfig(**{**small, **fields})


@pytest.mark.parametrize("env", WORLDS)
def test_transitions_are_the_worlds(env):
    world, adapter = world_of(env), SB3World(world_of(env))
    observations, _ = world.reset()
    assert np.array_equal(adapter.reset(), observations)
    ended = 0
    for action in actions_for(world, 100):
        expected, rewards, terminated, truncated, infos = world.step(action)
        observations, learned, dones, rows = adapter.step(action)
        assert np.array_equal(observations, expected)
        assert np.array_equal(learned, rewards.astype(np.float32))
        assert learned.dtype == np.float32
        assert np.array_equal(dones, terminated | truncated)
        for i, row in enumerate(rows):
            assert ("terminal_observation" in row) == ("episode" in row) == dones[i]
            if dones[i]:
                ended += 1
                assert np.array_equal(row["terminal_observation"], infos["final_obs"][i])
                assert not np.array_equal(row["terminal_observation"], observations[i])
                assert row["TimeLimit.truncated"] == truncated[i]
                assert row["episode"] == {"r": infos["episode"]["r"][i], "l": infos["episode"]["l"][i]}
    assert ended >= 3
    world.close()
    adapter.close()


def test_clipping_is_for_learning_alone():
    env = "InvertedDoublePendulum-v5"  # about 9 a step
    plain, clipped = SB3World(world_of(env)), SB3World(world_of(env), clip_rewards=True)
    plain.reset()
    clipped.reset()
    for action in actions_for(plain.world, 20):
        _, rewards, dones, rows = plain.step(action)
        _, learned, _, learned_rows = clipped.step(action)
        assert np.array_equal(learned, rewards.clip(-1, 1))
        assert rewards.max() > 1
        assert [row.get("episode") for row in rows] == [row.get("episode") for row in learned_rows]
    assert dones.shape == (3,)


def test_time_limits_can_count_as_ends():
    adapter = SB3World(world_of("Ant-v5"), time_limits_end=True)
    adapter.reset()
    rows = [row for action in actions_for(adapter.world, 31) for row in adapter.step(action)[3]]
    assert any(row["episode"]["l"] == 30 for row in rows if row)
    assert not any(row["TimeLimit.truncated"] for row in rows if row)


def test_rewards_may_be_written_to():
    world, adapter = world_of("CartPole-v1"), SB3World(world_of("CartPole-v1"))
    world.reset()
    adapter.reset()
    for action in actions_for(world, 40):
        *_, infos = world.step(action)
        _, rewards, _, rows = adapter.step(action)
        rewards += 100.0  # as Stable-Baselines3 adds a bootstrapped value
        for i, row in enumerate(rows):
            assert not row or row["episode"]["r"] == infos["episode"]["r"][i]


def test_seed_is_used_at_the_next_reset_alone():
    adapter, world = SB3World(world_of("CartPole-v1")), world_of("CartPole-v1")
    adapter.reset()
    adapter.seed(11)
    assert np.array_equal(adapter.reset(), world.reset(seed=11)[0])
    assert np.array_equal(adapter.reset(), world.reset()[0])


def test_a_world_that_resets_later_is_refused():
    import gymnasium

    with pytest.raises(ValueError, match="autoreset mode is AutoresetMode.NEXT_STEP"):
        SB3World(gymnasium.make_vec("CartPole-v1", 2, vectorization_mode="sync"))


@pytest.mark.parametrize("env", ["CartPole-v1", "ALE/Breakout-v5"])
def test_both_start_in_the_same_place(env):
    config = config_of(small_ppo(network=NetworkConfig(width=16)), env)
    world, _ = build(config)
    model = make_sb3(config)
    assert np.array_equal(model.env.reset(), world.reset()[0])
    world.close()
    model.env.close()


NETWORKS = {
    "mlp, shared": ("CartPole-v1", small_ppo(shared_torso=True)),
    "mlp, apart": ("CartPole-v1", small_ppo(shared_torso=False)),
    "mlp, continuous": ("Ant-v5", small_ppo(shared_torso=False)),
    "mlp, no hidden layer": ("CartPole-v1", small_ppo(network=replace(SMALL, depth=0))),
    "cnn, shared": ("ALE/Breakout-v5", small_ppo(network=NetworkConfig(width=32))),
    "cnn, apart": ("ALE/Breakout-v5", small_ppo(network=NetworkConfig(width=32, depth=2), shared_torso=False)),
    "dqn, mlp": ("CartPole-v1", small_dqn()),
    "dqn, mlp of pixels": ("ImageMDP-v0", small_dqn()),
    "dqn, cnn": ("ALE/Breakout-v5", small_dqn(network=NetworkConfig(width=32, depth=2))),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_have_our_layers(name):
    env, agent = NETWORKS[name]
    config = config_of(agent, env)
    world, ours = build(config)
    model = make_sb3(config)
    theirs = model.policy if isinstance(model, PPO) else model.policy.q_net
    shapes = [sorted(tuple(p.shape) for p in network.parameters()) for network in (ours.network, theirs)]
    assert shapes[0] == shapes[1]
    if name.startswith("dqn"):  # whose layers lie in one order there and here
        for weight, other in zip(ours.network.parameters(), theirs.parameters(), strict=True):
            weight.data.copy_(other.data)
        observations = torch.from_numpy(world.reset()[0])
        torch.testing.assert_close(ours.network(observations), theirs(observations), rtol=1e-4, atol=1e-6)
    world.close()
    model.env.close()


def test_weights_follow_our_law():
    model = make_sb3(config_of(small_ppo(shared_torso=False), "Ant-v5"))
    for weight, gain in [
        (model.policy.mlp_extractor.policy_net[0].weight, 2**0.5),
        (model.policy.mlp_extractor.value_net[2].weight, 2**0.5),
        (model.policy.action_net.weight, 0.01),
        (model.policy.value_net.weight, 1.0),
    ]:
        gram = weight @ weight.T
        torch.testing.assert_close(gram, gain**2 * torch.eye(len(gram)), rtol=0, atol=1e-5)
    model = make_sb3(config_of(small_dqn(network=NetworkConfig(width=64, depth=1, initializer="lecun_uniform"))))
    first, bound = model.policy.q_net.q_net[0], (3 / 4) ** 0.5
    assert 0.95 * bound < first.weight.abs().max() <= bound
    assert first.bias.abs().max() == 0
    assert torch.equal(model.policy.q_net_target.q_net[0].weight, first.weight)
    model.env.close()


def test_ppo_settings():
    agent = small_ppo(
        learning_rate=LearningRate(1e-3, over="run"),
        adam=AdamConfig(betas=(0.8, 0.9), eps=1e-6),
        clip_vloss=True,
        clip_coef=0.3,
        vf_coef=0.7,
        ent_coef=0.02,
        gamma=0.9,
        gae_lambda=0.8,
        max_grad_norm=0.0,
        norm_adv="off",
    )
    model = make_sb3(config_of(agent, steps=160))
    assert (model.n_steps, model.batch_size, model.n_epochs) == (20, 10, 2)
    assert (model.gamma, model.gae_lambda, model.vf_coef, model.ent_coef) == (0.9, 0.8, 0.7, 0.02)
    assert model.clip_range(1.0) == model.clip_range_vf(1.0) == 0.3
    assert model.max_grad_norm == float("inf")
    assert not model.normalize_advantage
    group = model.policy.optimizer.param_groups[0]
    assert (group["betas"], group["eps"]) == ((0.8, 0.9), 1e-6)
    # 160 steps are 4 rollouts of 40: their rates by hand
    rates = []
    train = model.train
    model.train = lambda: (train(), rates.append(group["lr"]))
    model.learn(160)
    assert rates == pytest.approx([1e-3, 0.75e-3, 0.5e-3, 0.25e-3])
    model.env.close()


def test_normalisation_is_theirs():
    config = config_of(
        small_ppo(normalize_observations=True, reward=RewardConfig("scale"), gamma=0.9, shared_torso=False), "Ant-v5"
    )
    env = make_sb3(config).env
    assert (env.norm_obs, env.norm_reward, env.gamma) == (True, True, 0.9)
    assert (env.clip_obs, env.clip_reward) == (10.0, float("inf"))
    env.close()


def test_dqn_settings():
    agent = small_dqn(epsilon=Epsilon(0.9, 0.1, Over(100)), replay_ratio=0.25, n_step=3, tau=0.5)
    config = config_of(agent, num_envs=1, steps=140)
    world, ours = build(config)
    model = make_sb3(config)
    assert (model.train_freq.frequency, model.gradient_steps, model.target_update_interval) == (4, 1, 40)
    assert (model.n_steps, model.tau, model.buffer_size) == (3, 0.5, 140)
    for ours.clock.steps in (40, 65, 90, 139, 140):
        assert model.exploration_schedule(1 - ours.clock.steps / 140) == pytest.approx(ours.epsilon)
    model.learn(140)
    assert model._n_updates == 25  # (140 - 40) / 4, as ours
    world.close()
    model.env.close()


def test_dqn_with_several_environments():
    model = make_sb3(config_of(small_dqn(replay_ratio=0.375, target_period=12), num_envs=4))
    assert (model.train_freq.frequency, model.gradient_steps, model.target_update_interval) == (2, 3, 32)
    model.env.close()


REFUSED = [
    ("norm_adv", small_ppo(norm_adv="rollout")),
    ("value_loss", small_ppo(value_loss="hl_gauss")),
    ("life_loss_discount", small_ppo(life_loss_discount=True)),
    ("reward_transform", small_ppo(reward=RewardConfig("center"))),
    ("loss", small_dqn(loss="mse")),
    ("double", small_dqn(double=True)),
    ("life_loss_discount", small_dqn(life_loss_discount=True)),
    ("target_period", small_dqn(target_period=7, replay_ratio=0.4)),
    ("algorithm", C51Config()),
]


@pytest.mark.parametrize(("field", "agent"), REFUSED)
def test_what_they_cannot_do_is_refused(field, agent):
    with pytest.raises(ValueError, match=f"^{field} = "):
        make_sb3(config_of(agent))


def test_unclipped_actions_and_deep_shared_cnns_are_refused():
    with pytest.raises(ValueError, match="^clip_actions = "):
        make_sb3(config_of(small_ppo(clip_actions=False, shared_torso=False), "Ant-v5"))
    with pytest.raises(ValueError, match="^depth = 2"):
        make_sb3(config_of(small_ppo(network=NetworkConfig(depth=2)), "ALE/Breakout-v5"))


@pytest.mark.parametrize("agent", [small_ppo(), small_dqn()], ids=["ppo", "dqn"])
def test_a_run_on_cartpole_is_logged_and_repeatable(agent, tmp_path):
    logs = []
    for name in ("first", "second"):
        config = config_of(agent)
        model = train_sb3(config, tmp_path / name)
        assert model.num_timesteps == 400
        metrics = read_metrics(tmp_path / name / "metrics.jsonl")
        logs.append(metrics["charts/episodic_return"])
        assert metrics["charts/episodic_length"] == metrics["charts/episodic_return"]  # CartPole pays 1 a step
        assert metrics["charts/SPS"][0][-1] == 400
    assert len(logs[0][1]) > 5
    assert logs[0] == logs[1]


@pytest.mark.parametrize(("agent", "kind"), [(small_ppo(), PPO), (small_dqn(), DQN)], ids=["ppo", "dqn"])
def test_a_run_on_breakout_learns_something(agent, kind, tmp_path):
    agent = replace(agent, network=NetworkConfig(width=32), reward=RewardConfig("clip"))
    config = config_of(agent, "ALE/Breakout-v5", steps=80, max_episode_steps=15)
    before = make_sb3(config)
    before.env.close()
    model = train_sb3(config, tmp_path)
    assert isinstance(model, kind)
    moved = [not torch.equal(a, b) for a, b in zip(before.policy.parameters(), model.policy.parameters(), strict=True)]
    assert all(moved)
    metrics = read_metrics(tmp_path / "metrics.jsonl")
    assert metrics["charts/episodic_length"] == ([30, 60], [15.0, 15.0])  # of two games that end in one tick, the mean
    assert metrics["charts/episodes"] == ([30, 60], [2, 2])
