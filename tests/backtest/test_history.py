"""Rows in the order of their event time, whatever the order and the types in which they come."""

from __future__ import annotations

from datetime import UTC, date, datetime

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidegauge.backtest import history
from tidegauge.backtest.history import Clock, History, HistoryError
from tidegauge.layout import Role, layout_of

NOON = int(datetime(2026, 6, 1, 12, tzinfo=UTC).timestamp()) * 10**9
WHEN = Clock("when")


def reader(*batches):
    def read(only):
        for rows in batches:
            yield rows if only is None else rows.select([n for n in rows.schema.names if n in only])

    return read


def replayed(*batches, clock=WHEN, ignore=()):
    its = History(reader(*batches), clock, ignore)
    survey = its.survey(batches[0].schema)
    return survey, list(its.batches(survey))


def batch(times, values=None, **more):
    values = list(range(len(times))) if values is None else values
    return pa.record_batch({"when": pa.array(times, pa.int64()), "x": pa.array(values, pa.int64())} | more)


def rows_of(found):
    return [row for rows, times in found for row in zip(times.tolist(), rows["x"].to_pylist(), strict=True)]


@settings(max_examples=60)
@given(
    st.lists(
        st.lists(st.none() | st.integers(NOON, NOON + 50), min_size=1, max_size=30), min_size=1, max_size=6
    ),
    st.integers(1, 400),
)
def test_rows_come_in_order_and_ties_as_they_were_read(lists, sort_bytes):
    if all(time is None for times in lists for time in times):
        return
    numbered = []
    for times in lists:
        start = sum(map(len, (b for b in numbered)))
        numbered.append([(time, start + place) for place, time in enumerate(times)])
    batches = [batch(*zip(*pairs, strict=True)) for pairs in numbered]
    before, history.SORT_BYTES = history.SORT_BYTES, sort_bytes  # so that a few rows are many runs
    try:
        survey, found = replayed(*batches)
    finally:
        history.SORT_BYTES = before
    timed = [pair for pairs in numbered for pair in pairs if pair[0] is not None]
    assert rows_of(found) == sorted(timed, key=lambda pair: pair[0])
    assert survey.is_ordered == (timed == sorted(timed, key=lambda pair: pair[0]))
    assert (survey.rows, survey.untimed) == (len(timed), sum(map(len, lists)) - len(timed))
    assert (survey.first_ns, survey.last_ns) == (min(timed)[0], max(timed)[0])


def test_rows_in_order_are_not_copied_to_disk(monkeypatch):
    monkeypatch.setattr(history, "TemporaryDirectory", None)
    _, found = replayed(batch([NOON, NOON + 1]), batch([NOON + 1, NOON + 9]))
    assert [time for time, _ in rows_of(found)] == [NOON, NOON + 1, NOON + 1, NOON + 9]


def test_files_of_different_columns_are_sorted_together():
    late = batch([NOON + 5, NOON + 1], [1, 2], color=["red", "blue"])
    early = pa.record_batch({"x": [3.5], "when": pa.array([NOON], pa.int64())})
    _, found = replayed(late, early)
    [(rows, times)] = found
    assert times.tolist() == [NOON, NOON + 1, NOON + 5]
    assert rows["x"].to_pylist() == [3.5, 2, 1]
    assert rows["color"].to_pylist() == [None, "blue", "red"]


@pytest.mark.parametrize(
    ("values", "unit"),
    [
        (pa.array([NOON // 10**9], pa.timestamp("s")), None),
        (pa.array([NOON // 10**3], pa.timestamp("us", "Europe/Berlin")), None),
        (pa.array(["2026-06-01T12:00:00"]), None),
        (pa.array([NOON / 1e9], pa.float64()), None),
        (pa.array([NOON], pa.int64()), None),
        (pa.array([NOON // 10**9], pa.int32()), "s"),
        (pa.array([NOON // 10**6], pa.int64()), "ms"),
        (pa.array([NOON / 1e6], pa.float64()), "ms"),
    ],
)
def test_an_event_time_may_be_of_many_types(values, unit):
    survey, found = replayed(pa.record_batch({"when": values, "x": [7]}), clock=Clock("when", unit))
    assert (survey.first_ns, rows_of(found)) == (NOON, [(NOON, 7)])


def test_a_date_is_its_midnight():
    survey, _ = replayed(pa.record_batch({"when": [date(2026, 6, 1)], "x": [7]}))
    assert survey.first_ns == NOON - 12 * 3600 * 10**9


def test_the_column_is_named_or_told_by_its_role_or_name():
    role = pa.schema([pa.field("at", pa.int64(), metadata={"role": "timestamp"}), pa.field("x", pa.int64())])
    for rows in (
        pa.record_batch([[NOON], [7]], schema=role),
        batch([NOON], [7]).rename_columns(["timestamp", "x"]),
    ):
        _, found = replayed(rows, clock=Clock())
        assert rows_of(found) == [(NOON, 7)]


def test_received_rows_have_one_timestamp_and_no_ignored_column():
    rows = batch([NOON], [7], timestamp=["noon"], secret=["a"])
    _, [(received, _)] = replayed(rows, ignore=["secret"])
    layout = layout_of(received.schema)
    assert layout.names == ("when", "x")
    assert layout.roles == (Role.TIMESTAMP, Role.FEATURE)


@pytest.mark.parametrize(
    ("rows", "clock", "told"),
    [
        (
            batch([NOON]),
            Clock(),
            "no column is called 'timestamp'; name the one .* --timestamp COLUMN: there are when, x",
        ),
        (batch([NOON]), Clock("wen"), "no column is called 'wen'"),
        (batch([NOON // 10**9]), Clock("when"), "is all of 1970; say what it is with --timestamp-unit s"),
        (batch([None]), Clock("when"), "no row has an event time in column 'when'"),
        (pa.record_batch({"when": ["noon"], "x": [1]}), Clock("when"), "of type string is no event time"),
        (batch([2**62]), Clock("when", "s"), "is no event time .*overflow"),
    ],
)
def test_what_cannot_be_put_in_order_is_told_with_the_remedy(rows, clock, told):
    with pytest.raises(HistoryError, match=told):
        replayed(rows, clock=clock)
