"""Views of exponential histograms, against counting the values."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tidegauge.exporters.buckets import (
    OTHERS,
    SECONDS,
    View,
    by_bucket,
    classic_bounds,
    classic_counts,
    native,
    native_spans,
    view_of,
)
from tidegauge.metric import Exemplar, ExponentialHistogram
from tidegauge.stats import exponential

VIEWS = st.sampled_from([SECONDS, OTHERS])
VALUES = st.lists(st.floats(1e-6, 1e7), max_size=60)


def point(
    scale: int, offset: int, counts: tuple[int, ...], zeros: int = 0, **more: Any
) -> ExponentialHistogram:
    return ExponentialHistogram((), scale, offset, counts, zeros, 0.0, 0.0, 0.0, **more)


def dense(indices: list[int]) -> tuple[int, tuple[int, ...]]:
    if not indices:
        return 0, ()
    counts = np.bincount(np.array(indices) - min(indices))
    return min(indices), tuple(map(int, counts))


def test_seconds_have_bounds_of_their_own() -> None:
    assert view_of("s") is SECONDS
    assert view_of("{token}") is view_of("By") is view_of("ms") is OTHERS
    seconds, others = classic_bounds(SECONDS), classic_bounds(OTHERS)
    assert len(seconds) == 37
    assert seconds[::2] == tuple(2.0**k for k in range(-13, 6))
    assert all(bound**2 == pytest.approx(2.0**k) for bound, k in zip(seconds, range(-26, 11), strict=True))
    assert others == tuple(2.0**k for k in range(21))


@given(VALUES, st.integers(0, 3), VIEWS, st.integers(0, 8))
def test_counts_are_exact_where_the_bounds_nest(
    observations: list[float], zeros: int, view: View, scale: int
) -> None:
    scale = max(scale, view.per_octave - 1)
    # Bucket mid-points stand for the observations, so that no rounding at a bound is at issue.
    indices = [math.floor(math.log2(number) * 2**scale) for number in observations]
    exact = np.array([2.0 ** ((index + 0.5) / 2**scale) for index in indices] + [0.0] * zeros)
    expected = [
        int(np.count_nonzero(exact <= 2.0 ** (k / view.per_octave))) for k in range(view.first, view.last + 1)
    ]
    assert classic_counts(point(scale, *dense(indices), zeros), view) == [*expected, len(exact)]


@settings(deadline=None)
@given(st.lists(st.one_of(st.integers(1, 2**63 - 1), st.integers(0, 10**11), st.just(0)), max_size=40))
@example([125_000_000, 125_000_001, 1_000_000_000, 32_000_000_000, 32_000_000_001])
def test_durations_are_counted_exactly(durations_ns: list[int]) -> None:
    """At 2**(k/2) seconds, compared in whole nanoseconds: v <= 2**(k/2) iff v**2 <= 2**k."""
    histograms = exponential.empty(1)
    for duration_ns in durations_ns:
        exponential.add(histograms[0], duration_ns / 1e9)
    one = histograms[0]
    counts = tuple(one["counts"][: one["buckets"]].tolist())
    folded = point(int(one["scale"]), int(one["offset"]), counts, int(one["zero_count"]))
    expected = [
        sum(Fraction(duration_ns, 10**9) ** 2 <= Fraction(2) ** k for duration_ns in durations_ns)
        for k in range(-26, 11)
    ]
    assert classic_counts(folded, SECONDS) == [*expected, len(durations_ns)]


@given(VALUES.filter(bool), VIEWS, st.integers(-11, 0))
def test_a_coarse_bucket_counts_only_above_the_whole_of_it(
    observations: list[float], view: View, scale: int
) -> None:
    indices = [math.floor(math.log2(number) * 2.0**scale) for number in observations]
    upper = np.array([2.0 ** min((index + 1) * 2.0**-scale, 1023) for index in indices])
    expected = [
        int(np.count_nonzero(upper <= 2.0 ** (k / view.per_octave))) for k in range(view.first, view.last + 1)
    ]
    assert classic_counts(point(scale, *dense(indices)), view) == [*expected, len(observations)]


@given(VALUES, VALUES, st.integers(0, 3), VIEWS)
def test_values_below_zero_are_below_every_bound(
    positive: list[float], negative: list[float], zeros: int, view: View
) -> None:
    offset, counts = dense([math.floor(math.log2(number) * 8) for number in negative])
    ups = dense([math.floor(math.log2(number) * 8) for number in positive])
    both = point(3, *ups, zeros, negative_offset=offset, negative_counts=counts)
    alone = classic_counts(point(3, *ups, zeros), view)
    assert classic_counts(both, view) == [count + len(negative) for count in alone]


def test_a_wide_zero_bucket_counts_only_above_the_whole_of_it() -> None:
    found = classic_counts(point(3, 80, (1,), 5, zero_threshold=3.0, negative_counts=(2,)), OTHERS)
    assert found[:4] == [2, 2, 7, 7]  # at 1, 2, 4, 8
    assert found[-1] == 8


@pytest.mark.parametrize("scale", [2**31 - 1, -(2**31)])
def test_an_absurd_scale_costs_nothing(scale: int) -> None:
    wild = point(scale, 0, (3,))
    assert classic_counts(wild, SECONDS)[-1] == 3
    assert (native(wild) is None) == (scale < 0)


@given(st.integers(-1000, 1000), st.lists(st.sampled_from([0, 0, 0, 1, 2, 900, 2**62]), max_size=60))
def test_native_spans_say_the_same(first: int, counts: list[int]) -> None:
    spans, deltas = native_spans(first, counts)
    found: dict[int, int] = {}
    index, count, left = 0, 0, iter(deltas)
    for offset, length in spans:
        index += offset
        for _ in range(length):
            count += next(left)
            found[index] = count
            index += 1
    assert next(left, None) is None
    assert {place: count for place, count in found.items() if count} == {
        place: count for place, count in enumerate(counts, first) if count
    }
    # A gap of three empty buckets and more is a new span.
    assert all(offset > 2 for offset, _ in spans[1:])
    zeros = sum(1 for count in found.values() if not count)
    assert zeros <= 2 * max(0, len([count for count in counts if count]) - 1)


def test_native_index_is_one_above_opentelemetrys() -> None:
    # (1, 2] is bucket 0 of scale 0 to OpenTelemetry, and bucket 1 of schema 0 to Prometheus.
    found = native(point(0, 0, (7,), negative_offset=-1, negative_counts=(2,)))
    assert found is not None
    assert (found.schema, found.positive_spans, found.positive_deltas) == (0, [(1, 1)], [7])
    assert (found.negative_spans, found.negative_deltas) == ([(0, 1)], [2])


@pytest.mark.parametrize(("own", "expected"), [(0.0, 1e-128), (1e-9, 1e-9)])
def test_zero_threshold(own: float, expected: float) -> None:
    found = native(point(0, 0, (), zero_threshold=own))
    assert found is not None
    assert found.zero_threshold == expected
    assert (found.positive_spans, found.positive_deltas) == ([(0, 0)], [])


@given(st.lists(st.integers(-5000, 5000), min_size=1, max_size=40), st.integers(9, 13), VIEWS)
def test_a_scale_above_eight_is_made_coarser(indices: list[int], scale: int, view: View) -> None:
    fine = point(scale, *dense(indices))
    coarse = point(8, *dense([index >> (scale - 8) for index in indices]))
    assert native(fine) == native(coarse)
    assert classic_counts(fine, view) == classic_counts(coarse, view)


def test_a_scale_below_minus_four_has_no_native_buckets() -> None:
    assert native(point(-5, 0, (1,))) is None
    assert native(point(-4, 0, (1,))) is not None


def test_a_count_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="63 bits"):
        native(point(0, 0, (2**63,)))


def test_an_exemplar_is_in_the_bucket_it_fell_in_and_the_latest_one() -> None:
    def at(value: float, time_ns: int) -> Exemplar:
        return Exemplar(value, time_ns, ())

    bounds = (1.0, 2.0, 4.0)
    exemplars = [at(1.0, 5), at(0.5, 7), at(0.7, 6), at(2.1, 1), at(9.0, 1), at(math.inf, 2), at(math.nan, 3)]
    assert by_bucket(bounds, exemplars) == {0: exemplars[1], 2: exemplars[3], 3: exemplars[5]}
