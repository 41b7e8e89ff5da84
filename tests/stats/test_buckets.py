"""Merged exponential histograms: bounds, refusals, and what a merge leaves alone."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest

from tidegauge.stats.buckets import clear, empty, lower_bound, merge


def add(
    one: np.void, scale: int, offset: int, counts: list[int], zeros: int = 0, threshold: float = 0.0
) -> bool:
    positive: npt.NDArray[np.int64] = np.array([*counts, 99], np.int64)  # what lies behind does not count
    negative = np.array([99], np.int64)
    return bool(merge(one, scale, positive, offset, len(counts), negative, 0, 0, zeros, threshold))


@pytest.mark.parametrize("scale", range(-4, 9))
def test_bounds_are_powers_of_the_base(scale: int) -> None:
    for bucket in range(-300, 301, 7):
        exponent = bucket * 2.0**-scale
        wanted = 0.0 if exponent < -1080 else math.inf if exponent >= 1024 else 2.0**exponent
        assert lower_bound(scale, bucket) == pytest.approx(wanted, rel=1e-13)


def test_what_cannot_be_held_changes_nothing() -> None:
    [one] = empty(1)
    assert add(one, 5, 10, [1, 2, 3])
    before = one.copy()
    assert not add(one, -5, 0, [1])
    assert not add(one, -4, 160, [1])
    assert not add(one, 5, -(2**31), [1])
    assert one == before


def test_the_order_of_merges_does_not_matter() -> None:
    parts = [(5, 10, [1, 2, 3]), (3, -40, [4]), (20, 2**21, [5, 6]), (0, 7, [7])]
    results = []
    for some in (parts, parts[::-1], parts[2:] + parts[:2]):
        [one] = empty(1)
        assert all(add(one, *part) for part in some)
        results.append(one.copy())
    assert results[0] == results[1] == results[2]
    assert int(results[0]["counts"].sum()) == 28


def test_an_empty_histogram_has_nothing_left_of_what_was_there() -> None:
    [one] = empty(1)
    assert add(one, 5, 10, [1, 2, 3], 4, 0.25)
    clear(one)
    assert one == empty(1)[0]


def test_a_raised_threshold_takes_only_what_is_below_it() -> None:
    [one] = empty(1)
    assert add(one, 0, -2, [1, 2, 4])  # (1/4, 1/2], (1/2, 1], (1, 2]
    assert add(one, 0, 3, [8], 16, 0.5)
    assert (one["zero_threshold"], one["zero_count"], one["offset"][0]) == (0.5, 17, -1)
    assert one["counts"][0, :5].tolist() == [2, 4, 0, 0, 8]
