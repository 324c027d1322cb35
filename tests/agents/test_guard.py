"""Nothing that is not finite reaches the weights: at once on a CPU, latched and flushed on a device."""

import numpy as np
import pytest
import torch
from torch import nn

from agents.config import AdamConfig, C51Config, DQNConfig, PPOConfig
from agents.guard import NonFiniteError, require_finite
from agents.optimization import Optimization
from tests.agents.helpers import CONTINUOUS, SMALL, VECTOR, NoiseWorld, build, drive, needs_cuda, same_tree, snapshot

NAN, INF = float("nan"), float("inf")


def model(device="cpu"):
    network = nn.Linear(3, 2).to(device)
    with torch.no_grad():
        network.weight.copy_(torch.arange(6.0).view(2, 3) / 10)
        network.bias.zero_()
    return network


def latch(optimization):
    """Make the guard of an optimization on a CPU behave as on a device: the flag goes to fused Adam's found_inf."""
    guard = optimization.guard
    guard.immediate = False
    optimization.adam.found_inf, optimization.adam.grad_scale = guard.found, None
    return optimization


def prepared(network, latching, max_norm=0.5):
    """An optimization after two good steps, so that Adam's moments exist."""
    optimization = Optimization(network.parameters(), 0.1, AdamConfig(), max_norm)
    if latching:
        latch(optimization)
    for _ in range(2):
        optimization.step(good_loss(network))
    return optimization


def good_loss(network):
    return network(torch.ones(4, 3, device=network.weight.device)).square().mean()


def loss_of_kind(network, kind):
    if kind == "loss":
        return good_loss(network) * NAN
    # sqrt at 0 has a finite value and an infinite slope: loss finite, gradient not (0 * inf = NaN)
    return (network.weight.sum() * 0.0).abs().sqrt()


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_require_finite_names_array_environment_and_step(value):
    rewards = np.zeros((4, 2))
    rewards[2, 1] = value
    with pytest.raises(NonFiniteError, match=r"reward .*environment 2.*step 17"):
        require_finite(17, observation=np.ones((4, 3)), reward=rewards)


def test_require_finite_lets_integers_and_finite_numbers_pass():
    require_finite(0, observation=np.full((2, 3), 255, np.uint8), reward=np.array([1e300, -1.0]))


@pytest.mark.parametrize("max_norm", [0.0, 0.5])
@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_on_a_cpu_the_step_raises_and_changes_nothing(kind, max_norm):
    network = model()
    optimization = prepared(network, latching=False, max_norm=max_norm)
    weights, moments = snapshot(network), snapshot(optimization.adam)
    with pytest.raises(NonFiniteError, match=rf"{kind} is not finite at gradient step 3"):
        optimization.step(loss_of_kind(network, kind))
    assert same_tree(snapshot(network), weights) and same_tree(snapshot(optimization.adam), moments)


def check_latching(network, kind, max_norm):
    optimization = prepared(network, latching=network.weight.device.type == "cpu", max_norm=max_norm)
    optimization.guard.flush()  # nothing to report yet
    weights, moments = snapshot(network), snapshot(optimization.adam)
    optimization.step(loss_of_kind(network, kind))
    assert same_tree(snapshot(network), weights) and same_tree(snapshot(optimization.adam), moments)
    optimization.step(good_loss(network))  # later steps must not go on as if nothing had been
    optimization.step(loss_of_kind(network, "loss"))  # a later culprit must not replace the first
    assert same_tree(snapshot(network), weights) and same_tree(snapshot(optimization.adam), moments)
    for _ in range(2):  # and the flag stays up
        with pytest.raises(NonFiniteError, match=rf"{kind} is not finite at gradient step 3"):
            optimization.guard.flush()


@pytest.mark.parametrize("max_norm", [0.0, 0.5])
@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_latching_leaves_everything_untouched_until_the_flush_names_the_first(kind, max_norm):
    check_latching(model(), kind, max_norm)


@needs_cuda
@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_latching_on_cuda(kind):
    check_latching(model("cuda"), kind, 0.5)


def test_latching_steps_are_the_immediate_ones_where_all_is_finite():
    first, second = model(), model()
    prepared(first, latching=False)
    prepared(second, latching=True)
    assert same_tree(snapshot(first), snapshot(second))


# -- agents ----------------------------------------------------------------------------------------------------------

VALUE = {"network": SMALL, "buffer_size": 500, "learning_starts": 10, "batch_size": 8, "replay_ratio": 1.0}
AGENTS = {
    "huber": (DQNConfig(**VALUE), VECTOR),
    "mse": (DQNConfig(loss="mse", **VALUE), VECTOR),
    "two_hot": (DQNConfig(loss="two_hot", **VALUE), VECTOR),
    "hl_gauss": (DQNConfig(loss="hl_gauss", **VALUE), VECTOR),
    "c51": (C51Config(**VALUE), VECTOR),
    "ppo": (PPOConfig(network=SMALL, rollout_steps=8), CONTINUOUS),
}


def trained(name, ticks=20, **changes):
    config, spaces = AGENTS[name]
    config = type(config)(**{**vars(config), **changes})
    world = NoiseWorld(spaces, 2)
    return drive(build(config, spaces), world, ticks), world


@pytest.mark.parametrize("name", ["huber", "ppo"])
@pytest.mark.parametrize(
    ("field", "message"), [("rewards", "reward"), ("observations", "observation"), ("final_observations", "final_obs")]
)
def test_observe_refuses_what_is_not_finite_and_stores_nothing(name, field, message):
    agent, world = trained(name)
    memory = len(agent.replay) if name == "huber" else agent.rollout.row
    weights, steps = snapshot(agent), agent.steps
    transitions = world.step(agent.act(world.observations))
    transitions = transitions._replace(truncated=np.array([False, True]), terminated=np.array([False, False]))
    transitions = transitions._replace(final_observations=np.zeros_like(transitions.observations))
    getattr(transitions, field)[1] = NAN
    with pytest.raises(NonFiniteError, match=rf"{message}.*environment.*step {steps}"):
        agent.observe(transitions)
    assert (len(agent.replay) if name == "huber" else agent.rollout.row) == memory
    assert same_tree(snapshot(agent), weights)


def test_a_final_observation_that_means_nothing_is_not_checked():
    agent, world = trained("huber")
    transitions = world.step(agent.act(world.observations))
    final = np.full_like(transitions.observations, NAN)
    final[1] = 0.0
    ends = np.array([False, True])
    agent.observe(transitions._replace(terminated=ends, truncated=~ends & ends, final_observations=final))


@pytest.mark.parametrize("name", ["huber", "mse", "two_hot", "hl_gauss", "c51"])
def test_a_target_network_that_overflows_stops_the_run_by_name(name):
    agent, _ = trained(name)
    with torch.no_grad():
        agent.target_network.head.bias.fill_(NAN)
    weights, moments = snapshot(agent.network), snapshot(agent.optimization.adam)
    with pytest.raises(NonFiniteError, match="(loss|target).* is not finite"):
        agent.update()
    assert same_tree(snapshot(agent.network), weights) and same_tree(snapshot(agent.optimization.adam), moments)


def test_a_ppo_update_on_an_infinite_value_stops_by_name():
    agent, world = trained("ppo", ticks=8)
    drive(agent, world, 8, learn=False)
    agent.rollout.values[3] = INF
    weights, moments = snapshot(agent.network), snapshot(agent.optimization.adam)
    with pytest.raises(NonFiniteError, match="loss is not finite"):
        agent.update()
    assert same_tree(snapshot(agent.network), weights) and same_tree(snapshot(agent.optimization.adam), moments)


@pytest.mark.parametrize("latching", [False, True])
def test_the_target_is_not_synchronised_by_a_refused_step(latching):
    agent, _ = trained("huber", target_period=1_000_000)
    if latching:
        latch(agent.optimization)
    agent.config = DQNConfig(**{**vars(agent.config), "target_period": agent.optimization.gradient_steps + 1})
    sample = agent.replay.sample
    agent.replay.sample = lambda size: sample(size)._replace(rewards=torch.full((size,), NAN))
    before = snapshot(agent.target_network)
    assert not same_tree(before, snapshot(agent.network))
    if latching:
        agent.update()
        with pytest.raises(NonFiniteError):
            agent.optimization.guard.flush()
    else:
        with pytest.raises(NonFiniteError):
            agent.update()
    assert same_tree(snapshot(agent.target_network), before)
