"""Wrong command lines, files and run directories, each given to train.py itself: exit code 2, under two seconds of
processor time, one sentence that names the field, and nothing written anywhere."""

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from experiments.cli import parse_train
from experiments.earlier import earlier_run
from experiments.lock import RunLock
from experiments.signals import EXIT_SAVED
from tests.experiments import test_bad_files, test_cli, test_flags, test_places

ROOT = Path(__file__).parents[2]
SECONDS = 2.0
CARTPOLE = ["dqn", "--env", "CartPole-v1", "--steps", "100000000"]
SMALL = ["--learning-starts", "10", "--buffer-size", "30", "--batch-size", "4", "--width", "4", "--probes", "none"]
SMALL += ["--log-every", "100", "--checkpoint-every", "500"]


class Case(NamedTuple):
    """What is asked for, as words or as what makes them of a new folder, and what the answer has to hold."""

    words: list[str] | Callable[[Path], list[str]]
    told: str


# Runs to go on with: each makes its words of a folder with a whole run in it, runs/run.


def resume(folder, *words):
    return ["--resume", str(folder / "runs" / "run"), *words]


def again(folder, *words):
    return [*CARTPOLE, *SMALL, "--runs-dir", str(folder / "runs"), "--name", "run", *words]


def changed(path, function):
    """Has the file hold what `function` makes of it."""

    def words(folder):
        for file in (folder / "runs" / "run").glob(path):
            file.write_bytes(function(file.read_bytes()))
        return resume(folder)

    return words


def replaced(make):
    """Has something else stand where the run was."""

    def words(folder):
        shutil.rmtree(folder / "runs" / "run")
        make(folder / "runs" / "run")
        return resume(folder)

    return words


def without(path):
    def words(folder):
        for found in (folder / "runs" / "run").glob(path):
            shutil.rmtree(found) if found.is_dir() else found.unlink()
        return resume(folder)

    return words


def of_format_1(folder):
    shutil.rmtree(folder / "runs" / "run" / "checkpoints")
    (folder / "runs" / "run" / "checkpoints").mkdir()
    (folder / "runs" / "run" / "checkpoints" / "step_000000000020.pt").write_bytes(b"PK\x03\x04")
    return resume(folder)


def settings(change):
    def content(before):
        return json.dumps(change(json.loads(before))).encode()

    return changed("config.json", content)


RESUMING = {
    "a run that is not there": Case(lambda folder: ["--resume", str(folder / "nowhere")], "resume = "),
    "nothing": Case(["--resume="], "resume = ''"),
    "no word after it": Case(["--resume"], "--resume: must be followed by a path"),
    "a file": Case(lambda folder: ["--resume", str(folder / "runs" / "run" / "config.json")], "resume = "),
    "a device": Case(["--resume", "/dev/null"], "resume = '/dev/null'"),
    "a NUL": Case(replaced(lambda run: run.write_bytes(b"\0")), "resume = "),
    "a loop of links": Case(replaced(lambda run: run.symlink_to(run)), "resume = "),
    "a dangling link": Case(replaced(lambda run: run.symlink_to("nowhere")), "resume = "),
    "a long name": Case(["--resume", "x" * 300], "resume = "),
    "an empty directory": Case(replaced(Path.mkdir), "config = "),
    "a directory of runs": Case(lambda folder: ["--resume", str(folder / "runs")], "config = "),
    "a directory of checkpoints": Case(
        lambda folder: ["--resume", str(folder / "runs" / "run" / "checkpoints")], "config = "
    ),
    "no config.json": Case(without("config.json"), "config.json"),
    "a torn config.json": Case(changed("config.json", lambda content: content[: len(content) // 2]), "is not JSON"),
    "an empty config.json": Case(changed("config.json", lambda content: b""), "is not JSON"),
    "config.json of noise": Case(changed("config.json", lambda content: os.urandom(500)), "config = "),
    "another agent's config.json": Case(settings(lambda whole: whole | {"algorithm": "ppo"}), "agent."),
    "a config.json with another seed": Case(
        settings(lambda whole: whole | {"run": whole["run"] | {"seed": 9}}), "--seed 1, now 9"
    ),
    "a config.json with another width": Case(
        settings(lambda whole: whole | {"agent": whole["agent"] | {"gamma": 0.5}}), "--gamma"
    ),
    "no checkpoints": Case(without("checkpoints/*"), "checkpoint"),
    "manifests cut short": Case(changed("checkpoints/*/checkpoint.json", lambda content: content[:50]), "checkpoint"),
    "manifests of noise": Case(changed("checkpoints/*/checkpoint.json", lambda content: os.urandom(90)), "checkpoint"),
    "empty files": Case(changed("checkpoints/*/*", lambda content: b""), "checkpoint"),
    "flipped bytes": Case(
        changed("checkpoints/*/*", lambda content: content[:-40] + bytes([content[-40] ^ 1]) + content[-39:]),
        "checkpoint",
    ),
    "checkpoints of the earlier format": Case(of_format_1, "checkpoint"),
    "--config beside it": Case(lambda folder: resume(folder, "--config", "x.json"), "resume = "),
    "--name beside it": Case(lambda folder: resume(folder, "--name", "other"), "resume = "),
    "--runs-dir beside it": Case(lambda folder: resume(folder, "--runs-dir", "."), "resume = "),
    "--preset beside it": Case(lambda folder: resume(folder, "--preset", "classic"), "preset = 'classic'"),
    "another agent beside it": Case(lambda folder: ["ppo", *resume(folder)], "algorithm = 'ppo'"),
    "another seed": Case(lambda folder: resume(folder, "--seed", "2"), "--seed 1, now 2"),
    "another world": Case(lambda folder: resume(folder, "--env", "Acrobot-v1"), "--env"),
    "another width": Case(lambda folder: resume(folder, "--width", "8"), "--width 4, now 8"),
    "other interventions": Case(lambda folder: resume(folder, "--interventions", "redo"), "--interventions"),
    "another cadence": Case(lambda folder: resume(folder, "--checkpoint-every", "7"), "--checkpoint-every"),
    "fewer steps": Case(lambda folder: resume(folder, "--steps", "20"), "--steps 100000000, now 20: fewer"),
    "a typo": Case(lambda folder: resume(folder, "--stepz", "80"), "did you mean --steps or"),
    "a bad value": Case(lambda folder: resume(folder, "--steps", "many"), "--steps = 'many'"),
    "the same name, another seed": Case(lambda folder: again(folder, "--seed", "2"), "--seed 1, now 2"),
    "the same name, fewer steps": Case(lambda folder: again(folder, "--steps", "20"), "fewer"),
    "the same name, another agent": Case(lambda folder: ["c51", *again(folder)[1:]], "settings: must be"),
}


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    """A run that was stopped, to be copied."""
    folder = tmp_path_factory.mktemp("whole")
    command = [sys.executable, "train.py", *again(folder)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 60
    while not list(folder.glob("runs/run/checkpoints/step_*500")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.terminate()
    said = process.communicate(timeout=60)[0]
    assert process.returncode == EXIT_SAVED, said
    return folder / "runs"


def everything(folder):
    """Each path below, and what it holds; the lock's file is no more than a place."""
    return {
        path.relative_to(folder): path.read_bytes() if path.is_file() and path.name != "lock.json" else None
        for path in sorted(folder.rglob("*"))
        if path.name != "lock.json"
    }


def refused(words, folder, told):
    """Run train.py with `words` in `folder`, where nothing may change."""

    before = everything(folder)
    began = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-B", str(ROOT / "train.py"), *words],
        cwd=folder,
        env={**os.environ, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        errors="surrogateescape",
        timeout=60,
    )
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = ended.ru_utime + ended.ru_stime - began.ru_utime - began.ru_stime  # of processor: blind to neighbours
    assert done.returncode == 2, (done.returncode, done.stdout, done.stderr)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "Traceback" not in done.stderr and told in done.stderr, done.stderr
    assert everything(folder) == before
    assert seconds < SECONDS


@pytest.mark.faults
@pytest.mark.parametrize("case", RESUMING)
def test_what_cannot_go_on_is_refused_and_stays_as_it_is(case, whole_run, tmp_path, count):
    words, told = RESUMING[case]
    shutil.copytree(whole_run, tmp_path / "runs")
    words = words(tmp_path) if callable(words) else words
    refused(words, tmp_path, told)
    count("a run that cannot go on as it was asked to", "exit 2, the field named, nothing touched")


def is_a_word(text):
    """Whether a command line can hold it."""
    return "\0" not in text and "\ud800" not in text


LINES = {f"train.py {name}": (words, told) for name, (words, told) in test_cli.WRONG.items()}
LINES |= {f"{words}": ([*test_flags.CARTPOLE, *words.split()], told) for words, told in test_flags.WRONG.items()}


@pytest.mark.faults
@pytest.mark.parametrize("case", LINES)
def test_a_wrong_command_line(case, tmp_path, count):
    words, told = LINES[case]
    refused(words, tmp_path, told)
    count("a wrong command line", "exit 2, the field named, no directory left")


@pytest.mark.faults
@pytest.mark.parametrize("case", [name for name, word in test_places.BAD_NAMES.items() if is_a_word(word)])
def test_a_name_that_cannot_be(case, tmp_path, count):
    refused([*CARTPOLE, f"--name={test_places.BAD_NAMES[case]}"], tmp_path, "name = ")
    count("a name or a place that cannot be", "exit 2, the field named, no directory left")


@pytest.mark.faults
@pytest.mark.parametrize("case", test_places.BAD_PLACES)
def test_a_place_that_takes_no_run(case, tmp_path, count):
    place = str(test_places.BAD_PLACES[case](tmp_path))
    if not is_a_word(place):
        pytest.skip("no command line can hold it")
    refused([*CARTPOLE, f"--runs-dir={place}"], tmp_path, "runs_dir = ")
    count("a name or a place that cannot be", "exit 2, the field named, no directory left")


@pytest.mark.faults
@pytest.mark.parametrize("case", test_bad_files.CONTENTS)
def test_a_config_with_other_contents(case, tmp_path, count):
    content, told = test_bad_files.CONTENTS[case]
    (tmp_path / "config.json").write_bytes(content)
    refused(["--config", "config.json"], tmp_path, told)
    count("a config.json with other contents", "exit 2, the field named, no directory left")


@pytest.mark.faults
def test_a_run_that_is_being_written_to(whole_run, tmp_path, count):
    shutil.copytree(whole_run, tmp_path / "runs")
    with RunLock(tmp_path / "runs" / "run"):
        refused(resume(tmp_path), tmp_path, f"process {os.getpid()}")
    count("a run that cannot go on as it was asked to", "exit 2, the field named, nothing touched")


@pytest.mark.faults
@pytest.mark.skipif(os.getuid() != 0, reason="needs root to become somebody else")
@pytest.mark.parametrize(
    ("mode", "told"), [(0o555, "run = .*Permission denied"), (0o000, "config = |name = |resume = ")]
)
def test_another_users_run(mode, told, whole_run, count):
    """In this process, since Python itself may be closed to others."""
    with tempfile.TemporaryDirectory() as folder:  # pytest's own are closed to others
        Path(folder).chmod(0o755)
        shutil.copytree(whole_run, Path(folder) / "runs")
        before = everything(Path(folder))
        words = resume(Path(folder))
        earlier_run(parse_train(words))  # imports what it needs while Python is open to it
        (Path(folder) / "runs" / "run").chmod(mode)
        with test_places.nobody(), pytest.raises((ValueError, SystemExit), match=f"{told}|^2$"):
            earlier_run(parse_train(words)).take_up(print)
        (Path(folder) / "runs" / "run").chmod(0o755)
        assert everything(Path(folder)) == before
    count("a run that cannot go on as it was asked to", "exit 2, the field named, nothing touched")


@pytest.mark.faults
def test_the_table_has_80_rows_and_more():
    assert len(RESUMING) + len(LINES) + len(test_bad_files.CONTENTS) > 120
