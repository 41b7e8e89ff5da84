"""Folds data points into the state of their series: numbers here, the others in `distributions`."""

from __future__ import annotations

import numpy as np
from numba import types

from tidegauge.processors.admission import ANEW, GOES_ON, REPLACES, add, add_whole, admit, settle
from tidegauge.processors.distributions import SCRATCH_T, base2, explicit, quantiles
from tidegauge.processors.series import FREE, SERIES_T, STATE_T, TAKEN_BY_OVERFLOW, Reason, slot_of
from tidegauge.stats.kernel import KERNEL, kernel
from tidegauge.wire.metrics import POINT_T, Form, PointKind, Temporality
from tidegauge.wire.points import TOO_MANY, exponential, histogram, summary
from tidegauge.wire.protobuf import BYTES

# numba takes plain integers for constants of a kernel, not members of an enumeration.
_SUM, _HISTOGRAM, _EXPONENTIAL = (
    int(PointKind.SUM),
    int(PointKind.HISTOGRAM),
    int(PointKind.EXPONENTIAL_HISTOGRAM),
)
_DELTA, _CUMULATIVE = int(Temporality.DELTA), int(Temporality.CUMULATIVE)
_NO_FORM, _INT = int(Form.NONE), int(Form.INT)
_UNTIMED, _OUT_OF_ORDER, _, _INVALID, _, _TOO_MANY, _, _METRIC_LIMIT, _OVERFLOW = map(int, Reason)

UNKNOWN = -1
"""Instead of a number of cells: the key is new."""

_NO_RECORDED_VALUE = 1

_COUNTS_T = types.int64[::1]


@kernel(types.void(SERIES_T), **KERNEL)
def _zero(one):  # type: ignore[no-untyped-def]
    one.whole = 0
    one.value = one.carry = 0.0


@kernel(types.int64(SERIES_T, POINT_T), **KERNEL)
def _number(one, point):  # type: ignore[no-untyped-def]
    whole = np.int64(point.bits)
    is_whole = point.form == _INT
    value = np.float64(whole) if is_whole else whole.view(np.float64)
    accumulates = point.kind == _SUM and point.temporality == _DELTA
    if point.form == _NO_FORM:
        return -1 - _INVALID
    # Not (value >= 0) is NaN as well.
    if (point.is_monotonic and not value >= 0) or (
        (point.is_monotonic or accumulates) and not np.isfinite(value)
    ):
        return -1 - _INVALID
    admitted = admit(one, point)
    if admitted < 0:
        return admitted
    fell = False
    if admitted == REPLACES and point.is_monotonic:
        fell = whole < one.whole if is_whole and one.value == 0 else value < one.value + one.whole
    if not (accumulates and admitted == GOES_ON):
        _zero(one)
    if is_whole:
        add_whole(one, whole)
    elif accumulates:
        add(one, value)
    else:
        one.value = value
    settle(one, point, admitted, fell)
    return 0


@kernel(types.int64(STATE_T, SERIES_T, types.int64, POINT_T, types.uint64), **KERNEL)
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
    add(one, value if point.is_monotonic and grown < 0 else grown)
    entry.last = value
    entry.time_ns = point.time_ns
    settle(one, point, GOES_ON if one.is_shown else ANEW, False)
    return 0


@kernel(types.int64(BYTES, POINT_T, STATE_T, SERIES_T, types.int64, types.uint64, SCRATCH_T), **KERNEL)
def _fold_point(buf, point, state, one, slot, since_ns, scratch):  # type: ignore[no-untyped-def]
    if point.kind == _SUM and one.is_overflow and point.temporality != _DELTA:
        return _overflowing_sum(state, one, slot, point, since_ns)
    if point.kind <= _SUM:
        return _number(one, point)
    begin, end = np.int64(point.offset), np.int64(point.offset) + np.int64(point.length)
    reading = scratch.reading[0]
    if point.kind == _HISTOGRAM:
        error = histogram(buf, begin, end, scratch.counts, scratch.floats, reading)
        result = explicit(state, one, point, scratch) if error >= 0 else 0
    elif point.kind == _EXPONENTIAL:
        error = exponential(buf, begin, end, scratch.counts, scratch.negative, reading)
        result = base2(state, one, point, scratch) if error >= 0 else 0
    else:
        error = summary(buf, begin, end, scratch.floats, reading)
        result = quantiles(state, one, point, scratch) if error >= 0 else 0
    if error < 0:
        return -1 - (_TOO_MANY if error == TOO_MANY else _INVALID)
    return result


@kernel(types.boolean(SERIES_T, POINT_T), **KERNEL)
def _withdraw(one, point):  # type: ignore[no-untyped-def]
    """Take a series off the page, for its sender says that it has no value any more."""
    if one.is_overflow or point.time_ns < one.time_ns:
        return one.is_overflow
    one.is_shown = False
    one.is_touched = True
    one.time_ns = point.time_ns
    return True


@kernel(types.UniTuple(types.int64, 2)(STATE_T, POINT_T, types.boolean, types.boolean), **KERNEL)
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


@kernel(
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
    **KERNEL,
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
