"""A run that is gone on with: what it is asked, what it refuses, and what it leaves for those who look at curves."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from experiments import machine
from experiments.cli import parse_train
from experiments.earlier import EarlierRun, earlier_run
from experiments.lock import Locked, RunLock
from experiments.run import Run
from experiments.run_directory import find_checkpoint
from experiments.setup import build, check
from experiments.store import Unsound, listed, read
from experiments.train import Result, train
from tests.experiments.older_format import as_one_file
from tests.experiments.test_run import one_thread  # noqa: F401

ROOT = Path(__file__).parents[2]
VALUE = "--learning-starts 60 --batch-size 16 --buffer-size 300"
FLAGS = {
    "dqn": f"dqn --env CartPole-v1 {VALUE} --task.change rewards --task.period 350",
    "ppo": "ppo --env CartPole-v1 --rollout-steps 32 --num-minibatches 2 --num-envs 2",
}
SMALL = "--steps 900 --width 16 --log-every 60 --probe.every 200 --probe.samples 32 --threads 1 --name run"
CONSTANT = "--learning-rate.over=constant"


def words(name: str, runs: Path, *more: str) -> list[str]:
    return [*FLAGS[name].split(), *SMALL.split(), "--runs-dir", str(runs), *more]


def begun(arguments: list[str], stop_at: int = 0, error: BaseException | None = None) -> tuple[Result, str]:
    """(how it ended, what was said) of train.py's part in this process; asked to stop at a step, or with an `error`
    raised there."""
    config, said = parse_train(arguments), io.StringIO()
    earlier = earlier_run(config)
    if earlier is not None:
        config = earlier.config
        earlier.take_up(lambda sentence: said.write(sentence + "\n"))
    check(config, anew=earlier is None)
    world, agent = build(config, earlier.threads if earlier else 0)

    class Stops(type(agent)):
        def act(self, observations):
            if stop_at and self.clock.steps >= stop_at:
                if error is not None:
                    raise error
                os.kill(os.getpid(), signal.SIGTERM)
                while not signals_heard():
                    pass
            return super().act(observations)

    agent.__class__ = Stops
    return train(config, world, agent, Console(file=said, width=200), earlier), said.getvalue()


def signals_heard() -> bool:
    from experiments import signals

    return any(requests.asked for requests in signals._HEARING)


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_keeps_the_threads_that_it_began_with(tmp_path: Path, one_thread, monkeypatch) -> None:  # noqa: F811
    """Those that were chosen, where nobody asked for a number: with others its sums would be others."""
    monkeypatch.setattr(machine, "usable_cores", lambda: 2)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    arguments = words("dqn", tmp_path, "--threads", "0")
    with monkeypatch.context() as larger:
        larger.setattr(machine, "A_THREAD_EACH", 100)
        stopped, said = begun(arguments, 170)
    assert "2 torch threads (a batch of " in said and read(stopped.checkpoint).made_by["torch_threads"] == 2
    done, said = begun(arguments)
    assert (done.ending, torch.get_num_threads()) == ("finished", 2)
    assert "2 torch threads (as before)" in said and "exactly as it was" in said
    assert "1 torch thread (" in begun(words("dqn", tmp_path / "new", "--threads", "0", "--steps", "40"))[1]


@pytest.mark.parametrize("name", FLAGS)
def test_curves_have_one_value_a_step_and_no_gap_after_several_stops(name: str, tmp_path: Path) -> None:
    uninterrupted, said = begun(words(name, tmp_path / "whole"))
    assert uninterrupted.ending == "finished", said
    whole, arguments = uninterrupted.directory, words(name, tmp_path / "parts", "--checkpoint-every", "200")
    for stop in (170, 430, 640):
        done, said = begun(arguments, stop)
        assert (done.ending, done.why, done.exit_code) == ("interrupted", "SIGTERM", 75)
        assert f"interrupted at step {done.step} and saved: SIGTERM" in said
        assert done.checkpoint is not None and read(done.checkpoint).step == done.step
        # as of a process that was killed in the middle of a line, after that checkpoint
        for file in ("metrics.jsonl", "episodes.jsonl"):
            with (done.directory / file).open("a") as log:
                log.write('{"step": 99999, "charts/SPS": 1')
    done, said = begun(arguments)
    assert done.exit_code == 0 and "goes on from step 6" in said
    assert said.count("its last line was torn, and is dropped") == 2
    for file in ("metrics.jsonl", "episodes.jsonl", "tasks.jsonl"):
        if (whole / file).exists():
            for one, other in zip(lines(whole / file), lines(done.directory / file), strict=True):
                assert {**one, "charts/SPS": 0} == {**other, "charts/SPS": 0}
    events = EventAccumulator(str(done.directory), size_guidance={"scalars": 0, "tensors": 0}).Reload()
    series: dict[str, list[int]] = {}
    for line in lines(done.directory / "metrics.jsonl"):
        for tag in line.keys() - {"step"}:
            series.setdefault(tag, []).append(line["step"])
    assert set(events.Tags()["scalars"]) == set(series)
    for tag, steps in series.items():
        assert [event.step for event in events.Scalars(tag)] == steps == sorted(set(steps)), tag
    texts = [tag for tag in events.Tags()["tensors"] if "text_summary" in tag]
    for tag in texts:
        told = [event.step for event in events.Tensors(tag)]
        assert told == sorted(set(told)), tag
    assert len(texts) >= 2


def test_more_steps_go_on_and_keep_their_cadences(tmp_path: Path) -> None:
    first = begun(words("ppo", tmp_path, CONSTANT))[0]
    settled = json.loads((first.directory / "config.json").read_text())["run"]
    assert (settled["steps"], settled["checkpoint_every"]) == (900, 90)
    again, said = begun(words("ppo", tmp_path, CONSTANT, "--steps", "1500"))
    assert (again.ending, again.directory) == ("finished", first.directory) and again.step == 1500
    assert "goes on from step 900" in said
    now = json.loads((first.directory / "config.json").read_text())["run"]
    assert now == settled | {"steps": 1500}
    assert [read(path).step for path in listed(first.directory / "checkpoints")] == [1440, 1500]
    more = ["--resume", str(first.directory), "--steps", "1600"]
    assert begun(more)[0].step == 1600


def test_a_run_as_long_as_both_has_the_same_weights(tmp_path: Path) -> None:
    cadences = ["--checkpoint-every", "90", "--probe.every", "200", CONSTANT]
    longer = ["--steps", "1500"]
    long = begun(words("ppo", tmp_path / "long", *cadences, *longer))[0]
    begun(words("ppo", tmp_path / "short", *cadences))
    short = begun(words("ppo", tmp_path / "short", *cadences, *longer))[0]
    one, other = (read(find_checkpoint(done.directory)).load("agent")["network"] for done in (long, short))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DQN run that was asked to stop."""
    return begun(words("dqn", tmp_path_factory.mktemp("stopped")), 300)[0].directory


@pytest.fixture
def here(stopped: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stopped, tmp_path / "run"))


def refused(arguments: list[str]) -> str:
    with pytest.raises(ValueError, match=r"\w") as refusal:
        begun(arguments)
    return str(refusal.value)


def test_other_settings_are_refused_by_name(here: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in here.rglob("*")}
    told = refused(words("dqn", tmp_path, "--gamma", "0.9", "--seed", "4", "--interventions", "layer_norm"))
    assert "--gamma 0.99, now 0.9; --seed 1, now 4; --interventions none, now layer_norm" in told
    assert "--steps 900, now 800: fewer" in refused(words("dqn", tmp_path, "--steps", "800"))
    assert "--checkpoint.replay until-finished, now off" in refused(["--resume", str(here), "--checkpoint.replay=off"])
    assert {path: path.stat().st_mtime_ns for path in here.rglob("*")} == before


def test_more_steps_are_refused_where_a_schedule_depends_on_them(tmp_path: Path) -> None:
    anneals = ["--learning-rate.over", "run"]
    begun(words("ppo", tmp_path, *anneals), 200)
    told = refused(words("ppo", tmp_path, *anneals, "--steps", "1000"))
    assert "steps = 1000: must be 900, as before: learning_rate depends on how many there are" in told
    assert begun(words("ppo", tmp_path, *anneals))[0].ending == "finished"


def test_a_finished_run_whose_replay_has_gone_takes_no_more_steps(here: Path) -> None:
    begun(["--resume", str(here)])
    assert not (here / "replay").exists()
    earlier = earlier_run(parse_train(["--resume", str(here)]))
    assert earlier is not None and "is finished: 900 steps" in earlier.finished
    more = earlier_run(parse_train(["--resume", str(here), "--steps", "1000"]))
    assert more is not None and more.finished == ""
    said: list[str] = []
    with pytest.raises(Unsound, match="holds no checkpoint that a run can go on from"):
        more.take_up(said.append)
    assert any("the run is finished, and its replay was let go" in sentence for sentence in said)


def test_a_second_writer_is_told_who_the_first_is(here: Path) -> None:
    held = RunLock(here)
    with pytest.raises(Locked, match=f"is being written to by process {os.getpid()}"):
        begun(["--resume", str(here)])
    held.release()


def test_a_damaged_checkpoint_is_passed_over_aloud(here: Path) -> None:
    *_, older, newest = listed(here / "checkpoints")
    content = bytearray((newest / "run.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (newest / "run.pt").write_bytes(content)
    done, said = begun(["--resume", str(here)])
    assert f"not resumed from '{newest}': run.pt is not as it was written" in said
    assert f"goes on from step {read(older).step} " in said if older.exists() else True
    assert done.ending == "finished"


def test_other_packages_threads_or_code_are_named(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.run_directory.git_commit", lambda: "0123456")
    done, said = begun(["--resume", str(here)])
    assert done.ending == "finished"
    assert "not exactly: it was made by others (git_commit: " in said and "now 0123456)" in said
    manifest = json.loads((here / "manifest.json").read_text())
    assert manifest["git_commit"] != "0123456" and manifest["gone_on"][0]["git_commit"] == "0123456"


def test_a_run_of_the_older_format_is_refused_in_a_sentence(here: Path) -> None:
    as_one_file(here)
    (here / "ending.json").unlink()
    assert "are of the older format" in refused(["--resume", str(here)])


def test_settings_that_were_changed_by_hand_are_noticed(here: Path) -> None:
    settings = json.loads((here / "config.json").read_text())
    settings["agent"]["gamma"] = 0.5
    (here / "config.json").write_text(json.dumps(settings))
    assert "config.json is not the one that it was saved with" in refused(["--resume", str(here)])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_on_a_gpu_all_of_it_is_restored_there(tmp_path: Path) -> None:
    arguments = words("dqn", tmp_path, "--device", "cuda", "--interventions", "redo", "cbp")
    done, _ = begun(arguments, 300)
    saved = read(done.checkpoint).load("agent")
    done, said = begun(arguments)
    assert f"goes on from step {saved['clock']['steps']} " in said
    assert "exactly as it was, but for the order in which a GPU's kernels add up" in said
    assert done.ending == "finished"


def test_what_broken_off_writes_left_is_removed_aloud(here: Path) -> None:
    (here / "probes" / "current.pt.partial").write_bytes(b"x")
    (here / "checkpoints" / "step_000000000555.partial").mkdir()
    done, said = begun(["--resume", str(here)])
    assert "current.pt.partial" in said and "step_000000000555.partial" in said
    assert not list(here.rglob("*.partial")) and done.ending == "finished"


def test_an_error_inside_a_step_leaves_the_exact_state_and_the_weights(tmp_path: Path) -> None:
    arguments = words("dqn", tmp_path, "--checkpoint-every", "100")
    with pytest.raises(MemoryError, match="too much"):
        begun(arguments, 250, MemoryError("too much"))
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == ["crashed_000000000250", "step_000000000100", "step_000000000200"]
    ending = json.loads((tmp_path / "run" / "ending.json").read_text())
    assert (ending["ending"], ending["step"], ending["why"]) == ("crashed", 250, "MemoryError: too much")
    _, said = begun(arguments)
    assert "goes on from step 200 " in said
    whole = begun(words("dqn", tmp_path / "whole", "--checkpoint-every", "100"))[0]
    one, other = (read(find_checkpoint(path)).load("agent")["network"] for path in (whole.directory, tmp_path / "run"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_without_a_saved_replay_it_says_what_is_lost(tmp_path: Path) -> None:
    arguments = words("dqn", tmp_path, "--checkpoint.replay", "off")
    begun(arguments, 300)
    done, said = begun(arguments)
    assert "not exactly: its replay was not saved (checkpoint.replay is off), and begins empty" in said
    assert done.ending == "finished"


def test_a_run_stopped_before_its_first_checkpoint_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(self: Run) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("experiments.training.Run", killed)
    with pytest.raises(TypeError):
        begun(words("ppo", tmp_path))
    monkeypatch.undo()
    assert (tmp_path / "run" / "config.json").exists() and not listed(tmp_path / "run" / "checkpoints")
    done, said = begun(words("ppo", tmp_path))
    assert "was stopped before its first checkpoint, and begins anew" in said and done.ending == "finished"
    events = EventAccumulator(str(done.directory), size_guidance={"tensors": 0}).Reload()
    assert len(events.Tensors("config/text_summary")) == 1


BAD: dict[str, tuple[Callable[[Path], list[str]], str]] = {
    "no such directory": (lambda run: ["--resume", str(run / "nothing")], "resume = "),
    "a file": (lambda run: ["--resume", str(run / "config.json")], "resume = "),
    "nothing": (lambda run: ["--resume="], "resume = ''"),
    "a directory of something else": (lambda run: ["--resume", str(run / "checkpoints")], "config.json"),
    "beside another name": (lambda run: ["--resume", str(run), "--name", "other"], "resume = "),
    "beside a file of settings": (lambda run: ["--resume", str(run), f"--config={run}"], "resume = "),
    "beside a preset": (lambda run: ["--resume", str(run), "--preset", "classic"], "preset = "),
    "another agent": (lambda run: ["c51", "--resume", str(run)], "algorithm = 'c51'"),
    "other settings": (lambda run: ["--resume", str(run), "--gamma", "0.5"], "--gamma 0.99, now 0.5"),
    "fewer steps": (lambda run: ["--resume", str(run), "--steps", "10"], "--steps 900, now 10"),
    "a kind of saving that there is not": (lambda run: ["dqn", "--checkpoint.replay", "on"], "--checkpoint.replay"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_gone_on_with_is_told_at_once(case: str, stopped: Path) -> None:
    arguments, told = BAD[case]
    script = "import sys, train; sys.argv = ['train.py', *sys.argv[1:]]\ntry: train.main()\n"
    script += "finally: print('torch' in sys.modules)"
    command = [sys.executable, "-c", script, *arguments(stopped)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "False\n"), done.stderr
    assert done.stderr.startswith("error: ") and told in done.stderr and len(done.stderr.splitlines()) == 1


def test_the_directory_of_an_earlier_run_is_found_by_any_path(
    stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(stopped)
    for place in (".", f"{stopped}/", "../run", str(stopped)):
        earlier = earlier_run(parse_train(["--resume", place]))
        assert isinstance(earlier, EarlierRun) and earlier.directory.resolve() == stopped.resolve()
        assert earlier.config.run.steps == 900
