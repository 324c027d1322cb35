"""Claims against runs whose returns are known, and the verdicts that intervals of them give."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from experiments.claims import checked, in_words, value_of, verdict_of
from experiments.reproduce import CLAIM, EVERYTHING, QUICK, chosen, parse_reproduce, studies
from experiments.results.runs import read_run
from experiments.results.statistics import Interval
from experiments.sweep.study import Claim, read_study
from experiments.verdicts import in_a_document, made, on_screen
from tests.experiments.results.made import a_run, cut


def trials(tmp_path: Path, arm: str, by_seed: list[list[float]]) -> list[SimpleNamespace]:
    found = []
    for seed, by_task in enumerate(by_seed, start=1):
        path = a_run(tmp_path, f"{arm}{seed}", by_task, seed=seed, probes={"probes/dead": by_task[-1] / 100})
        found.append(SimpleNamespace(arm=arm, world="", seed=seed, directory=path))
    return found


def test_what_a_run_comes_to(tmp_path):
    run = read_run(a_run(tmp_path, "run", [80.0, 60.0, 40.0], probes={"probes/dead": 0.25}))
    found = {measure: value_of(run, measure) for measure in ("overall", "first", "last", "lost", "probes/dead")}
    assert found == {"overall": 60.0, "first": 80.0, "last": 40.0, "lost": 40.0, "probes/dead": 0.25}
    assert value_of(run, "probes/none") != value_of(run, "probes/none")  # NaN


@pytest.mark.parametrize(
    ("interval", "n", "verdict"),
    [
        (Interval(9, 5.1, 12), 10, "reproduced"),
        (Interval(9, 5.1, 12), 9, "undecided"),
        (Interval(3, 1, 4.9), 10, "not reproduced"),
        (Interval(5, 4, 6), 10, "undecided"),
        (Interval(5, 5, 5), 10, "undecided"),
        (Interval(*[float("nan")] * 3), 0, "not run"),
    ],
)
def test_verdicts(interval, n, verdict):
    assert verdict_of(interval, 5, n) == verdict


def test_a_claim_is_held_against_equal_seeds_that_are_finished(tmp_path):
    # differences in the last task: 10 + (1, -1, 1, -1, ...) over ten pairs; their mean is 10
    arm = trials(tmp_path, "a", [[50.0, 40.0 + (1 if seed % 2 else -1)] for seed in range(1, 13)])
    than = trials(tmp_path, "b", [[50.0, 30.0]] * 11)
    cut(than[9].directory, 100)  # seed 10 of the other was killed; seed 12 it has not
    found = checked(Claim("a is better", "a", "b", "last", 5), {"a": arm, "b": than})
    assert found.n == 10 and found.verdict == "reproduced"
    assert found.found.value == pytest.approx(10.2) and found.than == 30.0  # six above, four below
    assert 9 <= found.found.low < 10.2 < found.found.high <= 11
    assert checked(Claim("", "a", "b", "last", 12), {"a": arm, "b": than}).verdict == "not reproduced"
    alone = checked(Claim("b falls", "b", "", "lost", 10), {"a": arm, "b": than[:3]})
    assert (alone.n, alone.verdict, alone.found.value) == (3, "undecided", 20.0)
    assert in_words(alone) == "20 [20, 20], n = 3, of which 10 make a verdict"
    with pytest.raises(ValueError, match="claims = 'c': must be an arm; there are a, b"):
        checked(Claim("", "c", "b"), {"a": arm, "b": than})


def test_every_study_says_what_it_takes_and_its_claims_are_of_its_arms(tmp_path):
    minutes = {}
    for name, path in studies().items():
        for size in read_study(path).sizes:
            study = read_study(path, size)
            assert study.takes, (name, size)
            if size == CLAIM:
                amount, unit = study.takes.split(maxsplit=1)
                minutes[name] = float(amount)
                assert unit == "core-minutes" and study.claims and len(study.seeds) >= 10
            if size != "record":
                made(study, tmp_path, 1, None)  # plans it, and makes nothing
        assert QUICK in read_study(path).sizes
    assert sum(minutes.values()) <= 120  # an hour on two cores


def test_the_command_line(capsys):
    found = {study.name: study.size for study in chosen(parse_reproduce(["--quick"]))}
    assert studies().keys() - found.keys() == {"friction_ant", "image_mdp_interventions", "random_labels"}
    assert set(found.values()) == {QUICK}
    assert [study.name for study in chosen(parse_reproduce(["target_mean"]))] == ["target_mean"]
    assert parse_reproduce([]).claims == (EVERYTHING,)
    with pytest.raises(ValueError, match="claim = 'target_means': must be all-cpu or one of .*did you mean"):
        parse_reproduce(["target_means"])


def test_what_was_not_run_is_said(tmp_path):
    study = read_study(studies()["moving_targets"], CLAIM)
    arms, code = made(study, tmp_path, 1, None)
    checks = [checked(claim, arms) for claim in study.claims]
    assert code == 0 and on_screen(checks)[0].startswith("not run:") and on_screen(checks)[1].endswith("found not run")
    document = in_a_document([(study, checks)], "python -m experiments.reproduce")
    assert "| `moving - fixed > 0.1 (features/dormant)` | not run | not run |" in document


def test_a_study_takes_its_own_place_in_the_document_and_no_others(tmp_path):
    command, documents = "python -m experiments.reproduce", {}
    for name in ("moving_targets", "first_phase", "random_walk"):
        study = read_study(studies()[name], CLAIM)
        arms, _ = made(study, tmp_path, 1, None)
        documents[name] = [(study, [checked(claim, arms) for claim in study.claims])]
    both = in_a_document(documents["moving_targets"] + documents["random_walk"], command)
    again = in_a_document(documents["random_walk"], command, both)
    assert again == both
    three = in_a_document(documents["first_phase"], f"{command} first_phase", again)
    assert [line for line in three.splitlines() if line.startswith("## ")] == [
        "## first_phase",
        "## moving_targets",
        "## random_walk",
    ]
    assert three.replace(f"`{command} first_phase`", f"`{command}`") == in_a_document(
        [one for each in documents.values() for one in each], command
    )
