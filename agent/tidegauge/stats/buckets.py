"""Base-2 exponential histograms that others made, merged: both signs, any scale, a zero threshold.

As in OpenTelemetry's data model, bucket i of scale s holds the values in (base**i, base**(i + 1)], base =
2**(2**-s); of two histograms the finer one is brought to the other's scale, which adds pairs of buckets
and loses no count, and both further until each sign fits into 160 buckets. Of two zero thresholds the
larger counts; buckets below it join the zeros, and one that it cuts raises it to the bucket's upper bound.

What scale there is at the end, and each count, depends on the histograms and not on their order, zero
thresholds aside.
"""

from __future__ import annotations

import math

import numba
import numpy as np
import numpy.typing as npt
from numba import types

from tidegauge.stats.exponential import MAX_BUCKETS, MAX_SCALE
from tidegauge.stats.kernel import KERNEL, kernel

MIN_SCALE = -4
"""Prometheus' native histograms know the scales -4 to 8."""

MERGED = np.dtype(
    [
        ("counts", np.int64, (2, MAX_BUCKETS)),  # of positive values, and of the others' absolute ones
        ("offset", np.int64, (2,)),  # the lowest bucket of each
        ("buckets", np.int64, (2,)),
        ("scale", np.int64),
        ("zero_count", np.int64),
        ("zero_threshold", np.float64),
    ],
    align=True,
)
"""The histogram of one series; zeros, but for `scale`, are an empty one."""

MERGED_T = numba.from_dtype(MERGED)
_COUNTS_T = types.int64[::1]
_TWO = types.UniTuple(types.int64, 2)


def empty(series: int) -> npt.NDArray[np.void]:
    """`series` empty histograms: an array of MERGED."""
    histograms = np.zeros(series, MERGED)
    histograms["scale"] = MAX_SCALE
    return histograms


@kernel(types.void(MERGED_T), **KERNEL)
def clear(one):  # type: ignore[no-untyped-def]
    """Make it an empty one."""
    for side in range(2):
        for place in range(one.buckets[side]):
            one.counts[side, place] = 0
        one.offset[side] = 0
        one.buckets[side] = 0
    one.scale = MAX_SCALE
    one.zero_count = 0
    one.zero_threshold = 0.0


@kernel(_TWO(_COUNTS_T, types.int64), **KERNEL)
def _ends(counts, size):  # type: ignore[no-untyped-def]
    """The first and the last place with a count; the last before the first where there is none."""
    first, last = 0, size - 1
    while first <= last and counts[first] == 0:
        first += 1
    while last >= first and counts[last] == 0:
        last -= 1
    return first, last


@kernel(types.void(MERGED_T, types.int64), **KERNEL)
def _coarsen(one, by):  # type: ignore[no-untyped-def]
    """Halve the resolution `by` times. Buckets only move down, so this works in place."""
    for side in range(2):
        before, size = one.offset[side], one.buckets[side]
        offset = before >> by
        for place in range(size):
            count = one.counts[side, place]
            one.counts[side, place] = 0
            one.counts[side, ((before + place) >> by) - offset] += count
        if size > 0:
            one.buckets[side] = ((before + size - 1) >> by) - offset + 1
        one.offset[side] = offset
    one.scale -= by


@kernel(types.void(MERGED_T, types.int64, types.int64, types.int64), **KERNEL)
def _extend(one, side, low, high):  # type: ignore[no-untyped-def]
    """Let one side reach from `low` to `high` as well, which fits."""
    if one.buckets[side] == 0:
        one.offset[side] = low
    down = one.offset[side] - low
    if down > 0:
        for place in range(one.buckets[side] - 1, -1, -1):
            one.counts[side, place + down] = one.counts[side, place]
        for place in range(min(down, one.buckets[side])):
            one.counts[side, place] = 0
        one.offset[side] = low
        one.buckets[side] += down
    one.buckets[side] = max(one.buckets[side], high - one.offset[side] + 1)


@kernel(types.boolean(MERGED_T, types.int64, types.int64, types.int64, types.int64), **KERNEL)
def _fits(one, side, low, high, by):  # type: ignore[no-untyped-def]
    """Whether buckets `low` to `high`, none where high < low, fit in beside those there, `by` scales down."""
    if one.buckets[side] > 0:
        first, last = one.offset[side] >> by, (one.offset[side] + one.buckets[side] - 1) >> by
        if high >= low:
            first, last = min(first, low), max(last, high)
        low, high = first, last
    return high - low < MAX_BUCKETS


@kernel(types.float64(types.int64, types.int64), **KERNEL)
def lower_bound(scale, bucket):  # type: ignore[no-untyped-def]
    """base**bucket, rounded; 0 or infinity where it is beyond a double."""
    exponent = bucket * 2.0**-scale
    whole = math.floor(exponent)
    if whole > 1100:
        return np.inf
    if whole < -1100:
        return 0.0
    return math.ldexp(2.0 ** (exponent - whole), int(whole))


@kernel(types.void(MERGED_T, types.float64), **KERNEL)
def _raise_threshold(one, threshold):  # type: ignore[no-untyped-def]
    moved = True
    while moved:
        moved = False
        for side in range(2):
            place = 0
            while place < one.buckets[side]:
                bucket = one.offset[side] + place
                if lower_bound(one.scale, bucket) >= threshold:
                    break
                if one.counts[side, place] > 0:
                    one.zero_count += one.counts[side, place]
                    # A bucket that is cut raises the threshold, and so may cut one of the other sign.
                    above = lower_bound(one.scale, bucket + 1)
                    if above > threshold:
                        threshold = above
                        moved = True
                place += 1
            left = one.buckets[side] - place
            if place > 0:
                for at in range(left):
                    one.counts[side, at] = one.counts[side, at + place]
                for at in range(left, one.buckets[side]):
                    one.counts[side, at] = 0
                one.offset[side] += place
                one.buckets[side] = left
    one.zero_threshold = threshold


@kernel(
    types.boolean(
        MERGED_T,
        types.int64,
        _COUNTS_T,
        types.int64,
        types.int64,
        _COUNTS_T,
        types.int64,
        types.int64,
        types.int64,
        types.float64,
    ),
    **KERNEL,
)
def merge(  # type: ignore[no-untyped-def]
    one, scale, positive, offset, size, negative, negative_offset, negative_size, zero_count, zero_threshold
):
    """Add a histogram of `scale` whose counts are `positive[:size]` from `offset` on, and so on.

    False, and nothing is added, where the scale would have to be below -4.
    """
    first, last = _ends(positive, size)
    negative_first, negative_last = _ends(negative, negative_size)
    target = min(scale, one.scale)
    # Beyond 64 an index is 0 or -1 anyway, and a shift by more is undefined.
    by = min(scale - target, 63)
    while target >= MIN_SCALE:
        low, high = (offset + first) >> by, (offset + last) >> by
        negative_low, negative_high = (
            (negative_offset + negative_first) >> by,
            (negative_offset + negative_last) >> by,
        )
        if last < first:
            low, high = 0, -1
        if negative_last < negative_first:
            negative_low, negative_high = 0, -1
        down = one.scale - target
        if _fits(one, 0, low, high, down) and _fits(one, 1, negative_low, negative_high, down):
            break
        target -= 1
        by = min(by + 1, 63)
    if target < MIN_SCALE:
        return False
    if one.scale > target:
        _coarsen(one, one.scale - target)
    if last >= first:
        _extend(one, 0, low, high)
        for place in range(first, last + 1):
            one.counts[0, ((offset + place) >> by) - one.offset[0]] += positive[place]
    if negative_last >= negative_first:
        _extend(one, 1, negative_low, negative_high)
        for place in range(negative_first, negative_last + 1):
            one.counts[1, ((negative_offset + place) >> by) - one.offset[1]] += negative[place]
    one.zero_count += zero_count
    if zero_threshold != one.zero_threshold:
        _raise_threshold(one, max(zero_threshold, one.zero_threshold))
    return True
