"""The fold kernels and the evaluation of windows, without gRPC, beside what numpy and Arrow count."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bench.figure import Figure
from bench.payload import COLUMNS, ROWS, float_column
from tidegauge.batch import Records
from tidegauge.config import Drift as Settings
from tidegauge.identity import Identity
from tidegauge.layout import layout_of
from tidegauge.processors.drift.counts import Counts, Plan, Tables
from tidegauge.processors.drift.drift import Drift
from tidegauge.profile import Reference
from tidegauge.reference import ReferenceBuilder

BINS = (20, 128)
FEATURES = 500
CATEGORIES = 50


def measure(rounds: int) -> Iterator[Figure]:
    """Nanoseconds a value of the kernels alone, and milliseconds for all statistics of 500 features."""
    random = np.random.default_rng(7)
    batch = pa.record_batch({f"f{i:02}": float_column(random, i) for i in range(COLUMNS)})
    for bins in BINS:
        tables = Tables(_reference(batch, bins))
        what = f"fold {ROWS} x {COLUMNS} float64, {bins} bins"
        own = _nanoseconds(rounds, _kernel(batch, tables))
        other = _nanoseconds(rounds, _histograms(batch, tables))
        yield Figure(
            what, "ns/value", own, f"numpy {np.__version__}, searchsorted + bincount", other, less=True
        )
    yield from _texts(random, rounds)
    yield from _evaluation(rounds)


def _texts(random: np.random.Generator, rounds: int) -> Iterator[Figure]:
    names = np.array([f"category {number}" for number in range(CATEGORIES)])
    drawn = {f"t{i}": pa.array(names[random.integers(0, CATEGORIES, ROWS)]) for i in range(COLUMNS)}
    batch = pa.record_batch(drawn)
    coded = pa.record_batch({name: column.dictionary_encode() for name, column in drawn.items()})
    tables = Tables(_reference(batch, 20))
    for rows, kind in ((batch, "texts"), (coded, "dictionaries")):
        what = f"count {ROWS} x {COLUMNS} {kind} of {CATEGORIES} categories"
        own = _nanoseconds(rounds, _counting(rows, tables))
        other = _nanoseconds(rounds, partial(_value_counts, rows))
        yield Figure(what, "ns/value", own, f"pyarrow {pa.__version__}, value_counts", other, less=True)


def _counting(rows: pa.RecordBatch, tables: Tables) -> Callable[[], object]:
    plan, counts = Plan(layout_of(rows.schema), rows.schema, tables), Counts(tables)
    return lambda: plan.prepare(rows, counts)


def _value_counts(rows: pa.RecordBatch) -> object:
    return [pc.value_counts(column) for column in rows.columns]


def _kernel(batch: pa.RecordBatch, tables: Tables) -> Callable[[], object]:
    plan, counts = Plan(layout_of(batch.schema), batch.schema, tables), Counts(tables)
    return lambda: plan.fold([batch], counts)


def _histograms(batch: pa.RecordBatch, tables: Tables) -> Callable[[], object]:
    columns = [column.to_numpy() for column in batch.columns]
    edges = [profile.edges for profile in tables.numeric]
    return lambda: [
        np.bincount(np.searchsorted(at, column)) for column, at in zip(columns, edges, strict=True)
    ]


def _evaluation(rounds: int) -> Iterator[Figure]:
    random = np.random.default_rng(1)
    rows = pa.record_batch({f"f{i:03}": random.normal(size=5_000) for i in range(FEATURES)})
    drift, layout = Drift(Settings(), [_reference(rows, 20)]), layout_of(rows.schema)
    spent = []
    for _ in range(rounds + 1):
        now = time.time_ns()
        drift.update(Records("bench", Identity("m", "1"), layout, rows, now, rows.nbytes))
        begin = time.thread_time()
        drift.collect(now)
        spent.append(1e3 * (time.thread_time() - begin))
    windows = 1 + len(Settings().other_windows)
    what = f"evaluate {FEATURES} features x {windows} windows, all statistics, into metrics"
    # The first one works out the nulls.
    yield Figure(what, "ms", spent[1:])


def _reference(rows: pa.RecordBatch, bins: int) -> Reference:
    builder = ReferenceBuilder(bins=bins, max_categories=100)
    builder.update(rows, layout_of(rows.schema))
    return builder.build("m", "1", "file")


def _nanoseconds(rounds: int, work: Callable[[], object]) -> list[float]:
    """CPU time per value, the best of ten a round."""
    work()
    found = []
    for _ in range(rounds):
        spent = []
        for _ in range(10):
            begin = time.thread_time_ns()
            work()
            spent.append(time.thread_time_ns() - begin)
        found.append(min(spent) / (ROWS * COLUMNS))
    return found
