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

import numpy as np
from numba import types

from tidegauge.processors.series import SERIES_T, Reason
from tidegauge.stats.kernel import KERNEL, kernel
from tidegauge.wire.metrics import POINT_T, PointKind, Temporality

ANEW, GOES_ON, REPLACES = 0, 1, 2
"""How a point stands to its series: it begins it anew, is added, or takes the place of the last."""

# numba takes plain integers for constants of a kernel, not members of an enumeration.
_GAUGE, _SUMMARY, _DELTA = int(PointKind.GAUGE), int(PointKind.SUMMARY), int(Temporality.DELTA)
_OUT_OF_ORDER, _OVERLAP = int(Reason.OUT_OF_ORDER), int(Reason.OVERLAP)
_INVALID, _OVERFLOW = int(Reason.INVALID), int(Reason.OVERFLOW)


@kernel(types.int64(SERIES_T, POINT_T), **KERNEL)
def admit(one, point):  # type: ignore[no-untyped-def]
    """How a point stands to its series: ANEW, GOES_ON, REPLACES, or `-1 - reason`."""
    is_gauge, is_delta = point.kind == _GAUGE, point.temporality == _DELTA
    if not (is_gauge or point.kind == _SUMMARY or point.temporality != 0):
        return -1 - _INVALID
    if one.is_overflow and not is_gauge:
        admitted = GOES_ON if one.is_shown else ANEW
        return admitted if is_delta else -1 - _OVERFLOW
    if point.time_ns < one.time_ns:
        return -1 - _OUT_OF_ORDER
    knows_start = not (is_gauge or is_delta) and point.start_ns != 0 and one.sent_start_ns != 0
    is_later = knows_start and point.start_ns > one.sent_start_ns
    if not one.is_shown or point.temporality != one.temporality or is_later:
        return ANEW
    if is_delta:
        return GOES_ON if point.time_ns > one.time_ns else -1 - _OUT_OF_ORDER
    return -1 - _OVERLAP if knows_start and point.start_ns < one.sent_start_ns else REPLACES


@kernel(types.void(SERIES_T, POINT_T, types.int64, types.boolean), **KERNEL)
def settle(one, point, admitted, fell):  # type: ignore[no-untyped-def]
    """Note when a point was taken and from when the series counts."""
    if admitted == ANEW:
        one.start_ns = point.start_ns
    elif fell:
        one.start_ns = one.time_ns
    one.sent_start_ns = point.start_ns
    one.time_ns = max(one.time_ns, point.time_ns)
    one.temporality = point.temporality
    one.is_shown = one.is_touched = True


@kernel(types.void(SERIES_T, types.float64), **KERNEL)
def add(one, value):  # type: ignore[no-untyped-def]
    """Add to `value`, and to `carry` what the sum loses in rounding (Neumaier 1974)."""
    total = one.value + value
    larger, smaller = (one.value, value) if abs(one.value) >= abs(value) else (value, one.value)
    lost = (larger - total) + smaller
    if np.isfinite(lost):
        one.carry += lost
    one.value = total


@kernel(types.void(SERIES_T, types.int64), **KERNEL)
def add_whole(one, value):  # type: ignore[no-untyped-def]
    """Add an integer exactly; what would leave 64 bits moves on to the doubles."""
    total = one.whole + value
    if (one.whole ^ total) & (value ^ total) < 0:
        add(one, np.float64(one.whole))
        total = value
    one.whole = total
