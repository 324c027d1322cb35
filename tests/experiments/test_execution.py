"""--execution: what is refused, what is told, and what a run that is interrupted under it goes on with."""

import re
from pathlib import Path

import pytest
import torch

from experiments.cli import parse_train
from experiments.config import from_dict, to_dict
from experiments.logger import read_metrics
from experiments.naming import digest
from tests.agents.tape import recorded
from tests.experiments.test_run import SMALL, one_thread, run  # noqa: F401

CARTPOLE = ["dqn", "--env", "CartPole-v1"]


def test_graphs_on_a_cpu_that_was_asked_for_are_refused(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse_train([*CARTPOLE, "--device", "cpu", "--execution", "graph"])
    assert stopped.value.code == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "execution = 'graph': must be auto, eager or compile with device = 'cpu': graphs are a GPU's" in said


def test_it_stands_in_the_settings_and_beside_the_name() -> None:
    usual, eager = parse_train(CARTPOLE), parse_train([*CARTPOLE, "--execution", "eager"])
    assert to_dict(eager)["run"]["execution"] == "eager" and from_dict(to_dict(eager)) == eager
    before = to_dict(usual)
    del before["run"]["execution"]
    assert from_dict(before) == usual  # a file from before there was a choice
    assert digest(usual) != digest(eager)


def test_a_run_that_wants_graphs_where_there_is_no_gpu_says_so_and_learns(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    _, code, _ = run(tmp_path, "dqn", "CartPole-v1", 120, *SMALL["dqn"], "--execution", "graph")
    assert code == 0
    assert capsys.readouterr().out.count("graphs are captured on a GPU; without one everything runs eagerly") == 1


def test_a_run_without_a_compiler_says_so_and_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(function, **options):
        def raises(*given):
            raise RuntimeError("InvalidCxxCompiler: no working C++ compiler was found")

        return raises

    monkeypatch.setattr(torch, "compile", missing)
    _, code, printed = run(tmp_path, "ppo", "CartPole-v1", 260, *SMALL["ppo"], "--execution", "compile")
    assert code == 0
    said = re.sub(r"\s+", " ", printed)
    assert "nothing could be compiled, so everything runs eagerly: InvalidCxxCompiler" in said


@pytest.mark.parametrize("algorithm", [pytest.param("dqn", marks=pytest.mark.exhaustive), "ppo"])
def test_a_run_from_graphs_learns_what_an_eager_one_does(algorithm: str, tmp_path: Path) -> None:
    """On a tape in place of a GPU, probes and log included."""
    paths = []
    for execution in ("eager", "graph"):
        with recorded() as tape:
            flags = [*SMALL[algorithm], "--execution", execution, "--probe.every", "200", "--probe.samples", "32"]
            path, code, _ = run(tmp_path / execution, algorithm, "CartPole-v1", 400, *flags)
        assert code == 0 and (tape.replayed > 50) == (execution == "graph")
        paths.append(path)
    eager, graph = (read_metrics(path / "metrics.jsonl") for path in paths)
    assert eager.keys() == graph.keys()
    for tag, (steps, values) in eager.items():
        assert graph[tag][0] == steps
        if tag.startswith(("losses/", "targets/", "charts/learning_rate", "probes/weight_norm")):
            assert graph[tag][1] == pytest.approx(values, rel=1e-3, abs=1e-4), tag
