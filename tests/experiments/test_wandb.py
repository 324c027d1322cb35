"""Real offline runs of wandb: skipped where it is not installed; `make test-wandb` makes an environment that has it."""

import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from experiments.config import load_config, to_dict
from experiments.records import lines_of
from experiments.wandb_log import wandb_is_installed

needs_wandb = pytest.mark.skipif(not wandb_is_installed(), reason="wandb is not installed here: make test-wandb")
ROOT = Path(__file__).parents[2]
FLAGS = "dqn --env CartPole-v1 --steps 700 --learning-starts 100 --width 16 --num-envs 2 --threads 1 --name one"
CHANGING = "--task.change rewards --task.period 200 --probe.every 150 --probe.samples 64"


def offline(tmp_path: Path, *flags: str, mode: str = "offline") -> subprocess.CompletedProcess:
    command = [sys.executable, "train.py", *FLAGS.split(), *CHANGING.split(), "--runs-dir", str(tmp_path / "runs")]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    environment = kept | {"WANDB_MODE": mode, "WANDB_SILENT": "true", "HOME": str(tmp_path)}
    command += ["--wandb", *flags]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)


def records(path: Path) -> Iterator:
    """What a .wandb file holds, read by hand: LevelDB's log format after a header of seven bytes."""
    from wandb.proto import wandb_internal_pb2

    content, at, parts = path.read_bytes(), 7, b""
    while at + 7 <= len(content):
        left = 32_768 - at % 32_768
        if left < 7:  # a block's end is padded
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", content[at : at + 7])
        parts += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            yield record
            parts = b""


def items(listed) -> dict:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in listed}


@needs_wandb
@pytest.mark.timeout(300)
def test_an_offline_run_has_the_lines_as_rows_the_run_s_steps_config_and_summary(tmp_path: Path) -> None:
    done = offline(tmp_path)
    assert done.returncode == 0, done.stderr
    directory = tmp_path / "runs" / "one"
    assert len(list(tmp_path.rglob("events.out.tfevents*"))) == 1
    paths = [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")]
    assert len(paths) < 60 and max(map(len, paths)) < 120
    (file,) = directory.rglob("*.wandb")
    rows, summary, config, axes = [], {}, {}, {}
    for record in records(file):
        kind = record.WhichOneof("record_type")
        if kind == "history":
            rows.append(items(record.history.item))
        elif kind == "summary":
            summary |= items(record.summary.update)
        elif kind == "run":
            config |= items(record.run.config.update)
        elif kind == "metric":
            axes[record.metric.name or record.metric.glob_name] = record.metric.step_metric
    lines = [line for _, line in lines_of(directory / "metrics.jsonl")]
    assert len(rows) == len(lines) > 50
    for row, line in zip(rows, lines, strict=True):
        assert row["_step"] == row["step"]  # wandb's own axis is the run's too
        assert {name: value for name, value in row.items() if not name.startswith("_")} == line
    assert axes["*"] == "step"
    settings = to_dict(load_config(directory / "config.json"))
    assert {name: config[name] for name in settings} == settings
    last = {name: value for line in lines for name, value in line.items()}
    assert {name: summary[name] for name in last} == last
    assert (summary["exit_code"], summary["steps"]) == (0, 700)


@needs_wandb
@pytest.mark.timeout(300)
def test_a_run_that_goes_on_is_the_same_run_there_and_sends_no_row_twice(tmp_path: Path) -> None:
    longer = ["--checkpoint.replay", "always", "--epsilon.over", "constant"]
    for steps in ("400", "700"):
        done = offline(tmp_path, *longer, "--steps", steps)
        assert done.returncode == 0, done.stderr
    ids, steps = set(), []
    for file in sorted((tmp_path / "runs" / "one").rglob("*.wandb")):
        for record in records(file):
            if record.WhichOneof("record_type") == "run":
                ids.add(record.run.run_id)
            elif record.WhichOneof("record_type") == "history":
                steps.append(items(record.history.item)["step"])
    assert ids == {json.loads((tmp_path / "runs" / "one" / "manifest.json").read_text())["wandb_id"]}
    lines = [line["step"] for _, line in lines_of(tmp_path / "runs" / "one" / "metrics.jsonl")]
    assert sorted(set(steps)) == lines


@needs_wandb
@pytest.mark.timeout(300)
def test_where_wandb_cannot_begin_a_sentence_says_so_and_nothing_is_left(tmp_path: Path) -> None:
    done = offline(tmp_path, "--wandb-project", "a/b", mode="offline")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: wandb = True: must be off where wandb cannot begin")
    assert not list((tmp_path / "runs").iterdir())


def test_a_folder_called_wandb_is_not_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if wandb_is_installed():
        pytest.skip("wandb is installed here")
    (tmp_path / "wandb").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert not wandb_is_installed()
