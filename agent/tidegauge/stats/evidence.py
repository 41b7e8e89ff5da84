"""Evidence that adds up over time: e-values of counts, and a detector whose false alarms are rationed.

A pane's counts w (m rows in B bins) are judged against a reference r (n rows) by a ratio of two
Dirichlet-multinomial probabilities, both centred on the reference's shares p:

    e = P(w | concentration kappa) / P(w | concentration c),   kappa < c.

The denominator is what "no drift that matters" means here: shares that differ from p by a PSI of about
(B - 1) / c, which covers the reference's own sampling error and harmless variation. The expectation of
e under it is 1, exactly, whatever m is: e is an e-value (Vovk & Wang 2021). Shares that stay at a
distance below `threshold` in PSI give e < 1 in the long run, and evidence gathers only beyond that:
`concentrations` picks c and kappa so.

A detector adds panes up by the Shiryaev-Roberts rule, R' = (R + 1) e. While nothing drifts R grows by
one a pane on average, so the average number of panes up to the first R >= a is at least a: the e-detector
of Shin, Ramdas & Rinaldo 2024, for any dependence between panes that leaves the expectation of e, given
the past, at 1. The mean of several detectors is one again, however dependent they are; so at most one
false alarm in N panes for k features means a = k N for each.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from tidegauge.stats.kernel import kernel

RATIO = 4.0
"""c / kappa: an alternative whose distances are four times those of the null."""


class Concentrations(NamedTuple):
    """Of the null (c) and of the alternative (kappa), in rows."""

    null: float
    alternative: float


def concentrations(threshold: float, bins: int, reference_rows: float) -> Concentrations:
    """c and kappa for which a lasting PSI of `threshold`, and not less, gathers evidence.

    For many rows the logarithm of e is, to second order, ((c - kappa) PSI - (B - 1) ln(c / kappa)) / 2,
    which is 0 at PSI = (B - 1) ln(RATIO) / (c (1 - 1 / RATIO)). The reference's own error, an expected
    PSI of (B - 1) / n, is part of the null: 1/c is not below 1/n.

    Where the reference's rows depend on each other, `reference_rows` are those that they are worth.

    Raises:
        ValueError: where `threshold` is not positive or there are fewer than 2 bins.
    """
    if threshold <= 0 or bins < 2 or reference_rows <= 0:
        raise ValueError("a threshold above 0, 2 bins and some rows are the least")
    wanted = (bins - 1) * math.log(RATIO) / (threshold * (1 - 1 / RATIO))
    null = min(wanted, float(reference_rows))
    return Concentrations(null, null / RATIO)


@kernel("float64(int64[::1], int64[::1], float64, float64, float64)", cache=True, nogil=True)
def log_e_value(reference: Any, window: Any, null: Any, alternative: Any, inflation: Any) -> float:
    """The natural logarithm of e for one pane; 0 for an empty one.

    Args:
        reference, window: int64[bins] on the same bins, the reference with rows.
        null, alternative: the two concentrations, in rows.
        inflation: how much more the counts vary than independent rows' would, at least 1; the
            evidence is that of rows / inflation.

    Shares of the reference are smoothed by half a row per bin (Jeffreys' prior), so that a bin that
    the reference never saw is rare and not impossible.
    """
    rows = 0.0
    size = 0.0
    for index in range(len(window)):
        rows += window[index]
        size += reference[index] + 0.5
    rows /= inflation
    total = 0.0
    for index in range(len(window)):
        count = window[index] / inflation
        if count > 0.0:
            share = (reference[index] + 0.5) / size
            total += math.lgamma(alternative * share + count) - math.lgamma(alternative * share)
            total -= math.lgamma(null * share + count) - math.lgamma(null * share)
    total += math.lgamma(alternative) - math.lgamma(alternative + rows)
    total -= math.lgamma(null) - math.lgamma(null + rows)
    return float(total)


@kernel("float64(float64, float64)", cache=True, nogil=True)
def accumulate(log_r: Any, log_e: Any) -> float:
    """ln R after one more pane: ln((R + 1) e). Begin with minus infinity, R = 0."""
    top = max(log_r, 0.0)
    grown = math.log(math.exp(log_r - top) + math.exp(-top))
    return float(top + grown + log_e)


STEADY = 12
"""Pairs of panes whose median is good enough for thousands of columns."""

PARTS = 4
"""Parts of ordered bins that `inflation` looks at besides the bins themselves."""


@kernel("Tuple((float64, int64))(int64[::1], int64[::1], int64)", cache=True, nogil=True)
def _pearson(a: Any, b: Any, parts: Any) -> Any:
    """Pearson's statistic of two samples on bins taken together as `parts`, and its degrees of freedom."""
    n, m = a.sum(), b.sum()
    statistic, used = 0.0, 0
    if n == 0 or m == 0:
        return statistic, used
    bins = len(a)
    for part in range(parts):
        low, high = part * bins // parts, (part + 1) * bins // parts
        x, y = a[low:high].sum(), b[low:high].sum()
        if x + y > 0:
            gap = float(x) * m - float(y) * n
            statistic += gap * gap / (float(n) * m * (x + y))
            used += 1
    return statistic, max(used - 1, 0)


@kernel("float64[::1](int64[:, :, ::1], int64[::1], boolean)", cache=True, nogil=True)
def inflation(panes: Any, bins: Any, ordered: Any) -> Any:
    """How much more panes differ among themselves than independent rows would make them: float64[columns].

    At least 1. `panes` is int64[panes, columns, most bins], in the order of time, of which a column uses
    the first `bins` int64[columns]. It is the median, over pairs of neighbouring panes, of Pearson's
    statistic of the two, in units of chi-square's median: the overdispersion of quasi-likelihood
    (McCullagh & Nelder 1989, 4.5), which a change that comes once cannot raise. Where the bins have an
    order it is taken on four parts of them too, and the larger one counts: a process that wanders slowly
    moves neighbouring bins alike, and the many bins of no common motion would hide it. Of AR(1) rows with
    coefficient r the mean varies (1 + r) / (1 - r) times as much as that of independent ones.

    Panes in which a column has no rows are passed over. Of fewer than STEADY pairs it is STEADY / pairs
    times the median: of 500 columns that wander some have three panes alike. Of fewer than two it is
    infinity, by which a pane says nothing.
    """
    found = np.ones(len(bins))
    ratios = np.empty(max(len(panes) - 1, 1))
    for column in range(len(bins)):
        met = 0
        for parts in (bins[column], PARTS):
            if (parts < bins[column] and not ordered) or parts > bins[column]:
                continue
            pairs, met, before = 0, 0, -1
            for pane in range(len(panes)):
                b = panes[pane, column, : bins[column]]
                if b.sum() == 0:
                    continue
                if before >= 0:
                    statistic, degrees = _pearson(panes[before, column, : bins[column]], b, parts)
                    met += 1
                    if degrees > 0:
                        # Wilson & Hilferty 1931: the median of chi-square.
                        median = degrees * (1.0 - 2.0 / (9.0 * degrees)) ** 3
                        ratios[pairs] = statistic / median
                        pairs += 1
                before = pane
            if pairs > 0:
                found[column] = max(found[column], np.median(ratios[:pairs]))
        found[column] *= np.inf if met < 2 else max(STEADY / met, 1.0)
    return found


@kernel(
    "void(int64[::1], int64[:, ::1], float64[:, ::1], int64[:, ::1], float64[::1], float64, float64[::1])",
    cache=True,
    nogil=True,
)
def watch(bins: Any, reference: Any, given: Any, window: Any, inflations: Any, most: Any, log_r: Any) -> None:
    """Add one pane to every column's detector, in place; a column without rows waits.

    Args:
        bins, reference, window, inflations: as for `log_e_value`, one row a column, padded.
        given: float64[columns, 2], the Concentrations of each; 0 where a column is not watched.
        most: what `log_r` is kept below, so that an alarm ends soon after its cause.
        log_r: float64[columns], ln R so far.
    """
    for column in range(len(bins)):
        pane = window[column, : bins[column]]
        if given[column, 0] <= 0.0 or pane.sum() == 0:
            continue
        e = log_e_value(
            reference[column, : bins[column]], pane, given[column, 0], given[column, 1], inflations[column]
        )
        log_r[column] = min(accumulate(log_r[column], e), most)
