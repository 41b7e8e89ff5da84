"""Folds data points into the state of their series: what is delta is made cumulative, in order.

Rules (OpenTelemetry metrics data model, "Resets and Gaps", "Overlap", "Sums: Delta-to-Cumulative"). A
delta point not after the last one is dropped, and so is a cumulative one before it. A gap between deltas
is a time in which nothing is known to have happened, so the sum goes on. Of deltas that overlap in part,
as after a clock was set back, each counts whole: a sum has no parts. A new start time begins the series
anew, and an earlier one than the series' is another sender's. A counter that falls without one was
reset at some time after its last point.

A fold returns 0, or `-1 - reason`, or the cells that the series lacks, and then it has changed nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np
import numpy.typing as npt
from numba import njit, types

from tidegauge.processors.series import (
    FREE,
    MOST_BUCKETS,
    SERIES_T,
    STATE_T,
    TAKEN_BY_OVERFLOW,
    Reason,
    slot_of,
)
from tidegauge.stats.buckets import MERGED_T, clear, merge
from tidegauge.wire.metrics import POINT_T, Data, Form, Temporality
from tidegauge.wire.points import READING, READING_T, TOO_MANY, exponential, histogram, summary
from tidegauge.wire.protobuf import BYTES

# numba takes plain integers for constants of a kernel, not members of an enumeration.
_GAUGE, _SUM, _HISTOGRAM, _EXPONENTIAL, _SUMMARY = map(int, Data)
_DELTA, _CUMULATIVE = int(Temporality.DELTA), int(Temporality.CUMULATIVE)
_NO_FORM, _INT = int(Form.NONE), int(Form.INT)
_UNTIMED, _OUT_OF_ORDER, _OVERLAP, _INVALID, _SCALE, _TOO_MANY, _, _METRIC_LIMIT, _OVERFLOW = map(int, Reason)

UNKNOWN = -1
"""Instead of a number of cells: the key is new."""

_ANEW, _GOES_ON, _REPLACES = 0, 1, 2
_NO_RECORDED_VALUE = 1
_LARGEST = 2**62
_MOST_EXPONENTIAL = 2048

_KERNEL = {"cache": True, "nogil": True, "_nrt": False}
_COUNTS_T, _FLOATS_T = types.int64[::1], types.float64[::1]


class Scratch(NamedTuple):
    """Where a histogram's lists are read to."""

    counts: npt.NDArray[np.int64]
    negative: npt.NDArray[np.int64]
    floats: npt.NDArray[np.float64]
    reading: npt.NDArray[np.void]

    @classmethod
    def empty(cls) -> Scratch:
        """Room for the largest histogram that is taken."""
        size = _MOST_EXPONENTIAL
        return cls(np.zeros(size, np.int64), np.zeros(size, np.int64), np.zeros(size), np.zeros(1, READING))


SCRATCH_T = types.NamedTuple((_COUNTS_T, _COUNTS_T, _FLOATS_T, numba.from_dtype(READING)[::1]), Scratch)


@njit(types.int64(SERIES_T, POINT_T), **_KERNEL)
def _admit(one, point):  # type: ignore[no-untyped-def]
    """How a point stands to its series: _ANEW, _GOES_ON, _REPLACES, or `-1 - reason`."""
    is_gauge, is_delta = point.data == _GAUGE, point.temporality == _DELTA
    if not (is_gauge or point.data == _SUMMARY or point.temporality != 0):
        return -1 - _INVALID
    if one.is_overflow and not is_gauge:
        admitted = _GOES_ON if one.is_shown else _ANEW
        return admitted if is_delta else -1 - _OVERFLOW
    if point.time_ns < one.time_ns:
        return -1 - _OUT_OF_ORDER
    knows_start = not (is_gauge or is_delta) and point.start_ns != 0 and one.sent_start_ns != 0
    is_later = knows_start and point.start_ns > one.sent_start_ns
    if not one.is_shown or point.temporality != one.temporality or is_later:
        return _ANEW
    if is_delta:
        return _GOES_ON if point.time_ns > one.time_ns else -1 - _OUT_OF_ORDER
    return -1 - _OVERLAP if knows_start and point.start_ns < one.sent_start_ns else _REPLACES


@njit(types.void(SERIES_T, POINT_T, types.int64, types.boolean), **_KERNEL)
def _settle(one, point, admitted, fell):  # type: ignore[no-untyped-def]
    """Note when a point was taken and from when the series counts."""
    if admitted == _ANEW:
        one.start_ns = point.start_ns
    elif fell:
        one.start_ns = one.time_ns
    one.sent_start_ns = point.start_ns
    one.time_ns = max(one.time_ns, point.time_ns)
    one.temporality = point.temporality
    one.is_shown = one.is_touched = True


@njit(types.void(SERIES_T, types.float64), **_KERNEL)
def _add(one, value):  # type: ignore[no-untyped-def]
    """Add to `value`, and to `carry` what the sum loses in rounding (Neumaier 1974)."""
    total = one.value + value
    larger, smaller = (one.value, value) if abs(one.value) >= abs(value) else (value, one.value)
    lost = (larger - total) + smaller
    if np.isfinite(lost):
        one.carry += lost
    one.value = total


@njit(types.void(SERIES_T, types.int64), **_KERNEL)
def _add_whole(one, value):  # type: ignore[no-untyped-def]
    """Add an integer exactly; what would leave 64 bits moves on to the doubles."""
    total = one.whole + value
    if (one.whole ^ total) & (value ^ total) < 0:
        _add(one, np.float64(one.whole))
        total = value
    one.whole = total


@njit(types.void(SERIES_T), **_KERNEL)
def _zero(one):  # type: ignore[no-untyped-def]
    one.whole = 0
    one.value = one.carry = 0.0


@njit(types.int64(SERIES_T, POINT_T), **_KERNEL)
def _number(one, point):  # type: ignore[no-untyped-def]
    whole = np.int64(point.bits)
    is_whole = point.form == _INT
    value = np.float64(whole) if is_whole else whole.view(np.float64)
    accumulates = point.data == _SUM and point.temporality == _DELTA
    if point.form == _NO_FORM:
        return -1 - _INVALID
    # Not (value >= 0) is NaN as well.
    if (point.is_monotonic and not value >= 0) or (
        (point.is_monotonic or accumulates) and not np.isfinite(value)
    ):
        return -1 - _INVALID
    admitted = _admit(one, point)
    if admitted < 0:
        return admitted
    fell = False
    if admitted == _REPLACES and point.is_monotonic:
        fell = whole < one.whole if is_whole and one.value == 0 else value < one.value + one.whole
    if not (accumulates and admitted == _GOES_ON):
        _zero(one)
    if is_whole:
        _add_whole(one, whole)
    elif accumulates:
        _add(one, value)
    else:
        one.value = value
    _settle(one, point, admitted, fell)
    return 0


@njit(types.int64(STATE_T, SERIES_T, types.int64, POINT_T, types.uint64), **_KERNEL)
def _overflowing_sum(state, one, slot, point, since_ns):  # type: ignore[no-untyped-def]
    """Add to an overflow series what a cumulative sum grew by; its slot of the table has its last value.

    A first value counts where the sum began at `since_ns` or later: else nobody knows how much of it has
    been counted before.
    """
    entry = state.table[slot]
    whole = np.int64(point.bits)
    value = np.float64(whole) if point.form == _INT else whole.view(np.float64)
    if point.form == _NO_FORM or not np.isfinite(value) or (point.is_monotonic and value < 0):
        return -1 - _INVALID
    if entry.key != point.key or point.temporality != _CUMULATIVE:
        return -1 - (_OVERFLOW if point.temporality == _CUMULATIVE else _INVALID)
    if point.time_ns < entry.time_ns:
        return -1 - _OUT_OF_ORDER
    grown = value - entry.last
    if entry.time_ns == 0 and point.start_ns < since_ns:
        grown = 0.0
    _add(one, value if point.is_monotonic and grown < 0 else grown)
    entry.last = value
    entry.time_ns = point.time_ns
    _settle(one, point, _GOES_ON if one.is_shown else _ANEW, False)
    return 0


@njit(types.int64(_COUNTS_T, types.int64), **_KERNEL)
def _count(counts, size):  # type: ignore[no-untyped-def]
    """The sum of counts, or -1 where it cannot be trusted."""
    total = 0
    for index in range(size):
        if not (0 <= counts[index] <= _LARGEST and total <= _LARGEST):
            return -1
        total += counts[index]
    return total if total <= _LARGEST else -1


@njit(types.int64(READING_T, _COUNTS_T, _FLOATS_T), **_KERNEL)
def _observations(reading, counts, bounds):  # type: ignore[no-untyped-def]
    """How many an explicit histogram holds; or `-1 - reason`: its bounds must be finite and ascend."""
    if reading.counts > MOST_BUCKETS or reading.bounds > MOST_BUCKETS:
        return -1 - _TOO_MANY
    if reading.counts != reading.bounds + 1:
        return -1 - _INVALID
    for index in range(reading.bounds):
        if not np.isfinite(bounds[index]) or (index > 0 and not bounds[index - 1] < bounds[index]):
            return -1 - _INVALID
    total = _count(counts, reading.counts)
    return total if total >= 0 else -1 - _INVALID


@njit(types.boolean(STATE_T, SERIES_T, READING_T, _FLOATS_T), **_KERNEL)
def _same_bounds(state, one, reading, bounds):  # type: ignore[no-untyped-def]
    at, index = one.cells + one.buckets, 0
    while one.buckets == reading.counts and index < reading.bounds:
        if state.floats[at + index] != bounds[index]:
            break
        index += 1
    return one.buckets == reading.counts and index == reading.bounds


@njit(types.void(SERIES_T, READING_T, types.int64, types.boolean), **_KERNEL)
def _totals(one, reading, count, adds):  # type: ignore[no-untyped-def]
    """Count, sum, least and greatest; a sum or an extreme that is missing once is missing from then on."""
    if adds:
        one.whole += count
        _add(one, reading.sum)
        # min and max of Python leave a NaN that comes second unnoticed.
        is_known = one.min == one.min and reading.min == reading.min
        one.min = min(one.min, reading.min) if is_known else np.nan
        is_known = one.max == one.max and reading.max == reading.max
        one.max = max(one.max, reading.max) if is_known else np.nan
    else:
        one.whole = count
        one.value = reading.sum
        one.carry = 0.0
        one.min = reading.min
        one.max = reading.max


@njit(types.int64(STATE_T, SERIES_T, POINT_T, SCRATCH_T), **_KERNEL)
def _explicit(state, one, point, scratch):  # type: ignore[no-untyped-def]
    reading, counts, bounds = scratch.reading[0], scratch.counts, scratch.floats
    if reading.counts == 0 and reading.bounds == 0:
        # Only the number of observations was sent: one bucket without bounds.
        counts[0] = np.int64(point.bits)
        reading.counts = 1
    total = _observations(reading, counts, bounds)
    admitted = _admit(one, point) if total >= 0 else total
    if admitted < 0:
        return admitted
    if one.is_shown and not _same_bounds(state, one, reading, bounds):
        if one.is_overflow:
            return -1 - _OVERFLOW
        admitted = _ANEW
    if 2 * reading.counts - 1 > one.room:
        return 2 * reading.counts - 1
    adds = admitted == _GOES_ON
    if adds and one.whole + total > _LARGEST:
        return -1 - _INVALID
    for index in range(reading.counts):
        before = state.cells[one.cells + index] if adds else 0
        state.cells[one.cells + index] = before + counts[index]
    for index in range(reading.bounds):
        state.floats[one.cells + reading.counts + index] = bounds[index]
    fell = admitted == _REPLACES and total < one.whole
    one.buckets = reading.counts
    _totals(one, reading, total, adds)
    _settle(one, point, admitted, fell)
    return 0


@njit(types.int64(MERGED_T, READING_T, _COUNTS_T, _COUNTS_T), **_KERNEL)
def _merge(one, reading, positive, negative):  # type: ignore[no-untyped-def]
    merged = merge(
        one,
        reading.scale,
        positive,
        reading.offset,
        reading.counts,
        negative,
        reading.negative_offset,
        reading.negative_counts,
        np.int64(reading.zero_count),
        reading.zero_threshold,
    )
    return 0 if merged else -1 - _SCALE


@njit(types.int64(STATE_T, SERIES_T, POINT_T, SCRATCH_T), **_KERNEL)
def _exponential(state, one, point, scratch):  # type: ignore[no-untyped-def]
    reading = scratch.reading[0]
    positive = _count(scratch.counts, reading.counts)
    negative = _count(scratch.negative, reading.negative_counts)
    zeros = np.int64(reading.zero_count)
    total = positive + negative + zeros
    # A sum of three that are at most 2**62 each may wrap to below 0, not to what would pass.
    is_sound = min(positive, negative, zeros, total) >= 0 and max(zeros, total) <= _LARGEST
    is_sound = is_sound and 0 <= reading.zero_threshold < np.inf
    admitted = _admit(one, point) if is_sound else -1 - _INVALID
    if admitted < 0:
        return admitted
    if one.cells < 0:
        return 1
    adds = admitted == _GOES_ON
    if adds and one.whole + total > _LARGEST:
        return -1 - _INVALID
    if adds:
        error = _merge(state.exponentials[one.cells], reading, scratch.counts, scratch.negative)
    else:
        # Aside, so that the series keeps what it has where this one cannot be held.
        aside = state.exponentials[0]
        clear(aside)
        error = _merge(aside, reading, scratch.counts, scratch.negative)
        if error == 0:
            state.exponentials[one.cells] = aside
    if error < 0:
        return error
    fell = admitted == _REPLACES and total < one.whole
    _totals(one, reading, total, adds)
    _settle(one, point, admitted, fell)
    return 0


@njit(types.int64(STATE_T, SERIES_T, POINT_T, SCRATCH_T), **_KERNEL)
def _summary(state, one, point, scratch):  # type: ignore[no-untyped-def]
    reading = scratch.reading[0]
    count = np.int64(point.bits)
    if reading.counts > MOST_BUCKETS:
        return -1 - _TOO_MANY
    admitted = _admit(one, point) if 0 <= count <= _LARGEST else -1 - _INVALID
    if admitted < 0:
        return admitted
    if 2 * reading.counts > one.room:
        return 2 * reading.counts
    for index in range(2 * reading.counts):
        state.floats[one.cells + index] = scratch.floats[index]
    fell = admitted == _REPLACES and count < one.whole
    one.buckets = reading.counts
    _totals(one, reading, count, False)
    _settle(one, point, admitted, fell)
    return 0


@njit(types.int64(BYTES, POINT_T, STATE_T, SERIES_T, types.int64, types.uint64, SCRATCH_T), **_KERNEL)
def _fold_point(buf, point, state, one, slot, since_ns, scratch):  # type: ignore[no-untyped-def]
    if point.data == _SUM and one.is_overflow and point.temporality != _DELTA:
        return _overflowing_sum(state, one, slot, point, since_ns)
    if point.data <= _SUM:
        return _number(one, point)
    begin, end = np.int64(point.offset), np.int64(point.offset) + np.int64(point.length)
    reading = scratch.reading[0]
    if point.data == _HISTOGRAM:
        error = histogram(buf, begin, end, scratch.counts, scratch.floats, reading)
        result = _explicit(state, one, point, scratch) if error >= 0 else 0
    elif point.data == _EXPONENTIAL:
        error = exponential(buf, begin, end, scratch.counts, scratch.negative, reading)
        result = _exponential(state, one, point, scratch) if error >= 0 else 0
    else:
        error = summary(buf, begin, end, scratch.floats, reading)
        result = _summary(state, one, point, scratch) if error >= 0 else 0
    if error < 0:
        return -1 - (_TOO_MANY if error == TOO_MANY else _INVALID)
    return result


@njit(types.boolean(SERIES_T, POINT_T), **_KERNEL)
def _withdraw(one, point):  # type: ignore[no-untyped-def]
    """Take a series off the page, for its sender says that it has no value any more."""
    if one.is_overflow or point.time_ns < one.time_ns:
        return one.is_overflow
    one.is_shown = False
    one.is_touched = True
    one.time_ns = point.time_ns
    return True


@njit(types.UniTuple(types.int64, 2)(STATE_T, POINT_T, types.boolean, types.boolean), **_KERNEL)
def _find(state, point, full, no_more_keys):  # type: ignore[no-untyped-def]
    """The slot of a point's key, or where the table is `full` of its family's key, and what is there."""
    slot = slot_of(state.table, point.key)
    row = state.table[slot].series
    if row == FREE and full:
        slot = slot_of(state.table, point.family)
        row = state.table[slot].series
        if row == FREE and no_more_keys:
            row = -2 - _METRIC_LIMIT
    return slot, row


@njit(
    types.UniTuple(types.int64, 2)(
        BYTES,
        types.Array(POINT_T, 1, "C", readonly=True),
        types.int64,
        types.boolean,
        types.boolean,
        types.uint64,
        STATE_T,
        SCRATCH_T,
        _COUNTS_T,
        types.int32[::1],
    ),
    **_KERNEL,
)
def fold(buf, points, begin, full, no_more_keys, since_ns, state, scratch, tally, rows):  # type: ignore[no-untyped-def]
    """Fold points from `begin` on: (the first that needs help, the cells that it lacks or UNKNOWN).

    `tally` counts points by Reason, and behind them those that went to an overflow series; `rows[i]`
    becomes the row of SERIES that took point i. With a table that is `full` an unknown key goes where its
    family's key leads; with `no_more_keys` at all, nowhere. `since_ns`: see `_overflowing_sum`.
    """
    for place in range(begin, points.size):
        point = points[place]
        rows[place] = -1
        if point.time_ns == 0:
            tally[_UNTIMED] += 1
            continue
        slot, row = _find(state, point, full, no_more_keys)
        if row == FREE:
            if point.flags & _NO_RECORDED_VALUE:
                continue
            return place, UNKNOWN
        if row < 0:
            tally[-2 - row] += 1
            continue
        state.table[slot].is_used = True
        one = state.series[row]
        if point.flags & _NO_RECORDED_VALUE:
            if not _withdraw(one, point):
                tally[_OUT_OF_ORDER] += 1
            continue
        result = _fold_point(buf, point, state, one, slot, since_ns, scratch)
        if result > 0:
            return place, result
        if result < 0:
            tally[-1 - result] += 1
            continue
        if one.is_overflow:
            tally[TAKEN_BY_OVERFLOW] += 1
        rows[place] = row
    return points.size, 0
