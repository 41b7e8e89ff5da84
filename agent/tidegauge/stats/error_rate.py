"""DDM, EDDM and HDDM-A: whether a stream of rights (0) and wrongs (1) has got worse.

- DDM: J. Gama and others, Learning with Drift Detection, SBIA 2004. The rate p and its deviation s; a change
  where p + s is above the least p' + s' by more than 3 s'.
- EDDM: M. Baena-Garcia and others, Early Drift Detection Method, 2006. The distance between two wrongs, of
  mean p and deviation s; a change where p + 2 s is below 0.9 of its largest.
- HDDM-A: I. Frias-Blanco and others, Online and Non-Parametric Drift Detection Methods Based on Hoeffding's
  Bounds, IEEE TKDE 27, 2015. A change where the mean is above that of its least beginning by more than
  Hoeffding's bound allows with confidence 0.001; any values between 0 and 1 will do.

The rules and constants are those of river 0.26, change by change: nothing is told before 30 values (EDDM:
wrongs; HDDM-A: none), and all is begun anew at the first value after a change.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import boolean, float64, int64, types

from tidegauge.stats.kernel import INLINE, KERNEL, kernel

SIZE = 8
"""Numbers in a state of any of the three."""

_WARM_UP = 30
_FALL = 0.9
_CONFIDENCE = 0.001

_CHANGED = SIZE - 1
_COUNT, _MEAN = 0, 1
_LEAST_RATE, _LEAST_DEVIATION, _LEAST_SUM = 2, 3, 4  # of DDM
_WRONGS, _DISTANCE, _SQUARES, _LAST, _LARGEST = 1, 2, 3, 4, 5  # of EDDM
_LEAST_COUNT, _LEAST_MEAN = 2, 3  # of HDDM-A

_STATE = types.Array(float64, 1, "C")
_SIGNATURE = int64(_STATE, types.Array(float64, 1, "C", readonly=True), types.Array(int64, 1, "C"))


def fresh() -> npt.NDArray[np.float64]:
    """A detector that has seen nothing: float64[SIZE], which is all there is to keep of it."""
    return np.zeros(SIZE)


@kernel(boolean(_STATE, float64), **INLINE)
def _ddm(state, value):  # type: ignore[no-untyped-def]
    state[_COUNT] += 1.0
    state[_MEAN] += 1.0 / state[_COUNT] * (value - state[_MEAN])
    count, rate = state[_COUNT], state[_MEAN]
    if count <= _WARM_UP:
        return False
    deviation = np.sqrt(max(rate * (1.0 - rate), 0.0) / count)
    if count == _WARM_UP + 1 or rate + deviation <= state[_LEAST_SUM]:
        state[_LEAST_RATE], state[_LEAST_DEVIATION] = rate, deviation
        state[_LEAST_SUM] = rate + deviation
    return rate + deviation > state[_LEAST_RATE] + 3.0 * state[_LEAST_DEVIATION]


@kernel(boolean(_STATE, float64), **INLINE)
def _eddm(state, value):  # type: ignore[no-untyped-def]
    state[_COUNT] += 1.0
    if value != 1.0:
        return False
    state[_WRONGS] += 1.0
    wrongs, before = state[_WRONGS], state[_DISTANCE]
    distance = state[_COUNT] - state[_LAST]
    state[_LAST] = state[_COUNT]
    state[_DISTANCE] += 1.0 / wrongs * (distance - before)
    state[_SQUARES] += (distance - before) * (distance - state[_DISTANCE])
    if state[_COUNT] <= _WARM_UP:
        return False
    variance = state[_SQUARES] / (wrongs - 1.0) if wrongs > 1.0 else 0.0
    reach = state[_DISTANCE] + 2.0 * np.sqrt(variance)
    if reach > state[_LARGEST]:
        state[_LARGEST] = reach
        return False
    return wrongs > _WARM_UP and reach / state[_LARGEST] < _FALL


@kernel(boolean(_STATE, float64), **INLINE)
def _hddm_a(state, value):  # type: ignore[no-untyped-def]
    state[_COUNT] += 1.0
    state[_MEAN] += 1.0 / state[_COUNT] * (value - state[_MEAN])
    count, mean = state[_COUNT], state[_MEAN]
    wide = np.log(1.0 / _CONFIDENCE)
    if state[_LEAST_COUNT] == 0.0 or state[_LEAST_MEAN] + np.sqrt(
        1.0 / (2.0 * state[_LEAST_COUNT]) * wide
    ) >= mean + np.sqrt(1.0 / (2.0 * count) * wide):
        state[_LEAST_COUNT], state[_LEAST_MEAN] = count, mean
        return False
    share = (count - state[_LEAST_COUNT]) / state[_LEAST_COUNT] * (1.0 / count)
    return mean - state[_LEAST_MEAN] >= np.sqrt(share / 2.0 * np.log(2.0 / _CONFIDENCE))


@kernel(_SIGNATURE, **KERNEL)
def ddm(state, values, changes):  # type: ignore[no-untyped-def]
    """Feed zeros and ones. Returns how many changes there were.

    Args:
        state: float64[SIZE].
        values: float64[n].
        changes: int64[n or more], whose first elements become the places of the values after which
            there was a change.
    """
    found = 0
    for place in range(values.size):
        if state[_CHANGED] != 0.0:
            state[:] = 0.0
        if _ddm(state, values[place]):
            state[_CHANGED] = 1.0
            changes[found] = place
            found += 1
    return found


@kernel(_SIGNATURE, **KERNEL)
def eddm(state, values, changes):  # type: ignore[no-untyped-def]
    """As `ddm`."""
    found = 0
    for place in range(values.size):
        if state[_CHANGED] != 0.0:
            state[:] = 0.0
        if _eddm(state, values[place]):
            state[_CHANGED] = 1.0
            changes[found] = place
            found += 1
    return found


@kernel(_SIGNATURE, **KERNEL)
def hddm_a(state, values, changes):  # type: ignore[no-untyped-def]
    """As `ddm`; values between 0 and 1."""
    found = 0
    for place in range(values.size):
        if state[_CHANGED] != 0.0:
            state[:] = 0.0
        if _hddm_a(state, values[place]):
            state[_CHANGED] = 1.0
            changes[found] = place
            found += 1
    return found
