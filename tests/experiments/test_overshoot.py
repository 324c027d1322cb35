"""What becomes of a replaced unit's first updates: the published numbers that must be reproduced."""

import pytest

from experiments.studies import overshoot


def test_adam_gnt_is_not_adam_with_a_step_count_per_element():
    # m = 1 - beta1^t and v = 1 - beta2^t under a gradient of 1: its step is (1 - beta1^t) sqrt(1 - beta2^t)
    assert overshoot.adam_gnt((0.9, 0.999), 1) == pytest.approx(0.1 * 0.001**0.5)
    assert overshoot.adam_gnt((0.9, 0.999), 100) == pytest.approx((1 - 0.9**100) * (1 - 0.999**100) ** 0.5)
    assert [round(overshoot.adam_gnt((0.9, 0.999), t), 2) for t in (1, 100, 1000)] == [0.0, 0.31, 0.8]
    assert overshoot.updates((0.9, 0.999), "local")[0] == pytest.approx(1.0, abs=1e-3)  # which "local" is


@pytest.mark.long
def test_the_overshoot_that_zeroed_moments_cause():
    """3.16 at once and 6.57 at step 12 for (.9, .999), 2.13 at step 13 for (.9, .99)."""
    sizes = overshoot.updates((0.9, 0.999), "zero")
    assert sizes[0] == pytest.approx(3.16, abs=0.005)
    assert max(sizes) == pytest.approx(6.57, abs=0.005) and sizes.index(max(sizes)) == 11
    sizes = overshoot.updates((0.9, 0.99), "zero")
    assert max(sizes) == pytest.approx(2.13, abs=0.005) and sizes.index(max(sizes)) == 12
    for moments in ("local", "keep"):
        assert overshoot.updates((0.9, 0.999), moments) == pytest.approx([1.0] * 60, abs=1e-3)
