"""Bins and the fold kernel, against numpy's binary search and obvious loops."""

from __future__ import annotations

import ctypes
import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tidegauge.stats import bins
from tidegauge.stats.spots import locate

finite = st.floats(allow_nan=False, allow_infinity=False)
edges_lists = st.lists(finite, min_size=0, max_size=140, unique_by=lambda x: x + 0.0).map(sorted)


def lookup(values, edges):
    return bins.bin_index(np.array(values, float), *bins.grid(np.array(edges, float)))


@given(edges_lists, st.lists(st.floats(allow_nan=False), max_size=200))
@example([-1.7976931348623157e308, 1.7976931348623157e308], [0.0, float("inf"), float("-inf")])
@example([5e-324], [0.0, 5e-324, 1e-323])
@example([1.7e18, 1.7e18 + 256], [1.7e18, 1.7e18 + 256, 1.7e18 + 512])
@example([*np.arange(100) / 1e6, 1e9], [*np.arange(100) / 1e6, 5e-7, 1e8, 1e10])
def test_the_grid_finds_the_bin_of_a_binary_search(edges, values):
    wanted = np.searchsorted(np.array(edges, float), np.array(values, float), side="left")
    assert lookup(values, edges).tolist() == wanted.tolist()


@given(edges_lists.filter(bool))
def test_an_edge_belongs_to_the_bin_below_it(edges):
    assert lookup(edges, edges).tolist() == list(range(len(edges)))
    above = [math.nextafter(edge, math.inf) for edge in edges]
    assert lookup(above, edges).tolist() == np.searchsorted(edges, above, side="left").tolist()


@pytest.mark.parametrize("edges", [[1.0, 1.0], [2.0, 1.0], [float("nan")], [float("inf")]])
def test_edges_that_are_no_edges_are_refused(edges):
    with pytest.raises(ValueError, match="ascending"):
        bins.grid(np.array(edges))


def test_more_edges_than_a_uint16_can_number_are_refused():
    with pytest.raises(ValueError, match="more than a grid"):
        bins.grid(np.arange(65_536.0))


TYPES = {
    pa.float64(): bins.FLOAT64,
    pa.float32(): bins.FLOAT32,
    pa.int64(): bins.INT64,
    pa.int32(): bins.INT32,
}

columns = st.one_of(
    st.tuples(st.just(pa.float64()), st.lists(st.none() | st.floats(), max_size=60)),
    st.tuples(st.just(pa.float32()), st.lists(st.none() | st.floats(width=32), max_size=60)),
    st.tuples(st.just(pa.int64()), st.lists(st.none() | st.integers(-(2**63), 2**63 - 1), max_size=60)),
    st.tuples(st.just(pa.int32()), st.lists(st.none() | st.integers(-(2**31), 2**31 - 1), max_size=60)),
)


def address(capsule):
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    return pointer(capsule, b"arrow_array")


def fold(batch, edges, lowest, highest, center=0.0):
    """Column 0 of a batch folded by the kernel: counts, sums, tallies, squares."""
    edges = np.array(edges, float)
    grid = bins.grid(edges)
    counts, sums = np.zeros((1, len(edges) + 1), np.int64), np.zeros((1, len(edges) + 1))
    tallies, squares = np.zeros((1, bins.TALLIES), np.int64), np.zeros((1, 1))
    places = np.array([[grid.origin, grid.scale, lowest, highest, center]])
    plan = np.array([[0, 0, TYPES[batch.schema.field(0).type], grid.steps]], np.int64)
    capsules = batch.__arrow_c_array__()
    where = np.zeros((1, 1, 4), np.int64)
    locate(address(capsules[1]), where[0])
    bins.fold(
        where,
        plan,
        grid.edges[None, :],
        grid.table[None, :],
        places,
        counts,
        sums,
        squares,
        tallies,
    )
    return counts[0], sums[0], tallies[0], squares[0]


def slow_fold(values, edges, lowest, highest):
    counts = [0] * (len(edges) + 1)
    tallies = [0] * bins.TALLIES
    for value in values:
        if value is None:
            tallies[bins.MISSING] += 1
        elif value != value:
            tallies[bins.NAN] += 1
        else:
            counts[sum(edge < value for edge in edges)] += 1
            tallies[bins.BELOW] += value < lowest
            tallies[bins.ABOVE] += value > highest
            tallies[bins.INFINITE] += value in (math.inf, -math.inf)
    return counts, tallies


@given(
    columns, st.lists(st.floats(-1e6, 1e6), max_size=30, unique_by=lambda x: x + 0.0).map(sorted), st.data()
)
def test_fold_counts_what_an_obvious_loop_counts(column, edges, draw):
    kind, values = column
    values = values * draw.draw(st.sampled_from([1, 1, 11, 40]))  # to fill a block of the kernel's, and more
    start = draw.draw(st.integers(0, len(values)))
    batch = pa.RecordBatch.from_arrays([pa.array(values, kind)], ["x"]).slice(start)
    kept = [None if v is None else float(v) for v in batch.column(0).to_pylist()]
    counts, sums, tallies, squares = fold(batch, edges, -100.0, 100.0, center=3.0)
    wanted_counts, wanted_tallies = slow_fold(kept, edges, -100.0, 100.0)
    assert counts.tolist() == wanted_counts
    assert tallies.tolist() == wanted_tallies
    assert counts.sum() + tallies[bins.MISSING] + tallies[bins.NAN] == len(kept)
    real = [v - 3.0 for v in kept if v is not None and np.isfinite(v)]
    size = sum(map(abs, real))
    if np.isfinite(size):
        assert sums.sum() == pytest.approx(sum(real), abs=1e-12 * size + 1e-12)
    with np.errstate(over="ignore"):
        wanted_squares = (np.array(real, float) ** 2).sum()
    assert squares[0] == pytest.approx(wanted_squares, rel=1e-12)  # infinite beyond the doubles


def test_sums_about_the_centre_keep_the_mean_of_timestamps():
    rng = np.random.default_rng(5)
    values = 1.79e18 + rng.integers(0, 10**9, 10_000).astype(float)
    batch = pa.RecordBatch.from_arrays([pa.array(values)], ["x"])
    counts, sums, *_ = fold(batch, [], values.min(), values.max(), center=1.79e18)
    exact = sum(int(v) - 1_790_000_000_000_000_000 for v in values) / len(values)
    assert sums[0] / counts[0] == pytest.approx(exact, rel=1e-12)


def test_a_million_rows_in_any_batches_give_the_same_counts():
    rng = np.random.default_rng(6)
    values = rng.normal(size=1_000_000)
    edges = np.quantile(values[:10_000], np.arange(1, 20) / 20)
    whole = fold(pa.RecordBatch.from_arrays([pa.array(values)], ["x"]), edges, -3, 3)
    for parts in (2, 7, 1000):
        cuts = np.sort(rng.integers(0, len(values), parts - 1))
        total = [np.zeros_like(part) for part in whole]
        for piece in np.split(values, cuts):
            folded = fold(pa.RecordBatch.from_arrays([pa.array(piece)], ["x"]), edges, -3, 3)
            total = [so_far + part for so_far, part in zip(total, folded, strict=True)]
        assert total[0].tolist() == whole[0].tolist()
        assert total[2].tolist() == whole[2].tolist()
        assert total[1] == pytest.approx(whole[1], rel=1e-9)
        assert total[3] == pytest.approx(whole[3], rel=1e-9)


@given(st.lists(finite, min_size=1, max_size=400), st.integers(2, 30))
def test_quantile_edges_cut_into_bins_that_all_hold_something(values, most):
    upper, counts = np.unique(np.array(values) + 0.0, return_counts=True)
    edges = bins.quantile_edges(upper, upper, counts, most)
    assert (edges[1:] > edges[:-1]).all()
    held = np.bincount(np.searchsorted(edges, values, side="left"), minlength=len(edges) + 1)
    if len(upper) > 1:
        assert len(edges) <= most - 1
        assert held.min() > 0
        # No bin is heavier than its share and one value's weight together.
        assert held.max() <= len(values) / most + counts.max() + 1
    else:
        assert held.max() == len(values)
        assert len(held) == (3 if abs(upper[0]) < 1.79e308 else 2)


def test_few_distinct_values_have_a_bin_each():
    upper, counts = np.array([0.0, 1.0, 7.0]), np.array([990, 9, 1])
    assert bins.quantile_edges(upper, upper, counts, 20).tolist() == [0.5, 4.0]


def test_a_value_that_outweighs_a_bin_is_parted_from_those_below_it():
    upper, counts = np.arange(101.0), np.array([1] * 100 + [2_400])
    edges = bins.quantile_edges(upper, upper, counts, 20)
    assert edges.tolist() == [99.5]
    middle = np.array([1] * 50 + [2_400] + [1] * 50)
    edges = bins.quantile_edges(upper, upper, middle, 20)
    assert edges.tolist() == [49.5, 50.5]


@given(st.lists(st.floats(-1e30, 1e30), min_size=1, max_size=60), st.integers(2, 10))
def test_the_float32_of_a_value_stays_in_its_bin(values, most):
    upper, counts = np.unique(np.float32(values).astype(float) * 0.1, return_counts=True)
    near = upper * (1 + 2.0**-24)
    apart = np.diff(upper) > 2.0**-20 * np.maximum(abs(upper[1:]), abs(upper[:-1]))
    if np.isfinite(near).all() and apart.all() and (abs(upper) > 1e-300).all():
        edges = bins.quantile_edges(upper, upper, counts, most)
        assert lookup(near, edges).tolist() == lookup(upper, edges).tolist()
        low, high = bins.widened(float(upper[0]), float(upper[-1]))
        assert (near >= low).all()
        assert (near <= high).all()


def test_no_values_have_no_edges():
    assert len(bins.quantile_edges(np.empty(0), np.empty(0), np.empty(0, np.int64), 20)) == 0
