"""Where a run's network runs, and with how many threads."""

import json
import os
import platform
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from rich.console import Console

from agents.transitions import Spaces
from envs import cores, describe
from experiments import machine
from experiments.cli import parse_evaluate, parse_train
from experiments.config import RunConfig, from_dict, to_dict
from experiments.evaluate_config import EvaluateConfig
from experiments.machine import choose_device, choose_threads, may_be_a_gpu, place, placement_in_words
from experiments.setup import build, check, check_memory, spaces_from
from experiments.sizes import products_of_a_batch
from experiments.train import train

SMALL, LARGE = 700_000, 2_392_000_000
"""Multiply-adds of a batch."""


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
    ("name", "products", "count", "chosen"),
    [
        ("auto", LARGE, 1, "cuda"),
        ("auto", SMALL, 1, "cpu"),
        ("auto", LARGE, 0, "cpu"),
        ("auto", SMALL, 0, "cpu"),
        ("cpu", LARGE, 1, "cpu"),
        ("cuda", SMALL, 1, "cuda"),
        ("cuda:0", LARGE, 1, "cuda:0"),
        ("cuda:1", SMALL, 2, "cuda:1"),
    ],
)
def test_the_device_of_each_name(name: str, products: int, count: int, chosen: str, gpus) -> None:
    current = gpus(count)
    device = choose_device(name, products)
    assert device == torch.device(chosen)
    assert current == ([device] if ":" in chosen else [])
    assert may_be_a_gpu(name, products) == (device.type == "cuda")


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
        choose_device(name, LARGE)


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
    ("asked", "products", "cores", "openmp", "before", "chosen"),
    [
        (0, SMALL, 16, None, 0, 1),
        (0, SMALL, 16, "8", 0, 1),
        (0, 179_999_999, 16, None, 0, 1),
        (0, 180_000_000, 16, None, 0, 2),
        (0, LARGE, 16, None, 0, 4),
        (0, LARGE, 2, None, 0, 2),
        (0, LARGE, 1, None, 0, 1),
        (0, LARGE, 16, "3", 0, 3),
        (0, LARGE, 16, "1", 0, 1),
        (0, LARGE, 2, "8", 0, 2),
        (0, LARGE, 16, "2,1", 0, 2),
        (0, LARGE, 16, "nonsense", 0, 4),
        (7, SMALL, 2, "1", 0, 7),
        (1, LARGE, 16, None, 0, 1),
        (0, LARGE, 16, "3", 2, 2),  # what a run began with it keeps
        (0, SMALL, 2, None, 4, 4),
        (3, SMALL, 2, None, 4, 3),
    ],
)
def test_threads_by_the_update(asked, products, cores, openmp, before, chosen, monkeypatch) -> None:
    monkeypatch.setattr(machine, "usable_cores", lambda: cores)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if openmp is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", openmp)
    assert choose_threads(asked, products, before).number == chosen
    words = placement_in_words("cpu", asked, products, torch.device("cpu"), before)
    assert f"{chosen} torch thread{'s' if chosen > 1 else ''} (" in words


@pytest.mark.parametrize(
    ("line", "products", "threads"),
    [
        # 4-128-128-2, batch 64
        ("dqn --env CartPole-v1", 64 * (4 * 128 + 128 * 128 + 128 * 2), 1),
        # 784-512-512-10, batch 32
        ("dqn --env ImageMDP-v0 --task.period 10000", 32 * (784 * 512 + 512 * 512 + 512 * 10), 1),
        # two torsos of 105-64-64, 8 means and a value, minibatches of 2048 / 32
        ("ppo --env Ant-v5", 64 * (2 * (105 * 64 + 64 * 64) + 64 * (8 + 1)), 1),
        # 8 x 8 x 4 x 32 on 20 x 20, 4 x 4 x 32 x 64 on 9 x 9, 3 x 3 x 64 x 64 on 7 x 7, 3136-512-4, batch 32
        ("dqn --env ALE/Breakout-v5 --padding valid", 32 * (3_276_800 + 2_654_208 + 1_806_336 + 1_605_632 + 2_048), 3),
        # maps of 21, 11 and 11, 7744-512-4
        ("dqn --env ALE/Breakout-v5", 32 * (3_612_672 + 3_964_928 + 4_460_544 + 3_964_928 + 2_048), 4),
        # minibatches of 8 x 128 / 4; heads of 4 and 1
        ("ppo --env ALE/Breakout-v5", 256 * (3_276_800 + 2_654_208 + 1_806_336 + 1_605_632 + 2_560), 4),
    ],
)
def test_what_a_batch_multiplies_is_counted_by_hand(line, products, threads, monkeypatch) -> None:
    monkeypatch.setattr(machine, "usable_cores", lambda: 16)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    config = parse_train(line.split())
    assert products_of_a_batch(config, spaces_from(describe(config.world))) == products
    assert choose_threads(0, products).number == threads


@pytest.mark.parametrize("package", ["experiments", "benchmarks"])
def test_threads_wait_passively_in_every_command(package: str) -> None:
    """Whoever imports a module of either has it set before torch, which reads it once."""
    code = f"import os, sys, {package}; print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)"
    kept = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    run = partial(subprocess.run, [sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run(env=kept).stdout.split() == ["passive", "False"]
    assert run(env=kept | {"OMP_WAIT_POLICY": "active"}).stdout.split() == ["active", "False"]


def test_what_was_chosen_is_said_with_its_reason(gpus, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(2)
    monkeypatch.setattr(machine, "usable_cores", lambda: 16)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    batch = "a batch of 2,392M multiply-adds"
    assert place("auto", 0, LARGE).words == f"cuda (auto: {batch}), 4 torch threads ({batch}, 16 usable cores)"
    small = "a batch of 0.7M multiply-adds is slower"
    assert place("auto", 0, SMALL).words == f"cpu (auto: {small} on a GPU), 1 torch thread ({small} with more)"
    assert place("cuda:1", 3, SMALL).words == "cuda:1 (as asked), 3 torch threads (as asked)"
    assert place("cpu", 0, SMALL, before=4).words == "cpu (as asked), 4 torch threads (as before)"
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert place("cpu", 0, LARGE).words.endswith(f"2 torch threads ({batch}, 16 usable cores, OMP_NUM_THREADS 2)")
    monkeypatch.setattr(machine, "usable_cores", lambda: 1)
    assert place("cpu", 0, LARGE).words.endswith(f"1 torch thread ({batch}, 1 usable core)")
    assert place("cpu", 0, LARGE, before=2).words.endswith("2 torch threads (as before, on 1 usable core)")


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
    said = f"cpu (auto: a batch of 1.1M multiply-adds is slower on a GPU), {threads} torch thread"
    assert f"on {said}" in capsys.readouterr().out
    manifest = json.loads((directory / "manifest.json").read_text())
    assert manifest["placement"].startswith(said)
    assert (manifest["torch_threads"], manifest["torch_device"]) == (threads, "cpu")
    assert manifest["usable_cpus"] == cores.usable_cores()


FREED_AND_TAKEN = """
import resource, torch
from experiments import machine

machine.keep_memory()
for _ in range(3):  # small things, made by the first calls, lie in what the first one leaves
    torch.ones(5_000_000)  # 20 MB: 4,883 pages
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.ones(5_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="its malloc is glibc's")
def test_memory_that_tensors_free_is_kept_for_the_next_ones():
    """In a process of its own: where others allocate, the place may have been taken in between."""
    command = [sys.executable, "-c", FREED_AND_TAKEN]
    assert int(subprocess.run(command, check=True, capture_output=True, text=True).stdout) < 1_000


IN_LARGE_PAGES = """
import re, torch
from experiments import machine

machine.keep_memory()
place, inside = torch.ones(2_000_000).data_ptr() + 4_000_000, False  # its middle: it may begin in a page of before
with open("/proc/self/smaps") as file:
    for line in file:
        if bounds := re.match("([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(bounds[1], 16) <= place < int(bounds[2], 16)
        elif inside and line.startswith("VmFlags:"):
            print("hg" in line.split())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="its malloc is glibc's")
@pytest.mark.skipif(not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="this system has no large pages")
def test_tensors_lie_where_large_pages_were_asked_for():
    """Whether there are any, memory being as it is, is the system's to say."""
    command = [sys.executable, "-c", IN_LARGE_PAGES]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == "True\n"


def test_where_there_is_no_glibc_memory_is_left_alone(monkeypatch):
    def missing(name):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(machine.ctypes, "CDLL", missing)
    machine.keep_memory()
