"""Which trials one process makes, and what becomes of each: no Ray."""

import json
from io import StringIO

import pytest
import torch
from rich.console import Console

from experiments.run_directory import find_checkpoint
from experiments.store import read
from experiments.sweep import stacks
from experiments.sweep import trials as trials_module
from experiments.sweep.disk import OF_A_PROCESS, need_of
from experiments.sweep.plan import planned
from experiments.sweep.stacks import Limits, bundles, in_words, memory_of
from experiments.sweep.study import study_of
from experiments.sweep.sweeping import sweep
from tests.experiments.sweep.test_sweeping import BASE, TUNE
from tests.experiments.test_run import one_thread  # noqa: F401

SHORT = {**BASE, "steps": 400, "task": {"change": "rewards", "period": 150}, "checkpoint_every": 200}


def study(**sections):
    return study_of({"question": "Which?", "base": SHORT, "seeds": 10, **sections}, "small")


def limits(workers=1, seeds=0, most=100):
    """Of which a process has memory for `most` seeds."""
    return Limits(seeds, workers, lambda trial, count: workers if count <= most else 0)


def together(trials, given):
    """By process, arm and seeds."""
    return [f"{bundle[0].label} {' '.join(str(trial.seed) for trial in bundle)}" for bundle in bundles(trials, given)]


def sizes(trials, given):
    return [len(bundle) for bundle in bundles(trials, given)]


@pytest.mark.parametrize(
    ("arms", "workers", "expected"),
    [
        # of n side by side all take (n + 1) / 2 of the time of one
        (1, 1, [10]),  # 5.5
        (1, 2, [5, 5]),  # 3, and not 5.5 with one worker idle
        (1, 3, [4, 3, 3]),  # 2.5
        (1, 16, [1] * 10),  # 1
        (3, 2, [5] * 6),  # three rounds of 3, and not two of 5.5
        (6, 2, [10] * 6),  # three rounds of 5.5, and not six of 3
        (6, 16, [5] * 12),  # 3; three parts each (18 stacks) would be two rounds
    ],
)
def test_as_few_stacks_as_are_done_soonest(arms, workers, expected, tmp_path):
    trials = planned(study(grid={"width": list(range(8, 8 + arms))}), tmp_path).trials
    assert sizes(trials, limits(workers)) == expected


def test_memory_and_the_study_limit_them(tmp_path):
    trials = planned(study(), tmp_path).trials
    assert sizes(trials, limits(most=4)) == [4, 3, 3] == sizes(trials, limits(seeds=4))
    assert sizes(trials, limits(seeds=1)) == [1] * 10 == sizes(trials, limits(most=0))
    assert sizes(planned(study(seeds=40), tmp_path).trials, limits()) == [14, 13, 13]  # 16 at most
    # two workers have memory for a stack of three each, or one of them for five
    room = {1: 4, 2: 3, 3: 2, 4: 1, 5: 1}
    assert sizes(trials, Limits(0, 2, lambda trial, count: room.get(count, 0))) == [3, 2, 3, 2]
    own = need_of(trials[0].config).memory - OF_A_PROCESS
    assert memory_of(trials[0], 3) == OF_A_PROCESS + 3 * own and memory_of(trials[0], 3, 50) == 150


def test_who_is_alone_and_why(tmp_path):
    grid = {"interventions": ["none", "batch_norm"]}
    plan = planned(study(grid=grid, tune=TUNE, control=["random", "fork"], seeds=2), tmp_path)
    told = in_words([*plan.tuning, *plan.trials, *plan.forks], limits())
    assert told[0] == "  side by side, their gradient steps computed as one:"
    assert "    none learning-rate=1e-4: seeds 1-2; 1-2" in told  # the arm, and what is forked
    alone = told[told.index("  alone:") + 1 :]
    assert "    batch_norm learning-rate=1e-4 (5): something is drawn or moved in the forward pass" in alone
    assert "    random (2): nothing is learned" in alone
    assert in_words(planned(study(seeds=2), tmp_path).trials, limits(seeds=1)) == [
        "  alone:",
        "    dqn (2): resources.seeds is 1",
    ]
    many = in_words(planned(study(seeds=2), tmp_path).trials, limits(workers=2))
    assert many[1].startswith("    dqn (2): side by side they would be done no sooner, with 2 processes at a time")


def test_those_that_have_learned_go_on_with_whom_they_were(tmp_path, monkeypatch):
    trials = planned(study(), tmp_path).trials
    begun = {1: (1, 2, 3), 2: (1, 2, 3), 4: (), 5: ()}  # 3 has not been saved yet
    monkeypatch.setattr(stacks, "company", lambda directory: begun.get(trials[_place(trials, directory)].seed))
    assert together(trials, limits()) == ["dqn 1 2 3", "dqn 4", "dqn 5", "dqn 6 7 8 9 10"]
    assert "    dqn (2): it was begun alone, or ended by itself" in in_words(trials, limits())
    assert together(trials[:5], limits(most=2)) == ["dqn 1 2", "dqn 3", "dqn 4", "dqn 5"]  # for want of memory
    assert together(trials[:3], limits(seeds=1)) == ["dqn 1", "dqn 2", "dqn 3"]


def _place(trials, directory):
    return [trial.directory for trial in trials].index(directory)


def weights(trial):
    return read(find_checkpoint(trial.directory)).load("agent")["network"]


@pytest.mark.long
def test_each_is_the_run_that_it_would_be_alone(tmp_path):
    alone = sweep(study(seeds=3, resources={"seeds": 1}), tmp_path / "alone", workers=1)
    beside = sweep(study(seeds=3), tmp_path / "beside", workers=1)
    for one, other in zip(alone.finished, beside.finished, strict=True):
        assert one.config.run.name == other.config.run.name and other.seed in (1, 2, 3)
        games = [(trial.directory / "episodes.jsonl").read_text() for trial in (one, other)]
        assert games[0] == games[1] and games[0]
        torch.testing.assert_close(weights(one), weights(other), rtol=1e-3, atol=1e-4)
        made_by = read(find_checkpoint(other.directory)).made_by
        assert made_by["stacked_seeds"] == [1, 2, 3]


def failing(monkeypatch, seed, errors):
    """Have the agent of `seed` fail at step 300 with each of `errors` in turn, where there are any left."""
    built = trials_module.build

    def build(config, threads):
        world, agent = built(config, threads)
        if config.run.seed == seed:

            class Fails(type(agent)):
                def observe(self, transitions):
                    if errors and self.clock.steps >= 300:
                        raise errors.pop()
                    super().observe(transitions)

            agent.__class__ = Fails
        return world, agent

    monkeypatch.setattr(trials_module, "build", build)


def test_one_that_fails_is_listed_alone(tmp_path, monkeypatch):
    failing(monkeypatch, 2, [RuntimeError("no such thing")])
    said = Console(file=StringIO(), width=200)
    swept = sweep(study(seeds=3), tmp_path, workers=1, console=said)
    assert [trial.seed for trial in swept.finished] == [1, 3] and not swept.left
    assert [(trial.seed, why) for trial, why in swept.failed] == [(2, "RuntimeError: no such thing")]
    assert "in observe" in (swept.failed[0][0].directory / "traceback.txt").read_text()
    again = sweep(study(seeds=3), tmp_path, workers=1)  # from its newest checkpoint, alone
    assert [trial.seed for trial in again.finished] == [1, 2, 3]


@pytest.mark.long
def test_one_that_runs_out_of_memory_is_tried_again_alone(tmp_path, monkeypatch):
    failing(monkeypatch, 2, [MemoryError("too much")])
    said = Console(file=StringIO(), width=200)
    swept = sweep(study(seeds=3), tmp_path, workers=1, console=said)
    assert [trial.seed for trial in swept.finished] == [1, 2, 3]
    assert said.file.getvalue().count("goes on: ") == 1 and "MemoryError: too much" in said.file.getvalue()


@pytest.mark.long
def test_one_that_cannot_begin_leaves_the_others_alone(tmp_path):
    trials = planned(study(seeds=3), tmp_path).trials
    trials[1].directory.mkdir(parents=True)
    (trials[1].directory / "config.json").write_text(json.dumps({"run": {}}))
    swept = sweep(study(seeds=3), tmp_path, workers=1)
    assert [trial.seed for trial in swept.finished] == [1, 3]
    assert [(trial.seed, "exists already" in why) for trial, why in swept.failed] == [(2, True)]
