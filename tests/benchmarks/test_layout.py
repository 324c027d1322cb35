"""Both layouts do the same work."""

import torch

from benchmarks.layout import products


def test_a_pair_is_the_same_product():
    torch.manual_seed(0)
    for name, pair in products(7, 5, 3).items():
        rows, columns = (work() for work in pair.values())
        torch.testing.assert_close(columns.t() if name == "of weights" else columns, rows, msg=name)
