"""OpenTelemetry's base-2 exponential histogram, for many series at once.

Bucket i of scale s holds the values in (base**i, base**(i + 1)], base = 2**(2**-s); zeros are counted
apart (OpenTelemetry metrics data model, "ExponentialHistogram"). A series starts at scale 8 and halves
its resolution whenever its values no longer fit into 160 buckets, so the scale, and with it every count,
depends on the values alone: not on their order, nor on how they were split and merged.

The index is exact for every positive double, powers of two, subnormals and the largest double included.
A boundary inside an octave is irrational, so no double lies on it, and comparing with the largest double
below it is comparing with the boundary itself. Coarser scales are arithmetic shifts of scale 8.

**Guarantee.** A quantile of the values is returned within a relative error of (base - 1) / (base + 1),
rounding aside, wherever it is a normal double: 0.14 % at scale 8, 2.2 % at 4, 17 % at 1. It is DDSketch's
guarantee (Masson, Rim, Lee 2019) with gamma = base.

Durations in whole nanoseconds span 63 octaves, so 160 buckets hold them at scale 1 or finer, and buckets
whose bounds are powers of sqrt(2) are exact views of them: `explicit_bounds`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numba
import numpy as np
import numpy.typing as npt
from numba import types

from tidegauge.stats.kernel import KERNEL, kernel

MAX_SCALE = 8
MAX_BUCKETS = 160
"""As in OpenTelemetry's SDKs."""

ZERO = -(2**62)
"""Stands below every bucket for the value 0."""

HISTOGRAM = np.dtype(
    [
        ("counts", np.int64, (MAX_BUCKETS,)),  # of the buckets from `offset` on
        ("offset", np.int64),  # the lowest bucket with a count
        ("buckets", np.int64),  # as far as the highest with a count; 0 where there is none
        ("scale", np.int64),
        ("zero_count", np.int64),
        ("sum", np.float64),
        ("min", np.float64),
        ("max", np.float64),
    ],
    align=True,
)
"""The histogram of one series; an array of them is the histograms of many."""


def _boundary(index: int, root: int) -> int:
    """floor(2**(index / root) * 2**52): what a double's 53-bit significand must exceed."""
    power = 1 << (index + 52 * root)
    for _ in range(root.bit_length() - 1):
        power = math.isqrt(power)
    return power


_PER_OCTAVE = 2**MAX_SCALE
_HIDDEN = 2**52
_BOUNDARIES = np.array([_boundary(index, _PER_OCTAVE) - _HIDDEN for index in range(_PER_OCTAVE + 1)])
# 512 cells are narrower than the narrowest bucket, so a cell has at most one boundary inside.
_CELLS = 2 * _PER_OCTAVE
_FIRST = np.searchsorted(_BOUNDARIES, np.arange(_CELLS) << (52 - MAX_SCALE - 1), side="left") - 1

HISTOGRAM_T = numba.from_dtype(HISTOGRAM)


def empty(series: int) -> npt.NDArray[np.void]:
    """`series` empty histograms: an array of HISTOGRAM."""
    histograms = np.zeros(series, HISTOGRAM)
    histograms["scale"] = MAX_SCALE
    histograms["min"] = np.inf
    histograms["max"] = -np.inf
    return histograms


@kernel(types.int64(types.float64), **KERNEL)
def index(value):  # type: ignore[no-untyped-def]
    """The bucket of a positive, finite double at scale 8."""
    bits = np.float64(value).view(np.int64)
    exponent = (bits >> 52) - 1023
    mantissa = bits & (_HIDDEN - 1)
    if exponent == -1023:  # subnormal: shift up to the hidden bit
        exponent += 1
        while mantissa < _HIDDEN:
            mantissa <<= 1
            exponent -= 1
        mantissa -= _HIDDEN
    bucket = _FIRST[mantissa >> (52 - MAX_SCALE - 1)]
    if mantissa > _BOUNDARIES[bucket + 1]:
        bucket += 1
    return (exponent << MAX_SCALE) + bucket


@kernel(types.void(HISTOGRAM_T, types.int64), **KERNEL)
def _coarsen(histogram, by):  # type: ignore[no-untyped-def]
    """Halve the resolution `by` times. Buckets only move down, so this works in place."""
    offset = histogram.offset >> by
    for place in range(histogram.buckets):
        count = histogram.counts[place]
        histogram.counts[place] = 0
        histogram.counts[((histogram.offset + place) >> by) - offset] += count
    if histogram.buckets > 0:
        histogram.buckets = ((histogram.offset + histogram.buckets - 1) >> by) - offset + 1
    histogram.offset = offset
    histogram.scale -= by


@kernel(types.void(HISTOGRAM_T, types.int64), **KERNEL)
def _extend(histogram, bucket):  # type: ignore[no-untyped-def]
    """Let the counts reach down or up to `bucket`, which fits."""
    if histogram.buckets == 0:
        histogram.offset = bucket
    down = histogram.offset - bucket
    if down > 0:
        for place in range(histogram.buckets - 1, -1, -1):
            histogram.counts[place + down] = histogram.counts[place]
        for place in range(min(down, histogram.buckets)):
            histogram.counts[place] = 0
        histogram.offset = bucket
        histogram.buckets += down
    histogram.buckets = max(histogram.buckets, bucket - histogram.offset + 1)


@kernel(types.void(HISTOGRAM_T, types.int64, types.int64, types.int64), **KERNEL)
def _count(histogram, scale, bucket, count):  # type: ignore[no-untyped-def]
    """Add `count` to a bucket of `scale`, coarsening whichever is finer, and both until all fits."""
    if scale < histogram.scale:
        _coarsen(histogram, histogram.scale - scale)
    bucket >>= scale - histogram.scale
    place = bucket - histogram.offset
    if place < 0 or place >= histogram.buckets:
        low = high = bucket
        if histogram.buckets > 0:
            low = min(low, histogram.offset)
            high = max(high, histogram.offset + histogram.buckets - 1)
        by = 0
        while (high >> by) - (low >> by) >= MAX_BUCKETS:
            by += 1
        if by > 0:
            _coarsen(histogram, by)
            bucket >>= by
        _extend(histogram, bucket)
        place = bucket - histogram.offset
    histogram.counts[place] += count


@kernel(types.int64(HISTOGRAM_T, types.float64), **KERNEL)
def add(histogram, value):  # type: ignore[no-untyped-def]
    """Count a finite value >= 0 in one series. Returns its bucket at scale 8, or ZERO."""
    bucket = ZERO
    if value > 0:
        bucket = index(value)
        _count(histogram, MAX_SCALE, bucket, 1)
    else:
        histogram.zero_count += 1
    histogram.sum += value
    histogram.min = min(histogram.min, value)
    histogram.max = max(histogram.max, value)
    return bucket


@kernel(types.int64(types.int64, types.int64, types.int64), **KERNEL)
def explicit_place(bucket, first, last):  # type: ignore[no-untyped-def]
    """Between which of `explicit_bounds(first, last)` a bucket of scale 8, or ZERO, lies: 0 is below all."""
    above = (bucket >> (MAX_SCALE - 1)) + 1
    return min(max(above - first, 0), last - first + 1)


@kernel(
    types.int64(
        HISTOGRAM_T[::1],
        types.Array(types.int64, 1, "C", readonly=True),
        types.Array(types.float64, 1, "C", readonly=True),
    ),
    **KERNEL,
)
def fold(histograms, series, values):  # type: ignore[no-untyped-def]
    """Count `values[i]` in `histograms[series[i]]`. Returns how many were left out.

    A value that is negative or not finite is left out.
    """
    left_out = 0
    for place in range(values.size):
        value = values[place]
        if 0 <= value < np.inf:
            add(histograms[series[place]], value)
        else:
            left_out += 1
    return left_out


@kernel(types.void(HISTOGRAM_T, HISTOGRAM_T), **KERNEL)
def merge(histogram, other):  # type: ignore[no-untyped-def]
    """Add the values of one series to another: the counts become those of one that saw both."""
    for place in range(other.buckets):
        if other.counts[place] > 0:
            _count(histogram, other.scale, other.offset + place, other.counts[place])
    histogram.zero_count += other.zero_count
    histogram.sum += other.sum
    histogram.min = min(histogram.min, other.min)
    histogram.max = max(histogram.max, other.max)


def quantile(scale: int, offset: int, counts: Sequence[int], zero_count: int, q: float) -> float:
    """The value at rank floor(q * (n - 1)) of n sorted values, within the module's guarantee.

    NaN where the histogram is empty. `counts` are those of the buckets from `offset` on; q is in [0, 1].
    """
    total = zero_count + sum(counts)
    if not 0 <= q <= 1:
        raise ValueError(f"q must be in [0, 1], not {q}")
    if total == 0:
        return math.nan
    left = math.floor(q * (total - 1)) - zero_count
    if left < 0:
        return 0.0
    bucket = offset
    for count in counts:
        if left < count:
            break
        left -= count
        bucket += 1
    # The harmonic mean of the two bounds is equally far, relatively, from both.
    base = 2.0 ** (2.0**-scale)
    octave, step = (bucket >> scale, bucket & (2**scale - 1)) if scale >= 0 else (bucket << -scale, 0)
    return math.ldexp(2.0 ** (step / 2.0**scale) * (2 * base / (base + 1)), octave)


def explicit_bounds(first: int = -26, last: int = 10) -> tuple[float, ...]:
    """The bounds 2**(k/2) for k = first..last, each the largest double that does not exceed it."""
    root = float(_boundary(1, 2)) / _HIDDEN
    return tuple(math.ldexp(root if k & 1 else 1.0, k >> 1) for k in range(first, last + 1))
