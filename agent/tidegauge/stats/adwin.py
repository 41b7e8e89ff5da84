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
from numba import boolean, float64, int64, types

from tidegauge.stats.kernel import KERNEL, kernel

DELTA = 0.002
"""The default confidence, that of river and of the paper's experiments."""

CLOCK = 32
"""Values from one look to the next."""

_MAX_BUCKETS = 5
_SHORTEST = 5  # values on either side of a cut
_GRACE = 10  # values before the first look
_LEVELS = 48  # 2**48 values: a million a second for nine years without a change

_DELTA, _SINCE, _WIDTH, _TOTAL, _VARIANCE, _USED, _CHANGED = range(7)
_COUNT = _CHANGED + 1  # per level: how many buckets
_SUMS = _COUNT + _LEVELS  # per level and bucket, the oldest first: its sum
_SQUARES = _SUMS + _LEVELS * _MAX_BUCKETS  # and its sum of squares about its own mean
_ROOM = _SQUARES + _LEVELS * _MAX_BUCKETS  # for buckets on their way, of two levels
_QUEUE = _MAX_BUCKETS + CLOCK
SIZE = _ROOM + 4 * _QUEUE
"""Numbers in a state: 5.5 KB of them."""

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
_VALUES = types.Array(float64, 1, "C", readonly=True)


@kernel(types.void(_STATE), **KERNEL)
def _drop(state):  # type: ignore[no-untyped-def]
    """Take the oldest bucket out of the window."""
    level = np.int64(state[_USED]) - 1
    first = level * _MAX_BUCKETS
    size, total, squares = 2.0**level, state[_SUMS + first], state[_SQUARES + first]
    state[_WIDTH] -= size
    state[_TOTAL] -= total
    gap = total / size - state[_TOTAL] / state[_WIDTH]
    state[_VARIANCE] -= squares + size * state[_WIDTH] * gap * gap / (size + state[_WIDTH])
    state[_COUNT + level] -= 1.0
    last = first + np.int64(state[_COUNT + level])
    for place in range(first, last):
        state[_SUMS + place] = state[_SUMS + place + 1]
        state[_SQUARES + place] = state[_SQUARES + place + 1]
    state[_SUMS + last] = state[_SQUARES + last] = 0.0
    if state[_COUNT + level] == 0.0:
        state[_USED] -= 1.0


@kernel(types.void(_STATE, _VALUES), **KERNEL)
def _measure(state, values):  # type: ignore[no-untyped-def]
    """Add values to the window's width, sum and sum of squares."""
    width, total, variance = state[_WIDTH], state[_TOTAL], state[_VARIANCE]
    for place in range(values.size):
        value = values[place]
        if width > 0.0:
            gap = value - total / width
            variance += width * gap * gap / (width + 1.0)
        width += 1.0
        total += value
    state[_WIDTH], state[_TOTAL], state[_VARIANCE] = width, total, variance


@kernel(types.void(_STATE, _VALUES), **KERNEL)
def _keep(state, values):  # type: ignore[no-untyped-def]
    """Add at most CLOCK values as buckets, and join the oldest two of a level while it has too many.

    All at once, level by level: which buckets are joined does not depend on what is in them.
    """
    sums, squares = state[_ROOM : _ROOM + _QUEUE], state[_ROOM + _QUEUE : _ROOM + 2 * _QUEUE]
    joined_sums = state[_ROOM + 2 * _QUEUE : _ROOM + 3 * _QUEUE]
    joined_squares = state[_ROOM + 3 * _QUEUE : _ROOM + 4 * _QUEUE]
    # The queue of a level: the buckets that it has end at place _MAX_BUCKETS, those that come begin there.
    coming, level, size = values.size, 0, 1.0
    for place in range(coming):
        sums[_MAX_BUCKETS + place], squares[_MAX_BUCKETS + place] = values[place], 0.0
    while coming > 0:
        held = np.int64(state[_COUNT + level])
        first, begin = level * _MAX_BUCKETS, _MAX_BUCKETS - held
        for place in range(held):
            sums[begin + place] = state[_SUMS + first + place]
            squares[begin + place] = state[_SQUARES + first + place]
        pairs = max(held + coming - _MAX_BUCKETS + 1, 0) // 2
        # Sizes are powers of two: to multiply by their reciprocals is to divide by them, to the last bit.
        share, weight = 1.0 / size, 1.0 / (size + size)
        for pair in range(pairs):
            one = begin + 2 * pair
            gap = sums[one] * share - sums[one + 1] * share
            joined_sums[_MAX_BUCKETS + pair] = sums[one] + sums[one + 1]
            joined_squares[_MAX_BUCKETS + pair] = (
                squares[one] + squares[one + 1] + size * size * gap * gap * weight
            )
        stay = held + coming - 2 * pairs
        for place in range(stay):
            state[_SUMS + first + place] = sums[begin + 2 * pairs + place]
            state[_SQUARES + first + place] = squares[begin + 2 * pairs + place]
        for place in range(stay, _MAX_BUCKETS):
            state[_SUMS + first + place] = state[_SQUARES + first + place] = 0.0
        state[_COUNT + level] = stay
        sums, joined_sums = joined_sums, sums
        squares, joined_squares = joined_squares, squares
        coming, level, size = pairs, level + 1, 2.0 * size
    state[_USED] = max(state[_USED], np.float64(level))


@kernel(boolean(_STATE), **KERNEL)
def _cut(state):  # type: ignore[no-untyped-def]
    """Whether there is a cut with means that differ by more than the bound."""
    n0, n1 = 0.0, state[_WIDTH]
    total0, total1 = 0.0, state[_TOTAL]
    spread = state[_VARIANCE] / state[_WIDTH]
    weight = np.log(2 * np.log(state[_WIDTH]) / state[_DELTA])
    for level in range(np.int64(state[_USED]) - 1, -1, -1):
        size, first = 2.0**level, _SUMS + level * _MAX_BUCKETS
        for place in range(np.int64(state[_COUNT + level])):
            total = state[first + place]
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


@kernel(int64(_STATE, _VALUES, types.Array(int64, 1, "C")), **KERNEL)
def update(state, values, changes):  # type: ignore[no-untyped-def]
    """Feed finite values. Returns how many changes there were.

    Args:
        state: float64[SIZE].
        values: float64[n].
        changes: int64[n or more], whose first elements become the places of the values after which
            there was a change.
    """
    found = begin = 0
    while begin < values.size:
        if state[_CHANGED] != 0.0:
            state[_SINCE:] = 0.0
        until_look = CLOCK - np.int64(state[_SINCE]) % CLOCK
        end = min(begin + until_look, values.size)
        _measure(state, values[begin:end])
        _keep(state, values[begin:end])
        state[_SINCE] += np.float64(end - begin)
        begin = end
        if np.int64(state[_SINCE]) % CLOCK == 0 and state[_WIDTH] > _GRACE and _cut(state):
            changed = True
            while changed:  # the window shrinks until its parts agree
                _drop(state)
                changed = _cut(state)
            state[_CHANGED] = 1.0
            changes[found] = end - 1
            found += 1
    state[_ROOM:] = 0.0  # so that equal states are equal
    return found
