"""ADWIN: whether the mean of a stream has changed, over a window that is as long as there was no change.

A. Bifet and R. Gavalda, Learning from Time-Changing Data with Adaptive Windowing, SDM 2007: the variant with
an exponential histogram (ADWIN2). The window is kept as buckets of 1, 2, 4, ... values, at most 5 of each
size, so W values take about log2(W / 5) levels. Every 32 values each cut of it, into an older part of n0 and
a younger one of n1 values, is looked at. There was a change where the two means differ by more than

    sqrt(2 m v d) + 2/3 m d,    m = 1/(n0 - 4) + 1/(n1 - 4),    d = ln(2 ln(W) / delta)

with v the variance of the window. The bound assumes values between 0 and 1. Its constants are those of river
0.26, and so are the changes found, one by one. The paper has n0 and n1 in m, W for ln W, and keeps the
younger part after a change; here as in river all is begun anew at the first value that follows.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from numba import boolean, float64, int64, njit, types

from tidegauge.stats.kernel import INLINE, KERNEL

DELTA = 0.002
"""The default confidence, that of river and of the paper's experiments."""

CLOCK = 32
"""Values from one look to the next."""

_MAX_BUCKETS = 5
_SHORTEST = 5  # values on either side of a cut
_GRACE = 10  # values before the first look
_LEVELS = 48  # 2**48 values: a million a second for nine years without a change
_SLOTS = 8  # of a level: a ring of _MAX_BUCKETS + 1, and a power of two
_MASK = _SLOTS - 1

_DELTA, _SINCE, _WIDTH, _TOTAL, _VARIANCE, _USED, _CHANGED = range(7)
_OLDEST = _CHANGED + 1  # per level: the slot of its oldest bucket
_COUNT = _OLDEST + _LEVELS  # per level: how many buckets
_SUMS = _COUNT + _LEVELS  # per level and slot: the bucket's sum
_SQUARES = _SUMS + _LEVELS * _SLOTS  # and its sum of squares about its own mean
SIZE = _SQUARES + _LEVELS * _SLOTS
"""Numbers in a state: 6.9 KB of them."""

_ROUNDING = 1e-12
"""What a sum of doubles may be off by, relatively, and more."""


def fresh(delta: float = DELTA) -> npt.NDArray[np.float64]:
    """A detector that has seen nothing: float64[SIZE], which is all there is to keep of it."""
    if not 0 < delta < 1:
        raise ValueError(f"delta has to be between 0 and 1, not {delta}")
    state = np.zeros(SIZE)
    state[_DELTA] = delta
    return state


def width(state: npt.NDArray[np.float64]) -> int:
    """Values in the window."""
    return int(state[_WIDTH])


def mean(state: npt.NDArray[np.float64]) -> float:
    """The mean of the window, NaN where it is empty."""
    return float(state[_TOTAL] / state[_WIDTH]) if state[_WIDTH] else math.nan


def variance(state: npt.NDArray[np.float64]) -> float:
    """The variance of the window, NaN where it is empty."""
    return float(state[_VARIANCE] / state[_WIDTH]) if state[_WIDTH] else math.nan


_STATE = types.Array(float64, 1, "C")


@njit(types.void(_STATE, int64, float64, float64), **INLINE)
def _append(state, level, total, squares):  # type: ignore[no-untyped-def]
    slot = level * _SLOTS + (np.int64(state[_OLDEST + level] + state[_COUNT + level]) & _MASK)
    state[_SUMS + slot] = total
    state[_SQUARES + slot] = squares
    state[_COUNT + level] += 1.0


@njit(types.void(_STATE, int64, int64), **INLINE)
def _forget(state, level, buckets):  # type: ignore[no-untyped-def]
    """Remove the oldest ones of a level."""
    state[_OLDEST + level] = np.float64((np.int64(state[_OLDEST + level]) + buckets) & _MASK)
    state[_COUNT + level] -= buckets


@njit(types.void(_STATE), **KERNEL)
def _drop(state):  # type: ignore[no-untyped-def]
    """Take the oldest bucket out of the window."""
    level = np.int64(state[_USED]) - 1
    slot = level * _SLOTS + np.int64(state[_OLDEST + level])
    size, total = 2.0**level, state[_SUMS + slot]
    state[_WIDTH] -= size
    state[_TOTAL] -= total
    gap = total / size - state[_TOTAL] / state[_WIDTH]
    state[_VARIANCE] -= state[_SQUARES + slot] + size * state[_WIDTH] * gap * gap / (size + state[_WIDTH])
    _forget(state, level, 1)
    if state[_COUNT + level] == 0.0:
        state[_USED] -= 1.0


@njit(types.void(_STATE, float64), **INLINE)
def _insert(state, value):  # type: ignore[no-untyped-def]
    before, total = state[_WIDTH], state[_TOTAL]
    if before > 0.0:
        gap = value - total / before
        state[_VARIANCE] += before * gap * gap / (before + 1.0)
    state[_WIDTH] = before + 1.0
    state[_TOTAL] = total + value
    _append(state, 0, value, 0.0)
    size, level = 1.0, 0
    while state[_COUNT + level] > _MAX_BUCKETS:
        first = np.int64(state[_OLDEST + level])
        one = level * _SLOTS + first
        other = level * _SLOTS + ((first + 1) & _MASK)
        gap = state[_SUMS + one] / size - state[_SUMS + other] / size
        squares = size * size * gap * gap / (size + size)
        _append(
            state,
            level + 1,
            state[_SUMS + one] + state[_SUMS + other],
            state[_SQUARES + one] + state[_SQUARES + other] + squares,
        )
        _forget(state, level, 2)
        size *= 2.0
        level += 1
    state[_USED] = max(state[_USED], np.float64(level + 1))


@njit(boolean(_STATE), **KERNEL)
def _cut(state):  # type: ignore[no-untyped-def]
    """Whether there is a cut with means that differ by more than the bound."""
    n0, n1 = 0.0, state[_WIDTH]
    total0, total1 = 0.0, state[_TOTAL]
    spread = state[_VARIANCE] / state[_WIDTH]
    weight = np.log(2 * np.log(state[_WIDTH]) / state[_DELTA])
    for level in range(np.int64(state[_USED]) - 1, -1, -1):
        size, first = 2.0**level, np.int64(state[_OLDEST + level])
        for place in range(np.int64(state[_COUNT + level])):
            total = state[_SUMS + level * _SLOTS + ((first + place) & _MASK)]
            n0 += size
            n1 -= size
            total0 += total
            total1 -= total
            if n0 < _SHORTEST or n1 < _SHORTEST:
                continue
            # First without a division or a root, and not more strictly: most of the time went there.
            s0, s1 = n0 - (_SHORTEST - 1), n1 - (_SHORTEST - 1)
            high0, high1 = total0 * n1, total1 * n0
            gap = abs(high0 - high1) + _ROUNDING * (abs(high0) + abs(high1))
            product = n0 * n1
            if gap * gap * s0 * s1 < 2.0 * spread * weight * (s0 + s1) * product * product * (1 - _ROUNDING):
                continue
            m = 1.0 / s0 + 1.0 / s1
            bound = np.sqrt(2 * m * spread * weight) + 2 / 3 * weight * m
            if abs(total0 / n0 - total1 / n1) > bound:
                return True
    return False


@njit(int64(_STATE, types.Array(float64, 1, "C", readonly=True), types.Array(int64, 1, "C")), **KERNEL)
def update(state, values, changes):  # type: ignore[no-untyped-def]
    """Feed finite values. Returns how many changes there were.

    Args:
        state: float64[SIZE].
        values: float64[n].
        changes: int64[n or more], whose first elements become the places of the values after which
            there was a change.
    """
    found = 0
    for place in range(values.size):
        if state[_CHANGED] != 0.0:
            state[_SINCE:] = 0.0
        _insert(state, values[place])
        state[_SINCE] += 1.0
        if np.int64(state[_SINCE]) % CLOCK == 0 and state[_WIDTH] > _GRACE and _cut(state):
            changed = True
            while changed:  # the window shrinks until its parts agree
                _drop(state)
                changed = _cut(state)
            state[_CHANGED] = 1.0
            changes[found] = place
            found += 1
    return found
