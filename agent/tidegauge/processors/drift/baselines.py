"""What a window says against rows of the same stream from before, and how that is written down."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from tidegauge.config import Drift as Settings
from tidegauge.metric import Attributes, Number
from tidegauge.processors.drift.counts import Counts, Tables
from tidegauge.processors.drift.evidence import FEW_ROWS, NULL_QUANTILE, PRIMARY
from tidegauge.processors.drift.past import SUMMARIES, Before
from tidegauge.processors.drift.report import Points, family
from tidegauge.profile import Profile
from tidegauge.stats.comparison import psi_rows
from tidegauge.stats.distances import false_discoveries

LITTLE_HISTORY = "little_history"
"""Why a column is not judged against what came before."""


class Against:
    """A window beside rows from before, column by column in the order of `Tables.profiles`.

    `found` is float64[columns, 3]: PSI, its p-value and its null's quantile; `judged` and `drifted` are
    bool[columns], by the rule of Evidence. `before` is None where there is too little of it.
    """

    def __init__(self, tables: Tables, window: Counts, before: Before | None, settings: Settings) -> None:
        sides = (window.counts, window.categories)
        rows = np.concatenate([side.sum(axis=1) for side in sides])
        self._few = rows < settings.min_rows
        self.found = np.full((len(rows), 3), np.nan)
        self.judged: npt.NDArray[np.bool_] = np.zeros(len(rows), bool)
        self.drifted: npt.NDArray[np.bool_] = np.zeros(len(rows), bool)
        if before is None:
            return
        known = np.concatenate([side.sum(axis=1) for side in before])
        self.found = np.concatenate(
            [
                psi_rows(part.bins, its, side, part.limits)
                for part, its, side in zip(tables.baselines, before, sides, strict=True)
            ]
        )
        self.judged = ~self._few & (known >= settings.min_rows)
        rare = false_discoveries(self.found[self.judged, 1], settings.significance)
        self.drifted[self.judged] = rare & (self.found[self.judged, 0] >= settings.threshold)

    def unjudged(self, column: int) -> str:
        """Why a column is not judged; "" where it is."""
        if self.judged[column]:
            return ""
        return FEW_ROWS if self._few[column] else LITTLE_HISTORY


class Names:
    """The attributes of one column's points beside one baseline, made once."""

    def __init__(self, shared: Attributes, profile: Profile, baseline: str) -> None:
        self.prefix, key = family(profile.role)
        self.column: Attributes = (*shared, (key, profile.name), ("baseline", baseline))
        self.statistic = (*self.column, ("statistic", PRIMARY))
        self.quantile = (*self.statistic, ("probability", str(NULL_QUANTILE)))


def compared(names: Sequence[Names], its: Against, points: Points) -> None:
    """Points of all columns beside one baseline."""
    table = zip(names, its.found.tolist(), its.drifted.tolist(), strict=True)
    for place, (where, (score, p_value, quantile), drifted) in enumerate(table):
        drift = f"{where.prefix}.drift"
        if reason := its.unjudged(place):
            points[f"{drift}.unjudged"].append(Number((*where.column, ("reason", reason)), 1.0))
            continue
        points[f"{drift}.score"].append(Number(where.column, score))
        points[f"{where.prefix}.drifted"].append(Number(where.column, float(drifted)))
        points[f"{drift}.p_value"].append(Number(where.statistic, p_value))
        points[f"{drift}.null_quantile"].append(Number(where.quantile, quantile))


def deviations(
    shared: Attributes, profiles: Iterable[Profile], found: npt.NDArray[np.float64], points: Points
) -> None:
    """Points of float64[columns, SUMMARIES]; those without a value are left out."""
    for profile, row in zip(profiles, found.tolist(), strict=True):
        prefix, key = family(profile.role)
        for summary, value in zip(SUMMARIES, row, strict=True):
            if math.isfinite(value):
                where = (*shared, (key, profile.name), ("summary", summary))
                points[f"{prefix}.seasonal.deviation"].append(Number(where, value))
