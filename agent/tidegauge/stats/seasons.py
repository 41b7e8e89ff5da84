"""What a series should be now, given its weeks: a robust decomposition into trend and season.

Median polish (Tukey 1977, chapter 11) of a table of weeks by hours of the week: a value is its week's
effect (the trend, a step a week) and its hour's (the season), and a residual. Medians have it that less
than half of an hour's weeks, or of a week's hours, cannot bend either.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

ROUNDS = 4
"""After which medians of hours and weeks hardly move any more."""

_NORMAL = 1.482602218505602
"""The standard deviation of normal values over their median absolute deviation."""

LEAST_WEEKS = 2
"""Of an hour, for an expectation of it: one alone says nothing of how much it varies."""


class Expected(NamedTuple):
    """float64[series] each, NaN where there is too little past: what the next value should be, and the
    standard deviation of its difference from that."""

    value: npt.NDArray[np.float64]
    spread: npt.NDArray[np.float64]


def expect(table: npt.NDArray[np.float64]) -> Expected:
    """What should come next.

    Args:
        table: float64[weeks, hours, series], NaN for what is not known, in the order of time: the next
            value is an hour like `table[:, 0]`, and the week before it is `table[-1]`.

    The spread is that of normal residuals: the median absolute difference of a series' hours from the
    same hours a week before, each week's effect taken off, over root 2. The hour's own median, of `weeks`
    values, adds pi / 2 of their variance over `weeks`.
    """
    weeks = np.zeros((table.shape[0], 1, table.shape[2]))
    hours = np.zeros((1, *table.shape[1:]))
    for _ in range(ROUNDS):
        hours = median(table - weeks, 0)[None]
        weeks = np.nan_to_num(median(table - hours, 1))[:, None]
    known = np.isfinite(table[:, 0]).sum(axis=0)
    steps = np.diff(table - weeks, axis=0).reshape(-1, table.shape[2])
    deviation = _NORMAL * median(np.abs(steps), 0) / np.sqrt(2.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        spread = deviation * np.sqrt(1.0 + np.pi / 2 / known)
    enough = known >= LEAST_WEEKS
    return Expected(np.where(enough, weeks[-1, 0] + hours[0, 0], np.nan), np.where(enough, spread, np.nan))


def median(values: npt.NDArray[np.float64], axis: int) -> npt.NDArray[np.float64]:
    """The median of what is not NaN along an axis; NaN where all is.

    numpy's own takes ten times as long for a few values in each of many places, and warns.
    """
    ordered = np.sort(values, axis=axis)  # NaN last
    known = np.expand_dims(np.isfinite(values).sum(axis=axis), axis)
    low = np.take_along_axis(ordered, np.maximum(known - 1, 0) // 2, axis)
    high = np.take_along_axis(ordered, np.minimum(known // 2, values.shape[axis] - 1), axis)
    return np.asarray(np.squeeze((low + high) / 2, axis))
