"""From the counts of a window to its statistics, their p-values and the verdict."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tidegauge.config import Drift as Settings
from tidegauge.processors.drift.counts import Counts, Tables
from tidegauge.stats import bins
from tidegauge.stats.comparison import PSI, STATISTICS, Comparison, compare
from tidegauge.stats.distances import false_discoveries
from tidegauge.stats.nulls import TAIL

PRIMARY = STATISTICS[PSI]
"""The statistic that is a column's drift score: defined for numbers and categories alike."""

NULL_QUANTILE = 1 - TAIL

FEW_ROWS, EMPTY_REFERENCE = "few_rows", "empty_reference"
"""Why a column is not judged."""


class Evidence:
    """What a window says against a reference, column by column in the order of `Tables.profiles`.

    `values`, `p_values` and `null_quantiles` are float64[columns, STATISTICS], NaN where not defined.
    A column is `judged` with `min_rows` values in the window and any in the reference; `drifted` where
    its PSI is both significant, at a false discovery rate over the judged ones, and material: at least
    `drift.threshold`, and `least` where that is given, float64[columns], and more.
    """

    def __init__(
        self,
        tables: Tables,
        counts: Counts,
        settings: Settings,
        least: npt.NDArray[np.float64] | None = None,
    ) -> None:
        numeric, categorical = tables.baselines
        infinite = counts.tallies[:, bins.INFINITE].copy()
        squares = counts.squares[:, 0].copy()
        none = np.zeros(len(tables.categorical))
        found = (
            compare(numeric, counts.counts, counts.sums, squares, infinite, ordered=True),
            compare(
                categorical,
                counts.categories,
                np.zeros(counts.categories.shape),
                none,
                none.astype(np.int64),
                ordered=False,
            ),
        )
        self.values, self.p_values, self.null_quantiles = Comparison(
            *(np.concatenate(parts) for parts in zip(*found, strict=True))
        )
        self.rows = np.concatenate([counts.counts.sum(axis=1), counts.categories.sum(axis=1)])
        self.referenced = np.array([profile.rows > 0 for profile in tables.profiles], bool)
        self.judged: npt.NDArray[np.bool_] = (self.rows >= settings.min_rows) & self.referenced
        self.drifted = np.zeros(len(self.rows), bool)
        p_values = self.p_values[self.judged, PSI]
        rare = false_discoveries(p_values, settings.significance)
        wanted = np.full(len(self.rows), settings.threshold)
        if least is not None:
            wanted = np.fmax(wanted, least)
        self.drifted[self.judged] = rare & (self.values[:, PSI] >= wanted)[self.judged]

    def unjudged(self, column: int) -> str:
        """Why a column is not judged; "" where it is."""
        if self.judged[column]:
            return ""
        return FEW_ROWS if self.referenced[column] else EMPTY_REFERENCE
