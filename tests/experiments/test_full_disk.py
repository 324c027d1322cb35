"""A disk that fills up in the middle of a run, as a limit on the size of files: one sentence, and what is there stays.

Python tells of a file beyond the limit as of a full disk: by an OSError where it is written."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import durable
from experiments.cli import parse_evaluate, parse_train
from experiments.evaluate import evaluate, is_whole
from experiments.run_directory import write_tensors
from experiments.setup import build
from experiments.train import train

ROOT = Path(__file__).parents[2]
PPO = ["ppo", "--env", "CartPole-v1", "--rollout-steps", "32", "--checkpoint-every", "500", "--width", "64"]


def limited(most_bytes: int, *arguments: object) -> subprocess.CompletedProcess:
    """A command none of whose files grows beyond `most_bytes`."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))

    command = [sys.executable, "-B", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, preexec_fn=limit, capture_output=True, text=True, timeout=300)


@pytest.mark.long
@pytest.mark.parametrize(
    ("most_bytes", "flags"),
    [
        (8_000, ["--probes", "none"]),  # before anything is saved: TensorBoard's settings, the log
        (60_000, ["--probes", "none", "--log-every", "100000"]),  # a checkpoint
    ],
)
def test_a_run_that_cannot_write_stops_with_a_sentence(most_bytes: int, flags: list[str], tmp_path: Path) -> None:
    result = limited(most_bytes, "train.py", *PPO, "--steps", 3000, "--runs-dir", tmp_path, *flags)
    printed = result.stdout + result.stderr
    assert result.returncode == 1
    assert printed.count("stopped: at step ") == 1 and "could not be written: File too large" in printed
    assert "Traceback" not in printed and "Exception" not in printed
    [run] = tmp_path.iterdir()
    assert not list(run.rglob("*.partial"))
    for line in (run / "metrics.jsonl").read_text().splitlines()[:-1]:  # a disk may be full in the middle of the last
        json.loads(line)


def test_a_run_that_cannot_begin_leaves_nothing(tmp_path: Path) -> None:
    result = limited(4_096 - 10, "train.py", *PPO, "--steps", 3000, "--runs-dir", tmp_path / "new")
    assert result.returncode == 2 and "runs_dir" in result.stderr
    assert not (tmp_path / "new").exists()


def test_a_checkpoint_is_whole_or_as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "final.pt"
    path.write_bytes(b"before")

    def full(stage: str, file: Path) -> None:
        if stage == "write":
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(durable, "stage", full)
    with pytest.raises(OSError, match="No space left"):
        write_tensors(path, {})
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("final.pt", b"before")]


@pytest.mark.long
def test_a_video_that_could_not_be_written_is_told_and_taken_away(tmp_path: Path) -> None:
    config = parse_train([*PPO, "--steps", "300", "--runs-dir", str(tmp_path), "--probes", "none"])
    done = train(config, *build(config))
    assert done.exit_code == 0
    run = done.directory
    video = tmp_path / "videos" / "game.mp4"
    result = limited(4_200, "evaluate.py", run, "--episodes", 1, "--video", video)  # a trial of 4,096 bytes passes
    last = result.stderr.splitlines()[-1]  # ffmpeg has words of its own before
    assert result.returncode == 2 and last.startswith(f"error: video = '{video}': must be where there is room")
    assert "Traceback" not in result.stderr and not video.exists()
    evaluate(parse_evaluate([str(run), "--episodes", "1", "--video", str(video)]))
    content = video.read_bytes()
    assert is_whole(video) and len(content) > 4_200
    for part in (content[:-1], content[: len(content) // 2], b""):
        video.write_bytes(part)
        assert not is_whole(video)
