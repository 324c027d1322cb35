"""Sums of |x| over rows, compiled and by torch, beside float64 loops."""

import copy
import pickle
import shutil
import tempfile

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from agents.interventions import _sums
from agents.interventions._sums import RowSums, absolute_sums, compiled
from tests.agents.helpers import CPU

HEIGHTS = [1, 3, 4, 5, 8, 64, 131]
needs_compiler = pytest.mark.skipif(not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="needs a C compiler")
EITHER = [pytest.param("compiled", marks=needs_compiler), "torch", "on a device"]


@pytest.fixture
def sums_by(monkeypatch):
    """RowSums that go that way."""

    def make(way, heights, columns, weights=0):
        if way != "compiled":
            monkeypatch.setattr(_sums, "compiled", lambda: None)
        made = RowSums(heights, columns, CPU, weights)
        made._on_host = way != "on a device"
        assert (made._compiled is not None) == (way == "compiled")
        return made

    return make


def slowly(matrix):
    """One number at a time."""
    rows = matrix.double().tolist()
    return [sum(abs(row[column]) for row in rows) for column in range(matrix.shape[1])]


def check(sums, matrices):
    into = torch.full((len(matrices), matrices[0].shape[1]), torch.nan)
    sums(matrices, into)
    expected = torch.tensor([slowly(matrix) for matrix in matrices], dtype=torch.float64)
    torch.testing.assert_close(into.double(), expected, rtol=2e-6, atol=1e-30)


@pytest.mark.parametrize("way", EITHER)
@pytest.mark.parametrize("columns", [1, 2, 7, 8, 64, 100])
def test_sums_of_any_height_and_width(way, columns, sums_by):
    generator = torch.Generator().manual_seed(columns)
    matrices = [torch.randn(height, columns, generator=generator) * 10.0**index for index, height in enumerate(HEIGHTS)]
    check(sums_by(way, HEIGHTS, columns), matrices)


@pytest.mark.parametrize("way", EITHER)
def test_a_convolutions_batch_of_positions(way, sums_by):
    matrix, into = torch.rand(12_801, 3, generator=torch.Generator().manual_seed(0)), torch.empty(1, 3)
    sums_by(way, [12_801], 3)([matrix], into)
    torch.testing.assert_close(into.double(), matrix.double().sum(0, keepdim=True), rtol=1e-5, atol=0)


@pytest.mark.parametrize("way", EITHER)
def test_by_hand(way, sums_by):
    into = torch.empty(2, 2)
    given = [torch.tensor([[1.0, -2.0], [-3.0, 0.5]]), torch.tensor([[-0.0, 4.0]])]
    sums_by(way, [2, 1], 2)(given, into)
    assert into.tolist() == [[4.0, 2.5], [0.0, 4.0]]


@pytest.mark.parametrize("way", EITHER)
def test_what_does_not_lie_row_by_row_or_has_another_precision(way, sums_by):
    generator = torch.Generator().manual_seed(0)
    across, halved = torch.randn(6, 5, generator=generator).t(), torch.randn(4, 6, generator=generator).bfloat16()
    strided, double = torch.randn(7, 12, generator=generator)[:, ::2], torch.randn(3, 6, generator=generator).double()
    check(sums_by(way, [5, 7], 6), [across, strided])
    check(sums_by(way, [7, 4], 6), [strided, torch.randn(1, 6, generator=generator).expand(4, 6)])
    sums = sums_by(way, [5, 4, 7, 3, 2], 6)
    check(sums, [across, halved, strided, double, torch.ones(2, 6)])
    check(sums, [torch.randn(height, 6, generator=generator) for height in (5, 4, 7, 3, 2)])  # and then as before


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
@pytest.mark.parametrize("way", EITHER)
def test_what_is_not_in_a_cpus_memory_is_not_read_there(way, sums_by):
    with pytest.raises((RuntimeError, NotImplementedError)):
        sums_by(way, [3], 4)([torch.empty(3, 4, device="meta")], torch.empty(1, 4))
    zeros = torch._efficientzerotensor(3, 4)  # has no memory at all
    assert absolute_sums(zeros).tolist() == [[0.0]] * 4
    into = torch.ones(1, 4)
    sums_by(way, [3], 4)([zeros], into)
    assert into.tolist() == [[0.0] * 4]
    with FakeTensorMode():
        fake = torch.empty(3, 4)
        assert absolute_sums(fake).shape == (4, 1)
        sums_by(way, [3], 4)([fake], torch.empty(1, 4))


@pytest.mark.parametrize("way", EITHER)
def test_copies_sum_too(way, sums_by):
    sums = sums_by(way, [2, 1], 2)
    sums([torch.ones(2, 2), torch.ones(1, 2)], torch.empty(2, 2))
    for copied in (copy.deepcopy(sums), pickle.loads(pickle.dumps(sums))):
        into = torch.empty(2, 2)
        copied([torch.ones(2, 2), torch.ones(1, 2)], into)
        assert into.tolist() == [[2.0, 2.0], [1.0, 1.0]]


@pytest.mark.parametrize("way", EITHER)
def test_weights_that_move_are_looked_at_again(way, sums_by):
    sums, weight, post = sums_by(way, [2, 3], 4, weights=1), torch.nn.Parameter(torch.ones(3, 4)), torch.ones(2, 4)

    def found():
        into = torch.full((2, 4), torch.nan)
        sums([post, weight], into)
        return into.tolist()

    assert found() == [[2.0] * 4, [3.0] * 4]
    with torch.no_grad():
        weight.mul_(-2)  # in place
    assert found() == [[2.0] * 4, [6.0] * 4]
    for other in (torch.full((4, 3), 3.0).t(), torch.full((3, 4), 3.0).bfloat16(), torch.full((3, 4), 3.0).double()):
        weight.data = other
        assert found() == [[2.0] * 4, [9.0] * 4]
    post = torch.ones(4, 2).t()
    assert found() == [[2.0] * 4, [9.0] * 4]
    weight.data, post = torch.ones(3, 4), torch.ones(2, 4)
    assert found() == [[2.0] * 4, [3.0] * 4]
    weight.data = torch.ones(2, 4)  # not the height that was announced
    assert found() == [[2.0] * 4, [2.0] * 4]


@pytest.mark.parametrize("way", EITHER)
def test_other_shapes_than_were_announced_are_refused(way, sums_by):
    sums = sums_by(way, [2, 4], 3)
    with pytest.raises(RuntimeError):
        sums([torch.ones(2, 3), torch.ones(4, 2)], torch.empty(2, 3))
    with pytest.raises((RuntimeError, ValueError)):
        sums([torch.ones(2, 5, 3), torch.ones(4, 3)], torch.empty(2, 3))


@pytest.mark.parametrize("way", EITHER)
def test_not_finite_values_stay_in_their_columns(way, sums_by):
    matrix = torch.ones(9, 4)
    matrix[2, 1], matrix[8, 3] = torch.inf, torch.nan
    into = torch.empty(1, 4)
    sums_by(way, [9], 4)([matrix], into)
    assert into[0, [0, 2]].tolist() == [9.0, 9.0]
    assert into[0, 1].isinf()
    assert into[0, 3].isnan()


@pytest.mark.parametrize("way", EITHER)
def test_parameters_get_no_graph_and_may_move(way, sums_by):
    weight, into = torch.nn.Parameter(-torch.ones(2, 3)), torch.empty(1, 3)
    sums = sums_by(way, [2], 3)
    sums([weight], into)
    weight.data = torch.full((2, 3), 5.0)  # new memory
    sums([weight], into)
    assert into.tolist() == [[10.0] * 3]
    assert not into.requires_grad


@needs_compiler
def test_many_numbers_are_left_to_torch_where_it_has_threads(monkeypatch):
    monkeypatch.setattr(_sums, "MANY", 10)
    for threads, numbers, left in ((1, 12, False), (2, 10, False), (2, 12, True)):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert (RowSums([numbers // 2], 2, CPU)._compiled is None) == left


SHAPES = [(7, 3), (1, 20), (5, 2, 3, 3), (9, 4, 2), (3, 5, 1, 1), (1, 1), (6, 1, 4)]


@pytest.mark.parametrize("way", EITHER[:2])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("by_position", [False, True])
def test_batches_with_positions_however_they_lie(way, shape, by_position, monkeypatch):
    monkeypatch.setattr(_sums, "PIECE", 8)
    if way == "torch":
        monkeypatch.setattr(_sums, "compiled", lambda: None)
    values = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    layouts = [values, values.flip(0), values.transpose(0, -1).contiguous().transpose(0, -1), values.double()]
    if len(shape) == 4:
        layouts.append(values.to(memory_format=torch.channels_last))
    for given in layouts:
        found = absolute_sums(given.requires_grad_(), by_position)
        expected = given.detach().double().abs().sum(0).view(shape[1], -1)
        expected = expected if by_position else expected.sum(1, keepdim=True)
        assert found.dtype == torch.float32 and not found.requires_grad
        torch.testing.assert_close(found.double(), expected, rtol=2e-6, atol=0)


@needs_compiler
def test_the_compiler_that_cc_names(monkeypatch, tmp_path):
    def found(cc):
        monkeypatch.setenv("CC", cc)
        return compiled.__wrapped__() is not None

    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))))
    assert found(compiler + " -g")
    assert not found(compiler + " -fvisibility=hidden")  # makes a library without the function
    with monkeypatch.context() as nowhere:
        nowhere.setattr(tempfile, "tempdir", "/nowhere")
        assert not found(compiler)
    for missing in ("", " ", "/nowhere/cc"):
        assert not found(missing)
    for index, script in enumerate(
        ["exit 1", "exit 0", "while [ $# -gt 1 ]; do shift; [ $1 = -o ] && echo > $2; done"]
    ):
        script_of = tmp_path / f"cc{index}"  # fails, writes nothing, writes what is no library
        script_of.write_text(f"#!/bin/bash\n{script}\n")
        script_of.chmod(0o755)
        assert not found(str(script_of))
