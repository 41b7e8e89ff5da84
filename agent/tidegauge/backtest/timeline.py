"""What a replay said over time: a line per column, and the episodes of drift and of alarm."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tidegauge.backtest.replay import KEYS, Evaluation, Moment
from tidegauge.metric import Metric, Number
from tidegauge.stats.parts import psi_parts

MOST = 1024
"""Steps that a line has: more cannot be told apart on a page."""

ALARM, DRIFTED = "alarm", "drifted"

Column = tuple[str, str]
"""Kind (feature or prediction) and name."""


class Moved(NamedTuple):
    """A bin: its shares of the reference and of the window, and its share of the PSI."""

    bin: str
    reference: float
    window: float
    share: float


@dataclass
class Episode:
    """From when to when a column was in alarm, or drifted; `end_ns` is None where it had not ended.

    `first` is what was said of it at the start, and `moved` are the bins that had moved most by then.
    """

    what: str
    first: Evaluation
    moved: list[Moved]
    end_ns: int | None = None
    peak: float = 0.0
    evaluations: int = 0


class Lines(NamedTuple):
    """float64[steps] each, NaN where nothing was said; `alarm` and `drifted` are 0 or 1."""

    time_ns: npt.NDArray[np.float64]
    score: npt.NDArray[np.float64]
    null_quantile: npt.NDArray[np.float64]
    evidence: npt.NDArray[np.float64]
    alarm: npt.NDArray[np.float64]
    drifted: npt.NDArray[np.float64]


class Summary(NamedTuple):
    """One column over the whole time. Shares are of the evaluations; `why` is the first alarm, else the
    first time that it drifted."""

    column: Column
    alarms: int
    alarming: float
    drifted: float
    judged: float
    peak_score: float
    peak_evidence: float
    why: Episode | None
    episodes: list[Episode]


class Timeline:
    """Takes in moments. Memory is that of `MOST` steps a column, and of the episodes.

    A step holds several evaluations, once there are more than `MOST`: the largest of each number.
    """

    def __init__(self, columns: Sequence[Column]) -> None:
        self.columns = list(columns)
        self.episodes: list[Episode] = []
        self.looks = 0
        self._looks_alarming = 0
        self._rows = {column: row for row, column in enumerate(columns)}
        self._steps = np.full((len(columns), MOST, len(Lines._fields)), np.nan)
        self._tally = np.zeros((len(columns), 3), np.int64)  # alarming, drifted, judged
        self._peaks = np.full((len(columns), 2), np.nan)  # score, evidence
        self._per_step = 1
        self._open: dict[tuple[Column, str], Episode] = {}

    def add(self, moment: Moment) -> None:
        """Take in what was said at the end of a pane."""
        step = self._step()
        for one in moment.evaluations:
            row = self._rows[one.kind, one.column]
            told = (one.time_ns, one.score, one.null_quantile, one.evidence, one.is_alarming, one.is_drifted)
            self._steps[row, step] = np.fmax(self._steps[row, step], np.array(told, np.float64))
            self._tally[row] += (one.is_alarming, one.is_drifted, not one.unjudged)
            self._peaks[row] = np.fmax(self._peaks[row], (one.score, one.evidence))
            self._follow(ALARM, one.is_alarming, one, moment.metrics)
            self._follow(DRIFTED, one.is_drifted, one, moment.metrics)
        self.looks += 1
        self._looks_alarming += any(one.is_alarming for one in moment.evaluations)

    @property
    def alarming(self) -> float:
        """The share of the evaluations at which any column was in alarm."""
        return self._looks_alarming / max(self.looks, 1)

    def lines(self, column: Column) -> Lines:
        """A column's steps, in the order of time."""
        steps = self._steps[self._rows[column]]
        return Lines(*steps[: -(-self.looks // self._per_step)].T)

    def summaries(self) -> list[Summary]:
        """Every column, worst first: most often in alarm, or drifted, nearest to an alarm, largest score."""
        found = []
        for row, column in enumerate(self.columns):
            mine = [one for one in self.episodes if (one.first.kind, one.first.column) == column]
            alarms = [one for one in mine if one.what == ALARM]
            alarming, drifted, judged = (self._tally[row] / max(self.looks, 1)).tolist()
            score, evidence = self._peaks[row].tolist()
            why = next(iter(alarms or mine), None)
            found.append(Summary(column, len(alarms), alarming, drifted, judged, score, evidence, why, mine))
        return sorted(found, key=_badness, reverse=True)

    def _step(self) -> int:
        if self.looks == MOST * self._per_step:
            pairs = self._steps.reshape(len(self._steps), MOST // 2, 2, -1)
            self._steps[:, : MOST // 2] = np.fmax(pairs[:, :, 0], pairs[:, :, 1])
            self._steps[:, MOST // 2 :] = np.nan
            self._per_step *= 2
        return self.looks // self._per_step

    def _follow(self, what: str, is_on: bool, one: Evaluation, metrics: tuple[Metric, ...]) -> None:
        key = (one.kind, one.column), what
        episode = self._open.get(key)
        if is_on and episode is None:
            episode = self._open[key] = Episode(what, one, moved(metrics, one.kind, one.column))
            self.episodes.append(episode)
        elif not is_on and episode is not None:
            episode.end_ns = one.time_ns
            del self._open[key]
        if is_on and episode is not None:
            episode.evaluations += 1
            episode.peak = np.fmax(episode.peak, one.score)


def _badness(one: Summary) -> tuple[float, ...]:
    return tuple(
        float(np.nan_to_num(value, nan=-1.0))
        for value in (one.alarming, one.drifted, one.peak_evidence, one.peak_score)
    )


def moved(metrics: Iterable[Metric], kind: str, column: str, most: int = 3) -> list[Moved]:
    """The bins with the largest shares of a column's PSI, as metrics tell both sides' counts."""
    counts: dict[str, dict[str, float]] = {"reference.count": {}, "window.count": {}}
    for metric in metrics:
        prefix, _, what = metric.name.partition(".")
        if prefix == kind and what in counts:
            for point in metric.points:
                at = dict(point.attributes)
                if isinstance(point, Number) and at.get(KEYS[kind]) == column:
                    counts[what][at["bin"]] = point.value
    return shares(counts["reference.count"], counts["window.count"])[:most]


def shares(reference: dict[str, float], window: dict[str, float]) -> list[Moved]:
    """Every bin of the reference on both sides, that with the largest share of the PSI first."""
    bins = list(reference)
    p = np.array([reference[one] for one in bins], np.float64)
    q = np.array([window.get(one, 0.0) for one in bins], np.float64)
    if not p.sum() or not q.sum():
        return []
    parts = psi_parts(p, q)
    whole = parts.sum() or 1.0
    found = zip(bins, (p / p.sum()).tolist(), (q / q.sum()).tolist(), (parts / whole).tolist(), strict=True)
    return sorted((Moved(*one) for one in found), key=lambda one: -one.share)
