"""Vectors against vectors, from sums: MMD, the distance of the means, and the share of components that moved.

A reference is a sample of vectors, from which the summary below is taken once. A window is its rows, their
sums and squares about the reference's mean, and the sums of their random Fourier features: `fold` adds up
over batches, panes and replicas.

Without drift the difference of two means, of features or of the vectors themselves, over
sqrt(1/n + 1/m) is about normal with the covariance S of one row, so that its squared length is a weighted
sum of squares whose weights are the eigenvalues of S. Their power sums are all that its distribution
needs (`nulls.squares_null`); they are taken from the sample without bias to leading order, for traces of
powers of a sample covariance are too large by about (trace)^2 / rows.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tidegauge.stats.distances import false_discoveries
from tidegauge.stats.fourier import FREQUENCIES, Frequencies
from tidegauge.stats.nulls import SquaredNull, squared_p_value, squares_null

STATISTICS = ("mmd", "mean_euclidean", "mean_cosine", "drifted_components")
MMD, MEAN_EUCLIDEAN, MEAN_COSINE, DRIFTED_COMPONENTS = range(4)

_PAIRS = 1024
"""Rows whose distances give the bandwidth: half a million of them, their median known to half a percent."""

_VALUES = 2**22
"""Components of all rows of a sample that are looked at, for each takes 40 bytes for a moment: vectors of
more than 2048 are summarised from fewer rows."""

_STEADY = 25.0
"""How much the reference's mean squared must outweigh its noise for its direction to mean anything."""

Floats = npt.NDArray[np.float64]


class Summary(NamedTuple):
    """A reference's vectors. `rows` in the sample; `mean`, `variance`: float64[width] of its components.

    `bandwidth` is s of the kernel and `waves` float64[2, FREQUENCIES] the means of cosines and sines.
    `powers` is float64[3, 3]: of MMD, MEAN_EUCLIDEAN and MEAN_COSINE the sums of the first three powers of
    the weights of their squares without drift.
    """

    rows: int
    mean: Floats
    variance: Floats
    bandwidth: float
    waves: Floats
    powers: Floats


def frequencies(width: int) -> Frequencies:
    """Those of every reference of this width: sums of different replicas add up."""
    return Frequencies(width, FREQUENCIES, seed=width)


def summarise(sample: npt.NDArray[np.float32]) -> Summary:
    """The summary of a sample of finite vectors, float32[rows, width], at least two of them, in no order.

    The bandwidth is the median distance of two vectors over the square root of 2: k = exp(-d^2 / median d^2),
    the median heuristic as alibi-detect has it (Garreau, Jitkrittum & Kanagawa 2018 on what it does).
    """
    rows = np.ascontiguousarray(sample[: max(2, _VALUES // sample.shape[1])], np.float32)
    values = rows.astype(np.float64)
    mean, variance = values.mean(axis=0), values.var(axis=0, ddof=1)
    bandwidth = _bandwidth(rows[:_PAIRS].astype(np.float64) - mean)
    center = mean.astype(np.float32)
    mapped = frequencies(rows.shape[1]).map(rows, center, bandwidth)
    waves = mapped.mean(axis=0).reshape(2, -1) * math.sqrt(FREQUENCIES)
    gaps = values - mean
    length = float(mean @ mean)
    across = gaps - np.outer(gaps @ mean, mean) / length if length > 0 else gaps
    scale = 1 / (2 * length) if length > 0 else 0.0
    powers = np.array([_powers(mapped - mapped.mean(axis=0)), _powers(gaps), _powers(across)])
    powers[MEAN_COSINE] *= scale ** np.arange(1, 4)
    return Summary(len(rows), mean, variance, bandwidth, waves, powers)


def _bandwidth(rows: Floats) -> float:
    lengths = (rows * rows).sum(axis=1)
    squared = lengths[:, None] + lengths[None, :] - 2 * rows @ rows.T
    median = float(np.median(squared[np.triu_indices(len(rows), 1)]))
    # A constant has no scale of its own: any change is far away.
    return math.sqrt(median / 2) if median > 1e-12 * float(lengths.max()) and median > 0 else 1.0


def _powers(gaps: Floats) -> tuple[float, float, float]:
    """Sums of powers of the eigenvalues of the covariance that the rows, less their mean, were drawn with.

    For normal rows the expectation of tr C^2 and tr C^3 of a sample covariance C with v degrees of freedom
    (Muirhead 1982, 3.3), turned around; never less than Cauchy and Schwarz allow.
    """
    free = len(gaps) - 1
    rows = len(gaps) < gaps.shape[1]
    matrix = (gaps @ gaps.T if rows else gaps.T @ gaps) / free
    square = matrix @ matrix
    first, two, three = np.trace(matrix), np.trace(square), float((square * matrix).sum())
    second = (two - first**2 / free) * free**2 / ((free + 2) * (free - 1)) if free > 1 else two
    second = max(second, first**2 / min(gaps.shape[1], 1e6))
    third = three - 3 * first * second / free - first**3 / free**2
    third = max(third, second**2 / first if first > 0 else 0.0)
    return float(first), float(second), float(third)


class Findings(NamedTuple):
    """float64[STATISTICS] each, NaN where not defined."""

    values: Floats
    p_values: Floats
    null_quantiles: Floats


def compare(
    reference: Summary, rows: int, moments: Floats, waves: Floats, significance: float, threshold: float
) -> Findings:
    """What a window's sums say against a reference.

    `mmd` is the square root of MMD^2 less what noise adds to it, 0 where that is negative; its p-value is
    that of MMD^2. The means' distances are as they are, noise included; `mean_cosine` is 1 - cos of the
    angle between them, and defined where the reference's mean stands out of its noise. A component counts
    as drifted where the shift of its mean is significant (Welch's test, at the false discovery rate
    `significance`) and its square, in variances of the reference, is at least `threshold`: between normal
    distributions that square is the PSI.

    Args:
        rows: in the window, at least two.
        moments: float64[2, width] as `Frequencies.fold` has them, about the float32 of the mean.
        waves: float64[2, FREQUENCIES], sums.
    """
    values, p_values, limits = (np.full(len(STATISTICS), math.nan) for _ in range(3))
    noise = 1 / reference.rows + 1 / rows
    nulls = [squares_null(*powers) for powers in reference.powers.tolist()]
    gap = waves / rows - reference.waves
    squared = float((gap * gap).sum()) / FREQUENCIES
    shift = moments[0] / rows + (reference.mean.astype(np.float32) - reference.mean)
    distance = float(shift @ shift)

    expected = noise * nulls[MMD].mean
    values[MMD] = math.sqrt(max(squared - expected, 0.0))
    p_values[MMD] = _p_value(squared / noise, nulls[MMD])
    limits[MMD] = math.sqrt(max(noise * nulls[MMD].limit - expected, 0.0))

    values[MEAN_EUCLIDEAN] = math.sqrt(distance)
    p_values[MEAN_EUCLIDEAN] = _p_value(distance / noise, nulls[MEAN_EUCLIDEAN])
    limits[MEAN_EUCLIDEAN] = math.sqrt(noise * nulls[MEAN_EUCLIDEAN].limit)

    length, window = float(reference.mean @ reference.mean), reference.mean + shift
    if length > _STEADY * noise * nulls[MEAN_EUCLIDEAN].mean and window @ window > 0:
        cosine = float(reference.mean @ window) / math.sqrt(length * float(window @ window))
        values[MEAN_COSINE] = max(1 - cosine, 0.0)
        p_values[MEAN_COSINE] = _p_value((1 - cosine) / noise, nulls[MEAN_COSINE])
        limits[MEAN_COSINE] = noise * nulls[MEAN_COSINE].limit
    values[DRIFTED_COMPONENTS] = _moved(reference, rows, moments, shift, significance, threshold)
    return Findings(values, p_values, limits)


def _p_value(scaled: float, null: SquaredNull) -> float:
    if null.degrees <= 0:  # a constant in the reference: without drift there is no difference at all
        return 1.0 if scaled <= 0 else 0.0
    return float(squared_p_value(scaled, null.mean, null.slope, null.degrees))


def _moved(
    reference: Summary, rows: int, moments: Floats, shift: Floats, significance: float, threshold: float
) -> float:
    mean = moments[0] / rows
    variance = np.maximum(moments[1] / rows - mean * mean, 0.0) * rows / (rows - 1)
    error = reference.variance / reference.rows + variance / rows
    with np.errstate(divide="ignore", invalid="ignore"):
        z = np.where(shift == 0, 0.0, np.abs(shift) / np.sqrt(error))
        material = shift * shift >= threshold * reference.variance
    p_values = np.array([math.erfc(one / math.sqrt(2)) for one in z.tolist()])
    return float(np.mean(false_discoveries(p_values, significance) & material & (shift != 0)))
