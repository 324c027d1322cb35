"""Agents as wholes: repeatable, without side effects, restorable, and acting as their papers say."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from agents.config import LearningRate, NetworkConfig, RewardConfig
from agents.interventions.reset import Reset
from agents.ppo_config import PPOConfig
from agents.randomness import Generators
from agents.schedule import Over
from agents.value_config import C51Config, DQNConfig, Epsilon
from tests.agents.helpers import (
    BOUND,
    CONTINUOUS,
    SMALL,
    SMALL_IMAGE,
    STACK,
    VECTOR,
    NoiseWorld,
    build,
    drive,
    global_random_states,
    gradient_step,
    needs_cuda,
    same_tree,
    snapshot,
)

VALUE = {
    "network": SMALL,
    "buffer_size": 400,
    "learning_starts": 20,
    "batch_size": 8,
    "epsilon": Epsilon(over=Over(100)),
}
ORTHOGONAL = NetworkConfig(width=16, depth=2, initializer="orthogonal")
ON_POLICY = {"network": ORTHOGONAL, "rollout_steps": 16}
AGENTS = {
    "dqn": (DQNConfig(**VALUE, double=True, reward=RewardConfig("scale")), VECTOR),
    "dqn on frames": (DQNConfig(**VALUE, n_step=3), STACK),
    "hl_gauss": (DQNConfig(**VALUE, loss="hl_gauss"), VECTOR),
    "c51": (C51Config(**VALUE), VECTOR),
    "ppo": (PPOConfig(**ON_POLICY, update_epochs=2), VECTOR),
    "ppo on images": (PPOConfig(**ON_POLICY, update_epochs=1), SMALL_IMAGE),
    "continuous ppo": (
        PPOConfig(**ON_POLICY, update_epochs=2, shared_torso=False, normalize_observations=True),
        CONTINUOUS,
    ),
}
VALUE_AGENTS = ("dqn", "dqn on frames", "hl_gauss", "c51")


def trained(name, seed=0, ticks=40):
    config, spaces = AGENTS[name]
    return drive(build(config, spaces, seed=seed), NoiseWorld(spaces, 2), ticks)


def observations(spaces, rows=64):
    return NoiseWorld(spaces, rows, seed=99).observations


# -- randomness ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", AGENTS)
def test_the_seed_decides_everything(name):
    first, second, other = trained(name), trained(name), trained(name, seed=1)
    assert first.clock.gradient_steps > 5
    assert same_tree(snapshot(first), snapshot(second))
    assert not same_tree(snapshot(first.network), snapshot(other.network))


@pytest.mark.parametrize("name", AGENTS)
def test_the_global_generators_are_never_touched(name):
    before = global_random_states()
    trained(name)
    assert global_random_states() == before


@pytest.mark.parametrize("name", AGENTS)
def test_playing_changes_nothing_in_the_agent(name):
    spaces, agents = AGENTS[name][1], [trained(name), trained(name)]
    state = snapshot(agents[0])
    for greedy in (True, False):
        agents[0].player(greedy, Generators(5))(observations(spaces))
    assert same_tree(snapshot(agents[0]), state)
    first, second = (drive(agent, NoiseWorld(spaces, 2, seed=3), 20) for agent in agents)
    assert same_tree(snapshot(first), snapshot(second))


@pytest.mark.parametrize("name", AGENTS)
def test_equal_players_play_the_same(name):
    agent, spaces = trained(name), AGENTS[name][1]
    first, second = (agent.player(False, Generators(5))(observations(spaces)) for _ in range(2))
    np.testing.assert_array_equal(first, second)


# -- state -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", AGENTS)
def test_state_restores_the_greedy_policy_and_the_next_step(name):
    (config, spaces), agent = AGENTS[name], trained(name)
    other = build(config, spaces, seed=7)
    other.load_state_dict(snapshot(agent))
    assert same_tree(snapshot(other), snapshot(agent))
    inputs = observations(spaces)
    plays = [a.player(True, Generators(0))(inputs) for a in (agent, other)]
    np.testing.assert_array_equal(*plays)
    for a in (agent, other):  # the same gradient moves both the same way: Adam's moments and step are there
        outputs = a.network(torch.from_numpy(inputs))
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        gradient_step(a.learner.optimization, sum(output.square().mean() for output in outputs))
    assert same_tree(snapshot(other), snapshot(agent))


@pytest.mark.parametrize("name", VALUE_AGENTS)
def test_a_restored_value_agent_takes_the_same_update(name):
    (config, spaces), agent = AGENTS[name], trained(name)
    other = build(config, spaces, seed=7)
    other.load_state_dict(snapshot(agent))
    batch = agent.replay.sample(config.batch_size)
    for a in (agent, other):
        a.replay.sample = lambda size: batch
        a.update()
    assert same_tree(snapshot(other), snapshot(agent))


@pytest.mark.parametrize("name", AGENTS)
def test_state_loads_with_weights_only(name, tmp_path):
    state = trained(name).state_dict()
    torch.save(state, tmp_path / "state.pt")
    assert same_tree(torch.load(tmp_path / "state.pt", weights_only=True), state)


# -- value agents ----------------------------------------------------------------------------------------------------


def test_epsilon_by_hand():
    config = DQNConfig(network=SMALL, learning_starts=10, epsilon=Epsilon(0.8, 0.2, Over(20)))
    agent, found = build(config), {}
    for steps in (0, 9, 10, 15, 20, 30, 1000):
        agent.clock.steps = steps
        found[steps] = agent.epsilon
    # 1 before step 10, then .8 falling by .03 a step to .2 at step 30
    assert found == pytest.approx({0: 1.0, 9: 1.0, 10: 0.8, 15: 0.65, 20: 0.5, 30: 0.2, 1000: 0.2})


def test_a_constant_epsilon():
    agent = build(DQNConfig(network=SMALL, learning_starts=10, epsilon=Epsilon(0.05, over="constant")))
    agent.clock.steps = 10
    assert agent.epsilon == pytest.approx(0.05)


@pytest.mark.parametrize("name", VALUE_AGENTS)
def test_a_value_agent_s_learning_rate_is_annealed_by_hand(name):
    config, spaces = AGENTS[name]
    agent, world = (
        build(replace(config, learning_rate=LearningRate(4e-4, 2e-4, Over(200))), spaces),
        NoiseWorld(spaces, 2),
    )
    rates = {}
    while agent.clock.steps < 240:
        agent.observe(world.step(agent.act(world.observations)))
        while agent.update_due():
            agent.update()
            rates[agent.clock.steps] = agent.learner.learning_rate
    # by 1e-6 a step to 2e-4 at step 200
    assert rates[40] == pytest.approx(3.6e-4) and rates[120] == pytest.approx(2.8e-4)
    assert rates[200] == rates[240] == pytest.approx(2e-4)


@pytest.mark.parametrize("name", VALUE_AGENTS)
def test_exploration_is_epsilon_greedy(name):
    agent, spaces = trained(name), AGENTS[name][1]
    agent.clock.steps = 20 + 50
    epsilon = 1.0 - 0.99 * 0.5  # half way from 1 to .01
    inputs = observations(spaces, 4000)
    greedy = agent.player(True, Generators(0))(inputs)
    share = (agent.act(inputs) == greedy).mean()
    # greedy, or one of three at random; the std over 4,000 draws is below .008
    assert share == pytest.approx(1 - epsilon + epsilon / 3, abs=0.04)


def test_before_learning_starts_actions_are_uniform():
    agent = build(DQNConfig(**VALUE))
    counts = np.bincount(agent.act(observations(VECTOR, 3000)), minlength=3)
    assert stats.chisquare(counts).pvalue > 1e-4


@pytest.mark.parametrize("name", VALUE_AGENTS)
def test_greedy_actions_maximise_the_expected_return(name):
    agent, spaces = trained(name), AGENTS[name][1]
    inputs = observations(spaces)
    with torch.no_grad():
        outputs = agent.network(torch.from_numpy(inputs)).double().numpy()
    if outputs.ndim == 3:
        p = np.exp(outputs) / np.exp(outputs).sum(-1, keepdims=True)
        outputs = (p * np.linspace(-10, 10, 51)).sum(-1)
    np.testing.assert_array_equal(agent.player(True, Generators(0))(inputs), outputs.argmax(1))


@pytest.mark.parametrize("num_envs", [1, 3, 8])
@pytest.mark.parametrize("ratio", [0.25, 1.0, 2.5])
def test_updates_follow_the_replay_ratio(ratio, num_envs):
    config = DQNConfig(network=NetworkConfig(width=4), buffer_size=500, learning_starts=24, batch_size=8)
    config = DQNConfig(**{**vars(config), "replay_ratio": ratio})
    agent, world = build(config, VECTOR, num_envs), NoiseWorld(VECTOR, num_envs)
    while agent.clock.steps < 72:
        drive(agent, world, 1)
        # one gradient step for each 1 / ratio steps after the 24th, whatever the number of environments
        assert agent.clock.gradient_steps == int(max(agent.clock.steps - 24, 0) * ratio)


def test_no_update_before_the_replay_holds_more_than_a_batch():
    agent = build(DQNConfig(network=SMALL, buffer_size=100, learning_starts=0, batch_size=32, replay_ratio=1.0))
    world = NoiseWorld(VECTOR, 2, terminates=0.0, truncates=0.0)
    drive(agent, world, 16)  # 32 slots
    assert agent.clock.gradient_steps == 0
    drive(agent, world, 1)
    assert agent.clock.gradient_steps == 34


def test_learning_can_start_as_soon_as_something_is_stored():
    # three steps are summed but a batch is one transition: the first update must wait for the third step, not fail
    config = DQNConfig(network=SMALL, buffer_size=100, learning_starts=0, batch_size=1, n_step=3, replay_ratio=1.0)
    agent = drive(build(config, VECTOR, 1), NoiseWorld(VECTOR, 1, terminates=0.0, truncates=0.0), 10)
    assert agent.clock.gradient_steps == 10


def test_the_target_network_stands_still_between_copies():
    agent = build(DQNConfig(**{**VALUE, "target_period": 5, "replay_ratio": 1.0}))
    drive(agent, NoiseWorld(VECTOR, 2), 20, learn=False)
    held = snapshot(agent.learner.target)
    for update in range(1, 16):
        agent.update()
        if update % 5 == 0:
            held = snapshot(agent.network)
        assert same_tree(snapshot(agent.learner.target), held)
    assert all(not p.requires_grad for p in agent.learner.target.parameters())


def test_metrics_of_a_value_agent_by_hand():
    agent = trained("dqn")
    batch = agent.replay.sample(8)
    agent.replay.sample = lambda size: batch
    with torch.no_grad():
        chosen = agent.network(batch.next_observations).argmax(1)
        following = agent.learner.target(batch.next_observations).gather(1, chosen[:, None])[:, 0]
        targets = (batch.rewards + batch.discounts * following).double().numpy()
        q = agent.network(batch.observations).gather(1, batch.actions[:, None])[:, 0].double().numpy()
    metrics = {name: value.item() for name, value in agent.update().items()}
    error = np.abs(q - targets)
    huber = np.where(error < 1, error**2 / 2, error - 0.5)
    expected = {
        "losses/td_loss": huber.mean(),
        "losses/q_values": q.mean(),
        "losses/td_error": error.mean(),
        "targets/mean": targets.mean(),
        "targets/std": targets.std(),
    }
    assert {name: metrics[name] for name in expected} == pytest.approx(expected, rel=1e-4, abs=1e-5)


# -- PPO -------------------------------------------------------------------------------------------------------------


def fill_rollout(agent, world):
    returned = []
    while not agent.update_due():
        returned.append(agent.act(world.observations))
        agent.observe(world.step(returned[-1]))
    return np.stack(returned)


def test_actions_are_clipped_for_the_world_and_learned_from_unclipped():
    agent = build(PPOConfig(**ON_POLICY), CONTINUOUS)
    returned = fill_rollout(agent, NoiseWorld(CONTINUOUS, 2))
    drawn = agent.rollout.actions.numpy()
    assert (np.abs(drawn) > BOUND).any()  # the case occurs: the draws have a std of 1
    assert (np.abs(returned) <= BOUND).all()
    np.testing.assert_array_equal(returned, np.clip(drawn, -BOUND, BOUND))
    agent.appraise()
    with torch.no_grad():
        mean = agent.network(agent.rollout.observations.flatten(0, 1))[0].double().numpy()
    expected = stats.norm(mean, 1.0).logpdf(drawn.reshape(-1, 2)).sum(-1)
    np.testing.assert_allclose(agent.rollout.log_probs.flatten().numpy(), expected, atol=1e-4)


@pytest.mark.parametrize("spaces", [VECTOR, CONTINUOUS, SMALL_IMAGE])
@pytest.mark.parametrize("shared", [True, False])
def test_a_rollout_is_appraised_by_the_network_that_acted(spaces, shared):
    """Whatever a task change does to it: values and log probabilities, one state at a time, of a copy made before."""
    config = PPOConfig(**ON_POLICY, shared_torso=shared, normalize_observations=spaces is CONTINUOUS)
    resets = Reset(last=2, when="at task changes")
    agent, world, expected = build(config, spaces, interventions=[resets]), NoiseWorld(spaces, 2), []
    drive(agent, world, 16)
    before = agent.network.value_head.weight.clone()
    for tick in range(12):
        if tick == 7:
            agent.on_task_change()
        with torch.no_grad():
            policy, values = copy.deepcopy(agent.network)(torch.from_numpy(world.observations))
        drive(agent, world, 1)
        taken = agent.rollout.actions[tick]
        if spaces is CONTINUOUS:
            std = agent.network.log_std.detach().exp().numpy()
            log_probs = stats.norm(policy.numpy(), std).logpdf(taken.numpy()).sum(-1)
        else:
            log_probs = policy.log_softmax(-1)[torch.arange(2), taken].numpy()
        expected.append((log_probs, values.numpy()))
    agent.appraise()
    assert not torch.equal(agent.network.value_head.weight, before)
    for row, (log_probs, values) in enumerate(expected):
        np.testing.assert_allclose(agent.rollout.log_probs[row].numpy(), log_probs, atol=1e-5)
        np.testing.assert_allclose(agent.rollout.values[row].numpy(), values, atol=1e-5)


def test_actions_pass_as_they_are_without_clipping():
    agent = build(PPOConfig(**ON_POLICY, clip_actions=False), CONTINUOUS)
    returned = fill_rollout(agent, NoiseWorld(CONTINUOUS, 2))
    np.testing.assert_array_equal(returned, agent.rollout.actions.numpy())
    assert (np.abs(returned) > BOUND).any()


def test_discrete_actions_are_drawn_from_the_softmax():
    agent = build(PPOConfig(**ON_POLICY), VECTOR, num_envs=8000)
    with torch.no_grad():
        agent.network.policy_head.bias.copy_(torch.tensor([0.0, np.log(2.0), np.log(5.0)]))
        agent.network.policy_head.weight.zero_()
    counts = np.bincount(agent.act(observations(VECTOR, 8000)), minlength=3)
    assert stats.chisquare(counts, [1000, 2000, 5000]).pvalue > 1e-4


def test_continuous_actions_are_drawn_from_the_gaussian():
    agent = build(PPOConfig(**ON_POLICY, clip_actions=False), CONTINUOUS, num_envs=4000)
    with torch.no_grad():
        agent.network.policy_head.bias.copy_(torch.tensor([1.0, -2.0]))
        agent.network.policy_head.weight.zero_()
        agent.network.log_std.copy_(torch.tensor([0.5, 2.0]).log())
    actions = agent.act(observations(CONTINUOUS, 4000))
    assert stats.kstest(actions[:, 0], stats.norm(1.0, 0.5).cdf).pvalue > 1e-4
    assert stats.kstest(actions[:, 1], stats.norm(-2.0, 2.0).cdf).pvalue > 1e-4
    assert abs(np.corrcoef(actions.T)[0, 1]) < 5 / np.sqrt(4000)


def test_the_greedy_player_takes_the_mode():
    for spaces in (VECTOR, CONTINUOUS):
        agent, inputs = build(PPOConfig(**ON_POLICY), spaces), observations(spaces)
        with torch.no_grad():
            policy = agent.network(torch.from_numpy(inputs))[0].numpy()
        mode = np.clip(policy, -BOUND, BOUND) if spaces is CONTINUOUS else policy.argmax(1)
        np.testing.assert_array_equal(agent.player(True, Generators(0))(inputs), mode)


def test_ppo_updates_once_a_rollout_with_epochs_times_minibatches_steps():
    agent = drive(build(PPOConfig(**ON_POLICY, update_epochs=3, num_minibatches=4), VECTOR), NoiseWorld(VECTOR, 2), 35)
    assert agent.clock.gradient_steps == 2 * 3 * 4  # rollouts end at ticks 16 and 32
    assert agent.clock.steps == 70 and agent.rollout.row == 3


def test_the_learning_rate_is_annealed_by_hand():
    # 32 steps a rollout, 128 in all: the four rollouts learn at 4/4, 3/4, 2/4 and 1/4, and at 0 from then on
    config = PPOConfig(**ON_POLICY, learning_rate=LearningRate(0.004, over=Over(128)))
    agent, world, rates = build(config, VECTOR), NoiseWorld(VECTOR, 2), []
    for _ in range(6):
        fill_rollout(agent, world)
        agent.update()
        rates.append(agent.learner.optimization.adam.param_groups[0]["lr"])
    assert rates == pytest.approx([0.004, 0.003, 0.002, 0.001, 0.0, 0.0])


def test_the_normalizer_learns_from_the_rollout_after_its_update():
    agent, world = build(PPOConfig(**ON_POLICY, normalize_observations=True), CONTINUOUS), NoiseWorld(CONTINUOUS, 2)
    fill_rollout(agent, world)
    assert agent.network.normalizer.count.item() == 0
    seen = agent.rollout.observations.flatten(0, 1).double().numpy()
    agent.update()
    np.testing.assert_allclose(agent.network.normalizer.mean.numpy(), seen.mean(0), atol=1e-5)
    np.testing.assert_allclose(agent.network.normalizer.variance.numpy(), seen.var(0), rtol=1e-4)


def test_ppo_metrics_are_finite_where_returns_are_constant():
    # zero rewards and a zero value: explained variance is 0/0, and must not stand in the log as NaN or infinity
    agent, world = build(PPOConfig(**ON_POLICY), VECTOR), NoiseWorld(VECTOR, 2)
    with torch.no_grad():
        agent.network.value_head.weight.zero_()
    while not agent.update_due():
        transitions = world.step(agent.act(world.observations))
        agent.observe(transitions._replace(rewards=np.zeros(2)))
    metrics = agent.update()
    assert {name for name, value in metrics.items() if not torch.isfinite(value)} <= {"losses/explained_variance"}
    assert not torch.isinf(metrics["losses/explained_variance"])


# -- on a device -----------------------------------------------------------------------------------------------------


@needs_cuda
@pytest.mark.parametrize("storage", ["host", "device"])
@pytest.mark.parametrize("name", VALUE_AGENTS)
def test_value_agents_on_cuda_stay_close_to_the_cpu(name, storage):
    config, spaces = AGENTS[name]
    config = type(config)(**{**vars(config), "replay_device": storage})
    # every generator of a value agent is NumPy's or the CPU's, so both meet the same samples; actions are random
    config = type(config)(**{**vars(config), "epsilon": Epsilon(1.0, 1.0)})
    cpu, cuda = (
        drive(build(config, spaces, device=torch.device(device)), NoiseWorld(spaces, 2), 60)
        for device in ("cpu", "cuda")
    )
    cuda.learner.optimization.guard.flush()
    for ours, theirs in zip(cuda.network.parameters(), cpu.network.parameters(), strict=True):
        torch.testing.assert_close(ours.cpu(), theirs, atol=1e-4, rtol=0)


@needs_cuda
@pytest.mark.parametrize("name", ["ppo", "ppo on images", "continuous ppo"])
def test_a_ppo_update_on_cuda_stays_close_to_the_cpu(name):
    config, spaces = AGENTS[name]
    config = type(config)(**{**vars(config), "num_minibatches": 1})  # so that the order of the rows does not matter
    cpu, cuda = (build(config, spaces, device=torch.device(device)) for device in ("cpu", "cuda"))
    fill_rollout(cpu, NoiseWorld(spaces, 2))
    for field, value in vars(copy.deepcopy(cpu.rollout)).items():
        setattr(cuda.rollout, field, value.cuda() if isinstance(value, torch.Tensor) else value)
    cuda._next_observations, cuda.clock.steps = cpu._next_observations, cpu.clock.steps
    for agent in (cpu, cuda):
        agent.update()
    cuda.learner.optimization.guard.flush()
    for ours, theirs in zip(cuda.network.parameters(), cpu.network.parameters(), strict=True):
        torch.testing.assert_close(ours.cpu(), theirs, atol=1e-4, rtol=0)
