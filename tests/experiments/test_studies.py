"""The studies: their statistics by hand, their runs in small, and the published numbers that they must reproduce."""

import pytest

from agents.interventions import LayerNorm, ReDo, WeightDecay
from experiments.results.tables import in_markdown, write_rows
from experiments.studies import overshoot, random_labels, target_mean
from experiments.studies.arms import STRENGTHS, interventions
from experiments.studies.report import (
    completed,
    incomplete,
    parser,
    read_rows,
)


def test_rows_go_to_a_file_and_come_back(tmp_path):
    rows = [{"arm": "none", "seed": 1.0, "task": 1.0, "accuracy": 0.25}, {"arm": "a + b", "seed": 2.0, "task": 1.0}]
    rows[1]["accuracy"] = 1 / 3
    write_rows(tmp_path / "rows.csv", rows)
    assert read_rows(tmp_path / "rows.csv") == [rows[0], {**rows[1], "accuracy": 0.333333}]


def test_a_seed_of_an_arm_is_complete_with_all_its_values():
    rows = [{"arm": "none", "seed": seed, "task": task} for seed in (1.0, 2.0) for task in (1.0, 2.0)]
    assert incomplete(rows, ["none", "redo"], 1, "task", (1, 2)) == [("redo", 1)]
    assert incomplete(rows, ["none"], 3, "task", (1, 2)) == [("none", 3)]
    assert incomplete(rows, ["none"], 2, "task", (1, 2, 3)) == [("none", 1), ("none", 2)]
    assert incomplete(rows[1:], ["none"], 2, "task", (1, 2)) == [("none", 1)]
    assert incomplete([], [], 2, "task", (1,)) == []


def made(arm, seed, fails):
    """A run of two tasks, of which one fails."""
    if (arm, seed) == fails:
        raise RuntimeError("interrupted")
    return [{"arm": arm, "seed": seed, "task": task, "return": 10.0 * seed + task} for task in (1, 2)]


def test_an_interrupted_study_goes_on_where_it_was(tmp_path):
    flags = parser("", ["none", "redo"], seeds=3)
    asked = []

    def study(words, fails=None):
        given = flags.parse_args([str(tmp_path / "a.png"), "--workers", "1", *words])

        def jobs(missing, rows):
            asked.append((missing, len(rows)))
            return [(arm, seed, fails) for arm, seed in missing]

        return completed(given, ["redo", "none"], "task", (1, 2), jobs, made)

    with pytest.raises(RuntimeError, match="interrupted"):
        study([], fails=("redo", 2))
    rows = study([])
    assert asked[0] == ([("none", 1), ("none", 2), ("none", 3), ("redo", 1), ("redo", 2), ("redo", 3)], 0)
    assert asked[1] == ([("redo", 2)], 10)  # the jobs after the one that failed were made all the same
    assert [(row["arm"], row["seed"], row["task"]) for row in rows] == [
        (arm, seed, task) for arm in ("redo", "none") for seed in (1, 2, 3) for task in (1, 2)
    ]
    assert [row["seed"] for row in study(["--seeds", "1"])] == [1, 1, 1, 1]  # fewer are reported, none is lost
    assert study([]) == rows and len(asked) == 2


def test_a_study_that_is_extended_loses_nothing_when_it_fails(tmp_path):
    old = [{"arm": arm, "seed": seed, "task": 1, "return": 0.5} for arm in ("gone", "none") for seed in (1, 2)]
    write_rows(tmp_path / "a.csv", old)
    given = parser("", ["none", "redo"], seeds=2).parse_args([str(tmp_path / "a.png"), "--workers", "1"])

    def jobs(missing, rows):
        assert missing == [("none", 1), ("none", 2), ("redo", 1), ("redo", 2)] and len(rows) == 4
        return [(arm, seed, ("none", 2)) for arm, seed in missing]

    with pytest.raises(RuntimeError, match="interrupted"):
        completed(given, ["redo", "none"], "task", (1, 2), jobs, made)
    held = [(row["arm"], row["seed"], row["task"], row["return"]) for row in read_rows(tmp_path / "a.csv")]
    assert held == [
        ("redo", 1, 1, 11.0),
        ("redo", 1, 2, 12.0),
        ("redo", 2, 1, 21.0),
        ("redo", 2, 2, 22.0),
        ("none", 1, 1, 11.0),
        ("none", 1, 2, 12.0),
        ("none", 2, 1, 0.5),
        ("gone", 1, 1, 0.5),
        ("gone", 2, 1, 0.5),
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]


def test_rows_with_other_columns_stand_beside_each_other(tmp_path):
    write_rows(tmp_path / "a.csv", [{"arm": "none", "seed": 1}, {"arm": "redo", "seed": 1, "tau": 0.5}])
    assert (tmp_path / "a.csv").read_text() == "arm,seed,tau\nnone,1,\nredo,1,0.5\n"


def test_a_table():
    assert in_markdown([["a", "b"], ["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"


def test_arms_have_their_interventions():
    assert interventions("none", 0.0, 600) == []
    assert interventions("layer_norm + weight_decay", 0.1, 600) == [LayerNorm(), WeightDecay(rate=0.1)]
    assert interventions("redo", 0.1, 600) == [  # as the recorded results had it
        ReDo(tau=0.1, when="every 60 gradient steps", samples=64)
    ]
    assert interventions("redo", 0.1, 50_000) == [ReDo(tau=0.1, when="every 1_000 gradient steps", samples=64)]
    for arm, strengths in STRENGTHS.items():
        assert all(interventions(arm, strength, 600) is not None for strength in strengths)


@pytest.mark.parametrize("arm", ["none", "cbp", "layer_norm + weight_decay"])
def test_random_labels_in_small(arm, monkeypatch):
    monkeypatch.setattr(random_labels, "IMAGES", 64)
    monkeypatch.setattr(random_labels, "TASK_STEPS", 60)
    first, second = (random_labels.run(arm, 1e-2, 1e-3, seed=1, tasks=2) for _ in range(2))
    assert first == second
    assert [row["task"] for row in first] == [1, 2]
    assert first[0]["accuracy"] > 0.9  # 64 labels are learned by heart in 60 gradient steps
    assert random_labels.run(arm, 1e-2, 1e-3, seed=2, tasks=1)[0] != first[0]


def test_a_target_mean_ruins_features_and_the_output_bias_saves_them(monkeypatch):
    monkeypatch.setattr(target_mean, "IMAGES", 64)
    monkeypatch.setattr(target_mean, "TASK_STEPS", 150)
    plain, zero, biased = (
        target_mean.run(arm, c, 0.0, 1e-3, 1)[0] for arm, c in (("none", 100), ("none", 0), ("output bias = c", 100))
    )
    rank = "effective rank, raw, task 1"
    assert plain[rank] < 0.5 * zero[rank]
    assert biased[rank] > 2 * plain[rank]
    categorical = target_mean.run("HL-Gauss", 0.0, 0.0, 1e-3, 1)[0]
    assert categorical["error of task 1"] < 1.0


def test_adam_gnt_is_not_adam_with_a_step_count_per_element():
    # m = 1 - beta1^t and v = 1 - beta2^t under a gradient of 1: its step is (1 - beta1^t) sqrt(1 - beta2^t)
    assert overshoot.adam_gnt((0.9, 0.999), 1) == pytest.approx(0.1 * 0.001**0.5)
    assert overshoot.adam_gnt((0.9, 0.999), 100) == pytest.approx((1 - 0.9**100) * (1 - 0.999**100) ** 0.5)
    assert [round(overshoot.adam_gnt((0.9, 0.999), t), 2) for t in (1, 100, 1000)] == [0.0, 0.31, 0.8]
    assert overshoot.updates((0.9, 0.999), "local")[0] == pytest.approx(1.0, abs=1e-3)  # which "local" is


@pytest.mark.long
def test_the_overshoot_that_zeroed_moments_cause():
    """3.16 at once and 6.57 at step 12 for (.9, .999), 2.13 at step 13 for (.9, .99)."""
    sizes = overshoot.updates((0.9, 0.999), "zero")
    assert sizes[0] == pytest.approx(3.16, abs=0.005)
    assert max(sizes) == pytest.approx(6.57, abs=0.005) and sizes.index(max(sizes)) == 11
    sizes = overshoot.updates((0.9, 0.99), "zero")
    assert max(sizes) == pytest.approx(2.13, abs=0.005) and sizes.index(max(sizes)) == 12
    for moments in ("local", "keep"):
        assert overshoot.updates((0.9, 0.999), moments) == pytest.approx([1.0] * 60, abs=1e-3)
