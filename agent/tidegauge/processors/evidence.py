"""From the counts of a window to its statistics, their p-values and the verdict."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

from tidegauge.layout import Kind
from tidegauge.processors.counts import Tally
from tidegauge.stats import distances

PRIMARY = "psi"
"""The statistic that is a column's drift score: defined for numbers and categories alike."""

NULL_QUANTILE = 0.95


class Evidence(NamedTuple):
    """What a window's rows say against the reference: statistics and p-values by statistic's name.

    `null_quantile` is the score that stays unreached in 95 % of windows of this size without drift.
    """

    statistics: dict[str, float]
    p_values: dict[str, float]
    null_quantile: float

    @property
    def score(self) -> float:
        """The primary distance."""
        return self.statistics[PRIMARY]


def evidence(tally: Tally) -> Evidence:
    """The statistics of one column; both sides must have rows."""
    profile = tally.profile
    n, m = profile.rows, tally.rows
    reference, window = profile.counts, tally.counts
    psi = float(distances.psi(reference, window))
    js = float(distances.js(reference, window))
    chi2, degrees = distances.chi_square(reference, window)
    statistics = {"psi": psi, "js": js, "chi2": float(chi2)}
    p_values = {
        "psi": distances.divergence_p_value(psi, 1.0, n, m, degrees),
        "js": distances.divergence_p_value(js * js, 0.125, n, m, degrees),
        "chi2": float(distances.chi_square_p_value(chi2, float(degrees))),
    }
    if profile.kind is Kind.NUMERIC:
        statistics["ks"] = float(distances.ks(reference, window))
        distance = float(distances.wasserstein(reference, profile.sums, window, tally.sums))
        # Infinite values have none that is finite, nor have those that span more than the doubles do.
        if math.isfinite(distance) and not profile.infinite and not tally.infinite:
            statistics["wasserstein"] = distance
        p_values["ks"] = float(distances.ks_p_value(statistics["ks"], n, m))
    return Evidence(statistics, p_values, (1.0 / n + 1.0 / m) * _chi_square_quantile(degrees))


@lru_cache
def _chi_square_quantile(degrees: int) -> float:
    """The value that chi-square exceeds with probability 1 - NULL_QUANTILE, by bisection."""
    low, high = 0.0, degrees + 10.0 * (2.0 * degrees) ** 0.5 + 10.0
    for _ in range(60):
        middle = (low + high) / 2
        if distances.chi_square_p_value(middle, float(degrees)) > 1 - NULL_QUANTILE:
            low = middle
        else:
            high = middle
    return high if degrees else 0.0
