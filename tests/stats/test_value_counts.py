"""The value sketch against collections.Counter, and its promise that splits leave no trace."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegauge.stats.value_counts import ValueCounts

anything = st.lists(st.floats(), max_size=300)


def counted(values, capacity=16_384):
    sketch = ValueCounts(capacity)
    sketch.update(np.array(values, float))
    return sketch


def same(one, two):
    return all(np.array_equal(a, b) for a, b in zip(one.sorted(), two.sorted(), strict=True))


@given(anything)
def test_up_to_the_capacity_it_counts_exactly(values):
    sketch = counted(values)
    wanted = Counter(v + 0.0 for v in values if np.isfinite(v))
    found = sketch.sorted()
    assert sketch.shift == 0
    assert dict(zip(found.lower.tolist(), found.counts.tolist(), strict=True)) == wanted
    assert found.lower.tolist() == sorted(wanted)
    assert found.lower.tolist() == found.upper.tolist()


@given(anything, anything, anything, st.integers(2, 40))
def test_order_splits_and_merges_leave_no_trace(one, two, three, capacity):
    whole = counted(one + two + three, capacity)
    merged = counted(three, capacity)
    merged.merge(counted(one, capacity))
    merged.merge(counted(two[::-1], capacity))
    stepwise = counted([], capacity)
    for value in [*three, *one, *two]:
        stepwise.update(np.array([value]))
    assert same(whole, merged)
    assert same(whole, stepwise)
    assert len(whole.sorted().counts) <= capacity


@given(anything, st.integers(2, 40))
def test_every_value_lies_in_the_range_that_counts_it(values, capacity):
    found = counted(values, capacity).sorted()
    finite = np.sort([v + 0.0 for v in values if np.isfinite(v)])
    assert found.counts.sum() == len(finite)
    assert (found.upper[:-1] <= found.lower[1:]).all()  # -0.0 ends the negative ones
    for low, high, count in zip(*found, strict=True):
        below = finite < 0.0 if np.signbit(high) else finite <= high
        assert ((finite >= low) & below & (finite <= high)).sum() == count


@pytest.mark.parametrize(
    ("values", "error"),
    [
        (np.random.default_rng(0).normal(size=300_000), 2**-9),
        (1.7e9 + np.random.default_rng(1).uniform(0, 10_000, 300_000), 1.0 / 1.7e9),
    ],
    ids=["normal", "timestamps"],
)
def test_beyond_the_capacity_values_keep_their_promised_precision(values, error):
    sketch = counted(values)
    found = sketch.sorted()
    assert sketch.shift > 0
    # Below the least normal step around zero, precision is absolute.
    large = np.abs(found.lower) > 1e-3
    assert ((found.upper - found.lower)[large] <= error * np.abs(found.lower[large])).all()
    assert 2.0 ** (sketch.shift - 52) <= 2 * error


def test_a_capacity_that_cannot_hold_both_signs_is_refused():
    with pytest.raises(ValueError, match="capacity of 2"):
        ValueCounts(1)
