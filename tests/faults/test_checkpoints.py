"""When a run's replay is saved, when it goes, and what cannot be saved."""

import pytest
import torch

from agents.guard import NonFiniteError
from experiments import durable
from experiments.checkpoints import Checkpoints
from experiments.cli import parse_train
from experiments.config import to_dict
from experiments.run import Run
from experiments.setup import build
from experiments.store import Unsound, listed, newest, read

FLAGS = {
    "dqn": "dqn --env CartPole-v1 --steps 400 --width 8 --depth 1 --learning-starts 40 --buffer-size 200",
    "ppo": "ppo --env CartPole-v1 --steps 400 --width 8 --depth 1 --num-envs 1 --rollout-steps 32 --num-minibatches 2",
}


class Saved:
    """A run of 100 ticks in a directory, not saved yet."""

    def __init__(self, name, directory, replay="until-finished", ticks=100, resumed=None):
        self.directory, self.config = directory, parse_train([*FLAGS[name].split(), "--threads", "1"])
        world, agent = build(self.config)
        self.run = Run(agent, world, self.config.run.steps)
        self.checkpoints = Checkpoints(directory, self.run, to_dict(self.config), {}, 2, replay, resumed)
        for _ in range(ticks):
            self.run.advance()
            self.checkpoints.tick()

    def segments(self):
        folder = self.directory / "replay"
        return [path.name for path in folder.iterdir()] if folder.exists() else None


@pytest.fixture
def make(tmp_path):
    """Makes a run in the test's directory; all are closed at the end."""
    made = []

    def begin(*arguments, **named):
        made.append(Saved(arguments[0], tmp_path, *arguments[1:], **named))
        return made[-1]

    yield begin
    for one in made:
        one.checkpoints.close()
        one.run.world.close()


def test_a_finished_run_lets_its_replay_go(make):
    one = make("dqn")
    one.checkpoints.save()
    assert one.segments()
    path = one.checkpoints.save(finished=True)
    assert one.segments() is None and "the run is finished" in read(path).not_resumable
    assert read(path).load("agent")["network"].keys() == one.run.agent.network.state_dict().keys()
    one.checkpoints.close()  # again does no harm


def test_a_finished_runs_replay_stays_where_the_last_save_failed(make, monkeypatch):
    one = make("dqn")
    one.checkpoints.save()
    before = one.segments()

    def stage(name, path):
        if name == "sync":
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(durable, "stage", stage)
    with pytest.raises(OSError, match="No space"):
        one.checkpoints.save(finished=True)
    assert one.segments() == before
    newest(one.directory / "checkpoints", pytest.fail).verify()


def test_always_keeps_it(make):
    one = make("dqn", "always")
    path = one.checkpoints.save(finished=True)
    assert one.segments() and newest(path.parent, pytest.fail).path == path


def test_off_begins_anew_and_says_so(make):
    one = make("dqn", "off")
    one.checkpoints.save()
    assert one.segments() == [] and one.checkpoints.disk_use == ""
    resumed = newest(one.directory / "checkpoints", pytest.fail)
    again = make("dqn", "off", ticks=0, resumed=resumed)
    assert (
        again.checkpoints.inexact.endswith("(checkpoint.replay is off), and begins empty")
        and len(again.run.agent.replay) == 0
    )
    assert again.run.clock.steps == 100


def test_an_agent_without_a_replay_has_no_segments(make):
    one = make("ppo")
    path = one.checkpoints.save(finished=True)
    assert one.segments() is None and one.checkpoints.disk_use == ""
    assert newest(path.parent, pytest.fail).path == path  # more steps can be asked for
    again = make("ppo", ticks=0, resumed=read(path))
    assert "its replay" not in again.checkpoints.inexact and again.run.clock.steps == 100


def test_what_the_replay_takes_is_told(make):
    # 200 slots of 34 bytes are nothing beside two segments of 64 MiB that may hold overwritten ones
    assert make("dqn", ticks=0).checkpoints.disk_use.startswith("the replay takes up to 0.13 GB in ")


@pytest.mark.parametrize("how", ["save", "save_crashed"])
def test_what_is_not_finite_is_not_saved_over_what_is(how, make):
    one = make("dqn")
    one.checkpoints.save()
    with torch.no_grad():
        one.run.agent.network.head.bias[0] = float("nan")
    with pytest.raises(NonFiniteError, match="network.head.bias.*nothing was saved"):
        getattr(one.checkpoints, how)(*["it raised"] * (how == "save_crashed"))
    assert [path.name for path in (one.directory / "checkpoints").iterdir()] == ["step_000000000100"]
    newest(one.directory / "checkpoints", pytest.fail)


def test_a_crash_leaves_weights_beside_the_newest_exact_state(make):
    one = make("dqn")
    exact = one.checkpoints.save()
    one.run.advance()
    path = one.checkpoints.save_crashed("the world raised ValueError")
    assert path.name == "crashed_000000000101" and list(read(path).files) == ["agent.pt"]
    assert "broken off: the world raised ValueError" in read(path).not_resumable
    assert newest(path.parent, pytest.fail).path == exact


def test_a_directory_with_checkpoints_is_not_begun_anew(make):
    one = make("dqn")
    one.checkpoints.save()
    with pytest.raises(ValueError, match="holds step_000000000100 already"):
        make("dqn", ticks=0)
    assert one.segments() and listed(one.directory / "checkpoints")


def test_a_checkpoint_of_another_run_is_refused(make):
    one = make("ppo")
    path = one.checkpoints.save()
    with pytest.raises(ValueError, match="must hold the weights of the network"):
        make("dqn", ticks=0, resumed=read(path))
    assert newest(path.parent, pytest.fail).path == path


def test_segments_that_nothing_needs_go_at_the_next_start(make, tmp_path):
    one = make("dqn")
    one.checkpoints.save()
    needed = one.segments()
    (tmp_path / "replay" / "segment_00000077.bin").write_bytes(b"sealed, and killed before a checkpoint named it")
    (tmp_path / "replay" / "segment_00000078.bin.partial").write_bytes(b"")
    again = make("dqn", ticks=0, resumed=newest(tmp_path / "checkpoints", pytest.fail))
    assert again.segments() == needed
    assert again.checkpoints.leftovers == ["segment_00000078.bin.partial"]


@pytest.mark.parametrize(("name", "parts"), [("dqn", {"agent", "run", "replay"}), ("ppo", {"agent", "run"})])
def test_every_part_is_of_tensors_and_primitives(name, parts, make):
    checkpoint = read(make(name).checkpoints.save())
    assert set(checkpoint.files) == {f"{part}.pt" for part in parts}
    for part in parts:
        assert isinstance(checkpoint.load(part), dict)  # by torch's safe loader
    with pytest.raises(Unsound, match="holds no other.pt"):
        checkpoint.load("other")
