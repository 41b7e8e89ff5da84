"""Folds histograms and summaries into the state of their series, by the rules of `admission`.

A fold returns 0, or `-1 - reason`, or the cells that the series lacks, and then it has changed nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np
import numpy.typing as npt
from numba import types

from tidegauge.processors.admission import ANEW, GOES_ON, REPLACES, add, admit, settle
from tidegauge.processors.series import MOST_BUCKETS, SERIES_T, STATE_T, Reason
from tidegauge.stats.buckets import MERGED_T, clear, merge
from tidegauge.stats.kernel import KERNEL, kernel
from tidegauge.wire.metrics import POINT_T
from tidegauge.wire.points import READING, READING_T

_INVALID, _SCALE = int(Reason.INVALID), int(Reason.SCALE)
_TOO_MANY, _OVERFLOW = int(Reason.TOO_MANY_BUCKETS), int(Reason.OVERFLOW)

_LARGEST = 2**62
_MOST_EXPONENTIAL = 2048

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


@kernel(types.int64(_COUNTS_T, types.int64), **KERNEL)
def _count(counts, size):  # type: ignore[no-untyped-def]
    """The sum of counts, or -1 where it cannot be trusted."""
    total = 0
    for index in range(size):
        if not (0 <= counts[index] <= _LARGEST and total <= _LARGEST):
            return -1
        total += counts[index]
    return total if total <= _LARGEST else -1


@kernel(types.int64(READING_T, _COUNTS_T, _FLOATS_T), **KERNEL)
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


@kernel(types.boolean(STATE_T, SERIES_T, READING_T, _FLOATS_T), **KERNEL)
def _same_bounds(state, one, reading, bounds):  # type: ignore[no-untyped-def]
    at, index = one.cells + one.buckets, 0
    while one.buckets == reading.counts and index < reading.bounds:
        if state.floats[at + index] != bounds[index]:
            break
        index += 1
    return one.buckets == reading.counts and index == reading.bounds


@kernel(types.void(SERIES_T, READING_T, types.int64, types.boolean), **KERNEL)
def _totals(one, reading, count, adds):  # type: ignore[no-untyped-def]
    """Count, sum, least and greatest; a sum or an extreme that is missing once is missing from then on."""
    if adds:
        one.whole += count
        add(one, reading.sum)
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


@kernel(types.int64(STATE_T, SERIES_T, POINT_T, SCRATCH_T), **KERNEL)
def explicit(state, one, point, scratch):  # type: ignore[no-untyped-def]
    reading, counts, bounds = scratch.reading[0], scratch.counts, scratch.floats
    if reading.counts == 0 and reading.bounds == 0:
        # Only the number of observations was sent: one bucket without bounds.
        counts[0] = np.int64(point.bits)
        reading.counts = 1
    total = _observations(reading, counts, bounds)
    admitted = admit(one, point) if total >= 0 else total
    if admitted < 0:
        return admitted
    if one.is_shown and not _same_bounds(state, one, reading, bounds):
        if one.is_overflow:
            return -1 - _OVERFLOW
        admitted = ANEW
    if 2 * reading.counts - 1 > one.room:
        return 2 * reading.counts - 1
    adds = admitted == GOES_ON
    if adds and one.whole + total > _LARGEST:
        return -1 - _INVALID
    for index in range(reading.counts):
        before = state.cells[one.cells + index] if adds else 0
        state.cells[one.cells + index] = before + counts[index]
    for index in range(reading.bounds):
        state.floats[one.cells + reading.counts + index] = bounds[index]
    fell = admitted == REPLACES and total < one.whole
    one.buckets = reading.counts
    _totals(one, reading, total, adds)
    settle(one, point, admitted, fell)
    return 0


@kernel(types.int64(MERGED_T, READING_T, _COUNTS_T, _COUNTS_T), **KERNEL)
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


@kernel(types.int64(STATE_T, SERIES_T, POINT_T, SCRATCH_T), **KERNEL)
def base2(state, one, point, scratch):  # type: ignore[no-untyped-def]
    reading = scratch.reading[0]
    positive = _count(scratch.counts, reading.counts)
    negative = _count(scratch.negative, reading.negative_counts)
    zeros = np.int64(reading.zero_count)
    total = positive + negative + zeros
    # A sum of three that are at most 2**62 each may wrap to below 0, not to what would pass.
    is_sound = min(positive, negative, zeros, total) >= 0 and max(zeros, total) <= _LARGEST
    is_sound = is_sound and 0 <= reading.zero_threshold < np.inf
    admitted = admit(one, point) if is_sound else -1 - _INVALID
    if admitted < 0:
        return admitted
    if one.cells < 0:
        return 1
    adds = admitted == GOES_ON
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
    fell = admitted == REPLACES and total < one.whole
    _totals(one, reading, total, adds)
    settle(one, point, admitted, fell)
    return 0


@kernel(types.int64(STATE_T, SERIES_T, POINT_T, SCRATCH_T), **KERNEL)
def quantiles(state, one, point, scratch):  # type: ignore[no-untyped-def]
    reading = scratch.reading[0]
    count = np.int64(point.bits)
    if reading.counts > MOST_BUCKETS:
        return -1 - _TOO_MANY
    admitted = admit(one, point) if 0 <= count <= _LARGEST else -1 - _INVALID
    if admitted < 0:
        return admitted
    if 2 * reading.counts > one.room:
        return 2 * reading.counts
    for index in range(2 * reading.counts):
        state.floats[one.cells + index] = scratch.floats[index]
    fell = admitted == REPLACES and count < one.whole
    one.buckets = reading.counts
    _totals(one, reading, count, False)
    settle(one, point, admitted, fell)
    return 0
