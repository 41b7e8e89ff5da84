"""What a statistic does when nothing drifts, for one reference, at any number of rows.

Differences of two samples' shares are, times sqrt(nm / (n + m)), about normal with the covariance of the
reference's shares (the multinomial central limit). From that follow, without a row drawn:

- PSI, Jensen-Shannon, Hellinger, chi-square and G: chi-square with one degree less than bins in use,
  times a factor (`distances.divergence_p_value`);
- Cramer-von Mises and Anderson-Darling: a weighted sum of squares, taken as a gamma variable with its
  first three moments (Imhof 1961, Pearson's approximation);
- Kolmogorov-Smirnov, total variation, L-infinity and Wasserstein-1 on these very bins: simulated once
  per reference from `DRAWS` normal vectors, the same ones for all. A p-value is then known down to
  1/DRAWS, and is never told to be less.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tidegauge.stats.distances import chi_square_p_value, chi_square_quantile
from tidegauge.stats.kernel import kernel

DRAWS = 4096
"""Simulated samples; a tail probability of 5 % is known to a standard error of 0.34 %."""

TAILS = np.array([1.0, *np.geomspace(0.9, 1 / DRAWS, 40)])
"""Tail probabilities at which a simulated null is kept, descending."""

TAIL = 0.05
"""The probability of exceeding what is shown as a null's quantile."""

KS, TOTAL_VARIATION, L_INFINITY, WASSERSTEIN = range(4)
"""Rows of a simulated null."""

_SEED = 20_240_607


class SquaredNull(NamedTuple):
    """A weighted sum of squares of normal variables: its mean, and the gamma variable taken for it.

    (value - mean) * slope + degrees is chi-square with `degrees`, which need not be whole. `limit` is
    exceeded with probability TAIL.
    """

    mean: float
    slope: float
    degrees: float
    limit: float


def cramer_von_mises_null(shares: npt.NDArray[np.float64]) -> SquaredNull:
    """The null of `distances.cramer_von_mises` for a reference's shares, float64[bins]."""
    return _squared(np.sqrt(shares)[:, None] * np.tri(len(shares)), shares)


def anderson_darling_null(shares: npt.NDArray[np.float64]) -> SquaredNull:
    """The null of `distances.anderson_darling` for a reference's shares, float64[bins]."""
    middle = np.cumsum(shares) - shares / 2
    spread = middle * (1 - middle) - shares / 4
    weights = np.sqrt(np.divide(shares, spread, out=np.zeros_like(shares), where=spread > 0))
    return _squared(weights[:, None] * (np.tri(len(shares)) - np.eye(len(shares)) / 2), shares)


def _squared(form: npt.NDArray[np.float64], shares: npt.NDArray[np.float64]) -> SquaredNull:
    covariance = np.diag(shares) - np.outer(shares, shares)
    matrix = form @ covariance @ form.T
    square = matrix @ matrix
    return squares_null(float(np.trace(matrix)), float(np.trace(square)), float((square * matrix.T).sum()))


def squares_null(first: float, second: float, third: float) -> SquaredNull:
    """The null of a sum of squares whose weights have these sums of first, second and third powers."""
    if second <= 0 or third <= 0:
        return SquaredNull(first, 0.0, 0.0, 0.0)
    scale = second / third  # of one weight; powers of powers would underflow
    degrees = second * scale * scale
    slope = math.sqrt(degrees / second)
    limit = first + (chi_square_quantile(TAIL, degrees) - degrees) / slope
    return SquaredNull(first, float(slope), float(degrees), float(limit))


@kernel("float64(float64, float64, float64, float64)", cache=True, nogil=True)
def squared_p_value(statistic: Any, mean: Any, slope: Any, degrees: Any) -> float:
    """P(X >= statistic) of a SquaredNull; 1 where it has no degrees."""
    if degrees <= 0.0:
        return 1.0
    return float(chi_square_p_value(max((statistic - mean) * slope + degrees, 0.0), degrees))


def simulated(
    shares: npt.NDArray[np.float64], steps: npt.NDArray[np.float64], spreads: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Nulls of KS, TOTAL_VARIATION, L_INFINITY and WASSERSTEIN: float64[4, len(TAILS)].

    Each row holds the values that the statistic over sqrt(1/n + 1/m) exceeds with probability TAILS.

    Args:
        shares: float64[bins] of the reference.
        steps: float64[bins - 1], from each bin's mean to the next one's; empty for categories.
        spreads: float64[bins], standard deviation of the values inside each bin; empty for categories.
    """
    draws = _normal(len(shares) * (1 + (len(spreads) > 0)))
    found = np.empty((4, DRAWS))
    _simulate(np.sqrt(shares), steps, spreads, draws, found)
    ordered = np.sort(found, axis=1)[:, ::-1]
    # The value that the k-th largest of K draws is: exceeded with probability k / K or so.
    places = np.clip(np.round(TAILS * DRAWS).astype(int) - 1, 0, DRAWS - 1)
    table = np.ascontiguousarray(ordered[:, places])
    table[:, 0] = 0.0
    return table


@lru_cache(maxsize=1)  # columns of one reference mostly have the same number of bins
def _normal(width: int) -> npt.NDArray[np.float64]:
    return np.random.default_rng(_SEED).standard_normal((DRAWS, width))


@kernel(
    "void(float64[::1], float64[::1], float64[::1], float64[:, ::1], float64[:, ::1])", cache=True, nogil=True
)
def _simulate(roots: Any, steps: Any, spreads: Any, draws: Any, found: Any) -> None:
    bins = len(roots)
    for draw in range(len(draws)):
        normal = draws[draw]
        along = 0.0
        for index in range(bins):
            along += roots[index] * normal[index]
        below = sum_of = largest = furthest = moved = 0.0
        for index in range(bins):
            gap = roots[index] * (normal[index] - roots[index] * along)
            below += gap
            sum_of += abs(gap)
            largest = max(largest, abs(gap))
            furthest = max(furthest, abs(below))
            if index < len(steps):
                moved += abs(below) * steps[index]
            if len(spreads) > 0:
                moved += roots[index] * spreads[index] * abs(normal[bins + index])
        found[KS, draw] = furthest
        found[TOTAL_VARIATION, draw] = 0.5 * sum_of
        found[L_INFINITY, draw] = largest
        found[WASSERSTEIN, draw] = moved


@kernel("float64(float64, float64[::1], float64[::1])", cache=True, nogil=True)
def simulated_p_value(scaled: Any, values: Any, tails: Any) -> float:
    """The tail probability of a statistic over sqrt(1/n + 1/m), between the kept values.

    `values` is a row of `simulated` and `tails` is TAILS. Geometric between two of them; at least the
    last of TAILS, for nothing is known beyond.
    """
    for index in range(1, len(values)):
        if scaled < values[index]:
            low, high = values[index - 1], values[index]
            part = (scaled - low) / (high - low) if high > low else 1.0
            return float(tails[index - 1] * (tails[index] / tails[index - 1]) ** max(part, 0.0))
    return float(tails[-1])


@kernel("float64(float64, float64[::1], float64[::1])", cache=True, nogil=True)
def simulated_quantile(tail: Any, values: Any, tails: Any) -> float:
    """The value over sqrt(1/n + 1/m) that is exceeded with probability `tail`: `simulated_p_value` turned."""
    for index in range(1, len(tails)):
        if tails[index] <= tail:
            part = math.log(tail / tails[index - 1]) / math.log(tails[index] / tails[index - 1])
            return float(values[index - 1] + part * (values[index] - values[index - 1]))
    return float(values[-1])
