"""docs/tutorial.md: its commands are run as they stand, in order, and print what the page shows."""

import json
import os
import re
import subprocess
import sys
import textwrap
import time
import urllib.request
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
PARTS = re.compile(r"^```(?P<kind>\w+)\n(?P<fenced>.*?)^```$|(?P<indented>(?:^    [^\n]*\n)+)", re.S | re.M)
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?|^-$")


class Step(NamedTuple):
    """A command of the page, and the lines that it shows of what it prints."""

    command: str
    shown: list[str]


def steps_of(page: str) -> tuple[list[Step], dict[str, str]]:
    """(the page's commands in order, its files by name: a block in yaml has the name that stands last before it)."""
    steps, files = [], {}
    for part in PARTS.finditer(page):
        if part["indented"]:
            steps.append(Step(textwrap.dedent(part["indented"]), []))
        elif part["kind"] == "text":
            steps[-1].shown.extend(part["fenced"].splitlines())
        elif part["kind"] == "yaml":
            files[re.findall(r"`([\w.]+\.yaml)`", page[: part.start()])[-1]] = part["fenced"]
    return steps, files


def cells(line: str) -> list[str]:
    """A line without its numbers and the width of its columns, which differ from machine to machine."""
    return [NUMBER.sub("#", cell) for cell in re.split(r"\s{2,}", line.strip())]


def not_printed(shown: list[str], printed: list[str]) -> list[str]:
    """The lines of `shown` that are not `printed`: sentences stand there in the same order; of a table, whose columns
    are laid out by the width of its numbers, every cell stands somewhere."""
    all_cells = {cell for line in printed for cell in cells(line)}
    left, lacking = iter([cells(line) for line in printed]), []
    for line in shown:
        if line.strip() == "...":  # stands for lines that the page leaves out
            continue
        found = cells(line)
        if not (all_cells.issuperset(found) if len(found) > 1 else found in left):
            lacking.append(line)
    return lacking


def served(command: str, folder: Path, environment: dict[str, str]) -> str:
    """What `tensorboard` is until somebody stops it: the tags that it serves, at a port of its own."""
    told = folder / "tensorboard.txt"
    with told.open("w") as file:
        process = subprocess.Popen(
            ["bash", "-c", f"exec {command.strip()} --port 0"], cwd=folder, env=environment, stdout=file, stderr=file
        )
    try:
        deadline = time.monotonic() + 120
        while not (found := re.search(r"http://localhost:(\d+)/", told.read_text())):
            assert process.poll() is None and time.monotonic() < deadline, told.read_text()
            time.sleep(0.2)
        while True:
            with urllib.request.urlopen(f"http://localhost:{found[1]}/data/plugin/scalars/tags", timeout=60) as answer:
                if tags := json.loads(answer.read()):
                    return json.dumps(tags)
            assert time.monotonic() < deadline
            time.sleep(0.5)
    finally:
        process.terminate()
        process.wait()


def played(folder: Path) -> list[tuple[Step, str]]:
    """Each step with what it printed, from a folder that has the commands of the checkout and nothing else."""
    steps, files = steps_of(PAGE)
    for name in ("train.py", "evaluate.py", "compare.py", "sweep.py"):
        (folder / name).symlink_to(ROOT / name)
    (folder / ".venv/bin").mkdir(parents=True)
    (folder / ".venv/bin/activate").write_text(f'PATH="{Path(sys.executable).parent}:$PATH"\n')
    for name, text in files.items():
        (folder / name).write_text(text)
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive", "COLUMNS": "120"}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    done = []
    for step in steps:
        if step.command.startswith("tensorboard "):
            done.append((step, served(step.command, folder, environment)))
            continue
        ran = subprocess.run(
            ["bash", "-c", step.command],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=600,
        )
        assert ran.returncode == 0, step.command + ran.stdout
        done.append((step, ran.stdout))
    return done


def test_what_counts_as_printed():
    printed = ["two arms of 3", "arm    n   mean", "mse    3   -0.5", "hl     3   -", "done: 1"]
    assert not not_printed(["two arms of 2", "...", "arm  mean", "mse  1,000.5", "done: 3"], printed)
    assert not_printed(["done: 1", "two arms of 3"], printed) == ["two arms of 3"]
    assert not_printed(["arm  median", "three arms"], printed) == ["arm  median", "three arms"]


@pytest.fixture(scope="module")
def tutorial(tmp_path_factory) -> tuple[Path, list[tuple[Step, str]]]:
    folder = tmp_path_factory.mktemp("tutorial")
    return folder, played(folder)


@pytest.mark.long
def test_every_command_runs_and_prints_what_the_page_shows(tutorial):
    _, done = tutorial
    assert len(done) > 10 and sum(bool(step.shown) for step, _ in done) > 6
    for step, printed in done:
        lacking = not_printed(step.shown, printed.splitlines())
        assert not lacking, (step.command, lacking, printed)


@pytest.mark.long
def test_the_tags_of_the_page_are_those_of_its_run(tutorial):
    folder, done = tutorial
    tags = re.findall(r"^\| `([\w/.=]+)`", PAGE, re.M)
    logged = {tag for line in (folder / "runs/first/metrics.jsonl").open() for tag in json.loads(line)}
    (served,) = [printed for step, printed in done if step.command.startswith("tensorboard ")]
    assert len(tags) > 4 and set(tags) <= logged and all(f'"{tag}"' in served for tag in tags)


@pytest.mark.long
def test_the_files_of_the_page_are_there(tutorial):
    folder, _ = tutorial
    named = set(re.findall(r"`(runs/[\w/.]+\.\w+)`", PAGE))
    assert len(named) >= 2 and not [name for name in named if not (folder / name).is_file()]
