"""Gradient steps of several learners computed as one are those that each would take alone."""

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

import numpy as np
import pytest
import torch

from agents import build_agent, traced
from agents.config import LearningRate, NetworkConfig
from agents.guard import NonFiniteError
from agents.interventions import intervention_class
from agents.ppo_config import PPOConfig
from agents.randomness import Generators
from agents.replay import Batch
from agents.schedule import Over, in_steps
from agents.stacking import Stack, why_in_turns
from agents.transitions import Spaces
from agents.value_config import C51Config, DQNConfig
from tests.agents.tape import recorded

exhaustive = pytest.mark.exhaustive
SEEDS, FEATURES, BATCH = 3, 7, 16
BOX = Spaces((FEATURES,), np.dtype(np.float32), "continuous", 2, -np.ones(2, np.float32), np.ones(2, np.float32))
DISCRETE = Spaces((FEATURES,), np.dtype(np.float32), "discrete", 3)
MLP = NetworkConfig(width=12, depth=2)
OF_PPO = {"network": NetworkConfig(width=12, depth=2, activation="tanh"), "rollout_steps": 32}
AGENTS = {
    "dqn, mse": (DQNConfig(network=MLP, buffer_size=64, loss="mse"), DISCRETE),
    "dqn, hl_gauss": (DQNConfig(network=MLP, buffer_size=64, loss="hl_gauss", double=True), DISCRETE),
    "c51": (C51Config(network=MLP, buffer_size=64), DISCRETE),
    "ppo, discrete": (PPOConfig(**OF_PPO, max_grad_norm=0.05), DISCRETE),
    "ppo, continuous": (PPOConfig(**OF_PPO, shared_torso=False, normalize_observations=True), BOX),
}
INTERVENTIONS = {
    "none": {},
    "norm and decay": {"layer_norm": {}, "weight_decay": {"rate": 0.1}},
    "redo": {"redo": {"tau": 0.5, "when": "every 5 gradient steps", "samples": 8}},
    "cbp": {"cbp": {"maturity": 3, "replacement_rate": 0.1}},
    "pulled": {"l2_init": {"rate": 0.01}, "l2": {}},
    "orthogonal": {"parseval": {}, "spectral_norm": {}},
    "reset": {"reset": {"when": "every 6 gradient steps"}, "weight_clip": {}},
    "local moments": {"redo": {"tau": 0.5, "when": "every 4 gradient steps", "samples": 8, "moments": "local"}},
    "doubled": {"crelu": {}, "nap": {}, "shrink_perturb": {"when": "every 3 gradient steps"}},
}


def made(agent: str, interventions: str = "none", execution: str = "eager", **changes) -> list:
    """An agent of each seed; its surgeries are shown observations of a generator of its own."""
    config, spaces = AGENTS[agent]
    config = type(config)(**{**vars(config), **changes})
    chosen = [intervention_class(name)(**given) for name, given in INTERVENTIONS[interventions].items()]
    config, cpu = in_steps(config, 1000), torch.device("cpu")
    how = {"interventions": chosen, "execution": execution}
    agents = [build_agent(config, spaces, 1, Generators(seed), cpu, **how) for seed in range(SEEDS)]
    for seed, one in enumerate(agents):
        if one.learner.surgery is not None:
            shown = torch.Generator().manual_seed(seed)
            one.learner.surgery._sample = lambda n, shown=shown: torch.randn(n, FEATURES, generator=shown)
    return agents


def batch(agent, generator: torch.Generator):
    """Random data of what `learn` takes."""

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    discrete = torch.randint(agent.spaces.action_size, (BATCH,), generator=generator)
    if not hasattr(agent, "rollout"):
        observations = normal(2, BATCH, FEATURES)
        return Batch(observations[0], discrete, 2 * normal(BATCH), torch.full((BATCH,), 0.9), observations[1])
    columns = ("log_probs", "advantages", "returns", "values")
    found = {name: normal(BATCH) for name in columns} | {"observations": normal(BATCH, FEATURES)}
    found["log_probs"] = 0.1 * found["log_probs"] - 2
    return found | {"actions": discrete if agent.spaces.actions == "discrete" else normal(BATCH, 2)}


def learns(agent, seed: int, steps: int, spoilt: int = -1, shared: bool = False) -> list[dict]:
    """Metrics of gradient steps on batches that depend on the seed; the one of step `spoilt` holds a NaN."""
    generator, found = torch.Generator().manual_seed(seed), []
    for step in range(steps):
        agent.clock.steps = 10 * step * (1 if shared else seed + 1)
        agent.learner.anneal(agent.clock.steps)
        given = batch(agent, generator)
        if step == spoilt:
            (given["returns"] if isinstance(given, dict) else given.rewards)[3] = torch.nan
        found.append(agent.learner.update(agent.learn, given))
        if agent.learner.target is not None and step % 7 == 6:
            agent.learner.sync_target(0.5)
    return found


def together(agents: list, calls: list[Callable[[], object]]) -> list:
    """What the calls give, whose gradient steps are computed as one; in place of it, the error that one raised."""
    found: list = [None] * len(calls)

    def call(place: int) -> None:
        try:
            found[place] = calls[place]()
        except NonFiniteError as error:
            found[place] = error

    assert why_in_turns([agent.learner for agent in agents]) == ""
    with Stack([agent.learner for agent in agents]) as stack:
        stack.together({agent.learner: partial(call, place) for place, agent in enumerate(agents)})
    return found


def close(one: dict, other: dict, tolerance: float = 1e-5) -> None:
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=tolerance, atol=tolerance, msg=name)


CASES = [(agent, "none") for agent in AGENTS]
CASES += [("ppo, continuous", name) for name in ("norm and decay", "cbp", "pulled", "reset", "local moments")]
CASES += [("dqn, mse", name) for name in ("redo", "orthogonal", "doubled")]
OTHERS = [(agent, name) for agent in AGENTS for name in INTERVENTIONS if (agent, name) not in CASES]


@pytest.mark.parametrize(
    ("agent", "interventions"), [*CASES, *(pytest.param(*case, marks=exhaustive) for case in OTHERS)]
)
def test_equal_to_learning_alone_on_the_same_batches(agent: str, interventions: str) -> None:
    alone, stacked = made(agent, interventions), made(agent, interventions)
    expected = [learns(one, seed, 20) for seed, one in enumerate(alone)]
    found = together(stacked, [partial(learns, one, seed, 20) for seed, one in enumerate(stacked)])
    for one, other, metrics, wanted in zip(stacked, alone, found, expected, strict=True):
        close(one.network.state_dict(), other.network.state_dict())
        for mine, theirs in zip(metrics, wanted, strict=True):
            close(mine, theirs)
        mine, theirs = one.learner.optimization.adam.state_dict(), other.learner.optimization.adam.state_dict()
        for place in theirs["state"]:
            close(mine["state"][place], theirs["state"][place])
        if one.learner.surgery is not None:
            close(one.learner.surgery.replaced, other.learner.surgery.replaced)


@pytest.mark.parametrize(
    ("agent", "interventions"), [("ppo, continuous", "norm and decay"), ("c51", "none"), ("dqn, mse", "redo")]
)
def test_called_by_torch_or_from_python_operations_give_the_same_numbers(
    agent: str, interventions: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    without, called = made(agent, interventions), made(agent, interventions)
    kinds, without_python = [], traced._without_python
    monkeypatch.setattr(traced, "_without_python", lambda *given: kinds.append(without_python(*given)) or kinds[-1])
    together(without, [partial(learns, one, seed, 12) for seed, one in enumerate(without)])
    assert [kind.__name__ for kind in kinds] == ["run"]  # not "forward": Python after all
    monkeypatch.setattr(traced, "_without_python", lambda module, tensors: module.forward)
    together(called, [partial(learns, one, seed, 12) for seed, one in enumerate(called)])
    for one, other in zip(without, called, strict=True):
        mine, theirs = one.network.state_dict(), other.network.state_dict()
        assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_each_has_a_norm_a_clip_and_a_rate_of_its_own() -> None:
    """Of three seeds one has gradients a thousand times as large; learning rates fall with each seed's own steps."""
    falling = LearningRate(1e-2, 0.0, Over("400"))
    alone, stacked = (made("ppo, continuous", learning_rate=falling, max_grad_norm=0.5) for _ in range(2))
    for agents in (alone, stacked):
        with torch.no_grad():
            agents[1].network.value_head.weight.mul_(1000)
    expected = [learns(one, seed, 8) for seed, one in enumerate(alone)]
    found = together(stacked, [partial(learns, one, seed, 8) for seed, one in enumerate(stacked)])
    norms = [float(metrics[0]["losses/gradient_norm"]) for metrics in found]
    assert norms[1] > 100 * norms[0] and norms[1] > 100 * norms[2]
    rates = [one.learner.learning_rate for one in stacked]
    assert rates == pytest.approx([1e-2 * (1 - 70 * times / 400) if 70 * times < 400 else 0 for times in (1, 2, 3)])
    for one, other, metrics, wanted in zip(stacked, alone, found, expected, strict=True):
        close(one.network.state_dict(), other.network.state_dict(), 1e-4)
        close(metrics[-1], wanted[-1], 1e-4)


@pytest.mark.parametrize("agent", ["dqn, mse", "c51", "ppo, continuous"])
def test_what_is_not_finite_stops_one_seed_alone(agent: str) -> None:
    alone, stacked = made(agent), made(agent)
    learns(alone[0], 0, 9), learns(alone[2], 2, 9)
    with pytest.raises(NonFiniteError) as refusal:
        learns(alone[1], 1, 9, spoilt=4)
    calls = [partial(learns, one, seed, 9, spoilt=4 if seed == 1 else -1) for seed, one in enumerate(stacked)]
    found = together(stacked, calls)
    assert isinstance(found[1], NonFiniteError) and str(found[1]) == str(refusal.value)
    assert [one.clock.gradient_steps for one in stacked] == [9, 4, 9]
    for one, other in zip(stacked, alone, strict=True):
        close(one.network.state_dict(), other.network.state_dict())


def test_the_same_to_the_bit_each_time() -> None:
    first, second = made("dqn, mse", "redo"), made("dqn, mse", "redo")
    for agents in (first, second):
        together(agents, [partial(learns, one, seed, 12) for seed, one in enumerate(agents)])
    for one, other in zip(first, second, strict=True):
        assert all(map(torch.equal, one.network.state_dict().values(), other.network.state_dict().values()))


@pytest.mark.parametrize(("agent", "interventions"), [("dqn, mse", "cbp"), ("ppo, continuous", "pulled")])
def test_captured_in_a_graph_it_is_the_same(agent: str, interventions: str) -> None:
    with recorded() as tape:
        alone = made(agent, interventions, "graph")
        expected = [learns(one, seed, 12) for seed, one in enumerate(alone)]
        assert (tape.captured, tape.replayed) == (3, 3 * 9)  # the first two runs warm up
        stacked = made(agent, interventions, "graph")
        found = together(stacked, [partial(learns, one, seed, 12) for seed, one in enumerate(stacked)])
    assert (tape.captured, tape.replayed) == (3 + 1, 3 * 9 + 9)  # one for all three
    for one, other, metrics, wanted in zip(stacked, alone, found, expected, strict=True):
        close(one.network.state_dict(), other.network.state_dict())
        for mine, theirs in zip(metrics, wanted, strict=True):
            close(mine, theirs)


def freezing(agent, seed: int, named: str) -> None:
    """Gradient steps, some of them while the parameters of one name learn nothing."""
    for frozen in (False, True, False, True, False):
        for name, parameter in agent.network.named_parameters():
            if name.endswith(named):
                parameter.requires_grad_(not frozen)
        learns(agent, seed, 4)


@pytest.mark.parametrize("captured", [False, True])
def test_parameters_freeze_and_thaw(captured: bool) -> None:
    how = "none", "graph" if captured else "auto"
    with recorded() if captured else nullcontext():
        alone, stacked = made("dqn, mse", "none"), made("dqn, mse", *how)
        for seed, agent in enumerate(alone):
            freezing(agent, seed, "dense1.weight")
        together(stacked, [partial(freezing, agent, seed, "dense1.weight") for seed, agent in enumerate(stacked)])
    for one, other in zip(alone, stacked, strict=True):
        mine, theirs = (agent.learner.state_dict()["optimization"]["adam"]["state"] for agent in (one, other))
        assert {float(state["step"]) for state in mine.values()} == {12.0, 20.0}
        for place in mine:
            assert mine[place]["step"] == theirs[place]["step"]
        for name, parameter in one.network.named_parameters():
            torch.testing.assert_close(other.network.get_parameter(name), parameter, rtol=1e-5, atol=1e-5)


def test_a_step_of_one_alone_in_between() -> None:
    alone, stacked = made("dqn, mse"), made("dqn, mse")
    for seed, agent in enumerate(alone):
        learns(agent, seed, 6)
        if not seed:
            learns(agent, 9, 2)
        learns(agent, seed, 6)
    with Stack([agent.learner for agent in stacked]) as stack:
        calls = {agent.learner: partial(learns, agent, seed, 6) for seed, agent in enumerate(stacked)}
        stack.together(calls)
        learns(stacked[0], 9, 2)
        stack.together(calls)
    for one, other in zip(alone, stacked, strict=True):
        for name, parameter in one.network.named_parameters():
            torch.testing.assert_close(other.network.get_parameter(name), parameter, rtol=1e-5, atol=1e-5)


def test_where_one_has_a_hook_all_learn_by_themselves() -> None:
    agents, called = made("dqn, mse"), []
    agents[1].network.head.register_forward_hook(lambda *_: called.append(True))
    together(agents, [partial(learns, agent, seed, 5) for seed, agent in enumerate(agents)])
    assert called == [True] * 5 and [agent.clock.gradient_steps for agent in agents] == [5] * SEEDS


def test_fewer_go_on_and_one_alone() -> None:
    alone, stacked = made("dqn, mse"), made("dqn, mse")
    for one, times in zip(alone, (1, 2, 3), strict=True):
        for _ in range(times):
            learns(one, 5, 3, shared=True)
    learners = [one.learner for one in stacked]
    before = [learner.run_step for learner in learners]
    with Stack(learners) as stack:
        for gone in range(SEEDS):
            stack.keep(learners[gone:])
            stack.together({one.learner: partial(learns, one, 5, 3, shared=True) for one in stacked[gone:]})
    for one, other in zip(stacked, alone, strict=True):
        close(one.network.state_dict(), other.network.state_dict())
    assert [learner.run_step for learner in learners] == before


def test_an_error_of_one_comes_out_when_all_are_over() -> None:
    agents, over = made("dqn, mse"), []

    def fails() -> None:
        learns(agents[0], 0, 2)
        raise KeyError("mine")

    with Stack([one.learner for one in agents]) as stack:
        calls = {agents[0].learner: fails}
        calls |= {one.learner: lambda one=one: over.append(learns(one, 1, 4)) for one in agents[1:]}
        with pytest.raises(KeyError, match="mine"):
            stack.together(calls)
    assert len(over) == 2


TURNS = {
    "batch_norm": "BatchNorm1d draws or moves something in the forward pass",
    "dropout": "SeededDropout draws or moves something in the forward pass",
    "popart": "something moves in each network before its gradient is known",
    "infer": "the penalty of infer reads the forward pass",
    "pfo": "the penalty of pfo reads the forward pass",
}


@pytest.mark.parametrize("name", TURNS)
def test_what_cannot_be_stacked_says_why(name: str) -> None:
    config, spaces = AGENTS["ppo, continuous"]
    chosen, cpu = [intervention_class(name)()], torch.device("cpu")
    agents = [build_agent(config, spaces, 1, Generators(seed), cpu, interventions=chosen) for seed in range(2)]
    learners = [one.learner for one in agents]
    assert TURNS[name] in why_in_turns(learners)
    with pytest.raises(ValueError, match="must be such as can be stacked"):
        Stack(learners)
