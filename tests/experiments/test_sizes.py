"""Sizes that cannot be: refused by their own name, before anything of that size is made."""

import resource
import time

import pytest

from envs import describe
from experiments import sizes
from experiments.cli import parse_evaluate, parse_train
from experiments.setup import check, require_device_memory, spaces_from
from experiments.sizes import refuse_too_large

CARTPOLE = ["dqn", "--env", "CartPole-v1"]
PPO = ["ppo", "--env", "CartPole-v1"]
ATARI = ["dqn", "--env", "ALE/Pong-v5"]
IMAGES = ["dqn", "--env", "ImageMDP-v0", "--task.period", "1000"]
HUGE = "99999999999"

REFUSED = {
    "width": ([*CARTPOLE, "--width", HUGE], "width"),
    "width of a CNN": ([*ATARI, "--width", "9999999"], "width"),
    "width of PPO": (["ppo", "--env", "Ant-v5", "--width", HUGE], "width"),
    "width, doubled": ([*CARTPOLE, "--width", "99999999998", "--interventions", "crelu"], "width"),
    "depth": ([*CARTPOLE, "--depth", "1000000"], "depth"),
    "depth of wide layers": ([*CARTPOLE, "--depth", "1000", "--width", "65536"], "depth|width"),
    "atoms": (["c51", "--env", "CartPole-v1", "--num-atoms", HUGE], "num_atoms"),
    "atoms of a critic": ([*PPO, "--value-loss", "hl_gauss", "--num-atoms", HUGE], "num_atoms"),
    "a rollout": ([*PPO, "--rollout-steps", "999999999996"], "rollout_steps"),
    "a rollout of screens": (["ppo", "--env", "ALE/Pong-v5", "--rollout-steps", "99999996"], "rollout_steps"),
    "environments": ([*PPO, "--num-envs", HUGE], "num_envs"),
    "environments of Atari": (["ppo", "--env", "ALE/Pong-v5", "--num-envs", "9999999"], "num_envs"),
    "environments of MuJoCo": (["ppo", "--env", "Ant-v5", "--num-envs", "9999999"], "num_envs"),
    "environments of images": ([*IMAGES, "--num-envs", HUGE], "num_envs"),
    "a batch": ([*CARTPOLE, "--batch-size", HUGE], "batch_size"),
    "a batch beside a replay": (
        [*CARTPOLE, "--batch-size", "9999999999", "--buffer-size", "99999999999"],
        "batch_size|buffer_size",
    ),
    "a replay": ([*CARTPOLE, "--buffer-size", HUGE], "buffer_size"),
    "a replay of 40 digits": ([*CARTPOLE, "--buffer-size", "9" * 40], "buffer_size"),
    "rewards summed": ([*CARTPOLE, "--n-step", HUGE], "n_step"),
    "threads": ([*CARTPOLE, "--threads", "99999999"], "threads"),
    "steps of 40 digits": ([*CARTPOLE, "--steps", "9" * 40], "steps"),
    "steps of 5,000 digits": ([*CARTPOLE, "--steps", "9" * 5000], "steps"),
    "epochs": ([*PPO, "--update-epochs", HUGE], "update_epochs"),
    "minibatches": ([*PPO, "--num-minibatches", HUGE], "num_minibatches"),
    "no-ops": ([*ATARI, "--noop-max", HUGE], "noop_max"),
    "a time limit": ([*CARTPOLE, "--max-episode-steps", "9" * 40], "max_episode_steps"),
    "warm-up": ([*CARTPOLE, "--learning-starts", "9" * 40], "learning_starts"),
    "exploration": ([*CARTPOLE, "--epsilon.over", "9" * 40], "epsilon.over"),
    "target copies": ([*CARTPOLE, "--target-period", "9" * 40], "target_period"),
    "lines of the log": ([*CARTPOLE, "--log-every", "9" * 40], "log_every"),
    "checkpoints": ([*CARTPOLE, "--keep-checkpoints", "9" * 40], "keep_checkpoints"),
    "a probe's examples": ([*CARTPOLE, "--probe.samples", "9999999999999"], "probe.samples"),
    "a heavy probe's examples": ([*CARTPOLE, "--probe.heavy-samples", "99999999"], "probe.heavy_samples"),
    "probes": ([*CARTPOLE, "--probe.every", "9" * 40], "probe.every"),
    "heavy probes": ([*CARTPOLE, "--probe.heavy-factor", "9" * 40], "probe.heavy_factor"),
    "a task": ([*IMAGES, "--task.period", "9" * 40], "task.period"),
    "tasks": ([*IMAGES, "--task.count", "9" * 40], "task.count"),
    "the first task": ([*IMAGES, "--task.first", "9999999999"], "task.first"),
    "stages": (
        ["ppo", "--env", "FrictionAnt-v0", "--task.period", "1000", "--task.stages", "9" * 40],
        "task.stages",
    ),
    "images": ([*IMAGES, "--image.num-images", "999999999999"], "image.num_images"),
    "games in turn": (
        ["dqn", "--env", "ALE/Pong-v5,ALE/Boxing-v5", "--task.period", "9", "--task.count", "99"],
        "task.count",
    ),
    "a first game that is none": (
        [
            "dqn",
            "--env",
            "ALE/Pong-v5,ALE/Boxing-v5",
            "--task.count",
            "2",
            "--task.order",
            "sequence",
            "--task.first",
            "7",
        ],
        "task.first",
    ),
    "ReDo's examples": ([*CARTPOLE, "--interventions", "redo", "--redo.samples", "999999999999"], "redo.samples"),
    "ReDo's period": ([*CARTPOLE, "--interventions", "redo", "--redo.when", f"every {'9' * 40} steps"], "redo.when"),
    "InFeR's heads": ([*CARTPOLE, "--interventions", "infer", "--infer.heads", HUGE], "infer.heads"),
    "CBP's maturity": ([*CARTPOLE, "--interventions", "cbp", "--cbp.maturity", "9" * 40], "cbp.maturity"),
    "a reset's layers": (
        [*CARTPOLE, "--interventions", "reset", "--reset.when", "at task changes", "--reset.last", "9" * 40],
        "reset.last",
    ),
    "a reset": ([*CARTPOLE, "--interventions", "reset", "--reset.when", f"at step {'9' * 40}"], "reset.when"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_size_that_cannot_be_is_refused_by_name(case: str, capsys: pytest.CaptureFixture, monkeypatch) -> None:
    monkeypatch.setattr(sizes, "available_memory", lambda: 16 * 10**9)  # the answer is not this machine's
    arguments, named = REFUSED[case]
    started, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises((ValueError, SystemExit)) as refusal:
        check(parse_train(arguments))
    message = capsys.readouterr().err.removeprefix("error: ") or str(refusal.value)
    names = [name for name in named.split("|") if name in message or name.replace("_", "-") in message]
    assert names, message
    assert message.startswith(named) or "must be" in message or "--" in message
    assert time.process_time() - started < 4.0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kB; torch is imported for some


@pytest.mark.parametrize(
    "arguments",
    [
        [*CARTPOLE, "--width", "4096", "--depth", "10"],
        [*ATARI, "--buffer-size", "1000"],
        ["ppo", "--env", "Ant-v5", "--num-envs", "256"],
        ["ppo", "--env", "ALE/Pong-v5", "--num-envs", "128"],
        [*IMAGES, "--num-envs", "10000", "--buffer-size", "100000"],
        [*CARTPOLE, "--checkpoint-every", str(10**15), "--probe.every", str(10**15)],
        ["c51", "--env", "CartPole-v1", "--num-atoms", "5001"],
        [*CARTPOLE, "--interventions", "infer", "redo", "--infer.heads", "1000", "--redo.samples", "4096"],
    ],
)
def test_large_sizes_that_can_be_are_taken(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizes, "available_memory", lambda: 16 * 10**9)
    check(parse_train(arguments))


EVALUATION = {
    "environments": (["runs/x", "--num-envs", HUGE], "num_envs"),
    "games": (["runs/x", "--episodes", HUGE], "episodes"),
    "games of 40 digits": (["runs/x", "--episodes", "9" * 40], "episodes"),
    "a task": (["runs/x", "--task", HUGE], "task"),
    "threads": (["runs/x", "--threads", "99999999"], "threads"),
    "refits": (["runs/x", "--probe", "trainability", "--refit-targets", HUGE], "refit_targets"),
    "their steps": (["runs/x", "--probe", "trainability", "--refit-steps", HUGE], "refit_steps"),
    "a seed": (["runs/x", "--seed", HUGE], "seed"),
}


@pytest.mark.parametrize("case", EVALUATION)
def test_an_evaluation_that_cannot_be_is_refused_by_name(case: str, capsys: pytest.CaptureFixture) -> None:
    arguments, named = EVALUATION[case]
    with pytest.raises(SystemExit) as stopped:
        parse_evaluate(arguments)
    message = capsys.readouterr().err
    assert stopped.value.code == 2
    assert f"{named} = " in message and "must be in [" in message


def test_the_one_that_is_out_of_proportion_is_named_with_the_most_that_it_could_be() -> None:
    def area(found: dict[str, int]) -> int:
        return found["width"] * found["depth"] * 1_000

    with pytest.raises(ValueError, match="width = 1000000: must be at most 500: "):
        refuse_too_large({"width": 1_000_000, "depth": 2}, area, 1_000_000)
    with pytest.raises(ValueError, match="depth = 1000000: must be at most 2: "):
        refuse_too_large({"width": 500, "depth": 1_000_000}, area, 1_000_000)
    refuse_too_large({"width": 500, "depth": 2}, area, 1_000_000)
    with pytest.raises(ValueError, match="width = 9000000: must be far smaller"):  # neither alone would do
        refuse_too_large({"width": 9_000_000, "depth": 9_000}, area, 1_000_000)


def test_what_fits_into_main_memory_may_not_fit_onto_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that is made up: 2 GB of it are free, and 20,000 x 20,000 weights, gradients and moments take more."""
    import torch

    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2 * 10**9, 80 * 10**9))
    config = parse_train([*CARTPOLE, "--width", "20000", "--depth", "2", "--replay-device", "device"])
    spaces = spaces_from(describe(config.world))
    with pytest.raises(ValueError, match=r"width = 20000: must be at most .* 2\.0 GB of the GPU's memory are free"):
        require_device_memory(config, spaces, torch.device("cuda"))
    small = parse_train([*CARTPOLE, "--replay-device", "device", "--buffer-size", "90000000"])
    with pytest.raises(ValueError, match=r"buffer_size = 90000000: .* 2\.0 GB of the GPU's memory are free"):
        require_device_memory(small, spaces, torch.device("cuda"))


def test_a_replay_that_a_gpu_has_no_room_for_lies_in_main_memory_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    """1,000,000 observations of CartPole take 39 MB: 4 numbers of 4 bytes and 23 bytes of the rest."""
    import torch

    from agents.replay import storage_device

    config, cuda = parse_train([*CARTPOLE, "--buffer-size", "1000000"]), torch.device("cuda")
    spaces = spaces_from(describe(config.world))
    for free, lies in ((56_000_000, cuda), (55_000_000, torch.device("cpu"))):  # .7 of it are 39.2 and 38.5 MB
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, 10**9))
        assert storage_device("auto", cuda, spaces.replay_bytes(1_000_000)) == lies
        require_device_memory(config, spaces, cuda)
    monkeypatch.setattr("experiments.setup.available_memory", lambda: 30_000_000)
    with pytest.raises(ValueError, match=r"buffer_size = 1000000: .* 0\.0 GB of main memory are available"):
        require_device_memory(config, spaces, cuda)


def test_a_world_that_is_too_large_for_any_network_is_named() -> None:
    """A thousand million actions after one layer of one unit: 2e9 weights and biases, 5 copies of 4 bytes each, and one
    row of outputs: 44 GB."""
    config = parse_train(["dqn", "--env", "tests.odd_worlds:ActsHuge-v0", "--steps", "10"])
    spaces = spaces_from(describe(config.world))
    words = (
        r"^env = 'tests.odd_worlds:ActsHuge-v0': must be one of fewer observed numbers or actions: .* takes 44\.0 GB"
    )
    with pytest.raises(ValueError, match=words):
        sizes.check_sizes(config, spaces, on_gpu=False, available=43 * 10**9)
    with pytest.raises(ValueError, match="^probe.samples = 512"):
        sizes.check_sizes(config, spaces, on_gpu=False, available=45 * 10**9)
