"""Nothing that is not finite reaches the weights: at once on a CPU, latched and flushed on a device."""

import numpy as np
import pytest
import torch
from torch import nn

from agents.config import AdamConfig, RewardConfig
from agents.guard import NonFiniteError, Watch, as_float32, require_finite
from agents.interventions import BatchNorm, L2Init, PopArt
from agents.networks import ObservationNormalizer
from agents.optimization import Optimization
from agents.ppo_config import PPOConfig
from agents.randomness import Generators
from agents.value_config import C51Config, DQNConfig
from tests.agents.helpers import (
    CONTINUOUS,
    CPU,
    SMALL,
    VECTOR,
    NoiseWorld,
    build,
    drive,
    gradient_step,
    needs_cuda,
    same_tree,
    snapshot,
)

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
        gradient_step(optimization, good_loss(network))
    return optimization


def step(optimization, *losses):
    """A gradient step on each of `losses`, and what the next flush has to say."""
    for loss in losses:
        gradient_step(optimization, loss)
    optimization.flush()


def update(agent):
    agent.update()
    agent.learner.optimization.flush()


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


def test_float64_beyond_float32_is_infinite_for_a_network():
    assert np.isinf(as_float32(np.array([1e300, -1e39, 1.0]))).tolist() == [True, True, False]
    assert as_float32(np.array([1e300, 7.0])).dtype == np.float32
    assert as_float32(np.array([255], np.uint8)).dtype == np.uint8


@pytest.mark.parametrize("max_norm", [0.0, 0.5])
@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_on_a_cpu_the_step_raises_and_changes_nothing(kind, max_norm):
    network = model()
    optimization = prepared(network, latching=False, max_norm=max_norm)
    weights, moments = snapshot(network), snapshot(optimization.adam)
    with pytest.raises(NonFiniteError, match=rf"{kind} is not finite at gradient step 3"):
        gradient_step(optimization, loss_of_kind(network, kind))
    assert same_tree(snapshot(network), weights) and same_tree(snapshot(optimization.adam), moments)


def check_latching(network, kind, max_norm):
    optimization = prepared(network, latching=network.weight.device.type == "cpu", max_norm=max_norm)
    optimization.guard.flush()  # nothing to report yet
    weights, moments = snapshot(network), snapshot(optimization.adam)
    gradient_step(optimization, loss_of_kind(network, kind))
    assert same_tree(snapshot(network), weights) and same_tree(snapshot(optimization.adam), moments)
    gradient_step(optimization, good_loss(network))  # later steps must not go on as if nothing had been
    gradient_step(optimization, loss_of_kind(network, "loss"))  # a later culprit must not replace the first
    assert same_tree(snapshot(network), weights) and same_tree(snapshot(optimization.adam), moments)
    for _ in range(2):  # and the flag stays up
        with pytest.raises(NonFiniteError, match=rf"{kind} is not finite at gradient step 3"):
            optimization.guard.flush()


@pytest.mark.parametrize("max_norm", [0.0, 0.5])
@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_latching_leaves_everything_untouched_until_the_flush_names_the_first(kind, max_norm):
    check_latching(model(), kind, max_norm)


@pytest.mark.parametrize("latching", [False, True])
def test_the_gradient_that_is_not_finite_is_named_by_its_parameter(latching):
    network = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2), nn.Linear(2, 1))
    optimization = Optimization(network.parameters(), 0.1, AdamConfig(), 0.5, network)
    optimization = latch(optimization) if latching else optimization
    gradient_step(optimization, network(torch.ones(1, 3)).sum())
    with pytest.raises(NonFiniteError, match=r"gradient is not finite at gradient step 2 \(that of 1\.bias\)"):
        step(optimization, network(torch.ones(1, 3)).sum() + (network[1].bias * 0.0).abs().sqrt().sum())


@pytest.mark.parametrize("latching", [False, True])
def test_gradients_whose_squares_overflow_together_are_refused(latching):
    # each norm is 3e38, below float32's 3.4e38; of the two together it is 4.2e38
    network = nn.ModuleList([nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)]).requires_grad_()
    optimization = Optimization(network.parameters(), 0.1, AdamConfig(), 0.0, network)
    optimization = latch(optimization) if latching else optimization
    with torch.no_grad():
        for layer in network:
            layer.weight.fill_(1e-38)
    with pytest.raises(NonFiniteError, match="gradient is not finite at gradient step 1 .*norm over all"):
        step(optimization, sum(3e38 * layer.weight.sum() for layer in network))
    assert [layer.weight.item() for layer in network] == [pytest.approx(1e-38)] * 2


@pytest.mark.parametrize("latching", [False, True])
def test_a_refused_step_is_not_counted(latching):
    network = model()
    optimization = prepared(network, latching)
    with pytest.raises(NonFiniteError):
        step(optimization, good_loss(network) * NAN, good_loss(network))
    assert optimization.clock.gradient_steps == 2


def test_the_latch_names_the_parameter_though_others_learn_later():
    network = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    optimization = latch(Optimization(network.parameters(), 0.1, AdamConfig(), 0.0, network))
    gradient_step(optimization, network(torch.ones(1, 3)).sum() + (network[1].weight * 0.0).abs().sqrt().sum())
    network[0].requires_grad_(False)
    gradient_step(optimization, network(torch.ones(1, 3)).sum())
    with pytest.raises(NonFiniteError, match=r"step 1 \(that of 1\.weight\)"):
        optimization.flush()


@pytest.mark.parametrize("latching", [False, True])
def test_what_is_held_is_put_back(latching):
    network, moved = model(), [torch.tensor([1.0, NAN]), torch.tensor(7)]
    optimization = prepared(network, latching)
    optimization.guard.hold([moved[0], moved[1], moved[0]])
    optimization.guard.begin()
    moved[0].fill_(5.0), moved[1].fill_(8)
    gradient_step(optimization, good_loss(network))
    assert moved[0].tolist() == [5.0, 5.0] and moved[1] == 8  # a good step keeps them
    optimization.guard.begin()
    moved[0].fill_(INF), moved[1].fill_(9)
    optimization.guard.begin()  # within the same step: nothing new
    with pytest.raises(NonFiniteError):
        step(optimization, good_loss(network) * INF)
    assert moved[0].tolist() == [5.0, 5.0] and moved[1] == 8


@needs_cuda
@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_latching_on_cuda(kind):
    check_latching(model("cuda"), kind, 0.5)


@needs_cuda
def test_no_step_on_cuda_waits_for_the_device():
    network = model("cuda")
    optimization = prepared(network, latching=False)
    optimization.guard.hold([torch.zeros(3, device="cuda")])
    inputs = torch.ones(4, 3, device="cuda")
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for factor in (1.0, NAN, 1.0):
            optimization.guard.begin()
            loss = network(inputs).square().mean() * factor
            gradient_step(optimization, loss, target=loss.detach())
    finally:
        torch.cuda.set_sync_debug_mode("default")
    with pytest.raises(NonFiniteError, match="target is not finite at gradient step 4"):
        optimization.flush()
    assert optimization.clock.gradient_steps == 3


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
    weights, steps = snapshot(agent), agent.clock.steps
    transitions = world.step(agent.act(world.observations))
    transitions = transitions._replace(truncated=np.array([False, True]), terminated=np.array([False, False]))
    transitions = transitions._replace(final_observations=np.zeros_like(transitions.observations))
    bad = getattr(transitions, field).copy()  # PPO does not look twice at the array that it was shown as the next one
    bad[1] = NAN
    transitions = transitions._replace(**{field: bad})
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
        agent.learner.target.head.bias.fill_(NAN)
    weights, moments = snapshot(agent.network), snapshot(agent.learner.optimization.adam)
    with pytest.raises(NonFiniteError, match="(loss|target).* is not finite"):
        agent.update()
    assert same_tree(snapshot(agent.network), weights) and same_tree(snapshot(agent.learner.optimization.adam), moments)


def test_a_ppo_update_on_an_infinite_value_stops_by_name():
    agent, world = trained("ppo", ticks=8)
    drive(agent, world, 8, learn=False)
    agent.rollout.values[3] = INF
    weights, moments = snapshot(agent.network), snapshot(agent.learner.optimization.adam)
    with pytest.raises(NonFiniteError, match="loss is not finite"):
        agent.update()
    assert same_tree(snapshot(agent.network), weights) and same_tree(snapshot(agent.learner.optimization.adam), moments)


@pytest.mark.parametrize("latching", [False, True])
def test_the_target_is_not_synchronised_by_a_refused_step(latching):
    agent, _ = trained("huber", target_period=1_000_000)
    if latching:
        latch(agent.learner.optimization)
    agent.config = DQNConfig(**{**vars(agent.config), "target_period": agent.clock.gradient_steps + 1})
    sample = agent.replay.sample
    agent.replay.sample = lambda size: sample(size)._replace(rewards=torch.full((size,), NAN))
    before = snapshot(agent.learner.target)
    assert not same_tree(before, snapshot(agent.network))
    if latching:
        agent.update()
        with pytest.raises(NonFiniteError):
            agent.learner.optimization.guard.flush()
    else:
        with pytest.raises(NonFiniteError):
            agent.update()
    assert same_tree(snapshot(agent.learner.target), before)


# -- nothing moves ---------------------------------------------------------------------------------------------------

MOVING = {
    "batch_norm": ("huber", BatchNorm()),
    "batch_norm_ppo": ("ppo", BatchNorm()),
    "popart": ("mse", PopArt(step_size=0.1)),
    "popart_ppo": ("ppo", PopArt(step_size=0.1)),
}


def learned(name, intervention=None, device=CPU, **changes):
    """An agent after some updates, with a memory for another one."""
    config, spaces = AGENTS[name]
    config = type(config)(**{**vars(config), **changes})
    agent = build(config, spaces, device=device, interventions=() if intervention is None else (intervention,))
    world = NoiseWorld(spaces, 2)
    drive(agent, world, 24)
    return drive(agent, world, 8, learn=False) if name == "ppo" else agent


def moving_state(agent):
    """All but what was not learned: a rollout is spent by the update that reads it, whatever becomes of that."""
    state = agent.state_dict()
    return snapshot({key: value for key, value in state.items() if key not in ("interventions", "rollout")})


@pytest.mark.parametrize("where", ["at once", "latched", pytest.param("cuda", marks=needs_cuda)])
@pytest.mark.parametrize("case", MOVING)
def test_what_moves_before_the_loss_is_known_is_put_back(case, where):
    name, intervention = MOVING[case]
    device = torch.device("cuda") if where == "cuda" else CPU
    agent = learned(name, intervention, device, **({"target_period": 1} if name != "ppo" else {}))
    if where == "latched":
        latch(agent.learner.optimization)
    before = moving_state(agent)
    if name == "ppo":
        agent.value_loss = lambda outputs, batch: outputs * NAN
    else:
        agent.head.loss = lambda outputs, regressand: outputs * NAN
    with pytest.raises(NonFiniteError, match="loss is not finite"):
        update(agent)
    assert same_tree(moving_state(agent), before)


def test_the_cases_above_do_move_otherwise():
    for name, intervention in MOVING.values():
        agent = learned(name, intervention)
        before = snapshot(dict(agent.network.named_buffers()))
        agent.update()
        assert not same_tree(snapshot(dict(agent.network.named_buffers())), before), name


def test_a_normaliser_stays_after_a_refusal_on_a_device():
    config, spaces = AGENTS["ppo"]
    agent = build(PPOConfig(**{**vars(config), "normalize_observations": True}), spaces)
    latch(agent.learner.optimization)
    drive(agent, NoiseWorld(spaces, 2), 8)
    assert agent.network.normalizer.count > 0
    agent.value_loss = lambda outputs, batch: outputs * NAN
    before = snapshot(agent.network)
    drive(agent, NoiseWorld(spaces, 2, seed=1), 8)
    assert same_tree(snapshot(agent.network), before)


@pytest.mark.parametrize("allowed", [None, torch.tensor(True)])
def test_a_normaliser_that_may_move_merges_as_ever(allowed):
    batches = torch.randn(3, 50, 4, generator=torch.Generator().manual_seed(0)) * 3 + 1
    normalizer = ObservationNormalizer(4)
    for batch in batches:
        normalizer.update(batch, allowed)
    everything = batches.flatten(0, 1).double()
    torch.testing.assert_close(normalizer.mean.double(), everything.mean(0), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(normalizer.variance.double(), everything.var(0, correction=0), rtol=1e-5, atol=1e-5)
    assert normalizer.count == 150


def test_the_targets_buffers_stay_after_a_refusal_on_a_device():
    agent = learned("huber", BatchNorm(), target_period=1)
    latch(agent.learner.optimization)
    agent.head.loss = lambda outputs, regressand: outputs * NAN
    agent.network.torso.layers.norm1.running_mean.fill_(3.0)  # as a good step might have left it
    before = snapshot(agent.learner.target)
    agent.update()
    assert same_tree(snapshot(agent.learner.target), before)


# -- numbers that float32 does not hold ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["c51", "two_hot", "hl_gauss"])
@pytest.mark.parametrize("latching", [False, True])
def test_an_infinite_target_is_refused_though_the_support_would_clip_it(name, latching):
    agent, _ = trained(name)
    if latching:
        latch(agent.learner.optimization)
    sample = agent.replay.sample
    agent.replay.sample = lambda size: sample(size)._replace(rewards=torch.full((size,), INF))
    weights, moments = snapshot(agent.network), snapshot(agent.learner.optimization.adam)
    with pytest.raises(NonFiniteError, match="target is not finite"):
        update(agent)
    assert same_tree(snapshot(agent.network), weights) and same_tree(snapshot(agent.learner.optimization.adam), moments)


@pytest.mark.parametrize("name", ["huber", "ppo"])
@pytest.mark.parametrize(
    ("field", "message"), [("rewards", "reward"), ("observations", "observation"), ("final_observations", "final_obs")]
)
def test_float64_that_float32_cannot_hold_is_refused(name, field, message):
    agent, world = trained(name)
    transitions = world.step(agent.act(world.observations))
    ends = np.array([False, True])
    transitions = transitions._replace(truncated=ends, terminated=~ends & ends)
    transitions = transitions._replace(final_observations=np.zeros_like(transitions.observations))
    wide = np.array(getattr(transitions, field), np.float64)
    wide[1] = 1e39
    with pytest.raises(NonFiniteError, match=rf"{message}.* is not finite in environment 1"):
        agent.observe(transitions._replace(**{field: wide}))


@pytest.mark.parametrize("name", ["huber", "ppo"])
def test_a_reward_that_its_transform_makes_infinite_is_refused_and_moves_no_statistic(name):
    config, spaces = AGENTS[name]
    config = type(config)(**{**vars(config), "reward": RewardConfig("center")})
    world = NoiseWorld(spaces, 2)
    agent = drive(build(config, spaces), world, 4)
    agent.transform.mean, agent.transform.count = -3e38, 1e9  # 3e38 less this mean is 6e38
    before = agent.transform.state_dict()
    transitions = world.step(agent.act(world.observations))._replace(rewards=np.array([0.0, 3e38]))
    with pytest.raises(NonFiniteError, match="transformed_reward is not finite in environment 1"):
        agent.observe(transitions)
    assert agent.transform.state_dict() == before


@pytest.mark.parametrize("value", [NAN, INF])
def test_an_action_that_is_not_finite_does_not_reach_the_world(value):
    agent, world = trained("ppo")
    with torch.no_grad():
        agent.network.policy_head.bias[0] = value  # the space's bounds would clip infinity and pass NaN on
    with pytest.raises(NonFiniteError, match=rf"action is not finite in environment 0 at step {agent.clock.steps}"):
        agent.act(world.observations)
    with pytest.raises(NonFiniteError, match="action is not finite"):
        agent.player(True, Generators(0))(world.observations)


# -- results ---------------------------------------------------------------------------------------------------------


def watched(network, learning_rate=0.1):
    optimization = Optimization(network.parameters(), learning_rate, AdamConfig(), 0.0, network)
    state = {"network": network, "optimization": optimization}
    return optimization, Watch(optimization, lambda: {name: part.state_dict() for name, part in state.items()})


def test_a_result_that_is_not_finite_is_found_at_the_flush_between_its_gradient_steps():
    network = model()
    optimization, watch = watched(network)
    for _ in range(3):
        gradient_step(optimization, good_loss(network))
    watch.flush()
    optimization.set_learning_rate(3e38)  # Adam divides it by 1 - .9^4 = .34, which float32 cannot hold
    gradient_step(optimization, good_loss(network))
    with pytest.raises(
        NonFiniteError, match=r"not finite: network\.weight.*between gradient steps 3 .* and 4"
    ) as error:
        watch.flush()
    assert "as before" not in str(error.value)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_cuda)])
def test_infinite_second_moments_are_found_though_the_weights_may_only_stand_still(device):
    network = model(device)
    optimization, watch = watched(network)
    optimization.adam.param_groups[0]["weight_decay"] = 1e30
    gradient_step(optimization, good_loss(network))
    if device == "cpu":  # CUDA's fused kernel makes the weights not finite as well
        assert all(torch.isfinite(parameter).all() for parameter in network.parameters())
    with pytest.raises(NonFiniteError, match=r"Adam's exp_avg_sq of weight.*between gradient steps 0 .* and 1"):
        watch.flush()


def test_a_loss_that_follows_from_an_earlier_result_is_explained_by_it():
    network = model()
    optimization, watch = watched(network, learning_rate=1e38)
    gradient_step(optimization, good_loss(network))
    with pytest.raises(NonFiniteError) as error:
        gradient_step(optimization, good_loss(network))
    said = watch.explain(error.value)
    assert said.startswith("not finite: network.weight") and "between gradient steps 0" in said
    assert said.endswith("met as: loss is not finite at gradient step 2")


def test_a_loss_alone_is_explained_by_itself():
    network = model()
    optimization, watch = watched(network)
    with pytest.raises(NonFiniteError) as error:
        gradient_step(optimization, good_loss(network) * NAN)
    assert watch.explain(error.value) == "loss is not finite at gradient step 1; the weights are as before it"


def spoil(tensor, value):
    """Put `value` in the last place."""
    tensor[(-1,) * tensor.dim()] = value


@pytest.mark.parametrize("name", AGENTS)
@pytest.mark.parametrize("part", ["network", "target_network", "optimization", "interventions", "transform"])
def test_every_part_of_an_agents_state_is_looked_after(name, part):
    if part == "target_network" and name == "ppo":
        pytest.skip("it has none")
    config, spaces = AGENTS[name]
    config = type(config)(**{**vars(config), "reward": RewardConfig("scale")})
    agent = drive(build(config, spaces, interventions=(L2Init(),)), NoiseWorld(spaces, 2), 24)
    watch = Watch(agent.learner.optimization, agent.state_dict)
    watch.flush()
    with torch.no_grad():
        if part == "network":
            spoil(next(agent.network.parameters()), NAN)
        elif part == "target_network":
            spoil(next(agent.learner.target.parameters()), INF)
        elif part == "optimization":
            spoil(next(iter(agent.learner.optimization.adam.state.values()))["exp_avg"], NAN)
        elif part == "interventions":
            spoil(next(iter(agent.learner.interventions.members[0].start.values())), NAN)
        else:
            agent.transform.variance = INF
    expected = "Adam's exp_avg of " if part == "optimization" else rf"{part}\."
    with pytest.raises(NonFiniteError, match=f"not finite: {expected}"):
        watch.flush()
