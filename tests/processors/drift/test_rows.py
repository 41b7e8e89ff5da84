"""The sample of a window's rows: bounded, and as likely any row of the window as any other."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import scipy.stats

from tidegauge.batch import Records
from tidegauge.config import Drift as Settings
from tidegauge.config import Multivariate
from tidegauge.identity import Identity
from tidegauge.layout import layout_of
from tidegauge.processors.drift.counts import Tables
from tidegauge.processors.drift.rows import MOST_BYTES, Rows
from tidegauge.reference import ReferenceBuilder
from tidegauge.units import Duration

NOW = 1_800_000_000 * 10**9
MINUTE = 60 * 10**9
ME = Identity("m")


def records(columns, now=NOW):
    rows = columns if isinstance(columns, pa.RecordBatch) else pa.RecordBatch.from_pydict(columns)
    return Records("flight", ME, layout_of(rows.schema), rows, now, rows.nbytes)


def rows_of(columns, sample_rows=1_000, panes=12):
    builder = ReferenceBuilder(bins=5, max_categories=10)
    rows = pa.RecordBatch.from_pydict(columns)
    builder.update(rows, layout_of(rows.schema))
    settings = Settings(
        window=Duration("1h"), panes=panes, multivariate=Multivariate(sample_rows=sample_rows)
    )
    return Rows(ME, Tables(builder.build("m", "", "file")), settings)


NUMBERED = {"x": np.arange(100.0)}


def test_few_rows_are_all_there():
    rows = rows_of(NUMBERED)
    rows.update(records({"x": np.arange(400.0)}))
    rows.update(records({"x": np.arange(400.0, 500)}, NOW + 6 * MINUTE))
    assert sorted(rows.sample()[:, 0].tolist()) == list(range(500))


def test_any_row_of_the_window_is_as_likely_as_any_other():
    """Over panes with very different numbers of rows, in batches of any size; chi-square over deciles."""
    random = np.random.default_rng(0)
    hits = np.zeros(10)
    for seed in range(30):
        rows = rows_of(NUMBERED, sample_rows=200)
        rows._random = np.random.default_rng(seed)
        number = 0
        for pane, count in enumerate((50, 3_000, 700, 20_000, 10, 6_240)):
            end = number + count
            while number < end:
                size = min(end - number, int(random.integers(1, 2_000)))
                batch = {"x": np.arange(number, number + size, dtype=float)}
                rows.update(records(batch, NOW + pane * 5 * MINUTE))
                number += size
        sample = rows.sample()[:, 0]
        assert 40 <= len(sample) <= 200
        assert len(np.unique(sample)) == len(sample)
        hits += np.histogram(sample, np.linspace(0, 30_000, 11))[0]
    assert scipy.stats.chisquare(hits).pvalue > 0.001


def test_steady_traffic_gives_as_many_rows_as_are_set():
    rows = rows_of(NUMBERED, sample_rows=300)
    for pane in range(30):
        rows.update(records({"x": np.arange(2_000.0)}, NOW + pane * 5 * MINUTE))
        assert len(rows.sample()) >= 200
        assert sum(len(pane.priorities) for pane in rows._held.values()) <= 600
    assert len(rows._held) == 12


def test_few_rows_a_pane_are_no_more_than_many():
    """A pane's rows wait to be joined until they are a quarter of the sample: not in all panes at once."""
    rows = rows_of(NUMBERED, sample_rows=100)
    for pane in range(40):
        for _ in range(4):
            rows.update(records({"x": np.arange(24.0)}, NOW + pane * 5 * MINUTE))
            state = rows.capture()
            chunks = [chunk for one in state.panes.values() for chunk in (one.joined, *one.waiting)]
            assert sum(len(priorities) for _, priorities in chunks) <= 2 * 100 + 100 // 4 + 24


def test_rows_belong_to_their_event_time():
    rows = rows_of(NUMBERED)
    times = NOW + np.array([0, -30, -70, -600, 120, 0]) * MINUTE
    columns = {"x": np.arange(6.0), "timestamp": pa.array(times, pa.timestamp("ns"))}
    rows.update(records(columns))
    # 70 minutes ago and 10 hours ago are late for the hour, and two hours ahead is a clock that is wrong.
    assert sorted(rows.sample()[:, 0].tolist()) == [0, 1, 5]
    rows.update(records({"x": [7.0]}, NOW + 50 * MINUTE))
    assert sorted(rows.sample()[:, 0].tolist()) == [0, 5, 7]


@pytest.mark.parametrize(
    "kind", [pa.float64(), pa.float32(), pa.int64(), pa.int32(), pa.int8(), pa.float16()]
)
def test_values_of_every_type_are_read_where_they_lie(kind):
    whole = np.arange(-20, 20)
    values = pa.array(whole.astype("float16")) if kind == pa.float16() else pa.array(whole, kind)
    nulls = pa.array([None if value % 7 == 0 else value for value in whole.tolist()]).cast(kind, safe=False)
    rows = rows_of({"a": whole.astype(float), "b": whole.astype(float)})
    batch = pa.record_batch({"a": values.slice(3, 30), "b": nulls.slice(3, 30)})
    rows.update(records(batch))
    found = rows.sample()
    found = found[np.argsort(found[:, 0])]
    assert found[:, 0].tolist() == whole[3:33].tolist()
    wanted = np.where(whole[3:33] % 7 == 0, np.nan, whole[3:33])
    assert np.array_equal(found[:, 1], wanted, equal_nan=True)


def test_categories_are_their_places_and_absent_columns_missing():
    columns = {"x": np.arange(9.0), "c": list("aaaabbbcc"), "gone": np.arange(9.0)}
    rows = rows_of(columns)
    rows.update(
        records({"x": [0.0, 1.0, 2.0, 3.0], "c": pa.array(["b", "new", None, "a"]).dictionary_encode()})
    )
    found = rows.sample()
    found = found[np.argsort(found[:, 0])]
    assert np.array_equal(found[:, 2], [1, 3, np.nan, 0], equal_nan=True)
    assert np.isnan(found[:, 1]).all()


def test_wide_models_have_fewer_rows():
    columns = {f"f{number}": np.arange(50.0) for number in range(800)}
    rows = rows_of(columns)
    rows.update(records({name: np.arange(2_000.0) for name in columns}))
    assert rows.sample().nbytes <= MOST_BYTES / 2
    assert len(rows.sample()) == MOST_BYTES // (8 * 800)
