"""What PSI is without drift where bins hold few rows.

With many rows in each bin it is (1/n + 1/m) chi-square. Where there are few the half row that each bin is
smoothed by counts: a rare category of a million rows, of which a window of 200 has none, adds 0.5 / 200 times
a logarithm to every window's PSI, and 90 of them 0.9. So there its first moments are worked out, given how
many rows both sides together have in each bin, as in Fisher's exact test: without drift each of these rows is
one of the smaller side's with the same probability. What a bin's part varies by is weighted by 1 - its share,
for what the sizes of both sides fix: with many rows that makes chi-square's moments, degrees and twice the
degrees, exactly. With the third moment a gamma variable is taken that has all three (Pearson, Imhof 1961).
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any

import numpy as np

from tidegauge.stats.distances import SMOOTHING, chi_square_p_value, chi_square_quantile
from tidegauge.stats.kernel import kernel
from tidegauge.stats.nulls import TAIL

FEW = 20.0
"""Rows expected in a bin, of the smaller side, from which on its part is about that of a normal count."""

_NORMAL = 1e5
"""Degrees from which on chi-square is normal."""

# Five points that have the first nine moments of a normal variable (Gauss and Hermite).
_PLACES = np.array([-2.8569700138728056, -1.355626179974266, 0.0, 1.355626179974266, 2.8569700138728056])
_WEIGHTS = np.array(
    [0.011257411327720689, 0.2220759220056126, 8 / 15, 0.2220759220056126, 0.011257411327720689]
)

_BEYOND = NormalDist().inv_cdf(1 - TAIL)

_WIDE = 6.0
"""Standard deviations, and rows, of a count that are looked at: what lies beyond has no weight."""


@kernel("float64(float64, float64)", cache=True, nogil=True)
def _part(p: Any, q: Any) -> float:
    return float((q - p) * math.log(q / p))


@kernel("void(float64, float64, float64[::1])", cache=True, nogil=True)
def _add(chance: Any, part: Any, moments: Any) -> None:
    moments[0] += chance * part
    moments[1] += chance * part * part
    moments[2] += chance * part * part * part


@kernel("void(float64, float64, float64, float64, float64, float64[::1])", cache=True, nogil=True)
def _moments(both: Any, rate: Any, size: Any, other: Any, smoothed: Any, moments: Any) -> None:
    """The first three moments of the part of a bin of `both` rows, each one of the `size` rows of the smaller
    side with probability `rate` and else one of the `other` ones; `smoothed` are added to either."""
    expected = both * rate
    deviation = math.sqrt(expected * (1.0 - rate))
    small, large = size + smoothed, other + smoothed
    moments[:] = 0.0
    if expected >= FEW:
        for index in range(len(_PLACES)):
            count = expected + _PLACES[index] * deviation
            part = _part((count + SMOOTHING) / small, (both - count + SMOOTHING) / large)
            _add(_WEIGHTS[index], part, moments)
        return
    low = max(math.floor(expected - _WIDE * deviation - _WIDE), 0.0)
    high = min(math.ceil(expected + _WIDE * deviation + _WIDE), both)
    chance = math.exp(
        math.lgamma(both + 1.0)
        - math.lgamma(low + 1.0)
        - math.lgamma(both - low + 1.0)
        + low * math.log(rate)
        + (both - low) * math.log1p(-rate)
    )
    count = low
    while count <= high:
        part = _part((count + SMOOTHING) / small, (both - count + SMOOTHING) / large)
        _add(chance, part, moments)
        chance *= (both - count) / (count + 1.0) * rate / (1.0 - rate)
        count += 1.0


@kernel("Tuple((float64, float64, float64))(int64[::1], int64[::1], int64)", cache=True, nogil=True)
def null(reference: Any, window: Any, degrees: Any) -> Any:
    """The mean of PSI without drift, and the slope and degrees of a `nulls.SquaredNull`.

    Args:
        reference, window: counts, int64[bins], neither without rows.
        degrees: bins in use less one.
    """
    n, m = float(reference.sum()), float(window.sum())
    rate = min(n, m) / (n + m)
    few = False
    for index in range(len(reference)):
        both = reference[index] + window[index]
        few = few or 0.0 < both * rate < FEW
    if degrees < 1 or not few:
        noise = 1.0 / n + 1.0 / m
        return degrees * noise, 1.0 / noise, float(degrees)
    smoothed = SMOOTHING * (degrees + 1.0)
    moments = np.empty(3)
    mean = variance = third = 0.0
    for index in range(len(reference)):
        both = float(reference[index] + window[index])
        if both > 0.0:
            rest = 1.0 - both / (n + m)
            _moments(both, rate, min(n, m), max(n, m), smoothed, moments)
            first, second = moments[0], moments[1]
            middle = _part(
                (both * rate + SMOOTHING) / (min(n, m) + smoothed),
                (both * (1.0 - rate) + SMOOTHING) / (max(n, m) + smoothed),
            )
            mean += middle + rest * (first - middle)
            variance += rest * (second - first * first)
            third += rest * (moments[2] - 3.0 * second * first + 2.0 * first * first * first)
    # Of one row in a bin PSI is the same whichever side has it: no spread, and yet no surprise.
    variance = max(variance, 2.0 * (1.0 / n + 1.0 / m) ** 2)
    free = _NORMAL if third <= 0.0 else min(8.0 * variance**3 / (third * third), _NORMAL)
    return mean, math.sqrt(2.0 * free / variance), free


@kernel("Tuple((float64, float64))(float64, int64[::1], int64[::1], int64, float64)", cache=True, nogil=True)
def judged(value: Any, reference: Any, window: Any, degrees: Any, limit: Any) -> Any:
    """The p-value of a PSI, and what it exceeds with probability TAIL; `limit` is what chi-square does."""
    if degrees < 1:
        return 1.0, 0.0
    mean, slope, free = null(reference, window, degrees)
    if free != degrees:
        # Wilson & Hilferty 1931: to 0.2 % from 3 degrees on, and a tenth of the time.
        ninth = 2.0 / (9.0 * free)
        limit = free * (1.0 - ninth + _BEYOND * math.sqrt(ninth)) ** 3
        if free < 3.0:
            limit = chi_square_quantile(TAIL, free)
    p_value = chi_square_p_value(max((value - mean) * slope + free, 0.0), free)
    return p_value, mean + (limit - free) / slope
