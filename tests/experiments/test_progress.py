"""What a person is told while runs and evaluations go on, and where TensorBoard shows the settings."""

import io
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from experiments import progress
from experiments.cli import parse_train
from experiments.logger import Logger
from experiments.progress import Lines, ProgressLine
from experiments.run import Episode, TaskChange, Tick
from experiments.settings_page import settings, table
from experiments.setup import never_learns
from tests.experiments.test_run import SMALL, one_thread, run  # noqa: F401

ROOT = Path(__file__).parents[2]


class Clock:
    """A clock that goes when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1_000.0
        monkeypatch.setattr(progress.time, "perf_counter", lambda: self.now)


def lines_with(tmp_path: Path, clock: Clock, pace: list[tuple[int, float]], steps: int) -> list[str]:
    """What is printed where every (ticks, seconds a tick of one step) of `pace` is done in turn."""
    printed, step = io.StringIO(), 0
    logger = Logger(tmp_path, 10**9, None, dict)
    with ProgressLine(steps, [logger], Console(file=printed, width=120)) as line:
        for ticks, seconds in pace:
            for _ in range(ticks):
                clock.now += seconds
                step += 1
                line.tick(step)
    logger.close()
    return printed.getvalue().splitlines()


def test_time_left_goes_by_the_speed_now_and_not_by_the_warm_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousand steps a second for 20 s, then ten a second: 79,400 steps are left after a minute of that."""
    lines = lines_with(tmp_path, Clock(monkeypatch), [(20_000, 0.001), (600, 0.1)], 100_000)
    assert "1,000 steps/s" in lines[0]
    assert "10 steps/s" in lines[-1]
    assert lines[-1].endswith("2:12:20 left")  # 79,400 steps / 10
    assert lines[0].endswith("0:01:30 left")  # 90,000 steps / 1,000


def test_the_return_shown_is_of_the_present_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, printed = Clock(monkeypatch), io.StringIO()
    logger = Logger(tmp_path, 10**9, None, dict)
    with ProgressLine(100, [logger], Console(file=printed, width=120)) as line:
        shown = []
        for step, event in enumerate(["a game", "a change", "a game"], start=1):
            clock.now += 11.0
            if event == "a game":
                logger.notice(Tick(step, (Episode(0, 10.0 * step, 5, task=step // 2),)))
            else:
                logger.notice(TaskChange(step, 1, {}))
            line.tick(step)
            shown.append(printed.getvalue().splitlines()[-1].split("return ")[1].split()[0])
    logger.close()
    assert shown == ["10.0", "-", "30.0"]


def test_lines_go_to_standard_error_and_not_too_often(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    clock = Clock(monkeypatch)
    lines = Lines()
    for second in range(31):
        lines.say(lambda second=second: f"second {second}")
        clock.now += 1.0
    lines.say(lambda: "now", now=True)
    told = capsys.readouterr()
    assert told.err.splitlines() == ["second 10", "second 20", "second 30", "now"]
    assert told.out == ""


@pytest.mark.long
def test_evaluations_tell_a_pipe_how_far_they_are(tmp_path: Path) -> None:
    flags = [*SMALL["dqn"], "--probe.every", "100", "--probe.samples", "32", "--keep-checkpoints", "0"]
    path, _, _ = run(tmp_path, "dqn", "CartPole-v1", 300, *flags, "--checkpoint-every", "150")
    command = [sys.executable, "evaluate.py", str(path), "--checkpoint", "each", "--json", "--probe"]
    done = subprocess.run([*command, "all", "--refit-steps", "3"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["steps"] == [0, 150, 300]
    told = done.stderr.splitlines()
    assert told[0] == "checkpoint 1/3 (step 0): 10 probes"
    assert "checkpoint 3/3 (step 300): trainability (probes)" in told
    script = (
        "import sys, experiments.progress as p; p.PLAIN_SECONDS = 0.0; sys.argv[0] = 'evaluate.py'\n"
        "import runpy; runpy.run_path('evaluate.py', run_name='__main__')"
    )
    command = [sys.executable, "-c", script, str(path), "--episodes", "3", "--num-envs", "2", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    result = json.loads(done.stdout)
    assert done.stderr.splitlines()[0].startswith("0/3 games, 1 steps in each environment, 0:00:0")
    assert done.stderr.splitlines()[-1].startswith("3/3 games, ")
    assert len(result["returns"]) == 3


NEVER = {
    "ppo --env CartPole-v1 --steps 200": "whole rollouts of 8 x 32 = 256 steps .*, and the run has 200",
    "dqn --env CartPole-v1 --steps 400 --learning-starts 400": "learning begins after step 400 .*, and the run has 400",
    "c51 --env CartPole-v1 --steps 120 --learning-starts 100 --replay-ratio 0.01": "0.01 gradient steps a step",
    "dqn --env CartPole-v1 --steps 60 --learning-starts 0": "more than 64 steps",
}
ONCE = (
    "ppo --env CartPole-v1 --steps 249",  # 32 ticks of 8
    "dqn --env CartPole-v1 --steps 402 --learning-starts 400",
    "c51 --env CartPole-v1 --steps 200 --learning-starts 100 --replay-ratio 0.01",
    "dqn --env CartPole-v1 --steps 66 --learning-starts 0 --n-step 1",
)


@pytest.mark.parametrize("line", NEVER)
def test_a_run_that_never_learns_says_so_at_both_ends(line: str, tmp_path: Path) -> None:
    algorithm, _, env, _, steps, *flags = line.split()
    _, code, printed = run(tmp_path, algorithm, env, int(steps), *flags)
    assert code == 0
    printed = printed.splitlines()
    assert [re.search(NEVER[line], told) is not None for told in printed].count(True) == 2
    assert any(told.startswith("note: nothing will be learned: ") for told in printed[:5])
    assert printed[-1].startswith("nothing was learned: ")


@pytest.mark.parametrize("line", ONCE)
def test_a_run_that_learns_once_does_not(line: str, tmp_path: Path) -> None:
    algorithm, _, env, _, steps, *flags = line.split()
    _, _, printed = run(tmp_path, algorithm, env, int(steps), *flags)
    assert "learned" not in printed
    config = parse_train(line.split())
    assert never_learns(config, int(steps)) is None


def test_a_run_begins_by_naming_its_preset_and_what_differs(tmp_path: Path) -> None:
    _, _, printed = run(tmp_path, "ppo", "CartPole-v1", 300, "--width", "16")
    assert printed.splitlines()[2] == "preset classic, but width 16"


def test_the_settings_are_in_tensorboard_in_the_one_event_file(tmp_path: Path) -> None:
    flags = [*SMALL["dqn"], "--interventions", "redo", "--redo.tau", "0.5"]
    path, _, _ = run(tmp_path, "dqn", "CartPole-v1", 300, *flags)
    (file,) = path.rglob("events.out.tfevents*")
    values = [value for event in LegacyEventFileLoader(str(file)).Load() for value in event.summary.value]
    (words,) = [value.tensor.string_val[0].decode() for value in values if value.tag == "config/text_summary"]
    assert "| **width** | **16** |" in words.splitlines()
    assert "| gamma | 0.99 |" in words.splitlines()
    assert "| **interventions** | **redo.tau=0.5** |" in words.splitlines()
    told = {
        value.tag: HParamsPluginData.FromString(value.metadata.plugin_data.content)
        for value in values
        if value.tag.startswith("_hparams_")
    }
    start = told["_hparams_/session_start_info"].session_start_info.hparams
    assert (start["width"].number_value, start["loss"].string_value, start["seed"].number_value) == (16, "huber", 1)
    assert (start["preset"].string_value, start["redo.tau"].number_value) == ("classic", 0.5)
    experiment = told["_hparams_/experiment"].experiment
    assert experiment.metric_infos[0].name.tag == "charts/recent_return"
    assert {"num-atoms", "clip-coef", "replay-ratio"} <= {info.name for info in experiment.hparam_infos}  # of any agent
    assert told["_hparams_/session_end_info"].session_end_info.status == 1  # success
    assert "charts/recent_return" in {value.tag for value in values}


def test_every_setting_has_a_row() -> None:
    config = parse_train(["c51", "--env", "CartPole-v1", "--interventions", "cbp"])
    rows = table(config).splitlines()
    assert len(rows) == 4 + len(settings(config))
    assert all(isinstance(value, (bool, str, int, float)) for value in settings(config).values())
    assert all(row.count("|") == 3 for row in rows[2:])
    odd = replace(config, run=replace(config.run, runs_dir=Path("a|b")))
    assert all(row.count("|") == 3 for row in table(odd).splitlines()[2:])
