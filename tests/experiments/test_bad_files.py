"""Files that are not what they should be: a sentence that names them, or their field, and never a traceback."""

import copy
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from experiments.cli import parse_train
from experiments.config import from_dict, load_config, to_dict
from experiments.setup import check

FLAGS = {
    "dqn": ["dqn", "--env", "ImageMDP-v0", "--task.period", "1000", "--interventions", "redo", "layer_norm"],
    "ppo": ["ppo", "--env", "FrictionAnt-v0", "--interventions", "cbp", "l2_init", "adam_betas"],
    "c51": ["c51", "--env", "ALE/Pong-v5"],
}


def deep(levels: int) -> list:
    value: list = []
    for _ in range(levels):
        value = [value]
    return value


STRANGE: dict[str, Any] = {
    "a list": [],
    "a list of numbers": [1, 2],
    "an object": {},
    "an object with a name": {"name": "redo"},
    "true": True,
    "null": None,
    "a word": "\u2603",
    "an empty word": "",
    "NUL": "a\0b",
    "half a surrogate pair": "\ud800",
    "a fraction": 0.123,
    "minus one": -1,
    "300 digits": 10**299,
    "a nested list": deep(200),
    "not a number": float("nan"),
    "infinity": float("inf"),
}


def leaves(settings: Any, path: tuple = ()) -> Iterator[tuple]:
    """The path of everything in `settings`, parts included."""
    if path:
        yield path
    pairs = (
        settings.items() if isinstance(settings, dict) else enumerate(settings) if isinstance(settings, list) else ()
    )
    for key, value in pairs:
        yield from leaves(value, (*path, key))


@pytest.mark.parametrize("algorithm", FLAGS)
@pytest.mark.parametrize("strange", STRANGE)
def test_whatever_stands_in_a_field_is_taken_or_refused_by_its_name(algorithm: str, strange: str) -> None:
    whole = to_dict(parse_train(FLAGS[algorithm]))
    for path in leaves(whole):
        changed: Any = copy.deepcopy(whole)
        part = changed
        for key in path[:-1]:
            part = part[key]
        part[path[-1]] = STRANGE[strange]
        message = refusal_of(json.loads(json.dumps(changed)))
        names = [
            *(key for key in path if isinstance(key, str)),
            repr(STRANGE[strange]),
        ]  # a pair may be told by the value
        assert not message or any(name in message for name in names[-3:]), (path, message)
        assert len(message) < 1500 and "\n" not in message


def refusal_of(settings: Any) -> str:
    """The sentence with which they are refused, empty where they are taken."""
    try:
        from_dict(settings)
    except ValueError as error:
        return str(error)
    return ""


CONTENTS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is not JSON"),
    "an open brace": (b"{", "is not JSON"),
    "a list": (b"[]", "settings = []: must be a JSON object"),
    "a word": (b'"dqn"', "must be a JSON object"),
    "no UTF-8": (b'{"algorithm": "\xff"}', "UTF-8"),
    "UTF-16": ('{"algorithm": "dqn"}'.encode("utf-16"), "UTF-8"),
    "NUL": (b"\0\0\0\0", "is not JSON"),
    "nested too deeply": (b"[" * 200_000, "nested too deeply"),
    "an object nested too deeply": (b'{"world":' * 200_000, "nested too deeply"),
    "5,000 digits for a whole number": (
        b'{"algorithm": "dqn", "run": {"steps": ' + b"9" * 5000 + b"}}",
        "run.steps = 999",
    ),
    "5,000 digits for a fraction": (
        b'{"algorithm": "dqn", "agent": {"gamma": ' + b"9" * 5000 + b"}}",
        "agent.gamma = 999",
    ),
    "5,000 digits for a word": (b'{"algorithm": ' + b"9" * 5000 + b"}", "algorithm = 999"),
    "a list for the algorithm": (b'{"algorithm": ["dqn"]}', "algorithm = ['dqn']"),
    "an object for the algorithm": (b'{"algorithm": {}}', "algorithm = {}"),
    "a list for an intervention's name": (
        b'{"algorithm": "dqn", "interventions": [{"name": ["redo"]}]}',
        "interventions = ",
    ),
    "one field twice": (b'{"algorithm": "dqn", "algorithm": "ppo"}', "'algorithm' stands twice"),
    "an empty path": (b'{"algorithm": "dqn", "run": {"runs_dir": ""}}', "run.runs_dir = ''"),
    "true for a number": (b'{"algorithm": "dqn", "run": {"steps": true}}', "run.steps = True"),
    "too large": (b" " * (16 * 2**20 + 1), "larger than 16 MiB"),
}


@pytest.mark.parametrize("case", CONTENTS)
def test_a_file_with_other_contents_is_refused(case: str, tmp_path: Path) -> None:
    content, told = CONTENTS[case]
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(ValueError) as refusal:  # noqa: PT011, the sentence is looked at below
        load_config(path)
    assert told in str(refusal.value)
    assert len(str(refusal.value)) < 600 and "\n" not in str(refusal.value)


def fifo(folder: Path) -> str:
    os.mkfifo(folder / "pipe")
    return str(folder / "pipe")


def loop(folder: Path) -> str:
    (folder / "loop").symlink_to(folder / "loop")
    return str(folder / "loop")


PLACES: dict[str, Callable[[Path], str]] = {
    "endless": lambda folder: "/dev/zero",
    "a device": lambda folder: "/dev/null",
    "a pipe": fifo,
    "a loop of links": loop,
    "missing": lambda folder: str(folder / "nowhere.json"),
    "a directory without one": str,
    "below a device": lambda folder: "/dev/null/config.json",
    "a long name": lambda folder: str(folder / ("x" * 300)),
    "NUL": lambda folder: str(folder / "a\0b"),
    "half a surrogate pair": lambda folder: str(folder / "\ud800"),
    "empty": lambda folder: "",
}


@pytest.mark.parametrize("case", PLACES)
def test_a_place_that_holds_no_settings_is_refused(case: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    started = time.process_time()
    with pytest.raises(SystemExit) as stopped:
        parse_train([f"--config={PLACES[case](tmp_path)}"])
    message = capsys.readouterr().err
    assert stopped.value.code == 2
    assert message.startswith("error: config = ") and len(message.splitlines()) == 1
    assert time.process_time() - started < 2.0


def test_a_run_directory_stands_for_its_settings_and_a_byte_order_mark_does_no_harm(tmp_path: Path) -> None:
    config = parse_train(FLAGS["ppo"])
    (tmp_path / "config.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(to_dict(config)).encode())
    assert load_config(tmp_path) == config
    assert parse_train(["--config", str(tmp_path)]) == config


WORDS = {"NUL": "a\0b", "surrogate": "\ud800", "long": "x" * 10_000, "line end": "a\nb", "path": "../x", "flag": "-x"}


@pytest.mark.parametrize("word", WORDS.values(), ids=WORDS)
@pytest.mark.parametrize("field", ["env", "dataset"])
def test_strange_words_come_as_far_as_the_check(field: str, word: str, tmp_path: Path) -> None:
    settings = to_dict(parse_train(FLAGS["dqn"]))
    settings["world"][field] = word if field == "env" else word + ".npz"
    with pytest.raises(ValueError, match=f"{field} = |task.change = ") as refusal:
        check(from_dict(settings))
    assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 1000
