"""Alarms that are worth a page: evidence over time, with at most one false one in a stated while."""

from __future__ import annotations

import math
from collections import deque
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tidegauge.config import Drift as Settings
from tidegauge.processors.drift.counts import Counts, Tables, narrowed
from tidegauge.stats.evidence import concentrations, inflation, watch

_OVER = 3.0
"""How far ln R may pass an alarm's level: with the usual evidence of -1 to -10 a pane an alarm ends
within a few panes after its cause."""

END = 0.5
"""An alarm ends where ln R has fallen below this share of its level. At a drift just above the threshold,
whose evidence is nothing on average, alarms of 500 rows a pane begin a sixth as often as without."""


_LASTING = 3.0
"""A reference's error is the same in all panes, so that one above the average gathers evidence for ever: of
rows that wander, whose error is that of 3 degrees of freedom, one in 1000 references is off by 5 times it,
and evidence gathers from 1.8 times."""


class Recent(NamedTuple):
    """What is kept of a pane: [columns, most bins] of numbers and of categories, of any whole type."""

    counts: npt.NDArray[np.integer[Any]]
    categories: npt.NDArray[np.integer[Any]]

    def narrow(self) -> Recent:
        """In as few bytes as they need."""
        return Recent(*map(narrowed, self))


class AlarmState(NamedTuple):
    """Alarms as they were at one moment: ln R, float64[columns], which columns are in alarm, bool[columns],
    and the latest panes they learn from."""

    log_r: npt.NDArray[np.float64]
    alarming: npt.NDArray[np.bool_]
    recent: tuple[Recent, ...]


class Alarms:
    """One identity's detectors, a column each, fed with panes that are over.

    See `stats.evidence` for the rule and its guarantee. A column's alarm begins where R reaches columns
    times the panes in `drift.false_alarm_interval`, and ends where ln R falls below END of that level.
    Then R begins at 0 again: so each wait for an alarm is one of that guarantee, and as long as nothing
    drifts the identity has at most one in that while on average. Each pane's rows count for as many
    independent ones as the panes before it have shown, and so do those of a reference of first rows. The
    first LEAST panes only teach that.

    `alarming` is bool[columns], in the order of `Tables.profiles`, and never changed in place.
    """

    LEAST = 3
    RECENT = 24

    def __init__(self, tables: Tables, settings: Settings) -> None:
        self._tables = tables
        self.retune(settings)
        self.log_r = np.full(len(tables.profiles), -math.inf)
        self.alarming: npt.NDArray[np.bool_] = np.zeros(len(tables.profiles), bool)
        self._recent: deque[Recent] = deque(maxlen=self.RECENT)

    def retune(self, settings: Settings) -> None:
        """Judge by other thresholds from the next pane on. The evidence so far stands, for what it was
        gathered against: R stays a supermartingale where the alternative changes between two panes."""
        self._threshold = settings.threshold
        pane_s = settings.window / settings.panes
        columns = len(self._tables.profiles)
        self.level = math.log(max(columns * settings.false_alarm_interval / pane_s, 2.0))
        self._wanted: tuple[npt.NDArray[np.float64], ...] | None = None

    @property
    def ready(self) -> bool:
        """Whether enough panes were seen to know how much they vary."""
        return len(self._recent) >= self.LEAST

    @property
    def shares(self) -> npt.NDArray[np.float64]:
        """ln R over the level that makes an alarm, between 0 and 1 where there is none: float64[columns]."""
        return np.asarray(np.maximum(self.log_r, 0.0) / self.level)

    def look(self, pane: Counts) -> None:
        """Take in a pane to which no more rows will come. One without rows says nothing."""
        if not pane.counts.any() and not pane.categories.any():
            return
        found = Recent(pane.counts, pane.categories)
        if self.ready:
            numeric = len(self._tables.numeric)
            halves = (self.log_r[:numeric], self.log_r[numeric:])
            for kind, (baselines, given, log_r, window) in enumerate(
                zip(self._tables.baselines, self._concentrations(), halves, found, strict=True)
            ):
                if len(log_r):
                    recent = np.stack([one[kind] for one in self._recent], dtype=np.int64)
                    spread = inflation(recent, baselines.bins, kind == 0)
                    most = self.level + _OVER
                    its = self._lessened(given, baselines.counts, spread)
                    watch(baselines.bins, baselines.counts, its, window, spread, most, log_r)
            self.alarming = turn(self.alarming, self.log_r, self.level)
        self._recent.append(found.narrow())

    def capture(self) -> AlarmState:
        """All that they have gathered. The panes are never changed, so they are not copied."""
        return AlarmState(self.log_r.copy(), self.alarming, tuple(self._recent))

    def restore(self, state: AlarmState) -> None:
        """Go on from there."""
        self.log_r = state.log_r
        self.alarming = state.alarming
        self._recent.extend(one.narrow() for one in state.recent)

    def _concentrations(self) -> tuple[npt.NDArray[np.float64], ...]:
        if self._wanted is None:
            self._wanted = tuple(
                np.array(
                    [
                        concentrations(self._threshold, int(bins), int(counts.sum()))
                        if bins > 1 and counts.sum()
                        else (0.0, 0.0)
                        for bins, counts in zip(part.bins, part.counts, strict=True)
                    ]
                ).reshape(-1, 2)
                for part in self._tables.baselines
            )
        return self._wanted

    def _lessened(
        self,
        given: npt.NDArray[np.float64],
        reference: npt.NDArray[np.int64],
        spread: npt.NDArray[np.float64],
    ) -> npt.NDArray[np.float64]:
        """Concentrations no larger than the rows that the reference's are worth.

        First rows follow each other as those of panes do, and so are worth as few: 5000 of AR(1) at 0.99
        are 25, whose shares are nothing to hold a day against. Rows of a file are taken as independent.
        """
        if not self._tables.is_of_first_rows:
            return given
        worth = reference.sum(axis=1) / spread / _LASTING
        with np.errstate(invalid="ignore", divide="ignore"):
            share = np.fmin(worth / given[:, 0], 1.0)
        return np.ascontiguousarray(given * np.nan_to_num(share)[:, None])


def turn(
    alarming: npt.NDArray[np.bool_], log_r: npt.NDArray[np.float64], level: float
) -> npt.NDArray[np.bool_]:
    """Which columns are in alarm after a pane, bool[columns]: `alarming` are those before it.

    Where an alarm has ended `log_r`, float64[columns], begins at R = 0 again.
    """
    now = np.asarray(log_r >= np.where(alarming, END * level, level))
    log_r[alarming & ~now] = -math.inf
    return now
