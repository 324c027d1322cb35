"""Several seeds side by side in one process: each is the run that it would be alone, and all go on from one step."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

from agents.guard import NonFiniteError
from agents.interventions import NAMES
from agents.stacking import why_in_turns as of_learners
from agents.stacking import why_no_faster
from envs.errors import WorldError
from experiments.cli import parse_train
from experiments.run_directory import find_checkpoint
from experiments.seeds import asked_for, company, record_of, take_up, why_in_turns
from experiments.setup import build, check
from experiments.store import Unsound, listed, read
from experiments.train import Seed, exit_code, train_seeds
from experiments.training import Result
from tests.experiments.test_going_on import lines, signals_heard, words
from tests.experiments.test_run import one_thread  # noqa: F401

ROOT = Path(__file__).parents[2]
SHORT = ("--steps", "500", "--probes", "none")
THREE = ("--num-seeds", "3", "--seed", "5", *SHORT)


def trained(
    arguments: list[str], stop_at: int = 0, error: BaseException | None = None, who: int = 0
) -> tuple[list[Result], str]:
    """(how each ended, what was said) of train.py's part in this process; asked to stop at a step by the seed `who`,
    or with an `error` raised there."""
    config, said = parse_train(arguments), io.StringIO()
    runs = take_up(asked_for(config, lambda told: said.write(f"{told}\n")), lambda told: said.write(f"{told}\n"))
    seeds = []
    for one, earlier in runs:
        check(one, anew=earlier is None, seeds=len(runs))
        world, agent = build(one, earlier.threads if earlier else 0)
        if stop_at and one.run.seed == who:
            agent.__class__ = _stopping(type(agent), stop_at, error)
        seeds.append(Seed(one, world, agent, earlier))
    record = record_of(config) if config.run.num_seeds > 1 else None
    new = record is not None and not record.exists()
    return train_seeds(seeds, Console(file=said, width=200), record if new else None), said.getvalue()


def _stopping(kind: type, stop_at: int, error: BaseException | None) -> type:
    class Stops(kind):
        def observe(self, transitions):
            if self.clock.steps >= stop_at:
                if error is not None:
                    raise error
                os.kill(os.getpid(), signal.SIGTERM)
                while not signals_heard():
                    pass
            super().observe(transitions)

    return Stops


def network(directory: Path) -> dict[str, torch.Tensor]:
    return read(find_checkpoint(directory)).load("agent")["network"]


def same(one: Path, other: Path) -> bool:
    """Whether two runs have the same weights, log and games."""
    for file in ("metrics.jsonl", "episodes.jsonl"):
        first, second = ([{**line, "charts/SPS": 0} for line in lines(run / file)] for run in (one, other))
        if first != second:
            return False
    first, second = network(one), network(other)
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where three seeds of DQN were trained side by side, run-s5 to run-s7."""
    runs = tmp_path_factory.mktemp("whole")
    results, said = trained(words("dqn", runs, *THREE))
    assert [result.ending for result in results] == ["finished"] * 3 and exit_code(results) == 0, said
    return runs


def close(one: Path, other: Path) -> None:
    """Whether two runs have the same games, and the same weights but for the last digits."""
    assert lines(one / "episodes.jsonl") == lines(other / "episodes.jsonl")
    torch.testing.assert_close(network(one), network(other), rtol=1e-3, atol=1e-4)


def test_each_is_the_run_that_it_would_be_alone(whole: Path, tmp_path: Path) -> None:
    for seed in (5, 7):
        trained(words("dqn", tmp_path, "--seed", str(seed), *SHORT))
        close(whole / f"run-s{seed}", tmp_path / "run")
        shutil.rmtree(tmp_path / "run")


@pytest.mark.long
def test_in_turns_it_is_that_to_the_bit(tmp_path: Path) -> None:
    flags = ("--interventions", "batch_norm", "--steps", "300")
    said = trained(words("ppo", tmp_path, *THREE, *flags))[1]
    assert "in turns: BatchNorm1d draws or moves something in the forward pass" in said
    trained(words("ppo", tmp_path, "--seed", "6", *SHORT, *flags))
    assert same(tmp_path / "run-s6", tmp_path / "run")


def test_a_record_says_who_ran_together(whole: Path) -> None:
    record = json.loads((whole / "run.seeds.json").read_text())
    assert record["runs"] == {"run-s5": 5, "run-s6": 6, "run-s7": 7}
    assert [json.loads((whole / name / "config.json").read_text())["run"]["seed"] for name in record["runs"]] == [
        5,
        6,
        7,
    ]


@pytest.mark.parametrize("name", ["dqn", pytest.param("ppo", marks=pytest.mark.long)])
def test_asked_to_stop_all_stop_at_one_step_and_end_as_if_never_stopped(name: str, whole: Path, tmp_path: Path) -> None:
    if name == "ppo":
        whole = tmp_path / "whole"
        trained(words(name, whole, *THREE))
    arguments = words(name, tmp_path / "parts", *THREE)
    for stop, who in ((130, 6), (350, 7)):
        results, said = trained(arguments, stop, who=who)
        assert [result.exit_code for result in results] == [75] * 3 and exit_code(results) == 75, said
        assert len({result.step for result in results}) == 1 and stop <= results[0].step <= stop + 4
    results, said = trained(["--resume", str(tmp_path / "parts" / "run.seeds.json")])
    assert exit_code(results) == 0 and said.count("exactly as it was") == 3, said
    assert all(same(tmp_path / "parts" / f"run-s{seed}", whole / f"run-s{seed}") for seed in (5, 6, 7))
    told: list[str] = []
    assert not asked_for(parse_train(arguments), told.append) and "run-s7 is finished: 500 steps" in told[-1]


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    """Three seeds of PPO that were asked to stop, with checkpoints of two steps each."""
    trained(words("ppo", tmp_path, *THREE, "--checkpoint-every", "100"), 310, who=5)
    assert [len(listed(tmp_path / f"run-s{seed}" / "checkpoints")) for seed in (5, 6, 7)] == [2, 2, 2]
    return tmp_path


@pytest.fixture(scope="module")
def whole_ppo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("whole_ppo")
    trained(words("ppo", runs, *THREE, "--checkpoint-every", "100"))
    return runs


def test_where_one_was_not_saved_any_more_all_go_on_from_the_step_before(stopped: Path, whole_ppo: Path) -> None:
    """As a process leaves them that is killed while the second of them is being saved."""
    for seed in (6, 7):
        shutil.rmtree(listed(stopped / f"run-s{seed}" / "checkpoints")[-1])
        (stopped / f"run-s{seed}" / "ending.json").unlink()
    results, said = trained(words("ppo", stopped, *THREE, "--checkpoint-every", "100"))
    assert said.count("goes on from step 300") == 3 and exit_code(results) == 0
    assert all(same(stopped / f"run-s{seed}", whole_ppo / f"run-s{seed}") for seed in (5, 6, 7))


def test_where_one_is_damaged_all_go_on_from_the_step_before(stopped: Path) -> None:
    newest = listed(stopped / "run-s6" / "checkpoints")[-1]
    (newest / "agent.pt").write_bytes(b"")
    said = trained(words("ppo", stopped, *THREE, "--checkpoint-every", "100"))[1]
    assert f"not resumed from '{newest}': agent.pt has 0 bytes" in said and said.count("goes on from step 300") == 3


def test_beside_whom_each_goes_on(stopped: Path, tmp_path: Path) -> None:
    seeds = [stopped / f"run-s{seed}" for seed in (5, 6, 7)]
    assert [company(run) for run in seeds] == [(5, 6, 7)] * 3
    (seeds[1] / "ending.json").write_text(json.dumps({"ending": "not finite", "step": 450, "why": ""}))
    assert company(seeds[1]) == () and company(tmp_path / "new") is None
    for path in listed(seeds[2] / "checkpoints"):
        shutil.rmtree(path)
    assert company(seeds[2]) is None
    trained(words("ppo", tmp_path / "alone", *SHORT), 200, who=1)
    assert company(tmp_path / "alone" / "run") == ()


def test_where_they_have_no_step_in_common_nothing_goes_on(stopped: Path) -> None:
    for path in listed(stopped / "run-s5" / "checkpoints"):
        shutil.rmtree(path)
    with pytest.raises(Unsound, match="alone each may go on"):
        trained(["--resume", str(stopped / "run.seeds.json")])


def test_one_that_fails_leaves_the_others_alone(whole_ppo: Path, tmp_path: Path) -> None:
    arguments = words("ppo", tmp_path, *THREE, "--checkpoint-every", "100")
    with pytest.raises(MemoryError, match="too much"):
        trained(arguments, 310, MemoryError("too much"), who=6)
    endings = [json.loads((tmp_path / f"run-s{seed}" / "ending.json").read_text()) for seed in (5, 6, 7)]
    assert [ending["ending"] for ending in endings] == ["finished", "crashed", "finished"]
    for seed in (5, 7):  # from there on by two, whose sums may have other last digits
        close(tmp_path / f"run-s{seed}", whole_ppo / f"run-s{seed}")
    results, said = trained(arguments)  # alone, from its newest checkpoint
    assert [result.directory.name for result in results] == ["run-s6"] and "goes on from step 300" in said
    assert exit_code(results) == 0


@pytest.mark.parametrize(
    ("error", "ending"), [(WorldError("it broke"), "world failed"), (NonFiniteError("q is NaN"), "not finite")]
)
def test_one_that_is_broken_off_keeps_its_own_ending(error: Exception, ending: str, tmp_path: Path) -> None:
    results, said = trained(words("ppo", tmp_path, *THREE, "--steps", "150"), 80, error, who=6)
    assert [result.ending for result in results] == ["finished", ending, "finished"] and exit_code(results) == 1
    assert [result.step for result in results] == [150, 80, 150] and str(error) in said
    assert json.loads((tmp_path / "run-s6" / "ending.json").read_text())["ending"] == ending


def test_one_that_had_failed_is_left_where_the_others_are_further(stopped: Path) -> None:
    for path in listed(stopped / "run-s6" / "checkpoints")[1:]:
        shutil.rmtree(path)
    (stopped / "run-s6" / "ending.json").write_text(json.dumps({"ending": "not finite", "step": 450, "why": ""}))
    results, said = trained(words("ppo", stopped, *THREE, "--checkpoint-every", "100"))
    assert [result.directory.name for result in results] == ["run-s5", "run-s7"]
    assert "run-s6: ended by itself, and is left" in said


@pytest.mark.long
def test_one_of_them_goes_on_alone(stopped: Path) -> None:
    results, said = trained(["--resume", str(stopped / "run-s6")])
    assert results[0].ending == "finished" and "goes on from step 31" in said
    assert "not exactly: it was made by others (stacked_seeds: [5, 6, 7], now absent)" in said


def test_made_up_names_are_those_that_each_would_have_alone(tmp_path: Path) -> None:
    arguments = [word for word in words("ppo", tmp_path, *THREE, "--steps", "32") if word not in ("--name", "run")]
    for _ in range(2):
        trained(arguments)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert len(names) == 8 and sum(name.endswith("-2") for name in names) == 3
    record = next(name for name in names if name.endswith(".seeds.json") and "-2" not in name)
    runs = json.loads((tmp_path / record).read_text())["runs"]
    assert [f"_s{seed}_" in name for name, seed in runs.items()] == [True] * 3 and "_s5-7_" in record


def test_whether_it_pays_is_known_from_the_settings() -> None:
    def of(*flags: str) -> str:
        return why_in_turns(parse_train([*flags, "--steps", "1000"]))

    assert not of("ppo", "--env", "Ant-v5") and not of("dqn", "--env", "ImageMDP-v0", "--width", "256")
    assert "400,000 parameters" in of("dqn", "--env", "ImageMDP-v0", "--width", "512", "--device", "cpu")
    assert of("dqn", "--env", "ALE/Pong-v5") == "convolutions are not stacked"
    several = "--interventions", "pfo", "redo", "infer"
    assert of("dqn", "--env", "CartPole-v1", *several) == "pfo and infer cannot be stacked"


@pytest.mark.parametrize("width", [64, 512])
def test_settings_and_learners_agree_on_size(width: int) -> None:
    config = parse_train(["c51", "--env", "ImageMDP-v0", "--width", str(width), "--device", "cpu", "--steps", "1000"])
    world, agent = build(config)
    world.close()
    assert why_in_turns(config) == why_no_faster([agent.learner])
    assert bool(why_in_turns(config)) == (width == 512)


def test_settings_and_learners_agree_on_it() -> None:
    for name in NAMES:
        flags = ["--width", "8", "--interventions", name, "--steps", "1000"]
        flags += ["--plasticity-injection.when", "at gradient step 9"] if name == "plasticity_injection" else []
        config = parse_train(["dqn", "--env", "CartPole-v1", *flags])
        world, agent = build(config)
        world.close()
        assert bool(why_in_turns(config)) == bool(of_learners([agent.learner])), name


BAD = {
    "none": (["--num-seeds", "0"], "num_seeds = 0: must be in [1, 1024]"),
    "a last seed that is too large": (["--seed", str(2**31 - 2)], "num_seeds = 3: must be in [1, 2]"),
    "wandb": (["--wandb"], "wandb = True: must be off with several seeds in one process"),
    "other seeds than those of the record": (["--seed", "6"], "seeds = [6, 7, 8]: must be [5, 6, 7], as in"),
    "more seeds than those of the record": (["--num-seeds", "4"], "seeds = [5, 6, 7, 8]: must be [5, 6, 7], as in"),
    "other settings": (["--gamma", "0.5"], "--gamma 0.99, now 0.5"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_is_told_at_once(case: str, whole: Path) -> None:
    flags, told = BAD[case]
    script = "import sys, train; sys.argv = ['train.py', *sys.argv[1:]]\ntry: train.main()\n"
    script += "finally: print('torch' in sys.modules)"
    command = [sys.executable, "-c", script, *words("dqn", whole, *THREE, *flags)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "False\n"), done.stderr
    *notes, error = done.stderr.splitlines()
    assert error.startswith("error: ") and told in error and all(note.startswith("note: ") for note in notes)


def test_another_number_of_seeds_than_in_the_record_is_refused(whole: Path) -> None:
    with pytest.raises(SystemExit):
        parse_train(["--resume", str(whole / "run.seeds.json"), "--num-seeds", "2"])
    with pytest.raises(SystemExit):
        parse_train(["--resume", str(whole / "run-s5"), "--num-seeds", "2"])
