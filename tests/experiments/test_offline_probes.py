"""Probes of saved checkpoints: on the saved batches, equal to what the run itself measured."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.evaluate_config import EvaluateConfig
from experiments.logger import read_metrics
from experiments.offline_probes import probe_checkpoints, table
from tests.experiments.test_run import SMALL, one_thread, run  # noqa: F401

ROOT = Path(__file__).parents[2]
NAMES = ("units", "ranks", "preactivations", "values", "gradients", "ntk", "adam")
FLAGS = ["--probe.every", "200", "--probe.samples", "64", "--probe.heavy-samples", "16", "--probes", "all"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    every = ["--checkpoint-every", "200", "--keep-checkpoints", "0"]
    return run(tmp_path_factory.mktemp("runs"), "dqn", "CartPole-v1", 800, *SMALL["dqn"], *FLAGS, *every)[0]


@pytest.mark.parametrize("algorithm", ["dqn", "c51", "ppo"])
def test_the_last_checkpoint_measures_what_the_run_measured_last(algorithm: str, tmp_path: Path) -> None:
    path, _, _ = run(tmp_path, algorithm, "CartPole-v1", 640, *SMALL[algorithm], *FLAGS)
    metrics = read_metrics(path / "metrics.jsonl")
    result = probe_checkpoints(EvaluateConfig(path, probe=NAMES))
    assert len(result["steps"]) == 1
    for tag, (value,) in result["values"].items():
        if "condition_number" not in tag:  # the ratio of the largest to one that rounding decides
            assert value == pytest.approx(metrics[tag][1][-1], rel=2e-3, abs=1e-5), tag
    fresh = {tag: values[-1] for tag, (_, values) in metrics.items() if tag.startswith("probes_fresh/")}
    assert fresh
    for tag, value in fresh.items():
        if "condition_number" not in tag:
            here = result["fresh"][tag.replace("probes_fresh", "probes_reference")]
            assert here == pytest.approx(value, rel=2e-3, abs=1e-5), tag


def test_each_checkpoint_is_a_column(trained: Path) -> None:
    result = probe_checkpoints(EvaluateConfig(trained, probe=("weights", "units"), checkpoint="each"))
    assert result["steps"] == [0, 200, 400, 600, 800]
    changes = result["values"]["probes/weight_change/since_init/total"]
    assert changes == sorted(changes) and changes[1] > changes[0] == 0
    head, *rows = table(result)
    assert head.split() == ["0", "200", "400", "600", "800", "fresh"]
    assert len(rows) == len(result["values"])


def test_refits_and_sharpness_are_taken_where_all_is_asked_for(trained: Path) -> None:
    settings = EvaluateConfig(trained, probe=("all",), refit_targets=2, refit_steps=20)
    values = probe_checkpoints(settings)["values"]
    error, fresh = (values[f"probes/trainability/{name}"][0] for name in ("error", "fresh_error"))
    assert values["probes/trainability/excess"][0] == pytest.approx(error - fresh, rel=1e-4, abs=1e-6)
    assert 0 <= values["probes/refit_accuracy/held_out/carried_optimizer"][0] <= 1
    assert values["probes/hessian_eigenvalue/LM"][0] != 0


@pytest.mark.long
def test_command_prints_a_table_and_json(trained: Path) -> None:
    command = [sys.executable, "evaluate.py", str(trained), "--probe", "units"]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "probes_reference/dormant_fraction/tau=0.025/all" in printed
    as_json = subprocess.run([*command, "--json"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert json.loads(as_json)["steps"] == [800]


def test_what_cannot_be_measured_is_refused_in_a_sentence(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="probes = 'rnaks'"):
        probe_checkpoints(EvaluateConfig(trained, probe=("rnaks",)))
    with pytest.raises(ValueError, match="checkpoint = 'each': must be last unless --probe"):
        EvaluateConfig(trained, checkpoint="each")
    with pytest.raises(ValueError, match="probe = 'churn': must be some of units"):
        probe_checkpoints(EvaluateConfig(trained, probe=("churn",)))
    path, _, _ = run(tmp_path, "dqn", "CartPole-v1", 200, *SMALL["dqn"], "--probes", "none")
    with pytest.raises(ValueError, match="must be one that was trained with probes"):
        probe_checkpoints(EvaluateConfig(path, probe=("units",)))
