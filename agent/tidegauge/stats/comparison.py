"""All statistics of many columns against their references, with p-values, in one call."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from tidegauge.stats import distances, nulls, psi_null
from tidegauge.stats.kernel import kernel

STATISTICS = (
    "psi",
    "js",
    "hellinger",
    "total_variation",
    "l_infinity",
    "chi2",
    "g",
    "ks",
    "cramer_von_mises",
    "anderson_darling",
    "wasserstein",
    "wasserstein_normed",
    "mean_shift",
    "variance_shift",
)
"""Names of the columns of `compare`'s results. From `ks` on they need an order, and so numbers."""

PSI, JS, HELLINGER, TV, LINF, CHI2, G, KS, CVM, AD, W1, W1_NORMED, MEAN, VARIANCE = range(len(STATISTICS))
ORDERED = KS


class Baseline(NamedTuple):
    """One column of a reference. Categories have no `sums`, `squares` nor `fourth`."""

    counts: npt.NDArray[np.int64]
    sums: npt.NDArray[np.float64]  # float64[bins] of finite values about the centre, and the same squared
    squares: npt.NDArray[np.float64]
    fourth: float  # the sum of their fourth powers
    infinite: int


class Baselines(NamedTuple):
    """Columns of a reference with all that `compare` asks of it, padded to the widest one's bins.

    `bins` int64[k]; `counts` int64[k, most]; `sums` float64[k, most]; `moments` float64[k, 3]: mean about
    the centre, variance and kurtosis of the finite values; `squared` float64[k, 2, 4]: SquaredNull of
    Cramer-von Mises and Anderson-Darling; `tables` float64[k, 4, tails] of `nulls.simulated`; `finite`
    bool[k]: whether there is no infinite value, which no mean goes with; `limits` float64[most]: what
    chi-square exceeds with probability `nulls.TAIL`, by degrees of freedom.
    """

    bins: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]
    sums: npt.NDArray[np.float64]
    moments: npt.NDArray[np.float64]
    squared: npt.NDArray[np.float64]
    tables: npt.NDArray[np.float64]
    finite: npt.NDArray[np.bool_]
    limits: npt.NDArray[np.float64]

    @classmethod
    def of(cls, columns: Sequence[Baseline]) -> Self:
        """Lay the columns out and work out their nulls: 2 to 8 ms a column."""
        count, most = len(columns), max((len(column.counts) for column in columns), default=1)
        laid = cls(
            np.array([len(column.counts) for column in columns], np.int64),
            np.zeros((count, most), np.int64),
            np.zeros((count, most)),
            np.full((count, 3), np.nan),
            np.zeros((count, 2, 4)),
            np.zeros((count, 4, len(nulls.TAILS))),
            np.array([column.infinite == 0 for column in columns], bool),
            np.array([_limit(degrees) for degrees in range(most)]),
        )
        for row, column in enumerate(columns):
            bins = len(column.counts)
            laid.counts[row, :bins] = column.counts
            laid.sums[row, : len(column.sums)] = column.sums
            if column.counts.sum() == 0:
                continue
            shares = column.counts / column.counts.sum()
            laid.squared[row, 0] = nulls.cramer_von_mises_null(shares)
            laid.squared[row, 1] = nulls.anderson_darling_null(shares)
            steps, spreads = _inside(column)
            laid.tables[row] = nulls.simulated(shares, steps, spreads)
            laid.moments[row] = _moments(column)
        return laid


@lru_cache(maxsize=2048)
def _limit(degrees: int) -> float:
    return float(distances.chi_square_quantile(nulls.TAIL, float(degrees)))


def _inside(column: Baseline) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """From each bin's mean to the next one's, and the standard deviation inside of each."""
    if not len(column.sums):
        return np.empty(0), np.empty(0)
    held = np.maximum(column.counts, 1)
    means = column.sums / held
    # An empty bin has no mean: it stands where the one before it does, and no mass passes through.
    places = np.maximum.accumulate(np.where(column.counts > 0, np.arange(len(means)), 0))
    with np.errstate(over="ignore", invalid="ignore"):  # values that span more than the doubles
        spreads = np.sqrt(np.maximum(column.squares / held - means**2, 0.0))
        steps = np.diff(means[places])
    usable = np.isfinite(steps).all() and np.isfinite(spreads).all()
    return (steps, spreads) if usable else (np.empty(0), np.empty(0))


def _moments(column: Baseline) -> tuple[float, float, float]:
    rows = int(column.counts.sum()) - column.infinite
    if not len(column.sums) or rows < 2:
        return math.nan, math.nan, math.nan
    with np.errstate(over="ignore", invalid="ignore"):
        mean = float(column.sums.sum()) / rows
        variance = float(column.squares.sum()) / rows - mean * mean
        # About the centre, which is the mean but for rounding.
        kurtosis = column.fourth / rows / (variance * variance) if variance > 0 else math.nan
    return mean, variance, kurtosis


class Comparison(NamedTuple):
    """float64[k, STATISTICS] each: values, p-values, and what is exceeded with probability 5 % without
    drift. NaN where a statistic or its null is not defined."""

    values: npt.NDArray[np.float64]
    p_values: npt.NDArray[np.float64]
    null_quantiles: npt.NDArray[np.float64]


def compare(
    baselines: Baselines,
    counts: npt.NDArray[np.int64],
    sums: npt.NDArray[np.float64],
    squares: npt.NDArray[np.float64],
    infinite: npt.NDArray[np.int64],
    *,
    ordered: bool,
) -> Comparison:
    """Compare a window with the reference, column by column. Columns without rows are NaN.

    Args:
        counts, sums: of the window, laid out as the baselines are.
        squares: float64[k]: of finite values about the centre, squared.
        infinite: int64[k]: infinite values among the counts.
        ordered: whether the bins have an order, as those of numbers do.
    """
    shape = (len(baselines.bins), len(STATISTICS))
    found = Comparison(np.full(shape, np.nan), np.full(shape, np.nan), np.full(shape, np.nan))
    _compare(*baselines, counts, sums, squares, infinite, ordered, nulls.TAILS, *found)
    return found


_R, _M, _V = "float64[::1]", "float64[:, ::1]", "int64[::1]"


@kernel(f"void({_R}, {_R}, {_R}, int64, {_R}, float64, {_R})", cache=True, nogil=True)
def _simulated(value: Any, p: Any, quantile: Any, place: Any, table: Any, root: Any, tails: Any) -> None:
    if table[-1] > 0.0:
        p[place] = nulls.simulated_p_value(value[place] / root, table, tails)
        quantile[place] = nulls.simulated_quantile(nulls.TAIL, table, tails) * root


@kernel(f"void({_R}, float64, float64, float64, {_R}, {_R}, {_R})", cache=True, nogil=True)
def _shifts(moments: Any, mean: Any, square: Any, noise: Any, value: Any, p: Any, quantile: Any) -> None:
    """Difference of means in the reference's standard deviations, and the log of the ratio of the two.

    The second is tested by the variances' difference, whose error is variance sqrt((kurtosis - 1) noise).
    """
    variance, kurtosis = moments[1], moments[2]
    if not variance > 0.0 or not (mean < np.inf and mean > -np.inf and square < np.inf):
        return
    deviation = math.sqrt(variance)
    value[MEAN] = (mean - moments[0]) / deviation
    error = math.sqrt(noise)
    p[MEAN] = math.erfc(abs(value[MEAN]) / error / math.sqrt(2.0))
    quantile[MEAN] = 1.959963984540054 * error
    ratio = max(square - mean * mean, 0.0) / variance
    value[VARIANCE] = 0.5 * math.log(ratio) if ratio > 0.0 else -np.inf
    if kurtosis > 1.0:
        error = math.sqrt((kurtosis - 1.0) * noise)
        p[VARIANCE] = math.erfc(abs(ratio - 1.0) / error / math.sqrt(2.0))
        quantile[VARIANCE] = 0.5 * math.log1p(1.959963984540054 * error)


@kernel(f"void({_V}, {_V}, float64, float64[::1], {_R}, {_R}, {_R})", cache=True, nogil=True)
def _divergences(a: Any, b: Any, noise: Any, limits: Any, value: Any, p: Any, quantile: Any) -> None:
    """What is about chi-square without drift, scaled."""
    chi2, degrees = distances.chi_square(a, b)
    value[PSI], value[JS] = distances.psi(a, b), distances.js(a, b)
    value[HELLINGER] = distances.hellinger(a, b)
    value[CHI2], value[G] = chi2, distances.g_test(a, b)
    limit = limits[degrees]
    p[PSI], quantile[PSI] = psi_null.judged(value[PSI], a, b, degrees, limit)
    quantile[JS] = quantile[HELLINGER] = math.sqrt(noise * limit / 8)
    quantile[CHI2] = quantile[G] = limit
    for place, statistic in (
        (JS, 8.0 * value[JS] ** 2 / noise),
        (HELLINGER, 8.0 * value[HELLINGER] ** 2 / noise),
        (CHI2, chi2),
        (G, value[G]),
    ):
        p[place] = distances.chi_square_p_value(statistic, np.float64(degrees))


@kernel(f"void({_V}, {_V}, {_M}, {_M}, float64, {_R}, {_R}, {_R}, {_R})", cache=True, nogil=True)
def _ranks(
    a: Any, b: Any, squared: Any, tables: Any, root: Any, tails: Any, value: Any, p: Any, quantile: Any
) -> None:
    """What needs an order of the bins and no values."""
    value[KS] = distances.ks(a, b)
    _simulated(value, p, quantile, KS, tables[nulls.KS], root, tails)
    if p[KS] <= tails[-1]:
        # Beyond what was simulated Kolmogorov's series goes on; on bins it errs upwards.
        p[KS] = min(p[KS], distances.ks_p_value(value[KS], a.sum(), b.sum()))
    value[CVM] = distances.cramer_von_mises(a, b)
    value[AD] = distances.anderson_darling(a, b)
    for place, which in ((CVM, 0), (AD, 1)):
        null = squared[which]
        p[place] = nulls.squared_p_value(value[place], null[0], null[1], null[2])
        quantile[place] = null[3]


@kernel(
    f"void({_V}, int64[:, ::1], {_M}, {_M}, float64[:, :, ::1], float64[:, :, ::1], boolean[::1],"
    f"float64[::1], int64[:, ::1], {_M}, float64[::1], {_V}, boolean, float64[::1], {_M}, {_M}, {_M})",
    cache=True,
    nogil=True,
)
def _compare(
    bins: Any,
    reference: Any,
    reference_sums: Any,
    moments: Any,
    squared: Any,
    tables: Any,
    is_finite: Any,
    limits: Any,
    window: Any,
    window_sums: Any,
    squares: Any,
    infinite: Any,
    ordered: Any,
    tails: Any,
    values: Any,
    p_values: Any,
    quantiles: Any,
) -> None:
    for row in range(len(bins)):
        used = bins[row]
        a, b = reference[row, :used], window[row, :used]
        n, m = a.sum(), b.sum()
        if n == 0 or m == 0:
            continue
        noise = 1.0 / n + 1.0 / m
        root = math.sqrt(noise)
        value, p, quantile = values[row], p_values[row], quantiles[row]
        _divergences(a, b, noise, limits, value, p, quantile)
        value[TV], value[LINF] = distances.total_variation(a, b), distances.l_infinity(a, b)
        _simulated(value, p, quantile, TV, tables[row, nulls.TOTAL_VARIATION], root, tails)
        _simulated(value, p, quantile, LINF, tables[row, nulls.L_INFINITY], root, tails)
        if not ordered:
            continue
        _ranks(a, b, squared[row], tables[row], root, tails, value, p, quantile)
        if is_finite[row] and infinite[row] == 0:
            moved = distances.wasserstein(a, reference_sums[row, :used], b, window_sums[row, :used])
            deviation = math.sqrt(moments[row, 1]) if moments[row, 1] > 0 else np.nan
            if moved < np.inf:
                value[W1] = moved
                _simulated(value, p, quantile, W1, tables[row, nulls.WASSERSTEIN], root, tails)
                value[W1_NORMED] = moved / deviation
                p[W1_NORMED], quantile[W1_NORMED] = p[W1], quantile[W1] / deviation
            _shifts(moments[row], window_sums[row].sum() / m, squares[row] / m, noise, value, p, quantile)


def psi_rows(
    bins: npt.NDArray[np.int64],
    before: npt.NDArray[np.int64],
    window: npt.NDArray[np.int64],
    limits: npt.NDArray[np.float64],
) -> npt.NDArray[np.float64]:
    """PSI of many columns against any other counts on their bins, where no null need be simulated.

    Args:
        bins, limits: as in Baselines.
        before, window: int64[k, most], of which a column uses its first bins.

    Returns:
        float64[k, 3]: PSI, its p-value and its null's quantile; NaN where either side is empty.
    """
    found = np.full((len(bins), 3), np.nan)
    _psi_rows(bins, before, window, limits, found)
    return found


@kernel(f"void({_V}, int64[:, ::1], int64[:, ::1], float64[::1], {_M})", cache=True, nogil=True)
def _psi_rows(bins: Any, before: Any, window: Any, limits: Any, found: Any) -> None:
    for row in range(len(bins)):
        a, b = before[row, : bins[row]], window[row, : bins[row]]
        if a.sum() == 0 or b.sum() == 0:
            continue
        degrees = distances.chi_square(a, b)[1]
        found[row, 0] = distances.psi(a, b)
        found[row, 1], found[row, 2] = psi_null.judged(found[row, 0], a, b, degrees, limits[degrees])
