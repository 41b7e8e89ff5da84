"""The exponential histogram against exact arithmetic."""

from __future__ import annotations

import ast
import math
from bisect import bisect_left
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tidegauge.stats import exponential
from tidegauge.stats.exponential import MAX_BUCKETS, MAX_SCALE

SMALLEST, LARGEST = 5e-324, 1.7976931348623157e308

positive = st.floats(SMALLEST, LARGEST)
finite = st.one_of(st.just(0.0), positive, st.floats(1e-6, 100.0))
durations_ns = st.integers(1, 2**63 - 1)


def closes(value: float, index: int, per_octave: int) -> bool:
    """Whether value <= 2**(index / per_octave), in whole numbers."""
    numerator, denominator = value.as_integer_ratio()
    left, right = numerator**per_octave, denominator**per_octave
    return left <= right << index if index >= 0 else left << -index <= right


def exact_index(value: float, scale: int) -> int:
    """The bucket of the definition: the i with base**i < value <= base**(i + 1)."""
    if scale < 0:
        return exact_index(value, 0) >> -scale
    per_octave = 2**scale
    index = math.ceil(math.log2(value) * per_octave) - 1  # a guess; exact arithmetic decides
    while not closes(value, index + 1, per_octave):
        index += 1
    while closes(value, index, per_octave):
        index -= 1
    return index


def folded(*batches: list[float]) -> Any:
    histograms = exponential.empty(1)
    for batch in batches:
        assert exponential.fold(histograms, np.zeros(len(batch), np.int64), np.array(batch, np.float64)) == 0
    return histograms[0]


def parts(histogram: Any) -> tuple[int, int, list[int], int]:
    counts = histogram["counts"]
    assert not counts[histogram["buckets"] :].any()
    return (
        int(histogram["scale"]),
        int(histogram["offset"]),
        counts[: histogram["buckets"]].tolist(),
        int(histogram["zero_count"]),
    )


def slow(values: list[float]) -> tuple[int, int, list[int], int]:
    """The histogram as defined: the finest scale, 8 at most, at which the values span 160 buckets."""
    zeros = values.count(0.0)
    indices = [exact_index(value, MAX_SCALE) for value in values if value]
    if not indices:
        return MAX_SCALE, 0, [], zeros
    by = 0
    while (max(indices) >> by) - (min(indices) >> by) >= MAX_BUCKETS:
        by += 1
    counts = Counter(index >> by for index in indices)
    low, high = min(counts), max(counts)
    return MAX_SCALE - by, low, [counts[index] for index in range(low, high + 1)], zeros


def neighbours(value: float) -> list[float]:
    around = [math.nextafter(value, 0.0), value, math.nextafter(value, math.inf)]
    return [one for one in around if 0 < one < math.inf]


@pytest.mark.parametrize(
    "power", [-1074, -1073, -1050, -1023, -1022, -1021, -30, -9, -1, 0, 1, 2, 10, 33, 1022, 1023]
)
def test_an_exact_power_of_two_closes_its_bucket(power: int) -> None:
    value = math.ldexp(1.0, power)
    assert exponential.index(value) == power * 256 - 1
    for near in neighbours(value):
        assert exponential.index(near) == exact_index(near, MAX_SCALE)


def test_subnormals_and_the_largest_double() -> None:
    assert exponential.index(SMALLEST) == -1074 * 256 - 1
    assert exponential.index(3 * SMALLEST) == exact_index(3 * SMALLEST, MAX_SCALE)
    assert exponential.index(LARGEST) == 1024 * 256 - 1


def test_doubles_on_either_side_of_every_boundary_of_an_octave() -> None:
    for index in range(257):
        for near in neighbours(2.0 ** (index / 256)):
            assert exponential.index(near) == exact_index(near, MAX_SCALE)


@given(positive)
def test_index_is_exact(value: float) -> None:
    assert exponential.index(value) == exact_index(value, MAX_SCALE)


@given(positive, st.integers(-10, MAX_SCALE))
def test_a_coarser_index_is_an_arithmetic_shift(value: float, scale: int) -> None:
    assert exponential.index(value) >> (MAX_SCALE - scale) == exact_index(value, scale)


@given(st.lists(finite, max_size=30))
@example([])
@example([0.0, 0.0])
@example([SMALLEST, LARGEST])
@example([LARGEST, SMALLEST, 0.0, 1.0])
@example([1.5e9] * 20)
def test_counts_are_those_of_the_definition(values: list[float]) -> None:
    histogram = folded(values)
    assert parts(histogram) == slow(values)
    assert histogram["min"] == min(values, default=math.inf)
    assert histogram["max"] == max(values, default=-math.inf)
    with np.errstate(over="ignore"):
        assert histogram["sum"] == pytest.approx(float(np.sum(values)))


@given(st.lists(finite, max_size=30), st.randoms(), st.integers(1, 5))
def test_order_splits_and_merges_give_the_same_counts(values: list[float], random: Any, pieces: int) -> None:
    expected = parts(folded(values))
    shuffled = random.sample(values, len(values))
    batches = [shuffled[start::pieces] for start in range(pieces)]
    assert parts(folded(*batches)) == expected
    merged = exponential.empty(1)
    for batch in batches:
        other = exponential.empty(1)
        exponential.fold(other, np.zeros(len(batch), np.int64), np.array(batch, np.float64))
        exponential.merge(merged[0], other[0])
    assert parts(merged[0]) == expected
    assert (merged[0]["min"], merged[0]["max"]) == (
        min(values, default=math.inf),
        max(values, default=-math.inf),
    )


def test_a_million_values_in_any_batches_give_the_same_counts() -> None:
    rng = np.random.default_rng(5)
    values = np.exp(rng.normal(-4, 2, 1_000_000))
    series = rng.integers(0, 3, values.size)
    whole = exponential.empty(3)
    exponential.fold(whole, series, values)
    split = exponential.empty(3)
    for piece in np.array_split(rng.permutation(values.size), 37):
        exponential.fold(split, series[piece], values[piece])
    for one, other in zip(whole, split, strict=True):
        assert parts(one) == parts(other)
    assert whole["counts"].sum() == values.size


def test_what_is_negative_or_not_finite_is_left_out_and_told() -> None:
    histograms = exponential.empty(2)
    values = np.array([1.0, -1.0, math.nan, math.inf, -math.inf, -0.0, -SMALLEST])
    assert exponential.fold(histograms, np.ones(values.size, np.int64), values) == 5
    assert parts(histograms[0]) == (MAX_SCALE, 0, [], 0)
    assert parts(histograms[1]) == (MAX_SCALE, -1, [1], 1)


def guarantee() -> str:
    docstring = ast.get_docstring(ast.parse(Path(exponential.__file__).read_text()))
    assert docstring is not None
    return " ".join(docstring.split())


def test_the_guarantee_is_stated_with_its_figures() -> None:
    assert "within a relative error of (base - 1) / (base + 1)" in guarantee()
    for scale, figure in [(8, "0.14 % at scale 8"), (4, "2.2 % at 4"), (1, "17 % at 1")]:
        assert figure in guarantee()
        base = 2.0 ** (2.0**-scale)
        stated = float(figure.split(" %")[0])
        assert float(f"{100 * (base - 1) / (base + 1):.2g}") == stated


@given(
    st.lists(st.one_of(finite.filter(lambda v: v == 0 or v > 1e-300)), min_size=1, max_size=30),
    st.floats(0, 1),
)
@example([0.0, 1.0, LARGEST], 1.0)
@example([1e-300, LARGEST], 0.5)
def test_quantiles_are_within_the_guarantee(values: list[float], q: float) -> None:
    scale, offset, counts, zeros = parts(folded(values))
    true = sorted(values)[math.floor(q * (len(values) - 1))]
    base = 2.0 ** (2.0**-scale)
    estimate = exponential.quantile(scale, offset, counts, zeros, q)
    assert abs(Fraction(estimate) - Fraction(true)) <= Fraction((base - 1) / (base + 1) + 1e-14) * Fraction(
        true
    )


def test_quantiles_of_nothing_and_beyond() -> None:
    assert math.isnan(exponential.quantile(8, 0, [], 0, 0.5))
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        exponential.quantile(8, 0, [1], 0, 1.5)


@given(st.lists(durations_ns, max_size=40))
@example([1, 2**63 - 1])
def test_whole_nanoseconds_need_no_scale_below_1(durations: list[int]) -> None:
    assert folded([duration / 1e9 for duration in durations])["scale"] >= 1


def test_classic_bounds_are_the_largest_doubles_not_above_the_powers_of_sqrt_2() -> None:
    bounds = exponential.explicit_bounds()
    assert len(bounds) == 37
    assert bounds[::2] == tuple(2.0**k for k in range(-13, 6))
    for k, bound in zip(range(-26, 11), bounds, strict=True):
        assert Fraction(bound) ** 2 <= Fraction(2) ** k < Fraction(math.nextafter(bound, math.inf)) ** 2


@given(st.one_of(st.just(0.0), positive), st.integers(-40, 0), st.integers(1, 20))
def test_add_tells_the_bucket_and_so_its_place_between_explicit_bounds(
    value: float, first: int, last: int
) -> None:
    bucket = exponential.add(exponential.empty(1)[0], value)
    assert bucket == (exponential.index(value) if value else exponential.ZERO)
    place = bisect_left(exponential.explicit_bounds(first, last), value)
    assert exponential.explicit_place(bucket, first, last) == place
