"""Page-Hinkley: whether the mean of a stream has gone up or down, as a cumulative sum with forgetting.

E. S. Page, Continuous Inspection Schemes, Biometrika 41, 1954; D. V. Hinkley, Inference about the
Change-Point from Cumulative Sum Tests, Biometrika 58, 1971. With m the mean so far, u = a u + (x - m) - delta
and d = a d + (x - m) + delta: there was a change where u is above its least value by more than the threshold,
or d below its largest. The rule is river 0.26's (mode "both"), change by change; as there d's largest value
starts at -1, and all is begun anew at the first value after a change.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from numba import float64, int64, types

from tidegauge.stats.kernel import KERNEL, kernel

DELTA = 0.005
THRESHOLD = 50.0
ALPHA = 0.9999
SHORTEST = 30
"""Values before the first verdict."""

_DELTA, _THRESHOLD, _ALPHA, _COUNT, _MEAN, _UP, _DOWN, _LEAST, _LARGEST, _CHANGED = range(10)
SIZE = 10
"""Numbers in a state."""


def fresh(
    threshold: float = THRESHOLD, delta: float = DELTA, alpha: float = ALPHA
) -> npt.NDArray[np.float64]:
    """A detector that has seen nothing: float64[SIZE], which is all there is to keep of it.

    `threshold` and `delta` are in the units of the values, `alpha` is what is left of the past at each.
    """
    state = np.zeros(SIZE)
    state[[_DELTA, _THRESHOLD, _ALPHA]] = delta, threshold, alpha
    state[_CHANGED] = 1.0  # so that the first value begins anew
    return state


def mean(state: npt.NDArray[np.float64]) -> float:
    """The mean since the last change, NaN before the first value."""
    return float(state[_MEAN]) if state[_COUNT] else math.nan


@kernel(
    int64(
        types.Array(float64, 1, "C"),
        types.Array(float64, 1, "C", readonly=True),
        types.Array(int64, 1, "C"),
    ),
    **KERNEL,
)
def update(state, values, changes):  # type: ignore[no-untyped-def]
    """Feed finite values. Returns how many changes there were.

    Args:
        state: float64[SIZE].
        values: float64[n].
        changes: int64[n or more], whose first elements become the places of the values after which
            there was a change.
    """
    delta, threshold, alpha = state[_DELTA], state[_THRESHOLD], state[_ALPHA]
    count, mean, up, down = state[_COUNT], state[_MEAN], state[_UP], state[_DOWN]
    least, largest, changed = state[_LEAST], state[_LARGEST], state[_CHANGED] != 0.0
    found = 0
    for place in range(values.size):
        if changed:
            count = mean = up = down = 0.0
            least, largest, changed = np.inf, -1.0, False
        count += 1.0
        mean += 1.0 / count * (values[place] - mean)
        gap = values[place] - mean
        up = alpha * up + gap - delta
        down = alpha * down + gap + delta
        least, largest = min(least, up), max(largest, down)
        if count >= SHORTEST and (up - least > threshold or largest - down > threshold):
            changed = True
            changes[found] = place
            found += 1
    state[_COUNT], state[_MEAN], state[_UP], state[_DOWN] = count, mean, up, down
    state[_LEAST], state[_LARGEST], state[_CHANGED] = least, largest, np.float64(changed)
    return found
