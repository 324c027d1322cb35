"""Betas reach Adam, and equal ones bound its update."""

import numpy as np
import pytest
import torch

from agents.config import AdamConfig
from agents.interventions.adam_betas import AdamBetas
from agents.optimization import make_adam
from tests.agents.interventions.test_weight_decay import every_agent, goes_on_after_a_restart, learn, make, options_of

PEAKS = [((0.9, 0.999), 12, 6.57), ((0.9, 0.99), 13, 2.13), ((0.99, 0.99), None, 1.0), ((0.5, 0.5), None, 1.0)]


@pytest.mark.parametrize(("betas", "when", "peak"), PEAKS, ids=str)
def test_a_jump_after_a_quiet_phase(betas, when, peak):
    # the gradient is tiny for a long time, then a million times as large, with Adam as the agents make it
    parameter = torch.nn.Parameter(torch.zeros(1))
    groups = AdamBetas(betas=betas).parameter_groups([{"params": [parameter], "name": "w", "role": "weight"}])
    groups = [{key: value for key, value in group.items() if key not in ("name", "role")} for group in groups]
    adam = make_adam(groups, 1.0, AdamConfig(eps=1e-30))
    quiet = 10_000 if betas[1] == 0.999 else 2_000
    parameter.grad = torch.full((1,), 1e-6)
    for _ in range(quiet):
        adam.step()
    moved, parameter.grad = [], torch.ones(1)
    for _ in range(60):
        with torch.no_grad():
            parameter.zero_()
        adam.step()
        moved.append(abs(parameter.item()))
    t = np.arange(1.0, 61.0)
    first, second = (1 - betas[0] ** t, 1 - betas[1] ** t)
    first, second = first / (1 - betas[0] ** (quiet + t)), second / (1 - betas[1] ** (quiet + t))
    np.testing.assert_allclose(moved, first / np.sqrt(second), rtol=2e-4)
    if when is None:
        assert max(moved) <= 1 + 1e-4
    else:
        assert 1 + int(np.argmax(moved)) == when
        assert max(moved) == pytest.approx(peak, abs=0.006)


@every_agent
def test_every_group_has_them(name):
    agent = make(name, AdamBetas())
    assert [group["betas"] for group in agent.learner.optimization.adam.param_groups] == [(0.99, 0.99)]
    assert all(group["betas"] == (0.9, 0.999) for group in options_of(make(name)).values())


def test_they_keep_to_their_part():
    options = options_of(make("ppo", AdamBetas(only="critic")))
    for name, group in options.items():
        assert group["betas"] == ((0.99, 0.99) if name.startswith("value_head") else (0.9, 0.999))


@every_agent
def test_it_goes_on_after_a_restart(name):
    assert goes_on_after_a_restart(name, AdamBetas())


def test_the_agents_own_betas_change_nothing():
    def weights(*interventions):
        return list(learn("dqn", *interventions).network.parameters())

    same = zip(weights(AdamBetas(betas=(0.9, 0.999))), weights(), strict=True)
    assert all(torch.equal(*pair) for pair in same)
    assert not all(torch.equal(*pair) for pair in zip(weights(AdamBetas()), weights(), strict=True))


@pytest.mark.parametrize("betas", [(0.9,), (0.9, 1.0), (-0.1, 0.9)])
def test_bad_parameters_are_refused(betas):
    with pytest.raises(ValueError, match=r"adam_betas\.betas = .*: must be two numbers in \[0, 1\)"):
        AdamBetas(betas=betas)
