"""One thread: the networks here are so small that more would only wait for each other."""

import pytest
import torch


@pytest.fixture(scope="package", autouse=True)
def single_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
