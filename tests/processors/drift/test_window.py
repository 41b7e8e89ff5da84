"""Panes, the watermark and event times, against a list of rows."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from tidegauge.batch import Records
from tidegauge.config import Drift as Settings
from tidegauge.identity import Identity
from tidegauge.layout import layout_of
from tidegauge.processors.drift.counts import Tables
from tidegauge.processors.drift.window import Window, event_times
from tidegauge.reference import ReferenceBuilder
from tidegauge.units import Duration

S = 10**9
NOW = 1_800_000_000 * S
SETTINGS = Settings(
    window=Duration("60s"),
    other_windows=(),
    panes=6,
    allowed_lateness=Duration("20s"),
    max_future=Duration("5s"),
)
SEVERAL = structs.replace(SETTINGS, other_windows=(Duration("12s"), Duration("300s")))


def records(columns, received_ns=NOW):
    rows = pa.RecordBatch.from_pydict(columns)
    return Records("test", Identity("m", "1"), layout_of(rows.schema), rows, received_ns, rows.nbytes)


def window(settings=SETTINGS):
    builder = ReferenceBuilder(bins=4, max_categories=10)
    rows = pa.RecordBatch.from_pydict({"x": np.arange(100.0), "c": ["a", "b"] * 50})
    builder.update(rows, layout_of(rows.schema))
    return Window(Tables(builder.build("m", "1", "file")), settings)


def at(*seconds, received_s=0):
    times = pa.array([NOW + int(s * S) for s in seconds], pa.timestamp("ns"))
    return records({"x": [1.0] * len(seconds), "timestamp": times}, NOW + int(received_s * S))


def held(a_window, now_s=0.0):
    return int(a_window.total(NOW + int(now_s * S)).counts.sum())


def test_rows_leave_with_their_pane():
    panes = window()
    panes.update(at(0))
    panes.update(at(55, received_s=55))
    assert held(panes, 55) == 2
    panes.update(at(60, received_s=60))  # opens a seventh pane: the first leaves
    assert held(panes, 60) == 2


def test_late_rows_are_left_out_and_told():
    panes = window()
    assert panes.update(at(0, 1, 2)) == {}
    assert panes.update(at(30, received_s=30)) == {}
    assert panes.update(at(9.9, 10, 31, received_s=31)) == {"late": 1}
    assert held(panes, 31) == 6


def test_rows_of_one_batch_may_come_in_any_order():
    panes = window()
    assert panes.update(at(50, 0, 25, received_s=50)) == {}
    assert panes.update(at(90, 72, 25, received_s=90)) == {"late": 1}  # judged by the 50 s known before


def test_the_window_goes_back_to_a_stream_that_goes_on_where_it_paused():
    for scraped in (False, True):
        panes = window()
        panes.update(at(*range(50), received_s=50))
        if scraped:
            held(panes, 90)
        panes.update(at(45, received_s=90))
        assert held(panes, 90) == 51


def test_rows_from_the_future_do_not_drag_the_watermark():
    panes = window()
    assert panes.update(at(3600, 0)) == {"future": 1}
    assert panes.update(at(0)) == {}
    assert panes.update(at(10_000, 20_000)) == {"future": 2}
    assert held(panes) == 2


def test_a_replay_of_old_rows_is_as_good_as_new():
    panes = window()
    year = 365 * 86400
    assert panes.update(at(-year, -year + 5)) == {}
    assert held(panes) == 2


def test_the_window_moves_on_while_nothing_arrives():
    panes = window()
    panes.update(at(0))
    before = panes.stamp(NOW)
    assert held(panes, 40) == 1
    assert held(panes, 120) == 0
    assert panes.stamp(NOW + 120 * S) != before


def test_what_leaves_the_window_stays_in_the_lifetime():
    panes = window()
    for second in range(0, 600, 10):
        panes.update(at(second, received_s=second))
    assert held(panes, 600) == 5
    assert panes.lifetime().counts.sum() == 60


@pytest.mark.parametrize(
    "its", [SETTINGS, structs.replace(SETTINGS, allowed_lateness=Duration("60s")), SEVERAL]
)
@given(st.lists(st.lists(st.integers(0, 500), min_size=1, max_size=8), max_size=12))
def test_each_row_is_closed_once_and_in_order_however_the_watermark_jumps(its, batches):
    panes, sent, closed = window(its), 0, []
    for seconds in [*batches, [2_000], [4_000]]:
        # In a batch of one pane no row is older than the window that the batch itself moves.
        for pane in sorted({second // 10 for second in seconds}):
            mine = [second for second in seconds if second // 10 == pane]
            told = panes.update(at(*mine, received_s=4_000))
            sent += len(mine) - told.get("late", 0)
            closed += panes.closed()
    begins = [one.begin_ns for one in closed]
    assert begins == sorted(set(begins))
    assert all(begin % (10 * S) == 0 for begin in begins)
    if its is not SEVERAL:  # where rows may come to a longer window that are too old for drift.window
        assert sum(int(one.counts.counts.sum()) for one in closed) == sent - 1


def test_a_batch_across_the_beginning_of_a_shorter_window_is_parted():
    """Both rows lie in one pane of the longer window, and one of them in the shorter window too."""
    panes = window(SEVERAL)
    panes.update(at(2, received_s=2))
    panes.update(at(-1, -9, received_s=2))
    for length, rows in (("12s", 2), ("60s", 3)):
        assert int(panes.total(NOW + 2 * S, Duration(length)).counts.sum()) == rows


def test_panes_that_a_jump_retires_are_closed_first():
    """A stream that pauses for longer than its window: what came before the pause is judged all the same."""
    panes = window()
    panes.update(at(0, 1, 12, received_s=20))
    assert not any(one.counts.counts.any() for one in panes.closed())
    panes.update(at(5_000, received_s=5_000))
    found = [(one.begin_ns - NOW, int(one.counts.counts.sum())) for one in panes.closed()]
    assert [one for one in found if one[1]] == [(0, 2), (10 * S, 1)]
    assert not any(one.counts.counts.any() for one in panes.closed())


@given(st.lists(st.lists(st.integers(-100, 100), min_size=1, max_size=8), max_size=12))
def test_panes_hold_what_a_list_of_rows_would(batches):
    panes = window()
    rows, watermark, left_out = Counter(), None, 0
    for seconds in batches:
        told = panes.update(at(*seconds, received_s=100))
        newest = max(seconds)
        horizon = -1_000 if watermark is None else watermark
        watermark = max(newest, horizon)
        first = (NOW // S + watermark) // 10 - 5
        kept = [s for s in seconds if s >= horizon - 20 and (NOW // S + s) // 10 >= first]
        rows.update((NOW // S + s) // 10 for s in kept)
        left_out += len(seconds) - len(kept)
        assert sum(told.values()) == len(seconds) - len(kept)
        assert set(told) <= {"late"}
        expected = sum(count for pane, count in rows.items() if pane >= first)
        assert int(panes.total(NOW + 100 * S).counts.sum()) == expected
    assert int(panes.lifetime().counts.sum()) + left_out == sum(map(len, batches))


@given(
    st.lists(
        st.tuples(st.integers(0, 90), st.lists(st.integers(0, 400), min_size=1, max_size=6)), max_size=25
    )
)
def test_several_windows_hold_each_row_once_and_what_a_list_of_rows_would(steps):
    """Each window is cut into six panes of its own; every row within it counts, whatever its path."""
    panes = window(SEVERAL)
    kept, clock, watermark = [], 0, None
    for step, ages in steps:
        clock += step
        seconds = [clock - age for age in ages]
        panes.update(at(*seconds, received_s=clock))
        newest = max(seconds) if watermark is None else max(watermark, *seconds)
        oldest = -(10**9) if watermark is None else watermark - 20
        first = ((NOW // S + newest) // 50 - 5) * 50 - NOW // S
        kept += [second for second in seconds if second >= max(oldest, first)]
        watermark = newest
        now = NOW + clock * S
        event_time = watermark  # the clock has not moved since the batch
        for length, width in ((12, 2), (60, 10), (300, 50)):
            begin = ((NOW // S + event_time) // width - 5) * width - NOW // S
            wanted = sum(second >= begin for second in kept)
            found = panes.total(now, Duration(f"{length}s"))
            assert int(found.counts.sum()) == wanted
        assert int(panes.lifetime().counts.sum()) == len(kept)


def test_panes_split_categories_and_missing_values_too():
    panes = window()
    times = pa.array([NOW, NOW + 15 * S, NOW + 15 * S], pa.timestamp("ns"))
    panes.update(
        records({"x": [None, 2.0, float("nan")], "c": ["a", None, "z"], "timestamp": times}, NOW + 20 * S)
    )
    total = panes.total(NOW + 20 * S)
    assert total.counts.sum() == 1
    assert total.tallies[0, :2].tolist() == [1, 1]
    assert total.categories[0].tolist() == [1, 0, 1]
    assert total.missing.tolist() == [1]


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_timestamps_of_every_unit(unit):
    scale = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[unit]
    times = pa.array([1_700_000_000 * scale, None, -(2**62)], pa.timestamp(unit, tz="UTC"))
    found = event_times(records({"x": [0.0] * 3, "timestamp": times}))
    assert found[:2].tolist() == [1_700_000_000 * S, NOW]
    assert found[2] < 0


def test_timestamps_as_numbers():
    whole = pa.array([5, None], pa.int64())
    assert event_times(records({"x": [0.0] * 2, "timestamp": whole})).tolist() == [5, NOW]
    seconds = pa.array([1.5, None, float("nan"), float("inf"), -1e300])
    found = event_times(records({"x": [0.0] * 5, "timestamp": seconds})).tolist()
    assert found[:3] == [1_500_000_000, NOW, NOW]
    assert found[3] > 9 * 10**18
    assert found[4] < -9 * 10**18


def test_without_a_timestamp_the_time_of_arrival_counts():
    assert event_times(records({"x": [1.0, 2.0]})).tolist() == [NOW, NOW]


def test_what_is_captured_has_the_rows_that_wait_to_be_folded():
    panes = window()
    panes.update(at(0, 1))
    state = panes.capture()
    panes.update(at(2))
    assert held(panes) == 3
    assert sum(int(pane.counts.sum()) for pane in state.panes.held.values()) == 2
    again = window()
    again.restore(state, anew=False)
    assert held(again) == 2


def test_an_all_future_batch_in_an_empty_window_changes_nothing():
    panes = window()
    assert panes.update(at(100)) == {"future": 1}
    assert held(panes) == 0
    assert panes.update(at(0)) == {}
