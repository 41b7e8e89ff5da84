"""The PSI of many windows against one reference, with p-values: a fiftieth of all statistics' time."""

from __future__ import annotations

from typing import Any, NamedTuple

import numba
import numpy as np
import numpy.typing as npt

from tidegauge.stats import distances
from tidegauge.stats.comparison import Baselines


class Screening(NamedTuple):
    """float64[windows, k] each: PSI, its p-value, and what it exceeds with probability 5 % without drift.

    NaN where the window or the reference has no rows. As `comparison.compare` has them.
    """

    scores: npt.NDArray[np.float64]
    p_values: npt.NDArray[np.float64]
    null_quantiles: npt.NDArray[np.float64]


def screen(baselines: Baselines, windows: npt.NDArray[np.int64]) -> Screening:
    """Compare windows, int64[windows, k, most bins], with the reference, column by column."""
    found = Screening(*(np.full(windows.shape[:2], np.nan) for _ in Screening._fields))
    _screen(baselines.bins, baselines.counts, windows, baselines.limits, *found)
    return found


_M = "float64[:, ::1]"


@numba.njit(
    f"void(int64[::1], int64[:, ::1], int64[:, :, ::1], float64[::1], {_M}, {_M}, {_M})",
    cache=True,
    nogil=True,
)
def _screen(
    bins: Any, reference: Any, windows: Any, limits: Any, scores: Any, p_values: Any, quantiles: Any
) -> None:
    for column in range(len(bins)):
        a = reference[column, : bins[column]]
        n = a.sum()
        for window in range(len(windows)):
            b = windows[window, column, : bins[column]]
            m = b.sum()
            if n == 0 or m == 0:
                continue
            noise, used = 1.0 / n + 1.0 / m, 0
            for index in range(len(a)):
                used += a[index] + b[index] > 0
            score = distances.psi(a, b)
            scores[window, column] = score
            p_values[window, column] = distances.chi_square_p_value(score / noise, np.float64(used - 1))
            quantiles[window, column] = noise * limits[used - 1]
