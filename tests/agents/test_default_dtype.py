"""Torch's default dtype is a global switch like others: agents, interventions and probes compute the same under any."""

import pytest
import torch

from agents.config import NetworkConfig
from agents.interventions import NAMES, expanded, intervention_class
from agents.ppo_config import PPOConfig
from agents.value_config import DQNConfig
from plasticity_probes import activations, hidden_layers
from tests.agents.helpers import CONTINUOUS, VECTOR, NoiseWorld, build, drive, same_tree, snapshot

SETTINGS = {
    "plasticity_injection": {"when": "at gradient step 3"},
    "reset": {"when": "every 3 gradient steps"},
    "shrink_perturb": {"form": "dohare"},
    "redo": {"when": "every 2 gradient steps", "tau": 0.5, "moments": "local"},
    "cbp": {"maturity": 1, "replacement_rate": 0.2, "bias_correction": True, "utility": "adaptable_contribution"},
}
NETWORK = NetworkConfig(width=16, depth=2)
VALUE = DQNConfig(
    network=NETWORK, batch_size=8, buffer_size=300, learning_starts=20, replay_ratio=1.0, target_period=5, loss="mse"
)
POLICY = PPOConfig(
    network=NETWORK,
    rollout_steps=16,
    num_minibatches=2,
    update_epochs=2,
    shared_torso=False,
    normalize_observations=True,
)


@pytest.fixture
def default_dtype():
    """Sets it, and puts it back."""
    yield torch.set_default_dtype
    torch.set_default_dtype(torch.float32)


def run(config, spaces, names):
    chosen = expanded(names)
    members = [intervention_class(name)(**{**given, **SETTINGS.get(name, {})}) for name, given in chosen.items()]
    agent = drive(build(config, spaces, interventions=members), NoiseWorld(spaces, 2), 40)
    agent.load_state_dict(snapshot(agent))
    return snapshot(drive(agent, NoiseWorld(spaces, 2), 20))


@pytest.mark.parametrize("name", ["nothing", *NAMES, "cbp_l2"])
@pytest.mark.parametrize(("config", "spaces"), [(VALUE, VECTOR), (POLICY, CONTINUOUS)], ids=["dqn", "ppo"])
def test_agents_do_not_depend_on_it(config, spaces, name, default_dtype):
    names = [] if name == "nothing" else [name]
    wanted = run(config, spaces, names)
    default_dtype(torch.float64)
    assert same_tree(run(config, spaces, names), wanted)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_units_are_told_apart_under_any(dtype, default_dtype):
    """Numbers above 256 are not exact in bfloat16."""
    default_dtype(dtype)
    network = torch.nn.Sequential(torch.nn.Linear(3, 700), torch.nn.ReLU(), torch.nn.Linear(700, 2))
    (layer,) = hidden_layers(network, torch.ones(2, 3))
    assert layer.separable and layer.consumers[0][1].tolist() == list(range(700))
    assert activations(network, torch.ones(2, 3))["0"].post.dtype == dtype
