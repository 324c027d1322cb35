"""The page on writing a probe: its code is short, runs as it stands, and needs one file and nothing else."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from experiments.logger import read_metrics
from experiments.run_directory import find_checkpoint, load_checkpoint

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "write_your_own_probe.md").read_text()
CODE = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL).group(1)
FLAGS = "dqn --env CartPole-v1 --steps 900 --learning-starts 100 --width 16 --threads 1 --probe.samples 32 --name run"


@pytest.fixture
def checkout(tmp_path):
    for room in ("agents", "envs", "experiments", "plasticity_probes"):
        shutil.copytree(ROOT / room, tmp_path / room, ignore=shutil.ignore_patterns("__pycache__"))
    for command in ("train.py", "evaluate.py"):
        shutil.copy(ROOT / command, tmp_path)
    return tmp_path


def run(folder, *arguments):
    return subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, text=True)


def by_hand(state, observations):
    """Shares of zeros in the hidden layers of a ReLU network, in float64."""
    hidden, shares, zeros = observations.double().numpy(), {}, []
    for name in ("dense1", "dense2"):
        weight, bias = (
            next(value for key, value in state.items() if key.endswith(f"{name}.{part}")).double().numpy()
            for part in ("weight", "bias")
        )
        hidden = np.maximum(hidden @ weight.T + bias, 0)
        shares[name] = (hidden == 0).mean()
        zeros.append((hidden == 0).ravel())
    return {**shares, "all": np.concatenate(zeros).mean()}


def test_the_page_is_under_forty_lines():
    assert len(PAGE.splitlines()) < 40


@pytest.mark.long
def test_one_file_makes_the_name_the_help_the_log_the_page_and_the_offline_probe(checkout):
    (checkout / "plasticity_probes" / "probes" / "sparsity.py").write_text(CODE)
    assert "sparsity" in run(checkout, "train.py", "dqn", "--env", "CartPole-v1", "--help").stdout
    done = run(checkout, "train.py", *FLAGS.split(), "--probes", "sparsity", "--probe.every", "300")
    assert done.returncode == 0, done.stderr
    path = checkout / "runs" / "run"
    metrics = read_metrics(path / "metrics.jsonl")
    probes = {tag.removeprefix("probes") for tag in metrics if tag.startswith("probes")}
    layers = ("all", "dense1", "dense2")
    assert probes == {f"{group}/sparsity/{layer}" for group in ("", "_reference", "_fresh") for layer in layers}

    _, step, state = load_checkpoint(find_checkpoint(path))
    assert step == 900
    reference = torch.load(path / "probes" / "reference.pt", weights_only=True)
    for layer, share in by_hand(state["network"], reference["observations"]).items():
        assert metrics[f"probes_reference/sparsity/{layer}"][1][-1] == pytest.approx(share, abs=1e-3)

    (layout,) = EventAccumulator(str(path)).Reload().Tensors("custom_scalars__config__")[-1:]
    assert b"all layers: activations at 0" in layout.tensor_proto.string_val[0]

    done = run(checkout, "evaluate.py", "runs/run", "--probe", "sparsity", "--json")
    assert done.returncode == 0, done.stderr
    for tag, (value,) in json.loads(done.stdout)["values"].items():
        assert value == pytest.approx(metrics[tag][1][-1], abs=1e-3)


@pytest.mark.long
def test_what_is_wrong_with_a_file_is_said(checkout):
    file = checkout / "plasticity_probes" / "probes" / "sparsity.py"
    file.write_text(CODE.replace('"sparsity/all"', '"dead_fraction/all"'))
    done = run(checkout, "train.py", *FLAGS.split(), "--probes", "sparsity", "--probe.every", "300")
    assert done.returncode == 0, done.stderr
    said = " ".join((done.stdout + done.stderr).split())
    sentence = "probe sparsity failed and is left out where it does: tag = 'dead_fraction/all': must begin with one of"
    assert said.count(sentence) == 1
    file.write_text("import torch\n")
    done = run(checkout, "-c", "from plasticity_probes.probes import probes; probes()")
    assert "sparsity.py: holds 0 subclasses of Probe; must hold one" in done.stderr
