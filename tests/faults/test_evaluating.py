"""evaluate.py reads the checkpoints that are directories, and refuses the damaged ones, before torch is imported."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.cli import parse_evaluate, parse_train
from experiments.config import to_dict
from experiments.evaluate import evaluate
from experiments.evaluate_check import check_evaluation
from experiments.offline_probes import probe_checkpoints
from experiments.run_directory import all_checkpoints, find_checkpoint, load_checkpoint
from experiments.setup import build
from experiments.store import Store, listed
from experiments.train import train
from tests.experiments.older_format import as_one_file

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    """A run with checkpoints of format 1."""
    flags = ["dqn", "--env", "CartPole-v1", "--width", "8", "--depth", "1", "--buffer-size", "200"]
    flags += ["--learning-starts", "20", "--steps", "60", "--runs-dir", str(tmp_path_factory.mktemp("runs"))]
    config = parse_train([*flags, "--probe.every", "20", "--probe.samples", "16"])
    result = train(config, *build(config))
    assert result.ending == "finished"
    return as_one_file(result.directory)


@pytest.fixture
def run(before, tmp_path):
    """The same with checkpoints that are directories: steps 30 and 60, and a crash's at 50."""
    path = tmp_path / "run"
    shutil.copytree(before, path, ignore=shutil.ignore_patterns("checkpoints"))
    (path / "checkpoints").mkdir()
    config, _, agent = load_checkpoint(before / "checkpoints" / "final.pt")
    store = Store(path / "checkpoints", 2)
    for step in (30, 60):
        store.save(step, {"agent": agent, "rest": {}}, to_dict(config), {})
    store.save(50, {"agent": agent}, to_dict(config), {}, crashed=True)
    return path


def test_both_formats_are_played_and_measured_alike(before, run):
    played = [evaluate(parse_evaluate([str(path), "--episodes", "3"])) for path in (before, run)]
    assert played[0]["returns"] == played[1]["returns"] and played[0]["step"] == played[1]["step"] == 60
    flags = ["--probe", "ranks", "--checkpoint", "each"]
    old, new = (probe_checkpoints(parse_evaluate([str(path), *flags])) for path in (before, run))
    assert new["steps"] == [30, 60]
    assert {tag: values[-1] for tag, values in old["values"].items()} == {
        tag: values[-1] for tag, values in new["values"].items()
    }


def test_a_checkpoint_is_found_by_any_of_its_names(run, monkeypatch):
    newest = run / "checkpoints" / "step_000000000060"
    for place in (run, newest, newest / "agent.pt", newest / "checkpoint.json"):
        assert find_checkpoint(place) == newest
    older = run / "checkpoints" / "step_000000000030"
    assert find_checkpoint(older) == older and all_checkpoints(older) == [older]
    assert all_checkpoints(run) == [older, newest]
    crashed = run / "checkpoints" / "crashed_000000000050"
    assert find_checkpoint(crashed) == crashed and load_checkpoint(crashed)[1] == 50
    monkeypatch.chdir(newest)
    assert load_checkpoint(find_checkpoint(Path(".")))[1] == 60
    moved = newest.rename(run / "checkpoints" / "the best")
    assert load_checkpoint(find_checkpoint(moved))[1] == 60


def test_a_crashs_weights_are_played_where_nothing_else_is(run):
    for path in listed(run / "checkpoints"):
        shutil.rmtree(path)
    assert find_checkpoint(run).name == "crashed_000000000050"
    assert all_checkpoints(run) == [find_checkpoint(run)]
    assert evaluate(parse_evaluate([str(run), "--episodes", "1"]))["step"] == 50


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("agent.pt", "agent.pt is not as it was written"),
        ("checkpoint.json", "checkpoint.json is not as it was written"),
    ],
)
def test_damage_is_refused_without_torch(name, told, run):
    flip(find_checkpoint(run) / name)
    code = (
        "import sys; from pathlib import Path\n"
        "from experiments.cli import parse_evaluate; from experiments.evaluate_check import check_evaluation\n"
        "try: check_evaluation(parse_evaluate([sys.argv[1]]))\n"
        "except ValueError as error: print(error)\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code, str(run)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and told in done.stdout, done.stderr
    with pytest.raises(ValueError, match=told):
        load_checkpoint(find_checkpoint(run))


def test_what_evaluating_does_not_need_may_be_damaged(run):
    flip(find_checkpoint(run) / "rest.pt")
    check_evaluation(parse_evaluate([str(run)]))
    assert load_checkpoint(find_checkpoint(run))[1] == 60


def test_an_empty_directory_named_as_a_checkpoint_is_refused(run):
    (run / "checkpoints" / "step_000000000070").mkdir()
    with pytest.raises(ValueError, match="checkpoint.json: No such file"):
        check_evaluation(parse_evaluate([str(run)]))
