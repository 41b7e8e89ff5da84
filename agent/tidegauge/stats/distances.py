"""Distances between two histograms on the same bins, and their p-values.

Every function takes counts, not shares: `reference` (n values) and `window` (m values), int64 or
float64[bins], in the order of the bins. All are plain loops, compiled, with no allocation per bin.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tidegauge.stats.kernel import kernel

SMOOTHING = 0.5
"""Added to every bin of both sides where a distance would be infinite for an empty bin: the
Krichevsky-Trofimov (Jeffreys prior) estimate, which also adds up over replicas."""

_DISTANCE = "float64(int64[::1], int64[::1])"


@kernel(_DISTANCE, cache=True, nogil=True)
def psi(reference: Any, window: Any) -> float:
    """Population stability index, sum of (q - p) ln(q / p), of shares smoothed by SMOOTHING.

    0 where the two are alike, symmetric, never infinite. Bins that are empty on both sides do not
    count: smoothing alone would make them differ. Source: Kullback & Leibler 1951 (their J).
    """
    used = 0
    for index in range(len(reference)):
        used += reference[index] + window[index] > 0
    n = reference.sum() + SMOOTHING * used
    m = window.sum() + SMOOTHING * used
    total = 0.0
    for index in range(len(reference)):
        if reference[index] + window[index] > 0:
            p = (reference[index] + SMOOTHING) / n
            q = (window[index] + SMOOTHING) / m
            total += (q - p) * math.log(q / p)
    return total


@kernel(_DISTANCE, cache=True, nogil=True)
def ks(reference: Any, window: Any) -> float:
    """Largest difference of the two cumulative shares at the bins' edges, in [0, 1].

    Never above the Kolmogorov-Smirnov distance of the raw values, and at most the largest share that
    one bin holds of either below it: exact where each distinct value has a bin of its own.
    """
    n, m = reference.sum(), window.sum()
    below_p = below_q = 0
    largest = 0.0
    for index in range(len(reference)):
        below_p += reference[index]
        below_q += window[index]
        largest = max(largest, abs(below_p / n - below_q / m))
    return largest


@kernel(_DISTANCE, cache=True, nogil=True)
def js(reference: Any, window: Any) -> float:
    """Jensen-Shannon distance: square root of the divergence in nats, in [0, sqrt(ln 2)].

    The same as `scipy.spatial.distance.jensenshannon`. Needs no smoothing. Source: Lin 1991.
    """
    n, m = reference.sum(), window.sum()
    divergence = 0.0
    for index in range(len(reference)):
        p, q = reference[index] / n, window[index] / m
        middle = 0.5 * (p + q)
        if p > 0.0:
            divergence += 0.5 * p * math.log(p / middle)
        if q > 0.0:
            divergence += 0.5 * q * math.log(q / middle)
    return math.sqrt(max(divergence, 0.0))


@kernel(_DISTANCE, cache=True, nogil=True)
def hellinger(reference: Any, window: Any) -> float:
    """Hellinger distance, sqrt(1 - sum of sqrt(p q)), in [0, 1]. Needs no smoothing.

    Summed as half the squared differences of the roots, which loses no digits where the two are alike.
    """
    n, m = reference.sum(), window.sum()
    total = 0.0
    for index in range(len(reference)):
        gap = math.sqrt(reference[index] / n) - math.sqrt(window[index] / m)
        total += gap * gap
    return math.sqrt(0.5 * total)


@kernel(_DISTANCE, cache=True, nogil=True)
def total_variation(reference: Any, window: Any) -> float:
    """Half the sum of |p - q|: the largest difference in the probability of any set of bins, in [0, 1]."""
    n, m = reference.sum(), window.sum()
    total = 0.0
    for index in range(len(reference)):
        total += abs(reference[index] / n - window[index] / m)
    return 0.5 * total


@kernel(_DISTANCE, cache=True, nogil=True)
def l_infinity(reference: Any, window: Any) -> float:
    """The largest |p - q| of a single bin, in [0, 1]."""
    n, m = reference.sum(), window.sum()
    largest = 0.0
    for index in range(len(reference)):
        largest = max(largest, abs(reference[index] / n - window[index] / m))
    return largest


@kernel(_DISTANCE, cache=True, nogil=True)
def g_test(reference: Any, window: Any) -> float:
    """The G statistic of the two-row table, 2 sum of O ln(O / E). Its degrees are `chi_square`'s.

    It is 2 (n + m) times the mutual information of side and bin in nats (Sokal & Rohlf 1981).
    """
    n, m = reference.sum(), window.sum()
    total = 0.0
    for index in range(len(reference)):
        a, b = reference[index], window[index]
        # O / E with E = row * column / (n + m), in doubles: the product does not fit int64.
        scale = (float(n) + m) / (float(a) + b) if a + b > 0 else 0.0
        if a > 0:
            total += a * math.log(a / float(n) * scale)
        if b > 0:
            total += b * math.log(b / float(m) * scale)
    return max(2.0 * total, 0.0)


@kernel(_DISTANCE, cache=True, nogil=True)
def cramer_von_mises(reference: Any, window: Any) -> float:
    """The two-sample Cramer-von Mises statistic on bins.

    nm/(n+m)^2 times the sum, over all values of both, of the squared difference of the two cumulative
    shares at the value's bin (Anderson 1962). Exact where each distinct value has a bin of its own.
    """
    n, m = float(reference.sum()), float(window.sum())
    below_p = below_q = total = 0.0
    for index in range(len(reference)):
        below_p += reference[index]
        below_q += window[index]
        gap = below_p / n - below_q / m
        total += (float(reference[index]) + window[index]) * gap * gap
    return n * m / ((n + m) * (n + m)) * total


@kernel(_DISTANCE, cache=True, nogil=True)
def anderson_darling(reference: Any, window: Any) -> float:
    """The two-sample Anderson-Darling statistic on bins: differences in the tails weigh most.

    Scholz & Stephens 1987, eq. 7: the k-sample statistic on midranks, for k = 2, not standardised.
    Exact where each distinct value has a bin of its own.
    """
    n, m = float(reference.sum()), float(window.sum())
    size = n + m
    below_p = below_q = below = total = 0.0
    for index in range(len(reference)):
        a, b = float(reference[index]), float(window[index])
        if a + b == 0.0:
            continue
        middle = below + 0.5 * (a + b)
        gap = (below_p + 0.5 * a) * m - (below_q + 0.5 * b) * n
        spread = middle * (size - middle) - 0.25 * size * (a + b)
        if spread > 0.0:
            total += (a + b) * gap * gap / spread
        below_p += a
        below_q += b
        below += a + b
    return total / (n * m) * ((size - 1.0) / size)


@kernel("Tuple((float64, int64))(int64[::1], int64[::1])", cache=True, nogil=True)
def chi_square(reference: Any, window: Any) -> tuple[float, int]:
    """Pearson's chi-square of the two-row table, and its degrees of freedom.

    Both rows count as samples (the reference is not taken for exact). Bins that are empty on both
    sides do not count; with one bin left the statistic and the degrees are 0.
    """
    n, m = reference.sum(), window.sum()
    statistic = 0.0
    used = 0
    for index in range(len(reference)):
        column = reference[index] + window[index]
        if column > 0:
            used += 1
            # The two cells' (O - E)^2 / E, with O n/m - E cancelled by hand: (a m - b n)^2 / (n m c).
            difference = float(reference[index]) * m - float(window[index]) * n
            statistic += difference * difference / (float(n) * m * column)
    return statistic, max(used - 1, 0)


@kernel("float64(int64[::1], float64[::1], int64[::1], float64[::1])", cache=True, nogil=True)
def wasserstein(reference: Any, reference_sums: Any, window: Any, window_sums: Any) -> float:
    """Wasserstein-1 distance of the two samples with each bin's values moved to their mean.

    `*_sums` are the sums of each bin's values about a common centre; the unit is that of the values.
    Exact where each bin holds one distinct value; else off by at most
    sum over bins of width/2 * (p + q), width being that of the values in the bin.
    """
    bins = len(reference)
    n, m = reference.sum(), window.sum()
    distance = 0.0
    gap = 0.0  # F - G to the right of the last point
    last = 0.0
    started = False
    for index in range(bins):
        a, b = reference[index], window[index]
        mean_a = reference_sums[index] / a if a > 0 else 0.0
        mean_b = window_sums[index] / b if b > 0 else 0.0
        # The bin's one or two points, in ascending order.
        window_first = a == 0 or (b > 0 and mean_b < mean_a)
        for second in range(2):
            from_window = window_first != (second == 1)
            weight = b if from_window else a
            if weight == 0:
                continue
            point = mean_b if from_window else mean_a
            if started:
                distance += abs(gap) * (point - last)
            gap += -weight / m if from_window else weight / n
            last = point
            started = True
    return distance


@kernel("float64(float64, float64)", cache=True, nogil=True)
def chi_square_p_value(statistic: float, degrees: float) -> float:
    """P(X >= statistic) of the chi-square distribution: the regularised upper incomplete gamma.

    1 for no degrees of freedom. Series below degrees/2 + 1, Lentz's continued fraction above
    (DLMF 8.7.1 and 8.9.2); relative error below 1e-9 down to 1e-280.
    """
    a, x = degrees / 2.0, statistic / 2.0
    if degrees <= 0.0 or x <= 0.0:
        return 1.0
    if x == math.inf:
        return 0.0
    front = math.exp(a * math.log(x) - x - math.lgamma(a))
    if x < a + 1.0:
        term = total = 1.0 / a
        for step in range(1, 10_000):
            term *= x / (a + step)
            total += term
            if term < total * 1e-16:
                break
        return max(0.0, 1.0 - front * total)
    tiny = 1e-300
    b = x + 1.0 - a
    c = 1.0 / tiny
    d = 1.0 / b
    fraction = d
    for step in range(1, 10_000):
        numerator = -step * (step - a)
        b += 2.0
        d = numerator * d + b
        d = 1.0 / (d if abs(d) > tiny else tiny)
        c = b + numerator / c
        c = c if abs(c) > tiny else tiny
        fraction *= d * c
        if abs(d * c - 1.0) < 1e-15:
            break
    return front * fraction


@kernel("float64(float64, float64)", cache=True, nogil=True)
def chi_square_quantile(tail: float, degrees: float) -> float:
    """What chi-square exceeds with probability `tail`: `chi_square_p_value` turned, by bisection (10 us)."""
    if degrees <= 0.0:
        return 0.0
    low, high = 0.0, degrees + 10.0 * math.sqrt(2.0 * degrees) + 10.0
    while chi_square_p_value(high, degrees) > tail:
        high *= 2.0
    for _ in range(60):
        middle = 0.5 * (low + high)
        if chi_square_p_value(middle, degrees) > tail:
            low = middle
        else:
            high = middle
    return high


@kernel("float64(float64, int64, int64)", cache=True, nogil=True)
def ks_p_value(distance: float, n: int, m: int) -> float:
    """P(D >= distance) under no drift, by Kolmogorov's series with Stephens' correction (1970).

    Conservative on bins and on tied values: the true probability is not above it by more than the
    asymptotic error.
    """
    root = math.sqrt(float(n) * m / (float(n) + m))
    scaled = (root + 0.12 + 0.11 / root) * distance
    if scaled < 0.2:
        return 1.0  # the series is 1 to 1e-10 here, and slow
    total = 0.0
    sign = 1.0
    for index in range(1, 101):
        term = math.exp(-2.0 * index * index * scaled * scaled)
        total += sign * term
        sign = -sign
        if term < 1e-17 * abs(total):
            break
    return min(max(2.0 * total, 0.0), 1.0)


def divergence_p_value(divergence: float, scale: float, n: int, m: int, degrees: int) -> float:
    """p-value of a divergence that is `scale` (1/n + 1/m) chi-square(degrees) under no drift.

    `degrees` are those of `chi_square`: the bins in use less one.

    scale is 1 for PSI and 1/8 for the Jensen-Shannon divergence (the squared distance): both are
    f-divergences, so their second-order expansion is Pearson's statistic (Yurdakul 2018).
    """
    return float(chi_square_p_value(divergence / (scale * (1.0 / n + 1.0 / m)), float(degrees)))


def false_discoveries(p_values: Any, rate: float) -> Any:
    """Which hypotheses fall at a false discovery rate: bool[k] (Benjamini & Hochberg 1995).

    >>> false_discoveries(np.array([0.001, 0.6, 0.02]), 0.05)
    array([ True, False,  True])
    """
    p_values = np.asarray(p_values, np.float64)
    count = len(p_values)
    order = np.argsort(p_values, kind="stable")
    below = p_values[order] <= rate * np.arange(1, count + 1) / max(count, 1)
    rejected = np.zeros(count, bool)
    if below.any():
        rejected[order[: int(np.nonzero(below)[0][-1]) + 1]] = True
    return rejected
