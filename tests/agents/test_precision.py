"""What --precision makes of torch's switches, read back by their old names and their new ones."""

import subprocess
import sys

import pytest
import torch

from agents.adam import FusedAdam
from agents.execution import Executor
from agents.ppo_config import PPOConfig
from agents.precision import set_precision, subnormal_flushed
from agents.value_config import DQNConfig
from tests.agents.helpers import CPU, VECTOR, build, needs_cuda

CUDA = torch.device("cuda")  # naming it needs none
PARTS = ("cuda.matmul", "cudnn.conv", "cudnn.rnn", "mkldnn.matmul", "mkldnn.conv")
SETTINGS = {  # what a user or torch itself may have left behind
    "torch's own": lambda: None,
    "the old switches": lambda: (
        torch.set_float32_matmul_precision("medium"),
        setattr(torch.backends.cudnn, "allow_tf32", True),
    ),
    "the new switch for all": lambda: setattr(torch.backends, "fp32_precision", "tf32"),
    "the new switches": lambda: (
        setattr(torch.backends.cuda.matmul, "fp32_precision", "tf32"),
        setattr(torch.backends.cudnn.conv, "fp32_precision", "tf32"),
        setattr(torch.backends.mkldnn.matmul, "fp32_precision", "bf16"),
    ),
}


def part(name):
    backend, kind = name.split(".")
    return getattr(getattr(torch.backends, backend), kind)


@pytest.fixture(autouse=True)
def restored():
    whole = torch.backends.fp32_precision
    yield
    torch.backends.fp32_precision = whole
    set_precision("fp32", CPU)


def read():
    old = (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)
    return *old, torch.get_float32_matmul_precision(), *(part(name).fp32_precision for name in PARTS)


EXACT = (False, False, "highest", "ieee", "ieee", "ieee", "ieee", "ieee")
ROUNDED = (True, True, "high", "tf32", "tf32", "tf32", "ieee", "ieee")


@pytest.mark.parametrize("before", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize(
    ("precision", "device", "expected"),
    [("fp32", CUDA, EXACT), ("bf16", CUDA, EXACT), ("tf32", CUDA, ROUNDED), ("fp32", CPU, EXACT), ("tf32", CPU, EXACT)],
)
def test_the_switches_are_as_the_policy_says_whatever_they_were(before, precision, device, expected):
    before()
    set_precision(precision, device)
    assert read() == expected
    set_precision("fp32", CUDA)
    assert read() == EXACT


@pytest.mark.parametrize("config", [DQNConfig(buffer_size=200), PPOConfig()])
def test_building_an_agent_sets_the_policy(config):
    set_precision("tf32", CUDA)
    build(config, VECTOR)
    assert read() == EXACT


def test_another_name_is_refused():
    with pytest.raises(ValueError, match="precision = 'fp16': must be fp32, tf32, bf16"):
        set_precision("fp16", CPU)


@needs_cuda
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_true_float32_on_cuda_keeps_what_tf32_rounds_away(precision):
    """TF32 keeps 10 bits of mantissa: 1 + 2^-12 becomes 1. Sizes at which cuBLAS and cuDNN take it where they may."""
    set_precision("tf32", CUDA)
    set_precision(precision, CUDA)
    x = torch.full((1024, 1024), 1 + 2.0**-12, device="cuda")
    images, kernel = x[:84, :84].expand(64, 32, 84, 84).contiguous(), torch.ones(64, 32, 3, 3, device="cuda")
    for value in ((x @ torch.ones_like(x)).mean() / 1024, torch.conv2d(images, kernel).mean() / (32 * 9)):
        assert value.item() == pytest.approx(1 + 2.0**-12, abs=2.0**-16)


def dead(steps):
    """(Weights, first moments) of units that got a gradient once, and none in as many steps after that."""
    weights = torch.linspace(-1, 1, 64).requires_grad_()
    adam = FusedAdam([weights], 1e-3)
    for step in range(steps + 1):
        weights.grad = torch.linspace(-3, 5, 64) if step == 0 else torch.zeros(64)
        adam.move()
    return weights.detach(), adam.state[weights]["exp_avg"]


def subnormal(numbers):
    return int(((numbers != 0) & (numbers.abs() < torch.finfo(torch.float32).tiny)).sum())


def test_no_moment_of_a_dead_unit_stays_where_a_processor_is_slow_and_no_weight_can_tell():
    kept, stuck = dead(1_500)
    assert subnormal(stuck) == 64  # .9 of the smallest number is rounded to that number
    flushed, moments = Executor("eager").run(dead, 1_500)
    assert torch.equal(flushed, kept) and not moments.any()
    assert Executor("eager").run(dead, 700)[1].all()


def test_flushing_ends_where_it_began():
    tiny = torch.tensor(1e-38)
    with subnormal_flushed():
        assert tiny / 4 == 0
        with subnormal_flushed():
            pass
        assert tiny / 4 == 0
    assert tiny / 4 > 0
    with pytest.raises(ZeroDivisionError), subnormal_flushed():
        _ = 1 / 0
    assert tiny / 4 > 0


IN_ALL_THREADS = """
import torch
from agents.execution import Executor
from experiments.machine import place

place("cpu", 2, 0)
torch.eye(512) @ torch.eye(512)
print(int(Executor("eager").run(lambda one: torch.full((4_000_000,), 1e-30) * 1e-10, None).count_nonzero()))
"""


def test_it_holds_in_all_of_torchs_threads():
    command = [sys.executable, "-c", IN_ALL_THREADS]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == "0\n"
