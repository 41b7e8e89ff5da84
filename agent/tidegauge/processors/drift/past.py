"""What came before the window: an identity's own past by the hour, on the bins of its reference."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tidegauge.config import Baseline
from tidegauge.config import Drift as Settings
from tidegauge.processors.drift.counts import Counts, Tables, tallies
from tidegauge.processors.drift.window import Closed
from tidegauge.stats.comparison import psi_rows
from tidegauge.stats.seasons import expect
from tidegauge.units import parse_period

HOUR_NS = 3_600 * 10**9
WEEK = 168
"""Hours."""

DAY = 24

SUMMARIES = ("mean", "missing", "psi")
"""What is kept of an hour besides its counts."""

_MOST = 2**32 - 1


class Before(NamedTuple):
    """Rows that a window is compared with: int64[numbers, most bins], int64[categorical columns, most]."""

    counts: npt.NDArray[np.int64]
    categories: npt.NDArray[np.int64]


class Hour(NamedTuple):
    """An hour that is over: uint32 counts laid out as in Counts, and float32[columns, SUMMARIES]."""

    counts: npt.NDArray[np.uint32]
    categories: npt.NDArray[np.uint32]
    summaries: npt.NDArray[np.float32]


class PastState(NamedTuple):
    """The hours that are over, by hours since 1970; the one that is not, with its rows; the rows of the fixed
    period; and what the last hour deviated by, float64[columns, SUMMARIES]."""

    hours: dict[int, Hour]
    open: int | None
    rows: Counts
    fixed: Before
    deviations: npt.NDArray[np.float64]


class Past:
    """The rows of one identity that have left their panes, by hours of event time.

    As many hours as `drift.other_baselines` ask for: those of `drift.rolling_period`, and of
    `drift.seasonal_weeks` weeks; 4 bytes a bin and 12 a column for each, so that a bin of an hour holds
    2^32 - 1 rows at most.
    """

    def __init__(self, tables: Tables, settings: Settings) -> None:
        self._tables = tables
        kinds = settings.other_baselines
        self._rolling_ns = int(settings.rolling_period * 1e9)
        self._weeks = settings.seasonal_weeks if Baseline.SEASONAL in kinds else 0
        rolling = math.ceil(settings.rolling_period / 3600) if Baseline.ROLLING in kinds else 0
        # Hours of the window itself, and of rows that may still come, lie between these and the present.
        lag = math.ceil((settings.window + settings.allowed_lateness) / 3600) + 1
        self._most = max(rolling, self._weeks * WEEK) + lag
        self._period = parse_period(settings.fixed_period) if settings.fixed_period else (0, 0)
        self._hours: dict[int, Hour] = {}
        self._open: int | None = None
        self._rows = Counts(tables)
        self._fixed = _before(Counts(tables))
        self._sums: dict[tuple[int, ...], Before] = {}
        self.deviations = np.full((len(tables.profiles), len(SUMMARIES)), np.nan)
        """float64[columns, SUMMARIES]: of the last hour, NaN where too little is known."""

    def add(self, pane: Closed) -> None:
        """Take in a pane that gets no more rows. They come in the order of time."""
        hour = pane.begin_ns // HOUR_NS
        if self._open is not None and hour > self._open:
            self._finish(self._open)
        self._open = hour
        self._rows += pane.counts
        if self._period[0] <= pane.begin_ns < self._period[1]:
            self._fixed.counts[:] += pane.counts.counts
            self._fixed.categories[:] += pane.counts.categories

    def before(self, kind: Baseline, begin_ns: int, now_ns: int) -> Before | None:
        """What a window from `begin_ns` to `now_ns` is to be compared with, not to be changed; None while
        there is too little.

        `rolling`: the hours of `drift.rolling_period` that end before the window, from a day on.
        `seasonal`: the hours of the week that the window touches, in the weeks before; each at least once.
        `fixed`: the rows of `drift.fixed_period`, once the window is behind it.
        """
        if kind is Baseline.FIXED:
            return self._fixed if begin_ns >= self._period[1] else None
        last = begin_ns // HOUR_NS - 1  # a window begins with a pane: those that begin earlier end by then
        if kind is Baseline.ROLLING:
            first = -(-(begin_ns - self._rolling_ns) // HOUR_NS)
            enough = min(DAY, self._rolling_ns // HOUR_NS - 1)
            found = [hour for hour in self._hours if first <= hour <= last]
            return self._sum(found) if found and min(found) <= last - enough else None
        touched = range(begin_ns // HOUR_NS, now_ns // HOUR_NS + 1)[:WEEK]
        weeks = range(1, self._weeks + 1)
        alike = [
            [h for w in weeks if (h := hour - w * WEEK) in self._hours and h <= last] for hour in touched
        ]
        return self._sum(hour for hours in alike for hour in hours) if all(alike) else None

    def capture(self) -> PastState:
        """All of it. Hours that are over are never changed."""
        fixed = Before(*(part.copy() for part in self._fixed))
        return PastState(dict(self._hours), self._open, self._rows.copy(), fixed, self.deviations)

    def restore(self, state: PastState) -> None:
        """Go on from there, with as many of the hours as are asked for now."""
        _, self._open, self._rows, self._fixed, self.deviations = state
        self._hours = dict(state.hours)
        self._forget()

    def summarise_anew(self) -> None:
        """Take PSI of the hours that are over from this reference, after `restore` from another one on the
        same bins: the step between two references would be news for weeks."""
        for hour, its in self._hours.items():
            counts = Before(its.counts.astype(np.int64), its.categories.astype(np.int64))
            summaries = its.summaries.copy()
            summaries[:, SUMMARIES.index("psi")] = _psi(self._tables, counts)
            self._hours[hour] = its._replace(summaries=summaries)

    def _finish(self, hour: int) -> None:
        rows = self._rows
        if rows.tallies.any() or rows.counts.any() or rows.categories.any() or rows.missing.any():
            summaries, errors = summarise(self._tables, rows)
            if self._weeks:
                self._deviate(hour, summaries, errors)
            self._hours[hour] = Hour(
                np.minimum(rows.counts, _MOST).astype(np.uint32),
                np.minimum(rows.categories, _MOST).astype(np.uint32),
                summaries.astype(np.float32),
            )
        self._rows = Counts(self._tables)
        self._forget(hour)

    def _forget(self, latest: int | None = None) -> None:
        self._sums = {}
        latest = max(self._hours, default=0) if latest is None else latest
        for hour in [hour for hour in self._hours if hour <= latest - self._most]:
            del self._hours[hour]

    def _deviate(
        self, hour: int, summaries: npt.NDArray[np.float64], errors: npt.NDArray[np.float64]
    ) -> None:
        """How far an hour's summaries are from what the weeks before it let expect."""
        table = np.full((self._weeks, WEEK, *summaries.shape), np.nan)
        first = hour - self._weeks * WEEK
        for known, its in self._hours.items():
            if first <= known < hour:
                table[divmod(known - first, WEEK)] = its.summaries
        expected = expect(table.reshape(self._weeks, WEEK, -1))
        value, spread = (part.reshape(summaries.shape) for part in expected)
        with np.errstate(divide="ignore", invalid="ignore"):
            self.deviations = (summaries - value) / np.hypot(spread, errors)

    def _sum(self, hours: Iterable[int]) -> Before:
        """Kept until another hour is over: a week takes a millisecond for 100 columns."""
        key = tuple(hours)
        if key not in self._sums:
            total = self._sums[key] = _before(Counts(self._tables))
            for hour in key:
                total.counts[:] += self._hours[hour].counts
                total.categories[:] += self._hours[hour].categories
        return self._sums[key]


def _before(counts: Counts) -> Before:
    return Before(counts.counts, counts.categories)


def summarise(tables: Tables, rows: Counts) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The SUMMARIES of each column, and their standard errors for independent rows: float64[columns, 3] each.

    NaN where there is none: categories have no mean, and columns without a value no PSI. Means are about the
    profile's centre: of a large one float32 would leave nothing of what moves.
    """
    found, errors = np.full((2, len(tables.profiles), len(SUMMARIES)), np.nan)
    for row, column in enumerate(tallies(tables, rows)):
        present, total = column.rows, column.rows + column.missing
        finite = present - column.infinite
        if finite and len(column.sums):
            with np.errstate(over="ignore", invalid="ignore"):
                mean = float(column.sums.sum()) / finite
                variance = max(column.squares / finite - mean * mean, 0.0)
            if math.isfinite(mean) and math.isfinite(variance):
                found[row, 0], errors[row, 0] = mean, math.sqrt(variance / finite)
        if total:
            # Laplace's rule: a share of nothing in 100 rows is not known to be nothing.
            share = (column.missing + 1) / (total + 2)
            found[row, 1] = column.missing / total
            errors[row, 1] = math.sqrt(share * (1 - share) / total)
    found[:, 2] = _psi(tables, _before(rows))
    errors[:, 2] = _psi_errors(tables, rows)
    return found, errors


def _psi(tables: Tables, rows: Before) -> npt.NDArray[np.float64]:
    """From the reference: float64[columns]."""
    return np.concatenate(
        [
            psi_rows(part.bins, part.counts, window, part.limits)[:, 0]
            for part, window in zip(tables.baselines, rows, strict=True)
        ]
    )


def _psi_errors(tables: Tables, rows: Counts) -> npt.NDArray[np.float64]:
    """Of a PSI without drift: (1/n + 1/m) chi-square, whose variance is twice its degrees."""
    reference = np.array([profile.rows for profile in tables.profiles], float)
    window = np.concatenate([rows.counts.sum(axis=1), rows.categories.sum(axis=1)])
    bins = np.concatenate([part.bins for part in tables.baselines])
    with np.errstate(divide="ignore"):
        return np.asarray((1 / reference + 1 / window) * np.sqrt(2.0 * (bins - 1)))
