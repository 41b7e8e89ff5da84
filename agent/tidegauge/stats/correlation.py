"""Rank correlation of time series, also with one of them shifted, and how likely it is by chance.

Ranks, because latencies have heavy tails and a correlation of values would be that of the worst pair.
Series of telemetry are autocorrelated: neighbouring points tell the same, and two unrelated random walks
of 240 points correlate at 0.5 more often than not. So a p-value counts as many independent pairs as
there are, n / (1 + 2 sum of r_x(k) r_y(k)) (Bayley, Hammersley 1946, for the correlation of two series
Pyper, Peterman 1998), with the autocorrelations r taken from the series.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

LEAST = 20
"""Pairs below which there is no correlation: at 20 independent ones |r| passes 0.44 once in twenty times."""


class Correlation(NamedTuple):
    """Spearman's `r` of `pairs` pairs, `lag` steps apart, and the p-value of |r| without a relation."""

    r: float
    p_value: float
    lag: int
    pairs: int


def ranks(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Ranks from 1, the mean of them for equal values: float64[n]. NaN is not allowed."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    found: npt.NDArray[np.float64] = (last - (counts - 1) / 2.0)[inverse]
    return found


def correlate(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> Correlation | None:
    """Of two series of float64[n] at equal times; pairs with a NaN do not count.

    None where fewer than LEAST pairs are left, or one side is constant.
    """
    both = ~(np.isnan(x) | np.isnan(y))
    pairs = int(both.sum())
    if pairs < LEAST:
        return None
    a, b = ranks(x[both]), ranks(y[both])
    a -= a.mean()
    b -= b.mean()
    scale = math.sqrt(float(a @ a) * float(b @ b))
    if scale == 0.0:
        return None
    r = min(max(float(a @ b) / scale, -1.0), 1.0)
    return Correlation(r, _p_value(r, independent(a, b)), 0, pairs)


def lagged(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64], most: int) -> Correlation | None:
    """The strongest correlation of x with an earlier y: x[i] with y[i - lag], 0 <= lag <= most.

    The lag is chosen by the ranks within the whole series, and judged by those of its pairs. Its p-value
    is that of the best of so many: Šidák's, as if they were independent, which is conservative. None
    where no lag has one.
    """
    lags = range(min(most, len(x) - LEAST) + 1)
    a, b = _standard_ranks(x), _standard_ranks(y)
    strength = [abs(_mean_product(a[lag:], b[: len(b) - lag])) for lag in lags]
    if not strength:
        return None
    lag = int(np.argmax(strength))
    best = correlate(x[lag:], y[: len(y) - lag])
    if best is None:
        return None
    p_value = -math.expm1(len(lags) * math.log1p(-min(best.p_value, 1 - 1e-16)))
    return best._replace(lag=lag, p_value=p_value)


def _standard_ranks(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Ranks with mean 0 and deviation 1; 0 for a NaN, and all 0 where there is nothing to rank."""
    found, known = np.zeros(len(values)), ~np.isnan(values)
    if known.any():
        of_known = ranks(values[known])
        found[known] = (of_known - of_known.mean()) / (of_known.std() or 1.0)
    return found


def _mean_product(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> float:
    return float(a @ b) / len(a)


def independent(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> float:
    """How many independent pairs two series of mean 0 are worth, at most their length.

    Autocorrelations are summed up to a fifth of the length (Pyper, Peterman 1998), and where both are
    positive: what follows the first sign change is noise, and would give pairs away or invent some.
    """
    n = len(a)
    total = 0.0
    for k in range(1, n // 5 + 1):
        # Chatfield's correction of the bias from a short series: n / (n - k).
        product = _auto(a, k) * _auto(b, k) * (n / (n - k)) ** 2
        if product <= 0.0:
            break
        total += product
    return n / (1.0 + 2.0 * total)


def _auto(values: npt.NDArray[np.float64], k: int) -> float:
    return float(values[k:] @ values[:-k]) / float(values @ values)


def _p_value(r: float, pairs: float) -> float:
    """Two-sided, by Fisher's z; that of ranks varies by 1.06 / (n - 3) (Fieller, Hartley, Pearson 1957)."""
    if pairs <= 4.0:
        return 1.0
    z = math.atanh(min(abs(r), 1.0 - 1e-15)) * math.sqrt((pairs - 3.0) / 1.06)
    return math.erfc(z / math.sqrt(2.0))
