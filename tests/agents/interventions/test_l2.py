"""Coupled L2 against Adam written out."""

import pytest
import torch

from agents.interventions.l2 import L2
from agents.randomness import Generators
from tests.agents.interventions.test_weight_decay import (
    every_agent,
    follows_the_oracle,
    goes_on_after_a_restart,
    learn,
    make,
    options_of,
    same_training,
)


@pytest.mark.parametrize("include", [("norm", "bias", "log_std"), (), ("bias",)], ids=str)
def test_it_is_adams_own_weight_decay(include):
    follows_the_oracle(L2(rate=0.3, include=include), True, lambda role, _: role in ("weight", *include))


def test_it_covers_everything_as_in_dohare24():
    agent = make("continuous ppo", L2())
    options = options_of(agent)
    assert {"log_std", "actor_torso.layers.dense1.bias"} < set(options)
    assert all(group["weight_decay"] == 1e-3 and not group["decoupled_weight_decay"] for group in options.values())
    assert len(agent.learner.optimization.adam.param_groups) == 1  # equal groups are merged


def test_it_keeps_to_its_part():
    options = options_of(make("ppo", L2(only="encoder")))
    assert {name for name, group in options.items() if group["weight_decay"]} == {
        name for name in options if name.startswith("actor_torso")
    }


@every_agent
def test_nothing_happens_at_rate_zero(name):
    assert same_training(learn(name, L2(rate=0.0)), learn(name))
    assert not same_training(learn(name, L2()), learn(name))


@every_agent
def test_it_goes_on_after_a_restart(name):
    assert goes_on_after_a_restart(name, L2())


def test_bad_parameters_are_refused():
    with pytest.raises(ValueError, match=r"^l2\.rate = inf: must be >= 0 and finite$"):
        L2(rate=float("inf"))
    frozen = torch.nn.Linear(2, 2).requires_grad_(False)
    with pytest.raises(ValueError, match="l2: no parameter to act on"):
        L2().attach({"online": frozen}, Generators(0))
