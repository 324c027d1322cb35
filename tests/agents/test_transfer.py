"""What goes to the device together arrives apart."""

import numpy as np
import pytest
import torch

from agents.transfer import pack, places_of, sent, unpacked
from tests.agents.helpers import CPU, needs_cuda

ARRAYS = [
    np.arange(3, dtype=np.float32) / 7,
    np.array([[True, False], [False, True], [True, True]]),
    np.array([2**40, -5], np.int64),
    np.arange(5, dtype=np.uint8)[::-1],
    np.empty((0, 4), np.float32),
]


def test_each_begins_where_any_number_can_be_read():
    assert places_of(ARRAYS) == [0, 16, 24, 40, 48, 48]  # of 12, 6, 16, 5 and 0 bytes


def test_what_is_packed_comes_out_as_it_was():
    packed = torch.zeros(48, dtype=torch.uint8)
    pack(ARRAYS, packed.numpy())
    for array, found in zip(ARRAYS, unpacked(packed, ARRAYS), strict=True):
        assert np.array_equal(found.numpy(), array) and found.numpy().dtype == array.dtype


@pytest.mark.parametrize("device", [CPU, pytest.param(torch.device("cuda"), marks=needs_cuda)])
def test_it_is_on_the_device(device):
    arrays = [np.ascontiguousarray(array) for array in ARRAYS]
    for array, found in zip(arrays, sent(arrays, device), strict=True):
        assert found.device.type == device.type and np.array_equal(found.cpu().numpy(), array)
