"""The fork as a control of a study: every choice of what is kept at the last task change, after what it begins from."""

import json
from itertools import combinations
from pathlib import Path

import pytest

from experiments.results.settings import CompareConfig
from experiments.results.written import compared
from experiments.store import listed, read
from experiments.sweep.listed import commands
from experiments.sweep.plan import planned
from experiments.sweep.study import study_of
from experiments.sweep.sweeping import summed_up, sweep
from tests.experiments.test_run import one_thread  # noqa: F401

STUDY = {
    "question": "Which part cannot learn?",
    "base": {
        "agent": "dqn", "env": "ImageMDP-v0", "preset": "lyle23", "image.variant": "random_label",
        "image.num_images": "20", "task.period": "200", "steps": "600", "width": "8", "learning_starts": "50",
        "replay_ratio": "0.2", "buffer_size": "400", "probes": "none",
    },
    "seeds": 1,
    "control": ["fork"],
}  # fmt: skip


@pytest.mark.long
def test_forks_are_planned_and_made_after_their_sources(tmp_path: Path) -> None:
    study = study_of(STUDY, "small")
    plan = planned(study, tmp_path)
    choices = [keep for count in range(3) for keep in combinations(("weights", "optimizer", "replay"), count)]
    assert [trial.kind for trial in plan.trials] == ["arm", "source"]
    assert [trial.arm for trial in plan.forks] == [f"dqn keep={'+'.join(keep) or 'none'}" for keep in choices]
    assert plan.trials[1].config.run.steps == 400 and plan.trials[1].config.checkpoint.replay == "always"
    assert len(commands(plan)) == 2  # what is forked is not there yet
    swept = sweep(study, tmp_path, workers=1)
    assert len(swept.finished) == 9 and not swept.failed and not swept.left
    assert any(line.startswith("forks:") for line in summed_up(swept, "sweep.py"))
    source = read(listed(plan.trials[1].directory / "checkpoints")[-1])
    for trial, keep in zip(plan.forks, choices, strict=True):
        config = json.loads((trial.directory / "config.json").read_text())
        assert config["fork"] == {"run": str(source.path), "keep": list(keep) or ["none"]}
        tasks = [json.loads(line) for line in (trial.directory / "tasks.jsonl").read_text().splitlines()]
        assert [(task["task"], task["first_step"], task["last_step"]) for task in tasks] == [(2, 400, 600)]
        assert trial.config.checkpoint.replay == "until-finished" and "--preset" not in trial.command
    again = sweep(study, tmp_path, workers=1)
    assert len(again.finished) == 9 and commands(planned(study, tmp_path)) == []
    folders = str(plan.directory / "trials"), str(plan.directory / "forks")
    lines = compared(CompareConfig(folders, out=tmp_path / "out"), "python compare.py")
    shown = [line.split()[0] for line in lines if line.startswith("fork.keep=")]
    assert len(set(shown)) == 8 and "fork.keep=weights+optimizer+replay" in shown
