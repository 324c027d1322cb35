"""The page on writing an intervention: its code is short, runs as it stands, and needs one file and nothing else."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from agents.ppo_config import PPOConfig
from agents.value_config import DQNConfig
from tests.agents.helpers import SMALL, VECTOR, NoiseWorld, build, drive

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "write_your_own_intervention.md").read_text()
CODE = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL).group(1)
CONFIGS = {
    "dqn": DQNConfig(network=SMALL, buffer_size=400, learning_starts=40, batch_size=16, replay_ratio=0.5),
    "ppo": PPOConfig(network=SMALL, rollout_steps=16, num_minibatches=2, update_epochs=3),
}


@pytest.fixture(scope="module")
def l1():
    names = {"__name__": "l1"}
    exec(compile(CODE, "l1.py", "exec"), names)
    return names["L1"]


def test_the_page_is_under_forty_lines():
    assert len(PAGE.splitlines()) < 40


@pytest.mark.parametrize("kind", CONFIGS)
def test_it_does_what_it_says(l1, kind):
    agent = build(CONFIGS[kind], interventions=[l1(rate=0.01, threshold=0.05, when="every 4 gradient steps")])
    hidden = [weight for name, weight in agent.network.named_parameters() if "dense" in name and weight.ndim == 2]
    assert len(hidden) == 2
    sizes, pruned = [], []
    backward, intervene = agent.learner.optimization.backward, agent.learner.interventions.intervene

    def differentiated(loss):
        sizes.append(sum(weight.detach().double().abs().sum().item() for weight in hidden))
        return backward(loss)

    def checked():
        before = [weight.detach().clone() for weight in hidden]
        intervene()
        for weight, old in zip(hidden, before, strict=True):
            kept = torch.where(old.abs() < 0.05, 0.0, old) if agent.clock.gradient_steps % 4 == 0 else old
            assert torch.equal(weight, kept)
        pruned.append(sum((weight == 0).sum().item() for weight in hidden))

    agent.learner.optimization.backward, agent.learner.interventions.intervene = differentiated, checked
    metrics, update = [], agent.update
    agent.update = lambda: metrics.append(update())
    drive(agent, NoiseWorld(VECTOR, 2), 60)
    assert len(sizes) >= 12 and pruned[3] > 0
    logged = [told["losses/penalty/l1"].item() for told in metrics]
    per_update = len(sizes) // len(logged)  # PPO tells the mean over its gradient steps
    expected = [0.01 * sum(sizes[i : i + per_update]) / per_update for i in range(0, len(sizes), per_update)]
    assert logged == pytest.approx(expected, rel=1e-5)


@pytest.mark.long
def test_one_file_makes_the_flags_the_help_and_the_log(tmp_path):
    leave = shutil.ignore_patterns("__pycache__")
    for room in ("agents", "envs", "experiments", "plasticity_probes"):
        shutil.copytree(ROOT / room, tmp_path / room, ignore=leave)
    shutil.copy(ROOT / "train.py", tmp_path)
    (tmp_path / "agents" / "interventions" / "l1.py").write_text(CODE)

    def run(*flags):
        arguments = [sys.executable, "train.py", "dqn", "--env", "CartPole-v1", "--interventions", *flags]
        return subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True)

    trained = run(
        "layer_norm", "l1", "--l1.when", "every", "50", "gradient", "steps", "--steps", "1300", "--probes", "none"
    )
    assert trained.returncode == 0, trained.stderr
    assert "interventions: layer_norm, l1 (every 50 gradient steps)" in trained.stdout
    assert "in all: l1 moved tensors" in trained.stdout
    assert "Of the prunings. WHEN: every N gradient steps" in " ".join(run("l1", "--help").stdout.split())
    refused = run("l1", "--l1.rate", "-1")
    assert refused.returncode == 2
    assert "l1.rate = -1.0: must be >= 0" in " ".join(refused.stderr.split())
