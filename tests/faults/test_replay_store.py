"""The replay's segments against plain copies of the whole replay."""

import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from agents.replay import Replay
from experiments import durable
from experiments.replay_store import ReplayStore, bytes_on_disk, in_manifest, remove_segments, segments_of
from experiments.store import Store, Unsound, newest, read
from tests.agents.helpers import CPU, STACK, VECTOR, NoiseWorld, needs_cuda

ARRAYS = ("actions", "rewards", "ages", "terminal", "ended", "final", "tasks", "written", "filled", "age")
CONFIG = {"algorithm": "dqn", "run": {"seed": 1}}


def make(spaces, num_envs, slots, device=CPU):
    return Replay(spaces, num_envs, slots * num_envs, 2, 0.9, np.random.default_rng(3), CPU, device)


def fill(replay, world, steps, task=0):
    for _ in range(steps):
        transitions = world.step(np.arange(replay.num_envs) % 3)
        transitions = transitions._replace(tasks=np.full(replay.num_envs, task))
        replay.add(transitions, transitions.rewards, True)


def in_use(replay):
    """Everything of the slots that sampling can see, and the counters, as plain copies."""
    rows = [
        offset + (oldest + np.arange(filled)) % replay.slots
        for offset, oldest, filled in zip(replay.offset, replay.written - replay.filled, replay.filled, strict=True)
    ]
    rows = np.concatenate(rows).astype(int)
    seen = {name: getattr(replay, name)[rows].copy() for name in ARRAYS[:7]}
    counters = {name: getattr(replay, name).copy() for name in ARRAYS[7:]}
    return {
        **seen,
        **counters,
        "observations": replay.observations[rows].cpu().numpy(),
        "all tasks": replay.tasks.copy(),
    }


def same(first, second):
    return all(first[name].dtype == second[name].dtype and np.array_equal(first[name], second[name]) for name in first)


def save(store, replays, replay, step):
    parts = {"agent": {"network": {}}, "replay": replay.state_dict()}
    path = store.save(step, parts, CONFIG, {}, **in_manifest(replays.seal()))
    replays.let_go(store.needed())
    return path


def restored(checkpoint, like, spaces, directory):
    replay = make(spaces, like.num_envs, like.slots, like.observations.device)
    replays = ReplayStore(directory, replay)
    replays.restore(checkpoint.load("replay"), segments_of(checkpoint))
    replays.close()
    return replay


@pytest.mark.parametrize("device", [CPU, pytest.param(torch.device("cuda"), marks=needs_cuda)])
@pytest.mark.parametrize("spaces", [VECTOR, STACK], ids=["vectors", "images"])
@settings(max_examples=150, deadline=None)
@example(num_envs=3, slots=8, segment=1, seed=208, does=["forget"])  # one ring alone has more than a segment takes
@given(
    num_envs=st.integers(1, 3),
    slots=st.integers(8, 40),
    segment=st.integers(1, 60),
    seed=st.integers(0, 1000),
    does=st.lists(
        st.sampled_from(["fill", "fill", "fill", "save", "save", "forget", "cut", "resume", "resume"]), max_size=25
    ),
)
def test_what_is_restored_is_what_was_there(device, spaces, num_envs, slots, segment, seed, does):
    """After any order of writes, saves, forgetting and resumes, the newest two checkpoints restore to plain copies."""
    directory = Path(tempfile.mkdtemp())
    (directory / "checkpoints").mkdir()
    replay, world = make(spaces, num_envs, slots, device), NoiseWorld(spaces, num_envs, seed, terminates=0.2)
    size = segment * bytes_on_disk(replay, 0) // (slots * num_envs)
    store, replays = Store(directory / "checkpoints", 3), ReplayStore(directory, replay, size)
    rng, saved, step, task = np.random.default_rng(seed), [], 0, 0
    try:
        for what in [*does, "save"]:
            step += 1
            if what == "fill":
                for _ in range(rng.integers(1, 30)):
                    fill(replay, world, 1, task)
                    replays.advance()
            elif what == "forget":
                task += 1
                fill(replay, world, 2, task)
                replay.keep_task(task)
            elif what == "cut":  # as at a resume from a world that begins anew: the slot before may be sealed
                replay.cut(world.observations)
            elif what == "save":
                saved.append((save(store, replays, replay, step), in_use(replay)))
            elif saved:  # go on from the newest checkpoint, as after a kill
                replays.close()
                checkpoint = newest(directory / "checkpoints", pytest.fail)
                replay = make(spaces, num_envs, slots, device)
                store, replays = Store(store.folder, 3, checkpoint), ReplayStore(directory, replay, size)
                replays.restore(checkpoint.load("replay"), segments_of(checkpoint))
                replays.let_go(store.needed())
                assert same(in_use(replay), saved[-1][1])
        for path, expected in saved[-2:]:
            checkpoint = read(path)
            checkpoint.verify()
            assert same(in_use(restored(checkpoint, replay, spaces, directory)), expected)
        needed = {name for path, _ in saved[-2:] for name in read(path).shared}
        there = {f"replay/{path.name}" for path in (directory / "replay").iterdir()}
        assert there - needed <= {segment.name for segment in replays._sealed}  # written for the next one
    finally:
        replays.close()
        shutil.rmtree(directory)


@pytest.fixture
def run(tmp_path):
    """(directory, replay, world, store, its segments) of a small run: 3 rings of 20 slots, segments of 5 each."""
    (tmp_path / "checkpoints").mkdir()
    replay, world = make(STACK, 3, 20), NoiseWorld(STACK, 3)
    store = Store(tmp_path / "checkpoints", 2)
    replays = ReplayStore(tmp_path, replay, 5 * 3 * bytes_on_disk(replay, 0) // 60)
    yield tmp_path, replay, world, store, replays
    replays.close()


def test_a_sealed_segment_is_written_once(run):
    directory, replay, world, store, replays = run
    fill(replay, world, 15)
    save(store, replays, replay, 1)
    first = {path.name: (path.stat().st_mtime_ns, path.stat().st_ino) for path in (directory / "replay").iterdir()}
    assert len(first) >= 3  # 15 steps and what episodes' ends take besides, five slots a segment
    fill(replay, world, 1)
    before = read(save(store, replays, replay, 2))
    after = {path.name: (path.stat().st_mtime_ns, path.stat().st_ino) for path in (directory / "replay").iterdir()}
    assert first.items() <= after.items() and len(set(after) - set(first)) == 1
    fill(replay, world, 60)  # three times around: nothing of it is needed but by the checkpoint before
    save(store, replays, replay, 3)
    now = {f"replay/{path.name}" for path in (directory / "replay").iterdir()}
    assert set(before.shared) <= now
    fill(replay, world, 60)
    save(store, replays, replay, 4)
    assert not set(before.shared) & {f"replay/{path.name}" for path in (directory / "replay").iterdir()}


def test_an_episode_that_is_cut_after_its_slot_was_sealed_stays_cut(run):
    """As after a resume in a world that cannot go on: its games begin anew."""
    directory, replay, _, store, replays = run
    world = NoiseWorld(STACK, 3, terminates=0.0, truncates=0.0)
    fill(replay, world, 5)
    save(store, replays, replay, 1)
    assert (replays._reached == 5).all()  # one whole segment: the fifth slots are sealed
    replay.cut(world.observations)
    assert replay.ended.sum() == 3
    fill(replay, world, 2)
    expected = in_use(replay)
    checkpoint = read(save(store, replays, replay, 2))
    assert same(in_use(restored(checkpoint, replay, STACK, directory)), expected)


def test_the_thread_writes_while_the_run_goes_on(run):
    directory, replay, _, _, replays = run
    world = NoiseWorld(STACK, 3, terminates=0.0, truncates=0.0)
    for _ in range(18):
        fill(replay, world, 1)
        replays.advance()
        if replays._writing is not None:
            replays._writing.result()
    assert len(list((directory / "replay").glob("*.bin"))) == 3  # 18 steps: 3 whole segments of 5 slots a ring
    assert len(replays.seal()) >= 4


def test_what_the_thread_failed_at_is_told_and_not_lost(run, monkeypatch):
    directory, replay, world, store, replays = run
    full = OSError(28, "No space left on device")

    def stage(name, path):
        if name == "sync":
            raise full

    fill(replay, world, 6)
    monkeypatch.setattr(durable, "stage", stage)
    replays.advance()
    with pytest.raises(OSError, match="No space left"):
        replays.seal()
    assert not list((directory / "replay").iterdir())
    monkeypatch.undo()  # somebody made room
    expected = in_use(replay)
    checkpoint = read(save(store, replays, replay, 6))
    assert same(in_use(restored(checkpoint, replay, STACK, directory)), expected)


def test_a_segment_that_is_changed_or_gone_is_told(run):
    directory, replay, world, store, replays = run
    fill(replay, world, 6)
    checkpoint = read(save(store, replays, replay, 6))
    segments = segments_of(checkpoint)
    path = directory / segments[0].name
    content = path.read_bytes()
    for changed in (content[:-1], bytes([content[0] ^ 1]) + content[1:], b""):
        path.write_bytes(changed)
        with pytest.raises(Unsound, match="not as it was written"):
            replays.restore(checkpoint.load("replay"), segments)
        with pytest.raises(Unsound, match="segment_00000001.bin"):
            checkpoint.verify()
    path.unlink()
    with pytest.raises(Unsound, match="No such file"):
        replays.restore(checkpoint.load("replay"), segments)


def test_segments_of_another_replay_are_refused(run):
    directory, replay, world, store, replays = run
    fill(replay, world, 6)
    checkpoint = read(save(store, replays, replay, 6))
    other = ReplayStore(directory, make(VECTOR, 3, 20))
    with pytest.raises((ValueError, Unsound)):
        other.restore(checkpoint.load("replay"), segments_of(checkpoint))
    other.close()


def test_segments_of_a_finished_run_are_removed(run):
    directory, replay, world, store, replays = run
    fill(replay, world, 6)
    save(store, replays, replay, 6)
    replays.close()
    remove_segments(directory)
    assert not (directory / "replay").exists()
    told = []
    with pytest.raises(Unsound, match="no checkpoint that a run can go on from"):
        newest(store.folder, told.append)
    assert "segment_00000001.bin: No such file" in told[0]


def test_the_estimate_is_what_a_replay_of_vectors_takes(tmp_path):
    replay, world = make(VECTOR, 2, 50), NoiseWorld(VECTOR, 2, terminates=0.0, truncates=0.0)
    fill(replay, world, 50)
    replays = ReplayStore(tmp_path, replay)
    replays.seal()
    replays.close()
    # 5 float32, int64 action, float32 reward, int32 age, two flags: 20 + 8 + 4 + 4 + 2 = 38 bytes a slot
    assert sum(path.stat().st_size for path in (tmp_path / "replay").iterdir()) == 100 * 38
    assert bytes_on_disk(replay, 0) == 100 * 38
