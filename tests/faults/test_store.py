"""Checkpoints that are damaged, torn, foreign or hostile are never loaded silently, and an older one is found."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from experiments import durable, store
from experiments.durable import PARTIAL, Recorded
from experiments.store import MANIFEST, Store, Unsound, differences, listed, newest, read

ROOT = Path(__file__).parents[2]
CONFIG = {"algorithm": "ppo", "run": {"seed": 3, "lr": 1e-4, "runs_dir": "Läufe"}}
MADE_BY = {"git_commit": "abc", "versions": {"torch": "2.13.0"}, "torch_threads": 1}


def parts(value):
    agent = {"network": OrderedDict(weight=torch.full((40, 3), float(value)), bias=torch.arange(3)), "steps": value}
    return {"agent": agent, "rest": {"stream": torch.arange(16, dtype=torch.uint8), "words": ["a", None, True, 2**200]}}


def segment(directory, name, content):
    path = directory / "replay" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return {f"replay/{name}": Recorded.of(content)}


@pytest.fixture
def saved(tmp_path):
    """A store with two checkpoints, of steps 100 and 200, that share a segment of the replay."""
    (tmp_path / "checkpoints").mkdir()
    shared = segment(tmp_path, "segment_00000001.bin", bytes(range(256)) * 8)
    made = Store(tmp_path / "checkpoints", 2)
    for step in (100, 200):
        made.save(step, parts(step), CONFIG, MADE_BY, shared)
    return made


def value_of(checkpoint):
    agent = checkpoint.load("agent")
    assert agent["network"]["weight"].unique().tolist() == [agent["steps"]] == [checkpoint.step]
    return checkpoint.step


def test_what_is_saved_is_what_is_loaded(saved):
    checkpoint = newest(saved.folder, pytest.fail)
    assert (checkpoint.step, checkpoint.config, checkpoint.made_by) == (200, CONFIG, MADE_BY)
    assert value_of(checkpoint) == 200
    rest = checkpoint.load("rest")
    assert rest["words"] == ["a", None, True, 2**200] and rest["stream"].tolist() == list(range(16))
    assert sorted(os.listdir(saved.folder)) == ["step_000000000100", "step_000000000200"]
    content = json.loads((checkpoint.path / MANIFEST).read_text())
    assert content["body"]["schema"] == 2
    # by the shell's own tool
    told = subprocess.run(["sha256sum", "agent.pt"], cwd=checkpoint.path, capture_output=True, text=True, check=True)
    assert content["body"]["files"]["agent.pt"][0] == told.stdout.split()[0]


def test_a_step_saved_twice_overwrites_nothing(saved):
    assert saved.save(200, parts(200), CONFIG, MADE_BY).name == "step_000000000200-2"
    assert saved.save(200, parts(200), CONFIG, MADE_BY).name == "step_000000000200-3"
    assert [path.name for path in listed(saved.folder)] == ["step_000000000200-2", "step_000000000200-3"]
    assert newest(saved.folder, pytest.fail).path.name == "step_000000000200-3"


@pytest.mark.parametrize(("keep", "left"), [(2, [400, 500]), (3, [300, 400, 500]), (0, [100, 200, 300, 400, 500])])
def test_the_newest_are_kept(keep, left, tmp_path):
    made = Store(tmp_path, keep)
    for step in (100, 200, 300, 400, 500):
        made.save(step, parts(step), CONFIG, MADE_BY)
    assert [read(path).step for path in listed(tmp_path)] == left


def test_one_checkpoint_alone_is_refused(tmp_path):
    for keep in (1, -1):
        with pytest.raises(ValueError, match="keep = .*a crash while writing must leave one that loads"):
            Store(tmp_path, keep)


def test_the_newest_two_hold_on_to_their_segments(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    made = Store(tmp_path / "checkpoints", 0)
    for step in range(1, 5):
        shared = segment(tmp_path, f"segment_0000000{step}.bin", bytes([step]))
        made.save(step, parts(step), CONFIG, MADE_BY, shared)
    assert made.needed() == {"replay/segment_00000003.bin", "replay/segment_00000004.bin"}


def test_what_is_not_to_be_resumed_is_not(saved):
    saved.save(300, parts(300), CONFIG, MADE_BY, not_resumable="finished, and its replay was let go")
    crashed = saved.save(350, parts(350), CONFIG, MADE_BY, not_resumable="weights of a crash", crashed=True)
    assert crashed.name == "crashed_000000000350" and value_of(read(crashed)) == 350
    told = []
    assert newest(saved.folder, told.append).step == 200
    assert len(told) == 1 and "finished, and its replay was let go" in told[0]


def every_file(checkpoint):
    return [*(path for path in checkpoint.iterdir())]


@pytest.mark.parametrize("share", [0, 0.3, 0.99])
@pytest.mark.parametrize("name", ["agent.pt", "rest.pt", MANIFEST])
def test_a_torn_file_is_caught_and_the_older_one_found(name, share, saved, count):
    path = saved.folder / "step_000000000200" / name
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    told = []
    assert value_of(newest(saved.folder, told.append)) == 100
    assert len(told) == 1 and "step_000000000200" in told[0] and name in told[0]
    count("truncated", "caught, older one found")


def test_a_file_that_is_gone_is_caught(saved):
    for path in every_file(saved.folder / "step_000000000200"):
        content = path.read_bytes()
        path.unlink()
        told = []
        assert newest(saved.folder, told.append).step == 100
        assert path.name in told[0] and "No such file" in told[0]
        path.write_bytes(content)
    assert newest(saved.folder, pytest.fail).step == 200


@pytest.mark.parametrize("flips", [200, pytest.param(2000, marks=pytest.mark.faults)])
def test_every_flipped_byte_is_caught(flips, saved, count):
    shared = segment(saved.folder.parent, "segment_00000002.bin", random.Random(1).randbytes(3000))
    path = saved.save(300, parts(300), CONFIG, MADE_BY, shared)
    files = [*every_file(path), saved.folder.parent / "replay" / "segment_00000002.bin"]
    assert len(files) == 4
    rng = random.Random(flips)
    for number in range(flips):
        file = files[number % 4]
        whole = file.read_bytes()
        changed = bytearray(whole)
        changed[rng.randrange(len(whole))] ^= rng.randrange(1, 256)
        file.write_bytes(changed)
        told = []
        assert value_of(newest(saved.folder, told.append)) == 200
        assert len(told) == 1 and "step_000000000300" in told[0]
        file.write_bytes(whole)
        count("a byte flipped", "caught, older one found")
    assert newest(saved.folder, pytest.fail).step == 300


def test_every_byte_of_a_manifest_counts(saved):
    """White space too, where another would mean the same."""
    path = saved.folder / "step_000000000200" / MANIFEST
    whole = path.read_bytes()
    for place, byte in enumerate(whole):
        path.write_bytes(whole[:place] + (b"\t" if byte in b" \n" else b" ") + whole[place + 1 :])
        with pytest.raises(Unsound, match="not as it was written"):
            read(path.parent)


def test_a_segment_that_is_damaged_is_damage_to_both(saved):
    path = saved.folder.parent / "replay" / "segment_00000001.bin"
    path.write_bytes(bytes(2048))
    told = []
    with pytest.raises(Unsound, match="holds no checkpoint that a run can go on from"):
        newest(saved.folder, told.append)
    assert len(told) == 2 and all("segment_00000001.bin is not as it was written" in sentence for sentence in told)
    assert value_of(read(saved.folder / "step_000000000200")) == 200  # to evaluate, the replay is not needed


def test_what_was_passed_over_goes_at_the_next_save(saved):
    (saved.folder / "step_000000000200" / "agent.pt").write_bytes(b"")
    checkpoint = newest(saved.folder, lambda told: None)
    again = Store(saved.folder, 2, checkpoint)
    assert len(listed(saved.folder)) == 2
    again.save(150, parts(150), CONFIG, MADE_BY)
    assert [read(path).step for path in listed(saved.folder)] == [100, 150]


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def test_a_malicious_pickle_is_refused_without_effect(saved, tmp_path, count):
    """Even where every hash is right."""
    harm = tmp_path / "harm"
    path = saved.folder / "step_000000000200"
    torch.save({"network": Hostile(harm)}, path / "agent.pt")
    with pytest.raises(Unsound, match="agent.pt has .* bytes, not"):
        read(path).load("agent")
    body = json.loads((path / MANIFEST).read_text())["body"]
    body["files"]["agent.pt"] = list(durable.recorded(path / "agent.pt"))
    (path / MANIFEST).write_bytes(store._manifest(body))
    read(path).verify()
    with pytest.raises(Unsound, match="agent.pt: "):
        read(path).load("agent")
    assert not harm.exists()
    torch.load(path / "agent.pt", weights_only=False)
    assert harm.exists()  # it would have done it
    count("a malicious pickle", "refused, no effect")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"schema": 3}, "is of schema 3; this code reads 2"),
        ({"schema": None}, "is of schema None"),
        ({"step": -1}, "holds other things"),
        ({"config": []}, "holds other things"),
        ({"files": {"../../agent.pt": ["0", 1]}}, "holds other things"),
        ({"shared": {"/etc/passwd": ["0", 1]}}, "holds other things"),
        ({"files": {"agent.pt": ["0"]}}, "holds other things"),
        ({"files": 3}, "holds other things"),
    ],
)
def test_a_manifest_of_something_else_is_refused(change, told, saved):
    path = saved.folder / "step_000000000200"
    body = json.loads((path / MANIFEST).read_text())["body"] | change
    (path / MANIFEST).write_bytes(store._manifest(body))
    with pytest.raises(Unsound, match=told):
        read(path)


@pytest.mark.parametrize("content", [b"", b"[]", b"3", b'{"body": 1}', b"{" * 100_000, b'{"a":' * 100_000, b"\xff"])
def test_a_manifest_that_is_none_is_refused(content, saved):
    path = saved.folder / "step_000000000200"
    (path / MANIFEST).write_bytes(content)
    with pytest.raises(Unsound, match="not as it was written"):
        read(path)


def test_where_there_is_nothing_to_go_on_from_it_says_so(tmp_path):
    with pytest.raises(Unsound, match="No such file"):
        newest(tmp_path / "nowhere", pytest.fail)
    with pytest.raises(Unsound, match="holds no checkpoint"):
        newest(tmp_path, pytest.fail)
    (tmp_path / "final.pt").touch()
    with pytest.raises(Unsound, match="older format .* evaluate.py plays them"):
        newest(tmp_path, pytest.fail)


def test_differences_name_what_is_no_longer_the_same():
    before = {"torch": "2.13.0", "threads": 1, "versions": {"numpy": "2.1", "ale-py": "0.12"}}
    now = {"torch": "2.13.0", "threads": 2, "versions": {"numpy": "2.2"}}
    assert differences(before, before) == []
    assert differences(before, now) == [
        "threads: 1, now 2",
        "versions.numpy: 2.1, now 2.2",
        "versions.ale-py: 0.12, now absent",
    ]


# -- a process that dies in the middle of a save -----------------------------------------------------------------------

SAVES = """
import os, signal, sys
from pathlib import Path
from experiments import durable, store
from tests.faults.test_store import CONFIG, MADE_BY, parts
folder, at, nth, seen = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), 0
def stage(name, path):
    global seen
    seen += name == at
    if name == at and seen == nth:
        os.kill(os.getpid(), signal.SIGKILL)
made = store.Store(folder, 2, store.newest(folder, print))
durable.stage = store.stage = stage
made.save(300, parts(300), CONFIG, MADE_BY)
print("saved")
"""
STAGES = [("write", 1), ("write", 20), ("sync", 1), ("sync", 3), ("rename", 1), ("renamed", 1), ("prune", 1)]


@pytest.mark.parametrize(("at", "nth"), STAGES, ids=lambda value: str(value))
def test_a_process_killed_while_saving_leaves_a_sound_checkpoint(at, nth, saved, count):
    command = [sys.executable, "-c", SAVES, str(saved.folder), at, str(nth)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    whole = at in ("renamed", "prune")
    checkpoint = newest(saved.folder, pytest.fail)
    assert value_of(checkpoint) == (300 if whole else 200)
    left = [name for name in os.listdir(saved.folder) if name.endswith(PARTIAL)]
    assert len(left) == (at != "renamed")
    again = Store(saved.folder, 2, checkpoint)
    assert again.leftovers == left and not list(saved.folder.glob(f"*{PARTIAL}"))
    again.save(400, parts(400), CONFIG, MADE_BY)
    assert [read(path).step for path in listed(saved.folder)] == [300 if whole else 200, 400]
    count(f"killed at {at}", "the newest whole one is sound, leftovers removed")


def test_a_leftover_never_stands_for_a_checkpoint(saved):
    path = saved.folder / "step_000000000300"
    shutil.copytree(saved.folder / "step_000000000200", durable.partial_name(path))
    assert newest(saved.folder, pytest.fail).step == 200
