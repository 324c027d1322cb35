"""What evaluate.py cannot do is said without torch, in a sentence, before anything is built."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from envs import describe
from experiments.cli import parse_evaluate, parse_train
from experiments.evaluate import evaluate
from experiments.evaluate_check import check_evaluation
from experiments.offline_probes import probe_checkpoints
from experiments.peek import peek
from experiments.run_directory import find_checkpoint
from experiments.setup import build, check
from experiments.train import train
from tests.experiments.older_format import as_one_file

ROOT = Path(__file__).parents[2]
SMALL = ["--learning-starts=20", "--buffer-size=200", "--width=8", "--depth=1", "--steps=60", "--threads=1"]


def trained(flags: list[str], folder: Path) -> Path:
    config = parse_train([*flags, "--runs-dir", str(folder)])
    check(config)
    return as_one_file(train(config, *build(config)).directory)


@pytest.fixture(scope="module")
def cartpole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run without probes."""
    return trained(["dqn", "--env", "CartPole-v1", "--probes", "none", *SMALL], tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run on images of one's own, with probes and two tasks, named by a path relative to its directory."""
    folder = tmp_path_factory.mktemp("images")
    np.savez(
        folder / "own.npz", images=np.arange(4 * 81, dtype=np.uint8).reshape(4, 9, 9), labels=np.array([0, 1, 0, 1])
    )
    flags = ["--dataset", "own.npz", "--task.period", "30", "--probe.samples", "16", "--probe.heavy-samples", "8"]
    here = Path.cwd()
    os.chdir(folder)
    try:
        return trained(["dqn", "--env", "ImageMDP-v0", *flags, *SMALL], folder / "runs")
    finally:
        os.chdir(here)


def copied(run: Path, folder: Path) -> Path:
    return Path(shutil.copytree(run, folder / "copy"))


def checkpoint_with(run: Path, folder: Path, change: Callable[[dict], object]) -> Path:
    """The run's checkpoint by itself, what it holds changed."""
    content = torch.load(run / "checkpoints" / "final.pt", weights_only=True)
    changed = change(content)
    torch.save(content if changed is None else changed, folder / "changed.pt")
    return folder / "changed.pt"


def wider(content: dict) -> None:
    content["config"]["agent"]["network"]["width"] = 10**9


def elsewhere_wide(content: dict) -> None:
    content["config"]["agent"]["network"]["width"] = 16


def without_head(content: dict) -> None:
    del content["agent"]["network"]["head.weight"]


def of_words(content: dict) -> None:
    content["agent"]["network"] = "weights"


def without_network(content: dict) -> None:
    del content["agent"]["network"]


def of_another_format(content: dict) -> None:
    content["format"] = 99


CHANGED = {
    "a width of a billion": (wider, "width = 1000000000: must be at most"),
    "another width": (elsewhere_wide, "must hold the weights of the network that its settings make"),
    "without a layer": (without_head, "must hold the weights"),
    "words for weights": (of_words, "must hold the weights"),
    "without weights": (without_network, "it holds no weights"),
    "another format": (of_another_format, "format 99"),
    "a list": (lambda content: [1, 2], "is no checkpoint of this suite"),
    "a tensor": (lambda content: torch.zeros(3), "is no checkpoint of this suite"),
    "no step": (lambda content: {**content, "step": "last"}, "no step"),
    "settings of a list": (lambda content: {**content, "config": []}, "must be a JSON object"),
    "settings with a word": (lambda content: {**content, "config": {"algorithm": ["dqn"]}}, "algorithm = ['dqn']"),
    "a pickled function": (lambda content: {**content, "agent": np.zeros}, "is no checkpoint of this suite"),
}


@pytest.mark.parametrize("case", CHANGED)
def test_a_checkpoint_that_holds_something_else_is_refused(case: str, cartpole: Path, tmp_path: Path) -> None:
    change, told = CHANGED[case]
    settings = parse_evaluate([str(checkpoint_with(cartpole, tmp_path, change)), "--episodes", "1"])
    with pytest.raises(ValueError) as refusal:  # noqa: PT011, PT012, the first of the two sentences is looked at below
        check_evaluation(settings)
        evaluate(settings)
    assert told in str(refusal.value)
    assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 800


def test_probing_refuses_weights_that_do_not_fit_too(images: Path, tmp_path: Path) -> None:
    run = copied(images, tmp_path)
    place = run / "checkpoints" / "final.pt"
    place.unlink()
    checkpoint_with(images, run / "checkpoints", elsewhere_wide).rename(place)
    settings = parse_evaluate([str(run), "--probe", "ranks"])
    with pytest.raises(ValueError, match="must hold the weights"):
        probe_checkpoints(settings)


def torn(run: Path) -> None:
    path = run / "checkpoints" / "final.pt"
    path.write_bytes(path.read_bytes()[:-100])


def empty(run: Path) -> None:
    (run / "checkpoints" / "final.pt").write_bytes(b"")


def flipped(run: Path) -> None:
    path = run / "checkpoints" / "final.pt"
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda member: member.file_size)
        weights = archive.read(largest)
    content = bytearray(path.read_bytes())
    content[content.index(weights) + len(weights) // 2] ^= 1
    path.write_bytes(content)


def pickled(run: Path) -> None:
    (run / "checkpoints" / "final.pt").write_bytes(b"cos\nsystem\n(S'true'\ntR.")


def another_archive(run: Path) -> None:
    np.savez((run / "checkpoints" / "final.pt").open("wb"), x=np.zeros(3))


def a_directory(run: Path) -> None:
    (run / "checkpoints" / "final.pt").unlink()
    (run / "checkpoints" / "final.pt").mkdir()


def endless(run: Path) -> None:
    (run / "checkpoints" / "final.pt").unlink()
    (run / "checkpoints" / "final.pt").symlink_to("/dev/zero")


def no_checkpoints(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")


def bad_settings(run: Path) -> None:
    (run / "config.json").write_text("{")


def billion(run: Path) -> None:
    settings = json.loads((run / "config.json").read_text())
    settings["agent"]["network"]["width"] = 10**9
    (run / "config.json").write_text(json.dumps(settings))


RUNS = {
    "torn": (torn, [], "torn"),
    "empty": (empty, [], "empty"),
    "a flipped bit": (flipped, [], "damaged"),
    "a pickle": (pickled, [], "is no checkpoint of this suite"),
    "another archive": (another_archive, [], "an archive of something else"),
    "a directory": (a_directory, [], "must be a file, not a directory"),
    "endless": (endless, [], "must be a file, not a device"),
    "no checkpoints": (no_checkpoints, [], "holds no checkpoints"),
    "settings that are none": (bad_settings, [], "config = "),
    "settings of a billion units": (billion, [], "width = 1000000000"),
    "a task where none changes": (None, ["--task", "1"], "task = 1: must be left out"),
    "a backend that has no such world": (None, ["--backend", "envpool"], "backend = 'envpool'"),
    "probes of a run without": (None, ["--probe", "ranks"], "must be one that was trained with probes"),
    "a device that is not there": (None, ["--device", "cuda"], "device = 'cuda'"),
    "a video below a file": (None, ["--video", "/dev/null/x.mp4"], "video = '/dev/null"),
    "a video in /proc": (None, ["--video", "/proc/x.mp4"], "video = '/proc"),
    "a video with a long name": (None, ["--video", "x" * 300 + ".mp4"], "at most 255 bytes"),
    "a video at a long path": (None, ["--video", "/".join(["/tmp", *["x" * 200] * 30, "x.mp4"])], "video = "),
    "a video with a line end": (None, ["--video", "a\nb.mp4"], "video = "),
    "a video of another kind": (None, ["--video", "x.gif"], "video = 'x.gif'"),
    "a video without a name": (None, ["--video", ""], "video = ''"),
}


@pytest.mark.parametrize("case", RUNS)
def test_what_cannot_be_evaluated_is_refused_at_once(
    case: str, cartpole: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, flags, told = RUNS[case]
    if "cuda" in flags and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    run = copied(cartpole, tmp_path)
    if change is not None:
        change(run)
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises((ValueError, SystemExit)) as refusal:
        check_evaluation(parse_evaluate([str(run), *flags]))
    message = capsys.readouterr().err.removeprefix("error: ").strip() or str(refusal.value)
    assert told in message
    assert "\n" not in message and len(message) < 800
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("place", ["nowhere", "", "/dev/zero", "/dev/null", "a\0b", "x" * 300, "nowhere/final.pt", "."])
def test_a_place_that_holds_no_run_is_refused(
    place: str, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ValueError, SystemExit)) as refusal:
        check_evaluation(parse_evaluate([place]))
    assert "run = " in (capsys.readouterr().err or str(refusal.value))


def test_what_may_not_be_looked_into_is_refused(cartpole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As os.stat and os.listdir tell those who have no right; a test that runs as root has every right."""
    for told in ("stat", "listdir"):

        def closed(place, *args, given=getattr(os, told), **options):
            if Path(place) in (cartpole, cartpole / "checkpoints"):
                raise PermissionError(13, "Permission denied", str(place))
            return given(place, *args, **options)

        with monkeypatch.context() as patched:
            patched.setattr(os, told, closed)
            patched.setattr(os.path, "exists", lambda path: False)
            with pytest.raises(ValueError, match=r"^run = .*: may not be looked into \(Permission denied\)$"):
                find_checkpoint(cartpole)


def test_nothing_named_and_what_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        parse_evaluate([])
    assert "error: run: name one run directory" in capsys.readouterr().err
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name in ("link", "loop", "nowhere", "nowhere/below"):
        with pytest.raises(ValueError, match="no such run directory or checkpoint$"):
            find_checkpoint(tmp_path / name)


def test_an_archive_of_something_else_is_told_once(cartpole: Path, tmp_path: Path) -> None:
    path = tmp_path / "other.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "x")
    with pytest.raises(ValueError, match="^[^(]*is no checkpoint of this suite .an archive of something else.$"):
        check_evaluation(parse_evaluate([str(path)]))


def test_a_world_is_asked_for_once(cartpole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr("experiments.evaluate_check.describe", lambda world: asked.append(world) or describe(world))
    check_evaluation(parse_evaluate([str(cartpole), "--episodes", "1"]))
    assert len(asked) == 1  # for config.json and what the checkpoint says itself


def test_a_checkpoint_by_itself_needs_no_settings_beside_it(cartpole: Path, tmp_path: Path) -> None:
    run = copied(cartpole, tmp_path)
    bad_settings(run)
    settings = parse_evaluate([str(run / "checkpoints" / "final.pt"), "--episodes", "1"])
    check_evaluation(settings)
    assert evaluate(settings)["episodes"] == 1


def test_torch_is_not_imported_for_a_refusal(cartpole: Path, tmp_path: Path) -> None:
    """In the words of the machine: the modules that are there when evaluate.py leaves."""
    script = (
        "import atexit, runpy, sys\n"
        "atexit.register(lambda: print('torch' in sys.modules, 'envpool' in sys.modules))\n"
        "sys.argv = ['evaluate.py', *sys.argv[1:]]\n"
        "runpy.run_path('evaluate.py', run_name='__main__')"
    )
    damaged = copied(cartpole, tmp_path)
    torn(damaged)
    wide = checkpoint_with(cartpole, tmp_path, wider)
    for arguments in (["nowhere"], [str(tmp_path)], [str(damaged)], [str(wide)], [str(cartpole), "--task", "3"]):
        command = [sys.executable, "-c", script, *arguments]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert result.returncode == 2
        assert result.stdout == "False False\n"
        assert result.stderr.startswith("error: ") and len(result.stderr.splitlines()) == 1


def test_a_checkpoint_s_contents_are_read_without_torch_and_are_those_that_torch_reads(
    cartpole: Path, tmp_path: Path
) -> None:
    """Shapes, settings and step agree with torch; a function that a file wants to call is named and not called."""
    path = cartpole / "checkpoints" / "final.pt"
    peeked, read = peek(path), torch.load(path, weights_only=True)
    assert (peeked["format"], peeked["config"], peeked["step"]) == (read["format"], read["config"], read["step"])
    shapes = {name: tuple(tensor.shape) for name, tensor in read["agent"]["network"].items()}
    assert {name: stored.shape for name, stored in peeked["agent"]["network"].items()} == shapes

    class Runs:
        def __reduce__(self) -> tuple:
            return os.mkdir, (str(tmp_path / "made"),)

    torch.save({**read, "agent": Runs()}, tmp_path / "runs.pt")
    with pytest.raises(ValueError, match=r"is no checkpoint of this suite \(it holds posix.mkdir"):
        peek(tmp_path / "runs.pt")
    assert not (tmp_path / "made").exists()


def test_a_video_s_directory_is_made(cartpole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = parse_evaluate([str(cartpole), "--episodes", "1", "--video=-new/a:b c/game.mp4"])
    check_evaluation(settings)
    assert not list(tmp_path.iterdir())
    evaluate(settings)
    assert (tmp_path / "-new" / "a:b c" / "game.mp4").stat().st_size > 1000


def test_images_of_one_s_own_are_found_from_elsewhere_and_held_against_their_checksum(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = images.parents[1]
    world = json.loads((images / "config.json").read_text())["world"]
    assert world["dataset"] == str(folder / "own.npz")
    told = subprocess.run(["sha256sum", folder / "own.npz"], capture_output=True, text=True).stdout.split()[0]
    assert world["dataset_sha256"] == told
    settings = parse_evaluate([str(images), "--episodes", "1"])
    check_evaluation(settings)
    assert evaluate(settings)["episodes"] == 1
    check(parse_train(["--config", str(images / "config.json"), "--runs-dir", "again"]))

    kept = (folder / "own.npz").read_bytes()
    try:
        other = np.savez(folder / "own.npz", images=np.zeros((4, 9, 9), np.uint8), labels=np.array([0, 1, 0, 1]))
        assert other is None
        with pytest.raises(ValueError, match=rf"dataset = .* has changed: its SHA-256 is [0-9a-f]{{64}}, not {told}"):
            check_evaluation(settings)
        with pytest.raises(ValueError, match="has changed"):
            evaluate(settings)
        with pytest.raises(ValueError, match="has changed"):
            check(parse_train(["--config", str(images / "config.json"), "--runs-dir", "again"]))
        named = ["--dataset", str(folder / "own.npz")]
        check(parse_train(["--config", str(images / "config.json"), "--runs-dir", "again", *named]))
        taken = parse_evaluate([str(images), "--episodes", "1", *named])
        check_evaluation(taken)
        assert evaluate(taken)["episodes"] == 1

        (folder / "own.npz").rename(folder / "moved.npz")
        with pytest.raises(ValueError, match=r"dataset = .*own\.npz': no such file"):
            check_evaluation(settings)
        moved = parse_evaluate([str(images), "--episodes", "1", "--dataset", str(folder / "moved.npz")])
        check_evaluation(moved)
    finally:
        (folder / "own.npz").write_bytes(kept)


def test_a_run_s_name_says_what_the_images_are_and_not_where(tmp_path: Path) -> None:
    flags = ["dqn", "--env", "ImageMDP-v0", "--task.period", "30", "--dataset"]
    names = []
    for place, seed in (("a", 0), ("b", 0), ("c", 1)):
        content = np.random.default_rng(seed).integers(256, size=(4, 9, 9), dtype=np.uint8)
        (tmp_path / place).mkdir()
        np.savez(tmp_path / place / "own.npz", images=content, labels=np.array([0, 1, 0, 1]))
        names.append(parse_train([*flags, str(tmp_path / place / "own.npz")]).run_name)
    assert names[0] == names[1] != names[2]
    assert "_dataset=own_" in names[0] and "tmp" not in names[0]
