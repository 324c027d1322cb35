"""The page on writing an intervention: its code is short, runs as it stands, and needs one file and nothing else."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from agents.config import DQNConfig, PPOConfig
from tests.agents.helpers import SMALL, VECTOR, NoiseWorld, build, drive

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "write_your_own_intervention.md").read_text()
CODE = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL).group(1)
CONFIGS = {
    "dqn": DQNConfig(network=SMALL, buffer_size=400, learning_starts=40, batch_size=16, replay_ratio=0.5),
    "ppo": PPOConfig(network=SMALL, rollout_steps=16, num_minibatches=2, update_epochs=3),
}


@pytest.fixture(scope="module")
def hare_and_tortoise():
    names = {"__name__": "hare_tortoise"}
    exec(compile(CODE, "hare_tortoise.py", "exec"), names)
    return names["HareAndTortoise"]


def test_it_is_under_forty_lines():
    assert len([line for line in CODE.splitlines() if line.strip()]) < 40


@pytest.mark.parametrize("kind", CONFIGS)
def test_it_does_what_it_says(hare_and_tortoise, kind):
    agent = build(CONFIGS[kind], interventions=[hare_and_tortoise(decay=0.5, period=4)])
    slow = {name: weight.detach().double() for name, weight in agent.network.named_parameters()}
    step, world = agent.optimization.adam.step, NoiseWorld(VECTOR, 2)
    moved = []

    def stepped():
        step()
        for name, weight in agent.network.named_parameters():
            slow[name] = 0.5 * slow[name] + 0.5 * weight.detach().double()
        moved.append({name: weight.detach().clone() for name, weight in agent.network.named_parameters()})

    agent.optimization.adam.step = stepped
    after = agent.interventions.after_step

    def checked(forward, gradient_step, steps):
        after(forward, gradient_step, steps)
        for name, weight in agent.network.named_parameters():
            expected = slow[name].float() if gradient_step % 4 == 0 else moved[-1][name]
            torch.testing.assert_close(weight.detach(), expected)

    agent.interventions.after_step = checked
    drive(agent, world, 60)
    assert len(moved) >= 12


def test_one_file_makes_the_flags_the_help_and_the_log(tmp_path):
    leave = shutil.ignore_patterns("__pycache__")
    for room in ("agents", "envs", "experiments", "plasticity_probes"):
        shutil.copytree(ROOT / room, tmp_path / room, ignore=leave)
    shutil.copy(ROOT / "train.py", tmp_path)
    (tmp_path / "agents" / "interventions" / "hare_tortoise.py").write_text(CODE)

    def run(*flags):
        arguments = [sys.executable, "train.py", "dqn", "--env", "CartPole-v1", "--interventions", *flags]
        return subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True)

    trained = run("layer_norm", "hare_tortoise", "--hare-tortoise.period", "50", "--steps", "1300", "--probes", "none")
    assert trained.returncode == 0, trained.stderr
    assert "interventions: layer_norm, hare_tortoise (period 50)" in trained.stdout
    assert "in all: hare_tortoise moved weights" in trained.stdout
    assert "Gradient steps between two returns" in " ".join(run("hare_tortoise", "--help").stdout.split())
    refused = run("hare_tortoise", "--hare-tortoise.decay", "2")
    assert refused.returncode == 2
    assert "hare_tortoise.decay = 2.0: must be in [0, 1)" in " ".join(refused.stderr.split())
