"""What can be said of runs of known content, by hand: arms, tables, controls, and what is told aloud."""

import math
from pathlib import Path

import numpy as np
import pytest

from experiments.results.comparison import Comparison, compare, enough
from experiments.results.rows import Row
from experiments.results.settings import CompareConfig
from experiments.results.tables import numbers, on_screen
from tests.experiments.results.made import a_run, cut, write

LN = [{"name": "layer_norm"}]
REDO = [{"name": "layer_norm"}, {"name": "redo", "tau": 0.1}]


def compared(folder: Path, **settings) -> Comparison:
    return compare(CompareConfig((str(folder),), **settings))


def row(told: Comparison, arm: str, scope: str = "overall", world: str | None = None) -> Row:
    chosen = [one for one in told.tables if one.scope == scope and world in (None, one.world)]
    return next(one for one in chosen[0].rows if one.arm == arm)


def names(told: Comparison) -> list[str]:
    return [arm.name for arm in told.arms]


def test_arms_are_named_by_what_differs(tmp_path):
    for seed in (1, 2):
        a_run(tmp_path, f"a{seed}", [1.0], seed, settings={"loss": "mse"})
        a_run(tmp_path, f"b{seed}", [1.0], seed, settings={"loss": "hl_gauss", "learning_rate": 1e-3})
        a_run(tmp_path, f"c{seed}", [1.0], seed, settings={"loss": "mse"}, interventions=LN)
        a_run(tmp_path, f"d{seed}", [1.0], seed, settings={"loss": "mse"}, interventions=REDO)
    told = compared(tmp_path)
    assert names(told) == ["mse", "hl_gauss", "mse layer_norm", "mse layer_norm+redo"]
    assert told.baseline == "mse"
    assert [len(arm.runs) for arm in told.arms] == [2, 2, 2, 2]
    assert any(note.startswith("not in the names, learning-rate differs: mse ") for note in told.notes)
    assert names(compared(tmp_path, by=("interventions",))) == ["none", "layer_norm", "layer_norm+redo"]
    pooled = compared(tmp_path, by=("interventions",))
    assert any(note.startswith("none: pools runs that differ in loss, learning-rate") for note in pooled.notes)
    assert row(pooled, "none").n == 2  # a seed counts once
    assert names(compared(tmp_path, where=("loss=mse",))) == ["none", "layer_norm", "layer_norm+redo"]
    assert names(compared(tmp_path, where=("learning_rate=1e-3",))) == ["dqn"]
    assert compared(tmp_path, baseline="hl_gauss").tables[0].baseline == "hl_gauss"


def test_strengths_and_agents_make_arms(tmp_path):
    for tau in (0.1, 0.025):
        a_run(tmp_path, f"r{tau}", [1.0], interventions=[{"name": "redo", "tau": tau}])
    a_run(tmp_path, "plain", [1.0])
    assert names(compared(tmp_path)) == ["none", "redo redo.tau=0.025", "redo redo.tau=0.1"]
    a_run(tmp_path, "c51", [1.0], agent="c51")
    assert names(compared(tmp_path))[:2] == ["dqn", "c51"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"by": ("los",)}, "field = 'los': must be a setting, .* did you mean 'loss'"),
        ({"where": ("loss",)}, "where = 'loss': must be FIELD=VALUE"),
        ({"where": ("loss=c51",)}, "where = 'loss=c51': must be met by a run; of loss there are huber"),
        ({"metric": "targets/men"}, "metric = 'targets/men': .* did you mean 'targets/mean'"),
        ({"baseline": "huber"}, "baseline = 'huber': must be an arm; there are 'none', 'layer_norm'"),
    ],
)
def test_what_means_nothing_here_is_refused(settings, words, tmp_path):
    a_run(tmp_path, "a", [1.0])
    a_run(tmp_path, "b", [1.0], interventions=LN)
    with pytest.raises(ValueError, match=words):
        compared(tmp_path, **settings)


def test_scores_are_last_tenths_by_task(tmp_path):
    a_run(tmp_path, "a1", [80.0, 40.0, 30.0], 1)
    a_run(tmp_path, "a2", [90.0, 60.0, 60.0], 2)
    a_run(tmp_path, "b1", [80.0, 80.0, 80.0], 1, interventions=LN)
    a_run(tmp_path, "b2", [90.0, 80.0, 70.0], 2, interventions=LN)
    told = compared(tmp_path)
    plain = row(told, "none")
    assert plain.n == 2
    assert plain.mean.value == 60.0  # of 50 and 70
    assert (plain.mean.low, plain.mean.high) == (50.0, 70.0)
    assert plain.iqm.value == 60.0  # of 30 40 60 60 80 90 without one at each end
    assert plain.worst_quarter == 50.0


def test_the_interquartile_mean_runs_over_seeds_and_tasks(tmp_path):
    a_run(tmp_path, "a1", [80.0, 40.0], 1)
    a_run(tmp_path, "a2", [90.0, 60.0], 2)
    assert row(compared(tmp_path), "dqn").iqm.value == 70.0  # of 40, 60, 80, 90 without the first and the last


def test_collapse_and_what_is_retained_without_a_random_control(tmp_path):
    a_run(tmp_path, "a1", [80.0, 60.0, 39.0], 1)  # below half of 80 in the last task
    a_run(tmp_path, "a2", [80.0, 30.0, 60.0], 2)  # in the one between
    a_run(tmp_path, "a3", [80.0, 60.0, 41.0], 3)
    told = compared(tmp_path)
    assert any("acting at random counts as a return of 0" in note for note in told.notes)
    everything = row(told, "dqn")
    assert everything.collapsed.value == pytest.approx(2 / 3)
    assert row(told, "dqn", "task 2").collapsed.value == pytest.approx(1 / 3)
    assert math.isnan(row(told, "dqn", "task 0").collapsed.value)
    assert everything.retained.value == pytest.approx((39 + 60 + 41) / 3 / 80)
    assert row(told, "dqn", "task 1").retained.value == pytest.approx((60 + 30 + 60) / 3 / 80)
    assert row(compared(tmp_path, collapsed_below=0.8), "dqn").collapsed.value == 1.0


def test_negative_returns_need_a_random_control(tmp_path):
    a_run(tmp_path, "a1", [10.0, -5.0], 1)
    told = compared(tmp_path)
    assert any("returns are negative and no random control" in note for note in told.notes)
    assert math.isnan(row(told, "dqn").retained.value) and math.isnan(row(told, "dqn").collapsed.value)
    a_run(tmp_path, "r1", [-20.0, -20.0], 1, settings={"learning_starts": 200})
    told = compared(tmp_path)
    assert names(told) == ["dqn"]
    assert any("random control: 1 runs" in note for note in told.notes)
    assert row(told, "dqn").retained.value == pytest.approx((-5 + 20) / (10 + 20))
    assert row(told, "dqn").collapsed.value == 0.0  # half way from -20 to 10 is -5, which is not below it


def test_where_nothing_changes_nobody_asks_for_a_random_control(tmp_path):
    a_run(tmp_path, "a1", [-10.0], 1)
    assert compared(tmp_path).notes == []
    a_run(tmp_path, "b1", [10.0], 1, world={"env": "CartPole-v1"})
    assert any("returns are negative" in note for note in compared(tmp_path).notes)  # for one scale over worlds


def test_a_run_that_learned_nothing_counts_as_collapsed(tmp_path):
    a_run(tmp_path, "a1", [9.0, 9.0], 1)
    a_run(tmp_path, "a2", [50.0, 50.0], 2)
    a_run(tmp_path, "r1", [10.0, 10.0], 7, settings={"learning_starts": 200})
    told = compared(tmp_path)
    assert row(told, "dqn").collapsed.value == 0.5
    assert row(told, "dqn").retained.value == 1.0  # of the other alone


def test_the_gap_to_a_fresh_agent(tmp_path):
    for seed, (continual, fresh, chance) in {1: (60.0, 80.0, 10.0), 2: (40.0, 90.0, 20.0)}.items():
        a_run(tmp_path, f"c{seed}", [80.0, continual, continual], seed)
        alone = {"task": {"first": 1, "period": 0}}
        a_run(tmp_path, f"f{seed}", [fresh], seed, world=alone)
        a_run(tmp_path, f"r{seed}", [chance] * 3, seed, settings={"learning_starts": 300})
    told = compared(tmp_path)
    assert names(told) == ["dqn"]
    assert any("fresh-agent control: 2 runs of task 1 alone" in note for note in told.notes)
    expected = ((80 + 90) / 2 - (60 + 40) / 2) / ((80 + 90) / 2 - (10 + 20) / 2)
    assert row(told, "dqn", "task 1").gap.value == pytest.approx(expected)
    assert row(told, "dqn").gap.value == pytest.approx(expected)  # the only task with a control
    assert math.isnan(row(told, "dqn", "task 2").gap.value)
    assert not told.warnings
    for seed in (1, 2):
        short = {"task": {"first": 2, "period": 0}}
        a_run(tmp_path, f"s{seed}", [70.0, 70.0], seed, world=short, changes=False)
    assert any("another budget than a task: 200 steps for tasks of 100" in one for one in compared(tmp_path).warnings)
    assert "G_k" in "\n".join(on_screen(told))


def test_a_fresh_agent_is_that_of_its_own_arm(tmp_path):
    a_run(tmp_path, "c1", [80.0, 60.0], 1)
    a_run(tmp_path, "l1", [80.0, 60.0], 1, interventions=LN)
    a_run(tmp_path, "f1", [70.0], 1, world={"task": {"first": 1, "period": 0}})
    told = compared(tmp_path)
    assert row(told, "none", "task 1").gap.value == pytest.approx((70 - 60) / 70)
    assert math.isnan(row(told, "layer_norm", "task 1").gap.value)


def test_unfinished_runs_are_named_and_left_out_or_cut(tmp_path):
    a_run(tmp_path, "a1", [10.0, 20.0], 1)
    cut(a_run(tmp_path, "a2", [30.0, 99.0], 2), 120)
    told = compared(tmp_path)
    assert [(path.name, why[:31]) for path, why in told.left_out] == [("a2", "unfinished at step 120 of 200, ")]
    assert row(told, "dqn").n == 1
    assert "left out: " in on_screen(told)[1] and "a2" in on_screen(told)[1]
    told = compared(tmp_path, unfinished="cut")
    assert told.left_out == []
    assert told.worlds[0].length == 120 and told.worlds[0].tasks == [0]
    assert row(told, "dqn").mean.value == 20.0  # of 10 and 30: task 1 is whole in neither
    assert any("1 of 2 runs are cut to 120 steps, the length of a2" in note for note in told.notes)
    assert any("a2 is unfinished" in note for note in told.notes)


def test_nothing_finished_is_an_error_that_says_what_to_do(tmp_path):
    a_run(tmp_path, "a1", [10.0], finished=False)
    with pytest.raises(ValueError, match="a1 is left out, unfinished .* --unfinished cut"):
        compared(tmp_path)


def test_failed_runs_are_warned_of(tmp_path):
    a_run(tmp_path, "a1", [10.0], 1)
    (cut_run := a_run(tmp_path, "a2", [10.0], 2)).joinpath("traceback.txt").write_text("ValueError: x\n")
    cut(cut_run, 50)
    bad = a_run(tmp_path, "a3", [10.0], 3)
    lines = (bad / "episodes.jsonl").read_text().replace('"return": 10.0', '"return": null', 1)
    (bad / "episodes.jsonl").write_text(lines)
    told = compared(tmp_path)
    assert sorted(path.name for path, _ in told.left_out) == ["a2", "a3"]
    assert any("dqn: 2 of 3 runs failed and are left out" in warning for warning in told.warnings)


def test_unequal_lengths_are_cut_aloud_and_warned_of(tmp_path):
    a_run(tmp_path, "a1", [10.0, 20.0, 30.0], 1)
    a_run(tmp_path, "b1", [10.0, 20.0], 1, interventions=LN)
    told = compared(tmp_path)
    assert told.worlds[0].tasks == [0, 1]
    assert row(told, "none").mean.value == row(told, "layer_norm").mean.value == 15.0
    assert any("1 of 2 runs are cut to 200 steps" in note for note in told.notes)
    assert any("budgets differ (steps): none 300; layer_norm 200" in warning for warning in told.warnings)


def test_replay_capacities_and_commits_are_warned_of(tmp_path):
    a_run(tmp_path, "a1", [10.0], 1)
    a_run(tmp_path, "b1", [10.0], 1, settings={"buffer_size": 70}, interventions=LN, commit="b" * 40)
    told = compared(tmp_path, by=("interventions",))
    assert any("replay capacities differ (buffer-size): none 50; layer_norm 70" in one for one in told.warnings)
    assert any("2 versions of the code: aaaaaaaaaa, bbbbbbbbbb" in one for one in told.warnings)


def test_the_same_run_twice_counts_once(tmp_path):
    a_run(tmp_path, "a1", [10.0, 10.0], 1)
    a_run(tmp_path, "a1_short", [90.0], 1, world={"task": {"period": 100}})
    told = compared(tmp_path)
    assert row(told, "dqn").n == 1 and row(told, "dqn").mean.value == 10.0
    assert [(path.name, why) for path, why in told.left_out] == [
        ("a1_short", "the same settings and seed as a1, and not longer")
    ]


def test_verdicts_wait_for_ten_seeds(tmp_path):
    for seed in range(1, 10):
        a_run(tmp_path, f"a{seed}", [50.0 + seed], seed)
        a_run(tmp_path, f"b{seed}", [60.0 + seed], seed, interventions=LN)
    told = compared(tmp_path)
    found = row(told, "layer_norm")
    assert (found.pairs, found.difference.value, found.p) == (9, 10.0, 2 / 2**9)
    assert found.verdict == "undecided (n = 9)"
    assert enough(told) == "verdicts need 10 seeds that an arm and its baseline both have; the fewest here are 9"
    a_run(tmp_path, "a10", [60.0], 10)
    a_run(tmp_path, "b10", [70.0], 10, interventions=LN)
    found = row(compared(tmp_path), "layer_norm")
    assert (found.p, found.least_p, found.verdict) == (2 / 2**10, 2 / 2**10, "better (n = 10)")
    a_run(tmp_path, "c11", [70.0], 11, interventions=LN)  # a seed that the baseline has not
    found = row(compared(tmp_path), "layer_norm")
    assert (found.n, found.pairs) == (11, 10)
    told = compared(tmp_path, metric="targets/mean")
    assert row(told, "layer_norm").verdict == "higher (n = 10)"  # whether that is better nobody says


def test_holm_runs_over_the_arms_of_a_table(tmp_path):
    for seed in range(1, 6):
        a_run(tmp_path, f"a{seed}", [50.0], seed)
        a_run(tmp_path, f"b{seed}", [51.0], seed, interventions=LN)
        a_run(tmp_path, f"c{seed}", [50.0 + (-1) ** seed], seed, interventions=REDO)
    told = compared(tmp_path)
    b, c = row(told, "layer_norm"), row(told, "layer_norm+redo")
    assert b.p == 2 / 32 and b.p_holm == 2 * b.p
    assert c.p == 1.0 and c.p_holm == 1.0
    assert b.improvement.value == 1.0 and c.improvement.value == pytest.approx(0.4)  # 2 of 5 above


def test_worlds_are_strata(tmp_path):
    for seed in (1, 2):
        for env, scale in (("CartPole-v1", 1.0), ("Acrobot-v1", 100.0)):
            a_run(tmp_path, f"a{env}{seed}", [2.0 * scale], seed, world={"env": env})
            a_run(tmp_path, f"b{env}{seed}", [3.0 * scale], seed, world={"env": env}, interventions=LN)
    told = compared(tmp_path)
    assert [world.name for world in told.worlds] == ["Acrobot-v1", "CartPole-v1"]
    assert [table.world for table in told.tables] == ["all", "Acrobot-v1", "CartPole-v1"]
    both = row(told, "layer_norm", world="all")
    assert (both.n, both.pairs, both.p) == (4, 4, 2 / 2**4)
    assert both.mean == pytest.approx((1.5, 1.5, 1.5)) and row(told, "none", world="all").mean.value == 1.0
    assert row(told, "layer_norm", world="Acrobot-v1").mean.value == 300.0


def test_the_same_world_in_other_numbers_is_one_world(tmp_path):
    for seed in (1, 2):
        a_run(tmp_path, f"a{seed}", [1.0], seed, world={"env": "CartPole-v1"})
        ppo = {"env": "CartPole-v1", "num_envs": 8, "backend": "gymnasium"}
        a_run(tmp_path, f"b{seed}", [2.0], seed, agent="ppo", settings={"rollout_steps": 5}, world=ppo)
    told = compared(tmp_path)
    assert [world.name for world in told.worlds] == ["CartPole-v1"] and names(told) == ["dqn", "ppo"]
    assert row(told, "ppo").pairs == 2
    assert any(note.startswith("not in the names, num-envs differs: dqn 1; ppo 8") for note in told.notes)


def test_what_the_world_alone_decides_makes_no_arm(tmp_path):
    a_run(tmp_path, "a", [1.0], world={"env": "CartPole-v1"}, settings={"gamma": 0.9})
    a_run(tmp_path, "b", [1.0], world={"env": "CartPole-v1"}, settings={"gamma": 0.9}, interventions=LN)
    a_run(tmp_path, "c", [1.0], world={"env": "Acrobot-v1"}, settings={"gamma": 0.99})
    told = compared(tmp_path)
    assert names(told) == ["none", "layer_norm"]
    assert any("arms were not run in the same worlds" in warning for warning in told.warnings)


def test_a_task_without_games_in_its_last_tenth_has_no_score(tmp_path):
    a_run(tmp_path, "a1", [10.0], 1)
    path = a_run(tmp_path, "a2", [10.0], 2)
    lines = (path / "episodes.jsonl").read_text().splitlines()
    (path / "episodes.jsonl").write_text("\n".join(lines[:8]) + "\n")
    told = compared(tmp_path)
    assert [(one.name, why) for one, why in told.left_out] == [("a2", "no game ended in the last tenth of task 0")]


def test_final_probe_values_and_every_number_of_a_table(tmp_path):
    for seed, value in ((1, 0.2), (2, 0.4)):
        a_run(tmp_path, f"a{seed}", [10.0], seed, probes={"probes/dead_fraction/all": value})
    told = compared(tmp_path)
    lines = "\n".join(on_screen(told))
    assert "dead_fraction/all" in lines and "0.3 [0.2, 0.4]" in lines
    flat = numbers(told)[0]
    assert (flat["n"], flat["mean"], flat["mean_low"], flat["arm"]) == (2, 10.0, 10.0, "dqn")


def test_of_many_tasks_the_screen_shows_the_first_and_the_last(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    a_run(tmp_path, "a", [float(task + 1) for task in range(14)])
    header = next(line for line in on_screen(compared(tmp_path)) if "task 0" in line)
    assert "... 4 more in comparison.md" in "\n".join(on_screen(compared(tmp_path)))
    assert "task 4" in header and "task 6" not in header


def test_a_config_of_another_kind_is_left_out(tmp_path):
    a_run(tmp_path, "a", [1.0])
    write(a_run(tmp_path, "b", [1.0]) / "config.json", {"algorithm": "sac"})
    told = compared(tmp_path)
    assert [path.name for path, _ in told.left_out] == ["b"]
    assert np.isfinite(row(told, "dqn").mean.value)
