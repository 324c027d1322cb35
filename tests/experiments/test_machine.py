"""Where a run's network runs, and with how many threads."""

import json
import os
from pathlib import Path

import pytest
import torch
from rich.console import Console

from agents.transitions import Spaces
from envs import cores
from experiments import machine
from experiments.cli import parse_evaluate, parse_train
from experiments.config import RunConfig, from_dict, to_dict
from experiments.evaluate_config import EvaluateConfig
from experiments.machine import choose_device, choose_threads, may_be_a_gpu, place, placement_in_words
from experiments.setup import build, check, check_memory
from experiments.train import train


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch):
    """As many GPUs as asked for, none of them real; what became the current one is remembered."""
    current: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)

    def see(count: int) -> list[torch.device]:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(machine, "has_gpu_driver", lambda: count > 0)
        return current

    return see


@pytest.mark.parametrize("name", ["auto", "cpu", "cuda", "cuda:0", "cuda:1", "cuda:15"])
def test_devices_are_taken_by_every_door_and_survive_a_file(name: str) -> None:
    config = parse_train(["dqn", "--env", "CartPole-v1", "--device", name])
    assert config.run.device == name
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config
    assert parse_evaluate(["run", "--device", name]).device == name


@pytest.mark.parametrize("name", ["tpu", "mps", "gpu", "cuda:", "cuda:x", "cuda:-1", "cuda1", "CUDA", "cuda: 1", ""])
def test_what_is_no_device_is_refused_by_every_door(name: str, capsys: pytest.CaptureFixture) -> None:
    for parse in (["dqn", "--env", "CartPole-v1"], parse_train), (["run"], parse_evaluate):
        with pytest.raises(SystemExit) as stopped:
            parse[1]([*parse[0], f"--device={name}"])
        assert stopped.value.code == 2
        assert f"--device = {name!r}: must be auto, cpu, cuda or cuda:N" in capsys.readouterr().err
    for make in (lambda: RunConfig(device=name), lambda: EvaluateConfig(Path("run"), device=name)):
        with pytest.raises(ValueError, match="device = "):
            make()
    with pytest.raises(ValueError, match=r"run\.device = "):
        from_dict({"algorithm": "dqn", "run": {"device": name}})


def test_a_gpu_that_is_called_so_is_answered_with_cuda() -> None:
    with pytest.raises(ValueError, match="device = 'gpu': .*; did you mean 'cuda'"):
        RunConfig(device="gpu")


@pytest.mark.parametrize(
    ("name", "convolutional", "count", "chosen"),
    [
        ("auto", True, 1, "cuda"),
        ("auto", False, 1, "cpu"),
        ("auto", True, 0, "cpu"),
        ("auto", False, 0, "cpu"),
        ("cpu", True, 1, "cpu"),
        ("cuda", False, 1, "cuda"),
        ("cuda:0", True, 1, "cuda:0"),
        ("cuda:1", False, 2, "cuda:1"),
    ],
)
def test_the_device_of_each_name(name: str, convolutional: bool, count: int, chosen: str, gpus) -> None:
    current = gpus(count)
    device = choose_device(name, convolutional)
    assert device == torch.device(chosen)
    assert current == ([device] if ":" in chosen else [])
    assert may_be_a_gpu(name, convolutional) == (device.type == "cuda")


@pytest.mark.parametrize(
    ("name", "count", "sentence"),
    [
        ("cuda", 0, "device = 'cuda': must be cpu or auto: torch sees no CUDA device here"),
        ("cuda:1", 0, "device = 'cuda:1': must be cpu or auto: torch sees no CUDA device here"),
        ("cuda:1", 1, "device = 'cuda:1': must be cuda:0, the only GPU here"),
        ("cuda:99", 4, "device = 'cuda:99': must be one of cuda:0 to cuda:3: 4 GPUs are here"),
    ],
)
def test_a_gpu_that_is_not_there_is_refused_with_how_many_there_are(name: str, count: int, sentence: str, gpus) -> None:
    gpus(count)
    with pytest.raises(ValueError, match=sentence):
        choose_device(name, True)


def test_without_a_driver_cuda_is_refused_before_torch_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.setup.has_gpu_driver", lambda: False)
    for name in ("cuda", "cuda:1"):
        with pytest.raises(ValueError, match=f"device = '{name}': must be cpu or auto: no GPU driver is here"):
            check(parse_train(["dqn", "--env", "CartPole-v1", "--device", name]))


def test_a_replay_on_the_device_is_measured_where_it_will_lie(gpus, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under auto an MLP's is main memory even beside a GPU."""
    gpus(1)
    monkeypatch.setattr("experiments.setup.available_memory", lambda: 1_000)
    config = parse_train(["dqn", "--env", "CartPole-v1", "--replay-device", "device"])
    with pytest.raises(ValueError, match="buffer_size"):
        check(config)
    spaces = Spaces((4, 84, 84), "uint8", "discrete", 4, frame_stack=4)
    check_memory(config.agent, spaces, on_gpu=True)


@pytest.mark.parametrize(
    ("asked", "convolutional", "cores", "openmp", "chosen"),
    [
        (0, False, 16, None, 1),
        (0, False, 16, "8", 1),
        (0, True, 16, None, 4),
        (0, True, 2, None, 2),
        (0, True, 1, None, 1),
        (0, True, 16, "3", 3),
        (0, True, 16, "1", 1),
        (0, True, 2, "8", 2),
        (0, True, 16, "2,1", 2),
        (0, True, 16, "nonsense", 4),
        (7, False, 2, "1", 7),
        (1, True, 16, None, 1),
    ],
)
def test_threads_by_the_network(asked, convolutional, cores, openmp, chosen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "usable_cores", lambda: cores)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if openmp is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", openmp)
    assert choose_threads(asked, convolutional) == chosen
    assert f"{chosen} torch thread{'s' if chosen > 1 else ''} (" in placement_in_words(
        "cpu", asked, convolutional, torch.device("cpu")
    )


def test_what_was_chosen_is_said_with_its_reason(gpus, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(2)
    monkeypatch.setattr(machine, "usable_cores", lambda: 16)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert place("auto", 0, True).words == "cuda (auto: a CNN), 4 torch threads (a CNN, 16 usable cores)"
    mlp = "cpu (auto: an MLP's small updates are slower on a GPU), 1 torch thread (an MLP is slower with more)"
    assert place("auto", 0, False).words == mlp
    assert place("cuda:1", 3, False).words == "cuda:1 (as asked), 3 torch threads (as asked)"
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert place("cpu", 0, True).words.endswith("2 torch threads (a CNN, 16 usable cores, OMP_NUM_THREADS 2)")


@pytest.mark.parametrize(
    ("affinity", "files", "place", "cores_"),
    [
        (8, {}, "0::/", 8),
        (8, {"cpu.max": "max 100000"}, "0::/", 8),
        (8, {"cpu.max": "250000 100000"}, "0::/", 2),
        (8, {"cpu.max": "50000 100000"}, "0::/", 1),
        (2, {"cpu.max": "400000 100000"}, "0::/", 2),
        (8, {"cpu.max": "300000 100000", "slice/job/cpu.max": "max 100000"}, "0::/slice/job", 3),
        (8, {"slice/cpu.max": "600000 100000", "slice/job/cpu.max": "400000 100000"}, "0::/slice/job", 4),
        (8, {"cpu.max": "200000 100000"}, "0::/somewhere/on/the/host", 2),
        (8, {"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, "4:cpu,cpuacct:/", 3),
        (8, {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, "4:cpu,cpuacct:/", 8),
        (8, {"cpu.max": "nonsense"}, "0::/", 8),
    ],
)
def test_cores_within_the_affinity_and_the_quotas(affinity, files, place, cores_, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(affinity)), raising=False)
    for name, content in files.items():
        (tmp_path / "fs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "fs" / name).write_text(content + "\n")
    (tmp_path / "own").write_text(place + "\n")
    monkeypatch.setattr(cores, "GROUPS", tmp_path / "fs")
    monkeypatch.setattr(cores, "OWN_GROUP", tmp_path / "own")
    assert cores.usable_cores() == cores_


@pytest.mark.parametrize(("flags", "threads"), [([], 1), (["--threads", "2"], 2)])
def test_a_run_prints_and_records_where_it_ran(flags, threads, tmp_path, capsys) -> None:
    before = torch.get_num_threads()
    line = ["dqn", "--env", "CartPole-v1", "--steps", "200", "--probes", "none", "--device", "auto"]
    config = parse_train([*line, "--runs-dir", str(tmp_path), *flags])
    try:
        directory = train(config, *build(config), Console()).directory
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    said = f"cpu (auto: an MLP's small updates are slower on a GPU), {threads} torch thread"
    assert f"on {said}" in capsys.readouterr().out
    manifest = json.loads((directory / "manifest.json").read_text())
    assert manifest["placement"].startswith(said)
    assert (manifest["torch_threads"], manifest["torch_device"]) == (threads, "cpu")
    assert manifest["usable_cpus"] == cores.usable_cores()
