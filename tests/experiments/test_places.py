"""Names and places: what cannot be is refused in a sentence, in no time, and leaves nothing behind."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from experiments.cli import parse_train
from experiments.places import NAME_BYTES, PlaceError, fitting_name, from_here, new_directory, quoted, require_writable
from experiments.run_directory import RunDirectory
from experiments.setup import check

ROOT = Path(__file__).parents[2]
CARTPOLE = ["dqn", "--env", "CartPole-v1", "--steps", "10", "--probes", "none"]


def answer(arguments: list[str]) -> tuple[int, str]:
    """(exit code, message) of the refusals that come before anything is built; code 0 where there is none."""
    try:
        check(parse_train(arguments))
    except SystemExit as stopped:
        return stopped.code, ""
    except ValueError as error:
        return 2, str(error)
    return 0, ""


def dangling(folder: Path) -> Path:
    (folder / "link").symlink_to(folder / "nowhere")
    return folder / "link"


def below_dangling(folder: Path) -> Path:
    return dangling(folder) / "a" / "b"


def loop(folder: Path) -> Path:
    (folder / "one").symlink_to(folder / "two")
    (folder / "two").symlink_to(folder / "one")
    return folder / "one"


def below_loop(folder: Path) -> Path:
    return loop(folder) / "runs"


def a_file(folder: Path) -> Path:
    (folder / "file").touch()
    return folder / "file"


def below_a_file(folder: Path) -> Path:
    return a_file(folder) / "a" / "b"


def link_to_a_file(folder: Path) -> Path:
    (folder / "link").symlink_to(a_file(folder))
    return folder / "link"


BAD_PLACES: dict[str, Callable[[Path], Path | str]] = {
    "a dangling link": dangling,
    "below a dangling link": below_dangling,
    "a loop of links": loop,
    "below a loop of links": below_loop,
    "a file": a_file,
    "below a file": below_a_file,
    "a link to a file": link_to_a_file,
    "a device": lambda folder: "/dev/null",
    "below a device": lambda folder: "/dev/null/runs",
    "in /proc": lambda folder: "/proc/runs",
    "deep in /proc": lambda folder: "/proc/self/a/b",
    "in /sys": lambda folder: "/sys/kernel/runs",
    "a long component": lambda folder: folder / ("x" * 256),
    "a long component of wide letters": lambda folder: folder / ("é" * 128),
    "a long path": lambda folder: folder / "/".join(["x" * 200] * 25),
    "a path with no room for a run": lambda folder: "/".join([str(folder), *["x" * 100] * 39])[:3920],
    "a line end": lambda folder: folder / "a\nb",
    "a control character": lambda folder: folder / "a\x1b[31mb",
    "a NUL": lambda folder: folder / "a\0b",
    "bytes that are no text": lambda folder: folder / "a\udcffb",
    "half a surrogate pair": lambda folder: folder / "a\ud800b",
    "empty": lambda folder: "",
    "blank": lambda folder: " ",
}


@pytest.mark.parametrize("case", BAD_PLACES)
def test_a_place_that_takes_no_run_is_refused_by_name(case: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    place = str(BAD_PLACES[case](tmp_path))
    before, started = sorted(tmp_path.rglob("*")), time.process_time()
    code, message = answer([*CARTPOLE, f"--runs-dir={place}"])
    message = message or capsys.readouterr().err
    assert code == 2
    assert "runs_dir = " in message and ": must be " in message
    assert len(message.strip().splitlines()) == 1 and len(message) < 600
    assert sorted(tmp_path.rglob("*")) == before
    assert time.process_time() - started < 2.0


@pytest.mark.parametrize("place", [".", "runs", "a/b/c", "./a/../b", "näme", "with blank/x", "-dash", "link", "link/x"])
def test_places_that_take_runs(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "a" / "real")
    monkeypatch.chdir(tmp_path)
    config = parse_train([*CARTPOLE, f"--runs-dir={place}"])
    check(config)
    directory = RunDirectory(config)
    assert (Path(place) / config.run_name / "config.json").is_file()
    assert directory.path == Path(place) / config.run_name


BAD_NAMES = {
    "too long": "x" * 256,
    "too long in bytes": "é" * 128,
    "a path": "a/b",
    "upwards": "..",
    "here": ".",
    "absolute": "/tmp",
    "ends like a folder": "a/",
    "a line end": "a\nb",
    "a line end at the end": "a\n",
    "a tab": "a\tb",
    "NUL": "a\0b",
    "an escape": "\x1b[31m",
    "a paragraph separator": "a\u2029b",
    "bytes that are no text": "a\udcff",
    "half a surrogate pair": "a\ud800",
    "like a flag": "-x",
    "blank": " ",
    "a blank at the end": "a ",
}


@pytest.mark.parametrize("case", BAD_NAMES)
def test_a_given_name_that_no_file_can_have_is_refused(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    code, message = answer([*CARTPOLE, f"--runs-dir={tmp_path}", f"--name={BAD_NAMES[case]}"])
    message = message or capsys.readouterr().err
    assert code == 2
    assert "name = " in message
    assert len(message.strip().splitlines()) == 1 and len(message) < 600
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["x" * 255, "näme", "mit Leerzeichen", ".hidden", "a.b-c_d", "名前"])
def test_names_that_a_file_can_have(name: str, tmp_path: Path) -> None:
    config = parse_train([*CARTPOLE, f"--runs-dir={tmp_path}", f"--name={name}"])
    check(config)
    assert RunDirectory(config).path == tmp_path / name


@pytest.mark.parametrize("taken", ["directory", "file", "dangling link"])
def test_a_taken_name_is_refused_whatever_has_it(taken: str, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    {"directory": mine.mkdir, "file": mine.touch, "dangling link": lambda: mine.symlink_to("nowhere")}[taken]()
    assert answer([*CARTPOLE, "--runs-dir", str(tmp_path), "--name", "mine"])[1].startswith(
        "name = 'mine': must be new"
    )


def test_short_names_stay_and_long_ones_keep_beginning_end_and_tell_apart() -> None:
    assert fitting_name("x" * 255) == "x" * 255
    long = "dqn_" + "Amidar_" * 60 + "s3_abc123"
    short = fitting_name(long)
    assert len(short) == NAME_BYTES
    assert short.startswith("dqn_Amidar_") and short.endswith("_s3_abc123")
    assert fitting_name(long.replace("Amidar_Amidar", "Amidar_Asterix", 1)) != short
    assert fitting_name(long) == short


@pytest.mark.parametrize("letter", ["a", "é", "名", "😀"])
@pytest.mark.parametrize("limit", [64, 100, 254, 255])
def test_a_fitting_name_fits_in_bytes_and_is_text(letter: str, limit: int) -> None:
    for length in (limit // 4, limit, 1000):
        short = fitting_name(letter * length, limit)
        assert len(short.encode()) <= limit
        assert len(short.encode()) > limit - 8 or short == letter * length


def test_taken_names_count_on_and_stay_short_enough(tmp_path: Path) -> None:
    name = "y" * 300
    made = [new_directory(tmp_path, name) for _ in range(11)]
    assert [path.name[-3:] for path in made[1:]] == [
        "y-2",
        "y-3",
        "y-4",
        "y-5",
        "y-6",
        "y-7",
        "y-8",
        "y-9",
        "-10",
        "-11",
    ]
    assert len({path.name for path in made}) == 11
    assert all(len(path.name) <= NAME_BYTES and path.is_dir() for path in made)
    (tmp_path / "z").touch()
    (tmp_path / "z-2").symlink_to("nowhere")
    assert new_directory(tmp_path, "z").name == "z-3"


def test_sixteen_games_in_turn_make_a_name_that_fits(tmp_path: Path) -> None:
    games = "Alien Amidar Assault Asterix Asteroids Atlantis BankHeist BattleZone BeamRider Berzerk Bowling Boxing"
    games = ",".join(
        f"ALE/{game}-v5" for game in [*games.split(), "Breakout", "Centipede", "ChopperCommand", "CrazyClimber"]
    )
    interventions = ["layer_norm", "redo", "cbp", "weight_decay"]
    flags = ["--env", games, "--steps", "1000", "--runs-dir", str(tmp_path), "--interventions", *interventions]
    config = parse_train(["dqn", *flags])
    check(config)
    first, second = RunDirectory(config, prefix="sb3_"), RunDirectory(config, prefix="sb3_")
    assert first.path.name.startswith("sb3_dqn_Alien")
    assert second.path.name != first.path.name and second.path.name.endswith("-2")


@pytest.mark.parametrize("make", [dangling, below_dangling, loop, a_file, below_a_file])
def test_making_a_directory_ends_where_it_cannot(make: Callable[[Path], Path], tmp_path: Path) -> None:
    with pytest.raises(PlaceError, match="runs_dir = "):
        new_directory(make(tmp_path), "name")


def test_a_place_is_tried_and_left_as_it_was(tmp_path: Path) -> None:
    require_writable("runs_dir", tmp_path / "a" / "b")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, content: bytes) -> None:
        self.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(ValueError, match=r"runs_dir = .*No space left on device"):
        require_writable("runs_dir", tmp_path / "runs")
    assert not list(tmp_path.iterdir())


@contextmanager
def nobody() -> Iterator[None]:
    """Within, this process has the rights of a user who owns nothing."""
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(65534)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to become somebody else")
@pytest.mark.parametrize("mode", [0o000, 0o555, 0o700])
def test_rights_are_asked_for_as_the_user_who_has_none(mode: int) -> None:
    with tempfile.TemporaryDirectory() as folder:  # pytest's own are closed to others
        Path(folder).chmod(0o755)
        closed = Path(folder) / "closed"
        closed.mkdir()
        closed.chmod(mode)
        for place in (closed, closed / "runs", closed / "a" / "b"):
            with nobody(), pytest.raises(ValueError, match="runs_dir = .*Permission denied"):
                require_writable("runs_dir", place)
        require_writable("runs_dir", closed)


def test_a_current_directory_that_is_gone(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    command = f"cd {gone} && rmdir {gone} && exec {sys.executable} {ROOT / 'train.py'} "
    for flags, told in (
        ("dqn --env CartPole-v1", "runs_dir = 'runs': must be"),
        ("dqn --env CartPole-v1 --runs-dir .", "runs_dir = '.': must be"),
        ("--config runs/x/config.json", "config = 'runs/x/config.json'"),
        (f"dqn --env CartPole-v1 --runs-dir {tmp_path}/runs", "the current directory is gone"),
        ("dqn --env some_module:X-v0", "the current directory is gone"),
    ):
        gone.mkdir()
        result = subprocess.run(["bash", "-c", command + flags], capture_output=True, text=True, timeout=60)
        assert result.returncode == 2
        assert told in result.stderr and "Traceback" not in result.stderr


def test_paths_are_printed_as_a_shell_takes_them() -> None:
    assert quoted("runs/a b") == "'runs/a b'"
    assert quoted("-x") == "./-x"
    assert quoted("runs/x") == "runs/x"


def test_a_path_below_the_working_directory_is_said_without_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert from_here(tmp_path / "runs" / "x") == Path("runs/x")
    assert from_here(tmp_path.parent / "x") == tmp_path.parent / "x" and from_here(Path("runs")) == Path("runs")
