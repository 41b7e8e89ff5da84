"""The sample of a reference's rows: no trace of the order, and as likely any row as any other."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import scipy.stats

from tidegauge.layout import layout_of
from tidegauge.sample import RowSample


def fold(sample, columns):
    rows = columns if isinstance(columns, pa.RecordBatch) else pa.RecordBatch.from_pydict(columns)
    sample.update(rows, layout_of(rows.schema))
    return sample


def table(rows, seed=0):
    random = np.random.default_rng(seed)
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(random.normal(size=rows * 3).astype("float32")), 3)
    return pa.record_batch(
        {"x": random.normal(size=rows), "c": random.choice(list("abc"), rows), "e": vectors}
    )


def test_few_rows_are_all_there_with_their_repeats():
    drawn = fold(RowSample(), {"x": [1.0, 2.0, 1.0, None], "c": ["a", "b", "a", None]}).drawn(100)
    rows = sorted(map(str, drawn.to_pylist()))
    assert rows == sorted(
        map(str, [{"c": "a", "x": 1.0}, {"c": "b", "x": 2.0}, {"c": "a", "x": 1.0}, {"c": None, "x": None}])
    )


def test_order_and_parts_leave_no_trace():
    whole = table(20_000)
    one = fold(RowSample(), whole).drawn(500)
    parts = [fold(RowSample(), whole.slice(start, 3_000)) for start in range(0, 20_000, 3_000)]
    first, second = parts[::2], parts[1::2]
    for group in (first, second):
        while len(group) > 1:
            group[0].merge(group.pop())
    second[0].merge(first[0])
    assert second[0].drawn(500).equals(one)
    backwards = fold(RowSample(), whole.take(pa.array(np.arange(20_000)[::-1])))
    assert backwards.drawn(500).equals(one)


def test_any_row_is_as_likely_as_any_other():
    x = np.random.default_rng(1).normal(size=50_000)
    drawn = fold(RowSample(), {"x": x}).drawn(2_000)
    assert len(drawn) == 2_000
    assert scipy.stats.ks_2samp(drawn.column("x").to_numpy(), x).pvalue > 0.01


def test_rows_that_repeat_have_their_share():
    random = np.random.default_rng(2)
    codes = random.choice(50, 100_000, p=np.arange(1, 51) / 1275)
    sample = RowSample()
    for start in range(0, 100_000, 7_000):
        fold(sample, {"k": codes[start : start + 7_000]})
    drawn = np.bincount(sample.drawn(1_000).column("k").to_numpy().astype(int), minlength=50)
    assert scipy.stats.chisquare(drawn, 1_000 * np.bincount(codes) / 100_000).pvalue > 0.001


def test_halves_of_a_sample_differ_as_samples_do():
    """Of 5 yes-or-nos, 32 rows that repeat: chi-square of every other row against the rest, over its mean."""
    random, found = np.random.default_rng(5), []
    for _ in range(100):
        codes = random.integers(0, 32, 1_000)
        drawn = fold(RowSample(), {"k": codes}).drawn(1_000).column("k").to_numpy()
        halves = [np.bincount(half.astype(int), minlength=32) for half in (drawn[::2], drawn[1::2])]
        found.append(scipy.stats.chi2_contingency(halves).statistic / 31)
    assert np.mean(found) == pytest.approx(1, abs=0.1)


def test_a_row_that_is_kept_has_its_share_beside_rows_that_are_not():
    """Every fifth row is the same one of 9601 that differ, of which 2048 are kept."""
    random, found = np.random.default_rng(6), []
    for _ in range(30):
        x = random.normal(size=12_000)
        x[::5] = x[0]
        drawn = fold(RowSample(), {"x": x}).drawn(1_000)
        if len(drawn):
            found.append((drawn.column("x").to_numpy() == x[0]).mean())
    kept = [share for share in found if share > 0]
    assert len(kept) > 0
    # One lot for all: 4 standard deviations of a share of 1000 rows.
    assert np.mean(kept) == pytest.approx(0.2, abs=0.05)


def test_a_row_that_is_half_of_all_makes_no_sample_that_lacks_it():
    x = np.random.default_rng(3).normal(size=60_000)
    x[::2] = 0.0
    drawn = fold(RowSample(), {"x": x}).drawn(1_000)
    # Either it was among those kept, with its share, or there is no sample at all.
    zeros = (drawn.column("x").to_numpy() == 0).mean() if len(drawn) else 0.5
    assert zeros == pytest.approx(0.5, abs=0.1)


def test_types_of_one_kind_are_the_same_value():
    floats = fold(RowSample(), {"x": pa.array([1.0, -0.0, None], pa.float32()), "b": [True, None, False]})
    fold(floats, {"x": pa.array([1, 0, None], pa.int64()), "b": pa.array(["true", None, "false"])})
    assert sorted(map(str, floats.drawn(10).to_pylist())) == sorted(
        2 * [str({"b": "true", "x": 1.0}), str({"b": None, "x": 0.0}), str({"b": "false", "x": None})]
    )


def test_columns_may_come_late():
    sample = fold(fold(RowSample(), {"x": [1.0]}), {"y": [2.0]})
    assert sorted(map(str, sample.drawn(5).to_pylist())) == [
        "{'x': 1.0, 'y': None}",
        "{'x': None, 'y': 2.0}",
    ]
