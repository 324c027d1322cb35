"""Interventions on the command line, in the settings and in a run's log."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from agents.interventions import CBP, COMBINATIONS, NAMES, L2Init, LayerNorm, ReDo, WeightDecay, intervention_class
from experiments.cli import listed_interventions, parse_train
from experiments.config import from_dict, to_dict
from experiments.logger import read_metrics
from experiments.setup import build, check
from experiments.train import train

ROOT = Path(__file__).parents[2]
CARTPOLE = ["dqn", "--env", "CartPole-v1"]


def parsed(*flags, base=CARTPOLE):
    return parse_train([*base, *flags])


def test_names_and_parameters_become_interventions_in_the_order_given():
    config = parsed("--interventions", "redo", "layer_norm", "--redo.tau", "0.5", "--gamma", "0.9")
    assert config.interventions == (ReDo(tau=0.5), LayerNorm())
    assert config.agent.gamma == 0.9
    assert parsed("--interventions", "layer_norm", "redo").interventions == (LayerNorm(), ReDo())
    assert parsed("--interventions=redo", "--seed", "3").interventions == (ReDo(),)
    assert parsed("--interventions", "weight-decay").interventions == (WeightDecay(),)
    assert parsed().interventions == parsed("--interventions", "none").interventions == ()


def test_flags_with_a_hyphen_or_an_underscore_and_limits_to_a_part():
    for flag in ("--cbp.replacement-rate", "--cbp.replacement_rate"):
        config = parsed("--interventions", "cbp", flag, "0.01", "--cbp.only", "encoder")
        assert config.interventions == (CBP(replacement_rate=0.01, only="encoder"),)


@pytest.mark.parametrize("name", COMBINATIONS)
def test_a_combination_stands_for_its_parts_and_flags_change_them(name):
    config = parsed("--interventions", name, "l2_init", "--l2-init.rate", "0.5")
    made = tuple(intervention_class(part)(**given) for part, given in COMBINATIONS[name].items())
    assert config.interventions == (*made, L2Init(rate=0.5))


def test_settings_survive_json_and_a_file_is_replayed(tmp_path):
    config = parsed("--interventions", "redo", "cbp_l2", "--redo.tau", "0.5", "--surgery.moments", "mean")
    settings = json.loads(json.dumps(to_dict(config)))
    assert [entry["name"] for entry in settings["interventions"]] == ["redo", "adam_betas", "l2", "cbp"]
    assert settings["interventions"][0]["tau"] == 0.5
    assert settings["surgery"] == {"moments": "mean"}
    assert from_dict(settings) == config
    path = tmp_path / "config.json"
    path.write_text(json.dumps(settings))
    assert parse_train(["--config", str(path)]) == config
    assert parse_train(["--config", str(path), "--interventions", "cbp", "redo"]).interventions[1] == ReDo(tau=0.5)
    changed = parse_train(["--config", str(path), "--redo.tau", "0.25"])
    assert changed.interventions == (ReDo(tau=0.25), *config.interventions[1:])
    assert parse_train(["--config", str(path), "--interventions", "layer_norm"]).interventions == (LayerNorm(),)
    assert parse_train(["--config", str(path), "--interventions", "none"]).interventions == ()
    (tmp_path / "plain.json").write_text(json.dumps(to_dict(parsed("--interventions", "redo", "--redo.tau", "0.3"))))
    again = ["--config", str(tmp_path / "plain.json"), "--interventions"]
    assert parse_train([*again, "redo"]).interventions == (ReDo(tau=0.3),)
    assert parse_train([*again, "redo_l2"]).interventions == parsed("--interventions", "redo_l2").interventions


@pytest.mark.parametrize("name", [*NAMES, *COMBINATIONS])
def test_every_intervention_s_settings_survive_json(name):
    config = parsed("--interventions", name)
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config


def test_a_run_tells_what_never_acted(tmp_path, capsys):
    flags = "--interventions redo weight_clip --redo.when every-9999-gradient-steps --steps 1300 --threads 1"
    flags += " --probes none"
    config = parsed(*flags.split(), "--runs-dir", str(tmp_path))
    train(config, *build(config), Console())
    spoken = capsys.readouterr().out
    assert "in all: redo never acted" in spoken
    assert "weight_clip never" not in spoken


def test_a_run_tells_who_looked_in_vain_and_where_tensors_were_moved(tmp_path, capsys):
    flags = "--interventions redo weight_clip --redo.when every-10-gradient-steps --redo.tau 0 --activation tanh"
    flags += " --surgery.moments mean"
    flags += " --steps 1300 --threads 1 --probes none --runs-dir"
    config = parsed(*flags.split(), str(tmp_path))
    train(config, *build(config), Console())
    spoken = " ".join(capsys.readouterr().out.split())
    assert "in all: redo looked and found nothing to do" in spoken
    assert re.search(r"in all: weight_clip moved tensors [\d,]+ times: dense1 [\d,]+, dense2 [\d,]+, head", spoken)
    assert "weight_clip; surgery.moments mean" in spoken


@pytest.mark.parametrize("flags", [["redo_l2"], ["redo", "--redo.moments", "keep"], ["redo", "--redo.moments=keep"]])
def test_moments_for_all_win_over_what_nobody_said(flags):
    listed = ["--interventions", *flags, "--surgery.moments"]
    if flags == ["redo_l2"]:
        assert parsed(*listed, "zero").surgery.moments == "zero"
    assert parsed(*listed, "keep").surgery.moments == "keep"


def test_the_run_s_name_tells_which_and_its_hash_the_rest():
    plain = parsed().run_name
    names = [plain]
    for flags in (
        ["redo"],
        ["redo", "--redo.tau", "0.5"],
        ["redo", "cbp"],
        ["cbp", "redo"],
        ["redo", "--redo.only", "encoder"],
        ["redo", "--surgery.moments", "keep"],
    ):
        names.append(parsed("--interventions", *flags).run_name)
    assert len(set(names)) == len(names)
    assert names[1].startswith("dqn_CartPole-v1_redo.tau=0.1_s1_")  # with its strength
    assert names[3].startswith("dqn_CartPole-v1_redo.tau=0.1+cbp.replacement-rate=0.0001_s1_")
    assert names[5].startswith("dqn_CartPole-v1_redo.tau=0.1,only=encoder_s1_")
    assert names[6].startswith("dqn_CartPole-v1_surgery.moments=keep_redo.tau=0.1_s1_")
    assert parsed("--interventions", "none").run_name == plain


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ("redo", r"interventions = 'redo': must be a list"),
        ([{"tau": 1}], "objects with a name"),
        ([{"name": "redoo"}], "interventions = 'redoo': must be some of .*redo"),
        ([{"name": "ln_wd"}], "combination"),
        ([{"name": "redo", "rate": 1}], r"redo\.rate = 1: must be a known setting; known: .*tau"),
        ([{"name": "redo", "tau": "high"}], r"redo\.tau = 'high'"),
        ([{"name": "redo", "tau": -1.0}], r"redo\.tau = -1\.0"),
        ([{"name": "redo", "only": "head"}], r"redo\.only = 'head': must be one of all, encoder, actor, critic"),
    ],
)
def test_a_wrong_file_is_refused_by_field(settings, named):
    with pytest.raises(ValueError, match=named):
        from_dict({"algorithm": "dqn", "interventions": settings})


WRONG = {
    "a part without hidden layers": (
        ["redo", "--redo.only", "critic"],
        "redo.only = 'critic': must be a part with hidden",
    ),
    "units that cannot be halved": (["crelu", "--width", "33"], "width = 33"),
    "waiting for a task change": (
        ["shrink_perturb"],
        "shrink_perturb: waits for a task change, and this world has none",
    ),
    "moments where there is nothing": (["none", "--surgery.moments", "zero"], "surgery.moments = 'zero': must be own"),
    "moments that nobody has": (["layer_norm", "--surgery.moments", "mean"], "surgery.moments = 'mean': must be own"),
    "two wishes for the moments": (
        ["redo", "--redo.moments", "mean", "--surgery.moments", "zero"],
        "surgery.moments = 'zero': must be own, or 'mean' as --redo.moments",
    ),
    "an unknown name": (["redoo"], "interventions = 'redoo': must be some of"),
    "no name": ([], "interventions: name some, or none"),
    "one twice": (["redo", "cbp", "redo"], "redo is given twice"),
    "one twice through a combination": (["l2", "cbp_l2"], "l2 is given twice (once in cbp_l2)"),
    "a refused pair": (["weight_decay", "l2"], "weight_decay and l2 cannot work together"),
    "a parameter of one not listed": (["cbp", "--redo.tau", "0.1"], "--redo.tau: its intervention is not listed"),
    "a parameter where none is listed": (["none", "--l2-init.rate=1"], "--l2-init.rate: its intervention is not"),
    "an unknown parameter": (["redo", "--redo.rate", "0.1"], "--redo.rate"),
    "a bad value": (
        ["redo", "--redo.when", "every", "0", "steps"],
        "redo.when = 'every 0 steps': must be every N gradient",
    ),
    "not a number": (["redo", "--redo.tau", "high"], "--redo.tau"),
    "a part that there is not": (
        ["l2_init", "--l2-init.only", "actor"],
        "l2_init.only = 'actor': must be all, encoder",
    ),
    "unknown moments": (["redo", "--surgery.moments", "half"], "--surgery.moments"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_flags_exit_with_2_name_what_is_wrong_and_leave_nothing(case, tmp_path):
    flags, named = WRONG[case]
    arguments = [*CARTPOLE, "--interventions", *flags, "--runs-dir", str(tmp_path / "runs")]
    environment = {**os.environ, "COLUMNS": "200"}
    result = subprocess.run(
        [sys.executable, "train.py", *arguments], cwd=ROOT, capture_output=True, text=True, env=environment
    )
    assert result.returncode == 2, result.stderr
    assert named in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "runs").exists()


def test_every_intervention_s_flags_are_in_the_help_with_a_text_each(capsys):
    with pytest.raises(SystemExit) as stopped:
        parsed("--interventions", *(name for name in NAMES), "--help")
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    for name in NAMES:
        for parameter in intervention_class(name)().parameters():
            assert f"--{name}.{parameter}".replace("_", "-") in text


def test_names_are_taken_until_the_next_flag():
    assert listed_interventions(["--interventions", "redo", "cbp", "--seed", "1"]) == (["redo", "cbp"], ["--seed", "1"])
    assert listed_interventions(["--seed", "1"]) == (None, ["--seed", "1"])


def test_a_run_tells_what_was_done_and_how_often(tmp_path, capsys):
    flags = "--interventions redo layer_norm --redo.tau 0.9 --redo.when every-100-gradient-steps --steps 3000"
    flags += " --threads 1 --probes none"
    config = parsed(*flags.split(), "--runs-dir", str(tmp_path))
    check(config)
    done = train(config, *build(config), Console())
    assert done.exit_code == 0
    directory = done.directory
    spoken = capsys.readouterr().out
    assert "interventions: redo (tau 0.9, every 100 gradient steps), layer_norm" in spoken
    assert "redo replaced" in spoken
    tags = read_metrics(directory / "metrics.jsonl")
    for layer in ("dense1", "dense2"):
        total = sum(tags[f"surgery/redo/replaced/{layer}"][1])
        assert total > 0
        assert f"{layer} {total:,.0f}" in spoken.split("in all: redo replaced")[1]
    assert json.loads((directory / "config.json").read_text())["interventions"][0]["tau"] == 0.9
