"""What a study file says, and what is said of one that is wrong."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.cli import parse_train
from experiments.config import to_dict
from experiments.sweep.here import limits_here
from experiments.sweep.listed import commands, overview
from experiments.sweep.plan import planned
from experiments.sweep.study import EXAMPLE, Claim, Resources, Tuning, read_study, study_of

ROOT = Path(__file__).parents[3]
BASE = {"agent": "dqn", "env": "CartPole-v1", "steps": 2000, "width": 8}
SMALL = {"question": "Which?", "base": BASE, "seeds": 2}


def study(**sections):
    return study_of({**SMALL, **sections}, "small")


def example(tmp_path, old="", new=""):
    """The example of --help as a file, with a part of it written otherwise."""
    assert old in EXAMPLE
    path = tmp_path / "example.yaml"
    path.write_text(EXAMPLE.replace(old, new, 1) if old else EXAMPLE)
    return path


def names(trials):
    return [trial.config.run.name.rpartition("_")[0] for trial in trials]


def test_the_example_at_both_sizes(tmp_path):
    claim, record = (read_study(example(tmp_path), size) for size in ("", "record"))
    assert claim.name == "example" and claim.size == "claim" and claim.takes == "25 core-minutes"
    assert claim.base["steps"] == "40000" and record.base["steps"] == "120000"
    assert claim.base["image.num-images"] == "100" and claim.arms["hl_gauss"]["v-min"] == "-5"
    assert [label for label, _ in claim.grid["interventions"]] == ["none", "layer_norm+weight_decay.rate=1"]
    assert [label for label, _ in record.grid["interventions"]] == [
        "none", "layer_norm", "redo.tau=0.025", "redo.tau=0.1", "layer_norm+weight_decay.rate=1",
    ]  # fmt: skip
    assert record.grid["interventions"][3][1] == {
        "interventions": "redo", "redo.tau": "0.1", "redo.when": "every 1000 gradient steps",
    }  # fmt: skip
    assert claim.seeds == tuple(range(1, 11))
    assert claim.tune == Tuning({"learning-rate": ("1e-4", "3e-4", "1e-3")}, (101, 102, 103), 0.25)
    assert claim.claims[0].by == 5 and claim.control == ("random", "fresh")
    assert claim.resources == Resources(1, 0.0, 10**9)


def test_a_plan_counts_its_trials(tmp_path):
    plan = planned(read_study(example(tmp_path)), tmp_path)
    # 2 losses x 2 interventions x 3 rates x 3 seeds; the arms, one random arm, of each arm a fresh agent in 3 tasks
    assert len(plan.tuning) == 36 and len(plan.trials) == (4 + 1 + 4 * 3) * 10
    assert len({trial.directory for trial in plan.tuning + plan.trials}) == 36 + 170
    assert {trial.config.run.steps for trial in plan.tuning} == {10_000}  # a quarter of 40,000
    fresh = [trial for trial in plan.trials if trial.kind == "fresh"]
    assert {(t.config.world.task.period, t.config.world.task.first, t.config.run.steps) for t in fresh} == {
        (0, 1, 10_000), (0, 2, 10_000), (0, 3, 10_000),
    }  # fmt: skip
    random = [trial for trial in plan.trials if trial.kind == "random"]
    assert {trial.config.agent.learning_starts for trial in random} == {40_000}
    assert not list(tmp_path.glob("claim*")) and not (tmp_path / "example").exists()


def test_a_trial_is_the_run_that_its_command_makes(tmp_path):
    plan = planned(read_study(example(tmp_path)), tmp_path)
    for trial in [plan.tuning[5], plan.trials[17], plan.trials[45], plan.trials[-1]]:
        line = subprocess.run(["bash", "-c", f"printf '%s\\n' {trial.command}"], capture_output=True, text=True)
        python, script, *words = line.stdout.splitlines()
        assert (python, script) == ("python", "train.py")
        assert to_dict(parse_train(words)) == to_dict(trial.config)


def test_a_thousand_trials_are_listed(tmp_path):
    grid = {"width": [8, 16, 32, 64, 128], "learning_rate": ["1e-4", "3e-4", "1e-3", "3e-3"]}
    grid["interventions"] = ["none", "layer_norm", {"redo": {"tau": [0, 0.025, 0.1]}}]
    plan = planned(study(grid=grid, seeds=10), tmp_path)
    assert len(plan.trials) == 1000 == len(commands(plan))
    told = overview(plan, limits_here(plan))
    assert told[-102:-100] == ["  in all: 1,000 new", "  side by side, their gradient steps computed as one:"]
    assert told[-1] == "    width=128 learning-rate=3e-3 redo.tau=0.1: seeds 1-10"


def test_arms_grids_and_worlds(tmp_path):
    plan = planned(
        study(
            arms={"plain": {}, "wide": {"agent.network.width": 16, "interventions": "redo"}},
            base={**BASE, "interventions": {"cbp": {"maturity": 5}}},
            grid={"env": ["CartPole-v1", "Acrobot-v1"], "loss": ["mse", {"loss": "two_hot", "v_min": -5, "v_max": 50}]},
        ),
        tmp_path,
    )
    assert len(plan.trials) == 2 * 2 * 2 * 2
    assert names(plan.trials)[::2] == [
        "plain_mse_in_CartPole-v1_s1", "plain_two_hot_in_CartPole-v1_s1",
        "plain_mse_in_Acrobot-v1_s1", "plain_two_hot_in_Acrobot-v1_s1",
        "wide_mse_in_CartPole-v1_s1", "wide_two_hot_in_CartPole-v1_s1",
        "wide_mse_in_Acrobot-v1_s1", "wide_two_hot_in_Acrobot-v1_s1",
    ]  # fmt: skip
    last = plan.trials[-1].config
    assert last.agent.network.width == 16 and [one.name for one in last.interventions] == ["redo"]
    assert plan.trials[0].config.interventions[0].maturity == 5 and plan.trials[-1].world == "Acrobot-v1"
    assert (last.agent.support.v_min, last.agent.support.v_max) == (-5, 50)


def test_tuning_is_for_the_arms_that_have_the_parameter(tmp_path):
    tune = {"values": {"redo.tau": [0.1, 0.025], "learning_rate": [1e-4, 1e-3]}, "seeds": [7], "share": 0.5}
    plan = planned(study(grid={"interventions": ["none", "redo"]}, tune=tune), tmp_path)
    assert names(plan.tuning) == [
        "none_learning-rate=0.0001_s7", "none_learning-rate=0.001_s7",
        "redo_redo.tau=0.025_learning-rate=0.0001_s7", "redo_redo.tau=0.025_learning-rate=0.001_s7",
        "redo_redo.tau=0.1_learning-rate=0.0001_s7", "redo_redo.tau=0.1_learning-rate=0.001_s7",
    ]  # fmt: skip
    chosen = {"none": {"learning-rate": "0.001"}, "redo": {"redo.tau": "0.1", "learning-rate": "0.0001"}}
    reported = planned(study(grid={"interventions": ["none", "redo"]}, tune=tune), tmp_path, chosen).trials
    assert names(reported)[::2] == ["none_learning-rate=0.001_s1", "redo_redo.tau=0.1_learning-rate=0.0001_s1"]
    assert reported[2].config.interventions[0].tau == 0.1 and reported[0].config.agent.learning_rate.start == 0.001


def test_threads_are_the_reserved_cores(tmp_path):
    config = planned(study(resources={"cpus": 3, "gpus": 0.25}), tmp_path).trials[0].config
    assert config.run.threads == 3 and config.run.device == "auto"
    config = planned(study(), tmp_path).trials[0].config
    assert config.run.threads == 1 and config.run.device == "cpu"


@pytest.mark.parametrize(
    ("written", "seeds"),
    [("3", (1, 2, 3)), (3, (1, 2, 3)), ("4-6", (4, 5, 6)), ("4-6, 9", (4, 5, 6, 9)), (["4", 7], (4, 7)), ([5], (5,))],
)
def test_seeds(written, seeds):
    assert study(seeds=written).seeds == seeds


@pytest.mark.parametrize(
    ("sections", "sentence"),
    [
        ({"seeds": 0}, "seeds = 0: must be at least one seed"),
        ({"seeds": "3-1"}, "seeds = '3-1': must be how many"),
        ({"seeds": [1, 1]}, "each once"),
        ({"arms": {"a": {}, "b": {}}}, "arms = 'b': must be settings of their own; a has the same"),
        ({"arms": {"a": {"seed": 1}}}, "a sweep sets seed, name, runs-dir, num-seeds itself"),
        ({"grid": {"width": 8}}, "grid.width = 8: must be a list"),
        ({"grid": {"width": [8, 8]}}, "grid.width = 'width=8': must be given once"),
        ({"grid": {"width": [{"depth": 1}]}}, "a mapping that has width and more"),
        ({"grid": {"loss": [{"loss": {"a": 1}}]}}, "a mapping that has loss and more"),
        ({"grid": {"loss": ["mse", "mes"]}}, "mes: --loss = 'mes': must be one of huber, mse"),
        ({"grid": {"interventions": ["nope"]}}, "interventions = 'nope': must be some of"),
        ({"grid": {"interventions": [{"redo": {"tua": 1}}]}}, "--redo.tua: no such flag"),
        ({"grid": {"interventions": [{"redo": {"tau": -1}}]}}, "redo.tau=-1: redo.tau = -1"),
        ({"base": {**BASE, "interventions": {"redo": {"tau": [1, 2]}}}}, "must be one value"),
        ({"base": {"env": "CartPole-v1"}}, "agent = None: must be one of dqn, c51, ppo"),
        ({"base": {**BASE, "env": "CartPoel-v1"}}, "unknown world"),
        ({"tune": {"values": {"learning_rate": [1]}, "seeds": "7"}}, "a list of two or more"),
        ({"tune": {"values": {"learning_rate": [1, 2]}, "seeds": "2"}}, "none of those that are reported"),
        ({"tune": {"values": {"learning_rate": [1, 2]}, "seeds": "7-8", "share": 0}}, "tune.share = 0: must be in"),
        ({"control": "frehs"}, "did you mean 'fresh'?"),
        ({"claims": [{"says": "x", "than": "a"}]}, "claims[0].arm = '': must be the name of an arm"),
        ({"claims": [{"says": "x", "arm": "a", "than": "dqn"}]}, "claims[0] = 'a': must be an arm; there are 'dqn'"),
        ({"resources": {"gpus": 1.5}}, "resources.gpus = 1.5: must be a share"),
        ({"resources": {"memory": "2XB"}}, "resources.memory = '2XB'"),
        ({"sizes": {"big": {"taks": "1 h"}}}, "sizes.big.taks"),
        ({"question": " "}, "what the study is to answer"),
        ({"qestion": "x"}, "did you mean 'question'?"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(sections, sentence, tmp_path):
    with pytest.raises(ValueError, match=r".") as caught:
        planned(study(**sections), tmp_path)
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a: [", "is not YAML that can be read"),
        ("a: 1\na: 2", "'a' stands twice, line 2, column 1"),
        ("a: &x [1]\nb: *x", "aliases"),
        ("[" * 3000, "nested too deeply"),
        ("a: " + "[" * 30 + "]" * 30, "nested too deeply"),
        ("{[1]: 2}", "a key must be a word"),
        ("a: 1\n---\nb: 2", "is not YAML that can be read"),
        ("just words", "a mapping of question"),
        ("", "a mapping of question"),
    ],
)
def test_what_is_no_study_is_refused(text, sentence, tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match="study") as caught:
        read_study(path)
    assert sentence in str(caught.value)


def test_the_claims_of_a_study_are_read():
    said = {"says": "It helps.", "arm": "dqn", "than": "dqn", "by": "-2.5", "measure": "targets/mean"}
    assert study(claims=[said]).claims == (Claim("It helps.", "dqn", "dqn", "targets/mean", -2.5),)


def test_a_bad_file_is_answered_without_torch(tmp_path):
    path = example(tmp_path, "hl_gauss, v_min", "hl_gaus, v_min")
    code = f"""
import runpy, sys
sys.argv = ["sweep.py", {str(path)!r}, "--runs-dir", {str(tmp_path / "runs")!r}]
try:
    runpy.run_path("sweep.py", run_name="__main__")
except SystemExit as end:
    print(end.code, "torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env=os.environ)
    assert done.stdout == "2 False\n" and not (tmp_path / "runs").exists()
    assert done.stderr.count("\n") == 1 and "'hl_gaus': must be one of" in done.stderr
