"""Every command that the documents show is one: its flags are read as they stand, from the repository's root."""

import functools
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.cli import parse_evaluate, parse_train
from experiments.results.settings import parse_compare
from experiments.sweep.settings import parse_sweep

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FIRST = ("python ", "make ", "source ", "pip ", "tensorboard ", "for seed in ")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.S | re.M)
WITHIN = re.compile(r"\bpython (?:\S+\.py|-m \S)[^>\n]*")
"""A command of ours in another's line: srun python sweep.py ..., python sweep.py ... > FILE."""
SAY = """
head=HEAD
say() { printf '%s\\x1f' "$@"; printf '\\x1e'; }
python() { say python "$@"; }; make() { say make "$@"; }; pip() { say pip "$@"; }
tensorboard() { say tensorboard "$@"; }; chromium() { say chromium "$@"; }; source() { say source "$@"; }
xdg-open() { say xdg-open "$@"; }
[() { true; }; sleep() { true; }; kill() { wait; }
"""


def blocks(text):
    """What is indented by four or fenced without a language, one text a block; of a block that begins with another's
    command, our commands alone."""
    fenced = [block for language, block in FENCE.findall(text) if not language]
    indented = re.findall(r"(?:^    .*\n)+", FENCE.sub("", text), re.M)
    whole = [block for block in indented if block.strip().startswith(FIRST)]
    parts = (block.replace("\\\n", " ") for block in [*indented, *fenced] if block not in whole)
    return [*whole, *(command for block in parts for command in WITHIN.findall(block))]


def commands():
    """Each command as the list of its words, as bash reads it."""
    texts = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        texts += blocks(text)
        texts += re.findall(r"`((?:python|make) [^`]+)`", " ".join(FENCE.sub("", text).split()))
    done = subprocess.run(["bash", "-u"], input=SAY + "\n".join(texts), capture_output=True, text=True)
    assert not done.returncode and not done.stderr, done.stderr
    found = [tuple(command.split("\x1f")[:-1]) for command in done.stdout.split("\x1e")[:-1]]
    return list(dict.fromkeys(found))


COMMANDS = commands()
TRAIN = [command[2:] for command in COMMANDS if command[:2] == ("python", "train.py")]
EVALUATE = [command[2:] for command in COMMANDS if command[:2] == ("python", "evaluate.py")]
COMPARE = [command[2:] for command in COMMANDS if command[:2] == ("python", "compare.py")]
SWEEP = [command[2:] for command in COMMANDS if command[:2] == ("python", "sweep.py")]
MODULES = [command[2:] for command in COMMANDS if command[:2] == ("python", "-m")]
SCRIPTS = [command[1] for command in COMMANDS if command[0] == "python" and command[1].startswith("docs/")]


def test_there_is_something_to_check():
    assert len(TRAIN) > 25 and len(EVALUATE) > 3 and len(MODULES) > 8 and len(SCRIPTS) == 3
    known = len(TRAIN) + len(EVALUATE) + len(COMPARE) + len(SWEEP) + len(MODULES) + len(SCRIPTS)
    assert COMPARE and SWEEP
    assert known == sum(command[0] == "python" for command in COMMANDS)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's directory, for NAME and RUN; beside it NAME.seeds.json, of two that ran together."""
    folder = tmp_path_factory.mktemp("documented")
    command = [sys.executable, "train.py", "dqn", "--env", "CartPole-v1", "--steps", "300", "--threads", "1"]
    command += ["--runs-dir", str(folder), "--name", "run"]
    for seeds in ([], ["--num-seeds", "2"]):
        subprocess.run([*command, *seeds], cwd=ROOT, check=True, capture_output=True)
    return folder / "run"


def as_written(words, run):
    names = ("runs/NAME", "runs/ant", "runs/first", "runs/losses/killed", "RUN")
    return [functools.reduce(lambda said, name: said.replace(name, str(run)), names, word) for word in words]


@pytest.mark.parametrize("words", TRAIN, ids=" ".join)
def test_training(words, run, capsys):
    if "--help" in words:
        with pytest.raises(SystemExit) as end:
            parse_train(list(words))
        assert end.value.code == 0
    else:
        parse_train(as_written(words, run))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("words", EVALUATE, ids=" ".join)
def test_evaluation(words, run):
    assert parse_evaluate(as_written(words, run)).run == (Path("runs") if "--list" in words else run)


@pytest.mark.parametrize("words", COMPARE, ids=" ".join)
def test_comparison(words, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # where its default folder goes
    assert parse_compare(list(words)).runs


@pytest.mark.parametrize("words", SWEEP, ids=" ".join)
def test_sweep(words, tmp_path):
    if "--help" in words:
        with pytest.raises(SystemExit) as end:
            parse_sweep(list(words))
        assert end.value.code == 0
    else:
        here = [word.replace("/shared/runs", str(tmp_path)) for word in words]
        assert parse_sweep(here).study.suffix == ".yaml"


@pytest.mark.parametrize("words", MODULES, ids=" ".join)
def test_modules(words, monkeypatch, capsys):
    module, *rest = words
    if module == "experiments.sb3_baseline":
        parse_train(rest, f"python -m {module}")
        return
    monkeypatch.setattr(sys, "argv", [module, "--help"])
    with pytest.raises(SystemExit) as end:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    told = capsys.readouterr().out
    assert end.value.code == 0
    assert all(word in told for word in rest if word.startswith("--"))


@pytest.mark.parametrize("words", [command for command in COMMANDS if command[0] == "make"], ids=" ".join)
def test_make(words):
    assert f"\n{words[1]}:" in (ROOT / "Makefile").read_text(encoding="utf-8")


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts(script):
    assert (ROOT / script).is_file()  # tests/plasticity_probes/test_examples.py runs them
