"""What the soak test takes for growth, on sizes made by hand."""

import math

import pytest

from benchmarks.soak import Look, Seen, across_resumes, chance, files, floors, grows, in_a_process, slope


def looks(process, sizes, began=0, opened=None):
    return [Look(process, began + 60 * n, size, 8 if opened is None else opened[n]) for n, size in enumerate(sizes)]


def test_a_percent_an_hour():
    assert slope([[(0, 99.5), (1800, 100), (3600, 100.5)]]) == pytest.approx(1.0)
    assert slope([[(0, 200), (3600, 200)]]) == 0
    assert math.isnan(slope([[(0, 200)]])) and math.isnan(slope([]))


def test_one_jump_is_no_slope_and_processes_of_two_sizes_neither():
    assert in_a_process([looks(0, [100] * 20 + [900] + [100] * 20)])[0] == 0
    assert in_a_process([looks(0, [100] * 20), looks(1, [300] * 20, 2000)])[0] == 0
    percent, by_chance = in_a_process([looks(0, range(1000, 1021)), looks(1, range(2000, 2021), 2000)])
    # one a minute, of the median of the two, as near as the halves' inner ends let it be
    assert percent == pytest.approx(60 / 1510 * 100, rel=0.01) and by_chance < 1e-6


def test_what_goes_up_and_down_over_a_floor_that_stays_does_not_grow():
    seconds = [Look(0, n, 1000 + (n * 7 % 30), 8) for n in range(600)]  # higher at every end than at its beginning
    assert len(floors(seconds)) == 10 and {size for _, size in floors(seconds)} == {1000}
    assert in_a_process([seconds])[0] == 0 and in_a_process([seconds])[1] > 0.5
    leaking = [look._replace(size=look.size + n // 60) for n, look in enumerate(seconds)]
    percent, by_chance = in_a_process([leaking])
    assert percent == pytest.approx(60 / 1004.5 * 100, rel=0.02) and by_chance < 1e-3


def test_a_rest_of_a_minute_is_no_minute():
    assert len(floors([Look(0, n, 1, 8) for n in range(89)])) == 1


def test_the_chance_of_an_order_by_hand():
    # S = 3 of 3 pairs, variance 3 * 2 * 11 / 18 = 11 / 3: z = 2 / 1.9149; two such groups: z = 5 / 2.7080
    assert chance([[1, 2, 3]]) == pytest.approx(0.14815, abs=1e-4)
    assert chance([[1, 2, 3], [7, 8, 9]]) == pytest.approx(0.03242, abs=1e-4)
    assert chance([[3, 2, 1]]) == pytest.approx(0.98165, abs=1e-4) and chance([[1], []]) == 1


def test_processes_that_grow_in_order_are_told_from_those_that_do_not():
    growing = [looks(n, [1000 + 10 * n] * 10, 600 * n) for n in range(1, 7)]
    percent, ordered = across_resumes(growing)
    assert percent == pytest.approx(60 / 1035 * 100) and ordered
    mixed = [looks(n, [size] * 10, 600 * n) for n, size in enumerate([1010, 990, 1020, 1000, 1015, 1001], start=1)]
    assert not across_resumes(mixed)[1]
    first_alone = [looks(0, [10] * 10), looks(1, [1000] * 10, 600)]
    assert math.isnan(across_resumes(first_alone)[0])


def test_files_that_stay_open():
    steady = files([looks(0, [1] * 10, opened=[8, 9, 8, 8, 8, 8, 8, 12, 8, 8])])
    assert steady == [(8, 8)] and not grows(steady)
    assert grows(files([looks(0, [1] * 10, opened=list(range(8, 18)))]))
    assert grows([(8, 8), (8, 8), (10, 10)])


def test_the_beginning_of_a_process_and_processes_that_were_hardly_seen_do_not_count():
    seen = Seen([*looks(0, range(20)), *looks(1, range(5), 2000)], resumes=1)
    (counted,) = seen.settled()
    assert [look.size for look in counted] == list(range(5, 20))
